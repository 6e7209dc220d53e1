"""How many tokens a reply of the Messages API used, by its own ``usage`` fields, read as it goes by.

The stream is never held back or changed: a reader is shown each piece and keeps a bounded rest of it. Where
a stream ends before its last counts came (the agent hung up), each piece of content counts as the one token
that it is at least, and of a document that came in part each few bytes, so that hanging up early is not free.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from typing import Protocol

_FIELDS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
_MAX_EVENT = 64 << 10
_MAX_USAGE = 64 << 10
_MAX_KEY = 16
_MAX_TOKENS = 1 << 40
_BYTES_OF_A_TOKEN = 4

_NO_BRACKETS = re.compile(rb'[^"{}\[\]]*')
# Possessive: a text of many escapes must not be remembered for going back.
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)


class _Reader(Protocol):
    def feed(self, data: bytes) -> None:
        """Take the next piece."""


class UsageReader:
    """Reads along with one reply.

    :param content_type: of the reply: a stream of events, or one JSON document.
    """

    def __init__(self, content_type: bytes) -> None:
        self._counts = dict.fromkeys(_FIELDS, 0)
        self._known = False
        self._told = 0
        self._events: _Events | None = None
        self._document: _Document | None = None
        self._reader: _Reader | None = None
        match content_type.split(b";")[0].strip().lower():
            case b"text/event-stream":
                self._reader = self._events = _Events(self._found)
            case b"application/json":
                self._reader = self._document = _Document(self._found)
            case _:
                pass

    @property
    def tokens(self) -> int | None:
        """All that is known until now; None when the reply has said nothing yet."""
        return sum(self._counts.values()) if self._known else None

    def feed(self, data: bytes) -> int:
        """Take the next piece; return the tokens that became known by it."""
        if self._reader is not None:
            self._reader.feed(data)
        return self._news()

    def end(self) -> int:
        """Take the end, early or not; return the tokens that became known by it."""
        if self._events is not None and self._known:
            self._counts["output_tokens"] = max(self._counts["output_tokens"], self._events.pieces)
        if self._document is not None and not self._known and self._document.broken_off:
            # The usage stands behind the content, which somebody may have read until just before it.
            self._known = True
            self._counts["output_tokens"] = self._document.size // _BYTES_OF_A_TOKEN
        return self._news()

    def _news(self) -> int:
        before, self._told = self._told, sum(self._counts.values())
        return self._told - before

    def _found(self, usage: object) -> None:
        if not isinstance(usage, dict):
            return
        self._known = True
        for field in _FIELDS:
            value = usage.get(field)
            if type(value) is int and 0 <= value < _MAX_TOKENS:
                # What comes later includes what came before.
                self._counts[field] = max(self._counts[field], value)


class _Events:
    """Finds ``message_start`` and ``message_delta`` among server-sent events.

    :ivar pieces: of content whose tokens no event has counted yet.
    """

    def __init__(self, found: Callable[[object], None]) -> None:
        self.pieces = 0
        self._found = found
        self._line = bytearray()
        self._data = bytearray()
        self._too_long = False

    def feed(self, data: bytes) -> None:
        for line in data.splitlines(keepends=True):
            whole = line.endswith((b"\n", b"\r"))
            if len(self._line) + len(line) > _MAX_EVENT:
                self._too_long = True
            if not self._too_long:
                self._line += line
            if whole:
                self._take(bytes(self._line).rstrip(b"\r\n"))

    def _take(self, line: bytes) -> None:
        self._line.clear()
        if self._too_long:
            # No event of this size holds what is looked for; its other lines go with it.
            self._data.clear()
            self._too_long = False
        elif line.startswith(b"data:") and len(self._data) + len(line) <= _MAX_EVENT:
            self._data += line.removeprefix(b"data:") + b"\n"
        elif not line and self._data:
            self._dispatch(bytes(self._data))
            self._data.clear()

    def _dispatch(self, data: bytes) -> None:
        # In content both would be escaped; most events are neither, and are not parsed.
        if b'"content_block_delta"' in data:
            self.pieces += 1
        if b'"usage"' not in data:
            return
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            return
        if not isinstance(event, dict):
            return
        match event.get("type"):
            case "message_start" if isinstance(event.get("message"), dict):
                self._found(event["message"].get("usage"))
            case "message_delta":
                self.pieces = 0
                self._found(event.get("usage"))
            case _:
                pass


class _Document:
    """Finds the member ``usage`` of one JSON object, and keeps nothing else of it.

    :ivar size: of what came until now.
    """

    def __init__(self, found: Callable[[object], None]) -> None:
        self.size = 0
        self._found = found
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._string = b""
        self._between = b""
        self._usage: bytearray | None = None

    @property
    def broken_off(self) -> bool:
        """Its end did not come."""
        return self._depth > 0

    def feed(self, data: bytes) -> None:
        self.size += len(data)
        at = 0
        while at < len(data):
            start = at
            if self._in_string:
                at = self._in(data, at)
                self._keep(data[start:at])
            else:
                at = self._out(data, at)

    def _in(self, data: bytes, at: int) -> int:
        """Go through a string; return where it, or the piece, is over."""
        start = at
        at += self._escaped
        end = at if at > len(data) else _pattern_end(_STRING, data, at)
        self._escaped = False
        self._string = (self._string + data[start:end][:_MAX_KEY])[:_MAX_KEY]
        if end == len(data):
            return end
        if data[end : end + 1] == b'"':
            self._in_string = False
            self._between = b""
        else:
            # The escape's other half is in the next piece.
            self._escaped = True
        return end + 1

    def _out(self, data: bytes, at: int) -> int:
        """Go to the next bracket or string, and through it."""
        end = _pattern_end(_NO_BRACKETS, data, at)
        self._between = (self._between + data[at:end][:_MAX_KEY])[:_MAX_KEY]
        mark = data[end : end + 1]
        if mark == b"{" and self._depth == 1 and self._is_usage():
            self._usage = bytearray()
            self._keep(mark)
        else:
            self._keep(data[at : end + 1])
        if mark == b'"':
            self._in_string, self._string = True, b""
        elif mark:
            self._depth += 1 if mark in b"{[" else -1
            self._string = self._between = b""
        if self._usage is not None and self._depth == 1:
            self._parse()
        return end + 1

    def _is_usage(self) -> bool:
        return self._string == b"usage" and self._between.strip() == b":"

    def _keep(self, data: bytes) -> None:
        if self._usage is not None and len(self._usage) <= _MAX_USAGE:
            self._usage += data

    def _parse(self) -> None:
        usage, self._usage = bytes(self._usage or b""), None
        # Too large or malformed: then nothing is known.
        with contextlib.suppress(ValueError, RecursionError):
            self._found(json.loads(usage))


def _pattern_end(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    """Return where a pattern that always matches ends."""
    match = pattern.match(data, at)
    return match.end() if match else at
