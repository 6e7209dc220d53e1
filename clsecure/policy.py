"""What of the network a session may reach, as values, and who decides about a target. Pure, stdlib only.

A target is a host and a port. It is allowed when a rule allows it and none denies it; what nothing speaks
of is denied. Patterns are the user's words and are read generously (upper case, international names); targets
are the agent's and must be in the one form that is compared and connected to, or they are refused.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace

from clsecure.model import NetworkPolicy

HOST_ALIAS = "host.clsecure.internal"
"""What this machine's own loopback is called inside, where ``localhost`` is the sandbox's own."""

DEFAULT_PORT = 443
MAX_RULES = 1000
"""Rules of one session, allowed and denied ones each."""

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)")
_MAX_NAME = 253
# They are one: who denies this machine's loopback by one of its names means it.
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1", HOST_ALIAS})
"""What this machine's own loopback is called, outside and inside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPattern:
    """Which hosts and ports a rule speaks of.

    :param host: a name in lower-case ASCII, or an address in its canonical form without brackets.
    :param port: None for every port, which only a denial may say.
    :param subdomains: ``*.host``: the names below ``host``, and not ``host`` itself.
    """

    host: str
    port: int | None
    subdomains: bool = False

    def matches(self, host: str, port: int) -> bool:
        """Tell whether a target is meant."""
        if self.port not in (None, port):
            return False
        if self.subdomains:
            return host.endswith(f".{self.host}")
        return host == self.host

    def covers(self, other: HostPattern) -> bool:
        """Tell whether everything that the other means is meant, too."""
        if self.port not in (None, other.port):
            return False
        if self.subdomains:
            return other.host.endswith(f".{self.host}") or (other.subdomains and other.host == self.host)
        return not other.subdomains and other.host == self.host

    def __str__(self) -> str:
        """Return it as it would be written in settings, with the port: what its absence means depends."""
        return f"{'*.' if self.subdomains else ''}{host_and_port(self.host, self.port)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRule:
    """One pattern and where it comes from.

    :param where: for people: ``--allow-domain``, a settings file and line, ``preset npm (…)``,
        ``clsecure network allow``.
    :param connect: the host that is connected to in the place of the pattern's, for :data:`HOST_ALIAS`.
    """

    pattern: HostPattern
    where: str
    connect: str | None = None

    @property
    def may_be_private(self) -> bool:
        """The user named this very host and port, so it may lead to a private address."""
        return not self.pattern.subdomains


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressPolicy:
    """What one session may reach besides the provider's API. Without rules that is nothing.

    :param only: the machine's ceiling: nothing but what these cover, whoever allows it; None for no ceiling.
    :param only_where: where the ceiling was written.
    """

    kind: NetworkPolicy = NetworkPolicy.API
    allow: tuple[NetworkRule, ...] = ()
    deny: tuple[NetworkRule, ...] = ()
    only: tuple[HostPattern, ...] | None = None
    only_where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a policy says about one target.

    :param rule: the rule that decided, None when none speaks of the target.
    :param reason: one sentence for the log and the agent.
    """

    allowed: bool
    rule: NetworkRule | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Most that a session may use; None is no bound.

    :param requests: requests of the agent, the denied ones not counted.
    :param bytes: both directions together, bodies and tunnels.
    :param tokens: as the API's own usage fields say, input (cached, too) and output together.
    """

    requests: int | None = None
    bytes: int | None = None
    tokens: int | None = None


def host_and_port(host: str, port: int | None) -> str:
    """Return a host and its port as they stand in a URL."""
    name = f"[{host}]" if ":" in host else host
    return name if port is None else f"{name}:{port}"


def decide(policy: EgressPolicy, host: str, port: int) -> Decision:
    """Return what the policy says about a target in canonical form; a denial wins over every permission."""
    if policy.kind is NetworkPolicy.NONE:
        return Decision(allowed=False, rule=None, reason="this session has no network")
    names = LOOPBACK_NAMES if host in LOOPBACK_NAMES else {host}
    for rule in policy.deny:
        if any(rule.pattern.matches(name, port) for name in names):
            return Decision(allowed=False, rule=rule, reason=f"denied by {rule.pattern} ({rule.where})")
    # The most exact rule speaks: it alone may lead to a private address.
    for rule in sorted(policy.allow, key=lambda rule: rule.pattern.subdomains):
        if rule.pattern.matches(host, port):
            if policy.only is not None and not covered(HostPattern(host=host, port=port), policy.only):
                reason = f"beyond what this machine allows ({policy.only_where})"
                return Decision(allowed=False, rule=None, reason=reason)
            return Decision(allowed=True, rule=rule, reason=f"allowed by {rule.pattern} ({rule.where})")
    return Decision(allowed=False, rule=None, reason="nothing allows it")


def covered(pattern: HostPattern, by: Iterable[HostPattern]) -> bool:
    """Tell whether one of the patterns means everything that a pattern means, under any name of it."""
    names = LOOPBACK_NAMES if pattern.host in LOOPBACK_NAMES else {pattern.host}
    patterns = [replace(pattern, host=name) for name in names]
    return any(each.covers(other) for each in by for other in patterns)


def denied_addresses(policy: EgressPolicy, port: int) -> frozenset[str]:
    """Return the addresses that denials name for a port: no name must lead there either."""
    hosts = {rule.pattern.host for rule in policy.deny if rule.pattern.port in (None, port)}
    if hosts & LOOPBACK_NAMES:
        hosts |= LOOPBACK_NAMES
    return frozenset(host for host in hosts if _is_address(host))


def denial_of(policy: EgressPolicy, pattern: HostPattern) -> NetworkRule | None:
    """Return a denial that leaves nothing of what a pattern allows."""
    return next((rule for rule in policy.deny if covered(pattern, (rule.pattern,))), None)


def parse_pattern(text: str, *, default_port: int | None = DEFAULT_PORT) -> HostPattern:
    """Read ``HOST[:PORT]`` or ``*.SUB.DOMAIN[:PORT]``.

    :param default_port: what no port means; None for every port.
    :raises ValueError: it is none; the message fits after the name of a setting.
    """
    host, port_text = _split(text)
    port = default_port if port_text is None else _port(port_text)
    subdomains = host.startswith("*.")
    name = _canonical_name(host.removeprefix("*."))
    if subdomains and (_is_address(name) or name.count(".") < 1):
        raise ValueError("must name at least a domain and its top-level domain after '*.'")
    return HostPattern(host=name, port=port, subdomains=subdomains)


def allow_rules(text: str, *, where: str) -> tuple[NetworkRule, ...]:
    """Return the rules of one allowed host: two for this machine's loopback, which has an alias inside.

    :raises ValueError: see :func:`parse_pattern`.
    """
    pattern = parse_pattern(text)
    if pattern.host == HOST_ALIAS:  # the user's word, and theirs is localhost
        pattern = replace(pattern, host="localhost")
    rule = NetworkRule(pattern=pattern, where=where)
    if pattern.host not in LOOPBACK_NAMES:
        return (rule,)
    alias = HostPattern(host=HOST_ALIAS, port=pattern.port)
    return rule, NetworkRule(pattern=alias, where=where, connect=pattern.host)


def deny_rule(text: str, *, where: str) -> NetworkRule:
    """Return the rule that one denied host makes; without a port it means all of them.

    :raises ValueError: see :func:`parse_pattern`.
    """
    return NetworkRule(pattern=parse_pattern(text, default_port=None), where=where)


def parse_target(text: str) -> tuple[str, int]:
    """Read ``host:port`` as a client sends it: in canonical form or not at all.

    :raises ValueError: it is not, or could mean different things to different parsers.
    """
    host, port_text = _split(text)
    if port_text is None or not text.isascii():
        raise ValueError("must be host:port")
    port = _port(port_text)
    if host != _canonical_name(host) or f"{port}" != port_text:
        raise ValueError("must be in lower case and in the usual form")
    return host, port


def _split(text: str) -> tuple[str, str | None]:
    """Return host without brackets and the port's text, None without one."""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")) or ":" not in host:
            raise ValueError("must be HOST, HOST:PORT or *.SUB.DOMAIN")
        return host, rest[1:] if rest else None
    host, colon, port = text.partition(":")
    if ":" in port:
        raise ValueError("must have an IPv6 address in brackets")
    return host, port if colon else None


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise ValueError("must have a port between 1 and 65535")
    return int(text)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _canonical_name(host: str) -> str:
    """Return the one form of a name or an address.

    :raises ValueError: it is neither, or a number that some resolvers take for an address.
    """
    if _is_address(host):
        if "%" in host:
            raise ValueError("must not have an IPv6 zone")
        return str(ipaddress.ip_address(host))
    if len(host) > _MAX_NAME:
        raise ValueError("must be a valid host name")
    try:
        name = host.encode("idna").decode("ascii").lower()
        shown = host.lower() if host.isascii() else name.encode("ascii").decode("idna")
    except UnicodeError:
        raise ValueError("must be a valid host name") from None
    if shown != unicodedata.normalize("NFKC", host.lower()):
        # Python knows the international names of 2003: for some letters another host than browsers mean.
        raise ValueError("must be written in its ASCII form (xn--…), since it could mean different hosts")
    labels = name.split(".")
    if len(name) > _MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("must be HOST, HOST:PORT or *.SUB.DOMAIN")
    if _NUMERIC.fullmatch(labels[-1]):
        raise ValueError("must be a valid host name or a whole IP address")
    return name
