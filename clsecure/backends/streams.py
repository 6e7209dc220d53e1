"""Carrying bytes between descriptors; and a sandbox's streams where it hands none through (gVisor)."""

from __future__ import annotations

import contextlib
import os
import select
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
            threading.Thread(target=copy, args=(source, target), daemon=True).start()

    def close(self) -> None:
        """Give back what nobody carries."""
        for fd in self._fds:
            os.close(fd)
        self._fds, self.terminal = [], None


def write_all(fd: int, data: bytes) -> None:
    """Write to the end, waiting where the descriptor is not ready."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


def copy(source: int, target: int, stop: int | None = None) -> None:
    """Copy to the end, or until ``stop`` is readable.

    A closed target closes the source, so that the writer hears of it (SIGPIPE).
    """
    watched = [source] if stop is None else [source, stop]
    try:
        while stop not in select.select(watched, [], [])[0] and (data := os.read(source, _CHUNK)):
            write_all(target, data)
    except OSError:
        pass
    finally:
        for fd in (source, target):
            if fd > 2:
                os.close(fd)
