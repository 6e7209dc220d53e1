"""Which addresses the provider's name may lead to."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from dataclasses import replace

import pytest

from clsecure.egress.addresses import AddressBook, AddressDeniedError, Scope, Target, scope_of
from clsecure.egress.gateway import GatewayServer
from clsecure.egress.provider import Credential, CredentialKind, Provider
from clsecure.egress.wire import GatewayConfig
from clsecure.errors import EgressError
from clsecure.policy import EgressPolicy, denied_addresses, deny_rule
from tests.support.gateways import KEY, InThread, RunningGateway, allowing
from tests.support.messages_api import MessagesApi, text
from tests.support.origin import origin

PUBLIC = "1.1.1.1"
UNNAMED = Target(host="model.example", port=443)
NAMED = Target(host="model.example", port=443, may_be_private=True)


class Names:
    """A resolver whose answers change."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    async def __call__(self, _host: str, _port: int) -> list[str]:
        return self.answers.pop(0)


def look_up(target: Target, *answers: list[str]) -> list[tuple[str, ...]]:
    async def all_of_them() -> list[tuple[str, ...]]:
        book = AddressBook(target, resolve=Names(*answers))
        found = []
        for _ in answers:
            found.append(await book.addresses())
            book.forget()
        return found

    return asyncio.run(all_of_them())


@pytest.mark.parametrize(
    ("address", "scope"),
    [
        (PUBLIC, Scope.PUBLIC),
        ("2606:4700::1", Scope.PUBLIC),
        ("127.0.0.1", Scope.PRIVATE),
        ("127.9.9.9", Scope.PRIVATE),
        ("10.0.0.1", Scope.PRIVATE),
        ("172.17.0.1", Scope.PRIVATE),
        ("192.168.1.1", Scope.PRIVATE),
        ("100.64.0.1", Scope.PRIVATE),
        ("::1", Scope.PRIVATE),
        ("fd00::1", Scope.PRIVATE),
        ("::ffff:127.0.0.1", Scope.PRIVATE),
        ("64:ff9b::7f00:1", Scope.PRIVATE),
        ("2002:7f00:1::", Scope.PRIVATE),
        ("fec0::1", Scope.PRIVATE),
        ("64:ff9b::101:101", Scope.PUBLIC),
        ("169.254.169.254", Scope.FORBIDDEN),
        ("::ffff:169.254.169.254", Scope.FORBIDDEN),
        ("fe80::1", Scope.FORBIDDEN),
        ("fd00:ec2::254", Scope.FORBIDDEN),
        ("fd20:ce::254", Scope.FORBIDDEN),
        ("fd00:42::42", Scope.FORBIDDEN),
        ("100.100.100.200", Scope.FORBIDDEN),
        ("168.63.129.16", Scope.FORBIDDEN),
        ("0.0.0.0", Scope.FORBIDDEN),
        ("::", Scope.FORBIDDEN),
        ("224.0.0.1", Scope.FORBIDDEN),
        ("255.255.255.255", Scope.FORBIDDEN),
        ("2001:0:1::", Scope.FORBIDDEN),
    ],
)
def test_where_an_address_leads(address, scope):
    assert scope_of(ipaddress.ip_address(address)) is scope


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "::ffff:10.0.0.1"]
)
def test_b11_a_name_that_the_user_did_not_name_must_be_public(address):
    assert look_up(UNNAMED, [PUBLIC]) == [(PUBLIC,)]
    for answer in ([address], [PUBLIC, address]):
        with pytest.raises(EgressError):
            look_up(UNNAMED, answer)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254"])
def test_b11_a_public_name_that_turns_private_is_refused_even_when_named(address):
    with pytest.raises(EgressError):
        look_up(NAMED, [PUBLIC], [address])


def test_a_name_of_the_users_may_be_private_but_not_link_local():
    assert look_up(NAMED, ["10.0.0.1"], ["10.0.0.2"]) == [("10.0.0.1",), ("10.0.0.2",)]
    with pytest.raises(EgressError):
        look_up(NAMED, ["169.254.169.254"])


def test_a_secret_in_the_clear_never_goes_to_a_public_address():
    with pytest.raises(EgressError):
        look_up(replace(NAMED, must_be_private=True), [PUBLIC])


@pytest.mark.parametrize(
    ("denied", "answer"),
    [
        ("10.0.0.7", ["10.0.0.7"]),
        ("10.0.0.7", ["10.0.0.8", "10.0.0.7"]),
        ("10.0.0.7", ["::ffff:10.0.0.7"]),
        ("[fd00::7]", ["fd00::7"]),
        ("localhost", ["127.0.0.1"]),
        ("127.0.0.1", ["127.0.1.1"]),
        ("[::1]", ["127.0.0.1"]),
    ],
)
def test_a_denied_address_is_denied_by_every_name(denied, answer):
    policy = EgressPolicy(deny=(deny_rule(denied, where="test"),))
    named = replace(NAMED, denied=denied_addresses(policy, NAMED.port))
    with pytest.raises(AddressDeniedError):
        look_up(named, answer)
    assert look_up(named, ["10.0.0.9"]) == [("10.0.0.9",)]
    other = EgressPolicy(deny=(deny_rule(f"{denied}:1", where="test"),))
    assert look_up(replace(NAMED, denied=denied_addresses(other, NAMED.port)), answer)


def test_an_answer_without_addresses_is_refused():
    with pytest.raises(EgressError):
        look_up(UNNAMED, [])


@pytest.mark.parametrize("user_named", [True, False])
def test_b11_a_gateway_connects_to_what_was_checked_or_not_at_all(user_named):
    """The listener is really there: the same name reaches it when the user named it."""

    async def scenario() -> tuple[bool, bytes]:
        target = socket.create_server(("127.0.0.1", 0))
        target.setblocking(False)
        provider = Provider(base_url=f"http://model.example:{target.getsockname()[1]}", user_named=user_named)
        server = GatewayServer(
            GatewayConfig(provider=provider, credential=Credential(kind=CredentialKind.API_KEY, value="k")),
            token="t",
            resolve=Names(["127.0.0.1"], ["127.0.0.1"]),
        )
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        await server.serve(listener)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost:%d\r\nx-api-key: t\r\n\r\n" % port)
        loop = asyncio.get_running_loop()
        accepting = asyncio.ensure_future(loop.sock_accept(target))
        answering = asyncio.ensure_future(reader.readline())
        await asyncio.wait({accepting, answering}, return_when=asyncio.FIRST_COMPLETED, timeout=20)
        reached = accepting.done()
        if reached:
            accepting.result()[0].close()
        else:
            accepting.cancel()
        line = await answering
        writer.close()
        target.close()
        await server.close()
        return reached, line

    reached, line = asyncio.run(scenario())
    assert reached is user_named
    assert line.startswith(b"HTTP/1.1 502")


@pytest.fixture
def silent(monkeypatch):
    """Names below .silent.example are asked for until the end of the test."""
    answered, real = threading.Event(), socket.getaddrinfo

    def ask(host, *args, **kwargs):
        if str(host).endswith("silent.example"):
            assert answered.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "nobody answers")
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    yield
    answered.set()


def test_names_that_nobody_answers_for_hold_up_neither_the_users_own_hosts_nor_the_api(silent, tmp_path):
    with origin() as target, MessagesApi([[text("Hello.")]]) as api, contextlib.ExitStack() as stack:
        allowed = allowing("*.silent.example", f"localhost:{target.port}")
        provider = Provider(base_url=f"http://localhost:{api.port}", user_named=True)
        credential = Credential(kind=CredentialKind.API_KEY, value=KEY)
        config = GatewayConfig(provider=provider, credential=credential, policy=allowed)
        gateway = InThread(config, resolve=None)
        stack.callback(gateway.close)
        listener = socket.create_server(("127.0.0.1", 0))
        running = RunningGateway(gateway=gateway, port=listener.getsockname()[1], log=tmp_path)
        gateway.serve(listener)
        for number in range(30):
            client = stack.enter_context(running.connect())
            name = f"n{number}.silent.example:443"
            client.sendall(running.proxied("CONNECT", name, f"Host: {name}"))
        running.tunnel(f"localhost:{target.port}").close()
        assert running.ask(running.head("GET", "/v1/models")).status == 200
