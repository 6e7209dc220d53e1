"""Requests to the API: inspected, opened with the real credential, forwarded; the reply streamed."""

from __future__ import annotations

import asyncio
import json

import h11

from clsecure.egress import bodies, rules
from clsecure.egress.conversation import Conversation, HungUpError, has_body
from clsecure.egress.document import agents_document
from clsecure.egress.provider import CredentialKind
from clsecure.egress.rules import Denial, Rule
from clsecure.egress.shared import Api, Shared
from clsecure.egress.upstream import Redactor, Upstream
from clsecure.egress.usage import UsageReader
from clsecure.errors import EgressError

_DROPPED_FROM_REPLIES = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"trailer",
     b"set-cookie", b"alt-svc", b"proxy-authenticate"}
)  # fmt: skip

_NO_CREDENTIAL = rules.deny(
    "credential", "this session was given no credential for the model's API, so nothing is asked there"
)


class ApiClient:
    """One client's requests to the API.

    :param port: of the gateway, as its client sees it.
    """

    def __init__(self, shared: Shared, conversation: Conversation, *, port: int) -> None:
        self._shared = shared
        self._conversation = conversation
        self._port = port
        api = shared.api
        self._upstream = None if api is None else Upstream(api.connect, shared.limits, host=api.provider.host)
        self._held = 0

    def close(self) -> None:
        """Drop the connection to the provider."""
        if self._upstream is not None:
            self._upstream.close()

    async def answer(self, request: h11.Request) -> bool:
        """Answer one request; return whether another may follow."""
        try:
            return await self._answer(request)
        finally:
            self._release()

    async def _answer(self, request: h11.Request) -> bool:
        conversation, exchange = self._conversation, self._conversation.exchange
        headers = list(request.headers)
        if rules.is_greeting(request.method, request.target, headers) and not has_body(request):
            exchange.decision, exchange.rule = "allow", "greeting"
            await conversation.skip_end()
            return await conversation.answer(200)
        verdict = (
            rules.check_framing(request.http_version, headers)
            or rules.check_token(headers, token=self._shared.token)
            or self._find_rule(request)
        )
        if isinstance(verdict, Denial):
            return await conversation.deny_head(request, verdict)
        if verdict is rules.POLICY:
            return await self._tell_policy(request)
        api, upstream = self._shared.api, self._upstream
        if api is None or upstream is None:
            return await conversation.deny_head(request, _NO_CREDENTIAL)
        conversation.busy = True
        exchange.rule = verdict.name
        exchange.host, exchange.port = api.provider.host, api.provider.port
        body = b""
        if verdict.inspected:
            read = await self._read_inspected(headers, provider_tools=api.provider.provider_tools)
            if isinstance(read, Denial):
                return await conversation.deny_body(read)
            body = read
        elif has_body(request):
            return await conversation.deny_head(
                request, rules.malformed("body", "a body is not expected here")
            )
        else:
            await conversation.skip_end()
        meter = self._shared.meter
        if denial := meter.request() or (None if meter.take_bytes(len(body)) else meter.refused_bytes()):
            return await conversation.deny(denial)
        return await self._forward(request, body, api, upstream)

    async def _tell_policy(self, request: h11.Request) -> bool:
        conversation, exchange = self._conversation, self._conversation.exchange
        if has_body(request):
            return await conversation.deny_head(
                request, rules.malformed("body", "a body is not expected here")
            )
        await conversation.skip_end()
        exchange.decision, exchange.rule, exchange.counted = "allow", rules.POLICY.name, False
        content = json.dumps(agents_document(self._shared, port=self._port)).encode("ascii")
        return await conversation.answer(200, content, headers=[(b"content-type", b"application/json")])

    def _find_rule(self, request: h11.Request) -> Rule | Denial:
        known = (rules.POLICY, *rules.MESSAGES_API_RULES)
        found = rules.find_rule(request.method, request.target, known)
        if isinstance(found, Denial):
            return found
        return rules.check_host(list(request.headers), port=self._port) or found

    async def _read_inspected(self, headers: rules.Headers, *, provider_tools: bool) -> bytes | Denial:
        media = rules.values(headers, b"content-type")
        if len(media) != 1 or not rules.JSON_MEDIA.fullmatch(media[0]):
            return rules.malformed("body", "the body must be application/json, in UTF-8")
        if rules.values(headers, b"content-encoding"):
            return rules.malformed("body", "an encoded body is not forwarded")
        limits = self._shared.limits
        for length in rules.values(headers, b"content-length"):
            if int(length) > limits.body_size:
                return _too_large()
        await self._conversation.ask_for_body()
        body = bytearray()
        async with asyncio.timeout(limits.body_time):
            while (data := await self._conversation.body_piece()) is not None:
                if len(body) + len(data) > limits.body_size:
                    return _too_large()
                if not self._shared.buffered.take(len(data)):
                    return rules.deny(
                        "buffered",
                        "too many large requests at the same time",
                        status=503,
                        kind="overloaded_error",
                    )
                self._held += len(data)
                body += data
        content = bytes(body)
        return bodies.inspect(content, provider_tools=provider_tools) or content

    def _release(self) -> None:
        self._shared.buffered.give_back(self._held)
        self._held = 0

    async def _forward(self, request: h11.Request, body: bytes, api: Api, upstream: Upstream) -> bool:
        conversation, exchange = self._conversation, self._conversation.exchange
        # From here on the answer is the provider's, whatever becomes of it.
        exchange.decision = "allow"
        try:
            secret = api.credential.current()
            onward = _onward(request, body, api, secret)
            exchange.bytes_out += len(body)
            reply = await upstream.exchange(onward, body)
            self._release()
            headers = _reply_headers(reply, secret)
        except EgressError as error:
            reason = error.brief if error.resolution is None else f"{error.brief}. {error.resolution}"
            return await conversation.explain(502, "api_error", reason)
        exchange.status = reply.status_code
        await conversation.send(h11.Response(status_code=reply.status_code, headers=headers))
        usage = UsageReader(_media_type(reply) if exchange.rule == rules.MESSAGES else b"")
        try:
            await self._pass_on(upstream, Redactor(secret), usage)
        finally:
            # Here, too, when the agent hangs up before the end.
            self._shared.meter.add_tokens(usage.end())
            exchange.tokens = usage.tokens
        return await conversation.finish()

    async def _pass_on(self, upstream: Upstream, redactor: Redactor, usage: UsageReader) -> None:
        """Stream the reply's body, and read along what it costs."""
        conversation, exchange, meter = self._conversation, self._conversation.exchange, self._shared.meter
        try:
            while (data := await upstream.data()) is not None:
                if not meter.take_bytes(len(data)):
                    exchange.reason = meter.refused_bytes().reason
                    raise HungUpError
                exchange.bytes_in += len(data)
                meter.add_tokens(usage.feed(data))
                if passed := redactor.feed(data):
                    await conversation.send(h11.Data(data=passed))
        except EgressError:
            # The head is out: cutting the connection is the only way left to say that the reply is
            # incomplete.
            exchange.reason = "the provider's reply broke off"
            raise HungUpError from None
        if rest := redactor.end():
            await conversation.send(h11.Data(data=rest))


def _media_type(reply: h11.Response) -> bytes:
    return next(iter(rules.values(list(reply.headers), b"content-type")), b"")


def _too_large() -> Denial:
    return rules.deny("body-size", "the request is too large", status=413, kind="request_too_large")


def _onward(request: h11.Request, body: bytes, api: Api, secret: str) -> h11.Request:
    headers = rules.forwarded_headers(list(request.headers))
    headers.append((b"host", api.provider.authority.encode("ascii")))
    # Compressed replies could not be searched for the secret, and compressors hold streams back.
    headers.append((b"accept-encoding", b"identity"))
    if request.method == b"POST":
        headers.append((b"content-length", str(len(body)).encode()))
    match api.credential.kind:
        case CredentialKind.API_KEY:
            headers.append((b"x-api-key", secret.encode("ascii")))
        case CredentialKind.BEARER:
            headers.append((b"authorization", b"Bearer " + secret.encode("ascii")))
    return h11.Request(
        method=request.method, target=api.provider.prefix.encode("ascii") + request.target, headers=headers
    )


def _reply_headers(reply: h11.Response, secret: str) -> list[tuple[bytes, bytes]]:
    """Return what is passed back to the agent.

    :raises EgressError: the reply could carry the credential.
    """
    kept: list[tuple[bytes, bytes]] = []
    for name, value in reply.headers:
        if secret.encode("ascii") in value:
            raise EgressError("The provider's reply held the credential and was dropped")
        if name == b"content-encoding" and value.lower() != b"identity":
            raise EgressError("The provider's reply is encoded, though it was asked not to be")
        if name not in _DROPPED_FROM_REPLIES:
            kept.append((name, value))
    return kept
