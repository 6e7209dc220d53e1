"""HTTP with one client, which is to say the agent or whatever it started: hostile, bounded, answered."""

from __future__ import annotations

import asyncio
import contextlib
import json

import h11

from clsecure.egress import rules
from clsecure.egress.dialer import CHUNK, Inbound, transport_of
from clsecure.egress.events import Exchange
from clsecure.egress.rules import Denial
from clsecure.egress.wire import Limits

_LINGER_SIZE = 64 << 20
_LINGER_TIME = 5.0


class HungUpError(Exception):
    """The client is gone, or breaks the protocol in the middle of a body."""


class Conversation:
    """Requests of one client and the answers to them."""

    def __init__(self, reader: Inbound, writer: asyncio.StreamWriter, limits: Limits) -> None:
        self.busy = False
        """A request that presented the token is under way: not to be closed to make room."""

        self.exchange = Exchange()
        """The request under way, for the log."""

        self.limits = limits
        self.reader, self.writer = reader, writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header_size)

    def drop(self) -> None:
        """Close at once."""
        self.writer.transport.abort()

    # Reading

    async def wait_for_data(self, *, first: bool) -> bool:
        """Return whether a request begins."""
        if self._http.trailing_data[0]:
            return True
        # A new client that stays silent is given less time than one that has worked.
        async with asyncio.timeout(self.limits.header_time if first else self.limits.idle_time):
            data = await self.reader.read(CHUNK)
        self._http.receive_data(data)
        return bool(data)

    async def read_head(self) -> h11.Request | None:
        """Return the next request, None when the client has none.

        :raises h11.RemoteProtocolError: it is not HTTP.
        """
        async with asyncio.timeout(self.limits.header_time):
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self.reader.read(CHUNK))
        return event if isinstance(event, h11.Request) else None

    async def body_piece(self) -> bytes | None:
        """Return the next piece of the request's body, None at its end."""
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return None
            if event is not h11.NEED_DATA:
                raise HungUpError
            self._http.receive_data(await self.reader.read(CHUNK))

    async def skip_end(self) -> None:
        """Read the end of a request without a body."""
        async with asyncio.timeout(self.limits.header_time):
            while await self.body_piece() is not None:
                pass

    async def ask_for_body(self) -> None:
        """Tell a client that waits for it that its body is welcome."""
        if self._http.they_are_waiting_for_100_continue:
            await self.send(h11.InformationalResponse(status_code=100, headers=[]))

    # Answering

    async def send(self, event: h11.Event) -> None:
        """Send a part of the answer."""
        # In one piece: each write would be a packet of its own, three for every event of a stream.
        self.writer.write(b"".join(self._http.send_with_data_passthrough(event) or ()))
        async with asyncio.timeout(self.limits.reply_time):
            await self.writer.drain()

    async def finish(self) -> bool:
        """End the answer; return whether another request may follow."""
        await self.send(h11.EndOfMessage())
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            return True
        return False

    async def finish_early(self) -> bool:
        """End an answer that may have begun before the request ended."""
        again = await self.finish()
        if self._http.their_state is h11.SEND_BODY:
            await self.linger()
        return again

    async def answer(
        self,
        status: int,
        content: bytes = b"",
        *,
        headers: rules.Headers = (),
        reason: str = "",
    ) -> bool:
        """Send a whole answer; return whether another request may follow.

        :param reason: stands behind the status, where some clients show it.
        """
        self.exchange.status = status
        all_headers = [*headers, (b"content-length", str(len(content)).encode())]
        await self.send(
            h11.Response(status_code=status, headers=all_headers, reason=reason.encode("ascii", "replace"))
        )
        if content:
            await self.send(h11.Data(data=content))
        return await self.finish()

    async def deny(self, denial: Denial) -> bool:
        """Refuse; return whether another request may follow."""
        self.exchange.decision, self.exchange.rule = "deny", denial.rule
        return await self.explain(denial.status, denial.kind, denial.reason, proxied=denial.proxied)

    async def fail(self, reason: str) -> bool:
        """Say to a client of the proxy that its target can't be reached; return as :meth:`deny`."""
        again = await self.explain(502, "", reason, proxied=True)
        if self._http.their_state is h11.SEND_BODY:
            await self.linger()
        return again

    async def explain(self, status: int, kind: str, reason: str, *, proxied: bool = False) -> bool:
        """Answer with an error.

        :param proxied: to a client that takes the gateway for a proxy; else in the provider's own shape. Both
            so that the agent shows the words to whoever watches.
        """
        self.exchange.reason = reason
        message = f"clsecure: {reason}"
        if proxied:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            if status == rules.PROXY_TOKEN_STATUS:
                headers.append((b"proxy-authenticate", b'Basic realm="clsecure"'))
            # Behind CONNECT hardly a client shows the body, but some show the words behind the status.
            return await self.answer(status, f"{message}\n".encode(), headers=headers, reason=message)
        headers = [(b"content-type", b"application/json")]
        if status < 500:
            # Asking again changes nothing; the agent's library would try for minutes.
            headers.append((b"x-should-retry", b"false"))
        document = {"type": "error", "error": {"type": kind, "message": message}}
        return await self.answer(status, json.dumps(document).encode("ascii"), headers=headers)

    async def deny_head(self, request: h11.Request, denial: Denial) -> bool:
        """Refuse before the body was read."""
        if has_body(request) or denial.rule == rules.FRAMING:
            await self.deny(denial)
            await self.linger()
            return False
        if self._http.their_state is h11.SEND_BODY:
            await self.skip_end()
        return await self.deny(denial)

    async def deny_body(self, denial: Denial) -> bool:
        """Refuse for the body, of which some may still be on its way."""
        again = await self.deny(denial)
        if self._http.their_state is h11.SEND_BODY:
            await self.linger()
            return False
        return again

    async def linger(self) -> None:
        """Take what is still coming for a moment: closing at once would destroy the answer on its way."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LINGER_TIME):
                self.writer.write_eof()
                left = _LINGER_SIZE
                while left > 0 and (data := await self.reader.read(CHUNK)):
                    left -= len(data)

    async def become_tunnel(self) -> tuple[asyncio.Transport, tuple[bytes, bool]]:
        """Answer CONNECT with success; return the transport, what came after it, and whether that was all."""
        self.exchange.status = 200
        await self.send(h11.Response(status_code=200, headers=[], reason=b"Connection established"))
        rest, ended = await self.reader.take()
        return transport_of(self.writer), (self._http.trailing_data[0] + rest, ended)


def has_body(request: h11.Request) -> bool:
    """Tell whether a request announces a body."""
    headers = list(request.headers)
    lengths = rules.values(headers, b"content-length")
    return bool(rules.values(headers, b"transfer-encoding")) or any(int(length) for length in lengths)


def of_protocol_error(error: h11.RemoteProtocolError) -> Denial:
    """Return the refusal of what is not HTTP."""
    # Without h11's own words: they quote what was sent.
    if error.error_status_hint == 431:
        return rules.deny(
            "header-size", "the head of the request is too large", status=431, kind="request_too_large"
        )
    return rules.malformed("malformed", "this is no proper HTTP request")
