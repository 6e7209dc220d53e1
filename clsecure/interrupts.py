"""SIGTERM and SIGHUP end a command the orderly way: what is held is released, and work is kept."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_received: list[int] = []


class EndedBySignal(BaseException):
    """The process is to end. Unlike KeyboardInterrupt no question takes it for its safe answer.

    :param number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The shell's way to say it."""
        return 128 + self.number

    @property
    def brief(self) -> str:
        """What happened, one sentence."""
        return f"ended by {signal.Signals(self.number).name}"


def obey() -> None:
    """Raise :class:`EndedBySignal` for signals that would end the process; ignored ones stay so (nohup)."""
    for number in _ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    # Once: whoever is in a hurry must not cut the clean-up short.
    if not _received:
        _received.append(number)
        raise EndedBySignal(number)


@contextmanager
def deferred() -> Iterator[None]:
    """Let the block come to its end first: what would be cut in half is worth the moment."""
    waiting: list[int] = []
    before = {}
    for number in (signal.SIGINT, *_ENDING):
        handler = signal.getsignal(number)
        if callable(handler):
            before[number] = handler
            signal.signal(number, lambda late, _frame: waiting.append(late))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])
