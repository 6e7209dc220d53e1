"""The helper's children: what they hold, when they go on, and what hostile words do to the helper."""

from __future__ import annotations

import array
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from clsecure.privileged.root.channel import Channel, understood
from clsecure.privileged.root.engine import given_listener
from clsecure.privileged.root.limits import by_rlimit
from clsecure.privileged.root.messages import Refused
from clsecure.privileged.root.processes import Stage, keep_only, run_and_exit


def held() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def in_child(action: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        run_and_exit(action)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_stage_begins_only_when_it_is_told_to_and_leaves_no_descriptor(tmp_path: Path) -> None:
    mark, before = tmp_path / "mark", held()
    null = os.open("/dev/null", os.O_WRONLY)
    stage = Stage(lambda: mark.write_text(str(Path("/proc/self/fd/0").readlink())), null)
    assert not mark.exists()
    stage.go()
    assert stage.end() == 0
    assert mark.read_text() == "/dev/null"
    os.close(null)
    assert held() == before


def test_a_stage_that_is_never_told_never_begins(tmp_path: Path) -> None:
    """What it waits for is the end of the helper, or its word."""
    mark = tmp_path / "mark"
    null = os.open("/dev/null", os.O_WRONLY)
    stage = Stage(lambda: mark.write_text("begun"), null)
    os.close(stage._gate)
    stage._gate = os.open("/dev/null", os.O_RDONLY)
    assert stage.end() == 126
    os.close(null)
    assert not mark.exists()


def test_nothing_but_what_is_named_is_kept() -> None:
    """Also where the numbers cross, and with far away ones."""
    files = [os.open(f"/proc/self/{name}", os.O_RDONLY) for name in ("status", "maps", "stat", "limits")]
    far = os.dup2(files[3], 900)

    def look() -> None:
        keep_only(files[1], files[0], far)
        names = {n: Path(f"/proc/self/fd/{n}").readlink().name for n in ("3", "4", "5")}
        assert names == {"3": "maps", "4": "status", "5": "limits"}
        # Listing takes a descriptor of its own.
        assert held() <= {"0", "1", "2", "3", "4", "5", "6"}

    try:
        assert in_child(look) == 0
    finally:
        for fd in (*files, far):
            os.close(fd)


@pytest.mark.parametrize("data", [b"[" * 4096, b"{", b"[]", b"7", b'"x"', b"\xff", b'{"a":' * 800, b""])
def test_words_that_are_no_object_are_nothing(data: bytes) -> None:
    assert understood(data) is None


def test_a_report_that_can_not_be_understood_is_an_answer_to_the_caller() -> None:
    """It must not end the helper in any other way: the caller is told."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    log, words = os.pipe2(os.O_NONBLOCK)
    with ours, theirs:
        channel = Channel(ours, log, -1)
        theirs.send(b"[" * 4096)
        with pytest.raises(Refused, match="malformed"):
            channel.word(array.array("i"))
    os.close(log)
    os.close(words)


def test_only_a_listening_stream_socket_is_taken_for_an_engines(tmp_path: Path) -> None:
    before = held()
    for make in (
        lambda: os.open("/dev/null", os.O_RDONLY),
        lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach(),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach(),
        lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(),
    ):
        fds = [make()]
        with pytest.raises(Refused):
            given_listener(fds)
        for fd in fds:
            os.close(fd)
    with pytest.raises(Refused):
        given_listener([])
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    fds = [listener.detach(), 99]
    given_listener(fds).close()
    assert fds == [99]
    assert held() == before


def test_a_resource_limit_counts_only_when_the_kernel_says_so() -> None:
    lines = Path("/proc/self/limits").read_text().splitlines()
    hard = next(line.split()[4] for line in lines if line.startswith("Max open files"))
    assert by_rlimit(os.getpid(), {"open_files": int(hard)}) == {"open_files"}
    assert by_rlimit(os.getpid(), {"open_files": int(hard) - 1}) == set()
    assert by_rlimit(os.getpid(), {}) == set()


def test_words_without_end_are_read_in_bounds() -> None:
    """Whoever comes to the other end of the log writes as fast as it is read."""
    log, words = os.pipe2(os.O_NONBLOCK)
    pid = os.fork()
    if pid == 0:
        os.set_blocking(words, True)
        run_and_exit(lambda: [os.write(words, b"x" * 65536) for _ in range(1 << 20)])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        channel = Channel(ours, log, -1)
        rounds = 0
        while not channel.log_closed:
            assert len(channel.drain()) <= 16 * 1024
            rounds += 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(log)
    os.close(words)
    assert rounds > 1
