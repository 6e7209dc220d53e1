"""What a running gateway says of itself: the policy to the agent, tokens and budgets to the user."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading

import pytest

from clsecure.egress.wire import HostTotals
from clsecure.policy import Budget, EgressPolicy, allow_rules, deny_rule
from tests.support.gateways import (
    KEY,
    TIMEOUT,
    allowing,
    read_reply,
    read_rest,
    read_until,
    running_gateway,
)
from tests.support.leftovers import wait_until
from tests.support.messages_api import MessagesApi, bash, text

ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [{"name": "Bash"}]}
POLICY = EgressPolicy(
    allow=(
        *allow_rules("files.example.org:8443", where="--allow-domain"),
        *allow_rules("r.example", where="preset npm (registry in /home/CANARY/.npmrc)"),
    ),
    deny=(deny_rule("*.evil.example", where="/home/CANARY/.config/clsecure/config, line 3"),),
)


@pytest.fixture
def api():
    with MessagesApi([[text("Hello."), bash("true")]] * 50) as scripted:
        yield scripted


def policy_of(gateway, *headers: str, token: str | None = "") -> tuple[int, dict]:
    reply = gateway.ask(gateway.head("GET", "/.clsecure/policy", *headers, token=token))
    return reply.status, json.loads(reply.body)


def test_the_agent_reads_what_it_may_reach_with_its_token(api, tmp_path):
    with running_gateway(api.url, tmp_path, policy=POLICY, budget=Budget(requests=9)) as gateway:
        gateway.ask(gateway.head("GET", "/v1/models"))
        basic = base64.b64encode(f"clsecure:{gateway.token}".encode()).decode()
        for headers, token in (
            ((), ""),
            ((f"Authorization: Bearer {gateway.token}",), None),
            ((f"Authorization: Basic {basic}",), None),
        ):
            status, document = policy_of(gateway, *headers, token=token)
            assert status == 200
        assert document["policy"] == "api"
        assert document["allow"] == [
            {"host": "files.example.org:8443", "where": "--allow-domain"},
            {"host": "r.example:443", "where": "preset npm"},
        ]
        assert document["deny"] == [{"host": "*.evil.example", "where": "settings"}]
        assert document["api"] == {"base": f"http://127.0.0.1:{gateway.port}", "allowed": True}
        assert document["budget"]["requests"] == {"used": 1, "limit": 9}
        assert "clsecure network allow SESSION HOST" in document["help"]
        assert KEY not in json.dumps(document)
        assert "CANARY" not in json.dumps(document)
        totals, events = gateway.gateway.close(), gateway.events()
    assert totals.requests == 1
    assert [(event["event"], event["rule"]) for event in events[1:]] == [("asked", "policy")] * 3


@pytest.mark.parametrize(
    "credential",
    [None, "Bearer wrong", "Basic !!!", "Basic", f"Basic {base64.b64encode(b'root:TOKEN').decode()}"],
)
def test_nobody_else_reads_the_policy(api, tmp_path, credential):
    with running_gateway(api.url, tmp_path) as gateway:
        if credential and "cm9vd" in credential:
            credential = f"Basic {base64.b64encode(f'root:{gateway.token}'.encode()).decode()}"
        headers = [] if credential is None else [f"Authorization: {credential}"]
        assert policy_of(gateway, *headers, token=None)[0] == 401
        assert policy_of(gateway, "Host: evil.example")[0] == 400
        totals = gateway.gateway.close()
    assert (totals.requests, totals.denied) == (2, 2)


@pytest.mark.parametrize("stream", [True, False])
def test_tokens_of_replies_are_in_the_log_and_the_totals(api, tmp_path, stream):
    with running_gateway(api.url, tmp_path) as gateway:
        gateway.ask(gateway.post({**ASK, "stream": stream}))
        gateway.ask(gateway.post(ASK, "/v1/messages/count_tokens"))
        totals, events = gateway.gateway.close(), gateway.events()
    # As the scripted API says: 10 in and 10 out when streamed, 10 in and 1 out otherwise.
    expected = 20 if stream else 11
    assert [event["tokens"] for event in events] == [expected, None]
    assert totals.tokens == expected
    assert [(each.host, each.port, each.requests) for each in totals.hosts] == [("127.0.0.1", api.port, 2)]


def test_a_used_up_budget_of_tokens_stops_the_session(api, tmp_path):
    with running_gateway(api.url, tmp_path, budget=Budget(tokens=33)) as gateway:
        statuses = [gateway.ask(gateway.post(ASK)).status for _ in range(5)]
        refused = gateway.ask(gateway.post(ASK))
        totals, events = gateway.gateway.close(), gateway.events()
    assert statuses == [200, 200, 200, 403, 403]
    assert refused.headers["x-should-retry"] == "false"
    assert "33 tokens" in refused.error["message"]
    assert "the user can raise it" in refused.error["message"]
    assert len(api.requests) == 3
    assert [event["share"] for event in events if event["event"] == "budget"] == [1.0]
    assert {event["rule"] for event in events if event.get("decision") == "deny"} == {"budget"}
    assert (totals.requests, totals.denied, totals.tokens) == (6, 3, 33)
    assert len(totals.warnings) == 1


def test_a_used_up_budget_of_requests_stops_the_session(api, tmp_path):
    with running_gateway(api.url, tmp_path, budget=Budget(requests=10)) as gateway:
        denied = gateway.ask(gateway.head("GET", "/v1/files"))
        statuses = [gateway.ask(gateway.head("GET", "/v1/models")).status for _ in range(11)]
        events = gateway.events()
    assert denied.status == 403
    assert statuses == [200] * 10 + [403]
    assert [event["share"] for event in events if event["event"] == "budget"] == [0.9, 1.0]


def test_a_body_beyond_the_budget_of_bytes_is_not_sent(api, tmp_path):
    with running_gateway(api.url, tmp_path, budget=Budget(bytes=5000)) as gateway:
        assert gateway.ask(gateway.post(ASK)).status == 200
        assert gateway.ask(gateway.post({**ASK, "system": "x" * 5000})).status == 403
        totals = gateway.gateway.close()
    assert len(api.requests) == 1
    assert totals.bytes_in + totals.bytes_out <= 5000


def test_a_reply_beyond_the_budget_of_bytes_is_cut(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as provider:
        provider.settimeout(TIMEOUT)
        url = f"http://127.0.0.1:{provider.getsockname()[1]}"
        with running_gateway(url, tmp_path, budget=Budget(bytes=100_000)) as gateway:
            with gateway.connect() as client:
                client.sendall(gateway.head("GET", "/v1/models"))
                connection, _ = provider.accept()
                with connection:
                    read_until(connection, b"\r\n\r\n")
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99000000\r\n\r\n")
                    read_until(client, b"\r\n\r\n")
                    connection.sendall(b"x" * 90_000)
                    received = 0
                    while received < 90_000:  # a socket with a time limit does not wait for all of it
                        received += len(client.recv(90_000 - received))
                    # Until the gateway hangs up.
                    with contextlib.suppress(ConnectionError):
                        while True:
                            connection.sendall(b"x" * 90_000)
                with contextlib.suppress(ConnectionError):
                    received += len(read_rest(client))
            totals = gateway.gateway.close()
    assert 90_000 <= received <= 100_000
    assert totals.bytes_in + totals.bytes_out <= 100_000


@pytest.fixture
def target():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        yield listener


def name_of(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_tunnel_is_seen_while_it_is_open_and_counted_when_it_ends(target, tmp_path):
    name = name_of(target)
    with running_gateway(None, tmp_path, policy=allowing(name)) as gateway:
        with gateway.tunnel(name) as client:
            there, _ = target.accept()
            client.sendall(b"12345")
            assert there.recv(5, socket.MSG_WAITALL) == b"12345"
            wait_until(gateway.log.read_bytes, "a line while the tunnel is open")
            (opened,) = [json.loads(line) for line in gateway.log.read_text().splitlines()]
            there.sendall(b"678")
            there.close()
            assert read_rest(client) == b"678"
        totals, events = gateway.gateway.close(), gateway.events()
    assert (opened["event"], opened["method"], opened["host"]) == ("opened", "CONNECT", "127.0.0.1")
    closed = events[-1]
    assert (closed["event"], closed["path"], closed["tunnel"]) == ("request", "-", opened["tunnel"])
    assert (closed["rule"], closed["decision"]) == (name, "allow")
    assert totals.hosts == (
        HostTotals(
            host="127.0.0.1", port=target.getsockname()[1], requests=1, bytes_in=3, bytes_out=5
        ),
    )  # fmt: skip


def test_a_tunnel_that_is_open_at_the_end_is_counted_too(target, tmp_path):
    with (
        running_gateway(None, tmp_path, policy=allowing(name_of(target))) as gateway,
        gateway.tunnel(name_of(target)) as client,
    ):
        there, _ = target.accept()
        with there:
            client.sendall(b"12345")
            assert there.recv(5, socket.MSG_WAITALL) == b"12345"
            totals = gateway.gateway.close()
    assert (totals.requests, totals.bytes_out, totals.complete) == (1, 5, True)


@pytest.mark.parametrize("outwards", [True, False])
def test_a_tunnel_is_cut_in_the_middle_when_the_budget_is_used_up(target, tmp_path, outwards):
    budget = Budget(bytes=1_000_000)
    with running_gateway(None, tmp_path, policy=allowing(name_of(target)), budget=budget) as gateway:
        with gateway.tunnel(name_of(target)) as client:
            there, _ = target.accept()
            client.sendall(b"hello")
            assert there.recv(5, socket.MSG_WAITALL) == b"hello"
            sender, receiver = (client, there) if outwards else (there, client)
            received = []
            reading = threading.Thread(target=lambda: received.append(until_cut(receiver)))
            reading.start()
            with contextlib.suppress(ConnectionError):
                while True:
                    sender.sendall(b"x" * 65536)
            reading.join()
            there.close()
        with pytest.raises(ConnectionError, match=" 403 "):
            gateway.tunnel(name_of(target))
        totals, events = gateway.gateway.close(), gateway.events()
    assert 100_000 < received[0] <= 1_000_000
    assert totals.bytes_in + totals.bytes_out <= 1_000_000
    assert [event["share"] for event in events if event["event"] == "budget"][-1] == 1.0
    assert "budget" in next(event["reason"] for event in events if event.get("tunnel") and "reason" in event)
    assert (totals.requests, totals.denied) == (2, 1)
    assert totals.warnings


def until_cut(connection: socket.socket) -> int:
    """Return how many bytes came before the connection was reset or ended."""
    size = 0
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            size += len(data)
    return size


def test_a_tunnel_that_was_open_when_the_gateway_was_killed_is_not_forgotten(target, tmp_path):
    with (
        running_gateway(None, tmp_path, policy=allowing(name_of(target))) as gateway,
        gateway.tunnel(name_of(target)),
    ):
        target.accept()[0].close()
        wait_until(gateway.log.read_bytes, "a line while the tunnel is open")
        gateway.gateway._child.kill()
        gateway.gateway._child.wait()
        totals = gateway.gateway.close()
    assert not totals.complete
    assert [(each.host, each.requests) for each in totals.hosts] == [("127.0.0.1", 1)]


def test_an_agent_that_hangs_up_in_a_stream_pays_for_it(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as provider:
        provider.settimeout(TIMEOUT)
        url = f"http://127.0.0.1:{provider.getsockname()[1]}"
        with running_gateway(url, tmp_path) as gateway:
            with gateway.connect() as client:
                client.sendall(gateway.post({**ASK, "stream": True}))
                connection, _ = provider.accept()
                start = {"type": "message_start", "message": {"usage": {"input_tokens": 700}}}
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
                    + f"data: {json.dumps(start)}\n\n".encode()
                    + b'data: {"type":"content_block_delta"}\n\n' * 30
                )
                read_until(client, b"message_start")
                for _ in range(30):
                    read_until(client, b"content_block_delta")
            with connection:
                while connection.recv(65536):
                    pass
            totals = gateway.gateway.close()
    assert totals.tokens == 730


def test_a_log_of_a_gateway_that_was_killed_tells_what_went_out(api, tmp_path):
    with running_gateway(api.url, tmp_path) as gateway:
        gateway.ask(gateway.post(ASK))
        # The line comes after the reply.
        wait_until(lambda: gateway.log.read_bytes().endswith(b"\n"), "the request's line")
        gateway.gateway._child.kill()
        gateway.gateway._child.wait()
        totals = gateway.gateway.close()
    assert not totals.complete
    assert (totals.requests, totals.tokens) == (1, 11)
    assert totals.bytes_out == len(json.dumps(ASK))


def test_replies_of_one_connection_are_read_one_by_one(api, tmp_path):
    with running_gateway(api.url, tmp_path) as gateway, gateway.connect() as client:
        for _ in range(3):
            client.sendall(gateway.post({**ASK, "stream": True}))
            assert read_reply(client).status == 200
        assert gateway.gateway.close().tokens == 60
