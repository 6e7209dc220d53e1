"""B: network. Every listener is real and hears the host itself before it may count as silent."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clsecure.session.store import session_key
from tests.support.hostile import Ear, Target, canary
from tests.support.leftovers import wait_until
from tests.support.messages_api import MessagesApi, text
from tests.support.names import own_address

pytestmark = pytest.mark.root

METADATA = "169.254.169.254"
# What engines and emulators give the host as seen from inside, and one of each private range.
PRIVATE = ("10.0.2.2", "172.17.0.1", "192.168.122.1", "100.64.0.1")
NETWORKS = ("none", "api", "allowlist")

ATTACK = r"""
import base64, errno, json, os, socket, stat, sys, urllib.parse

plan = json.loads(sys.argv[1])

def attempt(family, kind, address, protocol=0):
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.settimeout(3)
            probe.connect(address)
            probe.send(b"hostile")
            return "sent"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

said = {}
for host in plan["hosts"]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for name, kind in (("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)):
        said[f"{name} {host}"] = attempt(family, kind, (host, plan[name]))
    said[f"icmp {host}"] = attempt(family, socket.SOCK_DGRAM, (host, 0),
        socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP)
    said[f"raw {host}"] = attempt(family, socket.SOCK_RAW, (host, 0), socket.IPPROTO_ICMP)
for name in plan["names"]:
    try:
        said[f"name {name}"] = repr(socket.getaddrinfo(name, 80))
    except OSError as error:
        said[f"name {name}"] = "unknown"
for name in plan["abstract"]:
    said[f"abstract {name}"] = attempt(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + name)
for path in plan["paths"]:
    said[f"path {path}"] = attempt(socket.AF_UNIX, socket.SOCK_STREAM, path)
for name in ("AF_VSOCK", "AF_PACKET", "AF_ALG", "AF_BLUETOOTH", "AF_CAN", "AF_TIPC", "AF_RDS"):
    try:
        socket.socket(getattr(socket, name), socket.SOCK_DGRAM if name == "AF_TIPC" else socket.SOCK_STREAM)
        said[name] = "made"
    except OSError as error:
        said[name] = errno.errorcode[error.errno]
    try:
        socket.socketpair(getattr(socket, name))
        said[f"pair of {name}"] = "made"
    except OSError as error:
        said[f"pair of {name}"] = errno.errorcode[error.errno]
said["vsock"] = attempt(socket.AF_VSOCK, socket.SOCK_STREAM, (plan["vsock"][0], plan["vsock"][1]))
open_ports = []
for port in range(1, 65536):
    with socket.socket() as probe:
        # A socket that is given the very port it asks for is connected to itself.
        if probe.connect_ex(("127.0.0.1", port)) == 0 and probe.getsockname() != probe.getpeername():
            open_ports.append(port)
said["open ports"] = open_ports
said["through"] = attempt(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", plan["through"]))
if "HTTPS_PROXY" in os.environ:
    proxy = urllib.parse.urlsplit(os.environ["HTTPS_PROXY"])
    auth = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
    host = f"host.clsecure.internal:{plan['through']}"
    with socket.create_connection((proxy.hostname, proxy.port), timeout=20) as client:
        request = f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Basic {auth}\r\n\r\n"
        client.sendall(request.encode())
        said["by proxy"] = client.recv(65536).decode().split("\r\n")[0]
said["base url"] = os.environ.get("ANTHROPIC_BASE_URL")
said["interfaces"] = [name for _, name in socket.if_nameindex()]
said["routes"] = open("/proc/net/route").read().splitlines()[1:]
found = []
for top in ("/run", "/tmp", "/var", "/dev", "/home", "/opt", "/srv", "/mnt", "/media", "/root"):
    for place, _, names in os.walk(top):
        for name in names:
            try:
                if stat.S_ISSOCK(os.lstat(os.path.join(place, name)).st_mode):
                    found.append(os.path.join(place, name))
            except OSError:
                pass
said["sockets in sight"] = found
kinds = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM)
said["connected"] = [(path, attempt(socket.AF_UNIX, kind, path)) for path in found for kind in kinds]
print(json.dumps(said))
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What listens on the host while the agents attack, and what two agents of a mode said."""

    target: Target
    ears: dict[str, Ear]
    said: dict[str, dict[str, Any]]
    own_vsock: bool
    requests: int

    def about(self, *kinds: str) -> Iterator[tuple[str, str]]:
        """What became of the attempts of some kinds, in each network."""
        for network in NETWORKS:
            found = [(name, end) for name, end in self.said[network].items() if name.split(" ")[0] in kinds]
            assert found
            yield from ((f"{network}: {name}", end) for name, end in found)

    def silent(self, *names: str) -> None:
        """Fail when one of the listeners heard something but its control, or has gone deaf meanwhile."""
        for name in names:
            assert self.ears[name].heard == [], name
            self.ears[name].control()


def own_addresses() -> list[str]:
    """Return what the machine is called in its networks, docker's bridge among them where there is one."""
    listed = json.loads(subprocess.run(["ip", "-j", "addr"], check=True, capture_output=True).stdout)
    found = [info["local"] for interface in listed for info in interface["addr_info"] if "local" in info]
    return [address for address in dict.fromkeys(found) if not address.startswith("fe80:")]


def answers(host: str, port: int) -> bool:
    """Connect to an address of the machine; False for one that it has no more: other tests give it theirs."""
    try:
        with socket.create_connection((host, port), timeout=20):
            return True
    except OSError:
        if host in own_addresses():
            raise
        return False


def vsock_listener() -> socket.socket | None:
    """Listen where the kernel can speak vsock to itself."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        listener.listen()
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
            probe.settimeout(3)
            probe.connect((1, listener.getsockname()[1]))
        listener.accept()[0].close()
    except OSError:
        listener.close()
        return None
    listener.setblocking(False)
    return listener


@pytest.fixture(scope="session")
def world(target: Target) -> Iterator[World]:
    """Let an agent attack everything that there is, without a network and with the default one."""
    abstract = f"clsecure-test-{secrets.token_hex(6)}"
    with contextlib.ExitStack() as stack:
        lan = f"10.213.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"
        stack.enter_context(own_address(lan, METADATA, *PRIVATE, "fd00:c15e:c05e::1"))
        ears = {
            "tcp": Ear(("0.0.0.0", 0)),
            "udp": Ear(("0.0.0.0", 0), kind=socket.SOCK_DGRAM),
            "abstract": Ear(f"\0{abstract}", socket.AF_UNIX),
        }
        ears["tcp6"] = Ear(("::", ears["tcp"].port), socket.AF_INET6)
        ears["through"] = Ear(("127.0.0.1", 0))
        places = [Path(top, f"{abstract}.sock") for top in ("/run", "/tmp", "/var/tmp", "/dev/shm")]
        for place in [*places, target.person.home / f"{abstract}.sock"]:
            ears[f"path {place}"] = Ear(str(place), socket.AF_UNIX)
            place.chmod(0o777)
            stack.callback(place.unlink, missing_ok=True)
        for ear in ears.values():
            stack.enter_context(ear)
        hosts = [host for host in own_addresses() if answers(host, ears["tcp"].port)]
        assert {"127.0.0.1", lan, METADATA, *PRIVATE} <= {*hosts}
        both = (ears["tcp"], ears["tcp6"])
        # Their threads may not have come to it yet, and what is heard from here on is the agents'.
        wait_until(lambda: sum(len(ear.heard) for ear in both) == len(hosts), "all that was said is heard")
        vsock = vsock_listener()
        if vsock is not None:
            stack.enter_context(vsock)
        api = stack.enter_context(MessagesApi([[text("hello")]]))
        for ear in ears.values():
            del ear.heard[:]
        plan = {
            "hosts": [*hosts, "1.1.1.1", "2606:4700:4700::1111", "224.0.0.1"],
            "through": ears["through"].port,
            "tcp": ears["tcp"].port,
            "udp": ears["udp"].port,
            "names": [
                "host.containers.internal",
                "host.docker.internal",
                "example.com",
                socket.gethostname(),
            ],
            "abstract": [abstract],
            "paths": [
                *(name.removeprefix("path ") for name in ears if name.startswith("path ")),
                "/run/dbus/system_bus_socket",
                "/var/run/docker.sock",
                "/run/systemd/private",
                "/dev/log",
            ],
            "vsock": [1, vsock.getsockname()[1]] if vsock else [2, 1024],
        }
        env = {"ANTHROPIC_API_KEY": canary(), "ANTHROPIC_BASE_URL": api.url}
        said = {
            "none": target.python(ATTACK, json.dumps(plan)).evidence,
            "api": dataclasses.replace(target, options=()).python(ATTACK, json.dumps(plan), env=env).evidence,
        }
        assert not ears["tcp"].heard, ears["tcp"].heard
        assert not ears["through"].heard, ears["through"].heard
        # Allowed are the listeners themselves, and somebody outside: through the gateway, and not past it.
        allowed = ("1.1.1.1", *(f"127.0.0.1:{ears[name].port}" for name in ("tcp", "through")))
        with_hosts = dataclasses.replace(target, options=tuple(f"--allow-domain={host}" for host in allowed))
        said["allowlist"] = with_hosts.python(ATTACK, json.dumps(plan), env=env).evidence
        assert not ears["tcp"].heard, ears["tcp"].heard
        yield World(
            target=target, ears=ears, said=said, own_vsock=vsock is not None, requests=len(api.requests)
        )
        if vsock is not None:
            with pytest.raises(BlockingIOError):
                vsock.accept()


def test_b1_no_network_is_total(world):
    """Every protocol that there is, to the host's loopback, its other addresses and the world."""
    for name, end in world.about("tcp", "udp", "icmp", "raw"):
        # A datagram to the sandbox's own loopback is sent; whether it left, the listener says.
        own = name.endswith((" 127.0.0.1", " ::1")) and " tcp " not in name
        assert end not in ("timed out", "" if own else "sent"), name
    for network in NETWORKS:
        assert world.said[network]["interfaces"] == ["lo"]
        assert world.said[network]["routes"] == []
    world.silent("tcp", "tcp6", "udp")


def test_b1_families_beside_ip_are_closed(world):
    """vsock to the hypervisor or the host, packet sockets, kernel crypto, Bluetooth, CAN and the like."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM):
        pass  # made on the host: it is not the kernel that lacks it
    for name, end in world.about(
        "AF_VSOCK", "AF_PACKET", "AF_ALG", "AF_BLUETOOTH", "AF_CAN", "AF_TIPC", "vsock"
    ):
        assert end in ("EPERM", "EAFNOSUPPORT", "ENOTSUP", "EOPNOTSUPP"), name
    for network in NETWORKS:
        assert world.said[network]["AF_VSOCK"] == world.said[network]["AF_PACKET"] == "EPERM"
    # Of a pair the kernel makes both sockets before it says that the family has none.
    assert {end for _, end in world.about("pair")} == {"EPERM"}


def test_b2_the_hosts_addresses_are_refused(world):
    """Loopback, the LAN address, docker0's and slirp's, and the names that engines give the host."""
    for name, end in world.about("tcp"):
        assert end in ("ECONNREFUSED", "ENETUNREACH", "EADDRNOTAVAIL", "EHOSTUNREACH"), name
    for name, end in world.about("name"):
        assert end == "unknown" or not any(address in end for address in PRIVATE), name
    world.silent("tcp", "tcp6")


def test_b3_metadata_and_private_ranges_get_nothing(world):
    """The cloud's metadata address and each private range, all of them really there on the host."""
    for network in NETWORKS:
        for host in (METADATA, *PRIVATE):
            assert world.said[network][f"tcp {host}"] == "ENETUNREACH"
            assert world.said[network][f"udp {host}"] == "ENETUNREACH"
    world.silent("tcp", "udp")


def test_b4_unix_sockets_of_the_host(world):
    """An abstract socket, world-writable sockets in every shared directory, and the system's own."""
    for name, end in world.about("abstract"):
        assert end in ("ECONNREFUSED", "EPERM"), name
    for name, end in world.about("path"):
        assert end in ("ENOENT", "EACCES"), name
    for network in NETWORKS:
        assert world.said[network]["sockets in sight"] == world.target.own_sockets
        # The way to the host before the start: the helper has closed it.
        assert {end for _, end in world.said[network]["connected"]} <= {"ECONNREFUSED", "EPROTOTYPE"}
    world.silent("abstract", *(name for name in world.ears if name.startswith("path ")))


def test_b5_ignoring_the_proxy_leads_nowhere(world):
    """Raw sockets past the gateway: its port is the only one that is open, and without it none is."""
    assert world.said["none"]["open ports"] == []
    assert world.said["none"]["base url"] is None
    (port,) = world.said["api"]["open ports"]
    assert world.said["api"]["base url"] == f"http://127.0.0.1:{port}"
    assert world.said["api"]["tcp 1.1.1.1"] == "ENETUNREACH"
    assert world.requests == 0
    (port,) = world.said["allowlist"]["open ports"]
    assert world.said["allowlist"]["tcp 1.1.1.1"] == "ENETUNREACH"
    # The one listener that an agent heard of: by the gateway, where the user allowed it, once.
    assert [world.said[network]["through"] for network in NETWORKS] == ["ECONNREFUSED"] * 3
    assert "by proxy" not in world.said["none"]
    assert world.said["api"]["by proxy"].startswith("HTTP/1.1 403 ")
    assert len(world.ears["through"].heard) == 1


CHANNELS = r"""
import http.client, json, os, sys, urllib.parse

url = urllib.parse.urlsplit(os.environ["ANTHROPIC_BASE_URL"])
ours = {"authorization": "Bearer " + os.environ["ANTHROPIC_AUTH_TOKEN"]}
elsewhere = sys.argv[1]
message = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}

def ask(method, path, headers=ours, **body):
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=20)
    connection.request(method, path, json.dumps({**message, **body}) if method == "POST" else None,
        {"content-type": "application/json", **headers})
    answer = connection.getresponse()
    answer.read()
    return answer.status

image = {"type": "image", "source": {"type": "url", "url": elsewhere}}
fetch = {"type": "web_fetch_20250910", "name": "web_fetch"}
said = {
    "control": ask("POST", "/v1/messages"),
    "foreign key": ask("POST", "/v1/messages", {"x-api-key": "sk-ant-somebody-elses"}),
    "foreign key beside ours": ask("POST", "/v1/messages", {**ours, "x-api-key": "sk-ant-somebody-elses"}),
    "files": ask("POST", "/v1/files"),
    "batches": ask("POST", "/v1/messages/batches"),
    "dots": ask("POST", "/v1/models/../files"),
    "absolute": ask("GET", elsewhere),
    "connect": ask("CONNECT", elsewhere.removeprefix("http://")),
    "other host": ask("POST", "/v1/messages", {**ours, "host": elsewhere.removeprefix("http://")}),
    "web_fetch": ask("POST", "/v1/messages", tools=[fetch]),
    "web_search": ask("POST", "/v1/messages", tools=[{"type": "web_search_20250305", "name": "web_search"}]),
    "code": ask("POST", "/v1/messages", tools=[{**fetch, "type": "code_execution_20250522"}]),
    "mcp": ask("POST", "/v1/messages", mcp_servers=[{"type": "url", "url": elsewhere, "name": "x"}]),
    "url source": ask("POST", "/v1/messages", messages=[{"role": "user", "content": [image]}]),
}
print(json.dumps(said))
"""


def test_b10_the_allowed_api_is_no_channel(target):
    """A foreign key, other paths, another host, and bodies that make the provider fetch for the agent."""
    key = canary()
    with MessagesApi([[text("hello")]]) as api, Ear(("127.0.0.1", 0)) as elsewhere:
        env = {"ANTHROPIC_API_KEY": key, "ANTHROPIC_BASE_URL": api.url}
        attack = dataclasses.replace(target, options=()).python(
            CHANNELS, f"http://127.0.0.1:{elsewhere.port}", env=env
        )
        assert elsewhere.heard == []
        assert [(r.method, r.target) for r in api.requests] == [("POST", "/v1/messages")]
        assert api.requests[0].headers["x-api-key"] == key
    said = attack.evidence
    assert said.pop("control") == 200
    assert all(400 <= status < 500 for status in said.values()), said
    place = target.person.home / ".local/state/clsecure/sessions"
    log = place / session_key(str(target.repository), target.session) / "egress.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()][-len(said) - 1 :]
    assert [line["decision"] for line in lines].count("deny") == len(said)
    assert {
        (line["bytes_in"] > 0, line["bytes_out"] > 0) for line in lines if line["decision"] == "allow"
    } == {(True, True)}
    assert key not in log.read_text() + attack.outcome.errors + attack.outcome.text


def test_b10_provider_tools_are_the_users_to_allow(target):
    """What makes the provider reach out passes when the user allowed it; everything else stays closed."""
    key = canary()
    with MessagesApi([[text("hello")]]) as api, Ear(("127.0.0.1", 0)) as elsewhere:
        env = {"ANTHROPIC_API_KEY": key, "ANTHROPIC_BASE_URL": api.url}
        with_tools = dataclasses.replace(target, options=("--provider-tools",))
        said = with_tools.python(CHANNELS, f"http://127.0.0.1:{elsewhere.port}", env=env).evidence
        assert elsewhere.heard == []
        assert {request.target for request in api.requests} == {"/v1/messages"}
        assert {request.headers["x-api-key"] for request in api.requests} == {key}
    passed = {name for name, status in said.items() if status == 200}
    assert passed == {"control", "web_fetch", "web_search", "code", "mcp", "url source"}
    assert all(400 <= said[name] < 500 for name in said.keys() - passed), said


def test_b13_helpers_outside_keep_quiet(target):
    """Every URL that git, npm or a shell could follow on the host for the agent points to a listener."""
    person = target.person
    with Ear(("127.0.0.1", 0)) as ear:
        url = f"http://127.0.0.1:{ear.port}"
        repository = person.repository(f"b13-{target.mode}")
        mine = dataclasses.replace(target, repository=repository)
        for key, value in {
            "remote.origin.url": f"{url}/origin.git",
            "remote.origin.fetch": "+refs/heads/*:refs/remotes/origin/*",
            "branch.main.remote": "origin",
            "branch.main.merge": "refs/heads/main",
            "fetch.recurseSubmodules": "true",
            "push.default": "current",
            "lfs.url": f"{url}/lfs",
            "core.hooksPath": "hooks",
        }.items():
            person.git(repository, "config", key, value)
        call = f"#!/bin/sh\nexec 3<>/dev/tcp/127.0.0.1/{ear.port}\ncurl -s {url}/hook\n".encode()
        call = call.replace(b"/bin/sh", b"/bin/bash")
        person.run(["mkdir", str(repository / "hooks")]).check()
        for hook in (
            "npm",
            "python3",
            "git",
            "post-checkout",
            "post-merge",
            "pre-commit",
            "reference-transaction",
            "post-index-change",
        ):
            person.write(repository / "hooks" / hook, call, mode=0o755)
        person.write(repository / ".gitmodules", f'[submodule "x"]\n\tpath = x\n\turl = {url}/x\n'.encode())
        person.write(repository / ".npmrc", f"registry={url}\n".encode())
        person.write(repository / "package.json", b'{"scripts": {"postinstall": "./hooks/pre-commit"}}\n')
        person.write(repository / ".envrc", call)
        person.git(repository, "add", ".")
        person.run(
            ["git", "-c", "core.hooksPath=/nonexistent", "commit", "-qm", "trap"], cwd=repository
        ).check()
        # The traps work: the person's own git runs the hook, and asks the remote.
        for words in (["ls-remote", "origin"], ["checkout", "-q", "main"]):
            before = len(ear.heard)
            person.run(["git", *words], cwd=repository, timeout=60)
            assert len(ear.heard) > before, words
        del ear.heard[:]
        agents = f"""
        git config remote.evil.url {url}/evil.git; git config remote.evil.promisor true
        git config extensions.partialClone evil; git config core.fsmonitor '{repository}/hooks/pre-commit'
        git config core.hooksPath /nonexistent
        echo '*.txt filter=lfs' >.gitattributes; echo more >more.txt; git add .
        git -c core.fsmonitor=false commit -qm more; echo uncommitted >>more.txt; true
        """
        done = mine.attack(agents, finish="import")
        assert done.result["import"]["branch"]
        person.clsecure("diff", "default", cwd=repository)
        person.clsecure("cleanup", "default", "--yes", cwd=repository)
        # Presets ask the user's tools: nothing of the repository is run or believed, and nobody is called.
        presets = person.clsecure(
            "--dry-run", "--allow-preset=npm,pip,git-remote", cwd=repository,
            env={
                "PATH": f"{repository}/hooks:.:{person.environment()['PATH']}",
                "npm_config_registry": "https://registry.example.org/",
                "PIP_INDEX_URL": "https://registry.example.org/simple",
            },
        ).check()  # fmt: skip
        lines = [line for line in presets.errors.splitlines() if line.startswith("allowed ")]
        assert any("registry.example.org" in line for line in lines)
        # Of the listener only what the person's own remote says.
        (named,) = [line for line in lines if str(ear.port) in line]
        assert "remote origin" in named
        assert ear.heard == []
        ear.control()
