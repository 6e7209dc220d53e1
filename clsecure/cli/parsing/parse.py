"""From words to an invocation. Prints nothing, exits nowhere, imports little."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from clsecure import __version__
from clsecure.cli.options import Invocation, TextOptions
from clsecure.cli.parsing.flags import OPTIONS
from clsecure.cli.parsing.grammar import build_parser
from clsecure.cli.parsing.sorting import TEXT_FLAGS, sort
from clsecure.cli.parsing.typed import typed_options
from clsecure.cli.verbs import Verb
from clsecure.errors import UsageError
from clsecure.settings.sources import Entry, Layer, Source


def parse(argv: Sequence[str]) -> Invocation:
    """Parse the words after the program's name.

    :raises UsageError: anything that isn't understood, with the nearest flag or command.
    """
    words = list(argv)
    command: tuple[str, ...] | None = None
    if "--" in words:
        at = words.index("--")
        command, words = tuple(words[at + 1 :]), words[:at]
    verb, flags, positionals = sort(words)
    if not TEXT_FLAGS.isdisjoint(flags) and "--version" not in flags:
        return Invocation(verb=Verb.HELP, options=TextOptions(text=build_parser(verb).format_help()))
    if "--version" in flags:
        return Invocation(verb=Verb.VERSION, options=TextOptions(text=f"clsecure {__version__}\n"))
    if command is not None and verb is not Verb.RUN:
        raise UsageError(f"a command after -- does not go with 'clsecure {verb}'")
    if command is not None and not (command and command[0]):
        raise UsageError("no command after --", resolution="clsecure -- COMMAND ARGUMENTS…")
    found = vars(build_parser(verb).parse_args([*flags, "--", *positionals] if positionals else flags))
    return Invocation(verb=verb, options=typed_options(verb, found, command), flags=_entries(verb, found))


def wants_json(argv: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Tell how to report an error in a command line that could not be parsed."""
    words = list(argv[: argv.index("--")] if "--" in argv else argv)
    said = [word.partition("=")[2] for word in words if word.startswith("--output=")]
    said += [after for word, after in itertools.pairwise(words) if word == "--output"]
    return "json" in (said or [environ.get("CLSECURE_OUTPUT", "").strip().lower()])


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
