"""D: the import itself: who reads the work and when, all of it byte for byte, and an end at any point."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import sweep
from tests.support.homecoming import (
    branch_of,
    files_in,
    files_of,
    fsck,
    generic_rule,
    is_exporter,
    session_key,
    workspace,
)
from tests.support.hostile import Target
from tests.support.person import Outcome, Person
from tests.support.repostate import assert_only_new_branch, snapshot

pytestmark = pytest.mark.root

_NAMESPACES = ("mnt", "net", "pid", "ipc", "uts")
_NS_GET_PARENT = 0xB702
"""Source: ioctl_ns(2)."""


@dataclass(slots=True)
class Sampler:
    """Looks at the worker's processes all the time, from the host."""

    uid: int
    exporters: dict[int, dict[str, str]] = field(default_factory=dict)
    interfaces: set[str] = field(default_factory=set)
    strangers: set[str] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Sampler]:
        """Watch for as long as the context lasts."""
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            pids = sweep.processes_of(self.uid)
            for pid in filter(is_exporter, pids):
                with contextlib.suppress(OSError):
                    self._exporter(pid)
            if not self.exporters:
                continue
            own = {seen[name] for seen in self.exporters.values() for name in ("pid", "around")}
            for pid in pids:
                with contextlib.suppress(OSError):
                    # firejail's own parent waits outside of the namespaces that it made.
                    name = Path(f"/proc/{pid}/comm").read_text().strip()
                    if name != "firejail" and os.readlink(f"/proc/{pid}/ns/pid") not in own:  # noqa: PTH115
                        self.strangers.add(Path(f"/proc/{pid}/cmdline").read_text())

    def _exporter(self, pid: int) -> None:
        links = {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in _NAMESPACES}  # noqa: PTH115
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
        status = Path(f"/proc/{pid}/status").read_text()
        self.interfaces.update(line.partition(":")[0].strip() for line in lines)
        for name in ("NoNewPrivs", "CapEff", "CapBnd", "Seccomp"):
            found = re.search(rf"^{name}:\s*(\S+)$", status, re.MULTILINE)
            links[name] = found[1] if found else ""
        links["around"] = _around(pid)
        self.exporters[pid] = links


def _around(pid: int) -> str:
    """Return the PID namespace around a process's own, where it is not this one: that of its engine."""
    fd = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY)
    try:
        outer = fcntl.ioctl(fd, _NS_GET_PARENT)
    finally:
        os.close(fd)
    try:
        name = f"pid:[{os.fstat(outer).st_ino}]"
    finally:
        os.close(outer)
    return "" if name == os.readlink("/proc/self/ns/pid") else name  # noqa: PTH115


# What the agent does to a repository with everything in it; then processes stay that go on changing files.
WORK = r"""
set -e
git rm -q gone.txt && git mv moved.txt elsewhere.txt
chmod 755 plain && chmod 644 tool
rm becomes-link && ln -s tool becomes-link
rm becomes-file && echo file >becomes-file
rm -r becomes-directory && mkdir becomes-directory && echo in >becomes-directory/in
: >empty && printf 'a\r\nb\r\n' >windows.txt && printf 'x\r\n' >>crlf.txt
mkdir dist && echo built >dist/out.js
echo committed >committed && git add -A && git commit -qm 'the work'
head -c 105000000 /dev/zero >large
printf '\0\1\2' >large.bin
(cd sub && echo agent >>inner.txt && git commit -qam 'in the submodule' && echo loose >loose)
echo not committed >>committed
for how in setsid "nohup setsid"; do
    $how sh -c 'trap "" TERM HUP INT; while :; do echo racing >>racing; done' >/dev/null 2>&1 </dev/null &
done
until test -s racing; do :; done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """One session with all kinds of work, from the start to the branch."""

    target: Target
    outcome: Outcome
    agents: dict[bytes, tuple[int, bytes]]
    sampler: Sampler
    inner: Path
    inner_changes: tuple[dict[str, object], dict[str, object]]
    changes: tuple[dict[str, object], dict[str, object]]

    @property
    def result(self) -> Any:
        """What the import says of itself."""
        return self.outcome.json()["import"]


@pytest.fixture(scope="module")
def journey(person, mode) -> Journey:
    """A repository with sixty commits, a submodule and LFS; the session ends while its processes write on."""
    source = person.repository(f"journey-inner-{mode}")
    top = person.repository(f"journey-{mode}")
    script = f"""
    echo inner >inner.txt && (cd {source} && cp {top}/inner.txt . && git add . && git commit -qm inner)
    rm inner.txt
    for n in $(seq 60); do git commit -q --allow-empty -m "$n"; done
    for name in gone.txt moved.txt plain becomes-link becomes-file.target; do echo "$name" >$name; done
    ln -s plain becomes-file && ln -s src becomes-directory
    printf '#!/bin/sh\\n' >tool && chmod 755 tool && printf 'one\\r\\n' >crlf.txt
    echo '*.bin filter=lfs diff=lfs merge=lfs -text' >.gitattributes
    git -c protocol.file.allow=always submodule --quiet add {source} sub
    git add -A && git commit -qm 'everything'
    """
    person.run(["/bin/sh", "-euc", script], cwd=top).check()
    target = Target(person=person, mode=mode, repository=top, session="journey")
    target.attack(":", finish="keep").outcome.check()
    inner = top / "sub"
    before, inner_before = snapshot(top), snapshot(inner)
    with Sampler(int(target.account()["uid"])).watching() as sampler:
        attack = target.attack(WORK, "--resume", finish="import", timeout=240)
    attack.outcome.check()
    return Journey(
        target=target, outcome=attack.outcome, agents=files_of(workspace(target)), sampler=sampler,
        inner=inner,
        inner_changes=(inner_before, snapshot(inner)), changes=(before, snapshot(top)),
    )  # fmt: skip


def test_d5_the_exporter_has_a_sandbox_of_its_own(journey):
    """What reads the agent's repository runs with it in the host's namespaces, in the agent's, or online."""
    assert journey.sampler.exporters, "no exporter was seen"
    host = {name: os.readlink(f"/proc/self/ns/{name}") for name in _NAMESPACES}  # noqa: PTH115
    for seen in journey.sampler.exporters.values():
        assert [name for name in _NAMESPACES if name != "uts" and seen[name] == host[name]] == []
        # Nor the agent's: whose processes are all dead by then (d26); a number alone can be used again.
        assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
        assert (seen["CapEff"], seen["CapBnd"]) == ("0" * 16, "0" * 16)
    assert journey.sampler.interfaces == {"lo"}


def test_d21_fidelity(journey):
    """Deletions, renames, modes, links, empty, CR LF, dist/, over 100 MB, LFS, submodules: the same tree."""
    person, top = journey.target.person, journey.target.repository
    branch = journey.result["branch"]
    inside = {path: entry for path, entry in journey.agents.items() if path.startswith(b"sub/")}
    outside = {path: entry for path, entry in journey.agents.items() if path not in inside}
    files = files_in(person, top, branch)
    content = outside.pop(b"large.bin")
    mode, pointer = files.pop(b"large.bin")
    assert mode == content[0]
    oid = re.search(rb"^oid sha256:([0-9a-f]{64})$", pointer, re.MULTILINE)
    assert oid is not None
    stored = top / ".git/lfs/objects" / oid[1][:2].decode() / oid[1][2:4].decode() / oid[1].decode()
    assert stored.read_bytes() == content[1]
    assert files.keys() == outside.keys()
    assert [path for path in files if files[path] != outside[path]] == []
    assert files[b"becomes-link"] == (0o120000, b"tool")
    assert len(files[b"large"][1]) == 105000000
    # The submodule's work is there by the same name, and it is what the branch names.
    (submodule,) = journey.result["submodules"]
    assert (submodule["path"], submodule["branch"], submodule["commits"]) == ("sub", branch, 1)
    assert person.git(top, "rev-parse", f"{branch}:sub") == submodule["tip"]
    assert person.git(journey.inner, "rev-parse", branch) == submodule["tip"]
    assert files_in(person, journey.inner, branch) == {path[4:]: entry for path, entry in inside.items()}
    ignore = {"status": None, "work tree": None}
    for before, after in (journey.changes, journey.inner_changes):
        assert_only_new_branch(before | ignore, after | ignore, branch)
    fsck(person, top)


def test_d26_nothing_of_the_worker_is_alive_at_the_snapshot(journey):
    """Processes that left their session and ignore signals go on writing while the work is looked at."""
    assert journey.agents[b"racing"][1], "there was no race"
    assert journey.sampler.exporters, "no exporter was seen"
    assert journey.sampler.strangers == set()
    assert sweep.processes_of(int(journey.target.account()["uid"])) == []


def test_d26_what_was_shown_is_what_was_imported(journey):
    """Between the review and the branch there is no second reading of the agent's repository."""
    person, top = journey.target.person, journey.target.repository
    tip = person.git(top, "rev-parse", journey.result["branch"])
    assert tip == journey.result["tip"] == journey.result["uncommitted_commit"]
    shown = re.findall(r"^\[\w+\]   ([0-9a-f]{10}) ", journey.outcome.errors, re.MULTILINE)
    committed = person.git(top, "rev-list", f"{tip}^", "^main").split()
    assert [name[:10] for name in committed] == [name for name in shown if not name.startswith(
        tuple(person.git(journey.inner, "rev-parse", journey.result["branch"] + "^")[:10].split())
    )]  # fmt: skip


# ------------------------------------------------------------------ D31

# The command line, with the end of the world at the given step. Steps count from where the work comes out.
KILLER = r"""
import os, signal, sys
at, told, seen, counting = int(sys.argv[1]), sys.argv[2], 0, False
EVENTS = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree",
          "subprocess.Popen", "tempfile.mkstemp", "fcntl.flock", "socket.sendmsg"}
def hook(event, args):
    global seen, counting
    if event == "os.mkdir" and os.fsdecode(args[0]).endswith("/export"):
        counting = True
    if counting and event in EVENTS:
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
sys.argv[1:3] = []
from clsecure.__main__ import main
status = main()
with open(told, "w") as file:
    file.write(str(seen))
sys.exit(status)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragile:
    """A kept session whose import is ended anywhere."""

    target: Target
    key: str
    record: bytes
    steps: int

    @property
    def state(self) -> Path:
        """What the tool has written down of the session."""
        return self.target.person.home / ".local/state/clsecure/sessions" / self.key / "session.json"

    def kept(self) -> None:
        """The session is as it was before any import of it."""
        self.target.person.write(self.state, self.record, mode=0o600)

    def run(self, at: int, *arguments: str) -> Outcome:
        """Run the command line up to a step; 0 is to its end."""
        told = self.target.person.home / f"steps-{self.target.mode}"
        argv = [sys.executable, "-I", "-c", KILLER, str(at), str(told), *arguments]
        return self.target.person.run(argv, cwd=self.target.repository)

    def importing(self) -> tuple[str, ...]:
        """The command line of an import that brings home what no other one brought.

        Two within one second would make the same commit, and the second find its objects there already.
        """
        return "import", self.key, "--message", f"work {secrets.token_hex(8)}"

    def only_branch(self, before: dict[str, object]) -> str | None:
        """The branch that is new since then, if there is one."""
        new = snapshot(self.target.repository)["refs"]
        old = before["refs"]
        assert isinstance(new, dict)
        assert isinstance(old, dict)
        added = [name.removeprefix("refs/heads/") for name in new if name not in old]
        assert len(added) <= 1, added
        return added[0] if added else None

    def forget(self, branch: str) -> None:
        """Take a branch away again."""
        self.target.person.git(self.target.repository, "branch", "-q", "-D", branch)


@pytest.fixture(scope="module")
def fragile(person, mode) -> Fragile:
    """Keep a session with some work, and count the steps of its import."""
    target = Target(
        person=person, mode=mode, repository=person.repository(f"fragile-{mode}"), session="fragile"
    )
    script = "echo work >>README.md; git commit -qam work; head -c 3000000 /dev/urandom >more"
    target.attack(script, finish="keep").outcome.check()
    made = Fragile(target=target, key=session_key(target), record=b"", steps=0)
    record = made.state.read_bytes()
    before = snapshot(target.repository)
    made.run(0, *made.importing()).check()
    branch = made.only_branch(before)
    assert branch is not None
    made.forget(branch)
    steps = int((person.home / f"steps-{mode}").read_text())
    assert steps > 40, steps
    return Fragile(target=target, key=made.key, record=record, steps=steps)


@pytest.mark.parametrize("point", range(10))
def test_d31_kill_9_at_any_point(fragile, point):
    """The command line is killed while the work comes home, most closely looked at towards the end."""
    person, top = fragile.target.person, fragile.target.repository
    at = fragile.steps * (point + 1) // 6 if point < 5 else fragile.steps - (10 - point) * 3
    fragile.kept()
    before = snapshot(top)
    killed = fragile.run(at, *fragile.importing())
    assert killed.returncode == -9, killed
    person.run(["git", "fsck", "--full", "--strict", "--no-dangling"], cwd=top).check()
    early = fragile.only_branch(before)
    if json.loads(fragile.state.read_bytes())["status"] == "imported":
        branch = early
    else:
        # Whatever the kill left behind, the next import clears it up, and its branch is the only one.
        branch = branch_of(person.clsecure("import", fragile.key, "--output", "json", cwd=top).check())
        assert early in (None, branch)
    assert branch is not None
    assert_only_new_branch(before, snapshot(top), branch)
    fsck(person, top)
    assert files_in(person, top, branch) == files_of(workspace(fragile.target))
    fragile.forget(branch)


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_d31_kill_9_of_a_whole_session(fragile, share):
    """The session's own command line is killed while it brings the work home: the session waits."""
    person, top = fragile.target.person, fragile.target.repository
    before = snapshot(top)
    argv = fragile.target.argv(["/bin/sh", "-c", "echo more >>README.md"], "--resume", finish="import")
    start = len(person.clsecure_argv())
    killed = fragile.run(int(fragile.steps * share), *argv[start:])
    assert killed.returncode == -9, killed
    assert fragile.only_branch(before) is None
    listed = person.clsecure("list", "--output", "json").check().json()["sessions"]
    (mine,) = [s for s in listed if s["session_id"] == fragile.key]
    assert mine["status"] in ("interrupted", "kept", "running"), mine
    done = person.clsecure("import", fragile.key, "--output", "json", cwd=top).check()
    assert files_in(person, top, branch_of(done) or "") == files_of(workspace(fragile.target))
    fragile.forget(branch_of(done) or "")


@contextlib.contextmanager
def small_disk(person: Person, place: Path) -> Iterator[None]:
    """A file system of its own for a directory of the person's, which keeps what is in it."""
    kept = place.with_name(place.name + ".kept")
    place.rename(kept)
    person.run(["mkdir", str(place)]).check()
    mount = [
        "mount",
        "-t",
        "tmpfs",
        "-o",
        f"uid={person.uid},gid={person.gid},mode=700,size=1g",
        "none",
        str(place),
    ]
    subprocess.run(mount, check=True, timeout=60)
    try:
        subprocess.run(["cp", "-a", f"{kept}/.", str(place)], check=True, timeout=60)
        yield
    finally:
        subprocess.run(["cp", "-a", f"{place}/.", str(kept)], check=True, timeout=60)
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=60)
        place.rmdir()
        kept.rename(place)


def leave(place: Path, *, inodes: int) -> None:
    """Let the file system have room for so many more files, and no more."""
    used = os.statvfs(place)
    most = used.f_files - used.f_ffree + inodes
    subprocess.run(["mount", "-o", f"remount,nr_inodes={most}", str(place)], check=True, timeout=60)


@pytest.mark.parametrize(
    ("where", "inodes"), [("repository", 0), ("repository", 1), ("state", 0), ("state", 3), ("state", 12)]
)
def test_d31_a_full_disk(fragile, where, inodes):
    """ENOSPC after some more files, in the repository or the state directory: refused, and it works later."""
    person, top = fragile.target.person, fragile.target.repository
    fragile.kept()
    place = top / ".git/objects" if where == "repository" else person.home / ".local/state/clsecure"
    with small_disk(person, place):
        before = snapshot(top)
        leave(place, inodes=inodes)
        failed = person.clsecure(*fragile.importing(), "--output", "json", cwd=top)
        subprocess.run(["mount", "-o", "remount,nr_inodes=0", str(place)], check=True, timeout=60)
        assert failed.returncode == 125, failed
        assert "internal error" not in failed.text, failed
        assert_only_new_branch(before, snapshot(top), None)
        fsck(person, top)
        with generic_rule(top) as branches:
            done = person.clsecure("import", fragile.key, "--output", "json", cwd=top).check()
            branches.append(branch_of(done))
        fragile.forget(branches[0] or "")
    assert json.loads(done.stdout)["import"]["commits"] >= 1
