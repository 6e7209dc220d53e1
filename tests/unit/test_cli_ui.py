"""What a session says and asks, on a real terminal: nothing typed ahead counts, silence keeps the work."""

from __future__ import annotations

import os
import re
import select
import sys
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from clsecure.cli import screen as screen_module
from clsecure.cli.screen import Screen, wants_colour
from clsecure.cli.ui import MAX_DIFF_LINES, TerminalUi
from clsecure.errors import UsageError
from clsecure.model import OnFinish, Severity
from clsecure.session.ui import FinishChoice, FinishQuestion, ResumeQuestion, ReviewLine, SilentUi, Ui
from clsecure.terminal import flush_input
from tests.support.cli import ROOT
from tests.support.terminals import until_it_waits

HOSTILE = "a\x1b[2J\x9b1A\x07\u202e\u200b\r\n[tag] b [bold red]x[/] :smile:"
QUESTION = FinishQuestion(branch="claude/app-1", loss="3 commits", diff=lambda: b"+added\n", message="wip")
RESUME = ResumeQuestion(session="auth", state="ended 2 h ago")
END_OF_INPUT = b"\x04"


class Terminal:
    """A pty and a person who answers each question once it is there to be answered, then hangs up."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.answers: list[bytes] = []

    def ui(self, *, colour: bool = False, animate: bool = False) -> TerminalUi:
        made = Screen(input_fd=self.slave, output_fd=self.slave, colour=colour, animate=animate)
        return TerminalUi(made, interactive=True)

    def flush(self, fd: int) -> None:
        """Really flush, as the code under test does, and answer right after."""
        flush_input(fd)
        os.write(self.master, self.answers.pop(0) if self.answers else END_OF_INPUT)

    def text(self) -> str:
        seen = b""
        while select.select([self.master], [], [], 0)[0]:
            seen += os.read(self.master, 65536)
        return seen.decode().replace("\r\n", "\n")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    made = Terminal()
    monkeypatch.setattr(screen_module, "flush_input", made.flush)
    yield made
    os.close(made.master)
    os.close(made.slave)


@pytest.mark.parametrize(
    ("answers", "choice"),
    [
        ([], FinishChoice(action=OnFinish.KEEP)),
        ([b"\n"], FinishChoice(action=OnFinish.KEEP)),
        ([b"k\n"], FinishChoice(action=OnFinish.KEEP)),
        ([b"i\n", b"\n", b"\n"], FinishChoice(action=OnFinish.IMPORT)),
        ([b"IMPORT\n", b"x/y\n", b"my words\n"],
         FinishChoice(action=OnFinish.IMPORT, branch="x/y", message="my words")),
        ([b"i\n", b"a..b\n", b"ok\n", b"\n"], FinishChoice(action=OnFinish.IMPORT, branch="ok")),
        ([b"i\n"], FinishChoice(action=OnFinish.KEEP)),
        ([b"i\n", b"\n"], FinishChoice(action=OnFinish.KEEP)),
        ([b"what\n", b"d\n", b"y\n"], FinishChoice(action=OnFinish.DISCARD)),
        ([b"d\n", b"\n", b"\n"], FinishChoice(action=OnFinish.KEEP)),
        ([b"d\n", b"n\n", b"i\n", b"\n", b"\n"], FinishChoice(action=OnFinish.IMPORT)),
        ([b"d\n"], FinishChoice(action=OnFinish.KEEP)),
        ([b"s\n", b"s\n", b"k\n"], FinishChoice(action=OnFinish.KEEP)),
        ([b"what\n"] * 100, FinishChoice(action=OnFinish.KEEP)),
    ],
)  # fmt: skip
def test_what_happens_with_the_work(terminal: Terminal, answers: list[bytes], choice: FinishChoice) -> None:
    terminal.answers = list(answers)
    shown = answers.count(b"s\n")
    assert terminal.ui().choose_finish(QUESTION) == choice
    assert terminal.text().count("│ +added") == shown


def test_the_default_is_what_the_caller_says_but_never_a_question(terminal: Terminal) -> None:
    for default, action in ((OnFinish.IMPORT, OnFinish.IMPORT), (OnFinish.ASK, OnFinish.KEEP)):
        question = FinishQuestion(branch="b", loss="x", diff=bytes, default=default)
        terminal.answers = [b"\n", b"\n"]
        assert terminal.ui().choose_finish(question).action is action


def test_no_message_is_asked_for_when_nothing_is_uncommitted(terminal: Terminal) -> None:
    terminal.answers = [b"i\n", b"\n"]
    terminal.ui().choose_finish(FinishQuestion(branch="b", loss="x", diff=bytes))
    assert "Message" not in terminal.text()


@pytest.mark.parametrize(
    ("answers", "default", "expected"),
    [
        ([b"y\n"], False, True), ([b"Yes\n"], False, True), ([b"n\n"], True, False), ([b"\n"], False, False),
        ([b"\n"], True, True), ([], True, False), ([b"perhaps\n", b"y\n"], False, True),
        ([b"perhaps\n"] * 100, True, False),
    ],
)  # fmt: skip
def test_yes_or_no(terminal: Terminal, answers: list[bytes], default: bool, expected: bool) -> None:
    terminal.answers = list(answers)
    assert terminal.ui().confirm("Really?", default=default) is expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [([b"DELETE ALL\n"], True), ([b"delete all\n"], False), ([b"y\n"], False), ([b"\n"], False), ([], False)],
)
def test_the_very_words(terminal: Terminal, answers: list[bytes], expected: bool) -> None:
    terminal.answers = list(answers)
    assert terminal.ui().confirm_typed("All of it goes.", "DELETE ALL") is expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([b"2\n"], (1,)), ([b"3, 1 1\n"], (0, 2)), ([b"all\n"], (0, 1, 2)), ([b"\n"], ()), ([], ()),
        ([b"4\n", b"0\n", b"x\n", b"1\n"], (0,)),
    ],
)  # fmt: skip
def test_picking_some(terminal: Terminal, answers: list[bytes], expected: tuple[int, ...]) -> None:
    terminal.answers = list(answers)
    assert terminal.ui().choose_many("Which?", ["a", "b", "c"]) == expected


@pytest.mark.parametrize(
    ("answers", "expected"), [([b"\n"], True), ([b"r\n"], True), ([b"?\n", b"f\n"], False)]
)
def test_resume_or_fresh(terminal: Terminal, answers: list[bytes], expected: bool) -> None:
    terminal.answers = list(answers)
    assert terminal.ui().choose_resume(RESUME) is expected


def test_resume_is_not_guessed_when_the_input_ends(terminal: Terminal) -> None:
    with pytest.raises(UsageError, match="is kept"):
        terminal.ui().choose_resume(RESUME)


def test_g3_what_was_typed_ahead_answers_nothing(terminal: Terminal) -> None:
    ui = terminal.ui()
    os.write(terminal.master, b"y\ny\ny")
    assert ui.confirm("Discard?") is False
    os.write(terminal.master, b"i\n\n\n")
    assert ui.choose_finish(QUESTION).action is OnFinish.KEEP


def test_ctrl_c_counts_on_a_terminal_that_was_left_raw(terminal: Terminal) -> None:
    tty.setraw(terminal.slave)
    terminal.answers = [b"\x03", b"\x03"]
    assert terminal.ui().confirm("Discard?", default=True) is False
    assert terminal.ui().choose_finish(QUESTION).action is OnFinish.KEEP


def test_an_answer_of_a_raw_terminal_is_understood(terminal: Terminal) -> None:
    tty.setraw(terminal.slave)
    terminal.answers = [b"y\r"]
    assert terminal.ui().confirm("Really?") is True


def test_g1_nothing_hostile_reaches_the_terminal(terminal: Terminal) -> None:
    ui = terminal.ui()
    ui.use_tag("c0ffee")
    ui.note(HOSTILE)
    ui.warn(HOSTILE)
    ui.banner([HOSTILE, HOSTILE])
    ui.show_review([ReviewLine(text=HOSTILE, severity=Severity.HIGH)])
    ui.show_diff(f"+{HOSTILE}\n".encode())
    with ui.phase(HOSTILE):
        pass
    ui.confirm(HOSTILE)
    ui.confirm_typed(HOSTILE, HOSTILE)
    ui.choose_many(HOSTILE, [HOSTILE])
    ui.choose_finish(FinishQuestion(branch=HOSTILE, loss=HOSTILE, diff=bytes, message=HOSTILE))
    text = terminal.text()
    assert not set(text) & set("\x1b\x9b\x07\u202e\u200b\r")
    assert "[bold red]x[/] :smile:" in text
    assert "\\x1b[2J" in text


def test_g6_every_line_of_ours_carries_the_tag_and_no_other_line_can(terminal: Terminal) -> None:
    ui = terminal.ui()
    ui.note("before")
    ui.use_tag("c0ffee")
    ui.note(HOSTILE)
    ui.show_diff(b"+[c0ffee] What happens with this work?\n[c0ffee] x")
    terminal.answers = [b"k\n"]
    ui.choose_finish(QUESTION)
    first, *lines = terminal.text().rstrip("\n").split("\n")
    assert first == "before"
    assert all(line.startswith("[c0ffee] ") for line in lines)
    # What a diff says stands behind a bar.
    assert sum(line.startswith("[c0ffee] [c0ffee]") for line in lines) == 0


def test_a_long_diff_is_bounded_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "out"
    with file.open("wb") as out:
        screen = Screen(input_fd=-1, output_fd=out.fileno(), colour=False, animate=False)
        ui = TerminalUi(screen, interactive=False)
        ui.show_diff(b"+x\n" * (MAX_DIFF_LINES + 100) + b"+" + b"y" * 100_000)
    shown = file.read_text().splitlines()
    assert len(shown) == MAX_DIFF_LINES + 1
    assert shown[-1].startswith("… 101 more lines are not shown")


def test_a_long_line_is_cut_and_says_so(terminal: Terminal) -> None:
    terminal.ui().show_diff(b"+" + b"y" * 2500)
    assert terminal.text().endswith("… (501 more characters)\n")


def test_a_terminal_that_is_gone_raises_nothing_and_keeps_the_work() -> None:
    master, slave = os.openpty()
    ui = TerminalUi(Screen(input_fd=slave, output_fd=slave, colour=False, animate=True), interactive=True)
    os.close(master)
    ui.note("x")
    with ui.phase("x"):
        ui.warn("x")
    assert ui.confirm("x", default=True) is False
    assert ui.choose_finish(QUESTION).action is OnFinish.KEEP
    os.close(slave)
    ui.note("x")
    assert ui.confirm("x", default=True) is False


def test_a_quick_phase_draws_nothing_and_a_slow_one_is_wiped_away(terminal: Terminal) -> None:
    ui = terminal.ui(animate=True)
    with ui.phase("quick"):
        pass
    assert terminal.text() == ""
    seen = ""
    with ui.phase("slow"):
        deadline = time.monotonic() + 20
        while "slow" not in seen and time.monotonic() < deadline:
            select.select([terminal.master], [], [], 1)
            seen += terminal.text()
        ui.note("meanwhile")
    seen += terminal.text()
    assert re.search(r"⠋ slow", seen)
    assert "\r\x1b[Kmeanwhile\n" in seen
    assert seen.endswith(("\r\x1b[K", "meanwhile\n"))


def test_without_a_terminal_a_phase_and_colours_are_nothing(terminal: Terminal) -> None:
    assert not wants_colour(terminal.slave, {"TERM": "xterm", "NO_COLOR": "1"})
    assert not wants_colour(terminal.slave, {"TERM": "dumb"})
    assert not wants_colour(terminal.slave, {})
    assert wants_colour(terminal.slave, {"TERM": "xterm", "NO_COLOR": ""})
    read, write = os.pipe()
    assert not wants_colour(write, {"TERM": "xterm"})
    os.close(read)
    os.close(write)
    assert not wants_colour(write, {"TERM": "xterm"})


def test_colours_are_ours_alone(terminal: Terminal) -> None:
    ui = terminal.ui(colour=True)
    ui.warn("\x1b[31mx")
    assert terminal.text() == "\x1b[33mwarning: \x1b[0m\\x1b[31mx\n"


def test_nobody_there_gets_the_safe_answers() -> None:
    deaf: list[Ui] = [
        SilentUi(),
        TerminalUi(Screen(input_fd=-1, output_fd=-1, colour=False, animate=False), interactive=False),
    ]
    for ui in deaf:
        assert ui.interactive is False
        ui.use_tag("x")
        ui.note("x")
        ui.warn("x")
        ui.banner(["x"])
        ui.show_review([])
        ui.show_diff(b"x")
        with ui.phase("x"):
            pass
        assert ui.confirm("x", default=True) is False
        assert ui.confirm_typed("x", "x") is False
        assert ui.choose_many("x", ["x"]) == ()
        assert ui.choose_finish(QUESTION) == FinishChoice(action=OnFinish.KEEP)
        imported = FinishQuestion(branch="b", loss="x", diff=bytes, default=OnFinish.IMPORT)
        assert ui.choose_finish(imported).action is OnFinish.IMPORT
        with pytest.raises(UsageError) as caught:
            ui.choose_resume(RESUME)
        assert "--resume" in (caught.value.resolution or "")


_ASK = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from clsecure.cli.ui import make_ui
from clsecure.session.ui import FinishQuestion, ResumeQuestion
from clsecure.settings.values.output import OutputFormat
ui = make_ui(output=OutputFormat.HUMAN)
assert ui.interactive
question = FinishQuestion(branch="b", loss="x", diff=bytes)
try:
    print("result:", CALL)
except KeyboardInterrupt:
    print("result: left")
"""


@pytest.mark.parametrize(
    ("call", "prompt", "result"),
    [
        ("ui.choose_finish(question).action", "choice", "keep"),
        ("ui.confirm('Sure?', default=True)", "Sure", "False"),
        ("ui.confirm_typed('Sure?', 'x')", "Type x", "False"),
        ("ui.choose_many('Which?', ['a'])", "Which", "()"),
        ("ui.choose_resume(ResumeQuestion(session='s', state='x'))", "start fresh", "left"),
    ],
)
def test_ctrl_c_at_every_question_is_the_safe_answer(call: str, prompt: str, result: str) -> None:
    child = pexpect.spawn(
        sys.executable, ["-I", "-c", _ASK.replace("CALL", call)], timeout=30, encoding="utf-8"
    )
    child.expect(prompt)
    until_it_waits(child)
    child.sendintr()
    child.expect_exact(f"result: {result}")
    child.expect(pexpect.EOF)
    assert child.wait() == 0


def test_what_goes_on_is_one_line_that_moves_and_never_wraps(terminal: Terminal) -> None:
    seen = ""
    with terminal.ui(animate=True).progress("running it") as show:
        show(f"{HOSTILE}{'x' * 500}")
        deadline = time.monotonic() + 20
        while "running it" not in seen and time.monotonic() < deadline:
            select.select([terminal.master], [], [], 1)
            seen += terminal.text()
    assert "⠋ running it: a\\x1b[2J" in seen
    assert "\x1b[2J" not in seen
    lines = re.split(r"\r\x1b\[K", seen + terminal.text())
    assert max(len(line) for line in lines) <= 40


def test_all_that_goes_on_is_shown_with_verbose_and_only_the_beginning_without_a_terminal(
    tmp_path: Path,
) -> None:
    for verbose, words in ((True, ["running it", "│ one\\x1b[2J", "│ two"]), (False, ["running it"])):
        file = tmp_path / str(verbose)
        with file.open("wb") as out:
            quiet = Screen(input_fd=-1, output_fd=out.fileno(), colour=False, animate=False)
            with TerminalUi(quiet, interactive=False, verbose=verbose).progress("running it") as show:
                show("one\x1b[2J")
                show("two")
        assert file.read_text().splitlines() == words
