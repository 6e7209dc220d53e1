"""A file of JSON lines in which each carries the hash of the line before, so that nobody changes one alone.

``{"prev": "<sha256 of the line before, without its line feed>", …}``; the first one has zeros there. Several
processes may append. A line that a full disk or a power cut tore stays where it is: the line after it says so
(``log_resumed``) and holds the hash of the whole file up to there (``whole``), so the chain goes on.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

GENESIS = "0" * 64
RESUMED = "log_resumed"
MAX_LINE = 1 << 20
MAX_FILE = 256 << 20
_PREVIOUS = re.compile(rb'\{"prev": "([0-9a-f]{64})"[,}]')
_BLOCK = 64 << 10
_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """How far a chain had come: all of it is bound by these two.

    :param lines: whole lines, torn ones in the middle included.
    :param sha256: of the last of them, without its line feed.
    """

    lines: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """What a look at a chain came to.

    :param broken: number of the first line that does not hold, from 1 on; None where all do.
    :param why: what is wrong with it.
    :param torn: lines that were torn when they were written, and noted as such by the one that followed.
    """

    head: Head
    broken: int | None = None
    why: str = ""
    torn: tuple[int, ...] = ()


class ChainWriter:
    """Appends whole lines to a descriptor that is open for reading and appending."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = -1  # at the end of our own last line; another one means that somebody else has written
        self._previous = GENESIS
        self._lost = 0

    def __call__(self, line: bytes) -> None:
        """Append one JSON object with fields, given as a line.

        :raises OSError: it could not be written whole; the next one that can says how many were lost.
        """
        with self._locked():
            size = os.fstat(self._fd).st_size
            # From the end of the last line on: where somebody's line is torn, ours begins after it.
            torn = size != self._size and self._find_end(size)
            data = self._resumed(size, torn=torn) + self._linked(line)
            self._size = -1
            self._lost += 1
            written = os.write(self._fd, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size, self._lost = size + written, 0

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        deadline = time.monotonic() + _PATIENCE_S
        try:
            while True:
                try:
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.002)
            try:
                yield
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        except BlockingIOError:
            self._lost += 1
            raise

    def _linked(self, line: bytes) -> bytes:
        if len(line) > MAX_LINE - 100:
            line = b'{"event": "log_line_too_long", "size": %d}\n' % len(line)
        linked = b'{"prev": "%s", %s' % (self._previous.encode(), line.removeprefix(b"{"))
        self._previous = _sha256(linked.removesuffix(b"\n"))
        return linked

    def _resumed(self, size: int, *, torn: bool) -> bytes:
        """Return what has to be said before the next line, where something was lost."""
        if not torn and not self._lost:
            return b""
        now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        note: dict[str, object] = {"timestamp": now, "level": "warning", "logger": "log", "event": RESUMED}
        note["lost"] = self._lost
        end = b"\n" if torn else b""
        if torn:
            note["whole"] = _sha256_of_file(self._fd, size, end)
        return end + self._linked(json.dumps(note).encode("ascii") + b"\n")

    def _find_end(self, size: int) -> bool:
        """Learn the hash of the last line; tell whether it is torn."""
        if size == 0:
            self._previous = GENESIS
            return False
        tail, at = b"", size
        while at and b"\n" not in tail[:-1] and len(tail) <= 2 * MAX_LINE:
            start = max(0, at - _BLOCK)
            tail, at = os.pread(self._fd, at - start, start) + tail, start
        torn = not tail.endswith(b"\n")
        self._previous = _sha256(tail.removesuffix(b"\n").rpartition(b"\n")[2])
        return torn


def is_chained(fd: int) -> bool:
    """Tell whether a file is empty or begins as a chain does."""
    start = os.pread(fd, 100, 0)
    return not start or _PREVIOUS.match(start) is not None


def verify(stream: BinaryIO, *, known: Head | None = None) -> ChainReport:
    """Look through a chain from its beginning.

    :param known: what it must hold: the line of that number must be there, and have that hash. Without it
        nobody can tell whether the last line was changed or lines were taken from the end.
    """
    look = _Look()
    for line in _lines(stream):
        look.take(line)
        if known is not None and look.number == known.lines and look.sha256 != known.sha256:
            look.fail(look.number, "it is not the line that the record names")
        if look.broken is not None:
            break
    look.finish()
    if look.broken is None and known is not None and look.number < known.lines:
        look.fail(look.number + 1, f"it is missing: the record names {known.lines} lines")
    return ChainReport(
        head=Head(lines=look.number, sha256=look.sha256),
        broken=look.broken,
        why=look.why,
        torn=tuple(look.torn),
    )


class _Look:
    """The state of one look through a chain."""

    def __init__(self) -> None:
        self.number, self.sha256 = 0, GENESIS
        self.broken: int | None = None
        self.why = ""
        self.torn: list[int] = []
        self._open: list[tuple[int, str]] = []  # lines that only a note of their being torn can explain
        self._whole = hashlib.sha256()

    def fail(self, number: int, why: str) -> None:
        self.broken, self.why = number, why

    def take(self, line: bytes) -> None:
        """Take the next line, with its line feed; without one it is the last, and torn."""
        if not line.endswith(b"\n") and len(line) <= MAX_LINE:
            self.torn.append(self.number + 1)  # the writer ended in the midst of it, and nobody went on
            return
        self.number += 1
        body = line.removesuffix(b"\n")
        found = _PREVIOUS.match(body)
        follows = found is not None and found[1].decode() == self.sha256
        if follows and self._explains(body):
            self.torn += [number for number, _ in self._open] or [self.number - 1]
            self._open.clear()
        elif follows and not self._open and _is_json(body):
            pass
        elif follows and self._open:
            self.fail(*self._open[0])
        else:
            why = "it does not follow the line before" if found else "it is no line of this log"
            self._open.append((self.number, why))
        self._whole.update(line)
        self.sha256 = _sha256(body)

    def finish(self) -> None:
        if self.broken is None and self._open:
            self.fail(*self._open[0])

    def _explains(self, body: bytes) -> bool:
        """Tell whether a line notes, and binds by the hash of all before it, that the one before is torn."""
        if f'"event": "{RESUMED}"'.encode() not in body:
            return False
        try:
            return bool(json.loads(body).get("whole") == self._whole.hexdigest())
        except ValueError:
            return False


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    total = 0
    while line := stream.readline(2 * MAX_LINE):
        total += len(line)
        if total > MAX_FILE:
            return
        yield line


def _is_json(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except ValueError:
        return False


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sha256_of_file(fd: int, size: int, more: bytes) -> str:
    digest, at = hashlib.sha256(), 0
    while at < size and (block := os.pread(fd, min(_BLOCK, size - at), at)):
        digest.update(block)
        at += len(block)
    digest.update(more)
    return digest.hexdigest()
