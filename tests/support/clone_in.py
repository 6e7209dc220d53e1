# ruff: noqa: PTH115, PTH118, PTH123
# Byte paths, which pathlib does not have.
"""What the tests of clone-in share: a user's repository, a session's way in, and looks at both sides."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import stat
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clsecure.git import Git
from clsecure.model import HomeFile, StartState
from clsecure.workspace import clone, stream
from clsecure.workspace.portable import Inside, look
from clsecure.workspace.repository import discover
from clsecure.workspace.state_file import load, save
from tests.support.pieces import installed

UNPACK = installed() / "unpack.py"
EXPORT = installed() / "export.py"


def git(
    top: Path,
    *args: str | bytes,
    data: bytes | None = None,
    env: dict[str, str] | None = None,
    status: int = 0,
) -> bytes:
    """Run the user's git; HOME is what the test set."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    clean |= {"GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C.UTF-8", "GIT_AUTHOR_DATE": "1700000000 +0000"}
    clean |= {"GIT_COMMITTER_DATE": "1700000000 +0000", **(env or {})}
    done = subprocess.run(["git", *args], cwd=top, input=data, capture_output=True, env=clean, check=False)
    assert done.returncode == status, done.stderr.decode()
    return done.stdout


def make(top: Path, *options: str) -> Path:
    """Make a repository with one file and one commit."""
    top.mkdir(parents=True, exist_ok=True)
    git(top, "init", "-q", "-b", "main", *options)
    git(top, "config", "user.name", "Ada")
    git(top, "config", "user.email", "ada@example.org")
    (top / "README").write_text("one\n")
    commit(top, "first")
    return top


def commit(top: Path, message: str) -> str:
    git(top, "add", "-A")
    git(top, "commit", "-q", "--allow-empty", "-m", message)
    return git(top, "rev-parse", "HEAD").decode().strip()


@dataclass(frozen=True, kw_only=True)
class Session:
    """What clone-in made of a repository."""

    state: StartState
    workspace: Path
    home: Path
    warnings: tuple[str, ...]
    sent: bytes

    @property
    def base(self) -> Git:
        return Git(git_dir=self.state.top.base)


def unpack(data: bytes, workspace: Path, home: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["/usr/bin/python3", "-I", "-S", UNPACK, workspace],
        input=data,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=False,
        cwd="/",
    )


def bring_in(
    top: Path,
    room: Path,
    *,
    full: bool = False,
    home_files: Sequence[HomeFile] = (),
    programs: Callable[[Path], Inside] | None = None,
) -> Session:
    """The whole way: discover, prepare, stream, unpack.

    :param programs: given the workspace, what the session has; agent files are made portable with it.
    """
    room.mkdir(parents=True, exist_ok=True)
    repository = discover(top)
    state = clone.prepare(repository, room / "start", full=full)
    if programs is not None:
        found = look(state, programs(room / "home/work"))
        save(replace(state, portable=found.rewrites), room / "state")
        state = load(room / "state")
    out = io.BytesIO()
    sent = stream.stream_in(state, repository, out, home_files=home_files)
    assert sent.size == len(out.getvalue())
    home = room / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        "[core]\n\tautocrlf = true\n\thooksPath = /hostile\n[user]\n\tname = Eve\n"
    )
    done = unpack(out.getvalue(), home / "work", home)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return Session(
        state=state,
        workspace=home / "work",
        home=home,
        warnings=state.warnings + sent.warnings,
        sent=out.getvalue(),
    )


def inside(session: Session, *args: str | bytes, path: str = "", status: int = 0) -> bytes:
    """Run git in the clone as the agent would, without the hostile home's configuration."""
    env = {"GIT_CONFIG_GLOBAL": "/dev/null"}
    return git(session.workspace / path, *args, env=env, status=status)


def status(top: Path, *, env: dict[str, str] | None = None) -> set[bytes]:
    """What ``git status`` says, as a set of lines."""
    options = (
        "--no-optional-locks",
        "status",
        "--porcelain=v1",
        "-z",
        "--untracked-files=all",
        "--no-renames",
    )
    return set(git(top, *options, env=env).split(b"\0")[:-1])


def status_inside(session: Session, path: str = "") -> set[bytes]:
    return status(session.workspace / path, env={"GIT_CONFIG_GLOBAL": "/dev/null"})


def digest(top: Path) -> dict[str, tuple[object, ...]]:
    """Everything of a directory: names, modes, times and contents. Nothing may differ after a clone-in."""
    found: dict[str, tuple[object, ...]] = {}
    for root, directories, files in os.walk(os.fsencode(top)):
        for name in (*directories, *files):
            path = os.path.join(root, name)
            info = os.lstat(path)
            content = ""
            if stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    content = hashlib.sha256(file.read()).hexdigest()
            elif stat.S_ISLNK(info.st_mode):
                content = repr(os.readlink(path))
            found[repr(path)] = (info.st_mode, info.st_mtime_ns, info.st_ino, content)
    return found


def exported_trees(session: Session) -> dict[bytes, str]:
    """The tree of each unit's work tree as the exporter computes it from the clone, with nothing to go by."""
    request = {
        "workspace": str(session.workspace),
        "message": "work",
        "portable": session.state.rules,
        "max_refused": 10,
        "units": [
            {
                "path": base64.b64encode(unit.path).decode(),
                "head": unit.head,
                "base_tree": unit.base_tree,
                "object_format": "sha256" if len(unit.head) > 40 else "sha1",
            }
            for unit in session.state.units
        ],
    }
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", EXPORT],
        input=json.dumps(request).encode() + b"\n",
        env={"HOME": "/nonexistent", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    out = io.BytesIO(done.stdout)
    trees = {}
    while line := out.readline():
        record = json.loads(line)
        out.read(record["size"])
        if record["type"] == "unit":
            assert record["refused"] == []
            trees[base64.b64decode(record["path"])] = record["tree"]
    return trees


def assert_unchanged_is_identical(session: Session) -> None:
    """A session that changed nothing has the tree that was cloned in, in every unit."""
    assert exported_trees(session) == {unit.path: unit.base_tree for unit in session.state.units}


def all_objects(session: Session, path: str = "") -> bytes:
    """Every object of the clone, reachable or not, as one byte string."""
    return inside(session, "cat-file", "--batch-all-objects", "--batch", path=path)
