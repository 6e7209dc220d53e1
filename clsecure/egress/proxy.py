"""Requests to others than the API: the gateway as an HTTP proxy that lets through what the policy allows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import h11

from clsecure.egress import proxy_rules, rules
from clsecure.egress.addresses import AddressDeniedError, Target
from clsecure.egress.conversation import Conversation, HungUpError, has_body
from clsecure.egress.dialer import Line
from clsecure.egress.hostproxy import Proxy
from clsecure.egress.rules import Denial
from clsecure.egress.shared import Shared
from clsecure.egress.tunnel import Expected, Tunnel, TunnelLimits, TunnelRefusedError
from clsecure.egress.upstream import Redactor, Upstream
from clsecure.errors import EgressError

_REPEATABLE = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Methods whose requests may be sent again when a kept connection turns out to be closed."""


class ProxyClient:
    """One client's requests to the proxy."""

    def __init__(self, shared: Shared, conversation: Conversation) -> None:
        self._shared = shared
        self._conversation = conversation
        self._target: Target | None = None
        self._upstream: Upstream | None = None
        self._used_up: Denial | None = None

    def close(self) -> None:
        """Drop the connection to the target."""
        if self._upstream is not None:
            self._upstream.close()

    async def answer(self, request: h11.Request) -> bool:
        """Answer one request; return whether another may follow."""
        target = self._judge(request)
        if isinstance(target, Denial):
            return await self._conversation.deny_head(request, target)
        self._conversation.busy = True
        try:
            if request.method == b"CONNECT":
                return await self._connect(target)
            return await self._forward(request, target)
        except AddressDeniedError as error:
            denial = rules.refuse_proxied("address", _sentence(error))
            return await self._conversation.deny_body(denial)
        except EgressError as error:
            if self._used_up is not None:
                return await self._conversation.deny_body(self._used_up)
            return await self._conversation.fail(_sentence(error))

    # Judging

    def _judge(self, request: h11.Request) -> Target | Denial:
        exchange = self._conversation.exchange
        connect = request.method == b"CONNECT"
        asked = (proxy_rules.read_connect if connect else proxy_rules.read_absolute)(request.target)
        if isinstance(asked, Denial):
            if connect:
                exchange.host, exchange.path = exchange.path, "-"
        else:
            exchange.host, exchange.port = asked.host, asked.port
            exchange.path = asked.path.decode("ascii") or "-"
        headers = list(request.headers)
        denial = rules.check_framing(request.http_version, headers) or proxy_rules.check_proxy_token(
            headers, token=self._shared.token
        )
        if denial is not None:
            return replace(denial, proxied=True)
        if isinstance(asked, Denial):
            return asked
        if request.method == b"TRACE":
            return rules.refuse_proxied(
                "method", "TRACE is not forwarded: its answer repeats what proxies on the way were told"
            )
        if connect and has_body(request):
            return rules.refuse_proxied(rules.FRAMING, "CONNECT takes no body", status=400)
        default_port = asked.port if connect else proxy_rules.HTTP_PORT
        return proxy_rules.check_proxy_host(headers, asked, default_port=default_port) or self._decide(asked)

    def _decide(self, asked: proxy_rules.Asked) -> Target | Denial:
        decision = self._shared.live.decide(asked.host, asked.port)
        if not decision.allowed or decision.rule is None:
            provider = None if self._shared.api is None else self._shared.api.provider
            api = None if provider is None else (provider.host, provider.port)
            return proxy_rules.denial_of(decision, asked, session=self._shared.session, api=api)
        if (denial := self._shared.meter.request()) is not None:
            return replace(denial, proxied=True)
        exchange = self._conversation.exchange
        exchange.decision, exchange.rule = "allow", str(decision.rule.pattern)
        return Target(
            host=asked.host,
            port=asked.port,
            connect=decision.rule.connect,
            may_be_private=decision.rule.may_be_private,
            denied=self._shared.live.denied_addresses(asked.port),
        )

    # Tunnels

    async def _connect(self, target: Target) -> bool:
        await self._conversation.skip_end()
        tunnels = self._shared.tunnels
        if not tunnels.take(1):
            return await self._conversation.deny(
                rules.refuse_proxied("connections", "too many tunnels at the same time", status=503)
            )
        try:
            line = await self._shared.dialer.connect(target)
            try:
                await self._relay(target, line)
            finally:
                line.close()
        finally:
            tunnels.give_back(1)
        return False

    async def _relay(self, target: Target, line: Line) -> None:
        conversation, exchange, limits = self._conversation, self._conversation.exchange, self._shared.limits
        client, early = await conversation.become_tunnel()
        self._shared.log.opened(exchange)
        tunnel = Tunnel(
            client,
            line.transport,
            expected=Expected(host=target.host, port=target.port),
            limits=TunnelLimits(hello=limits.header_time, idle=limits.tunnel_time),
            buffers=self._shared.buffers,
            outgoing=self._count_out,
            incoming=self._count_in,
        )
        try:
            await tunnel.run(from_client=early, from_upstream=await line.reader.take())
        except TunnelRefusedError as refused:
            exchange.reason = refused.reason
            if refused.denied:
                exchange.decision, exchange.rule = "deny", "tls"

    def _count_out(self, size: int) -> str | None:
        if not self._shared.meter.take_bytes(size):
            return self._shared.meter.refused_bytes().reason
        self._conversation.exchange.bytes_out += size
        return None

    def _count_in(self, size: int) -> str | None:
        if not self._shared.meter.take_bytes(size):
            return self._shared.meter.refused_bytes().reason
        self._conversation.exchange.bytes_in += size
        return None

    # Plain HTTP

    async def _forward(self, request: h11.Request, target: Target) -> bool:
        conversation = self._conversation
        self._used_up = None
        proxy = self._shared.dialer.http_proxy(target)
        onward = _onward(request, target, proxy)
        upstream = self._upstream_to(target)
        if request.method in _REPEATABLE and not has_body(request):
            await conversation.skip_end()
            reply = await upstream.exchange(onward, b"")
        else:
            # What can't be sent again goes over a connection that nobody is about to close.
            await upstream.open()
            await conversation.ask_for_body()
            reply = await upstream.stream(onward, self._body())
        if proxy is not None and reply.status_code == rules.PROXY_TOKEN_STATUS:
            # Passed on it would ask the agent for a password, and blame the session's token.
            upstream.close()
            raise EgressError(f"This machine's own proxy refuses {target.host} with status 407")
        conversation.exchange.status = reply.status_code
        headers = proxy_rules.forwarded_back(list(reply.headers))
        # Pages of errors that a proxy writes may repeat the request, with the user's password for it.
        secret = None if proxy is None else proxy.secret
        if secret is not None:
            headers = [(name, value) for name, value in headers if secret.encode() not in value]
        await conversation.send(
            h11.Response(status_code=reply.status_code, headers=headers, reason=reply.reason)
        )
        redactor = None if secret is None else Redactor(secret)
        try:
            while (data := await upstream.data()) is not None:
                if (reason := self._count_in(len(data))) is not None:
                    raise EgressError(reason)
                if passed := data if redactor is None else redactor.feed(data):
                    await conversation.send(h11.Data(data=passed))
            if redactor is not None and (rest := redactor.end()):
                await conversation.send(h11.Data(data=rest))
        except EgressError as error:
            # The head is out: cutting the connection is the only way left to say that the reply is
            # incomplete.
            conversation.exchange.reason = error.brief
            raise HungUpError from None
        return await conversation.finish_early()

    def _upstream_to(self, target: Target) -> Upstream:
        if self._upstream is None or self._target != target:
            self.close()

            async def connect() -> Line:
                return await self._shared.dialer.connect_http(target)

            self._target = target
            self._upstream = Upstream(connect, self._shared.limits, host=target.host)
        return self._upstream

    async def _body(self) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(self._shared.limits.body_time):
                    piece = await self._conversation.body_piece()
            except (OSError, h11.ProtocolError):
                raise HungUpError from None
            if piece is None:
                return
            if self._count_out(len(piece)) is not None:
                self._used_up = replace(self._shared.meter.refused_bytes(), proxied=True)
                raise HungUpError
            yield piece


def _onward(request: h11.Request, target: Target, proxy: Proxy | None) -> h11.Request:
    asked = proxy_rules.read_absolute(request.target)
    path = b"/" if isinstance(asked, Denial) else asked.path
    authority = target.authority.removesuffix(f":{proxy_rules.HTTP_PORT}").encode("ascii")
    headers = [(b"host", authority), *proxy_rules.forwarded(list(request.headers))]
    if proxy is None:
        return h11.Request(method=request.method, target=path, headers=headers)
    if proxy.authorization is not None:
        headers.append((b"proxy-authorization", proxy.authorization))
    return h11.Request(method=request.method, target=b"http://" + authority + path, headers=headers)


def _sentence(error: EgressError) -> str:
    return error.brief if error.resolution is None else f"{error.brief}. {error.resolution}"
