"""B1 to B5: what the host sees of a sandbox's network, and which of it stops the start."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clsecure.backends.api import NetworkFacts, ProcessFacts
from clsecure.model import CheckResult, CheckStatus, IsolationMode, NetworkPolicy, SandboxSpec, WorkerAccount
from clsecure.privileged.root import facts as root_facts
from clsecure.privileged.root import network as root_network
from clsecure.privileged.root.network import CLOSED, FILTER, NFT, PRIVATE, RESOLVER
from clsecure.verify.host import check_barrier

ACCOUNT = WorkerAccount(name="claude-worker-x", uid=1_900_000_000, gid=1_900_000_000, home=Path("/home/x"))
OFFLINE = SandboxSpec(mode=IsolationMode.USER, account=ACCOUNT)
SERVED = dataclasses.replace(OFFLINE, listener=True, network=NetworkPolicy.API)
FULL = dataclasses.replace(OFFLINE, network=NetworkPolicy.FULL, network_namespace=9)
LOOPBACK = NetworkFacts(interfaces=("lo",), routes=("lo",), ports=(), sockets=())


def seen(spec: SandboxSpec, check: str, **known: Any) -> CheckResult:
    facts = ProcessFacts(
        pid=1, status={}, namespaces={}, host_namespaces={}, mountinfo=(), descriptors={}, executable="",
        landlock_abi=0, seccomp_filter=False, **known,
    )  # fmt: skip
    (found,) = [each for each in check_barrier(facts, spec) if each.check_id == check]
    return found


def network(**changed: Any) -> NetworkFacts:
    return dataclasses.replace(LOOPBACK, **changed)


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (OFFLINE, LOOPBACK),
        (SERVED, network(routes=())),
        # What the kernel makes in every namespace when a module is loaded.
        (OFFLINE, network(interfaces=("ip6tnl0", "lo", "sit0", "tunl0"))),
        (FULL, network(interfaces=("eth0", "lo"), routes=("eth0", "lo"))),
        (FULL, network(interfaces=("lo", "tap0"), routes=("tap0",))),
    ],
)
def test_a_network_as_it_was_planned_passes(spec: SandboxSpec, found: NetworkFacts) -> None:
    assert seen(spec, "network-interfaces", network=found).status is CheckStatus.PASS


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (OFFLINE, network(interfaces=("eth0", "lo"))),
        (OFFLINE, network(routes=("eth0", "lo"))),
        (OFFLINE, network(interfaces=("lo", "tunl0"), routes=("tunl0",))),
        (SERVED, network(interfaces=("lo", "tap0"), routes=("tap0",))),
        (OFFLINE, network(interfaces=())),
        (OFFLINE, None),
        (FULL, LOOPBACK),
        (FULL, network(interfaces=("eth0", "docker0", "lo"), routes=("docker0", "eth0"))),
    ],
)
def test_another_way_out_fails(spec: SandboxSpec, found: NetworkFacts | None) -> None:
    assert seen(spec, "network-interfaces", network=found).status is CheckStatus.FAIL


def test_only_what_the_gateway_serves_may_listen() -> None:
    assert seen(OFFLINE, "listeners", network=LOOPBACK).status is CheckStatus.PASS
    served = {"network": network(ports=(4711,)), "port": 4711}
    assert seen(SERVED, "listeners", **served).status is CheckStatus.PASS
    for spec, port, found in (
        (OFFLINE, None, network(ports=(22,))),
        (OFFLINE, None, network(sockets=("@/tmp/.X11-unix/X0",))),
        (OFFLINE, None, network(datagrams=("udp 53",))),
        (SERVED, 4711, network(ports=(4711,), datagrams=("packet",))),
        (OFFLINE, 4711, network(ports=(4711,))),
        (SERVED, 4711, network(ports=(22, 4711))),
        (SERVED, 4711, LOOPBACK),
        (OFFLINE, None, None),
    ):
        result = seen(spec, "listeners", network=found, port=port)
        assert result.status is CheckStatus.FAIL, result
    assert (
        "@/tmp/.X11-unix/X0"
        in seen(OFFLINE, "listeners", network=network(sockets=("@/tmp/.X11-unix/X0",))).observed
    )


def no_answer(_: int) -> set[int]:
    raise FileNotFoundError


@pytest.mark.parametrize("asked", [True, False], ids=["by sock_diag", "by the table"])
def test_the_host_sees_the_network_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, asked: bool
) -> None:
    """Of this one's, in which something listens."""
    if not asked:
        monkeypatch.setattr(root_facts, "listening", no_answer)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as hidden:
        hidden.bind(f"\0clsecure-test-{os.getpid()}")
        found = root_facts.network_of(os.getpid())
        assert "lo" in found["interfaces"]
        port = listener.getsockname()[1]
        assert port in found["ports"] or len(found["ports"]) == root_facts.MOST
        names = [name for name in found["sockets"] if name == f"@clsecure-test-{os.getpid()}"]
        assert names or len(found["sockets"]) == root_facts.MOST
    with socket.socket(socket.AF_UNIX) as named:
        named.bind(str(tmp_path / "socket"))
        assert not [
            name for name in root_facts.network_of(os.getpid())["sockets"] if "socket" in name.split("/")
        ]


ELSEWHERE = """
import socket, sys
ears = [socket.create_server(("127.0.0.1", 1)), socket.create_server(("0.0.0.0", 2))]
for family, kind, protocol, address in (
    (socket.AF_INET, socket.SOCK_DGRAM, 0, ("127.0.0.1", 53)),
    (socket.AF_INET, socket.SOCK_DGRAM, 136, ("127.0.0.1", 54)),
    (socket.AF_INET6, socket.SOCK_DGRAM, 0, ("::1", 55)),
    (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP, ("127.0.0.1", 0)),
    (socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3), ("lo", 0)),
):
    ears.append(socket.socket(family, kind, protocol))
    ears[-1].bind(address)
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="left out: needs root (it enters a namespace)")
def test_another_network_is_looked_into_and_left_again() -> None:
    before = Path("/proc/self/ns/net").readlink()
    loopback = "ip link set lo up && exec"
    argv = ["unshare", "--net", "sh", "-c", f'{loopback} "$0" -I -c "$1"', sys.executable, ELSEWHERE]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        assert root_facts.listening(process.pid) == {1, 2}
        seen = root_facts.network_of(process.pid)
        assert seen["ports"] == [1, 2]
        assert seen["datagrams"] == ["packet", "raw 1", "udp 53", "udp6 55", "udplite 54"]
        process.stdin.close()
    assert Path("/proc/self/ns/net").readlink() == before


# ---------------------------------------------------------------- the packet filter of a full network


def rules(*closed: str, first: str = "") -> str:
    """Return the filter as nft lists it, loaded for real where that is possible."""
    ipv4 = ", ".join(each for each in closed if ":" not in each)
    ipv6 = ", ".join(each for each in closed if ":" in each)
    text = FILTER.format(resolver=RESOLVER, ipv4=ipv4, ipv6=ipv6)
    # Before it, an earlier one of the network is taken away.
    text = text[text.index("table inet clsecure {") :]
    return text.replace('oifname "lo" accept', f'{first}\n    oifname "lo" accept')


def filtered(text: str | None, *, private: bool = False) -> CheckResult:
    spec = dataclasses.replace(FULL, allow_private=private)
    return seen(spec, "network-filter", packet_filter=text)


EVERYTHING = (*CLOSED, *PRIVATE, "192.0.2.7", "203.0.113.0/24", "2001:db8::7/128")


@pytest.fixture(autouse=True)
def addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses of the machine that no other test gives it, or takes away, meanwhile."""
    own = ["127.0.0.0/8", "192.0.2.7", "203.0.113.0/24", "2001:db8::7/128"]
    monkeypatch.setattr(root_network, "host_addresses", lambda: own)


def test_a_filter_that_closes_everything_passes() -> None:
    assert filtered(rules(*EVERYTHING)).status is CheckStatus.PASS
    assert (
        filtered(rules(*(each for each in EVERYTHING if each not in PRIVATE)), private=True).status
        is CheckStatus.PASS
    )
    # As nft writes neighbours: one range.
    joined = [each for each in EVERYTHING if each not in ("fe80::/9", "ff00::/8")]
    joined.append("fe80::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
    assert filtered(rules(*joined)).status is CheckStatus.PASS


@pytest.mark.parametrize("left_out", ["10.0.0.0/8", "169.254.0.0/16", "127.0.0.0/8", "fd20:ce::254", "::/8"])
def test_what_is_left_open_is_named(left_out: str) -> None:
    # The other one of its kind would close it, too.
    closed = [each for each in EVERYTHING if each not in (left_out, "fc00::/7") or each == "127.0.0.0/8"]
    closed = [each for each in closed if each != left_out]
    result = filtered(rules(*closed))
    assert result.status is CheckStatus.FAIL
    assert left_out in result.observed


def test_no_filter_and_another_filter_fail() -> None:
    assert filtered("").status is CheckStatus.FAIL
    assert filtered(None).status is CheckStatus.FAIL
    assert filtered(rules(*EVERYTHING, first="ip daddr 10.1.2.3 accept")).status is CheckStatus.FAIL
    assert filtered(rules(*EVERYTHING, first="return")).status is CheckStatus.FAIL
    assert "tcp" in filtered(rules(*EVERYTHING, first="tcp dport 80 accept")).observed
    closed_by = rules(*EVERYTHING).replace("reject with icmpx type admin-prohibited", "counter")
    assert filtered(closed_by).status is CheckStatus.FAIL
    without = rules(*(each for each in EVERYTHING if each not in PRIVATE))
    assert filtered(without).status is CheckStatus.FAIL, "private ones are open"
    assert "203.0.113.0/24" in filtered(rules(*CLOSED, *PRIVATE, "192.0.2.7", "2001:db8::7")).observed


def test_a_sandbox_without_a_full_network_has_no_such_check() -> None:
    with pytest.raises(ValueError, match="unpack"):
        seen(OFFLINE, "network-filter")


LOAD = """
import os, sys
from clsecure.privileged.root.facts import filter_of
from clsecure.privileged.root.processes import tool
from clsecure.privileged.root.network import NFT
before = filter_of(os.getpid())
tool(NFT, sys.argv[1])
sys.stdout.write(repr([before, filter_of(os.getpid())]))
"""


@pytest.mark.skipif(not Path(NFT).exists(), reason="nft is not here")
def test_the_kernels_own_words_are_understood() -> None:
    # -E: the checkout's package, and none of the user's.
    whose = [] if os.geteuid() == 0 else ["--map-root-user"]
    argv = ["unshare", *whose, "--net", "--", sys.executable, "-P", "-c", LOAD, rules(*EVERYTHING)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    if "Operation not permitted" in done.stderr:
        pytest.skip("no network namespace can be made here")
    assert done.returncode == 0, done.stderr
    before, after = eval(done.stdout)  # this test's own words
    assert before == ""
    result = filtered(after)
    assert result.status is CheckStatus.PASS, result.observed
