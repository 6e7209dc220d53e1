"""A real gateway process on a loopback listener, and clients that say exactly what a test wants said."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsecure.egress.addresses import Resolver
from clsecure.egress.client import Gateway, start_gateway
from clsecure.egress.gateway import GatewayServer
from clsecure.egress.provider import Credential, CredentialKind, Provider
from clsecure.egress.wire import EgressTotals, GatewayConfig, HostProxies, Limits
from clsecure.model import NetworkPolicy
from clsecure.policy import Budget, EgressPolicy, allow_rules, deny_rule

KEY = "sk-CANARY-of-the-real-provider"
TIMEOUT = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole reply; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, str]:
        """The error object of a refusal."""
        return json.loads(self.body)["error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningGateway:
    """A gateway, where it listens, and what it writes."""

    gateway: Gateway | InThread
    port: int
    log: Path

    @property
    def token(self) -> str:
        return self.gateway.token

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)

    def head(self, method: str, target: str, *headers: str, token: str | None = "") -> bytes:
        """Return a request's head. ``token`` is the session's by default, None for none."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *headers]
        if token is not None:
            lines.append(f"x-api-key: {token or self.token}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def post(self, document: object, target: str = "/v1/messages") -> bytes:
        """Return a whole request with a JSON body."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        head = self.head("POST", target, "Content-Type: application/json", f"Content-Length: {len(body)}")
        return head + body

    def proxied(self, method: str, target: str, *headers: str, token: str | None = "") -> bytes:
        """Return the head of a request to the gateway as a proxy; ``Host`` is among ``headers``."""
        lines = [f"{method} {target} HTTP/1.1", *headers]
        if token is not None:
            pair = base64.b64encode(f"clsecure:{token or self.token}".encode()).decode()
            lines.append(f"Proxy-Authorization: Basic {pair}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def tunnel(self, target: str) -> socket.socket:
        """Return a connection on which a CONNECT has succeeded."""
        client = self.connect()
        client.sendall(self.proxied("CONNECT", target, f"Host: {target}"))
        head = read_until(client, b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            client.close()
            raise ConnectionError(head)
        return client

    def ask(self, request: bytes) -> Reply:
        """Send a request on a connection of its own and return the reply."""
        with self.connect() as client:
            client.sendall(request)
            return read_reply(client, head_only=request.startswith(b"HEAD "))

    def events(self) -> list[dict[str, Any]]:
        """End the gateway and return what it logged."""
        self.gateway.close()
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def allowing(*targets: str, deny: tuple[str, ...] = ()) -> EgressPolicy:
    """Return the policy of a session that may reach these."""
    return EgressPolicy(
        kind=NetworkPolicy.ALLOWLIST,
        allow=tuple(rule for target in targets for rule in allow_rules(target, where="test")),
        deny=tuple(deny_rule(target, where="test") for target in deny),
    )


@contextmanager
def running_gateway(
    base_url: str | None,
    directory: Path,
    *,
    limits: Limits | None = None,
    kind: CredentialKind = CredentialKind.API_KEY,
    provider_tools: bool = False,
    credential: Credential | None = None,
    ca_file: Path | None = None,
    policy: EgressPolicy | None = None,
    budget: Budget | None = None,
    proxies: HostProxies | None = None,
    control: Path | None = None,
    hidden: tuple[str, ...] = (),
) -> Iterator[RunningGateway]:
    """Start a gateway in front of ``base_url``, as if the user had named that URL; None for no API at all."""
    log = directory / "network.jsonl"
    provider = base_url and Provider(
        base_url=base_url, user_named=True, provider_tools=provider_tools, ca_file=ca_file
    )
    config = GatewayConfig(
        provider=provider or None,
        credential=(credential or Credential(kind=kind, value=KEY)) if provider else None,
        policy=policy or EgressPolicy(),
        budget=budget or Budget(),
        proxies=proxies or HostProxies(),
        log=log,
        limits=limits or Limits(),
        control=control,
        hidden=hidden,
    )
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with start_gateway(config) as gateway:
        gateway.serve(listener)
        yield RunningGateway(gateway=gateway, port=port, log=log)


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    """Return what arrives up to and including ``mark``."""
    data = b""
    while not data.endswith(mark):
        piece = connection.recv(1)
        if not piece:
            raise EOFError(data)
        data += piece
    return data


def read_rest(connection: socket.socket) -> bytes:
    """Return what arrives until the other side closes."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def read_reply(connection: socket.socket, *, head_only: bool = False) -> Reply:
    """Return one reply, by Content-Length or chunks."""
    lines = read_until(connection, b"\r\n\r\n").decode("latin-1").split("\r\n")
    headers = {}
    for line in lines[1:-2]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    status = int(lines[0].split()[1])
    body = b""
    if head_only:
        pass
    elif headers.get("transfer-encoding") == "chunked":
        while size := int(read_until(connection, b"\r\n"), 16):
            body += read_exactly(connection, size)
            read_until(connection, b"\r\n")
        read_until(connection, b"\r\n")
    else:
        body = read_exactly(connection, int(headers["content-length"]))
    return Reply(status=status, headers=headers, body=body)


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """Return so many bytes."""
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise EOFError(data)
        data += piece
    return data


class InThread:
    """A gateway in a thread of the test's own process, where names lead to what the test says.

    :ivar failures: what nobody caught in it.
    """

    def __init__(self, config: GatewayConfig, *, resolve: Resolver | None) -> None:
        self.token = "t" * 64
        self.failures: list[dict[str, Any]] = []
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, context: self.failures.append(context))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = GatewayServer(config, token=self.token, resolve=resolve)

    def serve(self, listener: socket.socket) -> None:
        self._call(self._server.serve(listener))

    def close(self) -> EgressTotals:
        """End it; may be called again."""
        if self._thread.is_alive():
            self._call(self._server.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(TIMEOUT)
            self._loop.close()
            # Exceptions of tasks that nobody asked for are told when the tasks are forgotten.
            gc.collect()
        return self._server.totals

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT)


@contextmanager
def gateway_in_thread(
    directory: Path, *, policy: EgressPolicy, resolve: Resolver, limits: Limits | None = None
) -> Iterator[RunningGateway]:
    """Start a gateway without an API in this process."""
    log = directory / "network.jsonl"
    config = GatewayConfig(provider=None, credential=None, policy=policy, log=log, limits=limits or Limits())
    gateway = InThread(config, resolve=resolve)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    try:
        gateway.serve(listener)
        yield RunningGateway(gateway=gateway, port=port, log=log)
    finally:
        gateway.close()
    assert gateway.failures == []
