"""The session's words and questions on a terminal, or on whatever stands in its place.

Everything goes to standard error: standard output belongs to the agent's own output and to results.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from clsecure.cli.screen import Screen, Style, is_terminal, wants_colour
from clsecure.model import OnFinish, Severity
from clsecure.session.ui import (
    FinishChoice,
    FinishQuestion,
    ResumeQuestion,
    ReviewLine,
    nobody_to_ask,
    safe_finish,
)
from clsecure.settings.values import work
from clsecure.settings.values.output import OutputFormat
from clsecure.terminal import escape

MAX_DIFF_LINES = 5000
MAX_LINE_CHARACTERS = 2000
_MAX_TRIES = 20
_SEVERITY = {Severity.INFO: Style.PLAIN, Severity.WARNING: Style.YELLOW, Severity.HIGH: Style.RED}
_DIFF = {"+": Style.GREEN, "-": Style.RED, "@": Style.DIM}


class TerminalUi:
    """The implementation of :class:`clsecure.session.ui.Ui` for people."""

    def __init__(self, screen: Screen, *, interactive: bool, verbose: bool = False) -> None:
        self._screen = screen
        self._interactive = interactive
        self._verbose = verbose

    @property
    def interactive(self) -> bool:
        """True when questions reach a person."""
        return self._interactive

    def use_tag(self, tag: str) -> None:
        """Put the tag on every line from now on."""
        self._screen.tag = tag

    def phase(self, text: str) -> AbstractContextManager[None]:
        """Show a spinner when it takes longer than 300 ms; nothing where there is no terminal."""
        return self._screen.spinner(text)

    def progress(self, text: str) -> AbstractContextManager[Callable[[str], None]]:
        """Show the last line beside a spinner; all lines with ``verbose``."""
        return self._screen.progress(text, all_lines=self._verbose)

    def note(self, text: str) -> None:
        """Say it."""
        self._screen.line(text)

    def warn(self, text: str) -> None:
        """Say it in yellow."""
        self._screen.line(text, Style.YELLOW, label="warning: ")

    def banner(self, lines: Sequence[str]) -> None:
        """Say the lines, the first one in bold."""
        for number, line in enumerate(lines):
            self._screen.line(line, Style.PLAIN if number else Style.BOLD)

    def ring(self, text: str, *, bell: bool, message: bool) -> None:
        """Ring where there is a terminal."""
        self._screen.ring(text if message else None, bell=bell)

    def show_review(self, lines: Sequence[ReviewLine]) -> None:
        """Show the lines, coloured by severity."""
        for line in lines:
            self._screen.line(_cut(line.text), _SEVERITY[line.severity])

    def show_diff(self, data: bytes) -> None:
        """Show the diff up to a bound that is named when it is reached."""
        lines = data.split(b"\n", MAX_DIFF_LINES)
        rest = lines.pop() if len(lines) > MAX_DIFF_LINES else b""
        for raw in lines:
            text = escape(raw, keep_newlines=True)
            self._screen.line(f"│ {_cut(text)}", _DIFF.get(text[:1], Style.PLAIN))
        if rest:
            count = rest.count(b"\n") + 1
            self._screen.line(f"… {count} more lines are not shown here (all of them: clsecure diff)")

    def choose_finish(self, question: FinishQuestion) -> FinishChoice:
        """Ask until there is an answer; whatever goes wrong with asking means keep."""
        default = safe_finish(question)
        if not self._interactive:
            return FinishChoice(action=default)
        try:
            return self._finish(question, default)
        except KeyboardInterrupt:
            return FinishChoice(action=OnFinish.KEEP)

    def choose_resume(self, question: ResumeQuestion) -> bool:
        """Ask; Enter resumes, Ctrl-C leaves, the end of input can't tell."""
        if not self._interactive:
            raise nobody_to_ask(question)
        self._screen.line(f"Session {question.session!r} is kept: {question.state}")
        for _ in range(_MAX_TRIES):
            answer = self._screen.ask("Go on with it, or start fresh? (r)esume, (f)resh [r]")
            match answer and answer.lower():
                case "" | "r" | "resume":
                    return True
                case "f" | "fresh":
                    return False
                case None:
                    break
                case _:
                    continue
        raise nobody_to_ask(question)

    def choose_many(self, question: str, items: Sequence[str]) -> tuple[int, ...]:
        """Ask for numbers; Enter, the end of input and Ctrl-C pick nothing."""
        if not self._interactive or not items:
            return ()
        for number, item in enumerate(items, start=1):
            self._screen.line(f"{number:>3}  {item}")
        for _ in range(_MAX_TRIES):
            try:
                answer = self._screen.ask(f"{question} (numbers, 'all', Enter for none)")
            except KeyboardInterrupt:
                return ()
            picked = _numbers(answer or "", len(items))
            if picked is not None:
                return picked
        return ()

    def confirm(self, question: str, *, default: bool = False) -> bool:
        """Ask yes or no."""
        if not self._interactive:
            return False
        for _ in range(_MAX_TRIES):
            try:
                answer = self._screen.ask(f"{question} [{'Y/n' if default else 'y/N'}]")
            except KeyboardInterrupt:
                return False
            match answer and answer.lower():
                case "":
                    return default
                case "y" | "yes":
                    return True
                case "n" | "no" | None:
                    return False
                case _:
                    continue
        return False

    def confirm_typed(self, question: str, expected: str) -> bool:
        """Ask for the very words, once."""
        if not self._interactive:
            return False
        try:
            return self._screen.ask(f"{question} Type {expected} to go on:") == expected
        except KeyboardInterrupt:
            return False

    def _finish(self, question: FinishQuestion, default: OnFinish) -> FinishChoice:
        self._screen.line("What happens with this work?", Style.BOLD)
        self._screen.line(f"  i  import it as the branch {question.branch}")
        for line in ("  k  keep it for later", "  d  discard it", "  s  show the diff"):
            self._screen.line(line)
        for _ in range(_MAX_TRIES):
            answer = self._screen.ask(f"Your choice [{default.value[0]}]")
            match answer if answer is None else answer.lower() or default.value:
                case None | "k" | "keep":
                    return FinishChoice(action=OnFinish.KEEP)
                case "i" | "import":
                    return self._import(question)
                case "d" | "discard":
                    if self.confirm(f"Discard {question.loss} for good?"):
                        return FinishChoice(action=OnFinish.DISCARD)
                case "s" | "show" | "diff":
                    self._show_again(question)
                case _:
                    continue
        return FinishChoice(action=OnFinish.KEEP)

    def _show_again(self, question: FinishQuestion) -> None:
        try:
            self.show_diff(question.diff())
        except KeyboardInterrupt:
            self._screen.line("(the rest is not shown)")

    def _import(self, question: FinishQuestion) -> FinishChoice:
        keep = FinishChoice(action=OnFinish.KEEP)
        branch = None
        for _ in range(_MAX_TRIES):
            branch = self._screen.ask(f"Branch [{question.branch}]")
            if not branch:
                break
            try:
                work.branch(branch)
                break
            except ValueError as error:
                self.warn(f"that {error}")
        else:
            return keep
        if branch is None:
            return keep
        message: str | None = ""
        if question.message is not None:
            message = self._screen.ask(f"Message for the uncommitted work [{question.message}]")
            if message is None:
                return keep
        return FinishChoice(action=OnFinish.IMPORT, branch=branch or None, message=message or None)


def make_ui(
    *, output: OutputFormat, verbose: bool = False, environ: Mapping[str, str] | None = None
) -> TerminalUi:
    """Make the way to speak for this process's own descriptors.

    With JSON nothing is asked, also on a terminal: who reads JSON does not answer. With ``verbose`` nothing
    moves: events are lines of their own.
    """
    env = os.environ if environ is None else environ
    terminal = is_terminal(2)
    animate = terminal and not verbose and env.get("TERM", "dumb") != "dumb"
    screen = Screen(colour=wants_colour(2, env), animate=animate)
    interactive = terminal and is_terminal(0) and output is OutputFormat.HUMAN
    return TerminalUi(screen, interactive=interactive, verbose=verbose)


def _cut(text: str) -> str:
    if len(text) <= MAX_LINE_CHARACTERS:
        return text
    return f"{text[:MAX_LINE_CHARACTERS]}… ({len(text) - MAX_LINE_CHARACTERS} more characters)"


def _numbers(answer: str, count: int) -> tuple[int, ...] | None:
    """Return zero-based indices, None for what is no list of numbers."""
    if answer.lower() == "all":
        return tuple(range(count))
    words = answer.replace(",", " ").split()
    if not all(word.isascii() and word.isdecimal() and 0 < int(word) <= count for word in words):
        return None
    return tuple(sorted({int(word) - 1 for word in words}))
