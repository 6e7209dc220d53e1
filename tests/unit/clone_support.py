"""What the tests of clone-in share: a user's repository, a session's way in, and looks at both sides."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clsecure.git import Git
from clsecure.model import HomeFile, StartState
from clsecure.workspace import clone, stream
from clsecure.workspace.repository import discover

UNPACK = Path(clone.__file__).parents[1] / "privileged" / "unpack.py"


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


def bring_in(top: Path, room: Path, *, full: bool = False, home_files: Sequence[HomeFile] = ()) -> Session:
    """The whole way: discover, prepare, stream, unpack."""
    room.mkdir(parents=True, exist_ok=True)
    repository = discover(top)
    state = clone.prepare(repository, room / "start", full=full)
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


def tree_of(top: Path, head: str, base: Path, scratch: Path) -> str:
    """The tree of a work tree by the documented rules, for files without conversion or LFS."""
    env = {
        "GIT_DIR": str(base),
        "GIT_WORK_TREE": str(top),
        "GIT_INDEX_FILE": str(scratch),
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }
    git(top, "read-tree", head, env=env)
    git(top, "-c", "advice.addEmbeddedRepo=false", "add", "-A", env=env)
    return git(top, "write-tree", env=env).decode().strip()


def all_objects(session: Session, path: str = "") -> bytes:
    """Every object of the clone, reachable or not, as one byte string."""
    return inside(session, "cat-file", "--batch-all-objects", "--batch", path=path)
