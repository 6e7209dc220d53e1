"""The checks after the end: what of a session is left on the machine, and how its account stands.

The facts are the helper's, looked up when every process of the session is dead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from clsecure.model import CheckResult, DockerAccess, Engine, NetworkPolicy, Phase, SandboxSpec, Vantage
from clsecure.privileged.leftovers import Found, Leftovers
from clsecure.verify.checks import CONTAINER, EVERY_MODE, Area, Check, Observation

_NONE = "none"
_NOLOGIN = frozenset({"/usr/sbin/nologin", "/sbin/nologin"})
_CLOSED: Final = "a directory of the worker's, mode 0700, which only root can replace"
_LOCKED: Final = "its own numbers and home, expired, no password, no shell"
_OF_OTHERS = "of uid "


def _nothing(found: Found) -> Observation:
    """Want nothing of a kind. What was not looked at to the end can't be said to be empty."""
    if found.count:
        return Observation(expected=_NONE, observed=_told(found), holds=False)
    if not found.complete:
        return Observation(
            expected=_NONE, observed="none found, but there was more than could be looked at", holds=None
        )
    return Observation(expected=_NONE, observed=_NONE, holds=True)


def _told(found: Found) -> str:
    more = found.count - len(found.names)
    return "; ".join([*found.names, *([f"and {more} more"] if more > 0 else [])])


def _none_of(choose: Callable[[Leftovers], Found]) -> Callable[[Leftovers, SandboxSpec], Observation]:
    return lambda facts, _spec: _nothing(choose(facts))


def _not_given(found: Found, spec: SandboxSpec) -> Found:
    """Leave out what lies in a directory that the user gave the session to write to."""
    given = tuple(f"{str(mount.source).rstrip('/')}/" for mount in spec.mounts if not mount.read_only)
    strange = tuple(name for name in found.names if not f"{name}/".startswith(given))
    if len(strange) == len(found.names):
        return found
    # Those that are not named may lie there, or elsewhere.
    unnamed = found.count > len(found.names)
    return Found(count=len(strange), names=strange, complete=found.complete and not unnamed)


def _memory(facts: Leftovers, spec: SandboxSpec) -> Observation:
    return _nothing(_not_given(facts.memory, spec))


def _outside(facts: Leftovers, spec: SandboxSpec) -> Observation:
    return _nothing(_not_given(facts.outside, spec))


def _special(facts: Leftovers, spec: SandboxSpec) -> Observation:
    seen = _nothing(facts.special)
    if seen.holds is None:
        # The agent alone decides over how much there is to look at, and how deep.
        return replace(seen, holds=False)
    plain = all(name.startswith(_OF_OTHERS) for name in facts.special.names)
    if seen.holds is False and plain and spec.docker is DockerAccess.HOST:
        # Containers of the machine's docker write as whoever they want to be, and so they should.
        return Observation(expected=seen.expected, observed=f"by the machine's docker: {seen.observed}",
                           holds=None)  # fmt: skip
    return seen


def _home(facts: Leftovers, spec: SandboxSpec) -> Observation:
    home, account = facts.home, spec.account
    wrong = []
    if not home.directory:
        wrong.append("no directory")
    if (home.uid, home.gid) != (account.uid, account.gid):
        wrong.append(f"belongs to {home.uid}:{home.gid}")
    if home.mode != 0o700:
        wrong.append(f"mode {home.mode:04o}")
    if not home.fixed:
        wrong.append("others can write to the directory above")
    return Observation.equal(_CLOSED, "; ".join(wrong) or _CLOSED)


def _locked(facts: Leftovers, _spec: SandboxSpec) -> Observation:
    account = facts.account
    wrong = []
    if not account.ours:
        wrong.append("other numbers, or another home, than were made")
    if not account.locked:
        wrong.append("a password")
    if not account.expired:
        wrong.append("not expired: a key in its home opens it")
    if account.shell not in _NOLOGIN:
        wrong.append(f"the shell {account.shell}")
    return Observation.equal(_LOCKED, "; ".join(wrong) or _LOCKED)


IMAGE_UNCHANGED, RULES_LEFT = "image-unchanged", "network-rules-left"

MACHINE_CHECKS: tuple[Check[Leftovers], ...] = (
    Check(
        check_id="processes-left",
        property="no process of the worker's is alive",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.LEFTOVERS,
        threats=("E1", "E2"),
        residuals=("R9", "R36"),
        observe=_none_of(lambda facts: facts.processes),
    ),
    Check(
        check_id="control-groups-left",
        property="no control group of the session is there",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.LEFTOVERS,
        threats=("E1", "F1"),
        residuals=("R9",),
        observe=_none_of(lambda facts: facts.control_groups),
    ),
    Check(
        check_id="ipc-left",
        property="no shared memory, message queue or semaphore of the worker's is in the machine's own space",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.LEFTOVERS,
        threats=("C13",),
        observe=_memory,
    ),
    Check(
        check_id="mounts-left",
        property="the machine has no mount of the session, and none that shows its home elsewhere",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.LEFTOVERS,
        threats=("A11", "H1"),
        observe=_none_of(lambda facts: facts.mounts),
    ),
    Check(
        check_id="runtime-files-left",
        property="the session's sockets and files in /run are gone",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.LEFTOVERS,
        threats=("A10", "B4"),
        residuals=("R36",),
        observe=_none_of(lambda facts: facts.runtime),
    ),
    Check(
        check_id="storage-left",
        property="what an engine of the session's own stored is deleted",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.LEFTOVERS,
        threats=("E2", "E5"),
        residuals=("R41",),
        observe=_none_of(lambda facts: facts.storage),
    ),
    Check(
        check_id=RULES_LEFT,
        property="no rule of a full network came into the machine's own network",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.NETWORK,
        threats=("B2", "B3"),
        residuals=("R15",),
        observe=_none_of(lambda facts: facts.rules),
    ),
    Check(
        check_id="scheduled-left",
        property="nothing runs later as the worker: no cron or at job, lingering or user manager",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.LEFTOVERS,
        threats=("C12", "E2"),
        observe=_none_of(lambda facts: facts.scheduled),
    ),
    Check(
        check_id="files-outside",
        property="no file of the worker's lies where everybody may write",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.LEFTOVERS,
        threats=("C13", "E5"),
        residuals=("R13",),
        observe=_outside,
    ),
    Check(
        check_id="special-files",
        property="the worker's home holds no set-id program, device, file capability or file of others",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("D17", "E5"),
        residuals=("R34", "R41"),
        observe=_special,
    ),
    Check(
        check_id="home-closed",
        property="the worker's home is closed to everybody else",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("A11",),
        residuals=("R5",),
        observe=_home,
    ),
    Check(
        check_id="group-membership",
        property="the worker is in no group but its own",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.PRIVILEGES,
        threats=("C5",),
        observe=_none_of(lambda facts: facts.groups),
    ),
    Check(
        check_id="account-unshared",
        property="no other account or group has the worker's number, or is in its group",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.PRIVILEGES,
        threats=("E5",),
        residuals=("R16",),
        observe=_none_of(lambda facts: facts.sharers),
    ),
    Check(
        check_id="account-locked",
        property="nobody can log in as the worker",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.PRIVILEGES,
        threats=("B1", "C5", "C12"),
        observe=_locked,
    ),
    Check(
        check_id=IMAGE_UNCHANGED,
        property="the store of images is closed, of an account that is nobody else's, and as it was filled",
        modes=CONTAINER,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("I2", "I5"),
        residuals=("R37", "R38"),
        observe=_none_of(lambda facts: facts.images),
    ),
)


def _concerns(check: Check[Leftovers], spec: SandboxSpec) -> bool:
    """Tell whether a session of this kind could have left such a thing."""
    if check.check_id == RULES_LEFT:
        return spec.network is NetworkPolicy.FULL
    if check.check_id == IMAGE_UNCHANGED and spec.container is not None:
        # What docker's daemon keeps is docker's own.
        return spec.mode in check.modes and spec.container.engine is Engine.PODMAN
    return spec.mode in check.modes


def check_leftovers(facts: Leftovers, spec: SandboxSpec) -> tuple[CheckResult, ...]:
    """Run every check that concerns the session; what could not be looked at to its end is a skip."""
    return tuple(check.judge(facts, spec, Phase.END) for check in MACHINE_CHECKS if _concerns(check, spec))
