"""Files that git-lfs manages: a pointer is what git gets, the object travels beside."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile

from clsecure.privileged.exporter.files import kind_of
from clsecure.privileged.exporter.scratch import nul
from clsecure.privileged.exporter.worktree import blob_id, file_blob_id, mode_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.exporter.scratch import Entries, Scratch
    from clsecure.privileged.exporter.worktree import WorkTree

    Objects = dict[str, tuple[bytes, int]]  # oid → (path, size)

POINTER = re.compile(
    rb"\Aversion https?://(?:git-lfs\.github\.com|hawser\.github\.com)/spec/v\d\n"
    rb"(?:ext-\d-[^\n]*\n)*oid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n?\Z"
)
MAX_POINTER = 1024


def managed(git: Scratch, work: WorkTree, wanted: set[bytes], trees: tuple[Entries, ...]) -> list[bytes]:
    """Those of the files that the attributes give to git-lfs, sorted; ``trees`` may hold attributes, too."""
    if not work.attributes and not any(
        path.split(b"/")[-1] == b".gitattributes" for entries in trees for path in entries
    ):
        return []
    answer = git.run("check-attr", "-z", "--stdin", "filter", data=nul(wanted)).split(b"\0")
    return sorted(p for p, value in zip(answer[0::3], answer[2::3], strict=False) if value == b"lfs")


def as_pointers(
    git: Scratch, work: WorkTree, paths: list[bytes], start: Entries, at_tip: Entries
) -> tuple[Entries, Objects]:
    """What git gets for managed files, and the objects that have to travel; new pointers are written.

    A pointer of before whose object has not changed stays as it is written.
    """
    if not paths:
        return {}, {}
    found: Entries = {}
    objects: Objects = {}
    cloned = {i for _, i in start.values()}
    before = [e[p][1] for e in (start, at_tip) for p in paths if p in e]
    known = pointers(git, before)
    fresh: dict[bytes, bytes] = {}  # id → pointer text
    for path in paths:
        full = work.at(path)
        made = pointer_to(full)
        if made is None:
            continue
        pointer, oid, size = made
        if path in start and file_blob_id(full, git.format) == start[path][1]:
            continue  # stored whole from the beginning: it stays so
        old = [e[path][1] for e in (start, at_tip) if path in e and known.get(e[path][1]) == oid]
        blob = old[0] if old else blob_id(pointer, git.format)
        if not old:
            fresh[blob] = pointer
        if blob not in cloned:
            objects[oid] = (full, size)
        found[path] = (mode_of(full), blob)
    _write_blobs(git, fresh)
    return found, objects


def pointer_to(full: bytes) -> tuple[bytes, str, int] | None:
    """(pointer, oid, size) of a file that git-lfs manages; None when it stays as it is."""
    info = os.lstat(full)
    if not stat.S_ISREG(info.st_mode) or info.st_size == 0:
        return None
    digest = hashlib.sha256()
    with open(full, "rb") as file:
        block = file.read(1 << 20)
        if len(block) <= MAX_POINTER and POINTER.match(block):
            return None
        size = 0
        while block:
            digest.update(block)
            size += len(block)
            block = file.read(1 << 20)
    oid = digest.hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode("ascii")
    return pointer, oid, size


def pointers(git: Scratch, names: list[bytes]) -> dict[bytes, str]:
    """id → oid for those of the objects that are pointers."""
    if not names:
        return {}
    ask = b"".join(name + b"\n" for name in dict.fromkeys(names))
    how = "--batch-check=%(objectname) %(objecttype) %(objectsize)"
    sizes = git.run("cat-file", how, data=ask).splitlines()
    small = [f[0] for f in map(bytes.split, sizes) if f[1:2] == [b"blob"] and int(f[2]) <= MAX_POINTER]
    found = {}
    data = git.run("cat-file", "--batch", data=b"".join(name + b"\n" for name in small))
    start = 0
    for name in small:
        begin = data.index(b"\n", start) + 1
        size = int(data[start : begin - 1].split(b" ")[2])
        match = POINTER.match(data[begin : begin + size])
        if match is not None:
            found[name] = match.group(1).decode("ascii")
        start = begin + size + 1
    return found


def committed(git: Scratch, git_dir: bytes | None, revisions: list[bytes], travelling: Objects) -> Objects:
    """Further objects of pointers that the agent committed on the way (git-lfs keeps them in its store)."""
    store = None if git_dir is None else os.path.join(git_dir, b"lfs", b"objects")
    if store is None or not stat.S_ISDIR(kind_of(store)):
        return {}
    names = git.run("rev-list", "--objects", "--filter=blob:limit=1025", *revisions)
    found: Objects = {}
    for oid in pointers(git, [n.split(b" ")[0] for n in names.splitlines()]).values():
        steps = (oid[:2], os.path.join(oid[:2], oid[2:4]))
        if oid in travelling or not all(
            stat.S_ISDIR(kind_of(os.path.join(store, step.encode()))) for step in steps
        ):
            continue
        full = os.path.join(store, *(part.encode() for part in (oid[:2], oid[2:4], oid)))
        if stat.S_ISREG(kind_of(full)):
            found[oid] = (full, os.lstat(full).st_size)
    return found


def _write_blobs(git: Scratch, blobs: dict[bytes, bytes]) -> None:
    if not blobs:
        return
    place = tempfile.mkdtemp(dir=git.temp)
    names = []
    for number, content in enumerate(blobs.values()):
        names.append(os.path.join(place, str(number)).encode())
        with open(names[-1], "wb") as file:
            file.write(content)
    git.run("hash-object", "-w", "--no-filters", "--stdin-paths", data=b"\n".join(names) + b"\n")
    shutil.rmtree(place)
