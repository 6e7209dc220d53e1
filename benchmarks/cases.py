"""What is measured."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.measuring import Case, Phases
from tests.support.person import Person, clsecure_command

MODES = ("namespace", "user")
QUICK = ("--help", "list")
PYTHON, SUDO, FIREJAIL = "python -c pass", "sudo -u", "firejail"
CLONE_SMALL, CLONE = "git clone", "git clone, many files"
AFTER_AGENT = ("run", "quiesce", "export", "findings", "import")
_FIREJAIL = (
    # What upstream's profiles of command-line programs have in common.
    *("firejail", "--quiet", "--noprofile", "--caps.drop=all", "--ipc-namespace", "--net=none", "--no3d"),
    *("--nodvd", "--nogroups", "--nonewprivs", "--noroot", "--nosound", "--notv", "--nou2f", "--novideo"),
    *("--protocol=unix,inet,inet6,netlink", "--seccomp", "--private-dev", "--private-tmp"),
)


def floors(person: Person, small: Path) -> list[Case]:
    """Return what other programs take on this machine."""
    return [
        Case(name=PYTHON, run=_program(person, sys.executable, "-I", "-c", "pass")),
        Case(name=SUDO, run=_sudo(person)),
        Case(name=FIREJAIL, run=_program(person, *_FIREJAIL, "true")),
        _clone(person, CLONE_SMALL, small),
    ]


def commands(person: Person) -> list[Case]:
    """Return the commands that answer at once."""
    return [Case(name=name, run=_program(person, *clsecure_command(), name), floor=PYTHON) for name in QUICK]


def sessions(person: Person, repository: Path) -> list[Case]:
    """Return sessions that do nothing, in a small repository."""
    cases = []
    for mode in MODES:
        for finish in ("keep", "import"):
            session, name = Session(person, repository, mode=mode, finish=finish), f"{mode}-{finish}"
            session.run(name)  # from here on the account exists
            cases.append(Case(name=existing(mode, finish), run=partial(session.run, name, "--fresh")))
        cases.append(_first_session(person, repository, mode, new(mode)))
    return cases


def existing(mode: str, finish: str) -> str:
    """Return the name of a case."""
    return f"session, {mode}, existing account, {finish}"


def new(mode: str) -> str:
    """Return the name of a case."""
    return f"session, {mode}, new account"


def many(mode: str) -> str:
    """Return the name of a case."""
    return f"session, {mode}, new account, many files"


def large(person: Person, repository: Path) -> list[Case]:
    """Return a clone and first sessions of a repository with many files."""
    return [
        _clone(person, CLONE, repository),
        *(_first_session(person, repository, mode, many(mode), floor=CLONE) for mode in MODES),
    ]


class Session:
    """Sessions of one kind, all without network: the gateway is measured by itself."""

    def __init__(
        self,
        person: Person,
        repository: Path,
        *,
        mode: str,
        finish: str,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._person, self._repository, self._env = person, repository, env
        fixed = ("--mode", mode, "--on-finish", finish, "--no-network", "--output", "json")
        self._options = (*fixed, *options)
        self._worker = ""

    def run(self, name: str, *args: str) -> Phases:
        """Run one and return its phases; ``around`` is the command line's own time before and after."""
        start = time.perf_counter()
        done = self._person.clsecure(
            *self._options,
            *("--session", name, *args, "--", "true"),
            cwd=self._repository,
            env=self._env,
            timeout=900,
        )
        took = time.perf_counter() - start
        document = done.check().json()
        self._worker = document["worker_user"]
        return {"around": took - document["duration_s"], **document["phases"]}

    def remove(self) -> None:
        """Remove the worker of the last one."""
        self._person.clsecure("cleanup", self._worker, "--yes", cwd=self._repository).check()


def _first_session(
    person: Person, repository: Path, mode: str, name: str, *, floor: str | None = None
) -> Case:
    session, number = Session(person, repository, mode=mode, finish="keep"), itertools.count()
    return Case(
        name=name, run=lambda: session.run(f"{mode}-new-{next(number)}"), after=session.remove, floor=floor
    )


def _clone(person: Person, name: str, repository: Path) -> Case:
    copy = str(person.home / "clone")
    return Case(
        name=name,
        run=_program(person, "git", "clone", "--quiet", "--no-hardlinks", str(repository), copy),
        after=_program(person, "rm", "-rf", copy),
    )


def _program(person: Person, *argv: str) -> Callable[[], None]:
    return lambda: person.run(list(argv), timeout=900).check() and None


def _sudo(person: Person) -> Callable[[], None]:
    def run() -> None:
        argv = ["sudo", "-n", "-u", person.name, "--", "true"]
        subprocess.run(argv, check=True, cwd="/", stdin=subprocess.DEVNULL, timeout=60)

    return run
