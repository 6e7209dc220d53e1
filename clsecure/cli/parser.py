"""From words to an :class:`~.options.Invocation`. Prints nothing, exits nowhere, imports little."""

from __future__ import annotations

import argparse
import itertools
import re
from collections import deque
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from clsecure import __version__
from clsecure.cli.options import (
    COMMANDS,
    GENERAL,
    IMAGES_ACTIONS,
    NETWORK_ACTIONS,
    OPTIONS,
    RECORD_ACTIONS,
    SHELLS,
    SOURCES,
    VERB_FLAGS,
    ActionWords,
    AgentOptions,
    CleanupOptions,
    CompletionOptions,
    ConfigOptions,
    DiffOptions,
    DoctorOptions,
    ImagesOptions,
    ImportOptions,
    InfoOptions,
    Invocation,
    ListOptions,
    NetworkAction,
    NetworkOptions,
    Option,
    Options,
    RecordAction,
    RecordOptions,
    ReportOptions,
    RunOptions,
    SetupOptions,
    TextOptions,
    Verb,
    VerifyOptions,
)
from clsecure.errors import UsageError
from clsecure.settings.sources import Entry, Layer, Source
from clsecure.settings.values import names

_Action = TypeVar("_Action", bound=StrEnum)
_SELECTOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}")
_SWITCHES = frozenset("hlv")
_TEXT_FLAGS = frozenset({"--help", "-h", "--version"})
_SEE_HELP = "see: clsecure --help"
_POSITIONALS: Mapping[Verb, tuple[tuple[str, str | None, str], ...]] = {
    Verb.CLEANUP: (("SESSION", "*", "as 'clsecure list' shows it"),),
    Verb.IMPORT: (("SESSION", None, "as 'clsecure list' shows it"),),
    Verb.VERIFY: (("SESSION", "?", "as 'clsecure list' shows it; none: a sandbox as one started here has"),),
    Verb.COMPLETION: (("SHELL", None, ", ".join(SHELLS)),),
    Verb.DIFF: (("SESSION", None, "as 'clsecure list' shows it"),),
    Verb.AGENT: (("ACTION", None, "install"), ("NAME", None, "claude")),
    Verb.NETWORK: (
        ("ACTION", None, ", ".join(NETWORK_ACTIONS)),
        ("ARGUMENT", "*", "a URL or host to check, else a session, as 'clsecure list' shows it"),
    ),
    Verb.IMAGES: (
        ("ACTION", None, ", ".join(IMAGES_ACTIONS)),
        ("IMAGE", "*", "as 'clsecure images list' shows it, or a file"),
    ),
    Verb.RECORD: (
        ("ACTION", None, ", ".join(RECORD_ACTIONS)),
        ("SESSION", "*", "as 'clsecure list' shows it, or the id of a run"),
    ),
    Verb.REPORT: (("SESSION", None, "as 'clsecure list' shows it, or the id of a run"),),
}
_EXCLUSIVE = (
    ("--no-network", "--allow-network"),
    *(
        (policy, more)
        for policy in ("--no-network", "--allow-network")
        for more in ("--allow-domain", "--allow-preset")
    ),
    ("--no-network", "--allow-private"),
    ("--no-docker", "--allow-docker"),
    ("--no-docker", "--docker-image"),
    ("--resume", "--fresh"),
    ("--all", "SESSION"),
    *(
        (flag, "SESSION")
        for flag in (
            "--mode",
            "--engine",
            "--image",
            "--runtime",
            "--mount",
            "--limit",
            "--no-network",
            "--allow-network",
            "--allow-private",
            "--list-checks",
        )
    ),
)
_EPILOG = """\
The agent works on a private copy of the repository as a user of its own; its
work comes home as one new branch. 'clsecure COMMAND --help' tells more."""


class _Parser(argparse.ArgumentParser):
    """argparse that raises our error instead of exiting with its own status."""

    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ").replace("following arguments are required", "missing")
        raise UsageError(text.replace("the missing:", "missing:"), resolution=f"see: {self.prog} --help")


def parse(argv: Sequence[str]) -> Invocation:
    """Parse the words after the program's name.

    :raises UsageError: anything that isn't understood, with the nearest flag or command.
    """
    words = list(argv)
    command: tuple[str, ...] | None = None
    if "--" in words:
        at = words.index("--")
        command, words = tuple(words[at + 1 :]), words[:at]
    words = [part for word in words for part in _unbundle(word)]
    verb, flags, positionals = _sort(words)
    if not _TEXT_FLAGS.isdisjoint(flags) and "--version" not in flags:
        return Invocation(verb=Verb.HELP, options=TextOptions(text=build_parser(verb).format_help()))
    if "--version" in flags:
        return Invocation(verb=Verb.VERSION, options=TextOptions(text=f"clsecure {__version__}\n"))
    if command is not None and verb is not Verb.RUN:
        raise UsageError(f"a command after -- does not go with 'clsecure {verb}'")
    if command is not None and not (command and command[0]):
        raise UsageError("no command after --", resolution="clsecure -- COMMAND ARGUMENTS…")
    found = vars(build_parser(verb).parse_args([*flags, "--", *positionals] if positionals else flags))
    return Invocation(verb=verb, options=_options(verb, found, command), flags=_entries(verb, found))


def wants_json(argv: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Tell how to report an error in a command line that could not be parsed."""
    words = list(argv[: argv.index("--")] if "--" in argv else argv)
    said = [word.partition("=")[2] for word in words if word.startswith("--output=")]
    said += [after for word, after in itertools.pairwise(words) if word == "--output"]
    return "json" in (said or [environ.get("CLSECURE_OUTPUT", "").strip().lower()])


def build_parser(verb: Verb = Verb.RUN) -> argparse.ArgumentParser:
    """Build the parser of one command; completions and manual pages are made from it as well."""
    positionals = _POSITIONALS.get(verb, ())
    words = [{"*": f"[{name}…]", "?": f"[{name}]"}.get(nargs or "", name) for name, nargs, _ in positionals]
    prog = "clsecure" if verb is Verb.RUN else f"clsecure {verb}"
    usage = f"{prog} {' '.join(['[OPTIONS]', *words])}"
    if verb is Verb.RUN:
        usage = "clsecure [OPTIONS] [-- COMMAND ARGUMENTS…]\n       clsecure COMMAND …"
    parser = _Parser(
        prog=prog,
        usage=usage,
        description=None if verb is Verb.RUN else COMMANDS[verb].partition("  [")[0],
        epilog=_epilog(verb),
        formatter_class=_formatter,
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.color = False  # type: ignore[attr-defined,unused-ignore]  # from Python 3.14 on it would be true
    for name, nargs, help_text in positionals:
        parser.add_argument(name, metavar=name, nargs=nargs, help=help_text)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in OPTIONS:
        if verb not in option.verbs:
            continue
        title = option.group if verb in (Verb.RUN, Verb.NETWORK, Verb.CONFIG) else GENERAL
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], option)
    groups[GENERAL].add_argument("--version", action="store_true", help="print the version")
    groups[GENERAL].add_argument("--help", "-h", action="store_true", help="print this")
    return parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def _format_action_invocation(self, action: argparse.Action) -> str:
        # A value that may be left out is part of the word.
        return super()._format_action_invocation(action).replace(" [=", "[=")


def _formatter(prog: str) -> argparse.HelpFormatter:
    return _Formatter(prog, max_help_position=27, width=78)


def _help_of_commands() -> str:
    lines = ["commands:", *(f"  {verb.value:<9} {text}" for verb, text in COMMANDS.items())]
    return "\n".join(lines) + f"\n\n{_EPILOG}"


def _epilog(verb: Verb) -> str:
    match verb:
        case Verb.RUN:
            return _help_of_commands()
        case Verb.NETWORK:
            note = "The options of the group 'network' go with 'network check' alone."
            return f"{_help_of_actions(verb, NETWORK_ACTIONS)}\n\n{note}"
        case Verb.IMAGES:
            return _help_of_actions(verb, IMAGES_ACTIONS)
        case Verb.RECORD:
            return _help_of_actions(verb, RECORD_ACTIONS)
        case _:
            return ""


def _help_of_actions(verb: Verb, actions: Mapping[Any, ActionWords]) -> str:
    lines = ["actions:"]
    for action, words in actions.items():
        lines += [f"  {verb.value} {action.value} {words.usage}".rstrip(), f"      {words.help}"]
    return "\n".join(lines)


def _add(group: argparse._ArgumentGroup, option: Option) -> None:
    details: dict[str, Any] = {
        "dest": option.name,
        "help": option.help,
    }
    if option.metavar is None:
        details["action"] = "store_true"
    else:
        details |= {"metavar": option.metavar, "type": _checked(option)}
        if option.repeat:
            details["action"] = "append"
        if option.optional is not None:
            details["nargs"] = "?"  # for the help: the value is always joined, so none is swallowed
    group.add_argument(*option.flags, **details)


class _checked:  # noqa: N801  # argparse shows the name of a converter in its messages
    """Check a value and hand on the text: the settings read it again, with all other layers."""

    def __init__(self, option: Option) -> None:
        self._option = option

    def __call__(self, text: str) -> str:
        try:
            if self._option.check is not None:
                self._option.check(text)
        except ValueError as error:
            raise UsageError(
                f"{self._option.name} {error}",
                details=f"it was {text[:200]!r}",
                resolution=_SEE_HELP,
            ) from None
        return text


def _unbundle(word: str) -> list[str]:
    if len(word) > 2 and word[0] == "-" and set(word[1:]) <= _SWITCHES:
        return [f"-{letter}" for letter in word[1:]]
    return [word]


def _sort(words: list[str]) -> tuple[Verb, list[str], list[str]]:
    """Find the command, and part flags (with their values) from what stands by itself."""
    verbs: list[Verb] = []
    flags: list[str] = []
    options: list[Option] = []
    positionals: list[str] = []
    rest = deque(words)
    while rest:
        word = rest.popleft()
        if word in VERB_FLAGS:
            verbs.append(VERB_FLAGS[word])
            flags += ["--all"] if word == "--cleanup-all" else []
        elif not word.startswith("-") or word == "-":
            positionals.append(word)
        elif word in _TEXT_FLAGS:
            flags.append(word)
        else:
            option, value = _flag(word)
            if option.metavar is not None and value is None:
                if option.optional is not None:
                    value = option.optional
                elif not rest or any(rest[0] in other.flags for other in OPTIONS):
                    raise UsageError(f"{word} needs a value ({option.metavar})", resolution=_SEE_HELP)
                else:
                    value = rest.popleft()
            options.append(option)
            # Joined, a value that begins with a dash is not taken for a flag.
            flags.append(option.name if value is None else f"{option.name}={value}")
    if positionals and (not verbs or positionals[0] in COMMANDS):
        verbs.append(_verb(positionals.pop(0)))
    if len(set(verbs)) > 1:
        raise UsageError(f"only one command at a time: {' or '.join(sorted(set(verbs)))}")
    verb = verbs[0] if verbs else Verb.RUN
    _check_flags(verb, options)
    _check_positionals(verb, positionals)
    return verb, flags, positionals


def _flag(word: str) -> tuple[Option, str | None]:
    """Return the option that a word names, and the value that is part of the word."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
    else:
        name, equals, value = word[:2], word[2:], word[2:]
    option = next((option for option in OPTIONS if name in option.flags), None)
    if option is None:
        raise _unknown_flag(name)
    if option.metavar is None and equals:
        raise UsageError(f"{name} takes no value", resolution=_SEE_HELP)
    return option, value if equals else None


def _verb(word: str) -> Verb:
    for verb in COMMANDS:
        if word == verb.value:
            return verb
    near = _nearest(word, [verb.value for verb in COMMANDS])
    hint = f"did you mean 'clsecure {near}'? " if near else ""
    raise UsageError(
        f"{word!r} is not a command of clsecure",
        resolution=f"{hint}(to run a program inside: clsecure -- {word} …)",
    )


def _check_flags(verb: Verb, options: list[Option]) -> None:
    for option in options:
        if not any(verb in other.verbs for other in OPTIONS if option.name in other.flags):
            raise UsageError(
                f"{option.name} does not go with 'clsecure {verb}'", resolution=f"see: clsecure {verb} --help"
            )


def _check_positionals(verb: Verb, positionals: list[str]) -> None:
    expected = _POSITIONALS.get(verb, ())
    if any(nargs == "*" for _, nargs, _ in expected):
        return
    if len(positionals) > len(expected):
        surplus = positionals[len(expected)]
        raise UsageError(
            f"{surplus!r} is too much for 'clsecure {verb}'",
            resolution=f"clsecure -- {surplus} …" if verb is Verb.RUN else f"see: clsecure {verb} --help",
        )


def _unknown_flag(name: str) -> UsageError:
    known = [flag for option in OPTIONS for flag in option.flags if flag.startswith("--")]
    near = _nearest(name, [*known, "--help", "--version", *(f for f in VERB_FLAGS if f.startswith("--"))])
    return UsageError(f"unknown option {name!r}", resolution=f"did you mean {near}?" if near else _SEE_HELP)


def _nearest(word: str, among: Sequence[str]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(word[:64], among, n=1)), None)


def _entries(verb: Verb, found: Mapping[str, Any]) -> tuple[Entry, ...]:
    entries = []
    for option in OPTIONS:
        if option.key is None or option.name not in found or verb not in option.verbs:
            continue
        value = found[option.name]
        texts = value if option.repeat else [option.text if option.metavar is None else value]
        source = Source(layer=Layer.FLAG, where=option.name)
        entries += [Entry(key=option.key, text=text, source=source) for text in texts]
    return tuple(entries)


def _options(verb: Verb, found: Mapping[str, Any], command: tuple[str, ...] | None) -> Options:
    _check_values(found)
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


_WITHOUT_OPTIONS: Mapping[Verb, type[ConfigOptions | ListOptions | DoctorOptions | InfoOptions]] = {
    Verb.CONFIG: ConfigOptions,
    Verb.LIST: ListOptions,
    Verb.DOCTOR: DoctorOptions,
    Verb.INFO: InfoOptions,
}
"""Commands whose flags are settings, or which have none."""


def _check_values(found: Mapping[str, Any]) -> None:
    for one, other in _EXCLUSIVE:
        if found.get(one) and found.get(other):
            raise UsageError(f"{one} and {other} exclude each other", resolution="leave one of them out")
    for selector in _selectors(found):
        _check_selector(selector)


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
