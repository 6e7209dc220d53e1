"""A copy of every file that differs from the index, made once.

What is hashed for the start state and what is sent inside are then the same bytes, whatever the user
edits meanwhile. Files are opened component by component without following symlinks.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clsecure.workspace.changes import GITLINK, Changes, Entry
from clsecure.workspace.repository import Repository

REGULAR = "100644"
EXECUTABLE = "100755"
SYMLINK = "120000"
_CHUNK = 1 << 20
_MAX_NAMED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was found in the work tree.

    :param files: mode and the id that the bytes have as a blob, without any conversion.
    :param gone: paths of the index that have no file in the work tree (or one that can't be kept).
    :param warnings: what stays behind.
    """

    files: Mapping[bytes, Entry]
    gone: frozenset[bytes]
    warnings: tuple[str, ...] = field(default=())


def take(repository: Repository, changes: Changes, target: Path) -> Snapshot:
    """Copy all modified, untracked and unmerged files of the work tree below ``target``."""
    files: dict[bytes, Entry] = {}
    gone = set(changes.deleted)
    special: list[bytes] = []
    unreadable: list[bytes] = []
    modified = {path for path, mode in changes.modified.items() if mode != GITLINK}
    with _Reader(repository.top) as reader:
        for path in sorted(modified | changes.untracked | changes.unmerged):
            try:
                found = reader.stat(path)
                if stat.S_ISLNK(found.st_mode):
                    files[path] = _copy_symlink(reader, path, target, repository.object_format)
                elif stat.S_ISREG(found.st_mode):
                    mode = _mode(repository, changes, path, found.st_mode)
                    files[path] = _copy_file(reader, path, target, repository.object_format, mode)
                else:
                    gone.add(path)
                    if not stat.S_ISDIR(found.st_mode):
                        special.append(path)
            except PermissionError:
                # The index's version goes instead, when there is one.
                unreadable.append(path)
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                    raise
                gone.add(path)
    warnings = (
        *name_some("left out, neither a file nor a symlink", special),
        *name_some("left out, can't be read", unreadable),
        *name_some("left out, a repository that is no submodule", list(changes.embedded)),
    )
    return Snapshot(files=files, gone=frozenset(gone - changes.untracked), warnings=warnings)


def name_some(what: str, paths: list[bytes]) -> list[str]:
    """Return one warning per path, the rest as a number."""
    lines = [f"{what}: {path.decode('utf-8', 'backslashreplace')}" for path in paths[:_MAX_NAMED]]
    if len(paths) > _MAX_NAMED:
        lines.append(f"{what}: {len(paths) - _MAX_NAMED} more")
    return lines


def blob_id(object_format: str, data: bytes) -> str:
    """Return the id of a blob with this content."""
    return hashlib.new(object_format, b"blob %d\0" % len(data) + data).hexdigest()


def _mode(repository: Repository, changes: Changes, path: bytes, mode: int) -> str:
    if not repository.file_mode:
        known = changes.modified.get(path, REGULAR)
        return known if known in {REGULAR, EXECUTABLE} else REGULAR
    return EXECUTABLE if mode & stat.S_IXUSR else REGULAR


class _Reader:
    """Opens files below a directory without following a symlink anywhere."""

    def __init__(self, top: Path) -> None:
        self._fds = [os.open(top, os.O_PATH | os.O_DIRECTORY)]
        self._parts: list[bytes] = []

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def _parent(self, path: bytes) -> tuple[int, bytes]:
        *parts, name = path.split(b"/")
        # Paths come sorted: most share their directory with the one before.
        while self._parts != parts[: len(self._parts)]:
            self._parts.pop()
            os.close(self._fds.pop())
        for part in parts[len(self._parts) :]:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
            self._fds.append(os.open(part, flags, dir_fd=self._fds[-1]))
            self._parts.append(part)
        return self._fds[-1], name

    def stat(self, path: bytes) -> os.stat_result:
        parent, name = self._parent(path)
        return os.stat(name, dir_fd=parent, follow_symlinks=False)

    def readlink(self, path: bytes) -> bytes:
        parent, name = self._parent(path)
        return os.readlink(name, dir_fd=parent)

    def open(self, path: bytes) -> int:
        parent, name = self._parent(path)
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=parent)


def _place(target: Path, path: bytes) -> bytes:
    place = os.path.join(os.fsencode(target), path)  # noqa: PTH118  # bytes
    os.makedirs(os.path.dirname(place), exist_ok=True)  # noqa: PTH103, PTH120
    return place


def _copy_symlink(reader: _Reader, path: bytes, target: Path, object_format: str) -> Entry:
    link = reader.readlink(path)
    os.symlink(link, _place(target, path))  # noqa: PTH211  # bytes
    return Entry(mode=SYMLINK, oid=blob_id(object_format, link))


def _copy_file(reader: _Reader, path: bytes, target: Path, object_format: str, mode: str) -> Entry:
    place = _place(target, path)
    with open(reader.open(path), "rb", buffering=0) as source, open(place, "wb", buffering=0) as copy:  # noqa: PTH123
        promised = os.fstat(source.fileno())
        if not stat.S_ISREG(promised.st_mode):
            raise FileNotFoundError(errno.ENOENT, "no longer a file")
        digest = hashlib.new(object_format, b"blob %d\0" % promised.st_size)
        length = 0
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            length += len(chunk)
            view = memoryview(chunk)
            while view:
                view = view[copy.write(view) :]
        os.fchmod(copy.fileno(), 0o700 if mode == EXECUTABLE else 0o600)
    if length == promised.st_size:
        return Entry(mode=mode, oid=digest.hexdigest())
    # It grew or shrank under our hands; what was copied counts.
    digest = hashlib.new(object_format, b"blob %d\0" % length)
    with open(place, "rb") as copied:  # noqa: PTH123
        while chunk := copied.read(_CHUNK):
            digest.update(chunk)
    return Entry(mode=mode, oid=digest.hexdigest())
