"""Requests through a real gateway process to a scripted Messages API."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest

from clsecure import process
from clsecure.egress.client import start_gateway
from clsecure.egress.provider import Credential, CredentialKind, Provider
from clsecure.egress.upstream import Redactor
from clsecure.egress.wire import GatewayConfig, Limits
from clsecure.errors import EgressError
from clsecure.process import Command
from tests.support.gateways import (
    KEY,
    TIMEOUT,
    RunningGateway,
    read_reply,
    read_rest,
    read_until,
    running_gateway,
)
from tests.support.messages_api import MessagesApi, bash, text

ASK = {
    "model": "m",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [{"name": "Bash"}],
}


@pytest.fixture
def api():
    with MessagesApi([[text("Hello."), bash("true")]]) as scripted:
        yield scripted


@pytest.fixture
def gateway(api, tmp_path):
    with running_gateway(api.url, tmp_path) as running:
        yield running


@pytest.fixture
def provider():
    """A provider that says what the test says; its side of each connection is accepted by hand."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        yield listener


def url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def accept(listener: socket.socket) -> tuple[socket.socket, bytes]:
    """Return the gateway's connection and the head of its request; the body is taken too."""
    connection, _ = listener.accept()
    connection.settimeout(TIMEOUT)
    head = read_until(connection, b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            left = int(line.split(b":")[1])
            while left:
                left -= len(connection.recv(left))
    return connection, head


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (CredentialKind.API_KEY, "x-api-key", KEY),
        (CredentialKind.BEARER, "authorization", f"Bearer {KEY}"),
    ],
)
def test_the_real_credential_replaces_the_token(api, tmp_path, kind, name, value):
    with running_gateway(api.url, tmp_path, kind=kind) as gateway:
        reply = gateway.ask(gateway.post(ASK, "/v1/messages?beta=true"))
    assert reply.status == 200
    assert json.loads(reply.body)["content"][0]["text"] == "Hello."
    (request,) = api.messages()
    assert request.target == "/v1/messages?beta=true"
    assert request.body == ASK
    assert request.headers[name] == value
    assert {"x-api-key", "authorization"} & request.headers.keys() == {name}
    assert gateway.token not in json.dumps(request.headers)


def test_what_the_agent_says_of_versions_is_kept_and_its_other_headers_are_not(api, gateway):
    head = gateway.head(
        "GET", "/v1/models", "anthropic-beta: oauth-2025-04-20", "anthropic-version: 1", "Cookie: a=b",
        "Authorization: Bearer " + gateway.token, "X-Forwarded-For: 1.2.3.4",
    )  # fmt: skip
    assert gateway.ask(head).status == 200
    (request,) = api.requests
    assert request.headers["anthropic-beta"] == "oauth-2025-04-20"
    assert request.headers["anthropic-version"] == "1"
    assert request.headers["host"] == f"127.0.0.1:{api.port}"
    assert not {"cookie", "authorization", "x-forwarded-for"} & request.headers.keys()


def test_a_subscription_is_read_at_each_request_and_its_expiry_explained(api, tmp_path):
    file = tmp_path / "credentials.json"

    def write(token: str, expires_in: float) -> None:
        expires = int((time.time() + expires_in) * 1000)
        file.write_text(json.dumps({"claudeAiOauth": {"accessToken": token, "expiresAt": expires}}))

    credential = Credential(kind=CredentialKind.BEARER, file=file)
    write("oat-first", 3600)
    with running_gateway(api.url, tmp_path, credential=credential) as gateway, gateway.connect() as client:
        for token in ("oat-first", "oat-renewed"):
            write(token, 3600)
            client.sendall(gateway.head("GET", "/v1/models"))
            assert read_reply(client).status == 200
            assert api.requests[-1].headers["authorization"] == f"Bearer {token}"
        write("oat-late", -1)
        client.sendall(gateway.head("GET", "/v1/models"))
        reply = read_reply(client)
    assert reply.status == 502
    assert "claude setup-token" in reply.error["message"]
    assert len(api.requests) == 2


def test_claude_codes_greeting_is_answered_without_asking_the_provider(api, gateway):
    assert gateway.ask(gateway.head("HEAD", "/", token=None)).status == 200
    assert gateway.ask(gateway.head("HEAD", "/")).status == 200
    assert [request.method for request in api.requests] == ["HEAD"]


def test_many_requests_share_one_connection_on_both_sides(gateway, api):
    with gateway.connect() as client:
        for _ in range(5):
            client.sendall(gateway.head("GET", "/v1/models"))
            assert read_reply(client).status == 200
    assert len(api.requests) == 5


def test_a_connection_that_the_provider_closed_meanwhile_is_opened_anew(provider, tmp_path):
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    with running_gateway(url_of(provider), tmp_path) as gateway, gateway.connect() as client:
        client.sendall(gateway.head("GET", "/v1/models"))
        first, _ = accept(provider)
        first.sendall(ok)
        assert read_reply(client).body == b"ok"
        first.close()
        client.sendall(gateway.head("GET", "/v1/models"))
        second, _ = accept(provider)
        second.sendall(ok)
        assert read_reply(client).body == b"ok"
        second.close()


def test_a_streamed_reply_arrives_piece_by_piece(provider, tmp_path):
    """The provider sends the second event only after the agent has the first one."""
    with running_gateway(url_of(provider), tmp_path) as gateway, gateway.connect() as client:
        client.sendall(gateway.post({**ASK, "stream": True}))
        upstream, _ = accept(provider)
        with upstream:
            upstream.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            assert b"text/event-stream" in read_until(client, b"\r\n\r\n")
            for number in range(50):
                event = b"event: ping\ndata: {%d}\n\n" % number
                upstream.sendall(b"%x\r\n%b\r\n" % (len(event), event))
                assert event in read_until(client, b"\n\n\r\n")
            upstream.sendall(b"0\r\n\r\n")
            assert read_until(client, b"0\r\n\r\n")


def test_a_reply_that_breaks_off_is_not_passed_on_as_complete(provider, tmp_path):
    with running_gateway(url_of(provider), tmp_path) as gateway, gateway.connect() as client:
        client.sendall(gateway.post(ASK))
        upstream, _ = accept(provider)
        upstream.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        read_until(client, b"abc\r\n")
        upstream.close()
        try:
            rest = read_rest(client)
        except ConnectionError:
            rest = b""
        assert b"0\r\n\r\n" not in rest
        events = gateway.events()
    assert events[-1]["reason"] == "the provider's reply broke off"


def test_an_agent_that_hangs_up_ends_the_providers_work(provider, tmp_path):
    with running_gateway(url_of(provider), tmp_path) as gateway:
        with gateway.connect() as client:
            client.sendall(gateway.post(ASK))
            upstream, _ = accept(provider)
        with upstream, contextlib.suppress(ConnectionError):
            assert upstream.recv(1) == b""
        events = gateway.events()
    assert [(event["decision"], event["status"]) for event in events] == [("allow", None)]


def test_a_provider_that_is_not_there_is_said_to_the_agent(tmp_path):
    with socket.socket() as deaf:
        # Bound, so that nobody else gets the port, and not listening.
        deaf.bind(("127.0.0.1", 0))
        with running_gateway(url_of(deaf), tmp_path) as gateway:
            reply = gateway.ask(gateway.post(ASK))
    assert reply.status == 502
    assert reply.error["type"] == "api_error"
    assert "can't be reached" in reply.error["message"]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nX-Echo: Bearer %b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n%.3b",
        b"HTTP/1.1 101 Switching Protocols\r\nX: %b\r\n\r\n",
        b"garbage %b\r\n\r\n",
    ],
)
def test_replies_that_can_carry_the_key_or_are_none_are_dropped(provider, tmp_path, answer):
    with running_gateway(url_of(provider), tmp_path) as gateway, gateway.connect() as client:
        client.sendall(gateway.post(ASK))
        upstream, _ = accept(provider)
        with upstream:
            upstream.sendall(answer % KEY.encode())
            reply = read_reply(client)
    assert reply.status == 502
    assert KEY not in f"{reply}"


@pytest.mark.parametrize("cut", [1, 10, len(KEY) - 1, len(KEY)])
def test_a_key_in_the_body_of_a_reply_is_blanked_wherever_it_is_cut(provider, tmp_path, cut):
    body = b"data: you sent " + KEY.encode() + b" to us\n\n"
    at = body.index(KEY.encode()) + cut
    with running_gateway(url_of(provider), tmp_path) as gateway, gateway.connect() as client:
        client.sendall(gateway.post(ASK))
        upstream, _ = accept(provider)
        with upstream:
            upstream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            read_until(client, b"\r\n\r\n")
            upstream.sendall(body[:at])
            read_until(client, b"you sent ")
            upstream.sendall(body[at:])
            rest = read_until(client, b"\n\n")
    assert rest == b"*" * len(KEY) + b" to us\n\n"


def test_nothing_is_held_back_that_is_not_the_beginning_of_the_key():
    redactor = Redactor("secret")
    assert redactor.feed(b"data: s\n") == b"data: s\n"
    assert redactor.feed(b"sec") == b""
    assert redactor.feed(b"ond") == b"second"
    assert redactor.feed(b"secretsecre") == b"******"
    assert redactor.end() == b"secre"


def test_cookies_of_the_provider_stay_outside(provider, tmp_path):
    with running_gateway(url_of(provider), tmp_path) as gateway, gateway.connect() as client:
        client.sendall(gateway.head("GET", "/v1/models"))
        upstream, _ = accept(provider)
        with upstream:
            upstream.sendall(
                b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nRequest-Id: r\r\nContent-Length: 0\r\n\r\n"
            )
            reply = read_reply(client)
    assert "set-cookie" not in reply.headers
    assert reply.headers["request-id"] == "r"


def test_a_path_prefix_of_the_base_url_goes_before_every_path(provider, tmp_path):
    with running_gateway(url_of(provider) + "/coding", tmp_path) as gateway, gateway.connect() as client:
        client.sendall(gateway.head("GET", "/v1/models?limit=1"))
        upstream, head = accept(provider)
        upstream.close()
    assert head.startswith(b"GET /coding/v1/models?limit=1 HTTP/1.1\r\n")


def certificate(directory, name: str):
    file = directory / f"{name}.pem"
    process.run(
        Command(
            argv=(
                "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-keyout", str(file), "-out", str(directory / f"{name}.crt"), "-days", "2",
                "-subj", f"/CN={name}", "-addext", f"subjectAltName={name}",
            )
        )
    ).check()  # fmt: skip
    file.write_text(file.read_text() + (directory / f"{name}.crt").read_text())
    return file


@pytest.mark.parametrize(
    ("subject", "trusted", "status"),
    [("IP:127.0.0.1", True, 200), ("IP:127.0.0.1", False, 502), ("DNS:other.example", True, 502)],
)
def test_tls_needs_a_trusted_certificate_of_that_name(tmp_path, subject, trusted, status):
    pem = certificate(tmp_path, subject)
    with (
        MessagesApi([[text("Hello.")]], certificate=pem) as api,
        running_gateway(api.url, tmp_path, ca_file=pem if trusted else None) as gateway,
    ):
        assert gateway.ask(gateway.post(ASK)).status == status


def test_every_request_is_one_line_without_bodies_and_secrets(api, tmp_path):
    with running_gateway(api.url, tmp_path) as gateway:
        gateway.ask(gateway.post(ASK))
        gateway.ask(gateway.head("GET", f"/v1/files?{gateway.token}\x7f\x9b", "X: y"))
        gateway.ask(gateway.head("GET", "/v1/models", token="sk-foreign"))
        token, totals = gateway.token, gateway.gateway.close()
        events = gateway.events()
    assert [(e["method"], e["decision"], e["rule"], e["status"]) for e in events] == [
        ("POST", "allow", "messages", 200),
        ("-", "deny", "malformed", 400),
        ("GET", "deny", "token", 401),
    ]
    assert events[0]["bytes_out"] == len(json.dumps(ASK))
    assert events[0]["bytes_in"] > 100
    assert events[0]["duration_ms"] > 0
    log = gateway.log.read_text()
    assert not any(secret in log for secret in (KEY, token, "sk-foreign", "Hello", '"hi"'))
    assert gateway.log.stat().st_mode & 0o777 == 0o600
    assert (totals.requests, totals.denied, totals.complete) == (3, 2, True)
    assert (totals.bytes_in, totals.bytes_out) == (events[0]["bytes_in"], events[0]["bytes_out"])


def test_a_key_that_the_agent_holds_is_not_in_the_log(tmp_path):
    target = "http://files.example.org/"
    with running_gateway(None, tmp_path, hidden=(KEY,)) as gateway:
        gateway.ask(gateway.proxied("GET", f"{target}{KEY}", "Host: files.example.org"))
        gateway.ask(gateway.proxied("CONNECT", f"{KEY}.example.org:443", "Host: a"))
        gateway.ask(gateway.proxied(KEY, target, "Host: files.example.org"))
        assert len(gateway.events()) == 3
    assert KEY not in gateway.log.read_text()


def test_a_full_log_stops_growing_and_the_totals_go_on(api, tmp_path):
    with running_gateway(api.url, tmp_path, limits=Limits(log_size=2000)) as gateway:
        for _ in range(30):
            gateway.ask(gateway.head("HEAD", "/", token=None))
        totals = gateway.gateway.close()
        events = gateway.events()
    assert totals.requests == 30
    assert gateway.log.stat().st_size < 2500
    assert events[-1] == {"event": "log_full"}
    assert [warning.partition(";")[0] for warning in totals.warnings] == ["the network log is full"]


def test_a_refusal_is_in_the_providers_own_shape_and_says_who_can_allow_it(gateway):
    reply = gateway.ask(gateway.head("GET", "/v1/files"))
    assert reply.status == 403
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-should-retry"] == "false"
    assert reply.error["type"] == "permission_error"
    assert reply.error["message"].startswith("clsecure: ")
    assert "the user decides" in reply.error["message"]


def test_several_listeners_can_be_served(gateway):
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    gateway.gateway.serve(listener)
    assert listener.fileno() == -1
    second = RunningGateway(gateway=gateway.gateway, port=port, log=gateway.log)
    assert second.ask(second.head("GET", "/v1/models")).status == 200


def test_starting_does_not_wait_for_the_process(tmp_path):
    config = GatewayConfig(provider=Provider(), credential=Credential(kind=CredentialKind.API_KEY, value="k"))
    durations = []
    for _ in range(5):
        started = time.perf_counter()
        gateway = start_gateway(config)
        durations.append(time.perf_counter() - started)
        gateway.close()
    # The quickest: any of them may have had to wait for its turn on a busy machine.
    assert min(durations) < 0.5


def test_a_configuration_that_cannot_work_is_reported_when_served(tmp_path):
    with pytest.raises(EgressError) as caught, running_gateway("http://127.0.0.1:9", tmp_path / "missing"):
        pass
    assert "network log" in caught.value.brief


def test_something_else_than_a_listening_socket_is_refused(gateway):
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(EgressError) as caught:
        gateway.gateway.serve(theirs)
    assert "listening" in caught.value.brief
