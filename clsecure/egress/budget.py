"""How much of its budget a session has used, and what it is told when that is all."""

from __future__ import annotations

from typing import Literal

from clsecure.egress.events import EventLog
from clsecure.egress.rules import Denial, deny
from clsecure.policy import Budget

What = Literal["requests", "bytes", "tokens"]

NEARLY = 0.9
RULE = "budget"


class Meter:
    """Counts against a budget, while requests are under way; what is denied for other reasons is not counted.

    Tokens are known when they are spent: the reply that goes beyond is delivered, the next request refused.
    Bytes never go beyond: a body or a piece of a tunnel that does not fit is not passed on.
    """

    def __init__(self, budget: Budget, log: EventLog) -> None:
        self._log = log
        self._limits: dict[What, int | None] = {
            "requests": budget.requests,
            "bytes": budget.bytes,
            "tokens": budget.tokens,
        }
        self._used: dict[What, int] = dict.fromkeys(self._limits, 0)
        self._told: dict[What, float] = dict.fromkeys(self._limits, 0.0)

    def request(self) -> Denial | None:
        """Count a request that nothing else refuses, unless some budget is used up."""
        for what, limit in self._limits.items():
            if limit is not None and (self._told[what] >= 1.0 or self._used[what] >= limit):
                return self._denial(what)
        self._add("requests", 1)
        return None

    def take_bytes(self, size: int) -> bool:
        """Count bytes before they are passed on; return False, and count none, when they don't fit."""
        limit = self._limits["bytes"]
        if limit is not None and self._used["bytes"] + size > limit:
            self._tell("bytes", share=1.0)
            return False
        self._add("bytes", size)
        return True

    def add_tokens(self, count: int) -> None:
        """Count tokens as they become known."""
        self._add("tokens", count)

    def refused_bytes(self) -> Denial:
        """Return what to answer when bytes did not fit."""
        return self._denial("bytes")

    def state(self) -> dict[str, dict[str, int | None]]:
        """Return what is used of what, for people and agents."""
        return {what: {"used": self._used[what], "limit": limit} for what, limit in self._limits.items()}

    def _add(self, what: What, count: int) -> None:
        self._used[what] += count
        limit = self._limits[what]
        if limit is None:
            return
        if self._used[what] >= limit:
            self._tell(what, share=1.0)
        elif self._used[what] >= limit * NEARLY:
            self._tell(what, share=NEARLY)

    def _tell(self, what: What, *, share: float) -> None:
        """Say once that a budget is nearly or wholly used up."""
        if self._told[what] >= share:
            return
        self._told[what] = share
        size = self._size(what)
        text = (
            f"the budget of {size} is used up: further requests of the session are refused"
            if share >= 1.0
            else f"{share:.0%} of the budget of {size} are used"
        )
        used, limit = self._used[what], self._limits[what]
        self._log.note("budget", what=what, share=share, used=used, limit=limit, text=text)
        self._log.warn(text)

    def _denial(self, what: What) -> Denial:
        return deny(
            RULE,
            f"the session's budget of {self._size(what)} is used up; "
            f"the user can raise it: --budget {what}=… (the next time the session is started)",
        )

    def _size(self, what: What) -> str:
        limit = self._limits[what] or 0
        if what != "bytes":
            return f"{limit} {what}"
        for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
            if limit >= 1 << shift:
                return f"{limit / (1 << shift):.4g} {unit}"
        return f"{limit} bytes"
