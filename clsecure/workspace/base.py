"""The base repository: a tool-owned copy of exactly what is cloned in.

The pack is made with the base as git's repository and the user's object store merely lent to it. So
nothing of the user's configuration, refs, promisors, replacements or grafts has a say, and git never
opens the user's repository for writing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from clsecure.git import Git, init_bare
from clsecure.workspace.repository import Repository, missing_objects

DEFAULT_DEPTH = 50
_LOOK_BACK = 2000
_PACK_TIMEOUT = 3600.0
_FAST = (
    # What can be reused is; the rest is not worth the time for a copy on the same machine.
    *("-c", "core.compression=1", "-c", "pack.compression=1", "-c", "core.fsync=none"),
    *("-c", "pack.writeReverseIndex=false"),
)
_MISSING = re.compile(rb"missing|bad object|unable to read|could not read|not a valid object|bad tree object")


def make_base(repository: Repository, path: Path, *, depth: int | None) -> Git:
    """Make the bare repository ``path`` with what HEAD reaches in ``depth`` generations (None: all).

    :raises RepositoryError: objects are missing.
    """
    git = init_bare(path, object_format=repository.object_format)
    with (path / "config").open("a", encoding="utf-8") as config:
        # git looks at the file system when it makes a repository; trees must not depend on that.
        config.write("[core]\n\tfilemode = true\n\tsymlinks = true\n\tignorecase = false\n[gc]\n\tauto = 0\n")
    lent = lend(git, repository)
    # Where the user's own history ends git would look for parents that are not there.
    boundary = _users_boundary(repository)
    _write_shallow(path, boundary)
    if depth is not None:
        boundary += _boundary(lent, repository, depth=depth)
        _write_shallow(path, boundary)
    pack(lent, repository, [repository.head], revisions=True)
    if boundary:
        _write_shallow(path, existing(git, list(dict.fromkeys(boundary))))
    git.out("update-ref", "--no-deref", "HEAD", repository.head)
    return git


def lend(git: Git, repository: Repository) -> Git:
    """Return git on the base with the user's objects to read from besides, for one command."""
    quoted = '"' + re.sub(r'([\\"])', r"\\\1", str(repository.objects)) + '"'
    return Git(git_dir=git.git_dir, extra_env={**git.extra_env, "GIT_ALTERNATE_OBJECT_DIRECTORIES": quoted})


def pack(git: Git, repository: Repository, names: Iterable[str], *, revisions: bool) -> Path:
    """Write a pack of the named objects (with ``revisions``: of what they reach) into the base.

    :returns: the pack file.
    """
    where = git.git_dir / "objects" / "pack" / "pack"
    result = git.run(
        *_FAST,
        *("pack-objects", "--quiet", "--delta-base-offset", "--window=0"),
        *(("--revs",) if revisions else ()),
        str(where),
        input="".join(f"{name}\n" for name in names).encode(),
        timeout=_PACK_TIMEOUT,
    )
    if result.returncode != 0:
        if b"No space left" not in result.stderr and _MISSING.search(result.stderr):
            raise missing_objects(partial=repository.partial)
        result.check()
    return where.with_name(f"pack-{result.stdout.decode('ascii').split()[-1]}.pack")


def existing(git: Git, names: Sequence[str]) -> list[str]:
    """Return those objects that the repository has."""
    out = git.text("cat-file", "--batch-check=%(objectname)", input="".join(f"{n}\n" for n in names).encode())
    return [line for line in out.split("\n") if line and not line.endswith(" missing")]


def shallow_boundary(base: Path) -> bytes:
    """Return the base's shallow file; empty when its history is complete."""
    file = base / "shallow"
    return file.read_bytes() if file.exists() else b""


def _users_boundary(repository: Repository) -> list[str]:
    file = repository.common_dir / "shallow"
    return file.read_text("ascii").split() if file.exists() else []


def _write_shallow(path: Path, boundary: Sequence[str]) -> None:
    if boundary:
        (path / "shallow").write_text("".join(f"{name}\n" for name in boundary), "ascii")
    else:
        (path / "shallow").unlink(missing_ok=True)


def _boundary(git: Git, repository: Repository, *, depth: int) -> list[str]:
    """Return the commits whose parents stay behind, as ``git fetch --depth`` would choose them."""
    known: dict[str, list[str]] = {}
    count = _LOOK_BACK
    while True:
        looked = git.run("rev-list", "--parents", f"--max-count={count}", repository.head)
        if looked.returncode != 0:
            raise missing_objects(partial=repository.partial)
        for line in looked.stdout.decode("ascii").splitlines():
            name, *parents = line.split()
            known[name] = parents
        boundary = _cut(known, repository.head, depth)
        if boundary is not None:
            return boundary
        # Commits come by date; in a history with many side lines fifty generations lie deeper.
        count *= 10


def _cut(known: Mapping[str, Sequence[str]], head: str, depth: int) -> list[str] | None:
    """Walk generation by generation; None when a commit that is needed is not known yet."""
    seen = {head}
    level = [head]
    for _ in range(depth - 1):
        following: list[str] = []
        for name in level:
            if name not in known:
                return None
            following += [p for p in dict.fromkeys(known[name]) if p not in seen]
            seen.update(known[name])
        level = following
    if any(name not in known for name in level):
        return None
    return [name for name in level if known[name]]
