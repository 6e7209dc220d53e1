"""What a fresh sandbox is like, asked through testinfra: after the agent is dead, once.

Ways that are not ours look at what our own probe can't say of itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clsecure.model import CheckResult, IsolationMode, Phase, SandboxSpec, Vantage
from clsecure.verify.checks import EVERY_MODE, Area, Check, Observation
from clsecure.verify.words import errors, names

if TYPE_CHECKING:
    from testinfra.host import Host

    from clsecure.verify.probe import Probe

_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  # paths of the inside
_SYSTEM = ("/", "/usr", "/usr/bin", "/etc", "/etc/passwd", "/home")
_UNSAID = (AssertionError, RuntimeError, ValueError, LookupError)
"""What testinfra's modules raise where a program inside says something else than they expect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """A fresh sandbox of a session's spec, before anything but probes ran in it."""

    host: Host


def _asked(
    judge: Callable[[Host, SandboxSpec], Observation], expected: str
) -> Callable[[Fresh, SandboxSpec], Observation]:
    """Turn an answer that makes no sense into one that does not hold."""

    def observe(fresh: Fresh, spec: SandboxSpec) -> Observation:
        try:
            return judge(fresh.host, spec)
        except _UNSAID as error:
            return Observation(expected=expected, observed=f"no answer: {error}", holds=False)

    return observe


def _root_options(host: Host, spec: SandboxSpec) -> Observation:
    # What engines mount as the root has programs that are set-uid; there no_new_privs alone is before them.
    wanted = ("ro",) if spec.mode is IsolationMode.CONTAINER else ("ro", "nosuid", "nodev")
    options = set(host.mount_point("/").options)
    observed = ", ".join(option for option in wanted if option in options)
    return Observation.equal(", ".join(wanted), observed or "none of them")


def _temporary(host: Host, spec: SandboxSpec) -> Observation:
    given = {m.target for m in spec.mounts}
    found = {
        place: [
            name
            for name in host.file(place).listdir()
            if not any(target.is_relative_to(Path(place, name)) for target in given)
        ]
        for place in _TEMPORARY
    }
    observed = "; ".join(f"{place}: {names(held)}" for place, held in found.items() if held)
    return Observation.equal("nothing", observed or "nothing")


def _account(host: Host, spec: SandboxSpec) -> Observation:
    user = host.user()
    observed = f"{user.name}, {user.home}"
    return Observation.equal(f"{spec.account.name}, {spec.account.home}", observed)


def _system(host: Host, _spec: SandboxSpec) -> Observation:
    modes = {path: host.file(path).mode for path in _SYSTEM}
    wrong = {path: f"{mode:04o}" for path, mode in modes.items() if mode & 0o022}
    return Observation.equal("only their owner may", errors(wrong) if wrong else "only their owner may")


def _check(
    check_id: str,
    area: Area,
    text: str,
    judge: Callable[[Host, SandboxSpec], Observation],
    expected: str,
    threats: tuple[str, ...],
) -> Check[Fresh]:
    return Check(
        check_id=check_id,
        property=text,
        modes=EVERY_MODE,
        vantage=Vantage.INSIDE,
        area=area,
        threats=threats,
        observe=_asked(judge, expected),
    )


FRESH_CHECKS: tuple[Check[Fresh], ...] = (
    _check("root-options", Area.FILES, "the root is read-only, and in our own views without set-uid programs",
           _root_options, "ro, nosuid, nodev", ("A1", "C2")),
    _check("system-modes", Area.FILES, "nobody but their owner may write to the system's directories",
           _system, "only their owner may", ("A1", "I6")),
    _check("temporary-empty", Area.LEFTOVERS, "a fresh sandbox has nothing in its temporary directories",
           _temporary, "nothing", ("C13", "E3")),
    _check("account-name", Area.PRIVILEGES, "who runs inside is called what the session's account is",
           _account, "the account's name and home", ("C2",)),
)  # fmt: skip


def check_fresh(probe: Probe, spec: SandboxSpec, phase: Phase = Phase.END) -> tuple[CheckResult, ...]:
    """Run every check, by one command or a few each.

    :raises VerificationError: the probe does not answer.
    """
    from clsecure.verify.testinfra_backend import host_over

    fresh = Fresh(host=host_over(probe))
    return tuple(check.judge(fresh, spec, phase) for check in FRESH_CHECKS)
