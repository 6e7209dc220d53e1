"""What a check is: one property of the isolation, who looks at it, when, and what it takes to break it.

The tables are in the modules beside this one, one for each kind of facts; :mod:`.table` joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from clsecure.errors import VerificationError
from clsecure.model import CheckResult, CheckStatus, IsolationMode, Phase, SandboxSpec, Vantage, Verification

EVERY_MODE = frozenset(IsolationMode)
LOCAL = frozenset({IsolationMode.USER, IsolationMode.NAMESPACE})
CONTAINER = frozenset({IsolationMode.CONTAINER})

_SHOWN = 300

Facts = TypeVar("Facts", contravariant=True)


class Area(StrEnum):
    """What a property is about, in the order of the tables."""

    FILES = "files"
    NETWORK = "network"
    PROCESSES = "processes"
    PRIVILEGES = "privileges"
    DEVICES = "devices"
    RESOURCES = "resources"
    LEFTOVERS = "leftovers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a check wanted and what it saw.

    :param observed: may hold hostile text, escaped when printed.
    :param holds: None where this machine lacks the feature, or it can't be tried here.
    """

    expected: str
    observed: str
    holds: bool | None

    @classmethod
    def equal(cls, expected: str, observed: str) -> Observation:
        """Hold exactly where both are the same."""
        return cls(expected=expected, observed=observed, holds=expected == observed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(Generic[Facts]):
    """One property.

    :param check_id: stable; in records, JSON and the command line.
    :param property: what holds, in one sentence without a full stop.
    :param threats: ids of docs/threat-model.md.
    :param residuals: numbers of docs/threat-model.md that concern it.
    :param observe: pure; judges facts by what was planned.
    """

    check_id: str
    property: str
    modes: frozenset[IsolationMode]
    vantage: Vantage
    area: Area
    threats: tuple[str, ...]
    residuals: tuple[str, ...] = ()
    observe: Callable[[Facts, SandboxSpec], Observation]

    def judge(self, facts: Facts, spec: SandboxSpec, phase: Phase) -> CheckResult:
        """Look, and say how it stands; a feature that the machine lacks is a skip, never a pass."""
        seen = self.observe(facts, spec)
        status = {True: CheckStatus.PASS, False: CheckStatus.FAIL, None: CheckStatus.SKIP}[seen.holds]
        return CheckResult(
            check_id=self.check_id,
            status=status,
            vantage=self.vantage,
            phase=phase,
            expected=seen.expected,
            observed=seen.observed,
        )


def require(results: Iterable[CheckResult]) -> None:
    """Raise when a check failed; nothing may start then."""
    if broken := Verification(checks=tuple(results)).failed:
        raise VerificationError(
            f"the sandbox is not what was promised ({', '.join(r.check_id for r in broken)})",
            details="\n".join(described(broken)),
            resolution="Nothing was started. See what this machine lacks with: clsecure doctor",
            checks=broken,
        )


def described(results: Iterable[CheckResult]) -> tuple[str, ...]:
    """Return what was expected and what was observed, a line each; may need escaping."""
    return tuple(described_one(each.check_id, each.expected, each.observed) for each in results)


def described_one(check_id: str, expected: str, observed: str) -> str:
    """Return the same of one check."""
    return f"{check_id}: expected {_line(expected)}; observed {_line(observed)}"


def _line(text: str) -> str:
    return " ".join(text.split())[:_SHOWN]
