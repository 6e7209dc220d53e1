"""``clsecure network check URL|HOST[:PORT]``: would a session that starts here reach it, and who says so."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from clsecure.cli import render
from clsecure.cli.options import Invocation, NetworkOptions
from clsecure.cli.reach import reach
from clsecure.egress.provider import Provider, find_provider
from clsecure.egress.rules import MESSAGES_API_RULES, Denial, find_rule
from clsecure.errors import RepositoryError, UsageError
from clsecure.model import Credentials, NetworkPolicy
from clsecure.policy import (
    DEFAULT_PORT,
    HOST_ALIAS,
    LOOPBACK_NAMES,
    EgressPolicy,
    HostPattern,
    NetworkRule,
    decide,
    parse_pattern,
)
from clsecure.settings.layers import NetworkSettings, network_settings, settle
from clsecure.settings.project import with_project
from clsecure.settings.sources import DEFAULT
from clsecure.settings.values.output import OutputFormat
from clsecure.terminal import escape
from clsecure.workspace.repository import discover

if TYPE_CHECKING:
    from clsecure.session.ui import Ui

EXIT_DENIED = 1

_PORTS = {"https": 443, "http": 80, "wss": 443, "ws": 80}
_LOOPBACK = "loopback"
_METHODS = (b"POST", b"GET", b"HEAD")


class Way(StrEnum):
    """How an allowed target is reached."""

    RULE = "rule"
    """Through the gateway as a proxy, because a rule allows the host."""

    API = "api"
    """Through the gateway as the model's API: certain paths alone, with the user's credential."""

    FULL = "full"
    """Without the gateway, by the full network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What was asked about.

    :param path: None for a host without one.
    """

    host: str
    port: int
    path: str | None = None

    def __str__(self) -> str:
        """Return it as settings have it."""
        return str(HostPattern(host=self.host, port=self.port))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a session would do (``docs/network-check.schema.json``).

    :param way: how it is reached; None for a denied one.
    :param rule: the rule that decides, None when none speaks of the target.
    :param private_addresses: the name may lead to a private address.
    :param allow_with: what would allow a denied one, None when nothing does.
    """

    allowed: bool
    reason: str
    way: Way | None = None
    rule: NetworkRule | None = None
    private_addresses: bool = False
    allow_with: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the answer depends on besides the target.

    :param where: what decided the network's kind.
    :param api: the provider, None when the session has no use for its API.
    """

    policy: EgressPolicy
    where: str
    api: Provider | None
    credentials: Credentials = Credentials.INJECT
    allow_private: bool = False


def execute(invocation: Invocation, ui: Ui) -> int:
    """Print the answer; the status is 0 for allowed and 1 for denied."""
    options = invocation.options
    assert isinstance(options, NetworkOptions)  # noqa: S101  # the dispatcher's word
    target = parse(options.arguments[0])
    repository, layers = _repository(), invocation.layers
    # Not the model: it takes longer to import than all the rest of this takes.
    settled = settle(with_project(layers, repository) if repository else layers)
    settings = network_settings(settled)
    reached = reach(settings, environ=os.environ, home=Path.home(), repository=repository, ui=ui)
    for warning in (*settled.warnings, *reached.warnings):
        ui.warn(warning)
    where = str(settled.sources.get("network", DEFAULT))
    found = answer(target, _question(settings, reached.policy, where))
    if invocation.output is OutputFormat.JSON:
        render.write_json(_document(target, found, settings))
    else:
        render.write("".join(f"{escape(line)}\n" for line in _lines(target, found)))
    return 0 if found.allowed else EXIT_DENIED


def parse(text: str) -> Target:
    """Read a URL or ``HOST[:PORT]``; port 443 where none is said.

    :raises UsageError: it is neither. The text is not repeated: a URL may hold a password.
    """
    try:
        # urlsplit would drop line feeds and tabs, and answer about another host than was asked.
        if not text.isprintable() or any(character in text for character in " \\"):
            raise ValueError("must not have spaces, backslashes or control characters")
        scheme, colons, _ = text.partition("://")
        if not colons:
            return _exact(parse_pattern(text), path=None)
        default = _PORTS.get(scheme.lower())
        if default is None:
            raise ValueError("must be of http or https; of other protocols, name HOST:PORT")
        parts = urlsplit(text)
        if "@" in parts.netloc:
            raise ValueError("must not hold a user name or password")
        return _exact(parse_pattern(parts.netloc, default_port=default), path=parts.path or "/")
    except ValueError as error:
        raise UsageError(
            f"the address to check {error}", resolution="clsecure network check https://HOST[:PORT]/PATH"
        ) from None


def answer(target: Target, question: Question) -> Answer:
    """Return what a session would do with the target."""
    policy = question.policy
    if policy.kind is NetworkPolicy.NONE:
        explicit = question.where == "--no-network"
        return Answer(
            allowed=False,
            reason=f"the session has no network ({question.where})",
            allow_with=None if explicit else _flag(target),
        )
    if policy.kind is NetworkPolicy.FULL:
        return _by_full_network(target, question)
    decision = decide(policy, target.host, target.port)
    if not decision.allowed and decision.rule is not None:
        return Answer(allowed=False, reason=decision.reason, rule=decision.rule)
    if _scope(target) == "forbidden":
        return Answer(
            allowed=False, reason="link-local, metadata and other special addresses are never reached"
        )
    api = _by_api(target, question)
    if decision.allowed and decision.rule is not None and not (api and api.allowed):
        rule = decision.rule
        return Answer(
            allowed=True,
            reason=decision.reason,
            way=Way.RULE,
            rule=rule,
            private_addresses=rule.may_be_private,
        )
    if api is not None:
        return api
    return Answer(allowed=False, reason=decision.reason, allow_with=_flag(target))


def _by_full_network(target: Target, question: Question) -> Answer:
    scope = _scope(target)
    private = question.allow_private
    if scope in {None, "public"} or (scope == "private" and private):
        return Answer(
            allowed=True,
            reason=f"the network is full ({question.where}), without this machine's own addresses",
            way=Way.FULL,
            private_addresses=private,
        )
    if scope == "private":
        return Answer(
            allowed=False,
            reason="the full network leaves out private networks",
            allow_with="--allow-private",
        )
    what = "this machine" if scope == _LOOPBACK else "link-local, metadata and other special addresses"
    return Answer(allowed=False, reason=f"the full network leaves out {what}")


def _by_api(target: Target, question: Question) -> Answer | None:
    """Return the answer for the provider's own host, None for all others."""
    api = question.api
    if api is None or (target.host, target.port) != (_canonical(api.host), api.port):
        return None
    if question.credentials is Credentials.COPY:
        reason = "the agent holds the key itself (credentials = copy), and reaches the provider with it"
        return Answer(allowed=True, reason=reason, way=Way.RULE, private_addresses=True)
    names = ", ".join(api.prefix + rule.path.decode() for rule in MESSAGES_API_RULES)
    refused = None if target.path is None else _refusal(target.path, api.prefix)
    if refused is not None:
        # Nothing would allow it but a tunnel past the inspection, which is no way to propose.
        return Answer(allowed=False, reason=refused)
    return Answer(
        allowed=True,
        reason=f"the model's API, through the gateway's API rules: {names} and nothing else",
        way=Way.API,
        private_addresses=api.user_named,
    )


def _refusal(path: str, prefix: str) -> str | None:
    """Return why the gateway would not forward any request for a path, None when it forwards some."""
    inside = path.removeprefix(prefix) or "/"
    if not path.startswith(prefix):
        return f"the gateway forwards below {prefix} alone"
    reasons = []
    for method in _METHODS:
        found = find_rule(method, inside.encode("utf-8", "surrogateescape"), MESSAGES_API_RULES)
        if not isinstance(found, Denial):
            return None
        reasons.append(found.reason)
    return reasons[0]


def _repository() -> Path | None:
    try:
        return discover(Path.cwd()).top
    except RepositoryError:
        return None


def _question(settings: NetworkSettings, policy: EgressPolicy, where: str) -> Question:
    from clsecure.agents.spec import find_spec

    provider = find_provider(os.environ, base_url=settings.base_url, served=settings.served)
    uses_api = find_spec(settings.agent, settings.agents).base_url_env is not None
    return Question(
        policy=policy,
        where=where,
        api=provider if uses_api and settings.credentials is not Credentials.NONE else None,
        credentials=settings.credentials,
        allow_private=settings.allow_private,
    )


def _exact(pattern: HostPattern, *, path: str | None) -> Target:
    if pattern.subdomains:
        raise ValueError("must be one host, not a pattern")
    assert pattern.port is not None  # noqa: S101  # it has a default
    return Target(host=pattern.host, port=pattern.port, path=path)


def _canonical(host: str) -> str:
    """Return the provider's host in the form of targets."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def _scope(target: Target) -> str | None:
    """Return where an address leads; None for a name, which is looked up by the session."""
    try:
        address = ipaddress.ip_address(target.host)
    except ValueError:
        return _LOOPBACK if target.host in LOOPBACK_NAMES else None
    if address.is_loopback or (address.version == 6 and _is_loopback(address.ipv4_mapped)):
        return _LOOPBACK
    from clsecure.egress.addresses import scope_here

    return scope_here(address).value


def _is_loopback(address: ipaddress.IPv4Address | None) -> bool:
    return address is not None and address.is_loopback


def _flag(target: Target) -> str:
    host = "localhost" if target.host == HOST_ALIAS else target.host
    shown = HostPattern(host=host, port=None if target.port == DEFAULT_PORT else target.port)
    return f"--allow-domain {shown}"


def _document(target: Target, found: Answer, settings: NetworkSettings) -> dict[str, object]:
    rule = found.rule
    return {
        "host": target.host,
        "port": target.port,
        "path": target.path,
        "network": settings.network,
        "allowed": found.allowed,
        "way": found.way,
        "rule": rule and {"pattern": str(rule.pattern), "where": rule.where},
        "reason": found.reason,
        "private_addresses": found.private_addresses,
        "allow_with": found.allow_with,
    }


def _lines(target: Target, found: Answer) -> list[str]:
    said = "allowed" if found.allowed else "denied"
    by_rule = found.reason.startswith(f"{said} by ")
    lines = [f"{target} is {found.reason}" if by_rule else f"{target} is {said}: {found.reason}"]
    if not found.allowed:
        if found.allow_with is not None:
            lines.append(f"to allow it: clsecure {found.allow_with}")
        elif found.rule is not None:
            lines.append(f"a denial always wins; to allow it, take it out: {found.rule.where}")
        return lines
    if found.rule is not None and found.rule.connect is None and target.host in LOOPBACK_NAMES:
        lines.append(f"inside it is called {HOST_ALIAS}:{target.port}: localhost is the sandbox's own there")
    private = "may lead" if found.private_addresses else "must not lead"
    lines.append(f"it {private} to a private address")
    return lines
