"""What goes over the socket: JSON objects, bounded, and descriptors."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    Message = dict[str, Any]
    Entry = dict[str, Any]  # one account of the registry

MESSAGE_LIMIT = 256 * 1024
PATH_LIMIT = 4096
MOUNT_LIMIT = 32


class Refused(Exception):  # noqa: N818  # an answer, not an accident
    """The request is not acceptable, or can't be done; the text goes to the caller."""


class Busy(Refused):
    """Somebody else holds the lock."""


def receive(conn: socket.socket) -> tuple[Message | None, list[int]]:
    """Return (message, descriptors), or (None, []) at the end. Descriptors are close-on-exec."""
    size = socket.CMSG_SPACE(array.array("i").itemsize * (MOUNT_LIMIT + 8))
    data, ancillary, flags, _ = conn.recvmsg(MESSAGE_LIMIT, size, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not data:
        close_all(fds)
        return None, []
    message = None
    with contextlib.suppress(ValueError, RecursionError):
        message = json.loads(data)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or not isinstance(message, dict):
        close_all(fds)
        raise Refused("the message is too large, or not a JSON object")
    return message, list(fds)


def send(conn: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send one message with descriptors."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    conn.sendmsg([json.dumps(message).encode()], ancillary)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that came along."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def text(message: Message, key: str, limit: int = PATH_LIMIT) -> str:
    """Return a string field, checked."""
    value = message.get(key)
    # JSON also knows texts that stand for no bytes: lone surrogates.
    with contextlib.suppress(UnicodeEncodeError):
        data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else b""
        if 0 < len(data) <= limit and b"\0" not in data:
            return str(value)
    raise Refused(f"{key} must be a text of at most {limit} bytes")
