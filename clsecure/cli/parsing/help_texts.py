"""What the help says around the flags, and how it is laid out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from clsecure.cli.actions import IMAGES_ACTIONS, NETWORK_ACTIONS, RECORD_ACTIONS, ActionWords
from clsecure.cli.verbs import COMMANDS, Verb

SEE_HELP = "see: clsecure --help"

_EPILOG = """\
The agent works on a private copy of the repository as a user of its own; its
work comes home as one new branch. 'clsecure COMMAND --help' tells more."""


def epilog(verb: Verb) -> str:
    """Return what stands below the flags of a command."""
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


def _help_of_commands() -> str:
    lines = ["commands:", *(f"  {verb.value:<9} {text}" for verb, text in COMMANDS.items())]
    return "\n".join(lines) + f"\n\n{_EPILOG}"


def _help_of_actions(verb: Verb, actions: Mapping[Any, ActionWords]) -> str:
    lines = ["actions:"]
    for action, words in actions.items():
        lines += [f"  {verb.value} {action.value} {words.usage}".rstrip(), f"      {words.help}"]
    return "\n".join(lines)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def _format_action_invocation(self, action: argparse.Action) -> str:
        # A value that may be left out is part of the word.
        return super()._format_action_invocation(action).replace(" [=", "[=")


def formatter(prog: str) -> argparse.HelpFormatter:
    """Return the layout of the help: the same for every terminal."""
    return _Formatter(prog, max_help_position=27, width=78)
