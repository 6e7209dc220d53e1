"""The words of a command line, sorted: the command, flags with their values, and the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from clsecure.cli.parsing.flags import OPTIONS, Option
from clsecure.cli.parsing.help_texts import SEE_HELP
from clsecure.cli.parsing.positionals import POSITIONALS
from clsecure.cli.verbs import COMMANDS, VERB_FLAGS, Verb
from clsecure.errors import UsageError

TEXT_FLAGS = frozenset({"--help", "-h", "--version"})
"""What asks for a text, whatever else is said."""

_SWITCHES = frozenset("hlv")


def sort(words: list[str]) -> tuple[Verb, list[str], list[str]]:
    """Find the command, and part flags (with their values) from what stands by itself."""
    verbs: list[Verb] = []
    flags: list[str] = []
    options: list[Option] = []
    positionals: list[str] = []
    rest = deque(part for word in words for part in _unbundle(word))
    while rest:
        word = rest.popleft()
        if word in VERB_FLAGS:
            verbs.append(VERB_FLAGS[word])
            flags += ["--all"] if word == "--cleanup-all" else []
        elif not word.startswith("-") or word == "-":
            positionals.append(word)
        elif word in TEXT_FLAGS:
            flags.append(word)
        else:
            option, value = _flag(word)
            if option.metavar is not None and value is None:
                if option.optional is not None:
                    value = option.optional
                elif not rest or any(rest[0] in other.flags for other in OPTIONS):
                    raise UsageError(f"{word} needs a value ({option.metavar})", resolution=SEE_HELP)
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


def _unbundle(word: str) -> list[str]:
    if len(word) > 2 and word[0] == "-" and set(word[1:]) <= _SWITCHES:
        return [f"-{letter}" for letter in word[1:]]
    return [word]


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
        raise UsageError(f"{name} takes no value", resolution=SEE_HELP)
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
    expected = POSITIONALS.get(verb, ())
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
    return UsageError(f"unknown option {name!r}", resolution=f"did you mean {near}?" if near else SEE_HELP)


def _nearest(word: str, among: Sequence[str]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(word[:64], among, n=1)), None)
