"""H: a member of the group who speaks raw to the root helper, and to the engines that it starts."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import pytest
from podman import PodmanClient

from tests.hostile.test_i_images import entry, store_of, write_image
from tests.support.raw_helper import DEADLINE, RawHelper

T = TypeVar("T")

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("helper")]

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
ENGINES = Path("/var/lib/clsecure/engines")
REGISTRY = Path("/var/lib/clsecure/registry")
DAEMON = 1  # an account that every machine has
PROGRAMS = [
    {"type": "bind", "source": path, "target": path, "read_only": True}
    for path in ("/usr", "/bin", "/lib", "/lib64")
]
PLACES = ("usr", "bin", "lib", "lib64", "etc", "dev", "proc", "sys", "run", "tmp", "home", "var", "s")
LEASE = {"verb": "lease", "project": "/hostile/engine", "session": "default", "create": True}


@pytest.fixture
def held(person):
    """A connection that holds an account of the person's, which is removed."""
    with RawHelper(person) as helper:
        yield helper, helper.ask(LEASE)["account"]
    with RawHelper(person) as helper:
        helper.ask(LEASE)
        assert helper.ask({"verb": "remove"}) == {"done": True}


@contextlib.contextmanager
def listening(place: Path) -> Iterator[socket.socket]:
    """A socket for an engine to listen on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place))
        listener.listen()
        yield listener


def own_engine(account: dict[str, Any]) -> dict[str, Any]:
    """Return the request for a sandbox with an engine of its own."""
    workspace = Path(account["home"]) / "work"
    workspace.mkdir(exist_ok=True)
    os.chown(workspace, account["uid"], account["uid"])
    return {"verb": "run", "mode": "user", "docker": "own", "workspace": str(workspace), "mounts": []}


def client(place: Path) -> PodmanClient:
    """Speak to an engine."""
    return PodmanClient(base_url=f"http+unix://{place}", timeout=60)


@pytest.fixture(scope="module")
def empty_archive(tmp_path_factory) -> tuple[Path, str]:
    """An image that holds nothing but directories to mount on: its archive, and its id."""
    archive = tmp_path_factory.mktemp("empty") / "empty.tar"
    members = [entry(name, tarfile.DIRTYPE, mode=0o755) for name in PLACES]
    image = write_image(archive, members, name="localhost/empty:1")
    return archive, image.removeprefix("sha256:")


@pytest.fixture(scope="module")
def empty_image(person, empty_archive, tmp_path_factory) -> str:
    """The same in the person's store."""
    api = tmp_path_factory.mktemp("api") / "api"
    with RawHelper(person) as helper, listening(api) as listener:
        assert helper.ask({"verb": "images"}, [listener.fileno()]) == {"event": "ready"}
        with client(api) as podman:
            podman.images.load(data=empty_archive[0].read_bytes())
        assert helper.ask({"verb": "enough"})["event"] == "exit"
    return empty_archive[1]


def test_h10_a_runtime_is_looked_for_below_usr_only(held, tmp_path):
    """Root must not tell what lies in other people's directories, by the way in which it refuses."""
    helper, _ = held
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "present").write_text("")
    os.chown(closed / "present", DAEMON, DAEMON)
    answers = set()
    for name in ("present", "missing"):
        path = f"/usr/..{closed}/{name}"
        with listening(tmp_path / f"api-{name}") as listener:
            request = {"verb": "run", "mode": "container", "engine": "podman", "runtime": path, "mounts": []}
            answers.add(helper.ask(request, [listener.fileno()])["error"].replace(name, "it"))
    assert len(answers) == 1, answers


LAUNCHER = """
import json, os, signal, socket
control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
control.connect("/run/clsecure/control")
control.recv(65536)
if os.fork() == 0:
    control.send(json.dumps({"event": "ready"}).encode())
    signal.pause()
os.wait()
control.recv(65536)
"""


def test_a12_the_helper_tells_nothing_of_a_process_that_got_the_launchers_number(held, empty_image, tmp_path):
    """A launcher of the member's own says that it is ready, and has ended before the helper reads it.

    The streams of a runtime with a kernel of its own are awaited first: time for its number to be given out
    again, to somebody else's process.
    """
    helper, account = held
    api, secret = tmp_path / "api", tmp_path / "a-secret-name"
    secret.write_text("")
    with listening(api) as listener:
        request = {"verb": "run", "mode": "container", "engine": "podman", "plain": True, "mounts": []}
        helper.send(request, [listener.fileno()])
    with client(api) as podman:
        control = {"type": "bind", "source": "/run/clsecure/control", "target": "/run/clsecure/control"}
        podman.containers.create(
            empty_image, command=["/usr/bin/python3", "-I", "-S", "-c", LAUNCHER], name="x",
            mounts=[*PROGRAMS, control], network_mode="none", log_config={"Type": "none"},
        ).start()  # fmt: skip
        child = wait_until(lambda: child_of_launcher(account["uid"]))
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{child}").exists())
        with secret.open() as opened, reborn(child, opened):
            for _ in range(3):
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
                    stream.connect(f"/run/clsecure/{account['name']}/streams")
            answer = helper.receive()
    assert answer is not None
    assert "facts" not in answer, answer["facts"]["descriptors"]
    assert answer == {"error": "the launcher has ended"}


def wait_until(look: Callable[[], T | None]) -> T:
    """Return the first thing found that is something."""
    deadline = time.monotonic() + DEADLINE
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come"
        select.select([], [], [], 0.02)
    return found


def child_of_launcher(uid: int) -> int | None:
    """Return the process of the account that waits in the launcher's child."""
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            status = dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)
            words = (path.parent / "cmdline").read_bytes()
            if status["Uid"].split()[0] == str(uid) and b"signal.pause" in words:
                inside = status["NSpid"].split()[-1]
                if inside != "1":
                    return int(path.parent.name)
    return None


@contextlib.contextmanager
def reborn(number: int, opened: IO[str]) -> Iterator[None]:
    """Run a process of somebody's that has this number."""
    while True:
        LAST_PID.write_text(str(number - 1))
        made = subprocess.Popen(["sleep", "600"], stdin=opened, user=DAEMON, group=DAEMON, extra_groups=[])
        try:
            if made.pid == number:
                yield
                return
        finally:
            made.kill()
            made.wait()


def test_f3_a_store_of_images_leaves_a_reserve_of_the_disk(person, tmp_path):
    """Images count to nobody's quota: a store that takes the last of the disk is ended, and none begins."""
    place = store_of(person).parent
    place.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs", place], check=True)
    try:
        with RawHelper(person) as helper, listening(tmp_path / "api") as listener:
            assert helper.ask({"verb": "images"}, [listener.fileno()]) == {"event": "ready"}
            (place / "filler").write_bytes(bytes(62 << 20))
            answer = helper.receive()
            assert answer is not None
            assert "too little room" in answer["error"]
            again = helper.ask({"verb": "images"}, [listener.fileno()])
            assert "too little room" in again["error"]
    finally:
        subprocess.run(["umount", place], check=True)


def test_a11_what_an_engine_stores_is_open_to_nobody_and_goes(held, empty_archive, tmp_path):
    """Root of the session's own engine opens its storage to everybody, with set-uid programs in it."""
    helper, account = held
    storage = ENGINES / account["name"]
    assert helper.ask(own_engine(account))["event"] == "ready"
    script = """
    cp /usr/bin/id /s/id; chown 7:7 /s/id; chmod 6755 /s/id
    mkdir -p /s/closed/inner; chown 9:9 /s/closed; chmod 0 /s/closed; chmod 0777 /s
    """
    with client(Path(f"/run/clsecure/{account['name']}/docker.sock")) as podman:
        podman.images.load(data=empty_archive[0].read_bytes())
        opened = {"type": "bind", "source": "/var/lib/containers", "target": "/s"}
        made = podman.containers.create(
            empty_archive[1], command=["/bin/sh", "-c", script], mounts=[*PROGRAMS, opened], name="x",
            network_mode="none",
        )  # fmt: skip
        made.start()
        made.wait()
    assert storage.stat().st_mode & 0o777 == 0o777, "it was not opened"
    assert (storage / "id").stat().st_mode & 0o6000
    for path in (storage, storage / "id"):
        done = subprocess.run(["stat", path], user=DAEMON, group=DAEMON, extra_groups=[], capture_output=True)
        assert done.returncode != 0, f"{path} is open to others"
    assert helper.ask({"verb": "kill"})["event"] == "exit"
    assert not storage.exists()


def test_e5_uids_of_containers_are_given_to_another_account_as_late_as_possible(person):
    """A file that such a uid owns somewhere on the machine, set-uid say, outlives the account."""
    given = []
    for _ in range(2):
        with RawHelper(person) as helper:
            account = helper.ask(LEASE)["account"]
            assert helper.ask(own_engine(account))["event"] == "ready"
            given.append(json.loads((REGISTRY / account["name"]).read_text())["range"])
            assert helper.ask({"verb": "kill"})["event"] == "exit"
            assert helper.ask({"verb": "remove"}) == {"done": True}
    assert given[0] != given[1]
