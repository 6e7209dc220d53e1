"""Nothing that the agent wrote commands the user's terminal."""

from __future__ import annotations

import os
import pty

import pytest

from clsecure.terminal import escape, flush_input, has_invisible


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
        ("a\x9b31m", "a\\x9b31m"),
        (b"a\x9b31m", "a\\x9b31m"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("line\u2028line\u2029", "line\\u2028line\\u2029"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("\u3164", "\\u3164"),
        ("a\r\n\tb", "a\\r\\n\\tb"),
        ("\x7f\x00", "\\x7f\\x00"),
        (b"\xff\xfe caf\xc3\xa9", "\\xff\\xfe caf\u00e9"),
    ],
)
def test_what_commands_or_hides_becomes_visible(hostile, shown):
    assert escape(hostile) == shown


@pytest.mark.parametrize("harmless", ["plain", "grüße 世界 🎉", "C:\\dir", ""])
def test_ordinary_text_is_left_alone(harmless):
    assert escape(harmless) == harmless
    assert not has_invisible(harmless)


def test_text_of_several_lines_keeps_only_line_feeds_and_tabs():
    assert escape("a\tb\r\n\x0bc\u2028d\n", keep_newlines=True) == "a\tb\\r\n\\x0bc\\u2028d\n"


def test_typed_ahead_answers_are_thrown_away():
    master, slave = pty.openpty()
    try:
        os.write(master, b"y\n")
        flush_input(slave)
        os.write(master, b"n\n")
        assert os.read(slave, 100) == b"n\n"
    finally:
        os.close(master)
        os.close(slave)


def test_flushing_something_that_is_no_terminal_does_nothing():
    reader, writer = os.pipe()
    os.close(writer)
    flush_input(reader)
    os.close(reader)
    flush_input(reader)
