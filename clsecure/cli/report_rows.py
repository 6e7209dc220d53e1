"""What a report is made of: sections of rows of words, escaped and bounded."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from clsecure.terminal import escape

_MOST = 300


class Mark(StrEnum):
    """How a row strikes the eye."""

    PLAIN = "plain"
    GOOD = "good"
    WEAK = "weak"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line. The cells are escaped."""

    cells: tuple[str, ...]
    mark: Mark = Mark.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One heading with a table, or with ``nothing`` where the table is empty."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...] = ()
    nothing: str = "nothing"
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of it."""

    title: str
    verdict: str
    mark: Mark
    sections: tuple[Section, ...] = field(default_factory=tuple)


def row(*cells: str, mark: Mark = Mark.PLAIN) -> Row:
    """Return one line, escaped."""
    return Row(cells=tuple(text(cell) for cell in cells), mark=mark)


def text(words: str) -> str:
    """Return what may be seen, bounded. The record is escaped already; that is not relied on."""
    shown = escape(words)
    return shown if len(shown) <= _MOST else f"{shown[:_MOST]}…"
