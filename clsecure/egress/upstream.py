"""HTTP with what is asked: one HTTP/1.1 connection per client connection, kept while both sides keep it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import h11

from clsecure.egress.dialer import CHUNK, Line
from clsecure.egress.wire import Limits
from clsecure.errors import EgressError

_GRACE = 1.0

Connect = Callable[[], Awaitable[Line]]
"""Opens a connection to the one target."""


class Upstream:
    """One client's requests to one target, one after the other.

    :param host: the target's, for messages.
    """

    def __init__(self, connect: Connect, limits: Limits, *, host: str) -> None:
        self._connect = connect
        self._limits = limits
        self._host = host
        self._line: Line | None = None
        self._http = h11.Connection(h11.CLIENT)
        self._answered = False
        self._sending: asyncio.Task[None] | None = None
        self._patience: asyncio.Timeout | None = None

    async def exchange(self, request: h11.Request, body: bytes) -> h11.Response:
        """Send a request that may be sent twice, and return the head of the reply.

        :raises EgressError: the target can't be reached or does not answer properly.
        """
        if self._line is None or self._line.reader.at_eof():
            await self.open()
        elif (reply := await self._try(request, body)) is not None:
            return reply
        else:
            # A connection that was kept may have been closed by the other side meanwhile. Nothing of an
            # answer had come, so the request was not taken.
            await self.open()
        reply = await self._try(request, body)
        if reply is None:
            raise EgressError(f"{self._host} closed the connection without an answer")
        return reply

    async def stream(self, request: h11.Request, body: AsyncIterator[bytes]) -> h11.Response:
        """Send a request on the connection that :meth:`open` made; the reply may begin before its end.

        :param body: what breaks off here breaks the connection, so that nobody takes a part for the whole.
        :raises EgressError: the target does not answer properly.
        """
        self._answered = False
        try:
            self._write(request)
            self._sending = asyncio.create_task(self._send_pieces(body))
            return await self._head()
        except (h11.ProtocolError, OSError) as error:
            self.close()
            raise EgressError(f"{self._host} does not answer properly") from error

    async def data(self) -> bytes | None:
        """Return the next piece of the reply's body, None at its end.

        :raises EgressError: it breaks off.
        """
        try:
            event = await self._next_event()
        except (h11.RemoteProtocolError, OSError) as error:
            self.close()
            raise EgressError(f"the reply of {self._host} broke off") from error
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if self._sending is not None:
            # What it answered before it had the whole of, it may not want the rest of.
            _, unsent = await asyncio.wait({self._sending}, timeout=_GRACE)
            if unsent:
                self._sending.cancel()
                await asyncio.wait(unsent)
        done = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        # What comes behind a whole reply was not asked for, and would be taken for the next one.
        if done and not self._http.trailing_data[0]:
            self._http.start_next_cycle()
            self._sending = None
        else:
            self.close()
        return None

    def close(self) -> None:
        """Drop the connection at once."""
        if self._line is not None:
            self._line.close()
        if self._sending is not None:
            self._sending.cancel()
        self._line = self._sending = None

    async def open(self) -> None:
        """Make a new connection.

        :raises EgressError: the target can't be reached.
        """
        self.close()
        self._line = await self._connect()
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=self._limits.header_size)

    def _write(self, event: h11.Event) -> None:
        if self._line is None:
            raise ConnectionResetError
        # At once: some servers answer, and close, when they have seen the first line.
        self._line.writer.writelines(self._http.send_with_data_passthrough(event) or ())

    async def _drain(self) -> None:
        if self._line is None:
            raise ConnectionResetError
        async with asyncio.timeout(self._limits.reply_time):
            await self._line.writer.drain()

    async def _try(self, request: h11.Request, body: bytes) -> h11.Response | None:
        """Return the head of the reply, None when the connection ended before a byte of one."""
        self._answered = False
        try:
            self._write(request)
            if body:
                self._write(h11.Data(data=body))
            self._write(h11.EndOfMessage())
            await self._drain()
            return await self._head()
        except (h11.RemoteProtocolError, OSError) as error:
            self.close()
            if self._answered or isinstance(error, TimeoutError):
                raise EgressError(f"{self._host} does not answer properly") from error
            return None

    async def _send_pieces(self, body: AsyncIterator[bytes]) -> None:
        line = self._line
        try:
            async for piece in body:
                self._write(h11.Data(data=piece))
                await self._drain()
                if self._patience is not None:
                    # Whoever still receives the request has not kept anybody waiting for the reply.
                    self._patience.reschedule(asyncio.get_running_loop().time() + self._limits.reply_time)
            self._write(h11.EndOfMessage())
            await self._drain()
        except OSError:
            # The target takes no more. Whether it has answered is for the reply's reader to find.
            pass
        except BaseException:
            if line is not None:
                line.close()
            raise

    async def _head(self) -> h11.Response:
        while True:
            event = await self._next_event()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
                raise h11.RemoteProtocolError("no response")

    async def _next_event(self) -> object:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._line is None:
                raise ConnectionResetError
            try:
                async with asyncio.timeout(self._limits.reply_time) as self._patience:
                    data = await self._line.reader.read(CHUNK)
            finally:
                self._patience = None
            self._answered = self._answered or bool(data)
            self._http.receive_data(data)


class Redactor:
    """Blanks a secret in a stream without holding anything back that could not be its beginning."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode("ascii")
        self._blank = b"*" * len(self._secret)
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return what can go on; lengths stay as they are."""
        data = (self._held + data).replace(self._secret, self._blank)
        keep = min(len(self._secret) - 1, len(data))
        while keep and not self._secret.startswith(data[-keep:]):
            keep -= 1
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]

    def end(self) -> bytes:
        """Return the rest."""
        rest, self._held = self._held, b""
        return rest


async def close_quietly(writer: asyncio.StreamWriter) -> None:
    """Close a connection whose other side may be gone."""
    with contextlib.suppress(OSError):
        writer.close()
        await writer.wait_closed()
