"""Names of what is looked up elsewhere: sessions, agents, providers."""

from __future__ import annotations

import re

_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_AGENT = re.compile(r"[a-z][a-z0-9-]{0,31}")


def session(text: str) -> str:
    """Read the name of a session."""
    if not _SESSION.fullmatch(text):
        raise ValueError(
            "must be 1 to 32 letters, digits, dots, dashes or underscores, a letter or digit first"
        )
    return text


def agent(text: str) -> str:
    """Read the name of an agent."""
    if not _AGENT.fullmatch(text):
        raise ValueError("must be 1 to 32 lower-case letters, digits or dashes, a letter first")
    return text


def provider(text: str) -> str:
    """Read the name of a provider; which ones there are is known where the tables are."""
    if not _AGENT.fullmatch(text.strip().lower()):
        raise ValueError("must be 1 to 32 lower-case letters, digits or dashes, a letter first")
    return text.strip().lower()
