"""The gateway behind this machine's own proxy, which the test plays."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import threading

import pytest

from clsecure.egress.addresses import AddressDeniedError, Target
from clsecure.egress.hostproxy import WayOut, parse_proxy
from clsecure.egress.proxies import host_proxies
from clsecure.egress.wire import HostProxies
from clsecure.errors import EgressError
from tests.support.gateways import (
    KEY,
    allowing,
    read_exactly,
    read_reply,
    read_rest,
    read_until,
    running_gateway,
)
from tests.support.messages_api import MessagesApi, text
from tests.support.origin import Origin, echo, origin, serving
from tests.support.tls import client_hello, make_certificate

PAIR = base64.b64encode(b"someone:p@ss").decode()


def through(proxy: Origin, *, no_proxy: str = "", scheme: str = "http") -> HostProxies:
    url = f"{scheme}://someone:p%40ss@localhost:{proxy.port}"
    return HostProxies(http=url, https=url, no_proxy=no_proxy)


@pytest.fixture
def proxy():
    with origin() as listening:
        yield listening


def test_a_tunnel_is_asked_of_the_proxy_with_its_own_password(proxy, tmp_path):
    policy = allowing("name.example:2222")
    with running_gateway(None, tmp_path, policy=policy, proxies=through(proxy)) as gateway:
        with gateway.connect() as client:
            client.sendall(gateway.proxied("CONNECT", "name.example:2222", "Host: name.example:2222"))
            with proxy.accept() as other:
                head = read_until(other, b"\r\n\r\n").decode()
                # What the target says at once comes in one piece with the proxy's answer.
                other.sendall(b"HTTP/1.1 200 Fine\r\nX: y\r\n\r\nSSH-2.0-x\r\n")
                assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
                assert read_until(client, b"\n") == b"SSH-2.0-x\r\n"
                client.sendall(b"hello")
                assert read_exactly(other, 5) == b"hello"
        gateway.gateway.close()
        assert "p@ss" not in gateway.log.read_text()
    lines = head.lower().split("\r\n")
    assert lines[0] == "connect name.example:2222 http/1.1"
    assert f"proxy-authorization: basic {PAIR}".lower() in lines
    assert gateway.token not in head


def test_tls_is_judged_before_the_proxy_gets_a_byte_of_it(proxy, tmp_path):
    with running_gateway(None, tmp_path, policy=allowing("ok.example"), proxies=through(proxy)) as gateway:
        for name in ("ok.example", "evil.example"):
            with gateway.connect() as client:
                client.sendall(gateway.proxied("CONNECT", "ok.example:443", "Host: ok.example:443"))
                with proxy.accept() as other:
                    read_until(other, b"\r\n\r\n")
                    other.sendall(b"HTTP/1.1 200 Fine\r\n\r\n")
                    read_until(client, b"\r\n\r\n")
                    hello = client_hello(name)
                    client.sendall(hello)
                    if name == "ok.example":
                        assert read_exactly(other, len(hello)) == hello
                    else:
                        assert read_rest(other) == b""


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Password, please\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno",
        b"SSH-2.0-x\r\n\r\n\r\n",
        b"HTTP/1.1 200 Fine\r\nX: " + b"x" * 300_000,
        b"",
    ],
)
def test_a_proxy_that_refuses_is_a_502_that_says_so(proxy, tmp_path, answer):
    policy = allowing("name.example:2222")
    with (
        running_gateway(None, tmp_path, policy=policy, proxies=through(proxy)) as gateway,
        gateway.connect() as client,
    ):
        client.sendall(gateway.proxied("CONNECT", "name.example:2222", "Host: name.example:2222"))
        with proxy.accept() as other, contextlib.suppress(ConnectionError):
            read_until(other, b"\r\n\r\n")
            other.sendall(answer)
        reply = read_reply(client)
        assert reply.status == 502
        assert b"this machine's own proxy" in reply.body.lower()


def test_plain_http_is_asked_of_the_proxy_by_absolute_url(proxy, tmp_path):
    with (
        running_gateway(
            None, tmp_path, policy=allowing("name.example:80", "name.example:8080"), proxies=through(proxy)
        ) as gateway,
        gateway.connect() as client,
    ):
        for authority in ("name.example", "name.example:8080"):
            client.sendall(gateway.proxied("GET", f"http://{authority}/a?b", f"Host: {authority}"))
            with proxy.accept() as other:
                head = read_until(other, b"\r\n\r\n").decode()
                other.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
                assert read_reply(client).body == b"hi"
            lines = head.lower().split("\r\n")
            assert lines[0] == f"get http://{authority}/a?b http/1.1"
            assert f"host: {authority}" in lines
            assert f"proxy-authorization: basic {PAIR}".lower() in lines
            assert gateway.token not in head


def test_a_proxy_that_wants_another_password_does_not_ask_the_agent_for_it(proxy, tmp_path):
    with (
        running_gateway(
            None, tmp_path, policy=allowing("name.example:80"), proxies=through(proxy)
        ) as gateway,
        gateway.connect() as client,
    ):
        client.sendall(gateway.proxied("GET", "http://name.example/", "Host: name.example"))
        with proxy.accept() as other:
            read_until(other, b"\r\n\r\n")
            other.sendall(b"HTTP/1.1 407 Password\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
            assert read_reply(client).status == 502


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "localhost", ""])
def test_what_needs_no_proxy_is_reached_directly(proxy, tmp_path, no_proxy):
    """Loopback never needs one: at the proxy it would be another machine's."""
    with serving(echo) as server:
        policy = allowing(server.authority)
        with (
            running_gateway(
                None, tmp_path, policy=policy, proxies=through(proxy, no_proxy=no_proxy)
            ) as gateway,
            gateway.tunnel(server.authority) as client,
        ):
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
    assert proxy.nobody_came()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_api_is_reached_through_the_proxy(tmp_path, monkeypatch, scheme):
    """TLS to the provider inside of what the proxy tunnels, also where the proxy speaks TLS itself."""
    certificate = make_certificate(tmp_path, "model.example", "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    heads: list[bytes] = []
    with MessagesApi([[text("Hello.")]], certificate=certificate) as api:

        def relay(connection: socket.socket) -> None:
            heads.append(read_until(connection, b"\r\n\r\n"))
            connection.sendall(b"HTTP/1.1 200 Fine\r\n\r\n")
            with socket.create_connection(("127.0.0.1", api.port)) as target:
                back = threading.Thread(target=pump, args=(target, connection))
                back.start()
                pump(connection, target)
                back.join()

        with (
            serving(relay, certificate=certificate if scheme == "https" else None) as proxy,
            running_gateway(
                "https://model.example", tmp_path, proxies=through(proxy, scheme=scheme)
            ) as gateway,
        ):
            reply = gateway.ask(gateway.post({"model": "m", "messages": [{"role": "user", "content": "hi"}]}))
            assert reply.status == 200
    assert heads[0].startswith(b"CONNECT model.example:443 HTTP/1.1\r\n")
    assert KEY.encode() not in heads[0]
    assert api.requests[0].headers["x-api-key"] == KEY


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(
    "url", ["socks5://localhost:1080", "ftp://localhost", "http://", "http://x:y", "http://[x"]
)
def test_a_proxy_of_another_kind_is_an_error_before_anything_is_served(tmp_path, url):
    with (
        pytest.raises(EgressError, match="own proxy can't be used"),
        running_gateway(None, tmp_path, proxies=HostProxies(https=url)),
    ):
        pass


def test_a_proxys_url_is_read():
    assert parse_proxy("proxy.corp.example:3128").target.port == 3128
    assert parse_proxy("http://proxy.corp.example").port == 80
    secured = parse_proxy("https://a:b%3Ac@[2001:db8::1]")
    assert (secured.host, secured.port, secured.tls) == ("2001:db8::1", 443, True)
    assert base64.b64decode((secured.authorization or b"").split()[1]) == b"a:b:c"
    assert "b:c" not in repr(secured)
    odd = parse_proxy(os.fsdecode(b"http://a:\xff%fe@p.example"))
    assert base64.b64decode((odd.authorization or b"").split()[1]) == b"a:\xff\xfe"


def test_addresses_that_are_never_reached_are_not_asked_of_a_proxy_either():
    way_out = WayOut(HostProxies(http="http://p.example", https="http://p.example"))
    for address in ("169.254.169.254", "fd00:ec2::254", "0.0.0.0", "10.0.0.1"):
        for ask in (way_out.for_tunnel, way_out.for_http):
            with pytest.raises(AddressDeniedError):
                ask(Target(host=address, port=80))
    # A private one that the user named is the proxy's to reach, as for the user's own programs.
    assert way_out.for_tunnel(Target(host="10.0.0.1", port=80, may_be_private=True)) is not None
    # What carries a key in the clear is not: where it leads must be checked here.
    assert way_out.for_tunnel(Target(host="model.example", port=80, must_be_private=True)) is None


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("*", "a.example", True),
        ("example", "a.example", True),
        (".a.example, b.example", "x.b.example", True),
        ("a.example:443", "a.example", True),
        ("a.example:444", "a.example", False),
        ("b.example", "a.example", False),
        ("b.example", "notb.example", False),
    ],
)
def test_no_proxy_is_understood_as_by_the_standard_library(no_proxy, host, direct):
    way_out = WayOut(HostProxies(https="http://p.example", no_proxy=no_proxy))
    assert (way_out.for_tunnel(Target(host=host, port=443)) is None) is direct


def test_the_environment_names_the_proxies():
    assert host_proxies({"https_proxy": "a", "HTTPS_PROXY": "b", "NO_PROXY": "c"}) == HostProxies(
        https="a", no_proxy="c"
    )
    assert host_proxies({"https_proxy": "", "HTTPS_PROXY": "b"}) == HostProxies()
    assert host_proxies({"HTTP_PROXY": "evil", "REQUEST_METHOD": "GET"}) == HostProxies()


def test_a_tunnel_through_a_proxy_that_speaks_tls_loses_nothing(tmp_path, monkeypatch):
    certificate = make_certificate(tmp_path, "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    def answer(connection: socket.socket) -> None:
        read_until(connection, b"\r\n\r\n")
        connection.sendall(b"HTTP/1.1 200 Fine\r\n\r\n")
        echo(connection)

    sent = hashlib.shake_128(b"x").digest(5_000_000)
    with (
        serving(answer, certificate=certificate) as proxy,
        running_gateway(
            None, tmp_path, policy=allowing("name.example:2222"), proxies=through(proxy, scheme="https")
        ) as gateway,
        gateway.tunnel("name.example:2222") as client,
    ):
        sender = threading.Thread(target=client.sendall, args=(sent,))
        sender.start()
        got = bytearray()
        while len(got) < len(sent) and (piece := client.recv(1 << 16)):
            got += piece
        sender.join()
    assert bytes(got) == sent
