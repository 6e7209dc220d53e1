"""Whatever bytes a client of the gateway sends: no exception, and not a byte to where it may not send."""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import threading

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from clsecure.egress import proxy_rules
from clsecure.egress.proxy_rules import Asked
from clsecure.egress.wire import Limits
from clsecure.policy import decide
from tests.support.gateways import TIMEOUT, allowing, gateway_in_thread, read_rest
from tests.support.origin import origin

TOKEN = b"t" * 64
CREDENTIAL = b"Basic " + base64.b64encode(b"clsecure:" + TOKEN)

EXACT = allowing("ok.example", "[2001:db8::1]:8443", "10.0.0.1:80")
BELOW = allowing("*.ok.example")
PARTS = [
    "ok.example", ":443", "evil.", ".evil", "@", "ok.example:443", "\0", ".", "%00", "[2001:db8::1]:8443",
    "10.0.0.1:80", "::ffff:", "010", "0xa000001", "/", "\\", "#", "?", "\u3002", "\u212a", " ", "a.",
]  # fmt: skip
SPELLINGS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="ok.exampl:43@/[]0x1%\0\r\nOK\uff2f\u3002.-_", max_size=30),
    st.lists(st.sampled_from(PARTS), max_size=5).map("".join),
)


@settings(max_examples=3000, deadline=None)
@given(SPELLINGS)
@example("ok.example:443")
def test_b7_a_target_that_is_allowed_has_one_spelling(text):
    for encoding in ("utf-8", "latin-1"):
        target = text.encode(encoding, "replace")
        asked = proxy_rules.read_connect(target)
        if not isinstance(asked, Asked):
            continue
        if decide(EXACT, asked.host, asked.port).allowed:
            assert target in {b"ok.example:443", b"[2001:db8::1]:8443", b"10.0.0.1:80"}
        if decide(BELOW, asked.host, asked.port).allowed:
            assert re.fullmatch(rb"([a-z0-9_-]{1,63}\.)+ok\.example:443", target)


@settings(max_examples=3000, deadline=None)
@given(SPELLINGS, st.text(max_size=10))
def test_b7_an_absolute_url_means_what_it_says(text, path):
    target = f"http://{text}{path}".encode()
    asked = proxy_rules.read_absolute(target)
    if isinstance(asked, Asked):
        # Put together again it is the same; only what has a usual value may have been left out.
        port = "" if asked.port == 80 else f":{asked.port}"
        host = f"[{asked.host}]" if ":" in asked.host else asked.host
        spellings = {
            f"http://{host}{number}".encode() + rest
            for number in {port, f":{asked.port}"}
            for rest in {asked.path, asked.path.removeprefix(b"/")}
            if rest == asked.path or not rest or rest.startswith(b"?")
        }
        assert target in spellings


class Reachable:
    """A server that may be reached, and knows who came."""

    def __init__(self) -> None:
        self._accepted: list[object] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.heard: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def visits(self) -> int:
        """Return how many came since this was asked last; accepted in their order, so none is late."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT) as last:
            last.sendall(b"I am the last")
            read_rest(last)
        found = len(self._accepted) - 1
        self._accepted.clear()
        return found

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = self._listener.accept()
                self._accepted.append(peer)
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(TIMEOUT)
            self.heard.append(connection.recv(1 << 16))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")


@pytest.fixture(scope="module")
def around(tmp_path_factory):
    """A gateway, a server that may be reached, and one that may not."""

    async def resolve(host: str, _port: int) -> list[str]:
        assert host == "ok.example"
        return ["127.0.0.1"]

    allowed = Reachable()
    with contextlib.closing(allowed), origin() as forbidden:
        policy = allowing(f"ok.example:{allowed.port}")
        limits = Limits(header_time=1.0, idle_time=1.0, body_time=1.0, tunnel_time=1.0)
        directory = tmp_path_factory.mktemp("gateway")
        with gateway_in_thread(directory, policy=policy, resolve=resolve, limits=limits) as gateway:
            yield gateway, allowed, forbidden


def requests(ok: int, evil: int) -> st.SearchStrategy[bytes]:
    """Return requests that are nearly right."""
    good = b"ok.example:%d" % ok
    bad = b"127.0.0.1:%d" % evil
    authorities = st.sampled_from([good, good, good, bad, b"ok.example:%d" % evil, b"127.0.0.1:%d" % ok])
    targets = st.one_of(
        authorities,
        authorities.map(lambda authority: b"http://" + authority + b"/"),
        st.tuples(authorities, authorities).map(b"@".join),
        st.binary(max_size=20),
    )
    # Nearly right also in that what is needed is mostly there.
    needed = st.tuples(
        authorities.map(lambda authority: b"Host: " + authority),
        st.sampled_from([b"Proxy-Authorization: " + CREDENTIAL, b"Proxy-Authorization: Bearer " + TOKEN]),
    )
    headers = st.one_of(
        authorities.map(lambda authority: b"Host: " + authority),
        st.just(b"Proxy-Authorization: " + CREDENTIAL),
        st.just(b"x-api-key: " + TOKEN),
        st.sampled_from(
            [b"Content-Length: 5", b"Content-Length: 0", b"Transfer-Encoding: chunked", b"Connection: close",
             b"Expect: 100-continue", b"Upgrade: h2c", b"Proxy-Authorization: Basic x", b"X: y", b" folded",
             b"Content-Length: 18446744073709551616", b"Connection: content-length", b": empty"]
        ),
        st.binary(max_size=20),
    )  # fmt: skip
    return st.builds(
        lambda method, target, version, first, found, end, body: (
            method + b" " + target + b" " + version + end + end.join([*first, *found, b"", b""]) + body
        ),
        st.sampled_from([b"CONNECT", b"CONNECT", b"GET", b"POST", b"HEAD", b"OPTIONS", b"get", b"\0"]),
        targets,
        st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b""]),
        st.one_of(needed, needed, st.just(())),
        st.lists(headers, max_size=4),
        st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"]),
        st.sampled_from(
            [b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"\x16\3\1\0\5hello", b"GET / HTTP/1.1\r\n\r\n"]
        ),
    )


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_b7_nothing_goes_where_it_may_not_whatever_is_sent(around, data):
    gateway, allowed, forbidden = around
    request = b"".join(
        data.draw(st.lists(requests(allowed.port, forbidden.port), min_size=1, max_size=3), label="requests")
    )
    for _ in range(data.draw(st.integers(0, 2), label="changes")):
        at = data.draw(st.integers(0, len(request)))
        request = (
            request[:at] + data.draw(st.binary(max_size=3)) + request[at + data.draw(st.integers(0, 3)) :]
        )
    with gateway.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        read_rest(client)
    assert forbidden.nobody_came()
    reached = allowed.visits()
    event(f"reached the server: {reached}")
    if reached:
        # The one way in: the token, and the one target that is allowed.
        assert CREDENTIAL in request or b"Bearer " + TOKEN in request
        assert b"ok.example:%d" % allowed.port in request


def test_a_proper_request_does_get_through(around):
    """Positive control."""
    gateway, allowed, _ = around
    authority = f"ok.example:{allowed.port}"
    allowed.heard.clear()
    assert gateway.ask(gateway.proxied("GET", f"http://{authority}/", f"Host: {authority}")).body == b"hi"
    assert allowed.heard[0].startswith(b"GET / HTTP/1.1\r\n")
    assert allowed.visits() == 1
