"""The limits of a session: what the user asked for, the defaults beside it, and what holds here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

from clsecure.model import ResourceLimits
from clsecure.privileged.client import SandboxEnd
from clsecure.settings.limits import defaults
from clsecure.settings.values.amounts import human_limit, human_limits


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitResult:
    """One limit of a session, as the JSON result has it.

    :param value: bytes, processors or a number.
    :param enforced_by: what holds it; None for a default that this machine can't enforce.
    """

    value: float
    enforced_by: str | None


def effective(asked: ResourceLimits) -> ResourceLimits:
    """Return what a session's sandbox is built with: the defaults beside what was asked for."""
    given = defaults()
    return replace(
        asked,
        memory=given.memory if asked.memory is None else asked.memory,
        pids=given.pids if asked.pids is None else asked.pids,
    )


def results(limits: ResourceLimits, enforced: Mapping[str, str]) -> dict[str, LimitResult]:
    """Return what the JSON result says of the limits."""
    parts = {part.name: getattr(limits, part.name) for part in fields(limits)}
    return {n: LimitResult(value=most, enforced_by=enforced.get(n)) for n, most in parts.items() if most}


def named(asked: ResourceLimits) -> frozenset[str]:
    """Return the limits that the user named: those that must hold."""
    return frozenset(part.name for part in fields(asked) if getattr(asked, part.name))


def lacking(limits: ResourceLimits, enforced: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each default that does not hold here."""
    for name, result in results(limits, enforced).items():
        if result.enforced_by is None:
            yield f"not enforced here: the limit of {name} (there is no such controller of control groups)"


def describe(limits: ResourceLimits) -> str:
    """Return the limits for people, in one line."""
    return f"limits: {human_limits(limits).replace(',', ', ') or 'none'}; a reserve of the disk stays free"


def warnings(end: SandboxEnd, limits: ResourceLimits) -> Iterator[str]:
    """Say what struck: a user must learn why the agent's build died."""
    if end.struck.get("memory"):
        yield (
            f"memory ran out: {end.struck['memory']} processes were killed at the limit "
            f"of {human_limit('memory', limits.memory or 0)}; more with --limit memory=N"
        )
    if end.struck.get("pids"):
        yield f"the limit of {limits.pids} processes was reached; more with --limit pids=N"
    match end.passed:
        case "reserve":
            yield "the session was ended: the disk is nearly full, and a reserve of it stays free"
        case "disk":
            most = human_limit("disk", limits.disk or 0)
            yield f"the session was ended: its files took more than {most}; more with --limit disk=N"
        case _:
            pass
