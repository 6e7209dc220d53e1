"""Opens connections: to checked addresses only, directly or through this machine's own proxy."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path

import h11

from clsecure.egress.addresses import AddressBooks, Resolver, Target
from clsecure.egress.hostproxy import Proxy, WayOut
from clsecure.egress.wire import HostProxies, Limits
from clsecure.errors import EgressError

CHUNK = 64 << 10
_MAX_ADDRESSES = 4


class Inbound(asyncio.StreamReader):
    """A stream that can be handed over to another protocol in the middle."""

    def __init__(self) -> None:
        super().__init__(limit=CHUNK)
        self._ended = False

    def feed_eof(self) -> None:
        """Note the end of the stream."""
        self._ended = True
        super().feed_eof()

    async def take(self) -> tuple[bytes, bool]:
        """Return at once what has arrived but was not read, and whether the stream has ended after it."""
        ended = self._ended
        super().feed_eof()
        return await self.read(-1), ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """An open connection."""

    reader: Inbound
    writer: asyncio.StreamWriter

    @property
    def transport(self) -> asyncio.Transport:
        """What is below reader and writer."""
        return transport_of(self.writer)

    def close(self) -> None:
        """Drop it at once."""
        self.writer.transport.abort()


class Dialer:
    """The gateway's way out.

    :raises EgressError: this machine's own proxy can't be used.
    """

    def __init__(
        self, limits: Limits, *, proxies: HostProxies | None = None, resolve: Resolver | None = None
    ) -> None:
        self._limits = limits
        self._books = AddressBooks(resolve=resolve)
        self._way_out = WayOut(proxies or HostProxies())
        self._proxy_trust = tls_context(None) if self._way_out.tls else None

    async def connect(self, target: Target, *, tls: ssl.SSLContext | None = None) -> Line:
        """Return a stream of bytes to the target.

        :param tls: speak TLS with it.
        :raises EgressError: it must not be reached (:class:`AddressDeniedError`), can't be, or has the wrong
            certificate.
        """
        proxy = self._way_out.for_tunnel(target)
        if proxy is None:
            return await self._direct(target, tls=tls)
        line = await self._to_proxy(proxy)
        try:
            async with asyncio.timeout(self._limits.connect_time + self._limits.header_time):
                await _open_tunnel(line, proxy, target)
                return line if tls is None else await _start_tls(line, tls, target.host)
        except (OSError, EOFError, asyncio.LimitOverrunError, h11.RemoteProtocolError) as error:
            line.close()
            why = _why(error, silent="it does not answer through this machine's own proxy")
            raise EgressError(f"{target.host} can't be reached: {why}") from error
        except BaseException:
            line.close()
            raise

    def http_proxy(self, target: Target) -> Proxy | None:
        """Return the proxy that plain HTTP to the target is asked of, by absolute URL.

        :raises EgressError: the target must not be reached.
        """
        return self._way_out.for_http(target)

    async def connect_http(self, target: Target) -> Line:
        """Return a connection for plain HTTP: to the target, or to its :meth:`http_proxy`.

        :raises EgressError: as above.
        """
        proxy = self._way_out.for_http(target)
        if proxy is None:
            return await self._direct(target, tls=None)
        return await self._to_proxy(proxy)

    async def _to_proxy(self, proxy: Proxy) -> Line:
        return await self._direct(proxy.target, tls=self._proxy_trust if proxy.tls else None)

    async def _direct(self, target: Target, *, tls: ssl.SSLContext | None) -> Line:
        book = self._books.of(target)
        problem: Exception | None = None
        for address in (await book.addresses())[:_MAX_ADDRESSES]:
            try:
                async with asyncio.timeout(self._limits.connect_time):
                    # The address, not the name: a second look-up could lead elsewhere.
                    return await _open(address, target.port, tls=tls, name=target.host)
            except (OSError, TimeoutError) as error:
                problem = error
        book.forget()
        raise EgressError(
            f"{target.host} can't be reached: {_why(problem, silent='it does not answer')}"
        ) from problem


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return what checks a provider's certificate.

    :param ca_file: further certificate authorities to trust.
    :raises EgressError: they can't be loaded.
    """
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


def _why(problem: BaseException | None, *, silent: str) -> str:
    return "its certificate is not trusted" if isinstance(problem, ssl.SSLError) else silent


def transport_of(writer: asyncio.StreamWriter) -> asyncio.Transport:
    """Return what a writer writes to; connections read from theirs as well."""
    transport = writer.transport
    if not isinstance(transport, asyncio.Transport):
        raise TypeError
    return transport


async def _open(address: str, port: int, *, tls: ssl.SSLContext | None, name: str) -> Line:
    loop = asyncio.get_running_loop()
    reader = Inbound()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.create_connection(
        lambda: protocol, address, port, ssl=tls, server_hostname=name if tls else None
    )
    return Line(reader=reader, writer=asyncio.StreamWriter(transport, protocol, reader, loop))


async def _start_tls(line: Line, tls: ssl.SSLContext, name: str) -> Line:
    """Speak TLS from now on."""
    loop = asyncio.get_running_loop()
    reader = Inbound()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport = await loop.start_tls(line.writer.transport, protocol, tls, server_hostname=name)
    if transport is None:
        raise ConnectionResetError
    # start_tls leaves that to its caller.
    protocol.connection_made(transport)
    return Line(reader=reader, writer=asyncio.StreamWriter(transport, protocol, reader, loop))


async def _open_tunnel(line: Line, proxy: Proxy, target: Target) -> None:
    """Ask a proxy for the target.

    :raises EgressError: it refuses.
    """
    http = h11.Connection(h11.CLIENT)
    authority = target.authority.encode("ascii")
    headers = [(b"host", authority)]
    if proxy.authorization is not None:
        headers.append((b"proxy-authorization", proxy.authorization))
    line.writer.write(http.send(h11.Request(method=b"CONNECT", target=authority, headers=headers)) or b"")
    line.writer.write(http.send(h11.EndOfMessage()) or b"")
    while True:
        # Exactly the head: what follows it is the target's own.
        http.receive_data(await line.reader.readuntil(b"\r\n\r\n"))
        event = http.next_event()
        if isinstance(event, h11.Response):
            break
        if not isinstance(event, h11.InformationalResponse):
            raise h11.RemoteProtocolError("no response")
    if not 200 <= event.status_code < 300:
        raise EgressError(f"This machine's own proxy refuses {target.host} with status {event.status_code}")
