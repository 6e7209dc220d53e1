"""Words to standard error and answers from standard input. Survives a terminal that is gone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum

from clsecure.terminal import escape, flush_input

_MAX_ANSWER = 4096
_SPINNER_AFTER_S = 0.3
_SPINNER_STEP_S = 0.1
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_CLEAR_LINE = "\r\x1b[K"
_LEAST_COLUMNS = 40
# The tag in its brackets, the sign that moves, the spaces between.
_SPINNER_ROOM = 13


class Style(StrEnum):
    """Select Graphic Rendition parameters. By hand: rich costs a start 60 ms that it does not need."""

    PLAIN = ""
    DIM = "2"
    BOLD = "1"
    RED = "31"
    GREEN = "32"
    YELLOW = "33"


def wants_colour(fd: int, environ: Mapping[str, str]) -> bool:
    """Tell whether colours may be sent to a descriptor."""
    return is_terminal(fd) and not environ.get("NO_COLOR") and environ.get("TERM", "dumb") != "dumb"


def is_terminal(fd: int) -> bool:
    """Tell whether a descriptor is a terminal; a closed one is none."""
    with suppress(OSError):
        return os.isatty(fd)
    return False


class Screen:
    """The person's side of the process. Every text passes :func:`escape` here and nowhere later.

    :param colour: styles may be sent.
    :param animate: a spinner may be drawn.
    """

    def __init__(self, *, input_fd: int = 0, output_fd: int = 2, colour: bool, animate: bool) -> None:
        self._in = input_fd
        self._out = output_fd
        self._colour = colour
        self._animate = animate
        self._gone = False
        self._drawn = False
        self._lock = threading.Lock()
        self.tag = ""

    def line(self, text: str, style: Style = Style.PLAIN, *, label: str = "") -> None:
        """Write one whole line, with the tag; a line feed in the text is shown, not obeyed.

        Otherwise a name with a line feed could make a line of its own that carries the tag.

        :param label: our own word before the text, in the style; the text is then plain.
        """
        shown = escape(text.replace("\n", "\\n"), keep_newlines=True)
        body = f"{self._styled(label, style)}{shown}" if label else self._styled(shown, style)
        self._write(f"{self._prefix()}{body}\n")

    def ring(self, text: str | None, *, bell: bool) -> None:
        """Ring the bell, and have the terminal show a message (OSC 9); nothing where there is no terminal."""
        if is_terminal(self._out):
            message = f"\x1b]9;{escape(text)}\x1b\\" if text else ""
            self._write(message + ("\a" if bell else ""))

    def ask(self, question: str) -> str | None:
        """Ask and return the stripped answer; None at the end of input.

        :raises KeyboardInterrupt: Ctrl-C.
        """
        self._write(f"{self._prefix()}{escape(question)} ")
        # Last before reading: what an agent made the terminal "answer" until now is no answer.
        flush_input(self._in)
        answer = b""
        try:
            while b"\n" not in answer and b"\r" not in answer and len(answer) < _MAX_ANSWER:
                chunk = os.read(self._in, _MAX_ANSWER)
                if not chunk:
                    break
                answer += chunk
                if b"\x03" in chunk:  # a terminal that was left in raw mode sends no signal
                    raise KeyboardInterrupt
        except OSError:
            answer = b""
        except KeyboardInterrupt:
            self._write("\n")
            raise
        if not answer:
            self._write("\n")
            return None
        return answer.replace(b"\r", b"\n").split(b"\n")[0].decode("utf-8", "replace").strip()

    @contextmanager
    def spinner(self, text: str) -> Iterator[None]:
        """Draw a line that moves until the block ends, if it takes longer than a blink."""
        if not self._animate:
            yield
            return
        with self._moving(lambda: text):
            yield

    @contextmanager
    def progress(self, text: str, *, all_lines: bool) -> Iterator[Callable[[str], None]]:
        """Say that something begins, and show what it is at: in one line that moves, or all of it.

        :param all_lines: a line of its own for each; otherwise nothing where nothing can move.
        """
        if not self._animate:
            self.line(text)
            yield self._quoted if all_lines else lambda _line: None
            return
        shown = [escape(text)]

        def show(line: str) -> None:
            shown[0] = escape(f"{text}: {line}")

        with self._moving(lambda: self._cut(shown[0])):
            yield show

    def _quoted(self, line: str) -> None:
        self.line(f"│ {line}")

    def _cut(self, text: str) -> str:
        """Return what fits the terminal: longer than that, a line could not be taken back."""
        columns = _LEAST_COLUMNS
        with suppress(OSError):
            columns = max(columns, os.get_terminal_size(self._out).columns)
        room = columns - _SPINNER_ROOM
        # Beyond ASCII a character may take two places.
        return text[: room if text.isascii() else room // 2]

    @contextmanager
    def _moving(self, text: Callable[[], str]) -> Iterator[None]:
        done = threading.Event()
        thread = threading.Thread(target=self._spin, args=(text, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _spin(self, text: Callable[[], str], done: threading.Event) -> None:
        if done.wait(_SPINNER_AFTER_S):
            return
        step = 0
        while True:
            self._write(
                f"{_CLEAR_LINE}{self._prefix()}{_SPINNER[step % len(_SPINNER)]} {escape(text())}",
                transient=True,
            )
            step += 1
            if done.wait(_SPINNER_STEP_S):
                self._write(_CLEAR_LINE, transient=True)
                return

    def _prefix(self) -> str:
        return self._styled(f"[{self.tag}]", Style.DIM) + " " if self.tag else ""

    def _styled(self, text: str, style: Style) -> str:
        return f"\x1b[{style.value}m{text}\x1b[0m" if self._colour and style and text else text

    def _write(self, text: str, *, transient: bool = False) -> None:
        with self._lock:
            # Only over a spinner of ours: the line may be an unfinished one of the agent's.
            data = memoryview(
                f"{_CLEAR_LINE if self._drawn else ''}{text}".encode("utf-8", "backslashreplace")
            )
            self._drawn = transient
            try:
                while data and not self._gone:
                    data = data[os.write(self._out, data) :]
            except OSError:
                # Nobody sees it any more. The session goes on: its work must not be lost over that.
                self._gone = True
