"""The gateway's side of the user's orders while it runs. Only the user's own processes are listened to."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clsecure.egress import wire
from clsecure.egress.control import address_in, remove_socket
from clsecure.egress.document import policy_document
from clsecure.egress.live import tunnel_warning
from clsecure.egress.shared import Shared
from clsecure.egress.tally import printable
from clsecure.errors import EgressError
from clsecure.policy import allow_rules

WHERE = "clsecure network allow"

_MAX_ORDER = 4096
_MAX_CLIENTS = 8
_TIME = 10.0
_BACKLOG = 64


class Orders:
    """Takes orders on a Unix socket until it is closed.

    :param path: of the socket, made here with mode 0600. One that a killed gateway left there is replaced.
    :raises EgressError: it can't be made.
    """

    def __init__(self, path: Path, shared: Shared) -> None:
        self._shared = shared
        # Insertion order is age.
        self._tasks: dict[asyncio.Task[None], None] = {}
        try:
            self._socket = _listen(path)
        except OSError as error:
            raise EgressError("The session's control socket can't be made", details=str(error)) from error

    def start(self) -> None:
        """Listen from now on."""
        asyncio.get_running_loop().add_reader(self._socket, self._accept)

    async def close(self) -> None:
        """End it, and every conversation."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self) -> None:
        try:
            client, _ = self._socket.accept()
        except OSError:
            return
        if not _is_ours(client):
            client.close()
            return
        if len(self._tasks) >= _MAX_CLIENTS:
            oldest = next(iter(self._tasks))
            oldest.cancel()
            del self._tasks[oldest]
        client.setblocking(False)  # noqa: FBT003
        task = asyncio.get_running_loop().create_task(self._serve(client))
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    async def _serve(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with client:
            try:
                async with asyncio.timeout(_TIME):
                    data = await loop.sock_recv(client, _MAX_ORDER + 1)
                    if data:
                        await loop.sock_sendall(client, self._answer(data))
            except OSError:
                # It is gone, or says nothing.
                pass

    def _answer(self, data: bytes) -> bytes:
        try:
            if len(data) > _MAX_ORDER:
                raise EgressError("The order is too long")
            return self._obey(wire.decode(data))
        except EgressError as error:
            return wire.encode_error(error)

    def _obey(self, order: Mapping[str, Any]) -> bytes:
        match order:
            case {"type": "allow", "host": str(host)}:
                return self._allow(host)
            case {"type": "policy"}:
                return wire.encode_policy(policy_document(self._shared))
            case _:
                raise EgressError("The session's gateway does not know this order")

    def _allow(self, host: str) -> bytes:
        try:
            rules = allow_rules(host, where=WHERE)
        except ValueError as error:
            raise EgressError(f"{printable(host)} {error}") from None
        live, log = self._shared.live, self._shared.log
        new = live.allow(rules)
        log.note("allowed", host=printable(host), rules=[str(rule.pattern) for rule in rules], new=bool(new))
        api = self._shared.api
        warning = None if api is None else tunnel_warning(api.provider, live.policy)
        if new and warning:
            log.warn(warning)
        return wire.encode_allowed([str(rule.pattern) for rule in live.policy.allow], warning=warning)


def _listen(path: Path) -> socket.socket:
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Of a gateway that could not end properly.
        remove_socket(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            # The mode that the file is made with; changing it afterwards would be too late for a moment.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(address_in(directory, path.name))
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener
    finally:
        os.close(directory)


def _is_ours(client: socket.socket) -> bool:
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(uid == os.getuid())
