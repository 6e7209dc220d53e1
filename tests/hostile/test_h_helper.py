"""H10: the root helper in the hands of a hostile member of the group."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import re
import socket
import stat
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import sweep
from tests.support.person import Person, make_person
from tests.support.raw_helper import RawHelper, ask_one, talk

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("helper")]

_CLOSED = {"usr", "etc", "proc", "sys", "dev", "bin", "sbin", "lib", "lib64", "run", "tmp", "var", "boot"}
_WORKER = re.compile(r"claude-worker-[a-z0-9-]{1,18}\Z")


# ---------------------------------------------------------------- what must stay as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Bystander:
    """Somebody else's worker with work in it, and a person whose account only looks like a worker."""

    owner: Person
    entry: dict[str, Any]
    lookalike: str
    watched: tuple[Path, ...]

    def fingerprint(self) -> dict[str, object]:
        """Return all of it that an attack could change."""
        registry = sweep.REGISTRY / str(self.entry["name"])
        marks: dict[str, object] = {"registry": registry.read_bytes()}
        for name in (self.owner.name, str(self.entry["name"]), self.lookalike, "root"):
            marks[name] = tuple(pwd.getpwnam(name))
        for path in self.watched:
            info = path.lstat()
            marks[str(path)] = (info.st_mode, info.st_uid, info.st_gid, info.st_ino, info.st_ctime_ns)
            if stat.S_ISREG(info.st_mode):
                marks[f"{path} content"] = path.read_bytes()
        return marks


@pytest.fixture(scope="module")
def bystander(person: Person) -> Iterator[Bystander]:
    lookalike = f"claude-worker-bob-{os.getpid() % 10**6:06d}"
    with contextlib.ExitStack() as stack:
        name = f"{person.name}-b"
        stack.callback(sweep.remove_person, name)
        owner = make_person(name, person.groups)
        stack.callback(subprocess.run, ["userdel", "--remove", lookalike], capture_output=True, timeout=60)
        subprocess.run(
            ["useradd", "--create-home", "--shell", "/bin/sh", "--", lookalike], check=True, timeout=60
        )
        lease = {"verb": "lease", "project": "/bystander/work", "session": "default", "create": True}
        subprocess.run(["gpasswd", "--add", name, "clsecure"], check=True, capture_output=True, timeout=60)
        (answer,) = ask_one(owner, lease)
        home, other = Path(answer["account"]["home"]), Path(pwd.getpwnam(lookalike).pw_dir)
        for place in (home, other):
            (place / "work.txt").write_text("not to be lost\n")
        watched = (home, home / "work.txt", other, other / "work.txt", owner.home)
        yield Bystander(owner=owner, entry=answer["account"], lookalike=lookalike, watched=watched)


@pytest.fixture(scope="module")
def baseline(person: Person) -> dict[str, Counter[str]]:
    """Every mount point of a sandbox without mounts, by mode."""
    found = {}
    for mode in ("user", "namespace"):
        with RawHelper(person) as helper:
            lease(helper)
            ready = helper.ask({"verb": "run", "mode": mode})
            assert ready["event"] == "ready", ready
            found[mode] = mount_points(ready)
    return found


def lease(helper: RawHelper, project: str = "/fuzz/base") -> dict[str, Any]:
    answer = helper.ask({"verb": "lease", "project": project, "session": "default", "create": True})
    assert "account" in answer, answer
    return dict(answer["account"])


def mount_points(ready: dict[str, Any]) -> Counter[str]:
    points = Counter(line.split(" ")[4] for line in ready["facts"]["mountinfo"])
    # The kernel detaches these two everywhere when the host makes an account, that is: replaces the file.
    for name in ("passwd", "group"):
        points.pop(f"/etc/{name}", None)
    # The worker's home has another name in each sandbox.
    return Counter({re.sub(r"/claude-worker-[^/]+|/run/user/\d+", "/W", p): n for p, n in points.items()})


# ---------------------------------------------------------------- descriptors of every kind


def _deleted() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _socket() -> int:
    with socket.socket(socket.AF_UNIX) as made:
        return os.dup(made.fileno())


def _listener() -> int:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("")  # the kernel chooses an abstract name
        made.listen()
        return os.dup(made.fileno())


def _pipe() -> int:
    read, write = os.pipe()
    os.close(write)
    return read


def _pty() -> int:
    master, slave = os.openpty()
    os.close(slave)
    return master


def _memfd() -> int:
    fd = os.memfd_create("agent")
    os.write(fd, b"#!/bin/sh\n")
    return fd


# All of them can be had by a plain person: O_PATH needs no permission on the thing itself.
_KINDS: dict[str, Callable[[], int]] = {
    "directory": lambda: os.open("/usr/share", os.O_PATH),
    "closed directory": lambda: os.open("/root", os.O_PATH),
    "file": lambda: os.open("/etc/hostname", os.O_RDONLY),
    "secret": lambda: os.open("/etc/shadow", os.O_PATH),
    "write-only": lambda: os.open("/dev/null", os.O_WRONLY),
    "device": lambda: os.open("/dev/zero", os.O_RDONLY),
    "link": lambda: os.open("/proc/self/exe", os.O_PATH | os.O_NOFOLLOW),
    "proc": lambda: os.open("/proc/self", os.O_PATH),
    "proc file": lambda: os.open("/proc/self/status", os.O_RDONLY),
    "namespace": lambda: os.open("/proc/self/ns/mnt", os.O_RDONLY),
    "deleted": _deleted,
    "socket": _socket,
    "listener": _listener,
    "pipe": _pipe,
    "pty": _pty,
    "memfd": _memfd,
    "pidfd": lambda: os.pidfd_open(os.getpid()),
}
_MEMFD_SHA256 = hashlib.sha256(b"#!/bin/sh\n").hexdigest()


@contextlib.contextmanager
def opened(kinds: list[str]) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        fds = []
        for kind in kinds:
            fds.append(_KINDS[kind]())
            stack.callback(os.close, fds[-1])
        yield fds


# ---------------------------------------------------------------- what is said to it

_PATHS = (
    "/etc",
    "/etc/",
    "//etc",
    "///etc",
    "/proc",
    "/proc/self/root/etc",
    "/usr/bin",
    "/bin/sh",
    "/lib64",
    "/sys",
    "/dev/null",
    "/run",
    "/tmp",
    "/var/lib/clsecure",
    "/mnt/../etc",
    "/mnt/./x",
    "/",
    "//",
    "",
    ".",
    "etc",
    "..",
    "/opt/clsecure/bin",
    "//opt/clsecure/etc/passwd",
    "/opt",
    "/home",
    "/root",
    "/mnt",
    "/mnt/tool",
    "/mnt/tool/deep",
    "/srv/data",
    "/mnt/a\nb",
    "/mnt/\x1b[2J",
    "/mnt/\0x",
    "/mnt/\udce9",
    "/mnt/\ud800",
    "/mnt/" + "x" * 300,
    "/" + "y/" * 3000,
    "-rf",
    "$(id)",
)
_PROJECTS = (
    "/fuzz/a",
    "/fuzz/b",
    "/bystander/work",
    "/etc",
    "relative",
    "/fuzz/\ud800",
    "/fuzz/\udce9\n",
    "",
)
_SESSIONS = ("default", "other", "../x", "-f", "a/b", "Default", "x" * 33, "x" * 4096, "a\n", "")

_anything: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
_path = st.sampled_from(_PATHS)
_mounts = st.lists(
    st.fixed_dictionaries({"target": _path | _anything}, optional={"read_only": st.booleans() | _anything})
    | _anything,
    max_size=3,
)
_fields: dict[str, st.SearchStrategy[Any]] = {
    "project": st.sampled_from(_PROJECTS) | _anything,
    "session": st.sampled_from(_SESSIONS) | _anything,
    "create": st.booleans() | _anything,
    "mode": st.sampled_from(("user", "namespace", "container", "host", "")) | _anything,
    "mounts": _mounts | _anything,
    "listener": st.booleans() | _anything,
    "terminal": st.sampled_from((None, [24, 80], [0, 0], [-1, 80], [True, 80], [24, 10**9], [24]))
    | _anything,
    "agent": st.sampled_from((None, _MEMFD_SHA256, "0" * 64, "../" * 8, "../../root")) | _anything,
    "agent_name": st.sampled_from(("claude", "../../usr/bin/git", "-", "a/b", "")) | _anything,
    "sha256": st.sampled_from((_MEMFD_SHA256, "0" * 64, "../../../../etc", "A" * 64)) | _anything,
    "argv": st.sampled_from((["/bin/true"], [], ["x"] * 100)) | _anything,
    "env": st.sampled_from(({}, {"LD_PRELOAD": "/tmp/x"}, {"a": 1})) | _anything,
    "cwd": _path | _anything,
    "rules": st.booleans() | _anything,
}
# What a helper that took orders would look at.
_ORDERS: dict[str, st.SearchStrategy[Any]] = {
    "owner": st.just(0),
    "uid": st.just(0),
    "caller": st.just(0),
    "home": st.just("/root"),
    "name": st.sampled_from(("root", "claude-worker-bob", "../registry")),
    "path": _path,
    "command": st.just("id"),
    "pid": st.just(1),
    "entry": st.just({"uid": 0, "name": "root", "home": "/"}),
}
_verbs = st.sampled_from(
    ("lease", "run", "agent", "inspect", "reset", "remove", "accounts", "hello", "start", "kill")
)
_no_verbs = st.sampled_from(("", "serve", "__init__", "exec", None, [], {}, 7, "\ud800")) | _anything


def _message(verb: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"verb": verb}, optional={**_fields, **_ORDERS})


_lease = st.fixed_dictionaries(
    {
        "verb": st.just("lease"),
        "project": st.sampled_from(("/fuzz/a", "/fuzz/b")),
        "session": st.just("default"),
        "create": st.just(True),
    }
)


@st.composite
def _run(draw: st.DrawFn) -> tuple[dict[str, Any], list[str]]:
    """A sandbox that could come up, with as many descriptors as mounts."""
    mountable = st.sampled_from(("directory", "directory", "closed directory", "file", "secret", "proc"))
    kinds = draw(st.lists(mountable | st.sampled_from(sorted(_KINDS)), max_size=2))
    message = {
        "verb": "run",
        "mode": draw(st.sampled_from(("user", "namespace"))),
        "mounts": [{"target": draw(_path), "read_only": draw(st.booleans())} for _ in kinds],
        "terminal": draw(st.sampled_from((None, [24, 80]))),
        "listener": draw(st.booleans()),
    }
    return message, kinds


_raw = st.sampled_from(
    (
        b"[",
        b"{}",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"verb": "lease"',
        b'{"verb": NaN}',
        b"[" * 100_000,
        b"9" * 10_000,
        b'{"verb":"hello"}' + b" " * 300_000,
        b'{"verb":"hello","verb":"remove"}',
    )
)
_few = st.lists(st.sampled_from(sorted(_KINDS)), max_size=3)
_kinds = st.one_of(st.just([]), st.just([]), st.just(["memfd"]), _few, st.just(["file"] * 60))
_said = st.one_of(
    _run(), _run(), st.tuples(st.one_of(_message(_verbs), _lease, _message(_no_verbs), _raw), _kinds)
)
_conversation = st.lists(_said, min_size=1, max_size=6)


def check_registry(person: Person) -> None:
    """Whatever was made belongs to who asked, under names and uids of the helper's own."""
    for entry in person.worker_accounts():
        assert _WORKER.match(str(entry["name"]))
        assert int(str(entry["uid"])) >= 1_900_000_000
        assert entry["home"] == f"/home/{entry['name']}"
        account = pwd.getpwnam(str(entry["name"]))
        assert (account.pw_uid, account.pw_gid, account.pw_shell) == (
            entry["uid"],
            entry["uid"],
            "/usr/sbin/nologin",
        )


@settings(
    max_examples=int(os.environ.get("CLSECURE_TEST_EXAMPLES", "60")),
    derandomize="CLSECURE_TEST_EXAMPLES" not in os.environ,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(prefix=st.sampled_from((True, True, False)), conversation=_conversation)
def test_h10_no_conversation_with_the_helper_reaches_beyond_the_callers_own(
    person, bystander, baseline, prefix, conversation
):
    """A member of the group says anything at all to the helper, with descriptors of every kind."""
    before = bystander.fingerprint()
    messages: list[Any] = []
    with contextlib.ExitStack() as stack:
        if prefix:
            messages.append(
                ({"verb": "lease", "project": "/fuzz/a", "session": "default", "create": True}, [])
            )
        for said, kinds in conversation:
            messages.append((said, stack.enter_context(opened(kinds))))
        done = talk(person, messages)
    assert "Traceback" not in done.errors, done.errors
    assert done.status == 0, done
    for ready in done.events("ready"):
        given_points = mount_points(ready)
        more = max((given_points - base for base in baseline.values()), key=lambda c: -sum(c.values()))
        for point in more:
            assert point.split("/")[1] not in _CLOSED, (point, messages)
            assert not point.startswith("/opt/clsecure"), (point, messages)
    assert bystander.fingerprint() == before
    check_registry(person)
    assert ask_one(person, {"verb": "hello"})[0]["protocol"] == 1
    assert not [p for e in person.worker_accounts() for p in sweep.processes_of(int(str(e["uid"])))]


@pytest.mark.parametrize("mode", ["user", "namespace"])
def test_h10_mounts_go_where_they_may_and_nowhere_else(person, baseline, mode):
    """Mounts are aimed at what firejail (root) reads, at other mounts and at the worker's home."""
    worker = f"/home/{next(e['name'] for e in person.worker_accounts() if e['project'] == '/fuzz/base')}"
    refused = [*_PATHS[: _PATHS.index("/root")], worker, f"{worker}/.config", "/opt/clsecure", "/bin", "/usr"]
    good = ("/mnt/tool", "/opt/tool", "/root", "/home/somebody", "/nowhere/deep")
    secret = person.home / "closed"
    secret.mkdir(exist_ok=True)
    secret.chmod(0o700)
    with RawHelper(person) as helper:
        lease(helper)
        for target in refused:
            with opened(["directory"]) as fds:
                answer = helper.ask({"verb": "run", "mode": mode, "mounts": [{"target": target}]}, fds)
            assert set(answer) == {"error"}, (target, answer)
        with opened(["directory", "directory"]) as fds:
            nested = [{"target": "/mnt/a"}, {"target": "/mnt/a/b"}]
            assert "overlaps" in helper.ask({"verb": "run", "mode": mode, "mounts": nested}, fds)["error"]
        for kind in sorted(set(_KINDS) - {"directory", "closed directory", "file", "secret", "proc"}):
            with opened([kind]) as fds:
                answer = helper.ask({"verb": "run", "mode": mode, "mounts": [{"target": "/mnt/x"}]}, fds)
            assert "event" not in answer or kind in {"deleted", "memfd", "proc file"}, (kind, answer)
            if "event" in answer:
                assert helper.ask({"verb": "kill"})["event"] == "exit"
        with opened(["directory"] * len(good)) as fds:
            ready = helper.ask({"verb": "run", "mode": mode, "mounts": [{"target": t} for t in good]}, fds)
        assert ready.get("event") == "ready", ready
        assert mount_points(ready) - baseline[mode] == Counter(good)
        assert helper.ask({"verb": "kill"})["event"] == "exit"


def test_h10_sandboxes_of_one_connection_leave_no_descriptor_and_no_child(person):
    """Built, ended, refused half-way: what the helper holds afterwards is what it held before."""
    attempts = [
        ("ready", {"mode": "user"}, []),
        ("ready", {"mode": "namespace"}, []),
        ("ready", {"mode": "user", "docker": "host"}, []),
        ("error", {"mode": "user", "mounts": [{"target": "/etc/x"}]}, ["directory"]),
        ("error", {"mode": "user", "terminal": [0, 0]}, []),
        ("error", {"mode": "user", "docker": "own", "workspace": "/etc"}, []),
        ("error", {"mode": "container", "engine": "podman"}, ["socket"]),
        ("error", {"mode": "container", "engine": "podman", "limits": {"swap": 1}}, ["listener"]),
    ]
    with RawHelper(person) as helper:
        lease(helper)
        own = Path("/proc", str(helper.pid()))
        before = len(list((own / "fd").iterdir()))
        for outcome, attempt, kinds in 2 * attempts:
            with opened(kinds) as fds:
                answer = helper.ask({"verb": "run", **attempt}, fds)
            assert outcome in (*answer, answer.get("event")), (attempt, answer)
            if outcome == "ready":
                assert helper.ask({"verb": "kill"})["event"] == "exit"
            # What came along is given back behind the answer, before the next message is read.
            assert "protocol" in helper.ask({"verb": "hello"})
            assert len(list((own / "fd").iterdir())) == before, (attempt, answer)
            assert (own / "task" / own.name / "children").read_text() == "", (attempt, answer)


def test_h10_an_agents_file_is_kept_only_under_its_own_hash_and_for_its_owner(person):
    """The store of agents is offered devices, secrets, pipes, and files under another's hash."""
    with RawHelper(person) as helper:
        for kind in sorted(_KINDS):
            digest = _MEMFD_SHA256 if kind == "memfd" else hashlib.sha256(b"").hexdigest()
            with opened([kind]) as fds:
                answer = helper.ask({"verb": "agent", "sha256": digest}, fds)
            assert ("path" in answer) == (kind == "memfd"), (kind, answer)
        with opened(["memfd"]) as fds:
            wrong = helper.ask({"verb": "agent", "sha256": "0" * 64}, fds)
    assert "changed" in wrong["error"]
    store = Path(f"/var/lib/clsecure/agents/{person.uid}")
    kept = store / _MEMFD_SHA256 / "agent"
    assert (kept.stat().st_uid, stat.S_IMODE(kept.stat().st_mode)) == (0, 0o555)
    assert kept.read_bytes() == b"#!/bin/sh\n"


def test_h10_an_agents_file_stays_while_a_session_uses_it_and_no_store_grows_for_ever(bystander):
    """A member installs version after version while sessions run, and keeps as many in use as it can."""
    owner = bystander.owner
    store = Path(f"/var/lib/clsecure/agents/{owner.uid}")

    def offer(helper: RawHelper, content: bytes) -> dict[str, Any]:
        fd = os.memfd_create("agent")
        try:
            os.write(fd, content)
            return helper.ask({"verb": "agent", "sha256": hashlib.sha256(content).hexdigest()}, [fd])
        finally:
            os.close(fd)

    def versions() -> list[Path]:
        return [each for each in store.iterdir() if len(each.name) == 64]

    with RawHelper(owner) as helper:
        with RawHelper(owner) as running:
            used = Path(offer(running, b"used")["path"])
            for number in range(5):
                newest = Path(offer(helper, b"%d" % number)["path"])
            assert (used / "agent").read_bytes() == b"used"
            assert len(versions()) == 4
        offer(helper, b"after it")
        assert not used.exists()
        assert (newest / "agent").exists()
        assert len(versions()) == 3
    with contextlib.ExitStack() as sessions:
        answers = [offer(sessions.enter_context(RawHelper(owner)), b"session %d" % n) for n in range(17)]
    assert ["path" in answer for answer in answers] == [True] * 16 + [False]
    assert "in use by your sessions" in answers[-1]["error"]
    with RawHelper(owner) as helper:
        assert "path" in offer(helper, b"once more")
    # What is kept is 3 versions, and for each the file that its users lock.
    assert len(list(store.iterdir())) == 3 * 2 + 1


def test_h10_only_a_plain_caller_over_a_socket_and_without_arguments_is_served(person):
    """The helper is started with arguments, without a socket, with an environment, and for root."""
    helper = "/usr/local/lib/clsecure/helper"
    assert person.run(["sudo", "-n", "--", helper, "x"]).returncode != 0
    assert person.run(["sudo", "-n", "--", helper]).errors.startswith("clsecure helper: takes no arguments")
    assert person.run(["sudo", "-n", "SUDO_UID=0", "--", helper]).returncode != 0
    assert person.run(["sudo", "-n", "-u", "nobody", "--", helper]).returncode != 0
    for uid in ("0", "", "x", "-1", str(2**31)):
        done = subprocess.run([helper], env={"SUDO_UID": uid}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1, (uid, done)
        assert "run by sudo for a plain user only" in done.stderr


def test_h10_one_account_has_one_holder_and_others_are_not_kept_waiting(person, bystander):
    """One member holds an account with a message half done; the same account and others' are asked for."""
    with RawHelper(person) as first, RawHelper(person) as second, RawHelper(bystander.owner) as other:
        lease(first, "/fuzz/held")
        again = {"verb": "lease", "project": "/fuzz/held", "session": "default", "create": True}
        assert second.ask(again)["busy"] is True
        assert second.ask({"verb": "remove"})["error"].startswith("no account is held")
        theirs = {"verb": "lease", "project": "/bystander/work", "session": "default"}
        assert other.ask(theirs)["account"]["name"] == bystander.entry["name"]
    # Somebody else's project is a name like any other: it gives an account of the caller's own.
    with RawHelper(person) as helper:
        mine = lease(helper, "/bystander/work")
        assert mine["owner"] == person.uid
        assert mine["name"] != bystander.entry["name"]
        assert helper.ask({"verb": "remove"}) == {"done": True}
