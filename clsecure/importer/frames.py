"""The stream of the exporter, read as what it is: bytes that an enemy may have written.

Format: docs/architecture.md, "Out". Every line, count, size, type and wait is bounded; what is not exactly
as documented ends the import.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
import re
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, BinaryIO, NoReturn

from clsecure.errors import ImportRejectedError
from clsecure.terminal import escape

MIB = 1 << 20
MAX_LINE = 65536
_BLOCK = MIB
_OBJECT_ID = re.compile(r"\A(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")
_OID = re.compile(r"\A[0-9a-f]{64}\Z")
_MAX_COUNT = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportLimits:
    """What one import may cost. Sizes in bytes, times in seconds.

    :param max_pack_bytes: all packs together, as they arrive.
    :param max_lfs_bytes: all LFS objects together.
    :param max_records: records of the stream.
    :param deadline_s: the whole stream.
    :param max_objects: objects of one pack.
    :param max_blob_bytes, max_tree_bytes, max_commit_bytes: one object, inflated.
    :param max_inflated_bytes: all objects of one pack, inflated.
    :param max_tree_entries: one tree with all that is below it, as a checkout would write it.
    :param judge_s: the examination of what arrived.
    :param memory: one git process.
    :param reserve_bytes: what stays free on the disk.
    """

    max_pack_bytes: int = 4096 * MIB
    max_lfs_bytes: int = 16384 * MIB
    max_records: int = 100_000
    deadline_s: float = 900.0
    max_objects: int = 4_000_000
    max_blob_bytes: int = 2047 * MIB
    max_tree_bytes: int = 64 * MIB
    max_commit_bytes: int = MIB
    max_inflated_bytes: int = 32768 * MIB
    max_tree_entries: int = 2_000_000
    judge_s: float = 900.0
    memory: int = 2048 * MIB
    reserve_bytes: int = 256 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRecord:
    """What the exporter claims of one repository. Paths and names of refs are raw bytes."""

    path: bytes
    tip: str
    uncommitted: str | None
    tree: str | None
    rewritten: bool
    unborn: bool
    absent: bool
    other_refs: tuple[tuple[bytes, str], ...]
    refused: tuple[tuple[bytes, str], ...]
    refused_more: int
    untracked: int
    deleted: int
    ignored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRecord:
    """A pack follows."""

    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LfsRecord:
    """The content of an LFS object follows."""

    oid: str
    size: int


Record = UnitRecord | PackRecord | LfsRecord


@dataclass(slots=True)
class RecordReader:
    """Reads records one by one; the bytes of one are taken with :meth:`copy` before the next.

    :param stream: a pipe from which nothing has been read yet (its descriptor is polled), or a BytesIO.
    """

    stream: BinaryIO
    limits: ExportLimits
    home_size: int | None = None
    """What the home takes on the disk, as the end of the stream claims; None when unknown."""
    _fd: int | None = None
    _rest: bytes = b""
    _due: int = 0
    _pack_left: int = field(init=False)
    _lfs_left: int = field(init=False)
    _deadline: float = field(init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._pack_left = self.limits.max_pack_bytes
        self._lfs_left = self.limits.max_lfs_bytes
        self._deadline = time.monotonic() + self.limits.deadline_s
        try:
            self._fd = self.stream.fileno()
        except (io.UnsupportedOperation, AttributeError):
            self._fd = None

    def records(self) -> Iterator[Record]:
        """Yield the records up to ``end``.

        :raises ImportRejectedError: the stream is malformed, cut off, too large or too slow, or the exporter
            reports an error.
        """
        units = 0
        for _ in range(self.limits.max_records):
            if self._due:
                reject("the bytes of a record were not read")
            fields = self._line()
            kind, size = fields.get("type"), _count(fields, "size")
            match kind:
                case "unit":
                    units += 1
                    if size:
                        reject("a unit record has no bytes")
                    yield _unit(fields)
                case "pack":
                    self._pack_left = self._expect(size, self._pack_left, "packs")
                    yield PackRecord(size=size)
                case "lfs":
                    self._lfs_left = self._expect(size, self._lfs_left, "LFS objects")
                    yield LfsRecord(oid=_string(fields, "oid", _OID), size=size)
                case "error":
                    _error(fields)
                case "end":
                    if size or _count(fields, "units") != units:
                        reject("the end record does not agree with the stream")
                    if fields.get("home_size") is not None:
                        self.home_size = _count(fields, "home_size")
                    return
                case _:
                    reject("a record of unknown type")
        reject(f"more than {self.limits.max_records} records")

    def _expect(self, size: int, left: int, what: str) -> int:
        if size > left:
            reject(f"the {what} are larger than allowed")
        self._due = size
        return left - size

    def copy(self, target: IO[bytes] | None) -> Iterator[bytes]:
        """Yield the bytes of the current record, writing them to ``target`` as well."""
        while self._due:
            chunk = self._some(min(self._due, _BLOCK))
            self._due -= len(chunk)
            if target is not None:
                target.write(chunk)
            yield chunk

    def _some(self, size: int) -> bytes:
        if self._rest:
            chunk, self._rest = self._rest[:size], self._rest[size:]
            return chunk
        chunk = self._read(size)
        if not chunk:
            reject("the stream ends early")
        return chunk

    def _read(self, size: int) -> bytes:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            reject(f"the stream did not end within {self.limits.deadline_s:g} s")
        if self._fd is None:
            return self.stream.read(size)
        poll = select.poll()
        poll.register(self._fd, select.POLLIN | select.POLLHUP)
        if not poll.poll(int(remaining * 1000) + 1):
            reject(f"the stream did not end within {self.limits.deadline_s:g} s")
        return os.read(self._fd, size)

    def _line(self) -> dict[str, object]:
        data = self._rest
        while b"\n" not in data[:MAX_LINE]:
            if len(data) >= MAX_LINE:
                reject("a line is too long")
            chunk = self._read(MAX_LINE)
            if not chunk:
                reject("the stream ends early")
            data += chunk
        line, _, self._rest = data.partition(b"\n")
        try:
            fields = json.loads(line.decode("ascii"), object_pairs_hook=_unique, parse_constant=_constant)
        except (ValueError, RecursionError) as error:
            raise ImportRejectedError("the export is malformed", details="a line is no JSON") from error
        if not isinstance(fields, dict):
            reject("a record is no object")
        return fields


def reject(why: str) -> NoReturn:
    """End the import: the stream is not as it has to be."""
    raise ImportRejectedError("the export is malformed", details=why)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(name)


def _error(fields: dict[str, object]) -> NoReturn:
    message = fields.get("message")
    raise ImportRejectedError(
        "the agent's work can't be exported",
        details=escape(message[:4000], keep_newlines=True) if isinstance(message, str) else None,
        resolution="Look at it inside the sandbox (resume the session with --shell); it is kept",
    )


def _count(fields: dict[str, object], key: str) -> int:
    value = fields.get(key)
    if type(value) is not int or not 0 <= value <= _MAX_COUNT:
        reject(f"{key} is no count")
    return value


def _flag(fields: dict[str, object], key: str) -> bool:
    value = fields.get(key, False)
    if type(value) is not bool:
        reject(f"{key} is neither true nor false")
    return value


def _string(fields: dict[str, object], key: str, pattern: re.Pattern[str]) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not pattern.match(value):
        reject(f"{key} is malformed")
    return value


def _id_or_none(fields: dict[str, object], key: str) -> str | None:
    return None if fields.get(key) is None else _string(fields, key, _OBJECT_ID)


def _raw(fields: dict[str, object], key: str) -> bytes:
    value = fields.get(key)
    if not isinstance(value, str):
        reject(f"{key} is malformed")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImportRejectedError("the export is malformed", details=f"{key} is no base64") from error


def _list(fields: dict[str, object], key: str, most: int) -> list[dict[str, object]]:
    value = fields.get(key)
    if not isinstance(value, list) or len(value) > most or not all(isinstance(item, dict) for item in value):
        reject(f"{key} is malformed")
    return value


def _unit(fields: dict[str, object]) -> UnitRecord:
    refused = []
    for item in _list(fields, "refused", 10_000):
        why = item.get("why")
        if not isinstance(why, str) or len(why) > 500:
            reject("a reason is malformed")
        refused.append((_raw(item, "path"), why))
    return UnitRecord(
        path=_raw(fields, "path"),
        tip=_string(fields, "tip", _OBJECT_ID),
        uncommitted=_id_or_none(fields, "uncommitted"),
        tree=_id_or_none(fields, "tree"),
        rewritten=_flag(fields, "rewritten"),
        unborn=_flag(fields, "unborn"),
        absent=_flag(fields, "absent"),
        other_refs=tuple(
            (_raw(item, "name"), _string(item, "id", _OBJECT_ID)) for item in _list(fields, "other_refs", 100)
        ),
        refused=tuple(refused),
        refused_more=_count(fields, "refused_more"),
        untracked=_count(fields, "untracked"),
        deleted=_count(fields, "deleted"),
        ignored=_count(fields, "ignored"),
    )
