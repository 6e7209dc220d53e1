"""How the user is told: results, and calls."""

from __future__ import annotations

from enum import StrEnum

from clsecure.settings.values.words import choice, items

NOTIFICATIONS = ("desktop", "bell", "osc9")
"""Ways to call the user: a desktop notification, the terminal's bell, the terminal's own notification."""


class OutputFormat(StrEnum):
    """How results are written to standard output."""

    HUMAN = "human"
    JSON = "json"


def output(text: str) -> OutputFormat:
    """Read an output format."""
    return choice(OutputFormat, text)


def notify(text: str) -> tuple[str, ...]:
    """Read how the user is called: ``desktop``, ``bell``, ``osc9``, commas between several, or ``none``."""
    if text.strip().lower() == "none":
        return ()
    names = tuple(dict.fromkeys(item.lower() for item in items(text)))
    if not set(names) <= set(NOTIFICATIONS):
        raise ValueError(f"must be none, or one or more of {', '.join(NOTIFICATIONS)}")
    return names
