"""Reading a gateway's log: what a session asked for, in its last run or in all of them.

The file belongs to the user and only their gateways write it, but every text in its lines is an agent's:
whoever shows one escapes it.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clsecure.egress.rules import NOT_ALLOWED
from clsecure.errors import EgressError

MAX_LINE = 64 << 10
"""The gateway's own lines are much shorter; what is longer is skipped."""

_CHUNK = 256 << 10
_RUN = b'{"event": "session", '


OPEN = "open"
"""The decision of a tunnel that was allowed and is not over: it has two lines, and counts with the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line: a request that is over, or a tunnel that was opened.

    :param time: as the gateway wrote it, ISO 8601 in UTC.
    :param host: of the target, ``-`` where none could be read.
    :param port: of the target, 0 where none could be read.
    :param status: as sent to the agent; None when it hung up before an answer.
    :param decision: ``allow``, ``deny`` or :data:`OPEN`.
    """

    time: str
    method: str
    host: str
    port: int
    path: str
    status: int | None
    decision: str
    rule: str
    reason: str | None
    bytes_in: int
    bytes_out: int
    duration_ms: float

    @property
    def denied(self) -> bool:
        """It was refused."""
        return self.decision == "deny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """One line of the gateway's own: a budget that is nearly used up, a host that the user allowed."""

    time: str
    text: str


def begin_run(path: Path, session_id: str) -> None:
    """Mark where a run begins: a session that is gone on with appends to the same file.

    :raises EgressError: the file can't be written.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            # A full disk may have cut the last line.
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            line = _RUN + json.dumps({"session_id": session_id}).encode("ascii")[1:] + b"\n"
            os.write(descriptor, b"\n" + line if torn else line)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise EgressError("The network log can't be written", details=str(error)) from error


class Journal:
    """The log of one session; a context manager that closes it.

    :param every_run: from the beginning, not only from the last run on.
    """

    def __init__(self, path: Path, *, every_run: bool = False) -> None:
        self._path, self._every_run = path, every_run
        self._descriptor = -1
        self._rest = b""
        self.full = False
        """The gateway reached the log's bound: later requests are in its totals only."""

    def __enter__(self) -> Journal:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def requests(self) -> Iterator[Entry]:
        """Go through the requests among what was added since the last time.

        :raises EgressError: the log can't be read.
        """
        return (line for line in self.read() if isinstance(line, Entry) and line.decision != OPEN)

    def read(self) -> Iterator[Entry | Remark]:
        """Go through what was added since the last time; nothing where there is no log (yet).

        :raises EgressError: it can't be read.
        """
        try:
            if self._descriptor < 0 and not self._open():
                return
            while data := os.read(self._descriptor, _CHUNK):
                yield from self._lines(data)
        except OSError as error:
            raise EgressError("The network log can't be read", details=str(error)) from error

    def _open(self) -> bool:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._descriptor = os.open(self._path, flags)
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise EgressError("The network log is not a regular file", details=str(self._path))
        if not self._every_run:
            os.lseek(self._descriptor, _last_run(self._descriptor), os.SEEK_SET)
        return True

    def _lines(self, data: bytes) -> Iterator[Entry | Remark]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            # Its end will be no line of ours either.
            self._rest = self._rest[:MAX_LINE]
        for line in lines:
            if line and len(line) < MAX_LINE:
                entry = self._entry(line)
                if entry is not None:
                    yield entry

    def _entry(self, line: bytes) -> Entry | Remark | None:
        """Return what a line says; None for what nobody wants to see, and for what is no line of ours."""
        try:
            fields = json.loads(line)
            self.full = self.full or fields["event"] == "log_full"
            return _parsed(fields)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None


def _parsed(fields: dict[str, Any]) -> Entry | Remark | None:
    if fields["event"] == "opened":
        unknown = {
            "path": "-",
            "status": None,
            "reason": None,
            "bytes_in": 0,
            "bytes_out": 0,
            "duration_ms": 0,
        }
        return _entry({**unknown, **fields, "decision": OPEN, "rule": "allowed"})
    if fields["event"] == "request":
        return _entry(fields)
    if fields["event"] == "allowed":
        return Remark(time=str(fields["time"]), text=f"the user allowed {fields['host']}")
    return Remark(time=str(fields["time"]), text=str(fields["text"])) if "text" in fields else None


def _entry(fields: dict[str, Any]) -> Entry:
    status, reason = fields["status"], fields["reason"]
    return Entry(
        time=str(fields["time"]),
        method=str(fields["method"]),
        # The first versions of the log had neither.
        host=str(fields.get("host", "-")),
        port=int(fields.get("port", 0)),
        path=str(fields["path"]),
        status=None if status is None else int(status),
        decision=str(fields["decision"]),
        rule=str(fields["rule"]),
        reason=None if reason is None else str(reason),
        bytes_in=int(fields["bytes_in"]),
        bytes_out=int(fields["bytes_out"]),
        duration_ms=float(fields["duration_ms"]),
    )


def _last_run(descriptor: int) -> int:
    """Return where the last run begins; 0 where no line says so."""
    mark = b"\n" + _RUN
    at = os.fstat(descriptor).st_size
    tail = b""
    while at > 0:
        size = min(_CHUNK, at)
        at -= size
        block = os.pread(descriptor, size, at)
        found = (block + tail).rfind(mark)
        if found >= 0:
            return at + found + 1
        tail = block[: len(mark) - 1]
    return 0


@dataclass(slots=True, kw_only=True)
class Denials:
    """What was refused, added up.

    :param hosts: targets that nothing allowed, which the user could allow. Names are the agent's.
    :param rules: everything else that was refused, by the gateway's name of the rule.
    """

    hosts: Counter[tuple[str, int]] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)


def denials(entries: Iterable[Entry]) -> Denials:
    """Add up what was refused."""
    found = Denials()
    for entry in entries:
        if not entry.denied:
            continue
        if entry.rule == NOT_ALLOWED:
            found.hosts[entry.host, entry.port] += 1
        else:
            found.rules[entry.rule] += 1
    return found
