"""The parser of each command, made from the tables. It prints nothing and exits nowhere."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from clsecure.cli.parsing.flags import GENERAL, OPTIONS, Option
from clsecure.cli.parsing.help_texts import SEE_HELP, epilog, formatter
from clsecure.cli.parsing.positionals import POSITIONALS
from clsecure.cli.verbs import COMMANDS, Verb
from clsecure.errors import UsageError


class _Parser(argparse.ArgumentParser):
    """argparse that raises our error instead of exiting with its own status."""

    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ").replace("following arguments are required", "missing")
        raise UsageError(text.replace("the missing:", "missing:"), resolution=f"see: {self.prog} --help")


def build_parser(verb: Verb = Verb.RUN) -> argparse.ArgumentParser:
    """Build the parser of one command; completions and manual pages are made from it as well."""
    positionals = POSITIONALS.get(verb, ())
    words = [{"*": f"[{name}…]", "?": f"[{name}]"}.get(nargs or "", name) for name, nargs, _ in positionals]
    prog = "clsecure" if verb is Verb.RUN else f"clsecure {verb}"
    usage = f"{prog} {' '.join(['[OPTIONS]', *words])}"
    if verb is Verb.RUN:
        usage = "clsecure [OPTIONS] [-- COMMAND ARGUMENTS…]\n       clsecure COMMAND …"
    parser = _Parser(
        prog=prog,
        usage=usage,
        description=None if verb is Verb.RUN else COMMANDS[verb].partition("  [")[0],
        epilog=epilog(verb),
        formatter_class=formatter,
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
                resolution=SEE_HELP,
            ) from None
        return text
