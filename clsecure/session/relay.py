"""Between the user's descriptors and the agent's. The agent never gets one of the user's own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from clsecure.backends.local import LocalSandbox
from clsecure.backends.streams import copy, write_all

_CHUNK = 65536
# What an agent may have left behind. Source: xterm's ctlseqs.
_RESET_TERMINAL = (
    # An unfinished control string would swallow all of this.
    b"\x18\x1b\\"
    # Alternate screen. Leaving it restores a cursor even where it was not entered: save it before.
    b"\x1b7\x1b[?1049l\x1b[?1047l\x1b[?47l"
    # Mouse, focus, paste and size reports, keyboard protocols: all that would make the terminal type.
    b"\x1b[?9l\x1b[?1000l\x1b[?1001l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1005l\x1b[?1006l\x1b[?1015l\x1b[?1016l"
    b"\x1b[?2004l\x1b[?2031l\x1b[?2048l\x1b[?1l\x1b>\x1b[?66l\x1b[<u\x1b[=0u\x1b[>4;0m"
    # Held back output, reverse video, the 132 columns' margins, character sets, link, colours.
    b"\x1b[?2026l\x1b[?5l\x1b[?69l\x1b(B\x1b)B\x0f\x1b]8;;\x1b\\\x1b[0m"
    # The scroll region; setting it moves the cursor. Then insert mode, origin mode and the like (DECSTR).
    b"\x1b7\x1b[r\x1b8\x1b[!p\x1b[4l\x1b[20l\x1b[?25h\x1b[?7h"
)


def on_terminal() -> bool:
    """Tell whether the agent can be talked to: standard input and output are terminals."""
    return sys.stdin is not None and sys.stdout is not None and os.isatty(0) and os.isatty(1)


def terminal_size(fd: int) -> tuple[int, int]:
    """Return (rows, columns), 24 by 80 where the terminal doesn't know."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8))
    except OSError:
        rows, columns = 0, 0
    return rows or 24, columns or 80


@contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Put the user's terminal into raw mode and restore it, whatever happens."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSANOW)
        yield
    finally:
        with contextlib.suppress(termios.error, OSError):
            # Typed-ahead keys were meant for the agent; they must not answer the tool's questions.
            termios.tcsetattr(fd, termios.TCSAFLUSH, before)


def relay_terminal(sandbox: LocalSandbox, *, stdin: int, stdout: int, deadline: float | None) -> bool:
    """Carry bytes between the user's terminal and the sandbox's pty until the command ends.

    :param deadline: of the monotonic clock.
    :returns: False when the time was over.
    """
    master = sandbox.terminal
    assert master is not None  # noqa: S101  # the caller asked for one
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    previous = signal.signal(signal.SIGWINCH, lambda *_: _wake(wake_write))
    os.set_blocking(master, False)
    try:
        with raw_terminal(stdin):
            try:
                return _pump(sandbox, master, stdin, stdout, wake_read, deadline)
            finally:
                with contextlib.suppress(OSError):
                    reset_terminal(stdout)
    finally:
        signal.signal(signal.SIGWINCH, previous)
        os.close(wake_read)
        os.close(wake_write)


def _wake(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.write(fd, b"w")


def _pump(
    sandbox: LocalSandbox, master: int, stdin: int, stdout: int, wake: int, deadline: float | None
) -> bool:
    sandbox.resize(*terminal_size(stdin))
    typed, reading = b"", [stdin, master, wake, sandbox.fileno()]
    while sandbox.end is None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        readable, writable, _ = select.select(reading, [master] if typed else [], [], left)
        if not readable and not writable:
            return False
        if wake in readable:
            os.read(wake, 4096)
            sandbox.resize(*terminal_size(stdin))
        if stdin in readable:
            data = _typed(stdin)
            if not data:
                sandbox.kill()
                reading.remove(stdin)
            typed += data
        if master in writable:
            with contextlib.suppress(BlockingIOError):
                typed = typed[os.write(master, typed) :]
        if master in readable and not _forward(master, stdout):
            reading.remove(master)
        if sandbox.fileno() in readable:
            sandbox.receive()
    while master in reading and select.select([master], [], [], 0)[0] and _forward(master, stdout):
        pass
    return True


def _typed(stdin: int) -> bytes:
    """Return what was typed; nothing when the terminal is gone, however it says so."""
    try:
        return os.read(stdin, _CHUNK)
    except OSError:
        return b""


def _forward(source: int, target: int) -> bool:
    try:
        data = os.read(source, _CHUNK)
    except BlockingIOError:
        return True
    except OSError:
        # EIO: the other side of a pty is closed.
        return False
    # The terminal may be gone: its input says so too, and ends the session.
    with contextlib.suppress(OSError):
        write_all(target, data)
    return bool(data)


def reset_terminal(fd: int) -> None:
    """Make a terminal usable again after an agent, with the cursor at the start of a line."""
    _, columns = terminal_size(fd)
    # A line's worth of spaces ends on this line when it is empty, and on the next one when it is not.
    write_all(fd, _RESET_TERMINAL + b" " * columns + b"\r")


class PipeRelay:
    """Pipes for the agent, and threads that carry their bytes from and to the user's own descriptors.

    Never the descriptors themselves: a terminal takes injected input (TIOCSTI), a file can be reopened.

    :param to_stderr: the agent's standard output goes to standard error too.
    """

    def __init__(self, *, to_stderr: bool) -> None:
        in_read, in_write = os.pipe2(os.O_CLOEXEC)
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        err_read, err_write = os.pipe2(os.O_CLOEXEC)
        self.stdio = (in_read, out_write, err_write)
        self._given = True
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self._feeder = threading.Thread(target=copy, args=(0, in_write, self._stop_read), daemon=True)
        self._readers = [
            threading.Thread(target=copy, args=(out_read, 2 if to_stderr else 1), daemon=True),
            threading.Thread(target=copy, args=(err_read, 2), daemon=True),
        ]

    def begin(self) -> None:
        """Start carrying, once the sandbox holds its ends; ours are closed, so that an end is seen."""
        self._close_given()
        for thread in (self._feeder, *self._readers):
            thread.start()

    def finish(self, *, patience: float | None) -> None:
        """Wait until all output is out, so many seconds at most; every writer is dead by now."""
        self._close_given()
        # What is typed from now on answers the tool's questions.
        os.close(self._stop_write)
        for thread in (self._feeder, *self._readers):
            if thread.ident is not None:
                thread.join(timeout=patience)
        if not self._feeder.is_alive():
            os.close(self._stop_read)

    def _close_given(self) -> None:
        if self._given:
            self._given = False
            for fd in self.stdio:
                os.close(fd)
