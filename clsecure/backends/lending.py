"""The machine's docker for one sandbox: what comes in on its socket goes on to the user's, as the user.

Nobody becomes a member of a group and nothing of the machine's is changed; with this process it is over.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from clsecure.errors import BackendUnavailableError

_CHUNK = 65536
_PLACES = ("/run/docker.sock", "/var/run/docker.sock")
_CONNECTIONS = 200


def docker_socket(environ: Mapping[str, str]) -> str:
    """Return the path of the docker socket that the user may use.

    :raises BackendUnavailableError: there is none, or it is on another machine.
    """
    said = environ.get("DOCKER_HOST", "")
    if said and not said.startswith("unix:///"):
        raise BackendUnavailableError(
            "DOCKER_HOST is no socket of this machine", details=said, resolution="unset DOCKER_HOST"
        )
    for path in [said.removeprefix("unix://")] if said else _PLACES:
        if os.access(path, os.R_OK | os.W_OK):
            return path
    raise BackendUnavailableError(
        "there is no docker here that you may use",
        details=f"looked at: {said or ', '.join(_PLACES)}",
        resolution="Start docker, and be a member of its group; or --allow-docker for an engine of its own",
    )


@contextmanager
def lent(listener: socket.socket, path: str) -> Iterator[None]:
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


def _carry(inside: socket.socket, path: str, room: threading.BoundedSemaphore) -> None:
    with contextlib.suppress(OSError), inside, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as outside:
        outside.connect(path)
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
