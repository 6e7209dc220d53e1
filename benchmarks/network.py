"""What the gateway adds: to the first byte of the model's stream, to each event, to bulk through a tunnel."""

from __future__ import annotations

import json
import re
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import endpoints
from benchmarks.measuring import Case, Phases
from tests.support.gateways import RunningGateway, allowing, read_until, running_gateway
from tests.support.person import CHECKOUT

SIZE = 512 << 20
"""Bytes of one transfer."""

THROUGH = ", gateway"
FIRSTS = (
    "first byte, new connection",
    "first byte, kept connection",
    "first byte, request of 150 KB",
)
EVENT = "an event of a stream"
WEB = "plain HTTP, first byte"
TUNNELS = ("tunnel, down", "tunnel, up", "tunnel, TLS, down")
WEB_BULK = "plain HTTP, down"
QUICK = (*FIRSTS, EVENT, WEB)
BULK = (*TUNNELS, WEB_BULK)
_EVENTS, _INTERVAL = 100, 0.002
_SENT = re.compile(re.escape(endpoints.SENT) + rb"([0-9.]+)")
_TIMEOUT = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where the endpoints listen."""

    api: int
    web: int
    tcp: int
    tls: int


@contextmanager
def running(directory: Path) -> Iterator[tuple[list[Case], list[Case]]]:
    """Yield the cases of :data:`QUICK` and of :data:`BULK`, each without the gateway and with it between."""
    pem = _certificate(directory)
    command = [sys.executable, "-P", "-m", "benchmarks.endpoints", str(pem)]
    with ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        assert process.stdin is not None
        assert process.stdout is not None
        stack.callback(process.stdin.close)
        ports = Ports(**json.loads(process.stdout.readline()))
        policy = allowing(*(f"127.0.0.1:{port}" for port in (ports.web, ports.tcp, ports.tls)))
        url = f"http://127.0.0.1:{ports.api}"
        gateway = stack.enter_context(running_gateway(url, directory, policy=policy))
        yield (
            [*_first_bytes(stack, ports, gateway), *_events(ports, gateway), *_web(stack, ports, gateway)],
            [*_tunnels(ports, gateway, pem), *_web_bulk(ports, gateway)],
        )


def _pair(
    name: str, direct: Callable[[], Phases], through: Callable[[], Phases], size: int = 0
) -> list[Case]:
    return [
        Case(name=name, run=direct, size=size),
        Case(name=name + THROUGH, run=through, floor=name, size=size),
    ]


def _connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


# ------------------------------------------------------------ small things


def _first_bytes(stack: ExitStack, ports: Ports, gateway: RunningGateway) -> list[Case]:
    small, large = endpoints.events(1, 0), endpoints.events(1, 0)
    # As an agent's: instructions, tools and the conversation until now.
    words = 'The quick brown fox jumps over the lazy dog, and "says" so.\n' * 10
    large["messages"] = [{"role": "user", "content": [{"type": "text", "text": words}]} for _ in range(220)]
    new, kept, long = FIRSTS
    cases = _pair(
        new,
        partial(_first_byte_of_new, ports.api, gateway.post(small)),
        partial(_first_byte_of_new, gateway.port, gateway.post(small)),
    )
    for name, body in ((kept, small), (long, large)):
        direct, through = (stack.enter_context(_connect(port)) for port in (ports.api, gateway.port))
        request = gateway.post(body)
        cases += _pair(name, partial(_first_byte, direct, request), partial(_first_byte, through, request))
    return cases


def _first_byte_of_new(port: int, request: bytes) -> Phases:
    start = time.perf_counter()
    with _connect(port) as client:
        _first_byte(client, request)
        return {"total": time.perf_counter() - start}


def _first_byte(client: socket.socket, request: bytes, end: bytes = b"0\r\n\r\n") -> Phases:
    """Send a request and wait for the beginning of its answer, then for the end."""
    start = time.perf_counter()
    client.sendall(request)
    answer = client.recv(65536)
    took = time.perf_counter() - start
    assert answer.startswith(b"HTTP/1.1 200"), answer
    while not answer.endswith(end):
        piece = client.recv(65536)
        assert piece
        answer += piece
    return {"total": took}


def _events(ports: Ports, gateway: RunningGateway) -> list[Case]:
    request = gateway.post(endpoints.events(_EVENTS, _INTERVAL))
    return _pair(EVENT, partial(_lags, ports.api, request), partial(_lags, gateway.port, request))


def _lags(port: int, request: bytes) -> Phases:
    """Return the median time from the sending of an event to its arrival, and that of the slowest tenth."""
    lags: list[float] = []
    with _connect(port) as client:
        client.sendall(request)
        end = b""
        while not end.endswith(b"0\r\n\r\n"):
            data = client.recv(65536)
            now = time.monotonic()
            assert data
            lags += [now - float(sent) for sent in _SENT.findall(data)]
            end = (end + data)[-8:]
    assert len(lags) == _EVENTS
    return {"total": statistics.median(lags), "slowest_tenth": statistics.quantiles(lags, n=10)[-1]}


def _web(stack: ExitStack, ports: Ports, gateway: RunningGateway) -> list[Case]:
    direct, through = (stack.enter_context(_connect(port)) for port in (ports.web, gateway.port))
    asks = (_get(ports, 1), _get(ports, 1, gateway))
    return _pair(
        WEB, partial(_first_byte, direct, asks[0], b"\0"), partial(_first_byte, through, asks[1], b"\0")
    )


def _get(ports: Ports, size: int, gateway: RunningGateway | None = None) -> bytes:
    host = f"127.0.0.1:{ports.web}"
    if gateway is not None:
        return gateway.proxied("GET", f"http://{host}/{size}", f"Host: {host}")
    return f"GET /{size} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


# ------------------------------------------------------------ bulk


def _tunnels(ports: Ports, gateway: RunningGateway, pem: Path) -> list[Case]:
    trust = ssl.create_default_context(cafile=str(pem))

    def opened(port: int, *, through: bool) -> socket.socket:
        return gateway.tunnel(f"127.0.0.1:{port}") if through else _connect(port)

    def secure(*, through: bool) -> socket.socket:
        return trust.wrap_socket(opened(ports.tls, through=through), server_hostname="127.0.0.1")

    plain = partial(opened, ports.tcp)
    orders = zip(TUNNELS, (plain, plain, secure), (endpoints.DOWN, endpoints.UP, endpoints.DOWN), strict=True)
    cases = []
    for name, way, order in orders:
        direct, through = (partial(_transfer, partial(way, through=side), order) for side in (False, True))
        cases += _pair(name, direct, through, SIZE)
    return cases


def _transfer(connect: Callable[[], socket.socket], order: bytes) -> Phases:
    with connect() as client:
        client.settimeout(_TIMEOUT)
        start = time.perf_counter()
        client.sendall(order + SIZE.to_bytes(8, "big"))
        if order == endpoints.DOWN:
            endpoints.receive(client, SIZE)
        else:
            endpoints.send(client, SIZE)
            endpoints.receive(client, 1)
        return {"total": time.perf_counter() - start}


def _web_bulk(ports: Ports, gateway: RunningGateway) -> list[Case]:
    return _pair(
        WEB_BULK,
        partial(_fetch, ports.web, _get(ports, SIZE)),
        partial(_fetch, gateway.port, _get(ports, SIZE, gateway)),
        SIZE,
    )


def _fetch(port: int, request: bytes) -> Phases:
    with _connect(port) as client:
        start = time.perf_counter()
        client.sendall(request)
        assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        endpoints.receive(client, SIZE)
        return {"total": time.perf_counter() - start}


def _certificate(directory: Path) -> Path:
    """Return a file with a key and a certificate of 127.0.0.1."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    certificate.write_bytes(key.read_bytes() + certificate.read_bytes())
    return certificate
