"""The way to the provider: one HTTP/1.1 connection per client connection, kept while both sides keep it.

Known limit: the host's own HTTPS_PROXY is not used; where the provider is reached through a proxy only, the
gateway can't reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import h11

from clsecure.egress.addresses import AddressBook, Resolver, system_resolver
from clsecure.egress.provider import Provider
from clsecure.egress.wire import Limits
from clsecure.errors import EgressError

CHUNK = 64 << 10
_MAX_ADDRESSES = 4


class Dialer:
    """Opens connections to the provider, to checked addresses only.

    :raises EgressError: the provider's certificate authorities can't be loaded.
    """

    def __init__(self, provider: Provider, limits: Limits, *, resolve: Resolver = system_resolver) -> None:
        self.provider = provider
        self.limits = limits
        self._book = AddressBook(provider, resolve=resolve)
        self._tls = _tls_context(provider.ca_file) if provider.tls else None

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection.

        :raises EgressError: no address is allowed, none answers, or the certificate is wrong.
        """
        problem: Exception | None = None
        for address in (await self._book.addresses())[:_MAX_ADDRESSES]:
            try:
                async with asyncio.timeout(self.limits.connect_time):
                    # The address, not the name: a second look-up could lead elsewhere.
                    return await asyncio.open_connection(
                        address,
                        self.provider.port,
                        limit=CHUNK,
                        ssl=self._tls,
                        server_hostname=self.provider.host if self._tls else None,
                    )
            except (OSError, TimeoutError) as error:
                problem = error
        self._book.forget()
        why = "its certificate is not trusted" if isinstance(problem, ssl.SSLError) else "it does not answer"
        raise EgressError(f"{self.provider.host} can't be reached: {why}") from problem


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:
            raise EgressError(
                f"The certificate authorities in {ca_file} can't be loaded",
                details=str(error),
                resolution="Correct or unset NODE_EXTRA_CA_CERTS and SSL_CERT_FILE",
            ) from error
    return context


class Upstream:
    """One client's requests to the provider, one after the other."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._limits = dialer.limits
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._http = h11.Connection(h11.CLIENT)
        self._answered = False

    async def exchange(self, request: h11.Request, body: bytes) -> h11.Response:
        """Send a request and return the head of the reply.

        :raises EgressError: the provider can't be reached or does not answer properly.
        """
        if self._reader is None or self._reader.at_eof():
            await self._open()
        elif (reply := await self._try(request, body)) is not None:
            return reply
        else:
            # A connection that was kept may have been closed by the other side meanwhile. Nothing of an
            # answer had come, so the request was not taken.
            await self._open()
        reply = await self._try(request, body)
        if reply is None:
            raise EgressError(f"{self._dialer.provider.host} closed the connection without an answer")
        return reply

    async def data(self) -> bytes | None:
        """Return the next piece of the reply's body, None at its end.

        :raises EgressError: it breaks off.
        """
        try:
            event = await self._next_event()
        except (h11.RemoteProtocolError, OSError, TimeoutError) as error:
            self.close()
            raise EgressError("The provider's reply broke off") from error
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.close()
        return None

    def close(self) -> None:
        """Drop the connection at once."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def _open(self) -> None:
        self.close()
        self._reader, self._writer = await self._dialer.dial()
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=self._limits.header_size)

    async def _try(self, request: h11.Request, body: bytes) -> h11.Response | None:
        """Return the head of the reply, None when the connection ended before a byte of one."""
        assert self._writer is not None  # noqa: S101  # for the type checker
        self._answered = False
        try:
            pieces = self._http.send_with_data_passthrough(request) or []
            if body:
                pieces += self._http.send_with_data_passthrough(h11.Data(data=body)) or []
            pieces += self._http.send_with_data_passthrough(h11.EndOfMessage()) or []
            async with asyncio.timeout(self._limits.reply_time):
                for piece in pieces:
                    self._writer.write(piece)
                await self._writer.drain()
            while True:
                event = await self._next_event()
                if isinstance(event, h11.Response):
                    return event
                if not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
                    raise h11.RemoteProtocolError("no response")
        except (h11.RemoteProtocolError, OSError, TimeoutError) as error:
            self.close()
            if self._answered or isinstance(error, TimeoutError):
                raise EgressError(f"{self._dialer.provider.host} does not answer properly") from error
            return None

    async def _next_event(self) -> object:
        assert self._reader is not None  # noqa: S101  # for the type checker
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            async with asyncio.timeout(self._limits.reply_time):
                data = await self._reader.read(CHUNK)
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
