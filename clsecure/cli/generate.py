"""What is made from the parser at build time: the shells' completions, and the manual page.

``invoke shell`` writes them; tests hold them against the parser. Needs shtab, and for the manual page
argparse-manpage, which ``invoke shell`` fetches (it has no wheel, so the lock file can't hold it). Nothing
imports this at run time.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clsecure import __version__
from clsecure.cli.actions import IMAGES_ACTIONS, NETWORK_ACTIONS, RECORD_ACTIONS
from clsecure.cli.commands.completion import FILES
from clsecure.cli.parsing.grammar import build_parser
from clsecure.cli.verbs import COMMANDS, SHELLS, VERB_FLAGS, Verb
from clsecure.model import Credentials, Engine, IsolationMode, OnFinish
from clsecure.settings.values.isolation import AUTO
from clsecure.settings.values.output import OutputFormat
from clsecure.settings.values.reach import PRESETS

ROOT = Path(__file__).resolve().parents[2]
MANUAL = ROOT / "docs" / "clsecure.1"
COMPLETIONS = ROOT / "clsecure" / "completions"

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "--mode": (*(mode.value for mode in IsolationMode), AUTO),
    "--engine": tuple(engine.value for engine in Engine),
    "--image": ("worker", "worker-minimal"),
    "--agent": ("claude", "demo"),
    "--provider": ("anthropic", "kimi"),
    "--credentials": tuple(each.value for each in Credentials),
    "--on-finish": tuple(each.value for each in OnFinish),
    "--output": tuple(each.value for each in OutputFormat),
    "--allow-preset": PRESETS,
}


def _source(what: str) -> dict[str, object]:
    """Return how each shell asks for names. Nothing but their letters must reach what expands words."""
    ask, letters = f"clsecure completion {what} 2>/dev/null", "[A-Za-z0-9._-]*"
    return {
        "bash": f"_clsecure_{what}",
        "zsh": f"_clsecure_{what}",
        "fish": f"({ask} | string match -er '^{letters}\\$')",
        "preamble": {
            "bash": f"""_clsecure_{what}() {{
  compgen -W "$({ask} | grep -x '{letters}')" -- "$1"
}}""",
            "zsh": f"""_clsecure_{what}() {{
  local -a names
  names=(${{(f)"$({ask} | grep -x '{letters}')"}})
  compadd -a names
}}""",
        },
    }


_SOURCES = {"SESSION": "sessions", "ARGUMENT": "sessions", "--session": "names"}
_WORDS: Mapping[tuple[Verb, str], tuple[str, ...]] = {
    (Verb.NETWORK, "ACTION"): tuple(NETWORK_ACTIONS),
    (Verb.IMAGES, "ACTION"): tuple(IMAGES_ACTIONS),
    (Verb.RECORD, "ACTION"): tuple(RECORD_ACTIONS),
    (Verb.AGENT, "ACTION"): ("install",),
    (Verb.AGENT, "NAME"): ("claude",),
    (Verb.COMPLETION, "SHELL"): SHELLS,
}


def whole_parser(*, for_shells: bool = False) -> argparse.ArgumentParser:
    """Return one parser with every command below it, as generators want it.

    :param for_shells: what may have a value after ``=`` is shown as the switch that it is without: the word
        after it is none of its own.
    """
    whole = argparse.ArgumentParser(
        prog="clsecure",
        description="Run an AI coding agent unattended on a private copy of a repository, isolated; "
        "its work comes home as one branch.",
        epilog="The exit status is the agent's own. 123: the isolation does not hold; 124: the time limit "
        "was reached; 125: clsecure failed. 'clsecure config' shows all settings.",
        parents=[_prepared(Verb.RUN, for_shells=for_shells)],
        formatter_class=_formatter,
        add_help=False,
    )
    spellings = whole.add_argument_group("the bash tool's spellings")
    for flag, verb in VERB_FLAGS.items():
        if flag.startswith("--"):
            spellings.add_argument(flag, action="store_true", help=f"as 'clsecure {verb.value}'")
    commands = whole.add_subparsers(metavar="COMMAND")
    for verb, text in COMMANDS.items():
        words = text.partition("  [")[0]
        parents = [_prepared(verb, for_shells=for_shells)]
        commands.add_parser(
            verb.value,
            help=words,
            description=words,
            parents=parents,
            formatter_class=_formatter,
            add_help=False,
        )
    return whole


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, width=78)


def _prepared(verb: Verb, *, for_shells: bool) -> argparse.ArgumentParser:
    parser = build_parser(verb)
    for action in parser._actions:
        name = next((s for s in action.option_strings if s.startswith("--")), action.dest)
        action.choices = _CHOICES.get(name) or _WORDS.get((verb, name))
        if for_shells and action.nargs == "?":
            action.nargs = 0
        if name in _SOURCES:
            action.complete = _source(_SOURCES[name])  # type: ignore[attr-defined]  # where shtab looks
        # Named for people, found by these: the names of values are no destinations of a real parser.
        action.dest = action.dest.lstrip("-").replace("-", "_").lower()
    return parser


def completions() -> dict[Path, str]:
    """Return the completion of each shell, by its file."""
    import shtab

    made = {
        COMPLETIONS / name: shtab.complete(whole_parser(for_shells=True), shell=sh)
        for sh, name in FILES.items()
    }
    return {path: f"{text.rstrip()}\n" for path, text in made.items()}


def manual() -> str:
    """Return the manual page."""
    from argparse_manpage.manpage import Manpage  # type: ignore[import-not-found]

    data: dict[str, Any] = {"description": "run an AI coding agent isolated", "project_name": "clsecure"}
    _, _, page = str(Manpage(whole_parser(), _data=data)).partition("\n")
    # A line that begins with an apostrophe is a request to troff. Its first line has the day of its making.
    page = page.replace("\n'", "\n\\&'").rstrip()
    page = page.replace(" [=", "[=").replace(" \\fI\\,[=", "\\fI\\,[=")  # part of the word before it
    return f'.TH CLSECURE 1 "" "clsecure {__version__}" "User Commands"\n{page}\n'


if __name__ == "__main__":
    for _path, _text in {**completions(), MANUAL: manual()}.items():
        _path.parent.mkdir(exist_ok=True)
        _path.write_text(_text)
