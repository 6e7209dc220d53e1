"""What two sandboxes of one spec show, before the agent and after it: it must be the same.

The agent can lie to a probe, but not to one that ran before it, nor, dead, to one in a fresh sandbox.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clsecure.model import CheckResult, CheckStatus, NetworkPolicy, Phase, SandboxSpec, Vantage
from clsecure.verify.checks import EVERY_MODE, Area, Check, Observation
from clsecure.verify.network import FALLBACK
from clsecure.verify.tried import Report, Tried
from clsecure.verify.words import names


@dataclass(frozen=True, slots=True, kw_only=True)
class Twice:
    """What two sandboxes of one spec showed: one before the agent ran, and a fresh one after it is dead.

    :param before: with the port of the gateway then.
    :param after: the report of the later one.
    :param port: of the gateway then.
    """

    before: Tried
    after: Report
    port: int | None


_AS_BEFORE = "as before the agent ran"
_STABLE = (
    "files", "home", "root", "written", "own", "connected", "routes", "interfaces", "addresses6", "foreign",
    "status", "root_uid", "raised", "user_namespace", "calls", "landlock", "reopened", "signalled",
    "confined", "escapes", "devices", "limits", "descriptors",
)  # fmt: skip
"""What must be the same. Not: port numbers, how many processes there are, what name servers answer."""


def _unchanged(twice: Twice, spec: SandboxSpec) -> Observation:
    before, after = twice.before.inside, twice.after
    changed = []
    # The machine's own network may have given other ones meanwhile.
    full = spec.network is NetworkPolicy.FULL
    for name in _STABLE:
        if full and name == "addresses6":
            continue
        then: Any = _held_against(name, before)
        now: Any = _held_against(name, after)
        if isinstance(then, Mapping):
            # What the host has put out, or which of its services listened, may be another choice.
            both = sorted(then.keys() & now.keys())
            changed += [f"{name} {key}: {then[key]}, now {now[key]}" for key in both if then[key] != now[key]]
        elif then != now:
            changed.append(f"{name}: {_shown(then)}, now {_shown(now)}")
    further = [
        set(each.listening) - {port} for each, port in ((before, twice.before.port), (after, twice.port))
    ]
    if further[0] != further[1]:
        changed.append(f"listening: {further[0] or 'none'}, now {further[1] or 'none'}")
    return Observation.equal(_AS_BEFORE, "; ".join(changed) or _AS_BEFORE)


def _held_against(name: str, report: Report) -> object:
    """Return a part of a report without what may differ for reasons of the machine's own."""
    found = getattr(report, name)
    match name:
        case "interfaces":
            return tuple(each for each in found if each not in FALLBACK)
        case "connected" if set(report.interfaces) - FALLBACK > {"lo"}:
            # With a full network another Wi-Fi is another error: that it can't be had must stay.
            return {label: error and "refused" for label, error in found.items()}
        case "limits":
            # Set only where the groups' own limit is not confirmed.
            return {label: most for label, most in found.items() if label != "NPROC"}
        case _:
            return found


def _shown(value: object) -> str:
    return names(map(str, value)) if isinstance(value, tuple) else str(value)


TWICE_CHECKS: tuple[Check[Twice], ...] = (
    Check(
        check_id="inside-unchanged",
        property="a fresh sandbox shows after the agent what it showed before",
        modes=EVERY_MODE,
        vantage=Vantage.INSIDE,
        area=Area.LEFTOVERS,
        threats=("C5", "C10", "E3"),
        observe=_unchanged,
    ),
)


def differences(before: Tried, after: Report, *, port: int | None) -> CheckResult:
    """Compare what a fresh sandbox shows after the agent with what it showed before.

    :param port: of the gateway in the later one.
    """
    (check,) = TWICE_CHECKS
    return check.judge(Twice(before=before, after=after, port=port), before.spec, Phase.END)


def not_compared() -> CheckResult:
    """Say that nobody knows what it showed before: the run was killed."""
    (check,) = TWICE_CHECKS
    return CheckResult(
        check_id=check.check_id,
        status=CheckStatus.SKIP,
        vantage=check.vantage,
        phase=Phase.END,
        expected=_AS_BEFORE,
        observed="what it showed before is not known any more",
    )
