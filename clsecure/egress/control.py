"""The user's orders to a running gateway, over a Unix socket in the session's directory.

The path may be longer than a socket's address can be, so both sides go by the descriptor of the directory.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsecure.egress import wire
from clsecure.errors import EgressError

_TIMEOUT = 10.0
_NOT_RUNNING = "the session is not running"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What became of an order to allow a host.

    :param rules: every pattern that the session allows now.
    :param warning: what the user should know of it.
    """

    rules: tuple[str, ...] = ()
    warning: str | None = None


def allow_live(path: Path, host: str) -> Allowed:
    """Allow a host for a running session.

    :param path: of the session's control socket.
    :param host: ``HOST[:PORT]`` or ``*.SUB.DOMAIN[:PORT]``, as the user wrote it.
    :raises EgressError: the session does not run, or refuses.
    """
    answer = _ask(path, {"type": "allow", "host": host}, answer="allowed")
    return Allowed(rules=tuple(answer["rules"]), warning=answer["warning"])


def live_policy(path: Path) -> dict[str, Any]:
    """Return what a running session may reach, and what it has used of its budget.

    :param path: of the session's control socket.
    :raises EgressError: the session does not run.
    """
    document: dict[str, Any] = _ask(path, {"type": "policy"}, answer="policy")["document"]
    return document


def address_in(directory: int, name: str) -> str:
    """Return the address of a socket in an open directory, short whatever the directory is called."""
    return f"/proc/self/fd/{directory}/{name}"


def remove_socket(path: Path) -> None:
    """Remove the socket at this path; anything else stays.

    :raises OSError: it can't be removed.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.is_socket() and not path.is_symlink():
            path.unlink()


def _ask(path: Path, order: dict[str, object], *, answer: str) -> dict[str, Any]:
    message = wire.encode(order)
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.settimeout(_TIMEOUT)
                connection.connect(address_in(directory, path.name))
                connection.send(message)
                data = connection.recv(wire.MAX_MESSAGE)
        finally:
            os.close(directory)
    except (TimeoutError, BlockingIOError) as error:
        raise EgressError("the session's gateway does not answer") from error
    except OSError as error:
        raise EgressError(_NOT_RUNNING, details=str(error)) from error
    if not data:
        raise EgressError(_NOT_RUNNING)
    reply = wire.decode(data)
    if reply["type"] == "error":
        raise wire.decode_error(reply)
    if reply["type"] != answer:
        raise EgressError("the session's gateway is of another version of clsecure")
    return reply
