"""What of the network a session and its setup may reach."""

from __future__ import annotations

from dataclasses import dataclass

from clsecure.model import NetworkPolicy
from clsecure.policy import NetworkRule, allow_rules, deny_rule
from clsecure.settings.values.words import items, switch

PRESETS = ("npm", "pip", "apt", "cargo", "go", "git-remote", "docker")
"""Named sets of hosts that are read from the user's own tools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupNetwork:
    """What the setup script and the installation of dependencies may reach.

    :param kind: None for the session's own policy.
    :param allow: with ``ALLOWLIST``, these hosts.
    :param presets: with ``ALLOWLIST``, the hosts of these presets.
    """

    kind: NetworkPolicy | None = None
    allow: tuple[NetworkRule, ...] = ()
    presets: tuple[str, ...] = ()


def network(text: str) -> NetworkPolicy:
    """Read a network policy; the predecessor's true is the full network, its false our default."""
    return switch(NetworkPolicy, text, on=NetworkPolicy.FULL, off=NetworkPolicy.API)


def allow_domains(text: str, *, where: str) -> tuple[NetworkRule, ...]:
    """Read hosts that are allowed: ``HOST[:PORT]`` or ``*.SUB.DOMAIN[:PORT]``, commas between several."""
    return tuple(rule for item in items(text) for rule in allow_rules(item, where=where))


def deny_domains(text: str, *, where: str) -> tuple[NetworkRule, ...]:
    """Read hosts that are denied, in the same form; without a port all ports of the host."""
    return tuple(deny_rule(item, where=where) for item in items(text))


def presets(text: str) -> tuple[str, ...]:
    """Read names of presets, commas between several."""
    names = tuple(dict.fromkeys(item.lower() for item in items(text)))
    if not set(names) <= set(PRESETS):
        raise ValueError(f"must be one or more of {', '.join(PRESETS)}")
    return names


def setup_network(text: str, *, where: str) -> SetupNetwork:
    """Read ``session``, ``none``, ``api``, ``full``, or hosts and presets with commas between them."""
    word = text.strip().lower()
    if word == "session":
        return SetupNetwork()
    if word in {"none", "api", "full"}:
        return SetupNetwork(kind=NetworkPolicy(word))
    names = items(text)
    return SetupNetwork(
        kind=NetworkPolicy.ALLOWLIST,
        allow=tuple(
            rule for name in names if name.lower() not in PRESETS for rule in allow_rules(name, where=where)
        ),
        presets=tuple(name.lower() for name in names if name.lower() in PRESETS),
    )
