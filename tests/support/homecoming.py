"""What the tests of the way home share: traps that tell when something ran, and looks at both sides."""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import sweep
from tests.support.hostile import DEADLINE, Target
from tests.support.person import Outcome, Person
from tests.support.repostate import assert_only_new_branch, snapshot

Files = dict[bytes, tuple[int, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """The file $M: whoever executes the trap on the host, or inside, leaves a line in it.

    :param host: in the person's home, where no agent can write.
    :param inside: the same inside, in the worker's home: what our own programs there would execute.
    """

    host: Path

    @classmethod
    def of(cls, person: Person) -> Marker:
        """A new one."""
        return cls(host=person.home / f"M-{secrets.token_hex(6)}")

    def command(self, what: str = "trap") -> str:
        """A shell command that leaves its mark, wherever it runs, and passes its input on."""
        return f"sh -c 'echo {what} >>{self.host}; echo {what} >>~/M; cat' 2>/dev/null"

    def hook(self, what: str) -> str:
        """The same as a program."""
        return f"#!/bin/sh\necho {what} >>{self.host}\necho {what} >>~/M\nexit 0\n"

    def sprung(self, worker_home: str | None = None) -> list[str]:
        """Return what has run."""
        places = [self.host, *([Path(worker_home, "M")] if worker_home else [])]
        return [line for place in places if place.exists() for line in place.read_text().splitlines()]


def files_of(top: Path, *left_out: str) -> Files:
    """path → (mode as git has it, content) of a work tree's files, found on the host and without git."""
    found: Files = {}
    root = os.fsencode(top)
    for place, directories, names in os.walk(root):
        directories[:] = [d for d in directories if d != b".git"]
        for name in [*names, *directories]:
            path = os.path.join(place, name)  # noqa: PTH118  # bytes
            relative = path[len(root) + 1 :]
            if any(relative == o.encode() or relative.startswith(o.encode() + b"/") for o in left_out):
                continue
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode):
                found[relative] = (0o120000, os.readlink(path))  # noqa: PTH115  # bytes
            elif stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:  # noqa: PTH123  # bytes
                    found[relative] = (0o100755 if info.st_mode & 0o100 else 0o100644, file.read())
    return found


def files_in(person: Person, repository: Path, tree: str) -> Files:
    """The same of a tree in a repository of the person's."""
    listing = person.run(["git", "ls-tree", "-r", "-z", "--full-tree", tree], cwd=repository).check().stdout
    found: Files = {}
    blobs = []
    for item in listing.split(b"\0")[:-1]:
        meta, path = item.split(b"\t", 1)
        mode, kind, name = meta.split(b" ")
        if kind == b"blob":
            blobs.append((path, int(mode, 8), name))
    ask = b"".join(name + b"\n" for _, _, name in blobs)
    data = person.run(["git", "cat-file", "--batch"], cwd=repository, input=ask).check().stdout
    at = 0
    for path, mode, _ in blobs:
        begin = data.index(b"\n", at) + 1
        size = int(data[at:begin].split(b" ")[2])
        found[path] = (mode, data[begin : begin + size])
        at = begin + size + 1
    return found


def workspace(target: Target) -> Path:
    """The agent's work tree, as the host's root sees it."""
    return Path(target.account()["home"], target.repository.name)


def session_key(target: Target) -> str:
    """What the session is called in commands, from ``clsecure list``."""
    listed = target.person.clsecure("list", "--output", "json").check().json()["sessions"]
    mine = [s for s in listed if (s["project"], s["session"]) == (str(target.repository), target.session)]
    assert len(mine) == 1, listed
    return str(mine[0]["session_id"])


def branch_of(outcome: Outcome) -> str | None:
    """The branch that a command says it made."""
    made = outcome.json()["import"]
    return None if made is None else str(made["branch"])


@contextmanager
def generic_rule(repository: Path) -> Iterator[list[str | None]]:
    """The repository differs afterwards by the one branch that is put into the list; by nothing without."""
    before = snapshot(repository)
    branches: list[str | None] = []
    yield branches
    assert len(branches) <= 1
    assert_only_new_branch(before, snapshot(repository), branches[0] if branches else None)


def fsck(person: Person, repository: Path) -> None:
    """The repository is whole, and no lock or temporary file of an import is left in it."""
    person.run(["git", "fsck", "--full", "--strict", "--no-dangling"], cwd=repository).check()
    assert not (repository / ".git/shallow").exists()
    left = [*(repository / ".git").rglob("*.lock"), *(repository / ".git").rglob("tmp_*")]
    assert left == [], left


def wait_for_exporter(uid: int, process: subprocess.Popen[bytes]) -> int:
    """Return the pid, on the host, of the exporter that a command line has started."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end and process.poll() is None:
        for pid in sweep.processes_of(uid):
            if is_exporter(pid):
                return pid
    raise AssertionError("no exporter was seen")


def is_exporter(pid: int) -> bool:
    """Whether a process is the exporter, working (not the launcher that is to become it)."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0].endswith(b"python3") and any(word.endswith(b"/export.py") for word in words)
