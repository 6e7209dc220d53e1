"""The check on an engine of the machine's after the end: what of a session it still has, by its own word."""

from __future__ import annotations

from clsecure.model import CheckResult, Phase, SandboxSpec, Vantage
from clsecure.privileged.leftovers import Found
from clsecure.verify.checks import CONTAINER, Area, Check, Observation

_NONE = "none"


def _left(found: Found, _spec: SandboxSpec) -> Observation:
    if not found.complete:
        # The agent has no way to it, and can't keep it from answering.
        return Observation(expected=_NONE, observed="docker did not answer", holds=None)
    return Observation.equal(_NONE, "; ".join(found.names) or _NONE)


ENGINE_CHECKS: tuple[Check[Found], ...] = (
    Check(
        check_id="containers-left",
        property="docker's daemon has no container of the session's any more",
        modes=CONTAINER,
        vantage=Vantage.HOST,
        area=Area.LEFTOVERS,
        threats=("E1",),
        residuals=("R36",),
        observe=_left,
    ),
)


def check_engine(found: Found, spec: SandboxSpec) -> tuple[CheckResult, ...]:
    """Judge what an engine has that outlives the session. podman's ends with it, and is looked for itself."""
    return tuple(check.judge(found, spec, Phase.END) for check in ENGINE_CHECKS)
