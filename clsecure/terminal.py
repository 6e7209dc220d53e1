"""What may reach a terminal. The one escaping function of the project, and the flush before a question."""

from __future__ import annotations

import os
import re
import termios

# str.isprintable() is False for controls, format characters (bidi, zero width), surrogates, separators
# other than the space, private use and unassigned code points. These are printable by category, yet show
# nothing or glue onto their neighbour, and serve to make two names look alike.
_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\u2800"
_INVISIBLE_PATTERN = re.compile(f"[{_INVISIBLE}]")
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def escape(text: str | bytes, *, keep_newlines: bool = False) -> str:
    """Return text that shows everything and commands nothing.

    Controls (C0, C1, DEL), bidi controls, zero-width and other invisible characters, line separators,
    surrogates and bytes that are no UTF-8 become visible as ``\\x1b`` or ``\\u202e``. Backslashes are left
    as they are: the result is for eyes, not for parsing.

    :param keep_newlines: leave line feeds and tabs alone, for text of several lines.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    if keep_newlines:
        # Splitting at "\n" and "\t" only: splitlines() would swallow U+2028, \x0b and others.
        return "\n".join(
            "\t".join(_escape_run(cell) for cell in line.split("\t")) for line in text.split("\n")
        )
    return _escape_run(text)


def has_invisible(text: str) -> bool:
    """Tell whether :func:`escape` would change the text (line feeds and tabs aside)."""
    return escape(text, keep_newlines=True) != text


def flush_input(fd: int) -> None:
    """Throw away what was typed ahead, so that no answer is older than its question."""
    try:
        if os.isatty(fd):
            termios.tcflush(fd, termios.TCIFLUSH)
    except (OSError, termios.error):
        # A terminal that is gone has nothing to flush; the read that follows says so.
        return


def _escape_run(text: str) -> str:
    if text.isprintable() and not _INVISIBLE_PATTERN.search(text):
        return text
    return "".join(c if c.isprintable() and c not in _INVISIBLE else _visible(c) for c in text)


def _visible(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as surrogateescape carries it
        return f"\\x{code - 0xDC00:02x}"
    if code < 0xA0:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
