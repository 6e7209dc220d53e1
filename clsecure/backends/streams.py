"""Standard input and output of a sandbox that hands no descriptors through: sockets, and who carries them."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence

_CHUNK = 65536


class Streams:
    """The launcher's connections: three for the standard ones, or one for a terminal and one for its sizes.

    :param fds: in that order; they are this object's from now on.
    """

    def __init__(self, fds: Sequence[int], *, terminal: bool) -> None:
        self._fds = list(fds)
        self.terminal = self._fds[0] if terminal else None

    def resize(self, rows: int, columns: int) -> None:
        """Say what size the terminal has now."""
        with contextlib.suppress(OSError):
            os.write(self._fds[1], f"{rows} {columns}\n".encode())

    def carry(self, stdio: tuple[int, int, int]) -> None:
        """Carry bytes from and to the caller's descriptors, of which copies are made."""
        given = [os.dup(fd) for fd in stdio]
        ours, self._fds = self._fds, []
        for source, target in ((given[0], ours[0]), (ours[1], given[1]), (ours[2], given[2])):
            threading.Thread(target=_copy, args=(source, target), daemon=True).start()

    def close(self) -> None:
        """Give back what nobody carries."""
        for fd in self._fds:
            os.close(fd)
        self._fds, self.terminal = [], None


def _copy(source: int, target: int) -> None:
    """Copy to the end; a closed target closes the source, so that the writer hears of it."""
    try:
        while data := os.read(source, _CHUNK):
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
    except OSError:
        pass
    finally:
        os.close(source)
        os.close(target)
