"""What the session and its gateway say to each other: JSON messages over a SOCK_SEQPACKET socket.

To the gateway: ``config`` first, then any number of ``serve`` with one listening descriptor each, ``close``
last. From it: ``serving`` for each ``serve``, ``totals`` for ``close``, ``error`` instead of either, and then
it ends. It also ends when the socket does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clsecure.egress.provider import Credential, CredentialKind, Provider
from clsecure.errors import EgressError

MAX_MESSAGE = 128 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds a hostile client. Sizes in bytes, times in seconds.

    :param connections: clients at a time; when full, the one that has idled longest makes room.
    :param header_size: head of one request.
    :param body_size: one request body; the provider itself takes no more than 32 MiB.
    :param buffered: request bodies held at the same time, all clients together.
    :param log_size: after that only the totals are counted.
    :param header_time: to send a whole head.
    :param body_time: to send a whole body.
    :param idle_time: between two requests of one client.
    :param reply_time: between two pieces of a reply, and for a client to take one.
    :param connect_time: to reach one of the provider's addresses.
    """

    connections: int = 128
    header_size: int = 64 << 10
    body_size: int = 32 << 20
    buffered: int = 96 << 20
    log_size: int = 64 << 20
    header_time: float = 10.0
    body_time: float = 120.0
    idle_time: float = 300.0
    reply_time: float = 600.0
    connect_time: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Everything that a gateway is started with.

    :param log: file that receives one JSON line per request, made with mode 0600; None for no log.
    """

    provider: Provider
    credential: Credential
    log: Path | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressTotals:
    """What went through a gateway.

    :param requests: all requests, the denied ones too.
    :param bytes_in: from the provider to the agent, bodies only.
    :param bytes_out: from the agent to the provider, bodies only.
    :param complete: False when the gateway died and took the counts with it.
    """

    requests: int = 0
    denied: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    complete: bool = True


def encode_config(config: GatewayConfig, *, token: str, die_with_parent: bool) -> bytes:
    """Return the first message. It holds the secrets, so it goes through the socket and nowhere else."""
    provider, credential = config.provider, config.credential
    return encode(
        {
            "type": "config",
            "token": token,
            "die_with_parent": die_with_parent,
            "provider": {
                "base_url": provider.base_url,
                "user_named": provider.user_named,
                "ca_file": None if provider.ca_file is None else str(provider.ca_file),
                "provider_tools": provider.provider_tools,
            },
            "credential": {
                "kind": credential.kind,
                "value": credential.value,
                "variable": credential.variable,
                "file": None if credential.file is None else str(credential.file),
            },
            "log": None if config.log is None else str(config.log),
            "limits": asdict(config.limits),
        }
    )


def decode_config(message: Mapping[str, Any]) -> GatewayConfig:
    """Return what :func:`encode_config` was given."""
    provider, credential, log = message["provider"], message["credential"], message["log"]
    return GatewayConfig(
        provider=Provider(
            base_url=provider["base_url"],
            user_named=provider["user_named"],
            ca_file=None if provider["ca_file"] is None else Path(provider["ca_file"]),
            provider_tools=provider["provider_tools"],
        ),
        credential=Credential(
            kind=CredentialKind(credential["kind"]),
            value=credential["value"],
            variable=credential["variable"],
            file=None if credential["file"] is None else Path(credential["file"]),
        ),
        log=None if log is None else Path(log),
        limits=Limits(**message["limits"]),
    )


def encode(message: Mapping[str, object]) -> bytes:
    """Return one message."""
    return json.dumps(message).encode("ascii")


def decode(data: bytes) -> dict[str, Any]:
    """Return one message.

    :raises EgressError: it is none.
    """
    try:
        message = json.loads(data)
    except ValueError:
        message = None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise EgressError("The gateway and its session don't understand each other")
    return message
