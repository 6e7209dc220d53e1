"""Reading a directory of the user's for the worker: bounded, and along no link that leaves it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A FIFO must not make us wait.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# Names under which people keep credentials, or what is no part of a text tree.
_UNWANTED = re.compile(
    r"\.git|\.hg|\.svn|node_modules|__pycache__|\.venv|\.env(\..*)?|\.envrc|\.netrc|\.npmrc|\.pypirc|\.ssh|\.aws"
    r"|\.?credentials?(\..*)?|.*\.(pem|key|p12|pfx|kdbx|keystore|jks|sqlite3?|db|log)|id_(rsa|dsa|ecdsa|ed25519)(\..*)?"
    r"|.*\.jsonl",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of a tree is read."""

    max_file: int = 4 << 20
    max_total: int = 32 << 20
    max_files: int = 2000
    max_entries: int = 20_000
    max_depth: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """One file: its path below the root, its content, and whether its owner may execute it."""

    path: PurePosixPath
    data: bytes
    executable: bool


@dataclass(slots=True, kw_only=True)
class TreeReader:
    """Reads named entries of one directory.

    :param root: followed when it is a link itself: that is the user's own choice.
    :param allowed: names directly below the root that may be read; a link may lead from one to another of
        them and nowhere else.
    """

    root: Path
    allowed: frozenset[str]
    limits: Limits = field(default_factory=Limits)
    left_out: list[str] = field(default_factory=list)
    _total: int = 0
    _files: int = 0
    _entries: int = 0

    def __post_init__(self) -> None:
        """Fix the root, so that links are judged against where it really is."""
        self.root = Path(os.path.realpath(self.root))

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes | None:
        """Return one file directly below the root, None when it is missing or can't come along."""
        if name not in self.allowed:
            raise ValueError(name)
        for found in self._entry(PurePosixPath(name), PurePosixPath(name), depth=0, seen=()):
            if found.path == PurePosixPath(name):
                if max_bytes is not None and len(found.data) > max_bytes:
                    self.left_out.append(f"{name}: larger than {max_bytes} bytes")
                    return None
                return found.data
        return None

    def walk(self, name: str) -> Iterator[FoundFile]:
        """Yield the files of one entry directly below the root, sorted by path."""
        if name not in self.allowed:
            raise ValueError(name)
        yield from self._entry(PurePosixPath(name), PurePosixPath(name), depth=0, seen=())

    def _entry(
        self, shown: PurePosixPath, real: PurePosixPath, *, depth: int, seen: tuple[tuple[int, int], ...]
    ) -> Iterator[FoundFile]:
        """Yield what is at ``real`` under the name ``shown``; both are relative to the root."""
        self._entries += 1
        if self._entries > self.limits.max_entries or depth > self.limits.max_depth:
            self._once("the tree is too large or too deep; the rest of it")
            return
        status = self._status(real)
        if status is None:
            return
        if stat.S_ISLNK(status.st_mode):
            target = self._target(real)
            if target is None:
                self.left_out.append(f"{shown}: a link that leads elsewhere")
                return
            real = target
            status = self._status(real)
            if status is None:
                return
        if stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            if identity not in seen:
                yield from self._directory(shown, real, depth=depth, seen=(*seen, identity))
        elif stat.S_ISREG(status.st_mode):
            found = self._file(shown, real)
            if found is not None:
                yield found
        else:
            self.left_out.append(f"{shown}: not a regular file")

    def _directory(
        self, shown: PurePosixPath, real: PurePosixPath, *, depth: int, seen: tuple[tuple[int, int], ...]
    ) -> Iterator[FoundFile]:
        directory = self._open(real, _DIRECTORY)
        if directory is None:
            return
        try:
            names = sorted(os.listdir(directory))  # noqa: PTH208  # a descriptor
        finally:
            os.close(directory)
        for name in names:
            if _UNWANTED.fullmatch(name):
                if not name.startswith("."):
                    self.left_out.append(f"{shown / name}: may hold credentials, or is no text")
                continue
            yield from self._entry(shown / name, real / name, depth=depth + 1, seen=seen)

    def _file(self, shown: PurePosixPath, real: PurePosixPath) -> FoundFile | None:
        descriptor = self._open(real, _FILE)
        if descriptor is None:
            self.left_out.append(f"{shown}: can't be read")
            return None
        with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None
            data = file.read(self.limits.max_file + 1)
        if len(data) > self.limits.max_file:
            self.left_out.append(f"{shown}: larger than {self.limits.max_file} bytes")
            return None
        if self._files >= self.limits.max_files or self._total + len(data) > self.limits.max_total:
            self._once("more files than can come along; the rest of them")
            return None
        self._files += 1
        self._total += len(data)
        return FoundFile(path=shown, data=data, executable=bool(status.st_mode & stat.S_IXUSR))

    def _target(self, link: PurePosixPath) -> PurePosixPath | None:
        """Return where a link leads, relative to the root, None when that is no place to read from."""
        try:
            path = Path(os.path.realpath(self.root / link, strict=True)).relative_to(self.root)
        except (OSError, ValueError):
            return None
        if not path.parts or path.parts[0] not in self.allowed:
            return None
        if any(_UNWANTED.fullmatch(part) for part in path.parts):
            return None
        return PurePosixPath(path)

    def _status(self, path: PurePosixPath) -> os.stat_result | None:
        parent = self._open(path.parent, _DIRECTORY)
        if parent is None:
            return None
        try:
            return os.stat(path.name, dir_fd=parent, follow_symlinks=False)
        except OSError:
            return None
        finally:
            os.close(parent)

    def _open(self, path: PurePosixPath, flags: int) -> int | None:
        """Open a path below the root, no component of which may be a link."""
        try:
            current = os.open(self.root, _DIRECTORY)
        except OSError:
            return None
        for index, part in enumerate(path.parts):
            last = index == len(path.parts) - 1
            try:
                following = os.open(part, flags if last else _DIRECTORY, dir_fd=current)
            except OSError:
                return None
            finally:
                with suppress(OSError):
                    os.close(current)
            current = following
        return current

    def _once(self, line: str) -> None:
        if line not in self.left_out:
            self.left_out.append(line)
