"""Attacks on the gateway as a proxy, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import time
from pathlib import Path
from typing import NoReturn

import pytest

from clsecure.egress.tunnel import BUFFER, Buffers, Expected, Tunnel, TunnelLimits, TunnelRefusedError
from clsecure.egress.wire import Limits
from clsecure.policy import EgressPolicy, HostPattern, NetworkRule
from tests.support.gateways import (
    TIMEOUT,
    allowing,
    gateway_in_thread,
    read_exactly,
    read_reply,
    read_rest,
    read_until,
    running_gateway,
)
from tests.support.origin import origin
from tests.support.tls import client_hello

ALERT = b"\x15\3\1\0\2\2"
PUBLIC = "1.1.1.1"
METADATA = "169.254.169.254"


@pytest.fixture
def server():
    with origin() as listening:
        yield listening


@pytest.fixture
def gateway(server, tmp_path):
    """Reaches the server by the name ``localhost`` and the one port."""
    with running_gateway(None, tmp_path, policy=allowing(f"localhost:{server.port}")) as running:
        yield running


def raw(gateway, request: bytes) -> bytes:
    """Send bytes as they are; return all that comes back."""
    with gateway.connect() as client:
        client.sendall(request)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        return read_rest(client)


DISGUISES = [
    "evil\0.localhost:{port}", "localhost\0.evil:{port}", "localhost\0:{port}", "localhost.evil:{port}",
    "localhost:{port}.evil", "localhost:{port}@evil", "evil@localhost:{port}", "evil:{port}@localhost:{port}",
    "LOCALHOST:{port}", "localhost.:{port}", ".localhost:{port}", "*.localhost:{port}", "*:{port}",
    "xn--localhost-:{port}", "xn--lcalhost-nwa:{port}", "l\xf6calhost:{port}", "%6cocalhost:{port}",
    "2130706433:{port}", "0x7f000001:{port}", "0x7f.1:{port}", "0177.0.0.1:{port}", "127.1:{port}",
    "127.0.0.1:{port}", "[::1]:{port}", "::1:{port}", "[::ffff:127.0.0.1]:{port}", "[::ffff:7f00:1]:{port}",
    "[0:0:0:0:0:0:0:1]:{port}", "[::1%25lo]:{port}", "[::1%lo]:{port}", "0:{port}", "0.0.0.0:{port}",
    "[::]:{port}", "169.254.169.254:{port}", "[64:ff9b::7f00:1]:{port}", "localhost:{other}", "localhost:22",
    "localhost:0{port}", "localhost:+{port}", "localhost:-{port}", "localhost:{port}.0", "localhost:0x1F90",
    "localhost:{port}:{port}", "localhost:{wrapped}", "localhost:0", "localhost:", "localhost", ":{port}",
    "localhost:{port}/", "localhost:{port}?", "localhost:{port}#", "localhost:{port}\\", "//localhost:{port}",
    "http://localhost:{port}", "https://localhost:{port}/", "localhost:{port};", "localhost,evil:{port}",
    "localhost_:{port}", "-localhost:{port}", "[localhost]:{port}", "localhost:\u0661", "a" * 300 + ":{port}",
]  # fmt: skip


def test_b7_targets_in_disguise_are_refused_with_one_line_each_in_the_log(server, gateway):
    template = gateway.proxied("CONNECT", "TARGET", f"Host: localhost:{server.port}")
    for disguise in DISGUISES:
        text = disguise.format(port=server.port, other=server.port + 1, wrapped=server.port + 65536)
        answer = raw(gateway, template.replace(b"TARGET", text.encode("utf-8")))
        assert answer.split(b" ")[1] in {b"400", b"403"}, disguise
        assert server.nobody_came(), disguise
    assert [event["decision"] for event in gateway.events()] == ["deny"] * len(DISGUISES)


ABSOLUTE = [
    "https://localhost:{port}/", "ftp://localhost:{port}/", "HTTP://localhost:{port}/", "http:/localhost/",
    "http:localhost:{port}", "http:///localhost:{port}/", "http://localhost:{port}@evil/",
    "http://evil@localhost:{port}/", "http://localhost:{port}\\@evil/", "http://localhost/",
    "http://localhost:{other}/", "http://LOCALHOST:{port}/", "http://localhost.:{port}/",
    "http://127.0.0.1:{port}/", "http://2130706433:{port}/", "http://[::ffff:127.0.0.1]:{port}/",
    "http://localhost:{port}/#fragment", "http://localhost:{port}#/", "http://%6cocalhost:{port}/",
    "http://localhost:{port};/", "localhost:{port}", "http://" + "a" * 70000,
]  # fmt: skip


def test_b7_absolute_urls_in_disguise_are_refused_with_one_line_each_in_the_log(server, gateway):
    for disguise in ABSOLUTE:
        text = disguise.format(port=server.port, other=server.port + 1)
        answer = raw(gateway, gateway.proxied("GET", text, f"Host: localhost:{server.port}"))
        assert answer.split(b" ")[1] in {b"400", b"403", b"431"}, disguise
        assert server.nobody_came(), disguise
    assert [event["decision"] for event in gateway.events()] == ["deny"] * len(ABSOLUTE)


HEADS = [
    ["Host: evil.example"],
    ["Host: localhost:1"],
    ["Host: localhost:{port}", "Host: evil.example"],
    ["Host: localhost:{port}", "Host: localhost:{port}"],
    ["Host: evil@localhost:{port}"],
    ["Host: LOCALHOST:{port}"],
    [],
    ["Host: localhost:{port}", "Content-Length: 4", "Transfer-Encoding: chunked"],
    ["Host: localhost:{port}", "Content-Length: 4", "Content-Length: 5"],
    ["Host: localhost:{port}", "Transfer-Encoding: chunked, identity"],
    ["Host: localhost:{port}", "Transfer-Encoding : chunked"],
    ["Host: localhost:{port}", "Connection: upgrade", "Upgrade: websocket"],
    ["Host: localhost:{port}", "X: a\rb"],
    ["Host: localhost:{port}", "X: a\0b"],
]


@pytest.mark.parametrize("method", ["CONNECT", "GET"])
def test_b7_heads_that_could_be_read_differently_are_refused(server, gateway, method):
    target = f"localhost:{server.port}" if method == "CONNECT" else f"http://localhost:{server.port}/"
    for headers in HEADS:
        filled = [header.format(port=server.port) for header in headers]
        framed = "Content-Length" in str(headers) or "Transfer" in str(headers)
        body = b"4\r\nevil\r\n0\r\n\r\n" if framed else b""
        answer = raw(gateway, gateway.proxied(method, target, *filled) + body)
        assert answer.split(b" ")[1] in {b"400", b"501"}, headers
        assert answer.count(b"HTTP/1.1 ") == 1, headers
        assert server.nobody_came(), headers
    assert [event["decision"] for event in gateway.events()] == ["deny"] * len(HEADS)


def test_b7_a_line_end_in_a_target_begins_no_second_request(server, gateway):
    evil = f"localhost:{server.port} HTTP/1.1\r\nX: "
    raw(gateway, gateway.proxied("CONNECT", f"evil.example:443\r\n{evil}", f"Host: localhost:{server.port}"))
    assert {event["decision"] for event in gateway.events()} == {"deny"}
    assert server.nobody_came()


def test_the_same_requests_without_disguise_do_reach_the_server(server, gateway):
    """Positive control of all above."""
    target = f"localhost:{server.port}"
    gateway.tunnel(target).close()
    server.accept().close()
    with gateway.connect() as client:
        client.sendall(gateway.proxied("GET", f"http://{target}/", f"Host: {target}"))
        with server.accept() as other:
            assert read_until(other, b"\r\n\r\n").startswith(b"GET / HTTP/1.1\r\n")


# B9: the host that is meant inside of TLS


@pytest.mark.parametrize("name", ["evil.example", "localhost.evil.example", "a.localhost", None])
def test_b9_tls_that_names_another_host_does_not_reach_the_server(server, gateway, name):
    with gateway.tunnel(f"localhost:{server.port}") as client, server.accept() as other:
        client.sendall(client_hello(name))
        alert = read_exactly(client, 7)
        assert alert[:6] == ALERT
        assert alert[6] == (ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME if name else 109)
        assert read_rest(client) == b""
        assert read_rest(other) == b""
    events = gateway.events()
    assert [event["event"] for event in events] == ["opened", "request"]
    assert [events[1][key] for key in ("decision", "rule", "bytes_out")] == ["deny", "tls", 0]


def test_b9_a_hello_in_pieces_reaches_the_server_whole_or_not_at_all(server, gateway):
    for name in ("localhost", "evil.example"):
        hello = client_hello(name)
        with gateway.tunnel(f"localhost:{server.port}") as client, server.accept() as other:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(hello), 50):
                client.sendall(hello[at : at + 50])
            if name == "localhost":
                assert read_exactly(other, len(hello)) == hello
            else:
                assert read_rest(other) == b""


def test_b9_a_hello_that_breaks_off_does_not_reach_the_server(server, gateway):
    with gateway.tunnel(f"localhost:{server.port}") as client, server.accept() as other:
        client.sendall(client_hello("localhost")[:-1])
        client.shutdown(socket.SHUT_WR)
        assert read_rest(other) == b""
        assert read_rest(client) == b""
    assert gateway.events()[-1]["decision"] == "deny"


class Relayed:
    """A tunnel between two socket pairs, to a port where only TLS is let through."""

    def __init__(self, expected: Expected, *, hello_time: float = TIMEOUT) -> None:
        self._expected = expected
        self._limits = TunnelLimits(hello=hello_time, idle=TIMEOUT)

    def try_with(self, first: bytes) -> tuple[bytes, str | None]:
        """Return what the target received of a client that says this, and why it was refused."""
        return asyncio.run(self._try(first))

    async def _try(self, first: bytes) -> tuple[bytes, str | None]:
        client, inner = socket.socketpair()
        outer, target = socket.socketpair()
        loop = asyncio.get_running_loop()
        transports = [(await loop.create_connection(asyncio.Protocol, sock=end))[0] for end in (inner, outer)]
        tunnel = Tunnel(
            *transports,
            expected=self._expected,
            limits=self._limits,
            buffers=Buffers(),
            outgoing=lambda _: None,
            incoming=lambda _: None,
        )
        running = asyncio.ensure_future(tunnel.run(from_client=(b"", False), from_upstream=(b"", False)))
        reason = None
        with client, target:
            client.sendall(first)
            received = asyncio.ensure_future(asyncio.to_thread(target.recv, 1 << 16))
            _done, _ = await asyncio.wait({running, received}, return_when=asyncio.FIRST_COMPLETED)
            client.shutdown(socket.SHUT_WR)
            target.shutdown(socket.SHUT_WR)
            try:
                await running
            except TunnelRefusedError as refused:
                reason = refused.reason
            return await received, reason


@pytest.mark.parametrize("port", [443, 80])
def test_b9_nothing_but_tls_goes_to_the_webs_ports(port):
    tunnel = Relayed(Expected(host="ok.example", port=port))
    hello = client_hello("ok.example")
    assert tunnel.try_with(hello) == (hello, None)
    for first in (
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\x80\x2e\1\0\2",
        b"\0",
    ):
        received, reason = tunnel.try_with(first)
        assert received == b""
        assert "only TLS" in (reason or "")
    received, reason = tunnel.try_with(client_hello("evil.example"))
    assert received == b""
    assert "another host" in (reason or "")


def test_b9_a_client_that_says_nothing_on_the_webs_ports_is_let_go():
    assert Relayed(Expected(host="ok.example", port=443), hello_time=0.1).try_with(b"")[1] is not None
    part = client_hello("ok.example")[:30]
    for port in (443, 22):
        received, reason = Relayed(Expected(host="ok.example", port=port), hello_time=0.1).try_with(part)
        assert received == b""
        assert "in time" in (reason or "")


def test_other_protocols_go_to_other_ports():
    for first in (b"SSH-2.0-x\r\n", b"\0", b"GET / HTTP/1.1\r\n"):
        assert Relayed(Expected(host="ok.example", port=22)).try_with(first) == (first, None)


# B8, B11: names


class Names:
    """A resolver that says what the test says, and remembers what it was asked."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self._answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, _port: int) -> list[str]:
        self.asked.append(host)
        answers = self._answers[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


def below(domain: str, port: int) -> EgressPolicy:
    rule = NetworkRule(pattern=HostPattern(host=domain, port=port, subdomains=True), where="test")
    return EgressPolicy(kind=allowing("x.example").kind, allow=(rule,))


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", METADATA, "::1", "::ffff:127.0.0.1", "0.0.0.0"])
def test_b11_a_name_that_the_user_did_not_name_exactly_must_be_public(server, tmp_path, address):
    for answer in ([address], [PUBLIC, address]):
        names = Names(name_corp_example=[answer])
        policy = below("corp.example", server.port)
        with gateway_in_thread(tmp_path, policy=policy, resolve=names) as gateway:
            for method, url in (("CONNECT", ""), ("GET", "http://")):
                target = f"name.corp.example:{server.port}"
                request = gateway.proxied(method, f"{url}{target}", f"Host: {target}")
                assert gateway.ask(request).status == 403
            assert [event["rule"] for event in gateway.events()[-2:]] == ["address", "address"]
    assert server.nobody_came()


def test_b11_a_name_that_the_user_named_may_be_private_and_its_address_is_pinned(server, tmp_path):
    """Positive control, and: within a minute a second look-up is not even made."""
    names = Names(mirror_corp_example=[["127.0.0.1"], [METADATA]])
    target = f"mirror.corp.example:{server.port}"
    with gateway_in_thread(tmp_path, policy=allowing(target), resolve=names) as gateway:
        for _ in range(3):
            gateway.tunnel(target).close()
            server.accept().close()
    assert names.asked == ["mirror.corp.example"]


def test_b11_a_name_that_turns_private_is_refused(server, tmp_path, monkeypatch):
    async def unreachable(address: str, *_args: object, **_options: object) -> NoReturn:
        # Nothing of a test goes to a public address.
        assert address == PUBLIC
        raise ConnectionRefusedError

    monkeypatch.setattr("clsecure.egress.dialer._open", unreachable)
    names = Names(mirror_corp_example=[[PUBLIC], ["127.0.0.1"]])
    target = f"mirror.corp.example:{server.port}"
    with gateway_in_thread(tmp_path, policy=allowing(target), resolve=names) as gateway:
        request = gateway.proxied("CONNECT", target, f"Host: {target}")
        assert gateway.ask(request).status == 502
        reply = gateway.ask(request)
        assert reply.status == 403
        assert b"led to public" in reply.body
    assert server.nobody_came()


@pytest.mark.parametrize("address", [METADATA, "fd00:ec2::254", "100.100.100.200"])
def test_b3_metadata_is_never_reached_even_when_named(tmp_path, address):
    literal = f"[{address}]:80" if ":" in address else f"{address}:80"
    names = Names(meta_example=[[address]])
    with gateway_in_thread(tmp_path, policy=allowing(literal, "meta.example:80"), resolve=names) as gateway:
        for target in (literal, "meta.example:80"):
            assert gateway.ask(gateway.proxied("CONNECT", target, f"Host: {target}")).status == 403


def test_b8_a_name_that_is_not_allowed_is_not_looked_up(tmp_path):
    names = Names()
    with gateway_in_thread(tmp_path, policy=allowing("ok.example"), resolve=names) as gateway:
        for target in ("secret.evil.example:443", "secret.ok.example:443", "ok.example:444"):
            assert gateway.ask(gateway.proxied("CONNECT", target, f"Host: {target}")).status == 403
            url = f"http://{target}/"
            assert gateway.ask(gateway.proxied("GET", url, f"Host: {target}")).status == 403
        # Nor for somebody without the token.
        request = gateway.proxied("CONNECT", "ok.example:443", "Host: ok.example:443", token=None)
        assert gateway.ask(request).status == 407
    assert names.asked == []


# B12: exhaustion


def test_b12_tunnels_that_say_nothing_cost_nothing(server, tmp_path):
    policy = allowing(f"localhost:{server.port}")
    with running_gateway(None, tmp_path, policy=policy) as gateway, contextlib.ExitStack() as open_ones:
        before = memory(gateway)
        for _ in range(90):
            open_ones.enter_context(gateway.tunnel(f"localhost:{server.port}"))
            open_ones.enter_context(server.accept())
        assert memory(gateway) - before < 20 << 20
        for _ in range(300):
            open_ones.enter_context(gateway.connect())
        # Whatever idles makes room; what works stays.
        open_ones.enter_context(gateway.tunnel(f"localhost:{server.port}"))


def test_b12_tunnels_that_nobody_reads_from_hold_no_more_than_their_buffers(server, gateway):
    tunnels = 20
    with contextlib.ExitStack() as open_ones:
        before = memory(gateway)
        for _ in range(tunnels):
            ends = [
                open_ones.enter_context(gateway.tunnel(f"localhost:{server.port}")),
                open_ones.enter_context(server.accept()),
            ]
            for end in ends:
                end.setblocking(False)
            # Whatever is taken in either direction is taken: the rest waits at whom it comes from.
            deadline = time.monotonic() + TIMEOUT
            while select.select([], ends, [], 0.1)[1]:
                assert time.monotonic() < deadline
                for end in ends:
                    with contextlib.suppress(BlockingIOError):
                        end.send(bytes(1 << 20))
        # In both directions a buffer, and on some Pythons a copy of what is left of it.
        assert memory(gateway) - before < tunnels * 4 * BUFFER + (10 << 20)


def memory(gateway) -> int:
    status = Path(f"/proc/{gateway.gateway._child.pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS"))


def stalls(connection: socket.socket) -> bool:
    """Tell whether nothing is taken any more, long before all of it was."""
    connection.settimeout(1.0)
    try:
        for _ in range(500):
            connection.sendall(bytes(1 << 20))
    except TimeoutError:
        return True
    return False


def test_b12_a_client_that_never_reads_does_not_fill_the_memory(server, gateway):
    with gateway.connect() as client:
        client.sendall(
            gateway.proxied("GET", f"http://localhost:{server.port}/", f"Host: localhost:{server.port}")
        )
        with server.accept() as other:
            read_until(other, b"\r\n\r\n")
            before = memory(gateway)
            other.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            assert stalls(other)
            assert memory(gateway) - before < 20 << 20


def test_b12_a_body_without_an_end_is_streamed_not_kept(server, gateway):
    with gateway.connect() as client:
        target = f"localhost:{server.port}"
        client.sendall(
            gateway.proxied("PUT", f"http://{target}/", f"Host: {target}", f"Content-Length: {1 << 30}")
        )
        with server.accept() as other:
            read_until(other, b"\r\n\r\n")
            before = memory(gateway)
            assert stalls(client)
            assert memory(gateway) - before < 20 << 20


def test_b12_a_client_that_sends_its_body_slowly_is_let_go(server, tmp_path):
    policy = allowing(f"localhost:{server.port}")
    target = f"localhost:{server.port}"
    with (
        running_gateway(None, tmp_path, policy=policy, limits=Limits(body_time=0.2)) as gateway,
        gateway.connect() as slow,
    ):
        slow.sendall(gateway.proxied("PUT", f"http://{target}/", f"Host: {target}", "Content-Length: 10"))
        with server.accept() as other:
            assert read_rest(other).endswith(b"\r\n\r\n")
        assert read_reply(slow).status == 502
