"""What the helper sees of processes that run, for real: where they are, what they are, and whom it tells."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clsecure.privileged.root import looking
from clsecure.privileged.root.looking import Looking, seen_of
from clsecure.privileged.root.processes import uids_of

ENTRY = {"uid": os.getuid()}
TWO = 'sleep 600 & echo "$!"; exec sleep 600'
# The first thread ends, the other one goes on: to many a tool that is a dead process.
HEADLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
print("up", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look ends after a fifth of a second, which is soon over where others have the machine."""
    monkeypatch.setattr(looking, "BUDGET_SECONDS", 60.0)


def spaces(pid: int | str) -> dict[str, str]:
    return {name: str(Path(f"/proc/{pid}/ns/{name}").readlink()) for name in looking.SPACES}


def mounts(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/mountinfo").read_text().splitlines()


@contextmanager
def running(*argv: str, stay: bool = False) -> Iterator[int]:
    """Start a program that says a line; yield its pid, or that of what it started."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            if not process.stdout.readline():
                pytest.skip("no PID namespace can be made here")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield process.pid if stay else int(children[0])
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def in_namespaces(script: str) -> list[str]:
    whose = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *whose, "--pid", "--fork", "--kill-child", "--mount", "--", "sh", "-c", script]


def looked_at(pid: int) -> Looking:
    main = {"namespaces": spaces(pid), "host_namespaces": spaces("self"), "mountinfo": mounts(pid)}
    return Looking(ENTRY, main, engine=None, sidecar=None, plain=False)


def kinds(said: dict[str, Any], place: str) -> list[dict[str, Any]]:
    return [kind for kind in said["kinds"] if kind["place"] == place]


def test_what_is_in_the_sandbox_is_counted_by_what_it_is() -> None:
    with running(*in_namespaces(TWO)) as pid:
        # It has said its line a moment before.
        while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
            time.sleep(0.01)
        said = looked_at(pid).look()
    first, other = sorted(kinds(said, "inside"), key=lambda kind: not kind["first"])
    assert (first["pids"], first["count"], other["count"]) == ([pid], 1, 1)
    assert first["program"].endswith("/sleep")
    assert first["status"]["Uid"].split() == [str(os.getuid())] * 4
    assert first["status"].keys() == set(looking.FIELDS)
    assert first["namespaces"] == dict.fromkeys(looking.SPACES, "own")
    assert {"net", "ipc", "uts"} <= set(said["shared"])
    assert "pid" not in said["shared"]


def test_what_is_mounted_later_is_told_and_what_was_renamed_is_not(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    (tmp_path / "a").mkdir()
    inner.mkdir()
    script = (
        f"mount --bind {tmp_path}/a {inner}; echo up; sleep 600 & read line; "
        f"umount {inner}; mount -t tmpfs tmpfs {tmp_path}; echo up; exec sleep 600"
    )
    argv = in_namespaces(script)
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if not process.stdout.readline():
                pytest.skip("nothing can be mounted here")
            (pid,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
            looks = looked_at(pid)
            (tmp_path / "a").rename(tmp_path / "b")
            assert looks.look()["mounts"] == {"new": [], "gone": []}
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
            said = looks.look()["mounts"]
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert [(each["target"], each["kind"]) for each in said["new"]] == [(str(tmp_path), "tmpfs")]
    assert said["new"][0]["on"] == said["gone"][0]["on"], "the file system of both is that of the machine"
    assert [each["target"] for each in said["gone"]] == [str(inner)]


def test_a_namespace_below_the_sandboxs_is_inside_too() -> None:
    script = f"unshare --pid --fork --kill-child sh -c '{TWO}'"
    with running(*in_namespaces(f"{script}; :")) as pid:
        found = kinds(looked_at(pid).look(), "inside")
    deeper = [kind for kind in found if kind["namespaces"]["pid"] == "other"]
    assert sum(kind["count"] for kind in deeper) == 2


def test_what_an_engine_holds_is_told_apart() -> None:
    with running(*in_namespaces(TWO)) as pid:
        stage = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        main = {"namespaces": spaces("self"), "host_namespaces": spaces("self"), "mountinfo": []}
        whole = Looking(ENTRY, main, engine=None, sidecar=stage, plain=False)
        # Whatever is around, the sandbox's own comes first: another one it is, then.
        whole.own = {**whole.own, "pid": "pid:[1]"}
        assert sum(kind["count"] for kind in kinds(whole.look(), "sidecar")) == 2
        whole.engine, whole.sidecar = whole.sidecar, None
        assert sum(kind["count"] for kind in kinds(whole.look(), "engine")) == 2


def test_a_child_of_the_helper_is_held_and_a_stray_counts_when_it_is_seen_twice() -> None:
    grandchild = (
        "import subprocess; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    )
    with (
        running(*in_namespaces(TWO)) as pid,
        running(sys.executable, "-c", grandchild, stay=True) as child,
    ):
        (stray,) = map(int, Path(f"/proc/{child}/task/{child}/children").read_text().split())
        looks = looked_at(pid)
        # Whatever else of this account runs on the machine is no business of this test.
        looks._turn = lambda: [child, stray]  # type: ignore[method-assign]
        once, twice = looks.look(), looks.look()
        assert [kind["pids"] for kind in kinds(once, "held")] == [[child]]
        assert [kind["pids"] for kind in kinds(once, "moving")] == [[stray]]
        assert kinds(once, "outside") == []
        assert [kind["pids"] for kind in kinds(twice, "outside")] == [[stray]]


def test_a_process_without_its_first_thread_is_seen_and_one_that_ended_is_not() -> None:
    with running(sys.executable, "-c", HEADLESS, stay=True) as pid:
        status = Path(f"/proc/{pid}/status")
        while "\nState:\tZ" not in status.read_text():
            time.sleep(0.01)
        seen = seen_of(pid, ENTRY, looking.SPACES, {})
        assert seen is not None
        assert seen["spaces"] == spaces("self")
        assert uids_of(pid) == [str(os.getuid()).encode()] * 4, "it is to be killed, too"
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert seen_of(child, ENTRY, looking.SPACES, {}) is None
    assert uids_of(child) == []
    os.waitpid(child, 0)
    assert seen_of(child, ENTRY, looking.SPACES, {}) is None


def test_another_accounts_process_is_not_looked_at() -> None:
    assert seen_of(os.getpid(), {"uid": os.getuid() + 1}, looking.SPACES, {}) is None
    further = {"uid": os.getuid() + 1, "range": max(0, os.getuid() - 10)}
    assert seen_of(os.getpid(), further, looking.SPACES, {}) is not None


def test_a_look_has_an_end_and_the_next_one_goes_on_there(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = looked_at(os.getpid())
    looks._turn = lambda: [11, 12]  # type: ignore[method-assign]
    monkeypatch.setattr(looking, "BUDGET_SECONDS", -1.0)
    assert looks.look()["cut"]
    assert looks.begin == 11
    assert looked_at(os.getpid())._turn()[0] == 1
    looks = looked_at(os.getpid())
    looks.begin = os.getpid()
    turn = looks._turn()
    assert turn[0] == os.getpid()
    assert 1 in turn


def test_who_does_not_read_is_told_no_more() -> None:
    looks = looked_at(os.getpid())
    looks._turn = lambda: [os.getpid()]  # type: ignore[method-assign]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.setblocking(False)
        looks.tell(ours)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        for _ in range(3):
            looks.next = 0
            looks.tell(ours)
        assert json.loads(theirs.recv(1 << 20))["event"] == "looked"
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        looks.next = 0
        looks.tell(ours)
        assert json.loads(theirs.recv(1 << 20))["event"] == "looked"


def test_an_answer_fits_a_message_whatever_runs() -> None:
    looks = looked_at(os.getpid())
    looks._turn = lambda: list(range(1000))  # type: ignore[method-assign]

    def seen(pid: int, *_: object) -> dict[str, Any]:
        long = "\udcff" * looking.FIELD_LIMIT
        return {
            "status": {name: f"{pid}".rjust(looking.FIELD_LIMIT) for name in looking.FIELDS},
            "spaces": spaces("self"), "first": False, "parent": 1, "begun": "1", "program": long,
            # One of very many is in the sandbox, the last one.
            "around": [spaces("self")["pid"] if pid == 999 else "pid:[2]"],
        }  # fmt: skip

    looks.sidecar = "pid:[2]"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(looking, "seen_of", seen)
        said = looks.look()
    assert said["cut"]
    assert len(said["kinds"]) == looking.KINDS
    assert [kind["pids"] for kind in kinds(said, "inside")] == [[999]]
    assert len(json.dumps(said)) < 256 * 1024
