"""The checks on a sandbox's network, as the host sees its namespace: interfaces, listeners, packet filter."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from clsecure.backends.api import ProcessFacts
from clsecure.model import SandboxSpec, Vantage
from clsecure.verify.checks import EVERY_MODE, Area, Check, Observation

PACKET_FILTER = "network-filter"
_UNSEEN = "it was not looked at"
# The kernel makes these in every network namespace when their modules are loaded: down, and without a route.
FALLBACK = frozenset(
    {"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"}
)
_REFUSES = re.compile(r"ip6? daddr \{ ([^{}]*) \} reject with \S.*")
_RULES = (
    _REFUSES,
    re.compile(r"table inet clsecure \{|chain out \{|\}|"),
    re.compile(r"type filter hook output priority \S+; policy accept;"),
    # What may go out before it is looked at where it goes: loopback, the resolver, the neighbours.
    re.compile(r'oifname "lo" accept'),
    re.compile(r"ip daddr 169\.254\.1\.3 [^;]* dport (?:53|domain) accept"),
    re.compile(r"(?:meta l4proto \S+ )?icmpv6 type \{ [a-z0-9, -]+ \} accept"),
)
"""Each line of the filter as nft(8) lists it. In the one chain only what refuses stands behind these."""

_Span = tuple[int, int, int]
"""Of an IP version, its first address and its last one."""


def _interfaces(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    has_way = spec.network_namespace is not None
    expected = "loopback and one with routes" if has_way else "loopback, no route"
    found = facts.network
    if found is None:
        return Observation.equal(expected, _UNSEEN)
    others = sorted(set(found.interfaces) - FALLBACK - {"lo"})
    routes = sorted(set(found.routes) - {"lo"})
    observed = f"{', '.join(found.interfaces)}; routes: {', '.join(routes) or 'none'}"
    right = len(others) == 1 and routes == others if has_way else not others and not routes
    return Observation(expected=expected, observed=observed, holds=right and "lo" in found.interfaces)


def _listeners(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    planned = [facts.port] if spec.listener and facts.port is not None else []
    expected = f"port {planned[0]}, the gateway's" if planned else "none"
    if facts.network is None:
        return Observation.equal(expected, _UNSEEN)
    others = (*facts.network.sockets, *facts.network.datagrams)
    if list(facts.network.ports) == planned and not others:
        return Observation.equal(expected, expected)
    seen = [*(f"port {port}" for port in facts.network.ports), *others]
    return Observation.equal(expected, ", ".join(seen) or "none at all")


def _filter(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    """By the rules that the kernel has: nothing but three kinds goes out before what is closed is refused."""
    expected = "what leads to this machine or to private networks is refused"
    rules = [line.strip() for line in (facts.packet_filter or "").splitlines()]
    if not any("hook output" in rule for rule in rules):
        return Observation.equal(expected, "there is no filter")
    other = [rule for rule in rules if not any(pattern.fullmatch(rule) for pattern in _RULES)]
    if other:
        return Observation.equal(expected, f"other rules: {'; '.join(other)[:400]}")
    refused = [
        _span(element.strip())
        for rule in rules
        if (found := _REFUSES.fullmatch(rule))
        for element in found[1].split(",")
    ]
    missing = [each for each in _closed(spec) if not _is_within(_span(each), refused)]
    return Observation.equal(expected, f"open: {', '.join(missing)}" if missing else expected)


def _closed(spec: SandboxSpec) -> list[str]:
    from clsecure.privileged.root.network import CLOSED, PRIVATE, host_addresses

    return [*CLOSED, *(() if spec.allow_private else PRIVATE), *host_addresses()]


def _span(element: str) -> _Span:
    """Return an address, a prefix or a range, as nft(8) writes it."""
    first, _, last = element.partition("-")
    network = ip_network(first)
    end = ip_address(last) if last else network.broadcast_address
    return network.version, int(network.network_address), int(end)


def _is_within(wanted: _Span, refused: Iterable[_Span]) -> bool:
    """Tell whether all of it is refused; neighbours count as one."""
    version, at, last = wanted
    for other, begin, end in sorted(refused):
        if other == version and begin <= at <= end:
            at = end + 1
    return at > last


NETWORK_CHECKS: tuple[Check[ProcessFacts], ...] = (
    Check(
        check_id="network-interfaces",
        property="no interface but loopback, but for a full network",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.NETWORK,
        threats=("B1", "B5"),
        residuals=("R4",),
        observe=_interfaces,
    ),
    Check(
        check_id="listeners",
        property="nothing listens in its network but what the gateway serves",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.NETWORK,
        threats=("B2", "B4"),
        observe=_listeners,
    ),
    Check(
        check_id=PACKET_FILTER,
        property="a full network does not lead to this machine or to private networks",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.NETWORK,
        threats=("B2", "B3"),
        residuals=("R15", "R23"),
        observe=_filter,
    ),
)
