"""Attacks on the gateway and through it, over real sockets against a real process."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from clsecure.egress.wire import HostProxies, Limits
from clsecure.process import PIPE, Command, spawn
from tests.support.gateways import KEY, TIMEOUT, allowing, read_reply, read_rest, read_until, running_gateway
from tests.support.leftovers import wait_until
from tests.support.messages_api import MessagesApi, text
from tests.support.origin import serving

ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def api():
    with MessagesApi([[text("Hello.")]]) as scripted:
        yield scripted


@pytest.fixture
def gateway(api, tmp_path):
    with running_gateway(api.url, tmp_path) as running:
        yield running


def raw(gateway, request: bytes) -> tuple[int, bytes]:
    """Send bytes as they are; return the status of the first answer and all that came."""
    with gateway.connect() as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        answer = read_rest(client)
    return int(answer.split()[1]), answer


def test_b7_requests_that_two_parsers_could_read_differently_are_refused(api, gateway):
    port = str(gateway.port)
    token = f"x-api-key: {gateway.token}\r\n"
    host = f"Host: 127.0.0.1:{port}\r\n"
    post = f"POST /v1/messages HTTP/1.1\r\n{host}{token}Content-Type: application/json\r\n"
    smuggled = "0\r\n\r\nGET /v1/models HTTP/1.1\r\n" + host + token + "\r\n"
    cases = [
        # Content-Length and chunked, twice Content-Length, odd transfer codings
        f"{post}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled}",
        f"{post}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}",
        f"{post}Transfer-Encoding: chunked, identity\r\n\r\n{smuggled}",
        f"{post}Transfer-Encoding : chunked\r\n\r\n{smuggled}",
        f"GET /v1/models HTTP/1.1\r\n{host}{token}Content-Length: 5\r\n\r\nhello",
        # another host, by Host or in the target
        f"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n{token}\r\n",
        f"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:1\r\n{token}\r\n",
        f"GET /v1/models HTTP/1.1\r\n{host}Host: evil.example\r\n{token}\r\n",
        f"GET http://evil.example/v1/models HTTP/1.1\r\n{host}{token}\r\n",
        f"GET http://127.0.0.1:{port}@evil.example/v1/models HTTP/1.1\r\n{host}{token}\r\n",
        f"GET //evil.example/v1/models HTTP/1.1\r\n{host}{token}\r\n",
        f"CONNECT evil.example:443 HTTP/1.1\r\n{host}{token}\r\n",
        # paths
        f"GET /v1/models/../files HTTP/1.1\r\n{host}{token}\r\n",
        f"GET /v1/models/%2e%2e/files HTTP/1.1\r\n{host}{token}\r\n",
        f"GET /v1/models/..%2ffiles HTTP/1.1\r\n{host}{token}\r\n",
        f"GET /v1/models\0 HTTP/1.1\r\n{host}{token}\r\n",
        f"GET /v1/models\\..\\files HTTP/1.1\r\n{host}{token}\r\n",
        # line ends, old and new protocols, upgrades
        f"GET /v1/models\r\nX: y HTTP/1.1\r\n{host}{token}\r\n",
        f"GET /v1/models HTTP/1.1\r\n{host}{token}X: a\rb\r\n\r\n",
        f"GET /v1/models HTTP/1.1\r\n{host}{token} folded: x\r\n: y\r\n\r\n",
        "GET /v1/models\r\n\r\n",
        f"GET /v1/models HTTP/1.1\r\n{host}{token}Connection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ]  # fmt: skip
    for case in cases:
        status, answer = raw(gateway, case.encode("latin-1"))
        assert status in {400, 401, 403, 407, 501}, case
        assert answer.count(b"content-length:") == 1, case
    assert api.requests == []
    events = gateway.events()
    assert len(events) == len(cases)
    assert {event["decision"] for event in events} == {"deny"}


def test_b10_a_foreign_key_other_paths_and_server_tools_are_refused(api, gateway):
    foreign = gateway.head("GET", "/v1/models", token="sk-ant-of-the-attacker")
    both = gateway.head("GET", "/v1/models", "Authorization: Bearer sk-ant-of-the-attacker")
    fetch = {**ASK, "tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]}
    statuses = [
        gateway.ask(request).status
        for request in (
            foreign,
            both,
            gateway.head("GET", "/v1/models", token=None),
            gateway.head("GET", "/v1/files"),
            gateway.head("GET", "/v1/messages/batches"),
            gateway.post(fetch),
            gateway.post({**ASK, "mcp_servers": [{"type": "url", "url": "https://example.org"}]}),
            gateway.post(fetch, "/v1/messages/count_tokens"),
        )
    ]
    assert statuses == [401, 401, 401, 403, 403, 403, 403, 403]
    assert api.requests == []
    assert len(gateway.events()) == 8


def test_b10_provider_tools_pass_when_the_user_allows_them(api, tmp_path):
    fetch = {**ASK, "tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]}
    with running_gateway(api.url, tmp_path, provider_tools=True) as gateway:
        assert gateway.ask(gateway.post(fetch)).status == 200
    assert api.requests[0].body == fetch


@pytest.mark.parametrize("header", ["Content-Type: text/plain", "Content-Encoding: gzip", None])
def test_b10_a_body_that_cannot_be_inspected_is_refused(api, gateway, header):
    headers = ["Content-Type: application/json", header or "Content-Type: application/json"]
    body = json.dumps(ASK).encode()
    head = gateway.head("POST", "/v1/messages", *headers, f"Content-Length: {len(body)}")
    assert gateway.ask(head + body).status == 400
    assert api.requests == []


@pytest.mark.parametrize(
    "parameters", ["charset=utf-7", "charset=utf-8; charset=utf-7", "a=b", "charset=UTF-16"]
)
def test_b10_a_body_that_another_charset_would_make_another_body_of_is_refused(api, gateway, parameters):
    # What the provider would read in UTF-7: {"a":"","tools":[…]}.
    tool = b"+AHsAIg-type+ACI-:+ACI-web_search_20250305+ACIAfQ-"
    body = b'{"a":"+ACI-,+ACI-tools+ACI-:[' + tool + b'],+ACI-b+ACI-:+ACI-"}'
    assert body.decode("utf-7").startswith('{"a":"","tools":[{"type":"web_search')
    head = gateway.head(
        "POST", "/v1/messages", f"Content-Type: application/json;{parameters}", f"Content-Length: {len(body)}"
    )
    assert gateway.ask(head + body).status == 400
    assert api.requests == []


@pytest.mark.parametrize("parameters", ["charset=utf-8", ' Charset="UTF-8"'])
def test_a_body_that_says_its_usual_charset_passes(api, gateway, parameters):
    body = json.dumps(ASK).encode()
    head = gateway.head(
        "POST", "/v1/messages", f"Content-Type: application/json;{parameters}", f"Content-Length: {len(body)}"
    )
    assert gateway.ask(head + body).status == 200


def test_b12_a_client_that_sends_its_head_slowly_is_let_go(api, tmp_path):
    with running_gateway(api.url, tmp_path, limits=Limits(header_time=0.2)) as gateway:
        with gateway.connect() as silent, gateway.connect() as slow:
            slow.sendall(b"GET /v1/models HTTP/1.1\r\nX: ")
            for client in (silent, slow):
                with contextlib.suppress(ConnectionError):
                    assert read_rest(client) == b""
        assert gateway.ask(gateway.head("GET", "/v1/models")).status == 200


def test_b12_a_client_that_sends_its_body_slowly_is_let_go(api, tmp_path):
    with running_gateway(api.url, tmp_path, limits=Limits(body_time=0.2)) as gateway:
        with gateway.connect() as slow:
            slow.sendall(gateway.post(ASK)[:-1])
            with contextlib.suppress(ConnectionError):
                assert read_rest(slow) == b""
        assert gateway.ask(gateway.post(ASK)).status == 200


def test_b12_an_endless_head_is_cut(api, gateway):
    with gateway.connect() as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET /v1/models HTTP/1.1\r\nX: ")
            for _ in range(64):
                client.sendall(b"x" * (1 << 20))
        with contextlib.suppress(ConnectionError):
            assert read_reply(client).status == 431
    assert status_of(gateway, "VmHWM") << 10 < 200 << 20
    assert gateway.ask(gateway.head("GET", "/v1/models")).status == 200


def test_b12_a_body_beyond_the_limit_is_refused_however_it_is_announced(api, tmp_path):
    with running_gateway(api.url, tmp_path, limits=Limits(body_size=1000)) as gateway:
        big = gateway.post({**ASK, "system": "x" * 2000})
        assert gateway.ask(big).status == 413
        head = gateway.head(
            "POST", "/v1/messages", "Content-Type: application/json", "Transfer-Encoding: chunked"
        )
        assert gateway.ask(head + b"7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n").status == 413
    assert api.requests == []


def test_b12_bodies_in_memory_are_bounded_together(api, tmp_path):
    limits = Limits(buffered=100_000)
    with running_gateway(api.url, tmp_path, limits=limits) as gateway, gateway.connect() as first:
        large = gateway.post({**ASK, "system": "x" * 80_000})
        first.sendall(large[:-1])
        # The gateway reads on its own time: ask until the first one's share is taken.
        while gateway.ask(large).status != 503:
            pass
        first.sendall(large[-1:])
        assert read_reply(first).status == 200
        assert gateway.ask(large).status == 200


def test_b12_a_flood_of_connections_leaves_room_for_the_agent(api, tmp_path):
    with running_gateway(api.url, tmp_path, limits=Limits(connections=20)) as gateway:
        with contextlib.ExitStack() as open_ones:
            for _ in range(500):
                open_ones.enter_context(gateway.connect())
            assert gateway.ask(gateway.head("GET", "/v1/models")).status == 200
            # Room for this many descriptors was made; the list of them is root's alone to read.
            assert status_of(gateway, "FDSize") <= 512
        assert status_of(gateway, "VmHWM") << 10 < 200 << 20
        assert gateway.gateway.alive()


def test_b12_requests_under_way_are_not_dropped_for_new_clients(api, tmp_path):
    body = json.dumps(ASK).encode()
    with (
        running_gateway(api.url, tmp_path, limits=Limits(connections=2)) as gateway,
        gateway.connect() as first,
        gateway.connect() as second,
    ):
        for client in (first, second):
            client.sendall(
                gateway.head(
                    "POST", "/v1/messages", "Content-Type: application/json", "Expect: 100-continue",
                    f"Content-Length: {len(body)}",
                )
            )  # fmt: skip
            # The interim reply shows that the request is under way.
            assert b" 100 " in read_until(client, b"\r\n\r\n")
        assert gateway.ask(gateway.head("GET", "/v1/models")).status == 503
        for client in (first, second):
            client.sendall(body)
            assert read_reply(client).status == 200


def test_b12_another_program_on_the_machine_is_refused(api, gateway):
    with gateway.connect() as client:
        client.sendall(gateway.post(ASK).replace(gateway.token.encode(), b"x" * len(gateway.token)))
        assert read_reply(client).status == 401
    assert api.requests == []


def refused(port: int) -> bool:
    """Wait until nobody listens any more."""
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as client:
                client.recv(1)
        except ConnectionRefusedError:
            return True
        except ConnectionError:
            pass


def pid_of(gateway) -> int:
    return gateway.gateway._child.pid


def status_of(gateway, field: str) -> int:
    for line in Path(f"/proc/{pid_of(gateway)}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise AssertionError


def test_the_process_is_confined_and_carries_no_secret_in_sight(gateway):
    pid = pid_of(gateway)
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert [line.split()[4] for line in limits.splitlines() if line.startswith("Max core file size")] == ["0"]
    # Files of a process that is not dumpable belong to root, whoever it runs as.
    assert Path(f"/proc/{pid}/environ").stat().st_uid == 0
    if os.getuid() != 0:
        with pytest.raises(PermissionError):
            os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    seen = Path(f"/proc/{pid}/cmdline").read_bytes()
    with contextlib.suppress(PermissionError):
        seen += Path(f"/proc/{pid}/environ").read_bytes()
    assert KEY.encode() not in seen
    assert gateway.token.encode() not in seen


def test_a_gateway_that_is_killed_closes_the_port_and_the_session_learns_it(gateway):
    assert gateway.gateway.alive()
    os.kill(pid_of(gateway), signal.SIGKILL)
    wait_until(lambda: not gateway.gateway.alive(), "the gateway's end")
    assert refused(gateway.port)
    totals = gateway.gateway.close()
    assert not gateway.gateway.alive()
    assert not totals.complete


SESSION = """
import os, socket, sys
from pathlib import Path
from clsecure.egress.client import start_gateway
from clsecure.egress.provider import Credential, CredentialKind, Provider
from clsecure.egress.wire import GatewayConfig
config = GatewayConfig(provider=Provider(), credential=Credential(kind=CredentialKind.API_KEY, value="k"))
gateway = start_gateway(config)
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
gateway.serve(listener)
print(port, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_session_that_is_killed_takes_its_gateway_along(how):
    root = Path(__file__).parents[2]
    stdin, held = os.pipe()
    session = spawn(
        Command(argv=(sys.executable, "-c", SESSION), env={"PYTHONPATH": str(root)}), stdin=stdin, stdout=PIPE
    )
    try:
        assert session.stdout is not None
        port = int(session.stdout.readline())
        socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT).close()
        session.send_signal(how)
        session.wait()
        session.stdout.close()
        assert refused(port)
    finally:
        os.close(stdin)
        os.close(held)
        session.kill()


def test_the_end_of_the_session_cuts_connections_under_way(api, tmp_path):
    with running_gateway(api.url, tmp_path) as gateway, gateway.connect() as client:
        client.sendall(gateway.post(ASK)[:-1])
        gateway.gateway.close()
        with contextlib.suppress(ConnectionError):
            assert read_rest(client) == b""


def test_code_in_the_current_directory_is_never_the_gateway(api, tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    for name in ("json.py", "h11.py", "asyncio.py", "clsecure.py", "sitecustomize.py"):
        (tmp_path / name).write_text(f"open({str(marker)!r}, 'w')\nraise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with running_gateway(api.url, tmp_path) as gateway:
        assert gateway.ask(gateway.head("GET", "/v1/models")).status == 200
    assert not marker.exists()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a4_the_password_for_the_machines_own_proxy_stays_outside(tmp_path, method):
    """Pages of errors that a proxy writes may repeat the request, with all of its headers."""
    pair = base64.b64encode(b"person:CANARY").decode()

    def repeat(connection: socket.socket) -> None:
        head = read_until(connection, b"\r\n\r\n")
        heard.append(head)
        connection.sendall(
            b"HTTP/1.1 502 No\r\nX-Asked: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
            % (head.split(b"\r\n")[-3], len(head), head)
        )

    heard: list[bytes] = []
    with serving(repeat) as proxy:
        proxies = HostProxies(http=f"http://person:CANARY@{proxy.authority}")
        policy = allowing("web.test:80")
        with running_gateway(None, tmp_path, policy=policy, proxies=proxies) as gateway:
            reply = gateway.ask(gateway.proxied(method, "http://web.test/", "Host: web.test"))
            traced = gateway.ask(gateway.proxied("TRACE", "http://web.test/", "Host: web.test"))
    assert reply.status == 502
    assert pair.encode() in heard[0]
    assert b"proxy-authorization: Basic *" in reply.body
    assert pair not in f"{reply}"
    # A proxy answers TRACE itself, by saying what it was asked.
    assert traced.status == 403
    assert len(heard) == 1
