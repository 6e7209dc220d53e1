"""What argparse found, as the typed options of a command."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from clsecure.cli.actions import (
    IMAGES_ACTIONS,
    NETWORK_ACTIONS,
    RECORD_ACTIONS,
    ActionWords,
    NetworkAction,
    RecordAction,
)
from clsecure.cli.options import (
    AgentOptions,
    CleanupOptions,
    CompletionOptions,
    ConfigOptions,
    DiffOptions,
    DoctorOptions,
    ImagesOptions,
    ImportOptions,
    InfoOptions,
    ListOptions,
    NetworkOptions,
    Options,
    RecordOptions,
    ReportOptions,
    RunOptions,
    SetupOptions,
    VerifyOptions,
)
from clsecure.cli.parsing.exclusive import check_exclusive
from clsecure.cli.parsing.flags import GENERAL, OPTIONS
from clsecure.cli.verbs import SHELLS, SOURCES, Verb
from clsecure.errors import UsageError
from clsecure.settings.values import names

_Action = TypeVar("_Action", bound=StrEnum)
_SELECTOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}")
_WITHOUT_OPTIONS: Mapping[Verb, type[ConfigOptions | ListOptions | DoctorOptions | InfoOptions]] = {
    Verb.CONFIG: ConfigOptions,
    Verb.LIST: ListOptions,
    Verb.DOCTOR: DoctorOptions,
    Verb.INFO: InfoOptions,
}
"""Commands whose flags are settings, or which have none."""


def typed_options(verb: Verb, found: Mapping[str, Any], command: tuple[str, ...] | None) -> Options:
    """Return the options of a command.

    :param found: values by the flag's long spelling, or by the name of what is no flag.
    :param command: what stands after ``--``.
    :raises UsageError: they don't go together, or are none that the command takes.
    """
    check_exclusive(found)
    for selector in _selectors(found):
        _check_selector(selector)
    match verb:
        case Verb.RUN:
            return _run_options(found, command)
        case Verb.CLEANUP:
            return CleanupOptions(
                sessions=_selectors(found),
                everything=found.get("--all", False),
                yes=found.get("--yes", False),
            )
        case Verb.IMPORT:
            return ImportOptions(
                session=found["SESSION"],
                branch=found.get("--branch"),
                message=found.get("--message"),
                anyway=found.get("--import-anyway", False),
            )
        case Verb.DIFF:
            return DiffOptions(session=found["SESSION"])
        case Verb.VERIFY:
            return VerifyOptions(
                session=found.get("SESSION"),
                list_checks=found.get("--list-checks", False),
                junit=found.get("--junit"),
            )
        case Verb.SETUP:
            return SetupOptions(
                remove=found.get("--remove", False),
                yes=found.get("--yes", False),
                dry_run=found.get("--dry-run", False),
                user=found.get("--user"),
            )
        case Verb.AGENT:
            return _agent_options(found["ACTION"], found["NAME"])
        case Verb.COMPLETION:
            return _completion_options(found["SHELL"])
        case Verb.NETWORK | Verb.IMAGES | Verb.RECORD:
            return _of_action(verb, found)
        case Verb.REPORT:
            return ReportOptions(session=found["SESSION"], html=_path(found, "--html"))
        case _:
            return _WITHOUT_OPTIONS[verb]()


def _check_selector(selector: str) -> None:
    if not _SELECTOR.fullmatch(selector):
        raise UsageError(
            "that is not a name of a session",
            details=f"it was {selector[:200]!r}",
            resolution="clsecure list",
        )


def _run_options(found: Mapping[str, Any], command: tuple[str, ...] | None) -> RunOptions:
    shell = found.get("--shell", False)
    if command is not None and shell:
        raise UsageError("--shell and a command after -- exclude each other")
    if found.get("--yes") and found.get("--allow-docker") != "host":
        raise UsageError("--yes goes with --allow-docker=host alone", resolution="leave it out")
    resume = True if found.get("--resume") else False if found.get("--fresh") else None
    return RunOptions(
        argv=command,
        shell=shell,
        resume=resume,
        branch=found.get("--branch"),
        message=found.get("--message"),
        dry_run=found.get("--dry-run", False),
        skip_setup=found.get("--skip-setup", False),
        yes=found.get("--yes", False),
    )


def _selectors(found: Mapping[str, Any]) -> tuple[str, ...]:
    value = found.get("SESSION", ())
    return (value,) if isinstance(value, str) else tuple(value)


def _of_action(verb: Verb, found: Mapping[str, Any]) -> Options:
    """Read the options of a command that says what to do in its first word."""
    match verb:
        case Verb.NETWORK:
            return _network_options(found)
        case Verb.IMAGES:
            return _images_options(found)
        case _:
            return _record_options(found)


def _network_options(found: Mapping[str, Any]) -> NetworkOptions:
    arguments = tuple(found.get("ARGUMENT", ()))
    action, words = _action(Verb.NETWORK, NETWORK_ACTIONS, found["ACTION"], arguments)
    if action is not NetworkAction.CHECK:
        decides = [option.name for option in OPTIONS if option.name in found and option.group != GENERAL]
        if decides:
            raise UsageError(
                f"{decides[0]} does not go with 'clsecure network {action}'",
                resolution="it goes with 'clsecure network check', and with the start of a session",
            )
    if words.session and arguments and (words.most is not None or len(arguments) > 1):
        _check_selector(arguments[0])
    return NetworkOptions(action=action, arguments=arguments)


def _images_options(found: Mapping[str, Any]) -> ImagesOptions:
    arguments = tuple(found.get("IMAGE", ()))
    action, _ = _action(Verb.IMAGES, IMAGES_ACTIONS, found["ACTION"], arguments)
    return ImagesOptions(action=action, arguments=arguments)


def _record_options(found: Mapping[str, Any]) -> RecordOptions:
    sessions = tuple(found.get("SESSION", ()))
    action, _ = _action(Verb.RECORD, RECORD_ACTIONS, found["ACTION"], sessions)
    commit, key = found.get("--commit"), _path(found, "--key")
    if action is RecordAction.SHOW and (commit or key):
        raise UsageError(
            f"{'--commit' if commit else '--key'} does not go with 'clsecure record show'",
            resolution="it goes with 'clsecure record verify'",
        )
    if bool(sessions) == bool(commit):
        raise UsageError("one session is wanted, or --commit REV", resolution="see: clsecure record --help")
    return RecordOptions(action=action, session=sessions[0] if sessions else None, commit=commit, key=key)


def _path(found: Mapping[str, Any], name: str) -> Path | None:
    return Path(found[name]) if name in found else None


def _action(
    verb: Verb, actions: Mapping[_Action, ActionWords], written: str, arguments: Sequence[str]
) -> tuple[_Action, ActionWords]:
    """Find an action of a command, and refuse a number of arguments that it does not take."""
    action = next((each for each in actions if each == written), None)
    if action is None:
        raise UsageError(
            f"{written!r} is not an action of 'clsecure {verb}'", resolution=f"one of: {', '.join(actions)}"
        )
    words = actions[action]
    if len(arguments) < words.least or (words.most is not None and len(arguments) > words.most):
        raise UsageError(
            f"'clsecure {verb} {action}' takes {words.usage or 'nothing more'}",
            resolution=f"see: clsecure {verb} --help",
        )
    return action, words


def _completion_options(what: str) -> CompletionOptions:
    if what not in (*SHELLS, *SOURCES):
        raise UsageError(f"there is no completion for {what!r}", resolution=f"one of: {', '.join(SHELLS)}")
    return CompletionOptions(what=what)


def _agent_options(action: str, name: str) -> AgentOptions:
    if action != "install":
        raise UsageError(
            f"{action!r} is nothing that can be done to an agent", resolution="clsecure agent install claude"
        )
    try:
        return AgentOptions(action=action, name=names.agent(name))
    except ValueError as error:
        raise UsageError(
            f"the name of an agent {error}", resolution="clsecure agent install claude"
        ) from None
