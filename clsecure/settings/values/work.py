"""What comes home: what happens with the work at the end, its branch and message."""

from __future__ import annotations

import re

from clsecure.model import OnFinish
from clsecure.settings.values.words import choice, is_unicode

_BRANCH_REFUSED = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_MAX_BRANCH = 200
_MAX_MESSAGE = 64 * 1024


def on_finish(text: str) -> OnFinish:
    """Read what happens with the work at the end."""
    return choice(OnFinish, text)


def branch(text: str) -> str:
    """Read the name of a branch by git's own rules, so that a bad one is refused before the session."""
    if not 0 < len(text) <= _MAX_BRANCH:
        raise ValueError(f"must have 1 to {_MAX_BRANCH} characters")
    parts = text.split("/")
    bad = (
        _BRANCH_REFUSED.search(text)
        or text in {"@", "HEAD"}
        or text.startswith(("-", "refs/"))
        or text.endswith(".")
        or any(not part or part.startswith(".") or part.endswith(".lock") for part in parts)
        or not is_unicode(text)
    )
    if bad:
        raise ValueError("is not a name that git accepts for a branch")
    return text


def message(text: str) -> str:
    """Read a commit message."""
    if not text.strip() or len(text) > _MAX_MESSAGE or "\0" in text or not is_unicode(text):
        raise ValueError("must be text and not empty")
    return text
