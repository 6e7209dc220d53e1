"""How a session speaks to people. The command line implements it; nothing here prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from clsecure.errors import UsageError
from clsecure.model import OnFinish, Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewLine:
    """One line of what changed. The text may be hostile; whoever shows it escapes it."""

    text: str
    severity: Severity = Severity.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishQuestion:
    """What is asked at the end of a session.

    :param default: what Enter means; ``ASK`` is ``KEEP``.
    :param branch: the name that is proposed.
    :param message: proposed for the commit of uncommitted work; None when there is none.
    :param loss: what discarding would lose, for the second question ("3 commits, 2 changed files").
    :param diff: makes the whole diff, each time it is wanted.
    """

    branch: str
    loss: str
    diff: Callable[[], bytes]
    default: OnFinish = OnFinish.KEEP
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishChoice:
    """The answer. ``action`` is never ``ASK``; None stands for what was proposed."""

    action: OnFinish
    branch: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeQuestion:
    """A kept session is there.

    :param state: one line about it ("ended 2 hours ago, work not imported yet").
    """

    session: str
    state: str


class Ui(Protocol):
    """Everything a session says and asks. Hostile text may be passed in; it is escaped and shown as text.

    The safe answer is what Enter, the end of input and Ctrl-C mean, unless a method says otherwise.
    Typed-ahead input never answers. A terminal that is gone raises nothing: questions then get the safe
    answer.
    """

    @property
    def interactive(self) -> bool:
        """True when questions reach a person."""

    def use_tag(self, tag: str) -> None:
        """Put the session's tag on every line from now on: what lacks it was not said by the tool."""

    def phase(self, text: str) -> AbstractContextManager[None]:
        """Show that something is going on, when it lasts."""

    def progress(self, text: str) -> AbstractContextManager[Callable[[str], None]]:
        """Say that something begins that may last; give a function that shows what it is at, a line each.

        It may be called from another thread.
        """

    def note(self, text: str) -> None:
        """Say one line."""

    def warn(self, text: str) -> None:
        """Say one line that matters."""

    def banner(self, lines: Sequence[str]) -> None:
        """Say what holds the agent, before it starts."""

    def ring(self, text: str, *, bell: bool, message: bool) -> None:
        """Call whoever is not looking: by the terminal's bell, or as a message that the terminal shows."""

    def show_review(self, lines: Sequence[ReviewLine]) -> None:
        """Show what changed."""

    def show_diff(self, data: bytes) -> None:
        """Show a diff, bounded, without any pager."""

    def choose_finish(self, question: FinishQuestion) -> FinishChoice:
        """Ask what happens with the work; discarding is asked twice. Not interactive: the default."""

    def choose_resume(self, question: ResumeQuestion) -> bool:
        """Ask whether to go on with a kept session (True) or start fresh (False).

        :raises KeyboardInterrupt: Ctrl-C: nothing has begun yet, so leaving is the safe answer.
        :raises UsageError: nobody can be asked.
        """

    def choose_many(self, question: str, items: Sequence[str]) -> tuple[int, ...]:
        """Ask for some of the items; the safe answer is none of them. Returns indices."""

    def confirm(self, question: str, *, default: bool = False) -> bool:
        """Ask yes or no. ``default`` is what Enter means; end of input and Ctrl-C mean no."""

    def confirm_typed(self, question: str, expected: str) -> bool:
        """Ask for the very words."""


def nobody_to_ask(question: ResumeQuestion) -> UsageError:
    """Return the error for a kept session that nobody can be asked about."""
    return UsageError(
        f"session {question.session!r} is kept: {question.state}",
        resolution="say --resume to go on with it, --fresh to start anew, or --session NAME for another one",
    )


class SilentUi:
    """Says nothing and gives every question the safe answer."""

    interactive = False

    def use_tag(self, tag: str) -> None:
        """Ignore it."""

    def phase(self, text: str) -> AbstractContextManager[None]:
        """Show nothing."""
        del text
        return nullcontext()

    def progress(self, text: str) -> AbstractContextManager[Callable[[str], None]]:
        """Show nothing."""
        del text
        return nullcontext(lambda _line: None)

    def note(self, text: str) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Say nothing."""

    def banner(self, lines: Sequence[str]) -> None:
        """Say nothing."""

    def ring(self, text: str, *, bell: bool, message: bool) -> None:
        """Call nobody."""

    def show_review(self, lines: Sequence[ReviewLine]) -> None:
        """Show nothing."""

    def show_diff(self, data: bytes) -> None:
        """Show nothing."""

    def choose_finish(self, question: FinishQuestion) -> FinishChoice:
        """Return the default, or keep."""
        return FinishChoice(action=safe_finish(question))

    def choose_resume(self, question: ResumeQuestion) -> bool:
        """Refuse to guess."""
        raise nobody_to_ask(question)

    def choose_many(self, question: str, items: Sequence[str]) -> tuple[int, ...]:
        """Return none."""
        del question, items
        return ()

    def confirm(self, question: str, *, default: bool = False) -> bool:
        """Return no."""
        del question, default
        return False

    def confirm_typed(self, question: str, expected: str) -> bool:
        """Return no."""
        del question, expected
        return False


def safe_finish(question: FinishQuestion) -> OnFinish:
    """Return what happens when nobody answers."""
    return OnFinish.KEEP if question.default is OnFinish.ASK else question.default
