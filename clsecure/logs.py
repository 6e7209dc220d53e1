"""Events: constants with fields, to people under ``--verbose`` and to one JSON file per session.

``log = logs.get("importer")`` and ``log.info("unit_admitted", path=…)`` cost an append; what was logged
before there is somewhere to write to is kept and written then, with its own time. structlog takes 100 ms to
import and is, to show events to a person. No value that was registered as a secret, and no field with the
name of one, is ever written.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clsecure.chain import ChainWriter, is_chained
from clsecure.errors import StateError
from clsecure.terminal import escape

if TYPE_CHECKING:
    from collections.abc import MutableMapping

REDACTED = "***"
_MAX_PENDING = 1000
_MIN_SECRET = 4  # shorter ones would redact half of every line, and are no secrets
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:key|token|secret|password|passwd|credentials?|authorization|cookie)$", re.IGNORECASE
)

_secrets: set[str] = set()
_pending: deque[_Event] = deque(maxlen=_MAX_PENDING)
_sinks: list[_Sink] = []


class _Event(NamedTuple):
    at: float
    level: str
    name: str
    event: str
    fields: Mapping[str, object]


class _Sink(NamedTuple):
    write: Callable[[bytes], None]
    processors: tuple[Callable[[Any, str, MutableMapping[str, Any]], Any], ...]


class Logger:
    """What a module logs with."""

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: str, **fields: object) -> None:
        """Log what only a developer wants."""
        _emit("debug", self._name, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Log what happened."""
        _emit("info", self._name, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log what should not be so."""
        _emit("warning", self._name, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Log what failed."""
        _emit("error", self._name, event, fields)


def get(name: str) -> Logger:
    """Return the logger of a room."""
    return Logger(name)


def register_secret(value: str) -> None:
    """Never write this value, wherever it turns up."""
    if len(value) >= _MIN_SECRET:
        _secrets.add(value)


def redact(value: object, *, name: str = "") -> object:
    """Return a value for a log: plain JSON types, without secrets."""
    if _SECRET_NAME.search(name):
        return REDACTED
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_redact_text(str(key)): redact(item, name=str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item) for item in value]
    if isinstance(value, bytes):
        return _redact_text(value.decode("utf-8", "backslashreplace"))
    return _redact_text(str(value))


def show(write: Callable[[bytes], None]) -> None:
    """Show every event to a person, one line each (``--verbose``).

    :param write: takes one whole line; what it raises as ``OSError`` is ignored.
    """
    import structlog

    # Columns are padded and never coloured; every text in them is escaped before.
    renderer = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=28)
    _add(_Sink(write=write, processors=(_redaction, _escaping, _clock, renderer)))


def record(path: Path) -> None:
    """Append every event to a file as one line of JSON, from now on until :func:`close`.

    Each line carries the hash of the one before, from run to run (:mod:`clsecure.chain`).

    :raises StateError: it can't be opened, or is not a private regular file of ours.
    """
    fd = _open(path)
    if not is_chained(fd):
        # Of a version that did not chain: kept beside, since nothing in it could be told from a change.
        os.close(fd)
        path.replace(path.with_name(f"{path.name}.old"))
        fd = _open(path)
    _add(_Sink(write=ChainWriter(fd), processors=(_redaction, _iso, _json)))


def close() -> None:
    """Write nothing any more, and close the files."""
    for sink in _sinks:
        if isinstance(sink.write, ChainWriter):
            sink.write.close()
    _sinks.clear()


def seen() -> Iterator[tuple[float, str, str, str]]:
    """Go through what this process logged: time, level, room and event; without fields, the newest 1000."""
    for event in _pending:
        yield event.at, event.level, event.name, event.event


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise StateError(f"the log {path} can't be written", details=error.strerror) from error
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
        os.close(fd)
        raise StateError(f"the log {path} is not a regular file of yours", resolution=f"rm {path}")
    os.fchmod(fd, 0o600)
    return fd


def _add(sink: _Sink) -> None:
    for event in _pending:
        _write(sink, event)
    _sinks.append(sink)


def _emit(level: str, name: str, event: str, fields: Mapping[str, object]) -> None:
    entry = _Event(time.time(), level, name, event, fields)
    # Kept besides, so that a file which is opened later starts at the beginning as well.
    _pending.append(entry)
    for sink in _sinks:
        _write(sink, entry)


def _write(sink: _Sink, event: _Event) -> None:
    fixed = {"at": event.at, "level": event.level, "logger": event.name, "event": event.event}
    line: Any = {**fixed, **event.fields, **fixed}  # ours stand first, and no field replaces them
    for processor in sink.processors:
        line = processor(None, event.level, line)
    # A full disk or a dead terminal must not end a session.
    with suppress(OSError):
        sink.write(f"{line}\n".encode("utf-8", "backslashreplace"))


def _redaction(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    del logger, method
    return {key: redact(value, name=key) for key, value in event.items()}


def _escaping(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    del logger, method
    # A renderer shows what is nested with repr(), which leaves bidi characters as they are.
    return {key: value if isinstance(value, float) else escape(str(value)) for key, value in event.items()}


def _iso(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    from datetime import UTC, datetime

    del logger, method
    at = datetime.fromtimestamp(event.pop("at"), UTC)
    return {"timestamp": at.isoformat(timespec="milliseconds"), **event}


def _json(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
    import json

    del logger, method
    return json.dumps(event)  # redacted values are plain


def _clock(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    del logger, method
    event["timestamp"] = time.strftime("%H:%M:%S", time.localtime(event.pop("at")))
    return event


def _redact_text(text: str) -> str:
    for secret in _secrets:
        text = text.replace(secret, REDACTED)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # JSON knows no lone surrogates
