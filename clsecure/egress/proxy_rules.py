"""What a client may ask of the gateway as a proxy, judged by the head of its request. Pure."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from clsecure.egress import rules
from clsecure.egress.rules import Denial, Headers
from clsecure.policy import Decision, host_and_port, parse_target

DENIED = "denied"
"""The rule of refusals of a target that the user denied."""

HTTP_PORT = 80
_SCHEME = b"http://"
_MAX_AUTHORITY = 300
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"proxy-authenticate",
     b"proxy-authentication-info", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings",
     b"expect", b"host"}
)  # fmt: skip
_HOP_BY_HOP_REPLIES = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authentication-info",
     b"te", b"trailer", b"transfer-encoding", b"upgrade", b"alt-svc"}
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The target of a request.

    :param path: with the query; empty for CONNECT.
    """

    host: str
    port: int
    path: bytes = b""

    @property
    def shown(self) -> str:
        """Host and port, for people."""
        return host_and_port(self.host, self.port)


def check_proxy_token(headers: Headers, *, token: str) -> Denial | None:
    """Refuse everybody who does not hold the session's token."""
    presented = rules.values(headers, b"proxy-authorization")
    expected = token.encode()
    # Every value is compared, so that time says nothing about which one was wrong.
    matches = [hmac.compare_digest(rules.token_in(value), expected) for value in presented]
    if matches and all(matches):
        return None
    reason = "only the session's own token opens this proxy" if presented else "no proxy credential was sent"
    return rules.refuse_proxied("token", reason, status=rules.PROXY_TOKEN_STATUS)


def of_own_address(target: bytes, *, port: int) -> bytes | None:
    """Return the path of an absolute URL that names the gateway itself, None for every other target.

    :param port: of the gateway, as its client sees it.
    """
    for name in rules.OWN_NAMES:
        prefix = b"http://%s:%d" % (name, port)
        if target == prefix:
            return b"/"
        if target.startswith(prefix + b"/"):
            return target.removeprefix(prefix)
    return None


def read_connect(target: bytes) -> Asked | Denial:
    """Return what a CONNECT asks for."""
    return _read_authority(target)


def read_absolute(target: bytes) -> Asked | Denial:
    """Return what a request with an absolute URL asks for."""
    if not target.startswith(_SCHEME):
        return rules.refuse_proxied(
            "target",
            "only http:// URLs are forwarded; https:// is asked for with CONNECT",
            status=400,
        )
    rest = target.removeprefix(_SCHEME)
    end = next((at for at, byte in enumerate(rest[:_MAX_AUTHORITY]) if byte in b"/?#"), len(rest))
    authority, path = rest[:end], rest[end:]
    if b"#" in path:
        return rules.refuse_proxied("target", "a URL is forwarded without its fragment", status=400)
    found = _read_authority(authority, default_port=HTTP_PORT)
    if isinstance(found, Denial):
        return found
    return Asked(host=found.host, port=found.port, path=path if path.startswith(b"/") else b"/" + path)


def _read_authority(authority: bytes, *, default_port: int | None = None) -> Asked | Denial:
    try:
        if len(authority) > _MAX_AUTHORITY:
            raise ValueError("must not be that long")
        text = authority.decode("ascii")
        try:
            host, port = parse_target(text)
        except ValueError:
            if default_port is None:
                raise
            host, port = parse_target(f"{text}:{default_port}")
    except ValueError:
        return rules.refuse_proxied(
            "target", "the target must be HOST:PORT, in lower case and in the usual form", status=400
        )
    return Asked(host=host, port=port)


def check_proxy_host(headers: Headers, asked: Asked, *, default_port: int) -> Denial | None:
    """Refuse a Host header that names another target than the request itself.

    :param default_port: what no port in the header means.
    """
    for value in rules.values(headers, b"host"):
        found = _read_authority(value, default_port=default_port)
        if isinstance(found, Denial) or (found.host, found.port) != (asked.host, asked.port):
            return rules.refuse_proxied(
                "host", "the Host header names another target than the request", status=400
            )
    return None


def denial_of(
    decision: Decision, asked: Asked, *, session: str, api: tuple[str, int] | None = None
) -> Denial:
    """Return how a target that the policy does not allow is refused.

    :param session: how the user calls it.
    :param api: host and port of the model's API, where the session reaches it.
    """
    if decision.rule is not None:
        # Not where the rule stands: that is a path of the user's.
        return rules.refuse_proxied(
            DENIED, f"{asked.shown} is denied in this session ({decision.rule.pattern}), whatever allows it"
        )
    if (asked.host, asked.port) == api:
        # A tunnel past the inspection is not what an agent should make its user open.
        return rules.refuse_proxied(
            rules.NOT_ALLOWED,
            f"{asked.shown} is the model's API: it is reached through ANTHROPIC_BASE_URL, not by the proxy",
        )
    shown = asked.shown.removesuffix(":443")
    return rules.refuse_proxied(
        rules.NOT_ALLOWED,
        f"{asked.shown} is not allowed in this session; the user can allow it: "
        f"clsecure network allow {session} {shown}",
    )


def forwarded(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers of a request that go on to the target, which is named anew."""
    named = _named_in_connection(headers)
    kept = [(name, value) for name, value in headers if name not in _HOP_BY_HOP | named]
    if rules.values(headers, b"transfer-encoding"):
        kept.append((b"transfer-encoding", b"chunked"))
    return kept


def forwarded_back(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers of a reply that go on to the client."""
    dropped = _HOP_BY_HOP_REPLIES | _named_in_connection(headers)
    if rules.values(headers, b"transfer-encoding"):
        dropped |= {b"content-length"}
    return [(name, value) for name, value in headers if name not in dropped]


def _named_in_connection(headers: Headers) -> frozenset[bytes]:
    # Not the length: a client that has it dropped would leave a body without an end.
    return frozenset(
        name.strip().lower() for value in rules.values(headers, b"connection") for name in value.split(b",")
    ) - {b"content-length"}
