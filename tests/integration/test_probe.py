"""The probe at the barrier of real sandboxes: it answers, and nothing of it stays when the command runs."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import sweep
from tests.support.leftovers import wait_until
from tests.support.person import SYSTEM_PATH, Person
from tests.support.shared_setup import DIRECTORY

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

DRIVER = """
import contextlib, json, os, sys
from pathlib import Path
from clsecure.backends.choose import backend_for
from clsecure.errors import ClsecureError
from clsecure.model import ContainerSpec, Engine, IsolationMode, SandboxCommand, SandboxSpec, WorkerImage
from clsecure.privileged.client import HelperConnection

mode, image, helper = sys.argv[1:]
engine = Engine(mode) if mode in ("podman", "docker") else None
container = engine and ContainerSpec(engine=engine, image=WorkerImage(name="worker", image_id=image))
kind = IsolationMode.CONTAINER if engine else IsolationMode(mode)
with contextlib.closing(HelperConnection(Path(helper))) as connection:
    account = connection.lease(project=os.getcwd(), session="probe", create=True)
    try:
        spec = SandboxSpec(mode=kind, account=account, container=container)
        with backend_for(kind, connection, container).open(spec) as sandbox:
            (given, give), (got, get) = os.pipe(), os.pipe()
            sandbox.probe((given, get, 2))
            os.close(given), os.close(get)
            print(json.dumps(account.uid), flush=True)
            sys.stdin.readline()
            lines = os.fdopen(got)
            said = [lines.readline() for _ in range(int(sys.stdin.readline()))]
            print(json.dumps(said), flush=True)
            sys.stdin.readline()
            null, (got, get) = os.open("/dev/null", os.O_RDWR), os.pipe()
            script = "cat; for p in /proc/[0-9]*; do tr '\\\\0' ' ' <$p/cmdline; echo; done"
            waits, go = os.pipe()
            argv, env = ("/bin/sh", "-c", script), {"PATH": "/usr/bin:/bin"}
            command = SandboxCommand(argv=argv, env=env, cwd=Path("/"))
            sandbox.start(command, stdio=(waits, get, 2))
            os.close(get)
            print("started", flush=True)
            # All that the probe's pipe is open for is gone.
            assert lines.read() == ""
            sys.stdin.readline()
            os.close(go), os.close(waits)
            print(json.dumps(os.fdopen(got).read().split("\\n")), flush=True)
            assert sandbox.wait(timeout=30) == 0, sandbox.end
            print(json.dumps(sandbox.end.killed), flush=True)
    finally:
        connection.remove()
"""
PROBE = """
import os, signal, time
for number in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("sleeps", flush=True)
            time.sleep(600)
        os._exit(0)
time.sleep(600)
"""


class Driver:
    """A program of the person's that opens a sandbox, probes it and then runs a command in it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def said(self) -> Any:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read().decode()
        return json.loads(line) if line != b"started\n" else "started"


@contextlib.contextmanager
def driven(person: Person, mode: str, image: str, mounts: str, environ: dict[str, str]) -> Iterator[Driver]:
    argv = [sys.executable, "-I", "-c", DRIVER, mode, image, f"{DIRECTORY}/helper"]
    ids = ("--reuid", person.uid, "--regid", person.gid, "--groups", person.groups[0], "--inh-caps=-all")
    script = f'{mounts} && cd {shlex.quote(str(person.home))} && exec setpriv "$@"'
    whole = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", *map(str, ids), *argv]
    pipe = subprocess.PIPE
    env = person.environment({**environ, "PATH": SYSTEM_PATH})
    with subprocess.Popen(whole, env=env, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            yield Driver(process)
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.communicate(timeout=60)


def probes(uid: int) -> list[str]:
    """Return the command lines of the worker's processes, by the host, that are a probe's."""
    found = []
    for pid in sweep.processes_of(uid):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
    return [line for line in found if "inside.py" in line]


@pytest.mark.parametrize(
    "mode",
    [
        "user",
        "namespace",
        pytest.param("podman", marks=pytest.mark.xdist_group("containers")),
        pytest.param("docker", marks=pytest.mark.xdist_group("containers")),
    ],
)
def test_a_probe_answers_and_nothing_of_it_stays(
    request: pytest.FixtureRequest, person: Person, tmp_path: Path, mode: str
) -> None:
    image, environ, mounts, sleepers = "", {}, "true", 3
    if mode in ("podman", "docker"):
        image = request.getfixturevalue("worker_image").image
        request.getfixturevalue("podman_image" if mode == "podman" else "docker_host")
    if mode == "docker":
        # Its daemon binds what is installed: the probe proper, which waits for its orders.
        environ, sleepers = {"DOCKER_HOST": request.getfixturevalue("docker_host")}, 0
    else:
        (tmp_path / "inside.py").write_text(PROBE)
        mounts = f"mount --bind {tmp_path}/inside.py {DIRECTORY}/inside.py"
    with driven(person, mode, image, mounts, environ) as driver:
        uid = driver.said()
        driver.tell()
        driver.tell(str(sleepers))
        assert driver.said() == ["sleeps\n"] * sleepers
        wait_until(lambda: len(probes(uid)) == sleepers + 1, "the probe runs")
        driver.tell()
        assert driver.said() == "started"
        wait_until(lambda: not probes(uid), "the probe is gone")
        driver.tell()
        seen = driver.said()
        assert any("/bin/sh -c" in line for line in seen)
        assert not any("inside.py" in line for line in seen)
        assert type(driver.said()) is int
    assert driver.process.returncode == 0
