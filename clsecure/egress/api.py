"""Requests to the API: inspected, opened with the real credential, forwarded; the reply streamed."""

from __future__ import annotations

import asyncio

import h11

from clsecure.egress import bodies, rules
from clsecure.egress.conversation import Conversation, HungUpError, has_body
from clsecure.egress.provider import CredentialKind
from clsecure.egress.rules import Denial, Rule
from clsecure.egress.shared import Api, Shared
from clsecure.egress.upstream import Redactor, Upstream
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
        return await self._forward(request, body, api, upstream)

    def _find_rule(self, request: h11.Request) -> Rule | Denial:
        found = rules.find_rule(request.method, request.target, rules.MESSAGES_API_RULES)
        if isinstance(found, Denial):
            return found
        return rules.check_host(list(request.headers), port=self._port) or found

    async def _read_inspected(self, headers: rules.Headers, *, provider_tools: bool) -> bytes | Denial:
        media = rules.values(headers, b"content-type")
        if len(media) != 1 or media[0].split(b";")[0].strip().lower() != b"application/json":
            return rules.malformed("body", "the body must be application/json")
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
        redactor = Redactor(secret)
        try:
            while (data := await upstream.data()) is not None:
                exchange.bytes_in += len(data)
                if passed := redactor.feed(data):
                    await conversation.send(h11.Data(data=passed))
        except EgressError:
            # The head is out: cutting the connection is the only way left to say that the reply is
            # incomplete.
            exchange.reason = "the provider's reply broke off"
            raise HungUpError from None
        if rest := redactor.end():
            await conversation.send(h11.Data(data=rest))
        return await conversation.finish()


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
