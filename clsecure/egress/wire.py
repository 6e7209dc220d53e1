"""What the session and its gateway say to each other: JSON messages over a SOCK_SEQPACKET socket.

To the gateway: ``config`` first (in memory that comes as a descriptor, since a thousand rules are more than
a message holds), then any number of ``serve`` with one listening descriptor each, ``close`` last. From it:
``serving`` for each ``serve``, with what it could not take from itself, ``totals`` for ``close``, ``error``
instead of either, and then it ends. It also ends when the socket does.

The user's orders come over a socket of their own (:mod:`clsecure.egress.control`): ``allow`` with a host is
answered by ``allowed`` with all rules, ``policy`` by ``policy`` with the document, either by ``error``.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clsecure.egress.provider import Credential, CredentialKind, Provider
from clsecure.errors import EgressError
from clsecure.model import NetworkPolicy
from clsecure.policy import Budget, EgressPolicy, HostPattern, NetworkRule

MAX_MESSAGE = 160 << 10
_MAX_CONFIG = 4 << 20
_MAX_COUNT = 1 << 80
MAX_HOSTS = 200
"""Targets that totals are kept of; an agent can ask for any number of names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds a hostile client. Sizes in bytes, times in seconds.

    :param connections: clients at a time; when full, the one that has idled longest makes room.
    :param header_size: head of one request.
    :param body_size: one request body; the provider itself takes no more than 32 MiB.
    :param buffered: request bodies held at the same time, all clients together.
    :param tunnels: of the connections, so that the API stays within reach.
    :param log_size: after that only the totals are counted.
    :param header_time: to send a whole head.
    :param body_time: to send a whole body.
    :param idle_time: between two requests of one client.
    :param reply_time: between two pieces of a reply, and for a client to take one.
    :param connect_time: to reach one of a target's addresses.
    :param tunnel_time: without a byte in either direction of a tunnel.
    """

    connections: int = 128
    header_size: int = 64 << 10
    body_size: int = 32 << 20
    buffered: int = 96 << 20
    tunnels: int = 96
    log_size: int = 64 << 20
    header_time: float = 10.0
    body_time: float = 120.0
    idle_time: float = 300.0
    reply_time: float = 600.0
    connect_time: float = 10.0
    tunnel_time: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProxies:
    """The proxies that this machine's own programs use on their way out; URLs may hold passwords.

    :param http: for plain HTTP, empty for none.
    :param https: for everything that is tunnelled, empty for none.
    :param no_proxy: hosts that are reached directly, in the form of the environment variable.
    """

    http: str = field(repr=False, default="")
    https: str = field(repr=False, default="")
    no_proxy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Everything that a gateway is started with.

    :param provider: the API that is forwarded to; None when the session reaches none.
    :param credential: what opens it; None exactly when there is no provider.
    :param policy: what else may be reached, through the gateway as a proxy.
    :param proxies: the host's own way out.
    :param log: file that receives one JSON line per request, made with mode 0600; None for no log.
    :param control: path of the Unix socket on which the running gateway takes the user's orders
        (``clsecure network allow``), made with mode 0600; None for none.
    :param session: how the user calls the session, for the commands that refusals name.
    :param hidden: what the agent itself holds and the log must not.
    """

    provider: Provider | None
    credential: Credential | None
    policy: EgressPolicy = field(default_factory=EgressPolicy)
    budget: Budget = field(default_factory=Budget)
    proxies: HostProxies = field(default_factory=HostProxies)
    log: Path | None = None
    control: Path | None = None
    session: str = "SESSION"
    hidden: tuple[str, ...] = field(repr=False, default=())
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTotals:
    """What went to one host and port; the text is the agent's own where ``denied`` equals ``requests``."""

    host: str
    port: int
    requests: int = 0
    denied: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressTotals:
    """What went through a gateway.

    :param requests: all requests, the denied ones too.
    :param bytes_in: to the agent, bodies and tunnels only.
    :param bytes_out: from the agent, bodies and tunnels only.
    :param tokens: that the API said were used; None when it was not asked.
    :param hosts: the first :data:`MAX_HOSTS` targets, most requests first.
    :param warnings: what the user should hear (a budget nearly or wholly used up).
    :param complete: False when the gateway died and took the counts with it.
    """

    requests: int = 0
    denied: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    tokens: int | None = None
    hosts: tuple[HostTotals, ...] = ()
    warnings: tuple[str, ...] = ()
    complete: bool = True


def encode_config(config: GatewayConfig, *, token: str, die_with_parent: bool) -> bytes:
    """Return the first message. It holds the secrets, so it goes by :func:`send_config` and nowhere else."""
    provider, credential, proxies = config.provider, config.credential, config.proxies
    return encode(
        {
            "type": "config",
            "token": token,
            "die_with_parent": die_with_parent,
            "provider": provider
            and {
                "base_url": provider.base_url,
                "user_named": provider.user_named,
                "ca_file": _text(provider.ca_file),
                "provider_tools": provider.provider_tools,
            },
            "credential": credential
            and {
                "kind": credential.kind,
                "value": credential.value,
                "variable": credential.variable,
                "file": _text(credential.file),
            },
            "policy": asdict(config.policy),
            "budget": asdict(config.budget),
            "proxies": {"http": proxies.http, "https": proxies.https, "no_proxy": proxies.no_proxy},
            "log": _text(config.log),
            "control": _text(config.control),
            "session": config.session,
            "hidden": config.hidden,
            "limits": asdict(config.limits),
        }
    )


def send_config(control: socket.socket, config: bytes) -> None:
    """Send the first message.

    :raises OSError: the gateway is gone.
    """
    with os.fdopen(os.memfd_create("clsecure-gateway", os.MFD_CLOEXEC), "wb") as memory:
        memory.write(config)
        memory.flush()
        socket.send_fds(control, [encode({"type": "config"})], [memory.fileno()])


def receive_config(control: socket.socket) -> dict[str, Any] | None:
    """Return the first message, None when the session is gone before it.

    :raises EgressError: it is none.
    """
    data, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
    if not data or not descriptors:
        return None
    with os.fdopen(descriptors[0], "rb") as memory:
        # The sender's position is ours, too.
        memory.seek(0)
        return decode(memory.read(_MAX_CONFIG))


def decode_config(message: Mapping[str, Any]) -> GatewayConfig:
    """Return what :func:`encode_config` was given."""
    provider, credential = message["provider"], message["credential"]
    return GatewayConfig(
        provider=provider
        and Provider(
            base_url=provider["base_url"],
            user_named=provider["user_named"],
            ca_file=_path(provider["ca_file"]),
            provider_tools=provider["provider_tools"],
        ),
        credential=credential
        and Credential(
            kind=CredentialKind(credential["kind"]),
            value=credential["value"],
            variable=credential["variable"],
            file=_path(credential["file"]),
        ),
        policy=EgressPolicy(
            kind=NetworkPolicy(message["policy"]["kind"]),
            allow=_rules(message["policy"]["allow"]),
            deny=_rules(message["policy"]["deny"]),
            only=_patterns(message["policy"]["only"]),
            only_where=message["policy"]["only_where"],
        ),
        budget=Budget(**message["budget"]),
        proxies=HostProxies(**message["proxies"]),
        log=_path(message["log"]),
        control=_path(message["control"]),
        session=message["session"],
        hidden=tuple(message["hidden"]),
        limits=Limits(**message["limits"]),
    )


def encode_totals(totals: EgressTotals) -> bytes:
    """Return the message that tells the session what went through."""
    return encode({"type": "totals", **asdict(totals)})


def decode_totals(message: Mapping[str, Any]) -> EgressTotals:
    """Return what :func:`encode_totals` was given.

    :raises EgressError: a gateway that is not itself any more made it up.
    """
    try:
        tokens = message["tokens"]
        return EgressTotals(
            requests=_count(message["requests"]),
            denied=_count(message["denied"]),
            bytes_in=_count(message["bytes_in"]),
            bytes_out=_count(message["bytes_out"]),
            tokens=None if tokens is None else _count(tokens),
            hosts=tuple(_host_totals(host) for host in message["hosts"]),
            warnings=tuple(_sentence(warning) for warning in message["warnings"]),
            complete=message["complete"] is True,
        )
    except (KeyError, TypeError, ValueError):
        raise _not_understood() from None


def decode_residuals(message: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a gateway that serves could not take from itself.

    :raises EgressError: see :func:`decode_totals`.
    """
    try:
        return tuple(_sentence(residual) for residual in message["residuals"])
    except (KeyError, TypeError, ValueError):
        raise _not_understood() from None


def encode_error(error: EgressError) -> bytes:
    """Return the message that something went wrong."""
    return encode(
        {
            "type": "error",
            "brief": error.brief,
            "details": error.details,
            "resolution": error.resolution,
        }
    )


def decode_error(message: Mapping[str, Any]) -> EgressError:
    """Return what :func:`encode_error` was given."""
    brief, *more = (message.get(name) for name in ("brief", "details", "resolution"))
    if not isinstance(brief, str):
        return _not_understood()
    details, resolution = (text if isinstance(text, str) else None for text in more)
    return EgressError(brief, details=details, resolution=resolution)


def encode_allowed(rules: list[str], *, warning: str | None) -> bytes:
    """Return the answer to an order to allow a host: all that is allowed now, as far as it fits.

    :param warning: what the user should know of it.
    """
    return _fitting({"type": "allowed", "warning": warning}, lambda most: {"rules": rules[:most]}, len(rules))


def encode_policy(document: Mapping[str, Any]) -> bytes:
    """Return the answer to an order to tell the policy: all of it, as far as it fits."""

    def cut(most: int) -> dict[str, object]:
        lists = {name: document[name][:most] for name in ("allow", "deny")}
        return {"document": {**document, **lists, "cut": most < longest}}

    longest = max(len(document["allow"]), len(document["deny"]))
    return _fitting({"type": "policy"}, cut, longest)


def _fitting(message: dict[str, object], part: Callable[[int], dict[str, object]], most: int) -> bytes:
    """Return a message with as many entries of a list as one message can hold."""
    while len(data := encode({**message, **part(most)})) > MAX_MESSAGE:
        most //= 2
    return data


def _rules(rules: list[dict[str, Any]]) -> tuple[NetworkRule, ...]:
    return tuple(NetworkRule(**{**rule, "pattern": HostPattern(**rule["pattern"])}) for rule in rules)


def _patterns(patterns: list[dict[str, Any]] | None) -> tuple[HostPattern, ...] | None:
    return None if patterns is None else tuple(HostPattern(**pattern) for pattern in patterns)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def encode(message: Mapping[str, object]) -> bytes:
    """Return one message."""
    return json.dumps(message).encode("ascii")


def decode(data: bytes) -> dict[str, Any]:
    """Return one message.

    :raises EgressError: it is none.
    """
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise _not_understood()
    return message


def _host_totals(host: Mapping[str, Any]) -> HostTotals:
    return HostTotals(
        host=_sentence(host["host"]),
        port=_count(host["port"]),
        requests=_count(host["requests"]),
        denied=_count(host["denied"]),
        bytes_in=_count(host["bytes_in"]),
        bytes_out=_count(host["bytes_out"]),
    )


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MAX_COUNT:
        raise ValueError
    return value


def _sentence(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _not_understood() -> EgressError:
    return EgressError("The gateway and its session don't understand each other")
