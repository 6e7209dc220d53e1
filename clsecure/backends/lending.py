"""The machine's docker for one sandbox: what comes in on its socket goes on to the user's, as the user.

Nobody becomes a member of a group and nothing of the machine's is changed; with this process it is over.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CHUNK = 65536
_CONNECTIONS = 200


@contextmanager
def lent(listener: socket.socket, path: Path) -> Iterator[None]:
    """Serve the sandbox's socket as long as the context lasts."""
    room = threading.BoundedSemaphore(_CONNECTIONS)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                inside, _ = listener.accept()
                if room.acquire(blocking=False):
                    threading.Thread(target=_carry, args=(inside, path, room), daemon=True).start()
                else:
                    inside.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        # close() does not wake a thread in accept(); shutdown() does.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _carry(inside: socket.socket, path: Path, room: threading.BoundedSemaphore) -> None:
    with contextlib.suppress(OSError), inside, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as outside:
        outside.connect(str(path))
        back = threading.Thread(target=_copy, args=(outside, inside), daemon=True)
        back.start()
        _copy(inside, outside)
        back.join()
    room.release()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copy one direction to its end, and pass that on: an attached command's input ends so."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
