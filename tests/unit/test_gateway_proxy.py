"""The gateway as a proxy: what sessions may reach besides the API, through a real gateway process."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import re
import select
import socket
import ssl
import threading
from pathlib import Path, PurePosixPath

import pytest

from clsecure import process
from clsecure.agents.spec import AGENTS, GatewayAccess, environment
from clsecure.egress.wire import Limits
from clsecure.policy import HOST_ALIAS, Budget
from clsecure.process import Command
from tests.support.gateways import (
    TIMEOUT,
    allowing,
    read_exactly,
    read_reply,
    read_rest,
    read_until,
    running_gateway,
)
from tests.support.leftovers import wait_until
from tests.support.messages_api import MessagesApi, text
from tests.support.origin import echo, origin, serving
from tests.support.tls import make_certificate

MIB = 1 << 20


@pytest.fixture
def server():
    with origin() as listening:
        yield listening


@pytest.fixture
def gateway(server, tmp_path):
    with running_gateway(None, tmp_path, policy=allowing(server.authority)) as running:
        yield running


@pytest.fixture
def echoing(tmp_path):
    """A server that sends back what comes, and a gateway that lets it be reached."""
    with (
        serving(echo) as server,
        running_gateway(None, tmp_path, policy=allowing(server.authority)) as gateway,
    ):
        yield server, gateway


def page(connection: socket.socket) -> None:
    read_until(connection, b"\r\n\r\n")
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")


# Tunnels


@pytest.mark.parametrize("name", ["localhost", HOST_ALIAS])
def test_tls_through_the_gateway_ends_at_the_target(tmp_path, name):
    certificate = make_certificate(tmp_path, "localhost", HOST_ALIAS)
    trust = ssl.create_default_context(cafile=certificate)
    with serving(page, certificate=certificate) as server:
        policy = allowing(f"localhost:{server.port}")
        with running_gateway(None, tmp_path, policy=policy) as gateway:
            client = http.client.HTTPSConnection("127.0.0.1", gateway.port, context=trust, timeout=TIMEOUT)
            pair = base64.b64encode(f"clsecure:{gateway.token}".encode()).decode()
            client.set_tunnel(name, server.port, {"Proxy-Authorization": f"Basic {pair}"})
            client.request("GET", "/")
            reply = client.getresponse()
            assert (reply.status, reply.read()) == (200, b"hello")
            client.close()
            events = gateway.events()
    assert [event["event"] for event in events] == ["opened", "request"]
    line = events[1]
    assert (line["method"], line["path"], line["status"]) == ("CONNECT", "-", 200)
    assert (line["host"], line["port"]) == (name, server.port)
    assert (line["decision"], line["rule"]) == ("allow", f"{name}:{server.port}")
    assert line["bytes_in"] > 5
    assert line["bytes_out"] > 100


def test_a_server_may_speak_first(server, gateway):
    with gateway.tunnel(server.authority) as client, server.accept() as other:
        other.sendall(b"SSH-2.0-server\r\n")
        assert read_until(client, b"\n") == b"SSH-2.0-server\r\n"
        client.sendall(b"SSH-2.0-client\r\n")
        assert read_until(other, b"\n") == b"SSH-2.0-client\r\n"


def test_what_a_client_sends_behind_its_request_goes_on(server, gateway):
    with gateway.connect() as client:
        head = gateway.proxied("CONNECT", server.authority, f"Host: {server.authority}")
        client.sendall(head + b"early words\n")
        with server.accept() as other:
            assert read_until(other, b"\n") == b"early words\n"
        assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_each_side_may_stop_sending_and_still_receive(server, gateway):
    with gateway.tunnel(server.authority) as client, server.accept() as other:
        client.sendall(b"all of it")
        client.shutdown(socket.SHUT_WR)
        assert read_rest(other) == b"all of it"
        other.sendall(b"the answer")
        other.shutdown(socket.SHUT_WR)
        assert read_rest(client) == b"the answer"
    with gateway.tunnel(server.authority) as client, server.accept() as other:
        other.sendall(b"the greeting")
        other.shutdown(socket.SHUT_WR)
        assert read_rest(client) == b"the greeting"
        client.sendall(b"the reply")
        client.close()
        assert read_rest(other) == b"the reply"
    assert [event["bytes_in"] for event in gateway.events() if event["event"] == "request"] == [10, 12]


@pytest.mark.parametrize("who", ["client", "server"])
def test_when_one_side_is_gone_so_is_the_other(server, gateway, who):
    with gateway.tunnel(server.authority) as client, server.accept() as other:
        client.sendall(b"x")
        assert other.recv(1) == b"x"
        gone, left = (client, other) if who == "client" else (other, client)
        # With a reset, as when a process is killed.
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        gone.close()
        assert left.recv(1) == b""
        left.close()


def test_nothing_is_lost_or_changed_on_the_way(echoing):
    server, gateway = echoing
    sizes = [1, 7, 1000, 65_536, 262_144, 262_145, 3_000_001]
    sent = b"".join(hashlib.shake_128(bytes([size % 251])).digest(size) for size in sizes) * 3
    with gateway.tunnel(server.authority) as client:
        sender = threading.Thread(target=lambda: (client.sendall(sent), client.shutdown(socket.SHUT_WR)))
        sender.start()
        assert read_all(client) == sent
        sender.join(TIMEOUT)


def test_a_client_that_reads_slowly_slows_the_server_down_and_misses_nothing(tmp_path):
    """Back-pressure: the gateway holds no more than its buffers, whatever the server has to say."""
    whole = hashlib.shake_128(b"x").digest(MIB) * 200
    blocked = threading.Event()

    def talk(connection: socket.socket) -> None:
        left = memoryview(whole)
        while left:
            if select.select([], [connection], [], 1.0)[1]:
                left = left[connection.send(left) :]
            else:
                blocked.set()

    with (
        serving(talk) as server,
        running_gateway(None, tmp_path, policy=allowing(server.authority)) as gateway,
        gateway.tunnel(server.authority) as client,
    ):
        assert blocked.wait(TIMEOUT)
        assert hashlib.sha256(read_all(client)).digest() == hashlib.sha256(whole).digest()
        peak = Path(f"/proc/{gateway.gateway._child.pid}/status").read_text()
        assert int(re.search(r"VmHWM:\s+(\d+)", peak)[1]) < 100 << 10


def read_all(connection: socket.socket) -> bytes:
    data = bytearray()
    while piece := connection.recv(MIB):
        data += piece
    return bytes(data)


def test_a_tunnel_that_nothing_goes_through_ends(server, tmp_path):
    policy = allowing(server.authority)
    with running_gateway(None, tmp_path, policy=policy, limits=Limits(tunnel_time=0.5)) as gateway:
        with gateway.tunnel(server.authority) as client, server.accept() as other:
            assert client.recv(1) == b""
            assert other.recv(1) == b""
        assert "nothing was sent" in gateway.events()[1]["reason"]


def test_a_budget_ends_a_tunnel_in_the_middle(tmp_path):
    with serving(echo) as server:
        policy, budget = allowing(server.authority), Budget(bytes=100_000)
        with running_gateway(None, tmp_path, policy=policy, budget=budget) as gateway:
            with gateway.tunnel(server.authority) as client:
                client.sendall(b"x" * 30_000)
                got = len(read_exactly(client, 30_000))
                client.sendall(b"x" * 30_000)
                got += len(read_rest(client))
            # 30,000 went both ways and once more out; of the way back what would be too much is cut.
            assert 30_000 <= got < 60_000
            with pytest.raises(ConnectionError, match=r" 403 .*budget"):
                gateway.tunnel(server.authority)
            events = gateway.events()
            totals = gateway.gateway.close()
    assert "budget" in next(event for event in events if event["event"] == "request")["reason"]
    assert totals.bytes_in + totals.bytes_out <= 100_000


def test_tunnels_leave_room_for_the_api(tmp_path):
    with (
        MessagesApi([[text("Hello.")]]) as api,
        serving(echo) as server,
        running_gateway(
            api.url, tmp_path, policy=allowing(server.authority), limits=Limits(tunnels=2)
        ) as gateway,
        gateway.tunnel(server.authority) as first,
        gateway.tunnel(server.authority),
    ):
        with pytest.raises(ConnectionError, match=" 503 "):
            gateway.tunnel(server.authority)
        assert gateway.ask(gateway.head("GET", "/v1/models")).status == 200
        first.close()

        def room() -> bool:
            try:
                gateway.tunnel(server.authority).close()
            except ConnectionError:
                return False
            return True

        wait_until(room, "room for another tunnel")


def test_the_end_of_the_session_cuts_tunnels(server, gateway):
    with gateway.tunnel(server.authority) as client, server.accept() as other:
        client.sendall(b"x")
        assert other.recv(1) == b"x"
        totals = gateway.gateway.close()
        for each in (client, other):
            with contextlib.suppress(ConnectionError):
                assert each.recv(1) == b""
    assert totals.complete
    assert (totals.requests, totals.bytes_out) == (1, 1)


# Decisions


def test_what_nothing_allows_is_refused_with_words_that_help(server, tmp_path):
    with running_gateway(None, tmp_path, policy=allowing("example.org")) as gateway:
        host = f"Host: {server.authority}"
        sentence = (
            f"clsecure: {server.authority} is not allowed in this session; the user can allow it: "
            f"clsecure network allow SESSION {server.authority}"
        ).encode()
        for method, target in (("CONNECT", server.authority), ("GET", f"http://{server.authority}/")):
            with gateway.connect() as client:
                client.sendall(gateway.proxied(method, target, host))
                client.shutdown(socket.SHUT_WR)
                answer = read_rest(client)
            assert answer.startswith(b"HTTP/1.1 403 " + sentence + b"\r\n")
            assert answer.endswith(b"\r\n\r\n" + sentence + b"\n")
        assert server.nobody_came()
        events = gateway.events()
    assert [(event["decision"], event["rule"]) for event in events] == [("deny", "not-allowed")] * 2
    assert {(event["host"], event["port"]) for event in events} == {("127.0.0.1", server.port)}


def test_a_denial_wins_and_does_not_say_where_it_stands(server, tmp_path):
    with running_gateway(None, tmp_path, policy=allowing(server.authority, deny=("127.0.0.1",))) as gateway:
        reply = gateway.ask(
            gateway.proxied("GET", f"http://{server.authority}/", f"Host: {server.authority}")
        )
        assert reply.status == 403
        assert b"denied" in reply.body
        assert b"test" not in reply.body
        assert b"network allow" not in reply.body
        assert server.nobody_came()


@pytest.mark.parametrize("token", [None, "x" * 64, "é"])
def test_b12_without_the_sessions_token_nothing_is_proxied(server, gateway, token):
    for method, target in (("CONNECT", server.authority), ("GET", f"http://{server.authority}/")):
        reply = gateway.ask(gateway.proxied(method, target, f"Host: {server.authority}", token=token))
        assert reply.status == 407
        assert reply.headers["proxy-authenticate"].startswith("Basic ")
    assert server.nobody_came()
    events = gateway.events()
    assert [(event["decision"], event["rule"]) for event in events] == [("deny", "token")] * 2


@pytest.mark.parametrize(
    "value", ["Bearer {token}", "bearer {token}", "Basic {pair}", "basic {pair}", "Basic  {pair}"]
)
def test_a_token_is_taken_in_each_of_its_forms(server, gateway, value):
    pair = base64.b64encode(f"clsecure:{gateway.token}".encode()).decode()
    header = "Proxy-Authorization: " + value.format(token=gateway.token, pair=pair)
    with gateway.connect() as client:
        client.sendall(
            gateway.proxied("CONNECT", server.authority, f"Host: {server.authority}", header, token=None)
        )
        assert read_until(client, b"\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("value", ["Basic {other}", "Basic {token}", "Digest {token}", "{token}", "Basic !"])
def test_b12_a_token_in_another_form_is_refused(server, gateway, value):
    other = base64.b64encode(f"other:{gateway.token}".encode()).decode()
    header = "Proxy-Authorization: " + value.format(token=gateway.token, other=other)
    request = gateway.proxied("CONNECT", server.authority, f"Host: {server.authority}", header, token=None)
    assert gateway.ask(request).status == 407
    # A right one beside it changes nothing.
    request = gateway.proxied("CONNECT", server.authority, f"Host: {server.authority}", header)
    assert gateway.ask(request).status == 407


def test_a_client_that_first_asks_without_credential_may_ask_again(server, gateway):
    host = f"Host: {server.authority}"
    with gateway.connect() as client:
        client.sendall(gateway.proxied("CONNECT", server.authority, host, token=None))
        assert read_reply(client).status == 407
        client.sendall(gateway.proxied("CONNECT", server.authority, host))
        assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_git_shows_the_token_at_once_with_the_environment_of_a_session(gateway):
    env = environment(
        AGENTS["demo"],
        {},
        user="worker",
        home=PurePosixPath(gateway.log.parent),
        session="default",
        terminal=False,
        gateway=GatewayAccess(port=gateway.port, token=gateway.token),
    )
    refused = process.run(Command(argv=("git", "ls-remote", "https://evil.example/x"), env=env))
    assert b"403" in refused.stderr
    assert [event["rule"] for event in gateway.events()] == ["not-allowed"]


def test_a_target_that_does_not_answer_is_an_error_and_no_denial(gateway, server):
    authority = server.authority
    server.listener.close()
    with pytest.raises(ConnectionError, match=r" 502 .*can't be reached"):
        gateway.tunnel(authority)
    assert gateway.ask(gateway.proxied("GET", f"http://{authority}/", f"Host: {authority}")).status == 502
    assert {event["decision"] for event in gateway.events()} == {"allow"}


def test_without_a_credential_the_api_is_refused_and_the_proxy_works(echoing):
    server, gateway = echoing
    reply = gateway.ask(gateway.head("GET", "/v1/models"))
    assert reply.status == 403
    assert "no credential" in reply.error["message"]
    gateway.tunnel(server.authority).close()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_an_absolute_url_of_the_gateways_own_is_not_proxied(tmp_path, name):
    with MessagesApi([[text("Hello.")]]) as api, running_gateway(api.url, tmp_path) as gateway:
        own = f"http://{name}:{gateway.port}"
        request = gateway.head("GET", f"{own}/v1/models").replace(
            b"Host: 127.0.0.1:", b"Host: %s:" % name.encode()
        )
        assert gateway.ask(request).status == 200
        assert gateway.ask(gateway.head("GET", f"{own}/v1/files")).status == 403
        # Not with the proxy's credential alone.
        assert (
            gateway.ask(gateway.proxied("GET", f"{own}/v1/models", f"Host: {name}:{gateway.port}")).status
            == 401
        )
        assert [event["path"] for event in gateway.events()] == ["/v1/models", "/v1/files", "/v1/models"]


# Plain HTTP


def test_a_page_is_fetched_and_what_is_between_two_hops_stays_there(server, gateway):
    with gateway.connect() as client:
        client.sendall(
            gateway.proxied(
                "GET", f"http://{server.authority}/a%20b/../c?d=e&f", f"Host: {server.authority}",
                "Proxy-Connection: keep-alive", "Keep-Alive: 5", "Connection: keep-alive, X-Hop", "X-Hop: 1",
                "TE: trailers", "Cookie: a=b", "Authorization: Basic eDp5", "Accept: */*",
            )
        )  # fmt: skip
        with server.accept() as other:
            head = read_until(other, b"\r\n\r\n")
            other.sendall(
                b"HTTP/1.1 207 Odd Words\r\nX-Answer: 1\r\nSet-Cookie: c=d\r\nConnection: X-Gone\r\n"
                b"X-Gone: 1\r\nProxy-Authenticate: Basic\r\nKeep-Alive: 5\r\nContent-Length: 2\r\n\r\nhi"
            )
            line = read_until(client, b"\r\n")
            rest = read_until(client, b"\r\n\r\n") + read_exactly(client, 2)
    assert sorted(head.lower().split(b"\r\n")) == sorted(
        [
            b"get /a%20b/../c?d=e&f http/1.1", b"host: " + server.authority.encode(), b"cookie: a=b",
            b"authorization: basic edp5", b"accept: */*", b"", b"",
        ]
    )  # fmt: skip
    assert line == b"HTTP/1.1 207 Odd Words\r\n"
    assert rest.lower() == b"x-answer: 1\r\nset-cookie: c=d\r\ncontent-length: 2\r\n\r\nhi"
    event = gateway.events()[0]
    assert (event["method"], event["path"], event["status"]) == ("GET", "/a%20b/../c?d=e&f", 207)
    assert (event["bytes_in"], event["bytes_out"]) == (2, 0)


def test_a_request_goes_out_in_one_piece(tmp_path):
    """Servers that answer its beginning and close would else be told the rest, which undoes the answer."""
    pieces: list[bytes] = []

    def hasty(connection: socket.socket) -> None:
        pieces.append(connection.recv(1 << 16))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with serving(hasty) as server:
        host = f"Host: {server.authority}"
        with running_gateway(None, tmp_path, policy=allowing(server.authority)) as gateway:
            request = gateway.proxied("GET", f"http://{server.authority}/", host, "Accept: */*", "X-More: 1")
            assert {gateway.ask(request).status for _ in range(20)} == {200}
    assert all(piece.endswith(b"\r\n\r\n") for piece in pieces)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND", "M-SEARCH"])
def test_bodies_go_both_ways_as_they_come(server, gateway, method):
    """Nothing waits for the end of a body: each piece arrives before the next one is sent."""
    host = f"Host: {server.authority}"
    with gateway.connect() as client:
        client.sendall(
            gateway.proxied(method, f"http://{server.authority}/", host, "Transfer-Encoding: chunked")
        )
        with server.accept() as other:
            assert b"transfer-encoding: chunked" in read_until(other, b"\r\n\r\n").lower()
            for piece in (b"5\r\nfirst\r\n", b"6\r\nsecond\r\n", b"0\r\n\r\n"):
                client.sendall(piece)
                assert read_exactly(other, len(piece)) == piece
            other.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            read_until(client, b"\r\n\r\n")
            for piece in (b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n"):
                other.sendall(piece)
                assert read_exactly(client, len(piece)) == piece
    assert [(each["bytes_in"], each["bytes_out"]) for each in gateway.events()] == [(6, 11)]


def test_a_reply_may_come_before_the_end_of_its_request(server, gateway):
    with gateway.connect() as client:
        client.sendall(
            gateway.proxied(
                "POST", f"http://{server.authority}/", f"Host: {server.authority}", "Content-Length: 1000000"
            )
            + b"x" * 1000
        )
        with server.accept() as other:
            read_until(other, b"x" * 1000)
            other.sendall(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
            reply = read_reply(client)
            assert (reply.status, reply.body) == (413, b"no")
            # What else the client sends goes nowhere.
            assert read_rest(other) == b""


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200, b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 204 None\r\n\r\n", 204, b""),
    ],
)
def test_replies_without_a_body_end_at_once(server, gateway, answer, status, body):
    with gateway.connect() as client:
        client.sendall(gateway.proxied("HEAD", f"http://{server.authority}/", f"Host: {server.authority}"))
        with server.accept() as other:
            read_until(other, b"\r\n\r\n")
            other.sendall(answer)
            assert read_reply(client, head_only=True).status == status
            # And the connection goes on.
            client.sendall(gateway.proxied("CONNECT", server.authority, f"Host: {server.authority}"))
            assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
        b"",
    ],
)
def test_an_answer_that_is_none_is_a_502(server, gateway, answer):
    with gateway.connect() as client:
        client.sendall(gateway.proxied("GET", f"http://{server.authority}/", f"Host: {server.authority}"))
        with server.accept() as other:
            read_until(other, b"\r\n\r\n")
            other.sendall(answer)
        assert read_reply(client).status == 502


def test_a_reply_that_breaks_off_is_not_taken_for_whole(server, gateway):
    with gateway.connect() as client:
        client.sendall(gateway.proxied("GET", f"http://{server.authority}/", f"Host: {server.authority}"))
        with server.accept() as other:
            read_until(other, b"\r\n\r\n")
            other.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        read_until(client, b"hello\r\n")
        with contextlib.suppress(ConnectionError):
            assert client.recv(10) == b""
    assert "broke off" in gateway.events()[0]["reason"]


def test_a_connection_to_the_target_is_kept_and_made_anew_when_it_was_closed(server, gateway):
    ask = gateway.proxied("GET", f"http://{server.authority}/", f"Host: {server.authority}")
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    with gateway.connect() as client:
        client.sendall(ask)
        with server.accept() as other:
            for _ in range(3):
                read_until(other, b"\r\n\r\n")
                other.sendall(answer)
                assert read_reply(client).body == b"hi"
                client.sendall(ask)
            read_until(other, b"\r\n\r\n")
        with server.accept() as other:
            read_until(other, b"\r\n\r\n")
            other.sendall(answer)
            assert read_reply(client).body == b"hi"


def test_what_a_target_sends_behind_its_reply_is_no_reply_to_what_is_asked_next(server, gateway):
    url = f"http://{server.authority}/"
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
    with contextlib.ExitStack() as open_until_the_end:
        client = open_until_the_end.enter_context(gateway.connect())
        for number in range(2):
            client.sendall(gateway.proxied("GET", url, f"Host: {server.authority}"))
            target = open_until_the_end.enter_context(server.accept())
            read_until(target, b"\r\n\r\n")
            target.sendall(one + b"%d. " % number + one + b"bad")
            assert read_reply(client).body == b"%d. " % number


def test_http_1_0_is_answered_and_closed(server, gateway):
    with gateway.connect() as client:
        request = gateway.proxied("GET", f"http://{server.authority}/")
        client.sendall(request.replace(b"HTTP/1.1", b"HTTP/1.0"))
        with server.accept() as other:
            assert b"host: " + server.authority.encode() in read_until(other, b"\r\n\r\n").lower()
            other.sendall(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
        assert read_rest(client).endswith(b"until the end")


def test_a_budget_ends_a_request_with_a_body(server, tmp_path):
    policy = allowing(server.authority)
    with running_gateway(None, tmp_path, policy=policy, budget=Budget(bytes=1000)) as gateway:
        head = gateway.proxied(
            "POST", f"http://{server.authority}/", f"Host: {server.authority}", "Content-Length: 2000"
        )
        with gateway.connect() as client:
            client.sendall(head + b"x" * 2000)
            with server.accept() as other:
                got = read_rest(other)
            assert b"xx" not in got
            reply = read_reply(client)
        assert reply.status == 403
        assert b"budget" in reply.body
        assert (
            gateway.ask(
                gateway.proxied("GET", f"http://{server.authority}/", f"Host: {server.authority}")
            ).status
            == 403
        )
        assert {event["decision"] for event in gateway.events() if event["event"] == "request"} == {"deny"}
