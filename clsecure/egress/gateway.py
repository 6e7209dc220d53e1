"""The gateway process: accepts on the sandbox's listening socket, lives as long as its session's socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from typing import Any

from clsecure.egress import wire
from clsecure.egress.addresses import Resolver
from clsecure.egress.confine import seal
from clsecure.egress.connection import ClientConnection
from clsecure.egress.dialer import Inbound
from clsecure.egress.events import EventLog
from clsecure.egress.orders import Orders
from clsecure.egress.shared import make_shared
from clsecure.egress.wire import EgressTotals, GatewayConfig
from clsecure.errors import EgressError

# Also the most that is accepted in one round: idle clients above the limit are dropped only after it.
_BACKLOG = 256


class GatewayServer:
    """All connections of one session.

    :param token: what every client must present.
    :param resolve: how names become addresses.
    :raises EgressError: the configuration can't be used (certificate authorities, proxy, log file).
    """

    def __init__(self, config: GatewayConfig, *, token: str, resolve: Resolver | None = None) -> None:
        secrets = (token, "" if config.credential is None else config.credential.value, *config.hidden)
        try:
            log = EventLog(config.log, max_size=config.limits.log_size, secrets=secrets)
        except OSError as error:
            raise EgressError("The network log can't be written", details=str(error)) from error
        self._shared = make_shared(config, token=token, log=log, resolve=resolve)
        self._orders = None if config.control is None else Orders(config.control, self._shared)
        self.residuals: tuple[str, ...] = ()
        self._servers: list[asyncio.Server] = []
        # Insertion order is age: the first idle one is the one that makes room.
        self._open: dict[ClientConnection, asyncio.Task[None]] = {}

    @property
    def totals(self) -> EgressTotals:
        """What went through until now."""
        return self._shared.log.totals

    def confined(self, residuals: tuple[str, ...]) -> None:
        """Take orders from now on, and remember what this process could not take from itself."""
        self.residuals = residuals
        for residual in residuals:
            self._shared.log.warn(residual)
        if self._orders is not None:
            self._orders.start()

    async def serve(self, listener: socket.socket, port: int | None = None) -> None:
        """Accept on a listening socket from now on.

        :param port: by which it is reached, where that is not the socket's own.
        :raises EgressError: it is none.
        """
        families = {socket.AF_INET, socket.AF_INET6} if port is None else {socket.AF_INET, socket.AF_UNIX}
        if not _is_listening(listener, families):
            listener.close()
            raise EgressError("The sandbox handed out something else than a listening socket")
        port = port or listener.getsockname()[1]
        listener.setblocking(False)  # noqa: FBT003
        server = await asyncio.get_running_loop().create_server(
            lambda: _Protocol(self, port=port), sock=listener, backlog=_BACKLOG
        )
        self._servers.append(server)

    async def close(self) -> None:
        """Stop accepting, end every connection, close the log."""
        if self._orders is not None:
            await self._orders.close()
            self._orders = None
        for server in self._servers:
            server.close()
        tasks = list(self._open.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._shared.log.close()

    def accepted(
        self, reader: Inbound, writer: asyncio.StreamWriter, *, port: int
    ) -> tuple[ClientConnection, asyncio.Task[None]]:
        """Take a new client, at the expense of an idle one when full."""
        connection = ClientConnection(self._shared, reader, writer, port=port)
        if len(self._open) >= self._shared.limits.connections and not self._make_room():
            task = asyncio.create_task(connection.refuse())
        else:
            task = asyncio.create_task(connection.run())
        self._open[connection] = task
        task.add_done_callback(lambda _: self._gone(connection))
        return connection, task

    def _gone(self, connection: ClientConnection) -> None:
        # Here, too: a task that is cancelled before its first step never comes to its own clean-up.
        connection.drop()
        self._open.pop(connection, None)

    def _make_room(self) -> bool:
        for connection, task in self._open.items():
            if not connection.busy:
                task.cancel()
                # At once, not when the task has noticed: the next client in this very round counts too.
                del self._open[connection]
                return True
        return False


class _Protocol(asyncio.StreamReaderProtocol):
    """Tells a connection that its client hung up during a reply: nobody pays for the rest then."""

    def __init__(self, server: GatewayServer, *, port: int) -> None:
        self._inbound = Inbound()
        super().__init__(self._inbound, self._connected)
        self._server = server
        self._port = port
        self._taken: tuple[ClientConnection, asyncio.Task[None]] | None = None

    def _connected(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._taken = self._server.accepted(self._inbound, writer, port=self._port)

    def eof_received(self) -> bool | None:
        keep_open = super().eof_received()
        self._hang_up()
        return keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._hang_up()

    def _hang_up(self) -> None:
        if self._taken is not None:
            connection, task = self._taken
            if connection.busy:
                task.cancel()


def _is_listening(listener: socket.socket, families: set[socket.AddressFamily]) -> bool:
    try:
        return (
            listener.family in families
            and listener.type == socket.SOCK_STREAM
            and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        )
    except OSError:
        return False


class _Control:
    """The session's end of the process: takes messages until there are no more."""

    def __init__(self, control: socket.socket, server: GatewayServer) -> None:
        self._socket = control
        self._server = server
        self._messages: asyncio.Queue[tuple[bytes, list[int]]] = asyncio.Queue(maxsize=64)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self._socket.setblocking(False)  # noqa: FBT003
        loop.add_reader(self._socket, self._readable)
        try:
            while True:
                data, descriptors = await self._messages.get()
                if not data or not await self._handle(wire.decode(data), descriptors):
                    return
        finally:
            loop.remove_reader(self._socket)

    def _readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(
                self._socket, wire.MAX_MESSAGE, 4, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        self._messages.put_nowait((data, descriptors))
        if not data:
            asyncio.get_running_loop().remove_reader(self._socket)

    async def _handle(self, message: Mapping[str, Any], descriptors: list[int]) -> bool:
        match message["type"]:
            case "serve" if len(descriptors) == 1:
                await self._server.serve(socket.socket(fileno=descriptors[0]), message["port"])
                self._socket.send(wire.encode({"type": "serving", "residuals": self._server.residuals}))
                return True
            case "close":
                await self._server.close()
                self._socket.send(wire.encode_totals(self._server.totals))
                return False
            case _:
                for descriptor in descriptors:
                    os.close(descriptor)
                raise EgressError("The session asked for something that the gateway does not know")


async def run(control: socket.socket, config: GatewayConfig, *, token: str) -> None:
    """Be the gateway of a session until it says ``close`` or is gone.

    :param control: the session's socket, configuration already taken.
    :raises EgressError: see :class:`GatewayServer`.
    """
    # Without the default handler, which would print what an exception quotes.
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    server = GatewayServer(config, token=token)
    try:
        # All files are open by now, and nothing of the agent has been read.
        server.confined(seal(config))
        await _Control(control, server).run()
    finally:
        await server.close()
