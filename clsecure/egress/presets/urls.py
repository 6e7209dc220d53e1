"""URLs in the configuration of tools. They hold passwords often, so that no error and no value shows one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from clsecure.errors import EgressError
from clsecure.policy import HOST_ALIAS, HostPattern, host_and_port, parse_pattern

BY_HAND = "Correct it, or leave the preset out and name the hosts with --allow-domain HOST[:PORT]"

WEB: Mapping[str, int] = {"https": 443, "http": 80}
"""Schemes of registries and their ports."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_MAX_LENGTH = 2048
# What RFC 3986 allows and the braces of templates, in which cargo's registries name a crate.
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:/%{}-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUrl:
    """One URL without what should not be seen: user information, query and fragment.

    :param pattern: its host and port.
    :param credentials: there was user information.
    :param query: there was a query.
    """

    scheme: str
    pattern: HostPattern
    path: str
    credentials: bool
    query: bool

    @property
    def loopback(self) -> bool:
        """It is on this machine's own loopback, which has another name inside."""
        return self.pattern.host in _LOOPBACK

    @property
    def target(self) -> str:
        """Host and port, always both."""
        return host_and_port(self.pattern.host, self.pattern.port)

    @property
    def inside_host(self) -> str:
        """What its host is called inside, as a part of a URL."""
        if self.loopback:
            return HOST_ALIAS
        return host_and_port(self.pattern.host, None)

    @property
    def inside(self) -> str:
        """The URL for the tools inside."""
        port = "" if self.pattern.port == WEB.get(self.scheme) else f":{self.pattern.port}"
        return f"{self.scheme}://{self.inside_host}{port}{self.path}"


def read_url(text: str, *, where: str, schemes: Mapping[str, int] = WEB) -> ToolUrl:
    """Return a URL of a tool's configuration.

    :param where: for the error: which configuration says it.
    :param schemes: those that are understood, each with its usual port.
    :raises EgressError: it is none, or could mean different things to different parsers. The text is never
        shown: it may hold a password.
    """
    if len(text) > _MAX_LENGTH or not text.isprintable() or re.search(r"[\s\\\"'<>`^|]", text):
        raise bad_url("it has characters that don't belong there", where=where)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        # Without the cause: it quotes what it read.
        raise bad_url("it is malformed", where=where) from None
    scheme = parts.scheme
    if scheme not in schemes:
        raise bad_url(f"its scheme is none of {', '.join(sorted(schemes))}", where=where)
    user_information, _, address = parts.netloc.rpartition("@")
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        # A password with a slash in it looks like this, and what comes before it like a host.
        raise bad_url("it has an @ behind its host; encode it as %40", where=where)
    if address.endswith(":") or not _PATH.fullmatch(parts.path):
        raise bad_url("it is malformed", where=where)
    return ToolUrl(
        scheme=scheme,
        pattern=_pattern(host, schemes[scheme] if port is None else port, where=where),
        path=parts.path,
        credentials=bool(user_information),
        query=bool(parts.query),
    )


def read_host(text: str, *, where: str, default_port: int = 443) -> ToolUrl:
    """Return what ``HOST[:PORT]`` names, without a scheme, as container registries are named.

    :raises EgressError: it is none.
    """
    return read_url(f"tcp://{text}", where=where, schemes={"tcp": default_port})


def bad_url(why: str, *, where: str) -> EgressError:
    """Return the error of a URL that can't be used, which does not show it."""
    return EgressError(f"A URL in the configuration can't be used: {why}", details=where, resolution=BY_HAND)


def _pattern(host: str, port: int, *, where: str) -> HostPattern:
    try:
        if host.startswith("*"):
            raise ValueError("must be one host")
        return parse_pattern(host_and_port(host, port))
    except ValueError as error:
        raise bad_url(f"its host {error}", where=where) from None
