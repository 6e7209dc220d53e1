"""Checks of the user's and of the machine's administrator: tests for testinfra. docs/own-checks.md.

Never one of a repository's.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clsecure.errors import UsageError
from clsecure.model import CheckResult, CheckStatus, Phase, SandboxSpec, Vantage
from clsecure.process import SYSTEM_PATH
from clsecure.session import programs
from clsecure.settings.sources import SYSTEM_DIRECTORY
from clsecure.verify.probe import Probe

NAME = "checks.d"
SECONDS = 60.0
"""What all of them together may take."""
_MODULE = "clsecure.verify.own_runner"
_MOST_FILES = 100
_MOST_OUTPUT = 1 << 20
_LONGEST = 200
_OUTCOMES = {"passed": CheckStatus.PASS, "failed": CheckStatus.FAIL, "skipped": CheckStatus.SKIP}


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnChecks:
    """Files of tests, the machine's first."""

    files: tuple[Path, ...] = ()


def find_own_checks(user: Path | None, *, system: Path = SYSTEM_DIRECTORY, owner: int = 0) -> OwnChecks:
    """Return the files there are; each is what only its owner could have written.

    :param user: the user's directory of settings, None where there is no home.
    :param system: the machine's.
    :param owner: who must own that; only tests ask for somebody else than root.
    :raises UsageError: somebody else could have written one, or it is no file that can be run.
    """
    files = [*_listed(system / NAME, {owner}, follow=False)]
    if user is not None:
        files += _listed(user / NAME, {os.getuid(), 0}, follow=True)
    names = [path.name for path in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise _refused(Path(twice[0]), "two files have this name")
    if len(files) > _MOST_FILES:
        raise _refused(files[-1].parent, f"more than {_MOST_FILES} files")
    return OwnChecks(files=tuple(files))


def _listed(directory: Path, owners: set[int], *, follow: bool) -> Iterator[Path]:
    try:
        found = directory.stat(follow_symlinks=follow)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _refused(directory, error.strerror or str(error)) from error
    if not stat.S_ISDIR(found.st_mode):
        raise _refused(directory, "it is no directory")
    _owned(directory, found, owners)
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise _refused(directory, error.strerror or str(error)) from error
    for path in paths:
        if path.suffix != ".py" or path.name.startswith("."):
            continue
        try:
            found = path.stat(follow_symlinks=follow)
        except OSError as error:
            raise _refused(path, error.strerror or str(error)) from error
        if not stat.S_ISREG(found.st_mode):
            raise _refused(path, "it is no regular file")
        _owned(path, found, owners)
        yield path


def _owned(path: Path, found: os.stat_result, owners: set[int]) -> None:
    if found.st_uid not in owners:
        raise _refused(path, "it belongs to somebody else")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _refused(path, "others may write it")


def _refused(path: Path, why: str) -> UsageError:
    return UsageError(
        f"the check {path.name} can't be run",
        details=f"{path}: {why}",
        resolution="correct it, or take it away (docs/own-checks.md)",
    )


def run_own_checks(
    checks: OwnChecks,
    probe: Probe,
    spec: SandboxSpec,
    *,
    session: str,
    phase: Phase,
    seconds: float = SECONDS,
) -> tuple[CheckResult, ...]:
    """Run the tests, each a check; nothing is started where there is none.

    The probe serves them alone from here on: it may be in the middle of an order afterwards.

    :param session: its name.
    """
    if not checks.files:
        return ()
    facts = {
        "mode": spec.mode,
        "network": spec.network,
        "name": session,
        "account": spec.account.name,
        "home": str(spec.account.home),
    }
    argv = (sys.executable, "-I", "-B", "-m", _MODULE, str(probe.orders), str(probe.replies))
    ended = programs.run(
        argv,
        {"files": list(map(str, checks.files)), "session": facts},
        environ={
            "PATH": SYSTEM_PATH,
            "LC_ALL": "C.UTF-8",
            "HOME": str(Path.home()),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        home=Path("/"),
        seconds=seconds,
        pass_fds=(probe.orders, probe.replies),
        most=_MOST_OUTPUT,
    )
    told = list(_told(ended.lines))
    results = [_result(said, phase) for said in told if "file" in said]
    heard = {said.get("file") for said in told}
    if any(said.get("end") is True for said in told):
        results += [
            _failed(each.name, phase, "it has no test") for each in checks.files if each.name not in heard
        ]
    else:
        # Which of them it was is not known: none of them has passed as a whole.
        words = ended.lines[-1] if ended.lines else "it said nothing"
        why = f"pytest {ended.failure or 'ended early'}: {words}"
        results += [_failed(each.name, phase, why) for each in checks.files]
    return tuple(results)


def _told(lines: Sequence[str]) -> Iterator[dict[str, object]]:
    for line in lines:
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict):
            yield said


def _result(said: dict[str, object], phase: Phase) -> CheckResult:
    test = said.get("test")
    name = f"own:{said['file']}" + (f"::{test}" if test else "")
    return CheckResult(
        check_id=name[:_LONGEST],
        status=_OUTCOMES.get(str(said.get("outcome")), CheckStatus.FAIL),
        vantage=Vantage.INSIDE,
        phase=phase,
        expected="the test passes",
        observed=str(said.get("said") or said.get("outcome")),
    )


def _failed(name: str, phase: Phase, why: str) -> CheckResult:
    return _result({"file": name, "outcome": "failed", "said": why}, phase)
