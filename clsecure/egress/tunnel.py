"""What follows a CONNECT: bytes in both directions, once the client's first ones are what they should be.

No copies in Python: what one socket received into a buffer goes from there to the other. The buffer is shared
by all tunnels, and becomes a tunnel's own only while the other side does not take what is in it; nothing is
received for that side meanwhile. So the memory of a tunnel is bounded, and idle ones hold none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from clsecure.egress.hello import HANDSHAKE, HelloError, HelloReader, check_hello

BUFFER = 256 << 10
_WEB_PORTS = frozenset({80, 443})


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelLimits:
    """What bounds a tunnel, in seconds.

    :param hello: to send the whole of a TLS hello.
    :param idle: without a byte in either direction.
    """

    hello: float
    idle: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a client's first bytes must be.

    :param host: that TLS must name; nothing where it is an address.
    """

    host: str
    port: int

    @property
    def tls_only(self) -> bool:
        """Anything else is refused: in plain HTTP, too, the host that is meant stands in the request."""
        return self.port in _WEB_PORTS


class TunnelRefusedError(Exception):
    """The tunnel was closed by the gateway.

    :param reason: for the log.
    :param denied: for what the client said; nothing of it went on.
    """

    def __init__(self, reason: str, *, denied: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.denied = denied


class Buffers:
    """The buffer that all tunnels of an event loop receive into."""

    def __init__(self) -> None:
        self.current = memoryview(bytearray(BUFFER))
        self._spare: list[memoryview] = []

    def keep(self) -> memoryview:
        """Leave the current buffer to whoever still sends from it."""
        kept = self.current
        self.current = self._spare.pop() if self._spare else memoryview(bytearray(BUFFER))
        return kept

    def give_back(self, buffer: memoryview) -> None:
        """Take a buffer back that nobody sends from any more."""
        if not self._spare:
            self._spare.append(buffer)


Count = Callable[[int], str | None]
"""Told of bytes before they are passed on; a reason why not cuts the tunnel."""


class _Side(asyncio.BufferedProtocol):
    """One end of a tunnel."""

    def __init__(self, tunnel: Tunnel, transport: asyncio.Transport, count: Count) -> None:
        self.transport = transport
        self.count = count
        self.ended = False
        self.lost = False
        self.blocked = False
        """What it was given is not all sent: nothing is received for it meanwhile."""

        self.kept: memoryview | None = None
        self._tunnel = tunnel

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._tunnel.buffers.current

    def buffer_updated(self, nbytes: int) -> None:
        self._tunnel.received(self, nbytes)

    def eof_received(self) -> bool:
        self._tunnel.end_of(self)
        # TLS, of a proxy, can't stay half open.
        return self.transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.lost = True
        self._tunnel.lost(self)

    def pause_writing(self) -> None:
        self.blocked = True
        self._tunnel.other(self).transport.pause_reading()

    def resume_writing(self) -> None:
        self.blocked = False
        if self.kept is not None:
            self._tunnel.buffers.give_back(self.kept)
            self.kept = None
        other = self._tunnel.other(self)
        if not (other.ended or other.lost):
            other.transport.resume_reading()


class Tunnel:
    """Relays between a client and what it asked for.

    :param client: the transport whose data is judged first.
    :param upstream: to the target.
    :param outgoing: counts what goes to the target.
    :param incoming: counts what comes from it.
    """

    def __init__(
        self,
        client: asyncio.Transport,
        upstream: asyncio.Transport,
        *,
        expected: Expected,
        limits: TunnelLimits,
        buffers: Buffers,
        outgoing: Count,
        incoming: Count,
    ) -> None:
        self.buffers = buffers
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._expected = expected
        self._limits = limits
        self._client = _Side(self, client, outgoing)
        self._upstream = _Side(self, upstream, incoming)
        self._judging = True
        self._hello: HelloReader | None = None
        self._first = bytearray()
        self._hello_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._active = self._loop.time()

    async def run(self, *, from_client: tuple[bytes, bool], from_upstream: tuple[bytes, bool]) -> None:
        """Relay until both sides have ended, or one is gone.

        :param from_client: what was received before, and whether that was all.
        :param from_upstream: the same.
        :raises TunnelRefusedError: the gateway ended it.
        """
        try:
            self._idle_timer = self._loop.call_later(self._limits.idle, self._check_idle)
            if self._expected.tls_only:
                self._expect_hello()
            for side in (self._upstream, self._client):
                # Blocked while anything at all is left to be sent: no buffer that is sent from is received
                # into.
                side.transport.set_protocol(side)
                # Of TLS a limit is what blocks, of a socket what does not yet.
                over_tls = side.transport.get_extra_info("sslcontext") is not None
                side.transport.set_write_buffer_limits(high=int(over_tls), low=0)
            for side, (data, ended) in ((self._upstream, from_upstream), (self._client, from_client)):
                self._take_over(side, data, ended=ended)
            await self._done
        finally:
            for timer in (self._hello_timer, self._idle_timer):
                if timer is not None:
                    timer.cancel()
            self._client.transport.abort()
            self._upstream.transport.abort()

    def _take_over(self, side: _Side, data: bytes, *, ended: bool) -> None:
        if side.transport.is_closing():
            side.lost = True
            self.lost(side)
            return
        if data:
            self._pass_on(side, data)
        if ended:
            self.end_of(side)
        elif self.other(side).blocked:
            side.transport.pause_reading()
        else:
            side.transport.resume_reading()

    def other(self, side: _Side) -> _Side:
        """Return the side that one's data goes to."""
        return self._upstream if side is self._client else self._client

    def received(self, side: _Side, size: int) -> None:
        """Pass on what was received into the current buffer."""
        self._pass_on(side, self.buffers.current[:size])

    def _pass_on(self, side: _Side, data: bytes | memoryview) -> None:
        if self._done.done():
            return
        self._active = self._loop.time()
        if side is self._client and self._judging:
            self._judge(bytes(data))
            return
        self._write(self.other(side), side.count, data)

    def _write(self, target: _Side, count: Count, data: bytes | memoryview) -> None:
        if (reason := count(len(data))) is not None:
            self._refuse(reason, denied=False)
            return
        if target.lost:
            return
        target.transport.write(data)
        if isinstance(data, memoryview) and target.transport.get_write_buffer_size():
            target.kept = self.buffers.keep()

    def _judge(self, data: bytes) -> None:
        """Look at the client's first bytes; none of them goes on before all are in order."""
        self._first += data
        if self._first[0] != HANDSHAKE and not self._expected.tls_only:
            self._let_through()
            return
        if self._hello is None:
            self._expect_hello()
            self._hello = HelloReader()
        try:
            hello = self._hello.feed(data)
            if hello is None:
                return
            check_hello(hello, self._expected.host)
        except HelloError as error:
            reason = error.reason
            if self._first[0] == HANDSHAKE:
                self._client.transport.write(error.record)
            else:
                reason = f"only TLS is let through to port {self._expected.port}"
            self._refuse(reason, denied=True)
            return
        self._let_through()

    def _let_through(self) -> None:
        first, self._first = bytes(self._first), bytearray()
        self._judging = False
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        self._write(self._upstream, self._client.count, first)

    def _expect_hello(self) -> None:
        if self._hello_timer is None:
            self._hello_timer = self._loop.call_later(
                self._limits.hello, lambda: self._refuse("the client did not begin TLS in time", denied=True)
            )

    def end_of(self, side: _Side) -> None:
        """Pass on that a side sends no more."""
        side.ended = True
        other = self.other(side)
        if side is self._client and self._judging and self._first:
            self._refuse("the client broke off in its TLS hello", denied=True)
        elif other.ended or not other.transport.can_write_eof():
            self._close()
        elif not other.lost and not other.transport.is_closing():
            other.transport.write_eof()

    def lost(self, side: _Side) -> None:
        """Send the other side what is left for it, and end."""
        other = self.other(side)
        if other.lost:
            self._finish()
        else:
            other.transport.close()

    def _close(self) -> None:
        for side in (self._client, self._upstream):
            side.transport.close()

    def _refuse(self, reason: str, *, denied: bool) -> None:
        if not self._done.done():
            self._done.set_exception(TunnelRefusedError(reason, denied=denied))

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def _check_idle(self) -> None:
        left = self._active + self._limits.idle - self._loop.time()
        if left <= 0:
            self._refuse("nothing was sent in either direction for too long", denied=False)
        else:
            self._idle_timer = self._loop.call_later(left, self._check_idle)
