"""The generic pass rule of everything that comes home: the user's repository differs by one new branch."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from pathlib import Path

_ENV = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8", "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1", "GIT_OPTIONAL_LOCKS": "0",
        # The repository may be a test person's, and root the one who looks.
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}  # fmt: skip


def git_out(repo: Path, *args: str) -> bytes:
    """What git says of a repository, without writing to it; empty when it fails.

    As the repository's owner: to root, git says nothing of somebody else's.
    """
    owner = repo.stat().st_uid if os.geteuid() == 0 else None
    return subprocess.run(
        ["git", "--no-optional-locks", *args],
        cwd=repo,
        env=_ENV,
        user=owner,
        capture_output=True,
        check=False,
    ).stdout


def snapshot(repo: Path) -> dict[str, object]:
    """Digests of everything of a user's repository (a work tree) that an import must not touch."""
    git_dir = repo / os.fsdecode(git_out(repo, "rev-parse", "--git-dir").strip())
    common = repo / os.fsdecode(git_out(repo, "rev-parse", "--git-common-dir").strip())
    assert git_dir != repo, "git says nothing of this repository"
    refs = dict(
        line.split(" ", 1)[::-1]
        for line in git_out(repo, "for-each-ref", "--format=%(objectname) %(refname)").decode().splitlines()
    )
    return {
        "config": _digest(common / "config"),
        "config.worktree": _digest(git_dir / "config.worktree"),
        "hooks": _tree(common / "hooks"),
        "HEAD": _digest(git_dir / "HEAD"),
        "index": _digest(git_dir / "index"),
        "info": _tree(common / "info"),
        "state": sorted(p.name for p in git_dir.iterdir() if p.name != "lfs"),
        "common": sorted(p.name for p in common.iterdir() if p.name != "lfs"),
        "logs": _tree(common / "logs"),
        "locks": sorted(str(p) for p in common.rglob("*.lock")),
        "status": git_out(repo, "status", "--porcelain=v2", "--untracked-files=all", "--ignored", "-z"),
        "stash": git_out(repo, "stash", "list"),
        "refs": refs,
        "work tree": _tree(repo, skip=".git"),
    }


def assert_only_new_branch(before: dict[str, object], after: dict[str, object], branch: str | None) -> None:
    """Fail unless the two snapshots differ by exactly this branch (None: by nothing)."""
    for key in before:
        if key != "refs":
            assert before[key] == after[key], f"the user's {key} changed"
    old, new = before["refs"], after["refs"]
    assert isinstance(old, dict)
    assert isinstance(new, dict)
    added = {name: value for name, value in new.items() if old.get(name) != value}
    assert old.keys() <= new.keys(), "a reference is gone"
    assert set(added) == ({f"refs/heads/{branch}"} if branch else set()), added


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _tree(top: Path, skip: str | None = None) -> list[tuple[bytes, int, str]]:
    found = []
    for place, directories, files in os.walk(top):
        if skip is not None and skip in directories:
            directories.remove(skip)
        for path in (Path(place) / name for name in [*files, *directories]):
            info = path.lstat()
            content = b""
            if stat.S_ISLNK(info.st_mode):
                content = os.fsencode(path.readlink())
            elif stat.S_ISREG(info.st_mode):
                content = path.read_bytes()
            found.append((os.fsencode(path), info.st_mode, hashlib.sha256(content).hexdigest()))
    return sorted(found)
