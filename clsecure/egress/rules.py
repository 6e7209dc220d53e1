"""What may pass, judged by the head of a request alone. Pure: no socket, no clock, no file.

A request is refused unless a rule names its method and its path. The path is taken literally: whatever
another parser could read differently (escapes, dot segments, empty segments, an absolute form) is refused
before it is compared.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case."""

_PATH = re.compile(rb"/[A-Za-z0-9._~:@/-]{0,511}")
_QUERY = re.compile(rb"[A-Za-z0-9._~:@/?%&=+,;!$'()*-]{0,1024}")
_FORWARDED = frozenset({b"accept", b"content-type", b"user-agent", b"x-app", b"x-client-request-id"})
_FORWARDED_PREFIXES = (b"anthropic-", b"x-stainless-", b"x-claude-")
JSON_MEDIA = re.compile(rb'application/json(?:[ \t]*;[ \t]*charset=(?:utf-8|"utf-8"))?', re.IGNORECASE)
"""No other charset: in UTF-7, for one, what is plain text here would be quotes and braces there."""

OWN_NAMES = frozenset({b"127.0.0.1", b"localhost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing that the agent may ask of the provider.

    :param name: how the event log calls it.
    :param below: paths below ``path`` belong to it too.
    :param inspected: has a body, which must be a Messages request that :mod:`clsecure.egress.bodies` accepts.
        Rules without it take no body.
    """

    name: str
    methods: frozenset[bytes]
    path: bytes
    below: bool = False
    inspected: bool = False


MESSAGES = "messages"
"""The rule whose replies cost tokens."""

# What Claude Code needs to work, observed with 2.1: HEAD / once, then messages. Everything else it asks for
# (telemetry, feature flags, the user's profile) is refused, and it works without.
MESSAGES_API_RULES: tuple[Rule, ...] = (
    Rule(name="root", methods=frozenset({b"HEAD", b"GET"}), path=b"/"),
    Rule(name=MESSAGES, methods=frozenset({b"POST"}), path=b"/v1/messages", inspected=True),
    Rule(
        name="count-tokens", methods=frozenset({b"POST"}), path=b"/v1/messages/count_tokens", inspected=True
    ),
    Rule(name="models", methods=frozenset({b"GET"}), path=b"/v1/models", below=True),
)


POLICY = Rule(name="policy", methods=frozenset({b"GET"}), path=b"/.clsecure/policy")
"""What the session may reach: answered by the gateway itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """Why a request is refused.

    :param rule: short name for the event log.
    :param kind: ``error.type`` of the reply, in the provider's vocabulary.
    :param reason: one sentence for the agent and the log, without anything secret.
    :param proxied: said to a client that takes the gateway for a proxy.
    """

    rule: str
    status: int
    kind: str
    reason: str
    proxied: bool = False


def refuse_proxied(rule: str, reason: str, *, status: int = 403) -> Denial:
    """Return a refusal for a client that takes the gateway for a proxy."""
    return Denial(rule=rule, status=status, kind="", reason=reason, proxied=True)


def deny(rule: str, reason: str, *, status: int = 403, kind: str = "permission_error") -> Denial:
    """Return a refusal."""
    return Denial(rule=rule, status=status, kind=kind, reason=reason)


def malformed(rule: str, reason: str) -> Denial:
    """Return a refusal of something that is not a proper request."""
    return deny(rule, reason, status=400, kind="invalid_request_error")


def values(headers: Headers, name: bytes) -> list[bytes]:
    """Return all values of a header."""
    return [value for key, value in headers if key == name]


FRAMING = "framing"
"""The rule of refusals after which nothing on the connection can be trusted to be a request."""


PROXY_TOKEN_STATUS = 407

USER = b"clsecure"
"""The user whose password the token is, where a client wants to name one."""


NOT_ALLOWED = "not-allowed"
"""The rule of refusals of a target that nothing allows: the user can allow it. Not of one that is denied."""


def check_framing(version: bytes, headers: Headers) -> Denial | None:
    """Refuse what two HTTP parsers could cut into requests differently; h11 alone lets all of this pass."""
    if version not in {b"1.0", b"1.1"}:
        return malformed(FRAMING, "only HTTP/1.1 is spoken here")
    if values(headers, b"transfer-encoding") and values(headers, b"content-length"):
        return malformed(FRAMING, "Content-Length and Transfer-Encoding together")
    if values(headers, b"upgrade"):
        return malformed(FRAMING, "protocol upgrades are not offered")
    return None


def check_host(headers: Headers, *, port: int) -> Denial | None:
    """Refuse a request that was meant for somebody else: only the gateway's own address is served."""
    hosts = values(headers, b"host")
    if len(hosts) != 1:
        return malformed("host", "exactly one Host header is needed")
    name, _, number = hosts[0].partition(b":")
    if name not in OWN_NAMES or number != str(port).encode():
        return deny("host", "only the gateway's own address is served here, not another host")
    return None


def check_token(headers: Headers, *, token: str) -> Denial | None:
    """Refuse everybody who does not hold the session's token, and a foreign key even beside it."""
    presented = values(headers, b"x-api-key")
    for value in values(headers, b"authorization"):
        presented.append(token_in(value))
    if not presented:
        return deny("token", "no credential was sent", status=401, kind="authentication_error")
    expected = token.encode()
    # A list, not a generator: every value is compared, so that time says nothing about which one was wrong.
    if not all([hmac.compare_digest(value, expected) for value in presented]):  # noqa: C419
        return deny(
            "token",
            "only the session's own token is accepted here, no other key",
            status=401,
            kind="authentication_error",
        )
    return None


def token_in(authorization: bytes) -> bytes:
    """Return the token in the value of an Authorization header: Bearer, or the password of Basic.

    Empty, which no token is, where there is none.
    """
    scheme, _, rest = authorization.partition(b" ")
    match scheme.lower():
        case b"bearer":
            return rest.strip()
        case b"basic":
            # What clients make of http://clsecure:TOKEN@…
            try:
                user, _, password = base64.b64decode(rest.strip(), validate=True).partition(b":")
            except ValueError:
                return b""
            return password if user == USER else b""
        case _:
            return b""


def is_greeting(method: bytes, target: bytes, headers: Headers) -> bool:
    """Tell Claude Code's very first request: it only opens a connection, and carries no credential.

    The gateway answers it alone and asks the provider nothing; as a refusal it would stand in every session's
    list of what was blocked.
    """
    credentials = (b"x-api-key", b"authorization")
    return method == b"HEAD" and target == b"/" and not any(values(headers, name) for name in credentials)


def find_rule(method: bytes, target: bytes, rules: Sequence[Rule]) -> Rule | Denial:
    """Return the rule that lets a request pass, or why none does."""
    if not target.startswith(b"/"):
        return deny("target-form", "the target must be a path of the model's API")
    path, question, query = target.partition(b"?")
    if not _PATH.fullmatch(path) or (question and not _QUERY.fullmatch(query)):
        return deny("path", "the path holds escapes or characters that are not forwarded")
    segments = path.split(b"/")[1:]
    if path != b"/" and any(segment in {b"", b".", b".."} for segment in segments):
        return deny("path", "the path holds empty or dot segments")
    for rule in rules:
        if path == rule.path or (rule.below and path.startswith(rule.path + b"/")):
            if method in rule.methods:
                return rule
            return deny("method", f"{method.decode('ascii', 'replace')} is not allowed on this path")
    return deny(
        "path",
        "this path is not among those that a session may reach (messages, count_tokens, models); "
        "the user decides that, not the agent",
    )


def forwarded_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return what is passed on: an allow-list, so no credential, cookie or routing header of the agent is."""
    return [
        (name, value) for name, value in headers if name in _FORWARDED or name.startswith(_FORWARDED_PREFIXES)
    ]
