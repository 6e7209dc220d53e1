"""One client of the gateway: its requests, one after the other, each to where it is addressed."""

from __future__ import annotations

import asyncio

import h11

from clsecure.egress import proxy_rules, rules
from clsecure.egress.api import ApiClient
from clsecure.egress.conversation import Conversation, HungUpError, of_protocol_error
from clsecure.egress.dialer import Inbound
from clsecure.egress.events import Exchange
from clsecure.egress.proxy import ProxyClient
from clsecure.egress.shared import Shared
from clsecure.egress.upstream import close_quietly


class ClientConnection:
    """Reads requests, one after the other, and answers each."""

    def __init__(self, shared: Shared, reader: Inbound, writer: asyncio.StreamWriter, *, port: int) -> None:
        self._shared = shared
        self._conversation = Conversation(reader, writer, shared.limits)
        self._port = port
        self._api = ApiClient(shared, self._conversation, port=port)
        self._proxy = ProxyClient(shared, self._conversation)

    @property
    def busy(self) -> bool:
        """A request that presented the token is under way: not to be closed to make room."""
        return self._conversation.busy

    async def run(self) -> None:
        """Serve until either side ends it."""
        try:
            first = True
            while await self._one_request(first=first):
                first = False
        except (OSError, HungUpError, h11.ProtocolError):
            # A client that is gone or does not keep to the protocol gets no more words.
            pass
        finally:
            self.drop()

    async def refuse(self) -> None:
        """Answer that there are too many connections, and close."""
        denial = rules.deny("connections", "too many connections", status=503, kind="overloaded_error")
        try:
            async with asyncio.timeout(1.0):
                await self._conversation.deny(denial)
                await close_quietly(self._conversation.writer)
        except (OSError, h11.ProtocolError):
            pass
        finally:
            self._shared.log.record(self._conversation.exchange)
            self.drop()

    def drop(self) -> None:
        """Close at once."""
        self._api.close()
        self._proxy.close()
        self._conversation.drop()

    async def _one_request(self, *, first: bool) -> bool:
        """Answer one request; return whether another may follow."""
        conversation = self._conversation
        if not await conversation.wait_for_data(first=first):
            return False
        exchange = conversation.exchange = Exchange()
        try:
            try:
                request = await conversation.read_head()
            except h11.RemoteProtocolError as error:
                await conversation.deny(of_protocol_error(error))
                await conversation.linger()
                return False
            if request is None:
                return False
            exchange.method = request.method.decode("latin-1")
            exchange.path = request.target.decode("latin-1")
            own = proxy_rules.of_own_address(request.target, port=self._port)
            if own is not None:
                request = h11.Request(
                    method=request.method,
                    target=own,
                    headers=list(request.headers),
                    http_version=request.http_version,
                )
                exchange.path = own.decode("latin-1")
            if request.method == b"CONNECT" or not request.target.startswith((b"/", b"*")):
                return await self._proxy.answer(request)
            return await self._api.answer(request)
        finally:
            conversation.busy = False
            self._shared.log.record(exchange)
