"""What went out: one JSON line per request, and the totals. Never a body, never a secret."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from clsecure.egress.wire import EgressTotals

_MAX_TEXT = 512
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
    started: float = field(default_factory=time.monotonic)


class EventLog:
    """Writes the lines and adds up.

    :param path: made with mode 0600 where it is missing; a symbolic link there is refused.
    :param max_size: bytes of this run; the lines after that are dropped, the totals stay right.
    :param secrets: strings that are hidden wherever an agent might have put them.
    """

    def __init__(self, path: Path | None, *, max_size: int, secrets: tuple[str, ...]) -> None:
        self._descriptor: int | None = None
        self._left = max_size
        self._secrets = tuple(secret for secret in secrets if secret)
        self.totals = EgressTotals()
        if path is not None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o600)

    def record(self, exchange: Exchange) -> None:
        """Write the line of a request that is over."""
        totals = self.totals
        self.totals = EgressTotals(
            requests=totals.requests + 1,
            denied=totals.denied + (exchange.decision == "deny"),
            bytes_in=totals.bytes_in + exchange.bytes_in,
            bytes_out=totals.bytes_out + exchange.bytes_out,
        )
        self._write(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "event": "request",
                "host": self._clean(exchange.host),
                "port": exchange.port,
                "method": self._clean(exchange.method),
                "path": self._clean(exchange.path),
                "status": exchange.status,
                "decision": exchange.decision,
                "rule": exchange.rule,
                "reason": exchange.reason,
                "bytes_in": exchange.bytes_in,
                "bytes_out": exchange.bytes_out,
                "duration_ms": round((time.monotonic() - exchange.started) * 1000, 1),
            }
        )

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, event: dict[str, object]) -> None:
        if self._descriptor is None or self._left <= 0:
            return
        # ASCII only: whatever an agent put into a path is an escape here, not a control character.
        line = json.dumps(event).encode("ascii") + b"\n"
        self._left -= len(line)
        if self._left <= 0:
            line = json.dumps({"event": "log_full"}).encode("ascii") + b"\n"
        try:
            os.write(self._descriptor, line)
        except OSError:
            # A full disk must not end the session; the totals are kept in memory.
            self._left = 0

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
