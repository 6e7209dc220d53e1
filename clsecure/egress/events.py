"""What went out: one JSON line per request, and the totals. Never a body, never a secret.

Lines are told apart by ``event``: ``request`` for what went out or was refused, written when it is over;
``opened`` for a tunnel that begins; ``asked`` for what the gateway answered about itself; ``allowed`` for a
host that the user allowed meanwhile; ``budget`` for one that is nearly or wholly used up; ``log_full`` where
the requests end for want of room. :mod:`clsecure.egress.journal` adds ``session`` where a run begins.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from clsecure.egress.tally import Tally, printable
from clsecure.egress.wire import EgressTotals

_MAX_TEXT = 512
_RESERVE = 256 << 10
_TOTALS_ONLY = "what was asked for after that is in the totals only"
HIDDEN = "[hidden]"


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request while it is under way; what is known of it grows."""

    method: str = "-"
    host: str = "-"
    """The target's name or address, canonical where it could be read; ``-`` where none was said."""

    port: int = 0
    path: str = "-"
    status: int | None = None
    """As sent to the agent; None when it hung up before an answer."""

    decision: str = "deny"
    rule: str = "malformed"
    reason: str | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    tokens: int | None = None
    """As the API's own usage fields say; None where they were not read."""

    counted: bool = True
    """Asks for something outside; what the gateway answers about itself is only written down."""

    tunnel: int | None = None
    """Number of a tunnel whose opening has a line of its own; given by :meth:`EventLog.opened`."""

    started: float = field(default_factory=time.monotonic)


class EventLog:
    """Writes the lines and adds up.

    :param path: made with mode 0600 where it is missing; a symbolic link there is refused.
    :param max_size: bytes of this run; the requests after that are dropped, the totals stay right.
    :param secrets: strings that are hidden wherever an agent might have put them.
    """

    def __init__(self, path: Path | None, *, max_size: int, secrets: tuple[str, ...]) -> None:
        self._descriptor: int | None = None
        self._left = max_size
        self._reserve = _RESERVE
        self._secrets = tuple(secret for secret in secrets if secret)
        self._tally = Tally()
        self._tunnels = 0
        if path is not None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o600)

    @property
    def totals(self) -> EgressTotals:
        """What went through until now; requests under way come when they are over."""
        return self._tally.totals()

    def opened(self, exchange: Exchange) -> None:
        """Write that a tunnel was allowed: it may last as long as the session, and its line comes last."""
        self._tunnels += 1
        exchange.tunnel = self._tunnels
        self._write({**_now("opened"), **self._target(exchange), "tunnel": exchange.tunnel})

    def record(self, exchange: Exchange) -> None:
        """Count a request that is over, and write its line."""
        if exchange.counted:
            self._count(exchange)
        self._write(
            {
                **_now("request" if exchange.counted else "asked"),
                **self._target(exchange),
                "path": self._clean(exchange.path),
                "status": exchange.status,
                "decision": exchange.decision,
                "rule": exchange.rule,
                "reason": exchange.reason,
                "bytes_in": exchange.bytes_in,
                "bytes_out": exchange.bytes_out,
                "duration_ms": round((time.monotonic() - exchange.started) * 1000, 1),
                "tokens": exchange.tokens,
                **({} if exchange.tunnel is None else {"tunnel": exchange.tunnel}),
            }
        )

    def note(self, event: str, **fields: object) -> None:
        """Write a line about something else than a request; a log that is full still takes some."""
        line = _encode({**_now(event), **fields})
        if self._left <= 0:
            self._reserve -= len(line)
        if self._left > 0 or self._reserve > 0:
            self._append(line)

    def warn(self, text: str) -> None:
        """Keep a sentence that the user should hear with the totals."""
        self._tally.warn(text)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _count(self, exchange: Exchange) -> None:
        self._tally.add(
            self._clean(exchange.host),
            exchange.port,
            denied=exchange.decision == "deny",
            bytes_in=exchange.bytes_in,
            bytes_out=exchange.bytes_out,
            tokens=exchange.tokens,
        )

    def _target(self, exchange: Exchange) -> dict[str, object]:
        return {
            "host": printable(self._clean(exchange.host)),
            "port": exchange.port,
            "method": self._clean(exchange.method),
        }

    def _write(self, event: dict[str, object]) -> None:
        if self._left <= 0:
            return
        line = _encode(event)
        self._left -= len(line)
        if self._left <= 0:
            self.warn(f"the network log is full; {_TOTALS_ONLY}")
            line = _encode({"event": "log_full"})
        self._append(line)

    def _append(self, line: bytes) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, line)
        except OSError as error:
            # A full disk must not end the session; the totals are kept in memory.
            self._left = self._reserve = 0
            why = error.strerror or "unknown error"
            self.warn(f"the network log can't be written ({why}); {_TOTALS_ONLY}")

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def _now(event: str) -> dict[str, object]:
    return {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}


def _encode(event: dict[str, object]) -> bytes:
    # ASCII only: whatever an agent put into a path is an escape here, not a control character.
    return json.dumps(event).encode("ascii") + b"\n"
