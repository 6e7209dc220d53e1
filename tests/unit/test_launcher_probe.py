"""The launcher at the barrier, for real: what it starts is in its sandbox, and gone before the agent."""

from __future__ import annotations

import array
import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clsecure.privileged import launcher

ORDERS = {
    "listener": None, "plain": False, "terminal": None, "writable": [], "processes": None, "status": False,
}  # fmt: skip
PROBE = """
import json, os, signal, sys, time
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
said = {
    "held": sorted(os.listdir("/proc/self/fd"), key=int)[:-1], "argv": sys.argv, "path": os.environ["PATH"],
    "own": os.getsid(0) == os.getpgid(0) == os.getpid(), "secret": os.environ.get("SECRET"),
    **{key: status[key].strip() for key in ("NoNewPrivs", "Seccomp")},
}
print(json.dumps(said), flush=True)
order = sys.stdin.readline().strip()
for number in range(3 if order == "stay" else 0):
    # Out of the process group and the session, and with a parent that is gone.
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("sleeps", flush=True)
            time.sleep(600)
        os._exit(0)
if order == "stay":
    time.sleep(600)
"""
LOOK = """
import ctypes, os
reaper = ctypes.c_int(-1)
ctypes.CDLL(None).prctl(37, ctypes.byref(reaper), 0, 0, 0)
print(sorted(int(name) for name in os.listdir("/proc") if name.isdigit()), os.getpid(), reaper.value)
"""


class Waiting:
    """A launcher that waits at the barrier, the first process of a PID namespace of its own."""

    def __init__(self, control: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.control, self.process = control, process

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.control.sendmsg([json.dumps(message).encode()], rights)

    def said(self) -> dict[str, Any]:
        return dict(json.loads(self.control.recv(65536)))

    def probe(self, order: str) -> Iterator[str]:
        """Start a probe, tell it something, and yield its lines."""
        (given, give), (got, get) = os.pipe(), os.pipe()
        self.send({"verb": "probe"}, (given, get, 2))
        for fd in (given, get):
            os.close(fd)
        os.write(give, f"{order}\n".encode())
        with os.fdopen(give, "w"), os.fdopen(got) as lines:
            yield from lines

    def start(self) -> str:
        """Have it become a command, and return what that said."""
        null, (got, get) = os.open("/dev/null", os.O_RDWR), os.pipe()
        argv = ["/usr/bin/python3", "-I", "-S", "-c", LOOK]
        self.send({"verb": "start", "argv": argv, "env": {}, "cwd": "/"}, (null, get, 2))
        for fd in (null, get):
            os.close(fd)
        with os.fdopen(got) as lines:
            return lines.read()


@contextmanager
def waiting(place: Path) -> Iterator[Waiting]:
    """Start a copy of the launcher with the test's own probe beside it."""
    shutil.copy(launcher.__file__, place / "launcher.py")
    (place / "inside.py").write_text(PROBE)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    # The launcher kills what is in its PID namespace: never one without.
    whose = [] if os.geteuid() == 0 else ["--map-root-user"]
    spaces = ["unshare", *whose, "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
    argv = [*spaces, "/usr/bin/python3", "-I", "-S", str(place / "launcher.py")]
    with ours:
        with theirs:
            process = subprocess.Popen(
                argv, stdin=theirs, stdout=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin", "SECRET": "mine"}
            )
        try:
            made = Waiting(ours, process)
            made.send(ORDERS)
            try:
                assert made.said() == {"event": "made"}
            except (ConnectionResetError, ValueError):
                pytest.skip("no PID namespace can be made here")
            assert made.said()["event"] == "ready"
            yield made
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait(timeout=20)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory for the launcher."""
    return tmp_path


def test_a_probe_has_the_launchers_restrictions_and_the_callers_descriptors(place: Path) -> None:
    with waiting(place) as made:
        (line,) = made.probe("end")
        said = json.loads(line)
        assert said.pop("argv") == [str(place / "inside.py")]
        assert said == {
            "held": ["0", "1", "2"], "path": "/usr/bin:/bin", "own": True, "secret": None,
            "NoNewPrivs": "1", "Seccomp": "2",
        }  # fmt: skip
        assert made.start() == "[1] 1 0\n"
        assert made.process.wait(timeout=20) == 0


def test_nothing_that_a_probe_started_is_there_when_the_command_runs(place: Path) -> None:
    with waiting(place) as made:
        lines = made.probe("stay")
        assert [next(lines) for _ in range(4)][1:] == ["sleeps\n"] * 3
        assert made.start() == "[1] 1 0\n"
        assert list(lines) == []


def test_a_further_probe_ends_the_one_before(place: Path) -> None:
    with waiting(place) as made:
        first = made.probe("stay")
        assert [next(first) for _ in range(4)][1:] == ["sleeps\n"] * 3
        assert len(list(made.probe("end"))) == 1
        assert list(first) == []
        assert made.start() == "[1] 1 0\n"


def test_with_the_helper_gone_the_probe_is_gone(place: Path) -> None:
    with waiting(place) as made:
        lines = made.probe("stay")
        assert [next(lines) for _ in range(4)][1:] == ["sleeps\n"] * 3
        made.control.close()
        assert list(lines) == []
        assert made.process.wait(timeout=20) == 126


def test_a_probe_without_three_descriptors_is_refused(place: Path) -> None:
    with waiting(place) as made:
        made.send({"verb": "probe"}, (2,))
        assert made.said() == {"event": "failed", "error": "[Errno 22] three descriptors were expected"}
