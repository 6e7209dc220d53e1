"""The agent's work tree: what lies there."""

from __future__ import annotations

import hashlib
import os
import stat

from clsecure.privileged.exporter.files import ExportError, kind_of, text_of
from clsecure.privileged.exporter.scratch import MAX_ENTRIES

MAX_PATH = 4000  # git refuses 4096; a little less, so that no file below is out of its reach
MAX_RULES_FILE = 16 << 20
WORK_TREE_RULES = (b".gitignore", b".gitattributes", b".gitmodules")


class WorkTree:
    """What lies in one unit's directory, found without following or opening anything.

    :ivar children: the units below it, which are not looked into.
    """

    def __init__(self, root: bytes, children: set[bytes]) -> None:
        self.root = root
        self.children = children
        self.files: set[bytes] = set()  # regular files and symlinks
        self.unreadable: list[tuple[bytes, str]] = []
        self.special: list[bytes] = []
        self.embedded: list[bytes] = []
        self.attributes = False
        self.count = 0
        self._walk()

    def _walk(self) -> None:
        stack = [b""]
        while stack:
            prefix = stack.pop()
            try:
                with os.scandir(os.path.join(self.root, prefix) if prefix else self.root) as entries:
                    found = list(entries)
            except OSError as error:
                if not prefix:
                    raise ExportError(f"the work tree can't be read: {error.strerror}") from error
                self.unreadable.append((prefix, str(error.strerror)))
                continue
            self.count += len(found)
            if self.count > MAX_ENTRIES:
                raise ExportError(f"more than {MAX_ENTRIES} files in the work tree")
            for entry in found:
                deeper = self._see(entry, prefix)
                if deeper is not None:
                    stack.append(deeper)

    def _see(self, entry: os.DirEntry[bytes], prefix: bytes) -> bytes | None:
        """Note one entry; return the prefix of a directory to go into."""
        path = prefix + entry.name
        if entry.name == b".git":
            if prefix:
                self._embedded(entry, prefix)
        elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
            if entry.name in WORK_TREE_RULES:
                self._rules(entry, path)
            self.files.add(path)
        elif not entry.is_dir(follow_symlinks=False):
            if entry.name in WORK_TREE_RULES:
                raise ExportError(f"{text_of(path)} is not a regular file")
            self.special.append(path)
        elif len(path) > MAX_PATH:
            self.unreadable.append((path + b"/", "the path is too long for git"))
        elif path not in self.children:
            return path + b"/"
        return None

    def _rules(self, entry: os.DirEntry[bytes], path: bytes) -> None:
        self.attributes = self.attributes or entry.name == b".gitattributes"
        if not entry.is_symlink() and entry.stat(follow_symlinks=False).st_size > MAX_RULES_FILE:
            raise ExportError(f"{text_of(path)} is larger than {MAX_RULES_FILE} bytes")

    def _embedded(self, entry: os.DirEntry[bytes], prefix: bytes) -> None:
        # git looks at HEAD behind a ".git" to tell a repository from a directory, and would wait for a FIFO.
        if entry.is_symlink():
            raise ExportError(f"{text_of(prefix)}.git is a symbolic link")
        if entry.is_dir(follow_symlinks=False):
            mode = kind_of(os.path.join(entry.path, b"HEAD"))
            if mode and not stat.S_ISREG(mode):
                raise ExportError(f"{text_of(prefix)}.git/HEAD is not a regular file")
        elif not entry.is_file(follow_symlinks=False):
            raise ExportError(f"{text_of(prefix)}.git is not a regular file")
        self.embedded.append(prefix)

    def at(self, path: bytes) -> bytes:
        """Return where a file of it lies."""
        return os.path.join(self.root, path)

    def beneath_unreadable(self, path: bytes) -> bool:
        """Tell whether a path can't be looked at."""
        return any(path.startswith(prefix) for prefix, _ in self.unreadable)

    def readable(self, path: bytes) -> bool:
        """Tell whether the content of a regular file can be read."""
        return os.access(self.at(path), os.R_OK) or os.path.islink(self.at(path))


def mode_of(path: bytes) -> bytes:
    """The mode that git has for a regular file."""
    return b"100755" if os.lstat(path).st_mode & 0o100 else b"100644"


def blob_id(data: bytes, object_format: str) -> bytes:
    """The id of a blob with these bytes."""
    return hashlib.new(object_format, b"blob %d\0" % len(data) + data).hexdigest().encode("ascii")


def file_blob_id(path: bytes, object_format: str) -> bytes:
    """The id of a work tree entry's bytes as they lie there."""
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode):
        return blob_id(os.readlink(path), object_format)
    digest = hashlib.new(object_format, b"blob %d\0" % info.st_size)
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest().encode("ascii")
