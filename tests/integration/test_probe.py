"""The probe at the barrier of real sandboxes: it answers, and nothing of it stays when the command runs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.support import sweep
from tests.support.driven import MODES, driven, image_for
from tests.support.leftovers import wait_until
from tests.support.person import Person
from tests.support.shared_setup import DIRECTORY

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

DRIVER = """
with opened(*sys.argv[1:]) as (sandbox, spec):
    (given, give), (got, get) = os.pipe(), os.pipe()
    sandbox.probe((given, get, 2))
    os.close(given), os.close(get)
    lines = os.fdopen(got)
    tell(spec.account.uid)
    tell([lines.readline() for _ in range(int(told()))])
    told()
    null, (got, get), (waits, go) = os.open("/dev/null", os.O_RDWR), os.pipe(), os.pipe()
    script = "cat; for p in /proc/[0-9]*; do tr '\\\\0' ' ' <$p/cmdline; echo; done"
    argv, env = ("/bin/sh", "-c", script), {"PATH": "/usr/bin:/bin"}
    sandbox.start(SandboxCommand(argv=argv, env=env, cwd=Path("/")), stdio=(waits, get, 2))
    os.close(get)
    # All that the probe's pipe is open for is gone.
    tell(lines.read())
    told()
    os.close(go), os.close(waits)
    tell(os.fdopen(got).read().split("\\n"))
    tell(sandbox.wait(timeout=30))
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


def probes(uid: int) -> list[str]:
    """Return the command lines of the worker's processes, by the host, that are a probe's."""
    found = []
    for pid in sweep.processes_of(uid):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
    return [line for line in found if "inside.py" in line]


@pytest.mark.parametrize("mode", MODES)
def test_a_probe_answers_and_nothing_of_it_stays(
    request: pytest.FixtureRequest, person: Person, tmp_path: Path, mode: str
) -> None:
    image, environ = image_for(request, mode)
    (tmp_path / "inside.py").write_text(PROBE)
    mounts, sleepers = f"mount --bind {tmp_path}/inside.py {DIRECTORY}/inside.py", 3
    if mode == "docker":
        # Its daemon binds what is installed: the probe proper, which waits for its orders.
        mounts, sleepers = "true", 0
    with driven(person, DRIVER, mode, image, environ, mounts=mounts) as driver:
        uid = driver.said()
        driver.tell(str(sleepers))
        assert driver.said() == ["sleeps\n"] * sleepers
        wait_until(lambda: len(probes(uid)) == sleepers + 1, "the probe runs")
        driver.tell()
        assert driver.said() == ""
        wait_until(lambda: not probes(uid), "the probe is gone")
        driver.tell()
        seen = driver.said()
        assert any("/bin/sh -c" in line for line in seen)
        assert not any("inside.py" in line for line in seen)
        assert driver.said() == 0
    assert driver.process.returncode == 0
