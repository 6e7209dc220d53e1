"""The two trees of the start state: what is staged, and what is in the work tree.

The rules are those of docs/architecture.md, "How a work tree becomes a tree": the exporter inside
follows the same ones.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from clsecure.git import Git
from clsecure.workspace import lfs
from clsecure.workspace.changes import GITLINK, Changes, Entry
from clsecure.workspace.snapshot import SYMLINK, Snapshot, blob_id, name_some

_QUIET = ("-c", "core.safecrlf=false", "-c", "core.fsync=none", "-c", "core.looseCompression=1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trees:
    """What was made.

    :param clean: paths of the snapshot that turned out to be what the index has.
    :param warnings: what the user should know about their files.
    """

    base: str
    clean: frozenset[bytes]
    warnings: tuple[str, ...]


class StagedIndex:
    """The user's index, rebuilt with the base's objects: no split, no sparse, no stat data."""

    def __init__(self, base: Git, room: Path, *, object_format: str) -> None:
        self.file = room / "index"
        self.object_format = object_format
        self.git = replace(base, extra_env={**base.extra_env, "GIT_INDEX_FILE": str(self.file)})

    def fill(self, head: str, staged: Mapping[bytes, Entry | None]) -> None:
        """Start from HEAD and put in what is staged."""
        self.git.out("read-tree", head)
        self.put(staged)

    def put(self, entries: Mapping[bytes, Entry | None]) -> None:
        """Set entries; None removes."""
        put_entries(self.git, entries, self.object_format)

    def gitlinks(self) -> list[bytes]:
        """Return the paths of submodules."""
        listed = self.git.out("ls-files", "--stage", "-z").split(b"\0")
        return [line.partition(b"\t")[2] for line in listed if line.startswith(GITLINK.encode())]


def put_entries(git: Git, entries: Mapping[bytes, Entry | None], object_format: str) -> None:
    """Set or remove entries of an index, removals first: a file may become a directory."""
    nothing = b"0 " + b"0" * hashlib.new(object_format).digest_size * 2 + b"\t"
    lines = [nothing + path + b"\0" for path, entry in entries.items() if entry is None]
    lines += [
        f"{entry.mode} {entry.oid}\t".encode("ascii") + path + b"\0"
        for path, entry in entries.items()
        if entry is not None
    ]
    if lines:
        git.out("update-index", "-z", "--index-info", input=b"".join(lines))


def work_tree(
    staged: StagedIndex,
    changes: Changes,
    snapshot: Snapshot,
    submodules: Mapping[bytes, str],
    files: Path,
) -> Trees:
    """Make the tree of the user's work tree as it will be inside.

    :param submodules: path to the commit that the submodule's HEAD names.
    :param files: the directory of the snapshot; staged files are checked out beside, since what the agent
        gets of them are those bytes.
    """
    file = staged.file.with_name("index.work")
    shutil.copyfile(staged.file, file)
    index = replace(
        staged.git, work_tree=files, extra_env={**staged.git.extra_env, "GIT_INDEX_FILE": str(file)}
    )
    beside = _check_out_staged(staged, changes, snapshot, files)
    index.out("read-tree", "HEAD")
    # Removals before anything is hashed: a .gitattributes that is gone must not count.
    removed = {path: None for path, entry in changes.staged.items() if entry is None}
    removed |= dict.fromkeys(snapshot.gone)
    put_entries(index, removed, staged.object_format)
    entries: dict[bytes, Entry | None] = {
        path: Entry(mode=GITLINK, oid=commit) for path, commit in submodules.items()
    }
    apart = {*beside, *removed, *snapshot.files}
    entries |= {path: entry for path, entry in changes.staged.items() if entry and path not in apart}
    filters = _filters(index, [p for p, e in snapshot.files.items() if e.mode != SYMLINK] + sorted(beside))
    entries |= {p: changes.staged[p] for p in beside if filters.get(p) == b"lfs"}
    clean: set[bytes] = set()
    for path, entry in snapshot.files.items():
        committed = changes.committed.get(path)
        if committed is not None and committed.oid == entry.oid:
            entries[path] = entry
        elif filters.get(path) == b"lfs":
            text = _pointer(files, path)
            made = Entry(mode=entry.mode, oid=blob_id(staged.object_format, text))
            entries[path] = made
            if changes.indexed.get(path) == made and path not in changes.intended:
                clean.add(path)
            else:
                index.out("hash-object", "-w", "--stdin", input=text)
    put_entries(index, entries, staged.object_format)
    left_out = _hash(index, [p for p in (*beside, *snapshot.files) if p not in entries])
    foreign = sorted({p for p, name in filters.items() if p in snapshot.files and name != b"lfs"})
    return Trees(
        base=index.text("write-tree"),
        clean=frozenset(clean),
        warnings=(
            *name_some("left out, git can't keep a file of this name", sorted(left_out)),
            *name_some("has a filter, which is not run for uncommitted changes", foreign),
        ),
    )


def entries_of(trees: Git, tree: str, paths: Iterable[bytes]) -> dict[bytes, Entry | None]:
    """Return what a tree has at these paths."""
    wanted = list(paths)
    found: dict[bytes, Entry | None] = dict.fromkeys(wanted)
    if not wanted:
        return found
    for line in trees.out("ls-tree", "-r", "-z", "--full-tree", tree).split(b"\0"):
        meta, _, path = line.partition(b"\t")
        if path in found:
            mode, _, oid = meta.decode("ascii").split()
            found[path] = Entry(mode=mode, oid=oid)
    return found


def lfs_objects(staged: StagedIndex) -> tuple[lfs.LfsObject, ...]:
    """Return the LFS objects that the staged tree names."""
    git = replace(staged.git, extra_env={**staged.git.extra_env, "GIT_LITERAL_PATHSPECS": "0"})
    if git.run("grep", "--cached", "-q", "-F", "filter=lfs", "--", ":(glob)**/.gitattributes").returncode:
        return ()
    oids = {}
    for line in git.out("ls-files", "--stage", "-z").split(b"\0")[:-1]:
        meta, _, path = line.partition(b"\t")
        mode, oid, _ = meta.decode("ascii").split()
        if mode.startswith("100"):
            oids[path] = oid
    paths = [p for p, name in _filters(git, list(oids), cached=True).items() if name == b"lfs"]
    found: dict[str, lfs.LfsObject] = {}
    sizes = git.out(
        *("cat-file", "--batch-check=%(objectsize)"), input="".join(f"{oids[p]}\n" for p in paths).encode()
    ).split()
    small = [p for p, size in zip(paths, sizes, strict=True) if int(size) <= lfs.MAX_POINTER]
    texts = BytesIO(git.out("cat-file", "--batch", input="".join(f"{oids[p]}\n" for p in small).encode()))
    for path in small:
        size = int(texts.readline().split()[2])
        named = lfs.parse(texts.read(size + 1)[:-1])
        if named is not None:
            found.setdefault(named[0], lfs.LfsObject(oid=named[0], size=named[1], path=path))
    return tuple(found.values())


def _check_out_staged(
    staged: StagedIndex, changes: Changes, snapshot: Snapshot, files: Path
) -> frozenset[bytes]:
    """Write those staged files whose content differs from HEAD's and that the work tree has unchanged."""
    paths = frozenset(
        path
        for path, entry in changes.staged.items()
        if entry is not None
        and entry.mode != GITLINK
        and path not in snapshot.files
        and path not in snapshot.gone
        and not (path in changes.committed and changes.committed[path].oid == entry.oid)
    )
    if paths:
        git = replace(staged.git, work_tree=files)
        git.out(
            "checkout-index", "-q", "-f", "-z", "--stdin", input=b"".join(p + b"\0" for p in sorted(paths))
        )
    return paths


def _filters(git: Git, paths: list[bytes], *, cached: bool = False) -> dict[bytes, bytes]:
    """Return the ``filter`` attribute of those paths that have one."""
    if not paths:
        return {}
    words = git.out(
        *("check-attr", *(("--cached",) if cached else ()), "-z", "--stdin", "filter"),
        input=b"".join(p + b"\0" for p in paths),
    ).split(b"\0")
    found = zip(words[0::3], words[2::3], strict=False)
    return {path: value for path, value in found if value not in {b"unspecified", b"unset", b"set"}}


def _pointer(files: Path, path: bytes) -> bytes:
    with open(os.path.join(os.fsencode(files), path), "rb") as file:  # noqa: PTH118, PTH123  # bytes
        start = file.read(lfs.MAX_POINTER + 1)
        if not start or lfs.parse(start) is not None:
            return start
        digest = hashlib.sha256(start)
        size = len(start)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return lfs.pointer(digest.hexdigest(), size)


def _hash(index: Git, paths: list[bytes]) -> set[bytes]:
    """Add files of the work tree to the index; return those that git would not have."""
    if not paths:
        return set()
    done = index.run(
        *(*_QUIET, "update-index", "-z", "--add", "--remove", "--replace", "--stdin"),
        input=b"".join(p + b"\0" for p in paths),
        timeout=1800.0,
    ).check()
    if b"Ignoring path" not in done.stderr:
        return set()
    return set(paths) - set(index.out("ls-files", "-z").split(b"\0"))
