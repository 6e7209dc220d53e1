"""Orders to a running gateway: only from its own user, bounded, recorded, and at once in force."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat

import pytest

from clsecure.egress.control import address_in, allow_live, live_policy
from clsecure.egress.wire import MAX_MESSAGE
from clsecure.errors import EgressError
from clsecure.policy import HOST_ALIAS, MAX_RULES, EgressPolicy, allow_rules, deny_rule
from tests.support.gateways import KEY, TIMEOUT, running_gateway
from tests.support.messages_api import MessagesApi, text

POLICY = EgressPolicy(
    allow=allow_rules("*.allowed.example", where="--allow-domain"),
    deny=(
        deny_rule("denied.example", where="settings:3"),
        deny_rule("*.bad.example", where="settings:4"),
        deny_rule("port.example:8443", where="settings:5"),
        deny_rule("localhost", where="settings:6"),
    ),
)


@pytest.fixture
def api():
    with MessagesApi([[text("Hello.")]]) as scripted:
        yield scripted


@pytest.fixture
def path(tmp_path):
    return tmp_path / "control"


@pytest.fixture
def gateway(api, tmp_path, path):
    with running_gateway(api.url, tmp_path, policy=POLICY, control=path) as running:
        yield running


def connected(path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(path))
    connection.settimeout(TIMEOUT)
    return connection


def told_inside(gateway) -> list[str]:
    reply = gateway.ask(gateway.head("GET", "/.clsecure/policy"))
    return [rule["host"] for rule in json.loads(reply.body)["allow"]]


def test_a_host_is_allowed_while_the_session_runs(gateway, path):
    assert allow_live(path, "Files.Example.org").rules == ("*.allowed.example:443", "files.example.org:443")
    assert allow_live(path, "files.example.org:8443").rules[-1] == "files.example.org:8443"
    assert told_inside(gateway) == [
        "*.allowed.example:443",
        "files.example.org:443",
        "files.example.org:8443",
    ]
    lines = [event for event in gateway.events() if event["event"] == "allowed"]
    assert [(line["host"], line["rules"], line["new"]) for line in lines] == [
        ("Files.Example.org", ["files.example.org:443"], True),
        ("files.example.org:8443", ["files.example.org:8443"], True),
    ]


def test_a_tunnel_past_the_inspection_is_not_proposed_and_warned_of_when_it_is_opened(api, tmp_path, path):
    target = f"127.0.0.1:{api.port}"
    with running_gateway(api.url, tmp_path, control=path) as gateway:
        refused = gateway.ask(gateway.proxied("CONNECT", target, f"Host: {target}"))
        assert refused.status == 403
        assert b"ANTHROPIC_BASE_URL" in refused.body
        assert b"network allow" not in refused.body
        assert allow_live(path, "files.example.org").warning is None
        warning = allow_live(path, target).warning
        gateway.tunnel(target).close()
        totals = gateway.gateway.close()
    assert f"{target} is among the allowed hosts" in (warning or "")
    assert totals.warnings == (warning,)


def test_an_allowed_host_is_reached_from_the_next_request_on(api, tmp_path, path):
    with (
        socket.create_server(("127.0.0.1", 0)) as target,
        running_gateway(api.url, tmp_path, control=path) as gateway,
    ):
        target.settimeout(TIMEOUT)
        port = target.getsockname()[1]
        names = (f"127.0.0.1:{port}", f"{HOST_ALIAS}:{port}")
        for name in names:
            with pytest.raises(ConnectionError, match=" 403 "):
                gateway.tunnel(name)
        assert allow_live(path, names[0]).rules == names
        for name in names:
            with gateway.tunnel(name) as client:
                there, _ = target.accept()
                with there:
                    client.sendall(b"hello")
                    assert there.recv(5, socket.MSG_WAITALL) == b"hello"
        # The same host's other ports stay closed.
        with pytest.raises(ConnectionError, match=" 403 "):
            gateway.tunnel(f"127.0.0.1:{gateway.port}")


def test_what_is_allowed_already_is_no_error_and_not_added_again(gateway, path):
    allow_live(path, "files.example.org")
    assert allow_live(path, "files.example.org").rules == ("*.allowed.example:443", "files.example.org:443")
    assert [event["new"] for event in gateway.events() if event["event"] == "allowed"] == [True, False]


@pytest.mark.parametrize(
    ("host", "rule"),
    [
        ("denied.example", "settings:3"),
        ("denied.example:80", "settings:3"),
        ("a.bad.example", "settings:4"),
        ("*.bad.example", "settings:4"),
        ("*.a.bad.example", "settings:4"),
        ("port.example:8443", "settings:5"),
        ("127.0.0.1:80", "settings:6"),
    ],
)
def test_a_host_that_is_denied_stays_so_and_the_rule_is_named(gateway, path, host, rule):
    with pytest.raises(EgressError) as raised:
        allow_live(path, host)
    assert rule in raised.value.brief
    assert raised.value.resolution is not None
    assert told_inside(gateway) == ["*.allowed.example:443"]
    assert [event for event in gateway.events() if event["event"] == "allowed"] == []


@pytest.mark.parametrize("host", ["port.example", "bad.example", "*.denied.example"])
def test_what_a_denial_leaves_can_be_allowed(gateway, path, host):
    assert f"{host}:443" in allow_live(path, host).rules


@pytest.mark.parametrize(
    "host", ["", "*", "*.com", "a b", "http://a.example", "a.example:0", "\x1b[2J", "x" * 4000]
)
def test_what_is_no_host_is_refused_with_a_reason(gateway, path, host):
    with pytest.raises(EgressError) as raised:
        allow_live(path, host)
    assert raised.value.brief.isascii()
    assert raised.value.brief.isprintable()
    assert len(raised.value.brief) < 1000


def test_the_policy_is_told_outside_without_a_secret(gateway, path):
    document = live_policy(path)
    assert document["deny"][0] == {"host": "denied.example", "where": "settings:3"}
    assert document["budget"]["bytes"] == {"used": 0, "limit": None}
    assert KEY not in json.dumps(document)
    assert gateway.token not in json.dumps(document)


def test_a_policy_of_all_the_rules_that_fit_is_still_told(api, tmp_path, path):
    name = ".".join(["x" * 60] * 3)
    rules = [allow_rules(f"n{number}.{name}.example", where="p")[0] for number in range(400)]
    with running_gateway(api.url, tmp_path, policy=EgressPolicy(allow=tuple(rules)), control=path):
        for number in range(400, MAX_RULES):
            allow_live(path, f"n{number}.{name}.example")
        document = live_policy(path)
        assert document["cut"]
        assert len(document["allow"]) > 100
        assert len(allow_live(path, f"n0.{name}.example").rules) > 100
        with pytest.raises(EgressError, match="more than"):
            allow_live(path, "one.more.example")


def test_as_many_rules_as_a_session_may_have_reach_the_gateway(api, tmp_path, path):
    name = ".".join(["x" * 60] * 3)
    rules = [
        allow_rules(f"n{number}.{name}.example", where="/a/path/to/settings:100")[0]
        for number in range(MAX_RULES)
    ]
    policy = EgressPolicy(allow=tuple(rules), deny=tuple(rules[:-1]))
    with running_gateway(api.url, tmp_path, policy=policy, control=path):
        last = f"n{MAX_RULES - 1}.{name}.example"
        with pytest.raises(EgressError, match="denied"):
            allow_live(path, f"n0.{name}.example")
        assert live_policy(path)["cut"]
        assert allow_live(path, last).rules


@pytest.mark.parametrize(
    "order",
    [b"x", b"[]", b'{"type": "allow"}', b'{"type": "allow", "host": 3}', b'{"type": "close"}', b"y" * 5000],
)
def test_what_is_no_order_changes_nothing(gateway, path, order):
    with connected(path) as client:
        client.send(order)
        assert json.loads(client.recv(MAX_MESSAGE))["type"] == "error"
    assert told_inside(gateway) == ["*.allowed.example:443"]
    assert gateway.gateway.alive()


def test_the_socket_is_its_users_alone_and_gone_with_the_session(gateway, path):
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    gateway.gateway.close()
    assert not path.exists()
    with pytest.raises(EgressError, match="not running"):
        allow_live(path, "a.example")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be somebody else")
def test_another_user_is_not_listened_to_even_where_the_file_lets_them_in(gateway, tmp_path, path):
    path.chmod(0o666)
    tmp_path.chmod(0o755)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        directory = os.open(tmp_path, os.O_PATH)
        os.setgid(65534)
        os.setuid(65534)
        answer = b"never came there"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.settimeout(TIMEOUT)
                client.connect(address_in(directory, "control"))
                client.send(b'{"type": "policy"}')
                answer = client.recv(100) or b"nothing"
        except ConnectionError:
            answer = b"nothing"
        finally:
            os.write(writer, answer)
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"nothing"
    os.close(reader)
    os.close(writer)
    assert live_policy(path)["policy"] == "api"


def test_silent_clients_do_not_keep_the_user_out(gateway, path):
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(connected(path))
        assert "a.example:443" in allow_live(path, "a.example").rules


def test_a_stale_socket_does_not_hinder_the_next_start(api, tmp_path, path):
    with running_gateway(api.url, tmp_path, control=path) as gateway:
        gateway.gateway._child.kill()
        gateway.gateway._child.wait()
        with pytest.raises(EgressError, match="not running"):
            live_policy(path)
        assert path.exists()
        with running_gateway(api.url, tmp_path, control=path):
            assert live_policy(path)["policy"] == "api"


def test_something_else_at_the_sockets_place_is_left_alone_and_an_error(api, tmp_path, path):
    path.write_text("mine")
    with pytest.raises(EgressError, match="control socket"), running_gateway(api.url, tmp_path, control=path):
        pass
    assert path.read_text() == "mine"


def test_a_directory_deeper_than_a_sockets_address_is_no_hindrance(api, tmp_path):
    deep = tmp_path.joinpath(*["d" * 100] * 3)
    deep.mkdir(parents=True)
    with running_gateway(api.url, tmp_path, control=deep / "control"):
        assert live_policy(deep / "control")["policy"] == "api"


def test_a_session_that_never_was_is_not_running(tmp_path):
    with pytest.raises(EgressError, match="not running"):
        live_policy(tmp_path / "no" / "control")
