"""What readers have in common: truth values, closed sets, lists."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

_TRUE = frozenset({"true", "yes", "1", "on"})
_FALSE = frozenset({"false", "no", "0", "off"})

_Member = TypeVar("_Member", bound=StrEnum)


def boolean(text: str) -> bool:
    """Read the predecessor's spellings of a truth value."""
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("must be true or false (yes, no, 1 and 0 are understood)")


def choice(kind: type[_Member], text: str) -> _Member:
    """Read a member of a closed set, in any case."""
    try:
        return kind(text.strip().lower())
    except ValueError:
        names = [member.value for member in kind]
        raise ValueError(f"must be {', '.join(names[:-1])} or {names[-1]}") from None


def switch(kind: type[_Member], text: str, *, on: _Member, off: _Member) -> _Member:
    """Read a member of a set that the predecessor knew as true and false."""
    word = text.strip().lower()
    if word in _TRUE or word in _FALSE:
        return on if word in _TRUE else off
    try:
        return choice(kind, word)
    except ValueError as error:
        raise ValueError(f"{error} (true is {on.value}, false is {off.value})") from None


def items(text: str) -> tuple[str, ...]:
    """Part a list at its commas. An empty item is an error: something may be missing there."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise ValueError("must not be empty, nor have an empty item between commas")
    return parts


def is_unicode(text: str) -> bool:
    """Tell whether a text can be written: a lone half of a character can't."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
