"""One client of the gateway, which is to say the agent or whatever it started: hostile, bounded, answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass

import h11

from clsecure.egress import bodies, rules
from clsecure.egress.budget import Meter
from clsecure.egress.events import EventLog, Exchange
from clsecure.egress.live import LivePolicy
from clsecure.egress.provider import Credential, CredentialKind, Provider
from clsecure.egress.rules import Denial, Rule
from clsecure.egress.upstream import CHUNK, Dialer, Redactor, Upstream, close_quietly
from clsecure.egress.wire import Limits
from clsecure.errors import EgressError

_LINGER_SIZE = 64 << 20
_LINGER_TIME = 5.0
_DROPPED_FROM_REPLIES = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"trailer",
     b"set-cookie", b"alt-svc", b"proxy-authenticate"}
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Buffered:
    """Bytes of request bodies in memory, all clients together."""

    left: int

    def take(self, size: int) -> bool:
        """Reserve, unless that is too much."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def give_back(self, size: int) -> None:
        """Release."""
        self.left += size


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The model provider's API, what opens it, and the way there."""

    provider: Provider
    credential: Credential
    dialer: Dialer


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all connections of a gateway have in common.

    :param api: None when the session has no credential, so that every API request is refused.
    :param live: what else may be reached, through the gateway as a proxy.
    :param meter: asked before anything is passed on.
    """

    token: str
    api: Api | None
    live: LivePolicy
    meter: Meter
    limits: Limits
    log: EventLog
    buffered: Buffered


_NO_CREDENTIAL = rules.deny(
    "credential", "this session was given no credential for the model's API, so nothing is asked there"
)


class _HungUpError(Exception):
    """The client is gone, or breaks the protocol in the middle of a body."""


class ClientConnection:
    """Reads requests, one after the other, and answers each."""

    def __init__(
        self, shared: Shared, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, port: int
    ) -> None:
        self.busy = False
        """A request that presented the token is under way: not to be closed to make room."""

        self._shared = shared
        self._limits = shared.limits
        self._reader, self._writer = reader, writer
        self._port = port
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=shared.limits.header_size)
        self._upstream = None if shared.api is None else Upstream(shared.api.dialer)
        self._exchange = Exchange()
        self._held = 0

    async def run(self) -> None:
        """Serve until either side ends it."""
        try:
            first = True
            while await self._one_request(first=first):
                first = False
        except (OSError, TimeoutError, _HungUpError, h11.ProtocolError):
            # A client that is gone or does not keep to the protocol gets no more words.
            pass
        finally:
            self.drop()

    async def refuse(self) -> None:
        """Answer that there are too many connections, and close."""
        denial = rules.deny("connections", "too many connections", status=503, kind="overloaded_error")
        try:
            async with asyncio.timeout(1.0):
                await self._deny(denial)
                await close_quietly(self._writer)
        except (OSError, TimeoutError, h11.ProtocolError):
            pass
        finally:
            self._shared.log.record(self._exchange)
            self.drop()

    def drop(self) -> None:
        """Close at once."""
        if self._upstream is not None:
            self._upstream.close()
        self._writer.transport.abort()

    async def _one_request(self, *, first: bool) -> bool:
        """Answer one request; return whether another may follow."""
        if not await self._wait_for_data(first=first):
            return False
        self._exchange = Exchange()
        try:
            try:
                request = await self._read_head()
            except h11.RemoteProtocolError as error:
                await self._deny(_of_protocol_error(error))
                await self._linger()
                return False
            if request is None:
                return False
            self._exchange.method = request.method.decode("latin-1")
            self._exchange.path = request.target.decode("latin-1")
            return await self._answer(request)
        finally:
            self.busy = False
            self._release()
            self._shared.log.record(self._exchange)

    async def _answer(self, request: h11.Request) -> bool:
        headers = list(request.headers)
        if rules.is_greeting(request.method, request.target, headers) and not _has_body(request):
            return await self._greet()
        verdict = (
            rules.check_framing(request.http_version, headers)
            or rules.check_token(headers, token=self._shared.token)
            or self._find_rule(request)
        )
        if isinstance(verdict, Denial):
            return await self._deny_head(request, verdict)
        if self._shared.api is None or self._upstream is None:
            return await self._deny_head(request, _NO_CREDENTIAL)
        self._exchange.host = self._shared.api.provider.host
        self._exchange.port = self._shared.api.provider.port
        self.busy = True
        self._exchange.rule = verdict.name
        body = b""
        if verdict.inspected:
            read = await self._read_inspected(headers, self._shared.api.provider)
            if isinstance(read, Denial):
                return await self._deny_body(read)
            body = read
        elif _has_body(request):
            return await self._deny_head(request, rules.malformed("body", "a body is not expected here"))
        else:
            await self._skip_end()
        return await self._forward(request, body, self._shared.api, self._upstream)

    def _find_rule(self, request: h11.Request) -> Rule | Denial:
        found = rules.find_rule(request.method, request.target, rules.MESSAGES_API_RULES)
        if isinstance(found, Denial):
            return found
        return rules.check_host(list(request.headers), port=self._port) or found

    async def _greet(self) -> bool:
        self._exchange.decision, self._exchange.rule, self._exchange.status = "allow", "greeting", 200
        await self._skip_end()
        await self._send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
        return await self._finish()

    # Reading

    async def _wait_for_data(self, *, first: bool) -> bool:
        """Return whether a request begins."""
        if self._http.trailing_data[0]:
            return True
        # A new client that stays silent is given less time than one that has worked.
        async with asyncio.timeout(self._limits.header_time if first else self._limits.idle_time):
            data = await self._reader.read(CHUNK)
        self._http.receive_data(data)
        return bool(data)

    async def _read_head(self) -> h11.Request | None:
        async with asyncio.timeout(self._limits.header_time):
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(CHUNK))
        return event if isinstance(event, h11.Request) else None

    async def _read_inspected(self, headers: rules.Headers, provider: Provider) -> bytes | Denial:
        media = rules.values(headers, b"content-type")
        if len(media) != 1 or media[0].split(b";")[0].strip().lower() != b"application/json":
            return rules.malformed("body", "the body must be application/json")
        if rules.values(headers, b"content-encoding"):
            return rules.malformed("body", "an encoded body is not forwarded")
        for length in rules.values(headers, b"content-length"):
            if int(length) > self._limits.body_size:
                return self._too_large()
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        body = bytearray()
        async with asyncio.timeout(self._limits.body_time):
            while (data := await self._body_piece()) is not None:
                if len(body) + len(data) > self._limits.body_size:
                    return self._too_large()
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
        denial = bodies.inspect(content, provider_tools=provider.provider_tools)
        return denial or content

    def _too_large(self) -> Denial:
        return rules.deny("body-size", "the request is too large", status=413, kind="request_too_large")

    async def _body_piece(self) -> bytes | None:
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return None
            if event is not h11.NEED_DATA:
                raise _HungUpError
            self._http.receive_data(await self._reader.read(CHUNK))

    async def _skip_end(self) -> None:
        async with asyncio.timeout(self._limits.header_time):
            while await self._body_piece() is not None:
                pass

    def _release(self) -> None:
        self._shared.buffered.give_back(self._held)
        self._held = 0

    # Forwarding

    async def _forward(self, request: h11.Request, body: bytes, api: Api, upstream: Upstream) -> bool:
        # From here on the answer is the provider's, whatever becomes of it.
        self._exchange.decision = "allow"
        try:
            secret = api.credential.current()
            onward = _onward(request, body, api, secret)
            self._exchange.bytes_out += len(body)
            reply = await upstream.exchange(onward, body)
            self._release()
            headers = _reply_headers(reply, secret)
        except EgressError as error:
            return await self._fail(error)
        self._exchange.status = reply.status_code
        await self._send(h11.Response(status_code=reply.status_code, headers=headers))
        redactor = Redactor(secret)
        try:
            while (data := await upstream.data()) is not None:
                self._exchange.bytes_in += len(data)
                if passed := redactor.feed(data):
                    await self._send(h11.Data(data=passed))
        except EgressError:
            # The head is out: cutting the connection is the only way left to say that the reply is
            # incomplete.
            self._exchange.reason = "the provider's reply broke off"
            raise _HungUpError from None
        if rest := redactor.end():
            await self._send(h11.Data(data=rest))
        return await self._finish()

    async def _fail(self, error: EgressError) -> bool:
        """Tell the agent that the provider can't be asked."""
        reason = error.brief if error.resolution is None else f"{error.brief}. {error.resolution}"
        return await self._reply(502, "api_error", reason)

    # Answering

    async def _deny_head(self, request: h11.Request, denial: Denial) -> bool:
        """Refuse before the body was read."""
        if _has_body(request) or denial.rule == rules.FRAMING:
            await self._deny(denial)
            await self._linger()
            return False
        if self._http.their_state is h11.SEND_BODY:
            await self._skip_end()
        return await self._deny(denial)

    async def _deny_body(self, denial: Denial) -> bool:
        """Refuse for the body, of which some may still be on its way."""
        again = await self._deny(denial)
        if self._http.their_state is h11.SEND_BODY:
            await self._linger()
            return False
        return again

    async def _deny(self, denial: Denial) -> bool:
        self._exchange.rule = denial.rule
        return await self._reply(denial.status, denial.kind, denial.reason)

    async def _reply(self, status: int, kind: str, reason: str) -> bool:
        """Answer in the provider's own shape, so that the agent shows the words to whoever watches."""
        self._exchange.status, self._exchange.reason = status, reason
        content = json.dumps(
            {"type": "error", "error": {"type": kind, "message": f"clsecure: {reason}"}}
        ).encode("ascii")
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
        ]
        if status < 500:
            # Asking again changes nothing; the agent's library would try for minutes.
            headers.append((b"x-should-retry", b"false"))
        await self._send(h11.Response(status_code=status, headers=headers))
        await self._send(h11.Data(data=content))
        return await self._finish()

    async def _finish(self) -> bool:
        await self._send(h11.EndOfMessage())
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            return True
        return False

    async def _send(self, event: h11.Event) -> None:
        for piece in self._http.send_with_data_passthrough(event) or ():
            self._writer.write(piece)
        async with asyncio.timeout(self._limits.reply_time):
            await self._writer.drain()

    async def _linger(self) -> None:
        """Take what is still coming for a moment: closing at once would destroy the answer on its way."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LINGER_TIME):
                self._writer.write_eof()
                left = _LINGER_SIZE
                while left > 0 and (data := await self._reader.read(CHUNK)):
                    left -= len(data)


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


def _has_body(request: h11.Request) -> bool:
    headers = list(request.headers)
    lengths = rules.values(headers, b"content-length")
    return bool(rules.values(headers, b"transfer-encoding")) or any(int(length) for length in lengths)


def _of_protocol_error(error: h11.RemoteProtocolError) -> Denial:
    # Without h11's own words: they quote what was sent.
    if error.error_status_hint == 431:
        return rules.deny(
            "header-size", "the head of the request is too large", status=431, kind="request_too_large"
        )
    return rules.malformed("malformed", "this is no proper HTTP request")


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
