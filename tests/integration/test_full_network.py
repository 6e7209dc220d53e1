"""``--allow-network``: the internet, and none of this machine's or its neighbours' addresses.

Both programs that can connect it are tried: pasta, and slirp4netns on a machine without pasta.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support import sweep
from tests.support.hostile import Target, canary
from tests.support.leftovers import started, traces, wait_until
from tests.support.messages_api import MessagesApi, text
from tests.support.overlaid import overlaid
from tests.support.person import Person

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("full_network")]

HOST = ("198.51.100.1", "10.99.99.1")
HOST_RANGE = "203.0.113.7"
"""In a range that is routed to the host itself, without being an address of any interface."""
HOST6 = ("2001:db8:99::1", "fd99::1")
INTERNET, INTERNET6 = "198.51.100.2", "2001:db8:99::2"
PRIVATE, PRIVATE6 = ("10.99.98.2", "172.31.98.2", "192.168.98.2", "100.64.98.2"), "fd99::2"
METADATA, METADATA6 = ("169.254.170.2", "100.100.100.200", "168.63.129.16"), "fd00:ec2::254"
RESERVED = ("192.0.0.192", "198.18.0.2", "240.0.0.2")
RESOLVERS, NAME = (HOST[0], "127.0.77.53"), "files.example.test"
CONNECTORS = {name: shutil.which(name) for name in ("pasta", "slirp4netns")}
# What a connection to each address gets to read, or the error's name.
PROBE = """
import json, socket, sys
port, found = int(sys.argv[1]), {}
for host in sys.argv[2:]:
    try:
        with socket.create_connection((host, port), timeout=20) as connection:
            found[host] = connection.recv(100).decode()
    except OSError as error:
        found[host] = type(error).__name__
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Outside:
    """Listeners on one port: on all of the host, and in a network of its own for what is not the host."""

    port: int


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def serve(listener: socket.socket, word: bytes) -> None:
    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(word)

    threading.Thread(target=answer, daemon=True).start()


def listen(port: int) -> socket.socket:
    return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)


def listen_in(namespace: str, port: int) -> socket.socket:
    """Return a listener of another network namespace: a thread enters it, the socket stays there."""
    made: list[socket.socket] = []

    def enter() -> None:
        fd = os.open(namespace, os.O_RDONLY)
        assert ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000) == 0
        os.close(fd)
        made.append(listen(port))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return made[0]


def connect_with_the_host(there: int, ours: str, theirs: str) -> None:
    """Give the host and the network namespace of a process all addresses, and a way to each other."""
    inside = ("nsenter", "--net", f"--target={there}", "ip")
    run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", str(there))
    for address in (f"{HOST[0]}/24", f"{HOST[1]}/32"):
        run("ip", "address", "add", address, "dev", ours)
    for address in HOST6:
        run("ip", "address", "add", f"{address}/64", "dev", ours, "nodad")
    run("ip", "link", "set", ours, "up")
    run("ip", "route", "add", "local", f"{HOST_RANGE}/32", "dev", ours)
    run(*inside, "address", "add", f"{INTERNET}/24", "dev", theirs)
    for address in (INTERNET6, PRIVATE6):
        run(*inside, "address", "add", f"{address}/64", "dev", theirs, "nodad")
    for device in ("lo", theirs):
        run(*inside, "link", "set", device, "up")
    for address in (*PRIVATE, *METADATA, *RESERVED, METADATA6):
        run(*inside, "address", "add", address, "dev", "lo")
        run("ip", "route", "add", address, "via", INTERNET6 if ":" in address else INTERNET, "dev", ours)


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    """Put up everything that is to be reached or not, each reachable from the host."""
    ours, theirs = f"cl{os.getpid() % 100000}a", f"cl{os.getpid() % 100000}b"
    # The namespace ends with the test process, however that ends, and the link with it.
    with subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE) as there:
        namespace = f"/proc/{there.pid}/ns/net"
        own = Path("/proc/self/ns/net").readlink()
        wait_until(lambda: Path(namespace).readlink() != own, "the other network is there")
        connect_with_the_host(there.pid, ours, theirs)
        with listen(0) as host:
            port = host.getsockname()[1]
            with listen_in(namespace, port) as elsewhere:
                serve(host, b"host")
                serve(elsewhere, b"elsewhere")
                for address in RESOLVERS:
                    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    server.bind((address, 53))
                    threading.Thread(target=answer_names, args=(server,), daemon=True).start()
                yield Outside(port=port)
        run("ip", "link", "delete", ours)


@pytest.fixture(scope="module", autouse=True)
def _open_tun() -> Iterator[None]:
    """Let plain users open the device, as udev does; machines without udev keep it shut."""
    tun = Path("/dev/net/tun")
    before = tun.stat().st_mode
    tun.chmod(before | 0o666)
    yield
    tun.chmod(before)


@pytest.fixture(params=CONNECTORS)
def connector(request: pytest.FixtureRequest) -> str:
    return installed(request.param)


def installed(connector: str) -> str:
    if CONNECTORS[connector] is None:
        pytest.skip(f"left out: {connector} is not installed")
    return connector


def without(*connectors: str, nothing: Path) -> dict[str, Path]:
    """Return what lies over the machine's programs, so that these are not there."""
    return {path: nothing for name in connectors if (path := CONNECTORS[name]) is not None}


@pytest.fixture(params=["user", "namespace"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def nothing(tmp_path: Path) -> Path:
    """Return a file that lies over a program which is not to be there."""
    tmp_path.chmod(0o755)
    file = tmp_path / "nothing"
    file.touch(mode=0o644)
    return file


@pytest.fixture
def target(person: Person, mode: str, connector: str, nothing: Path) -> Target:
    """Sessions with full network, on a machine that has one of the two."""
    others = CONNECTORS.keys() - {connector}
    path = person.home / f"full-{mode}-{connector}"
    return Target(
        person=overlaid(person, without(*others, nothing=nothing)),
        mode=mode,
        repository=path if path.exists() else person.repository(path.name),
        options=("--agent", "demo", "--allow-network"),
    )


def read_from_the_host(address: str, port: int) -> str:
    with socket.create_connection((address, port), timeout=5) as control:
        return control.recv(100).decode()


def test_the_host_itself_reaches_all_of_them(outside: Outside) -> None:
    """The control of what follows: every address is really there."""
    for address in (*HOST, HOST_RANGE, *HOST6, "127.0.0.1", "::1"):
        assert read_from_the_host(address, outside.port) == "host", address
    for address in (INTERNET, INTERNET6, *PRIVATE, PRIVATE6, *METADATA, METADATA6, *RESERVED):
        assert read_from_the_host(address, outside.port) == "elsewhere", address


@pytest.mark.parametrize("private", [False, True], ids=["public", "private"])
def test_the_internet_is_reached_and_nothing_of_this_machine(
    target: Target, connector: str, outside: Outside, *, private: bool
) -> None:
    """With ``--allow-private`` neighbours are reached, too; this machine and metadata services are not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((INTERNET, 9))
        assert probe.getsockname()[0] in HOST
        probe.connect(("1.1.1.1", 9))
        own = probe.getsockname()[0]
    opened, closed = {INTERNET}, {*HOST, HOST_RANGE, own, *HOST6, "127.0.0.1", "::1", "169.254.1.2"}
    closed |= {*METADATA, METADATA6, *RESERVED}
    (opened if private else closed).update(PRIVATE)
    # slirp4netns speaks IPv4 only.
    (opened if connector == "pasta" else closed).add(INTERNET6)
    (opened if connector == "pasta" and private else closed).add(PRIVATE6)
    options = ["--allow-private"] if private else []
    probe_all = ["/usr/bin/python3", "-I", "-c", PROBE, str(outside.port), *sorted(opened | closed)]
    found = target.attack(probe_all, *options).evidence
    assert {address for address, answer in found.items() if answer == "elsewhere"} == opened
    assert "host" not in found.values(), found


@pytest.mark.parametrize("resolver", RESOLVERS, ids=["lan", "loopback"])
def test_names_are_resolved_by_the_hosts_own_resolver(
    target: Target, outside: Outside, tmp_path: Path, resolver: str
) -> None:
    """On the LAN, or on the host's loopback as with systemd-resolved; neither can be reached by itself."""
    settings = tmp_path / "resolv.conf"
    settings.write_text(f"nameserver {resolver}\n")
    there = {**target.person.over, "/etc/resolv.conf": settings}  # type: ignore[attr-defined]
    target = replace(target, person=overlaid(target.person, there))
    assert target.python(PROBE, str(outside.port), NAME).evidence == {NAME: "elsewhere"}


def answer_names(server: socket.socket) -> None:
    """Say that every name is the internet's stand-in."""
    with contextlib.suppress(OSError):
        while True:
            query, client = server.recvfrom(4096)
            end = query.index(b"\0", 12) + 5
            kind = struct.unpack("!H", query[end - 4 : end - 2])[0]
            answers = 1 if kind == 1 else 0
            head = query[:2] + struct.pack("!HHHHH", 0x8180, 1, answers, 0, 0)
            record = struct.pack("!HHHLH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(INTERNET)
            server.sendto(head + query[12:end] + record * answers, client)


ASK = """
import http.client, json, os, socket, sys, urllib.parse
url = urllib.parse.urlsplit(os.environ["ANTHROPIC_BASE_URL"])
connection = http.client.HTTPConnection(url.hostname, url.port, timeout=20)
body = json.dumps({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]})
ours = {"authorization": "Bearer " + os.environ["ANTHROPIC_AUTH_TOKEN"]}
connection.request("POST", "/v1/messages", body, {"content-type": "application/json", **ours})
said = {"status": connection.getresponse().status, "environment": dict(os.environ)}
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as direct:
    said["direct"] = direct.recv(100).decode()
print(json.dumps(said))
"""


def test_the_models_api_is_reached_by_the_gateway_and_the_key_stays_outside(
    target: Target, outside: Outside
) -> None:
    """Everything else goes out directly: no proxy is named inside."""
    key = canary()
    with MessagesApi([[text("hello")]]) as api:
        env = {"ANTHROPIC_API_KEY": key, "ANTHROPIC_BASE_URL": api.url}
        attack = replace(target, options=("--allow-network",)).python(
            ASK, INTERNET, str(outside.port), env=env
        )
        assert [request.headers["x-api-key"] for request in api.requests] == [key]
    said = attack.evidence
    assert said["status"] == 200
    assert said["direct"] == "elsewhere"
    assert key not in attack.said
    assert not [name for name in said["environment"] if "proxy" in name.lower()]


@pytest.mark.parametrize("how", ["end", "kill"])
def test_nothing_of_the_network_is_left(target: Target, connector: str, outside: Outside, how: str) -> None:
    """No process, no namespace, no rule: after the session's end, and after kill -9 of the command line."""
    with target.live(f"echo up; {connect(outside)}; read _") as agent:
        agent.wait_for("elsewhere")
        account = target.account()
        handles = traces(agent.process.pid, worker=str(account["name"]), uid=int(account["uid"]))
        running = connectors(target.person, connector)
        assert running <= {pid for pid, _ in handles.processes}
        assert running
        assert "clsecure" not in rules()
        if how == "kill":
            agent.process.kill()
            agent.process.wait()
        else:
            assert not any("ended" in said for said in agent.finish().json()["warnings"])
        handles.assert_gone(within=30)
    assert "clsecure" not in rules()
    target.person.clsecure("cleanup", "--yes", str(account["name"]))


NETWORK = """
import sys, time
from clsecure.egress.full import FullNetwork
print("begins", flush=True)
with FullNetwork(sys.argv[1]) as network:
    print("stands", flush=True)
    if len(sys.argv) > 2:
        time.sleep(60)
"""


def test_a_network_that_is_closed_at_once_leaves_nothing(person: Person, connector: str) -> None:
    """As by a session that is refused for something else right after."""
    for _ in range(5):
        said = person.run([sys.executable, "-I", "-c", NETWORK, connector]).check().text
        assert said.split() == ["begins", "stands"]
        assert connectors(person, connector) == set()
        assert programs_of(person, "cat") == set()


def test_a_kill_at_any_moment_of_the_start_leaves_nothing(person: Person, connector: str) -> None:
    """Killed with -9 from the first program's start to the moment at which everything stands, and later."""
    for milliseconds in range(0, 60, 4):
        process = person.spawn(
            [sys.executable, "-I", "-c", NETWORK, connector, "stay"], stdout=subprocess.PIPE
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begins\n"
            time.sleep(milliseconds / 1000)  # the moment of the kill, no wait for anything
            process.kill()
        wait_until(lambda: not connectors(person, connector), f"{connector} ends", 20)
        wait_until(lambda: not programs_of(person, "cat") | programs_of(person, "unshare"), "all end", 20)


def test_a_pasta_that_fails_early_leaves_nothing(person: Person, tmp_path: Path) -> None:
    """Its child would wait for a signal from it for ever."""
    program = CONNECTORS[installed("pasta")]
    assert program is not None
    real, failing = person.home / "real" / "pasta", tmp_path / "failing"
    person.run(["mkdir", str(real.parent)]).check()
    person.run(["cp", program, str(real)]).check()
    failing.write_text(
        f'#!/bin/sh\n{real} "$@" &\n'
        'until read -r child </proc/$!/task/$!/children || [ "$child" ]; do :; done\nkill -9 $!\nexit 1\n'
    )
    failing.chmod(0o755)
    done = overlaid(person, {program: failing}).run([sys.executable, "-I", "-c", NETWORK, "pasta"])
    assert "there is no way to a full network here" in done.errors
    assert programs_of(person, "pasta") == set()


def test_without_its_connector_a_session_has_no_network(
    target: Target, connector: str, outside: Outside
) -> None:
    """Killed with -9: the way out closes, and the session goes on to its end."""
    script = f"{connect(outside)}; echo; read _; {connect(outside)}; echo over"
    with target.live(script) as agent:
        agent.wait_for("elsewhere")
        running = connectors(target.person, connector)
        for pid in running:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(started, running)), "it is killed")
        before = agent.said.count(b"elsewhere")
        agent.say("go")
        agent.wait_for("over")
        assert agent.said.count(b"elsewhere") == before == 1
        outcome = agent.finish()
        assert outcome.returncode == 0
        warnings = outcome.json()["warnings"]
        assert [said for said in warnings if said.startswith(f"{connector} ended before")], warnings


def connect(outside: Outside) -> str:
    """Return the agent's command that prints what the internet's stand-in says."""
    return f"timeout 20 bash -c 'cat </dev/tcp/{INTERNET}/{outside.port}'"


def rules() -> str:
    """Return the packet filter of the host itself."""
    return subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout


def connectors(person: Person, name: str) -> set[int]:
    """Return the person's processes that connect a network; pasta is a name of passt's."""
    return programs_of(person, "passt" if name == "pasta" else name)


def programs_of(person: Person, name: str) -> set[int]:
    """Return the person's processes whose program's name begins so."""
    found = set()
    for pid in sweep.processes_of(person.uid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/exe").readlink().name.startswith(name):
                found.add(pid)
    return found


def test_without_any_of_the_two_the_session_says_what_to_install(person: Person, nothing: Path) -> None:
    target = Target(
        person=overlaid(person, without(*CONNECTORS, nothing=nothing)),
        mode="namespace",
        repository=person.repository("full-none"),
        options=("--agent", "demo", "--allow-network"),
    )
    words = target.refused().text
    assert "neither pasta nor slirp4netns is installed" in words
    assert "passt" in words


def test_a_machine_that_restricts_user_namespaces_is_named(
    person: Person, nothing: Path, tmp_path: Path
) -> None:
    """Ubuntu's restriction, as far as it can be had here: unshare is not permitted, and a setting says so."""
    installed("slirp4netns")
    refusing, zero = tmp_path / "unshare", tmp_path / "zero"
    refusing.write_text("#!/bin/sh\necho 'unshare: write failed /proc/self/uid_map' >&2\nexit 1\n")
    refusing.chmod(0o755)
    zero.write_text("0\n")
    there = {
        **without("pasta", nothing=nothing),
        "/usr/bin/unshare": refusing,
        "/proc/sys/user/max_user_namespaces": zero,
    }
    target = Target(
        person=overlaid(person, there),
        mode="namespace",
        repository=person.repository("full-restricted"),
        options=("--agent", "demo", "--allow-network"),
    )
    words = target.refused().text
    assert "unshare: write failed" in words
    assert "user.max_user_namespaces" in words
    assert "sysctl" in words
    table = target.person.clsecure("doctor").text
    assert "by slirp4netns" in table
    assert "user.max_user_namespaces" in table


def test_info_tries_this_machine_through_the_open_network(target: Target) -> None:
    """What was opened is said to be open; this machine's own services are still out of reach."""
    person = target.person
    document = (
        person.clsecure("info", "--mode", target.mode, "--allow-network", "--output", "json").check().json()
    )
    assert (document["network"], document["holds"]) == ("full", True)
    rows = {row["property"]: row for row in document["rows"]}
    assert rows["the internet is open, as you said"]["status"] == "not enforced here"
    for property_ in ("services on this machine's loopback are out of reach",
                      "services on this machine's other addresses, too",
                      "local sockets of this machine are out of reach"):  # fmt: skip
        assert rows[property_]["status"] == "held", rows[property_]
