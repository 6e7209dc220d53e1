"""From what was denied to a session to a list of hosts to allow, for a person to review. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from clsecure.egress.provider import DEFAULT_BASE_URL
from clsecure.policy import DEFAULT_PORT, HOST_ALIAS, HostPattern, host_and_port, parse_target
from clsecure.session.words import number

if TYPE_CHECKING:
    # Every session imports this module for its first lines, and only some have a log.
    from clsecure.egress.journal import Denials

API_HOST = urlsplit(DEFAULT_BASE_URL).hostname
API_HINT = "the model's API: asked through the gateway, not by a tunnel that nobody inspects"


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """One target that was denied.

    :param allow: what would allow it, as settings write it; None for what is no host name: that can only be
        meant to deceive who reads it.
    """

    host: str
    port: int
    requests: int
    allow: str | None


def suggestion(host: str, port: int) -> str | None:
    """Return what would allow a target, as settings write it; None for what is no host name."""
    try:
        host, port = parse_target(host_and_port(host, port))
    except ValueError:
        return None
    # Inside, this machine's loopback has another name than in settings.
    return as_allowed(HostPattern(host="localhost" if host == HOST_ALIAS else host, port=port))


def as_allowed(pattern: HostPattern) -> str:
    """Return a pattern as people write it after ``--allow-domain``, where no port means HTTPS."""
    return str(pattern).removesuffix(f":{DEFAULT_PORT}")


def learn(denials: Denials) -> tuple[Learned, ...]:
    """Return what was denied because nothing allows it, by name."""
    found = (
        Learned(host=host, port=port, requests=count, allow=suggestion(host, port))
        for (host, port), count in denials.hosts.items()
    )
    return tuple(sorted(found, key=lambda each: (each.allow is None, each.allow or each.host, each.port)))


def toml_lines(learned: tuple[Learned, ...]) -> Iterator[str]:
    """Return the list as it would stand in ``config.toml``. Valid names are all that is in it."""
    yield "[egress]"
    yield "allow = ["
    for each in learned:
        if each.allow is not None:
            times = number(each.requests, "request")
            if each.host == API_HOST:
                yield f'    # "{each.allow}",  # {times}; {API_HINT}'
            else:
                yield f'    "{each.allow}",  # {times}'
    yield "]"
