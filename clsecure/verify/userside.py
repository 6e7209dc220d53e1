"""The checks on the user's side: their home, their repository and the agent's program, before and after.

No session can reach any of it, and people go on working meanwhile: they commit, switch branches and push. So
what changed is told, and only what could run a program, or is the worker's, is a failure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clsecure.model import CheckResult, Phase, SandboxSpec, Vantage
from clsecure.verify.checks import EVERY_MODE, Area, Check, Observation
from clsecure.verify.userstate import (
    AclEntry,
    ProgramState,
    UserState,
    files_of_worker,
    program_state,
    user_state,
)
from clsecure.workspace.repository import Repository

_REPOSITORY: Final = "nothing of the worker's, and no new hook or setting that runs a program but your own"
_HOME: Final = "no more open than before, and not to the worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSide:
    """What the user has now, and had before.

    :param before: None when it was not noted, by an older version say.
    :param after: None when it can't be read any more.
    :param of_worker: files in the repository that belong to the worker; names may be hostile.
    :param program: the agent's program that was kept for the session; None when there is none.
    """

    before: UserState | None
    after: UserState | None
    of_worker: tuple[str, ...] = ()
    program: ProgramState | None = None


def look(repository: Repository, home: Path, spec: SandboxSpec, before: UserState | None) -> UserSide:
    """Look at all of it again. Hashing the program takes some tenths of a second, outside of Python's lock.

    :param before: what :func:`.userstate.user_state` returned before the session.
    """
    return UserSide(
        before=before,
        after=user_state(repository, home),
        of_worker=files_of_worker(repository, uid=spec.account.uid, gid=spec.account.gid),
        program=program_state(spec),
    )


def _unknown(expected: str, facts: UserSide) -> Observation:
    why = "it was not noted before the session" if facts.after else "it can't be read any more"
    return Observation(expected=expected, observed=why, holds=None)


def _repository(facts: UserSide, spec: SandboxSpec) -> Observation:
    before, after = facts.before, facts.after
    if before is None or after is None:
        return _unknown(_REPOSITORY, facts)
    wrong = [f"of the worker: {name}" for name in facts.of_worker]
    wrong += [f"hook {name}" for name in after.hooks if before.hooks.get(name) != after.hooks[name]]
    wrong += [f"setting {key}" for key in after.programs if before.programs.get(key) != after.programs[key]]
    if not wrong:
        changed = ", ".join(_changed(before, after))
        seen = f"changed meanwhile: {changed}" if changed else "as it was"
        return Observation(expected=_REPOSITORY, observed=seen, holds=True)
    given = any(_is_given(place, spec) for place in after.places)
    seen = "; ".join(wrong)
    if given:
        seen = f"given to the session to write to: {seen}"
    return Observation(expected=_REPOSITORY, observed=seen, holds=None if given else False)


def _changed(before: UserState, after: UserState) -> Iterable[str]:
    for name in sorted(before.parts.keys() | after.parts.keys()):
        if before.parts.get(name) != after.parts.get(name):
            yield name
    if before.hooks.keys() - after.hooks.keys():
        yield "hooks taken away"


def _is_given(place: str, spec: SandboxSpec) -> bool:
    """Tell whether the user mounted a directory, or one above or below it, writable."""
    sources = [mount.source for mount in spec.mounts if not mount.read_only]
    return any(Path(place).is_relative_to(s) or s.is_relative_to(place) for s in sources)


def _home(facts: UserSide, spec: SandboxSpec) -> Observation:
    before, after = facts.before, facts.after
    if after is None:
        return _unknown(_HOME, facts)
    wrong = [f"open to the worker by {entry}" for entry in after.home_acl if _names(entry, spec)]
    if before is not None:
        if more := after.home_mode & ~before.home_mode & 0o077:
            wrong.append(f"mode {before.home_mode:04o} became {after.home_mode:04o} (+{more:03o})")
        had = {entry.who: entry.permissions for entry in before.home_acl}
        wrong += [
            f"open by {entry}"
            for entry in after.home_acl
            if entry.permissions & ~had.get(entry.who, 0) and not _names(entry, spec)
        ]
    if wrong:
        return Observation(expected=_HOME, observed="; ".join(wrong), holds=False)
    if before is None:
        return _unknown(_HOME, facts)
    return Observation(expected=_HOME, observed=f"mode {after.home_mode:04o}", holds=True)


def _names(entry: AclEntry, spec: SandboxSpec) -> bool:
    return entry.names(uid=spec.account.uid, gid=spec.account.gid)


def _program(facts: UserSide, spec: SandboxSpec) -> Observation:
    expected = f"sha256 {spec.program.sha256 if spec.program else ''}, root's, mode 0555"
    found = facts.program
    if found is None:
        return Observation.equal(expected, "not there")
    return Observation.equal(expected, f"sha256 {found.sha256}, {found.owner}, mode {found.mode:04o}")


PROGRAM_UNCHANGED = "agent-program-unchanged"

USER_CHECKS: tuple[Check[UserSide], ...] = (
    Check(
        check_id="repository-untouched",
        property="the user's repository has nothing of the worker's, and no new program that git would run",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("D2", "D3", "D13", "D14"),
        residuals=("R13",),
        observe=_repository,
    ),
    Check(
        check_id="user-home-closed",
        property="the user's home is no more open than before the session",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("A1",),
        observe=_home,
    ),
    Check(
        check_id=PROGRAM_UNCHANGED,
        property="the agent's program is byte for byte the one of the plan",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("I6",),
        observe=_program,
    ),
)


def check_user_side(facts: UserSide, spec: SandboxSpec) -> tuple[CheckResult, ...]:
    """Run every check that concerns the session."""
    return tuple(
        check.judge(facts, spec, Phase.END)
        for check in USER_CHECKS
        if check.check_id != PROGRAM_UNCHANGED or spec.program is not None
    )
