"""Where the model's API is and which credential opens it. Both come from the user, never from the agent."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from clsecure.errors import EgressError
from clsecure.settings.structured import Auth, ProviderTable

DEFAULT_BASE_URL = "https://api.anthropic.com"

_MAX_CREDENTIALS_FILE = 1 << 20
_VALUE = re.compile(r"[\x21-\x7e]{1,16384}")
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")
_RENEW = "Run `claude setup-token` and set CLAUDE_CODE_OAUTH_TOKEN to what it prints"


class CredentialKind(StrEnum):
    """How a credential is presented: as ``x-api-key``, or as ``Authorization: Bearer``."""

    API_KEY = "api_key"
    BEARER = "bearer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What opens the provider's API. Lives on the host only.

    :param value: the secret; never shown. Empty exactly when ``file`` says where to read it each time.
    :param variable: the variable under which the agent gets the session's token in its place, so that it
        sends the headers that go with this kind (an OAuth token needs another ``anthropic-beta`` than a key).
    :param file: Claude Code's own credentials file, read at each use and never copied: when the user's Claude
        Code renews the token there, the session goes on with the new one.
    """

    kind: CredentialKind
    value: str = field(repr=False, default="")
    variable: str = "ANTHROPIC_API_KEY"
    file: Path | None = None

    def current(self) -> str:
        """Return the secret as it is now.

        :raises EgressError: the file's token is gone or has expired.
        """
        if self.file is None:
            return self.value
        value = read_subscription_token(self.file)
        if value is None:
            raise EgressError("The subscription's token is no longer there", resolution=_RENEW)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """The API that the gateway forwards to, and nothing else.

    :param base_url: scheme, host, port and path prefix, normalised, without a slash at the end.
    :param user_named: the user's own settings or environment named this URL. Only then may the address be a
        loopback or private one.
    :param ca_file: further certificate authorities to trust (a company's model gateway).
    :param provider_tools: let the request body ask the provider to fetch, search or run code for the agent.
    """

    base_url: str = DEFAULT_BASE_URL
    user_named: bool = False
    ca_file: Path | None = None
    provider_tools: bool = False

    @property
    def tls(self) -> bool:
        """The URL is https."""
        return self.base_url.startswith("https:")

    @property
    def host(self) -> str:
        """Host name or address, without brackets."""
        return urlsplit(self.base_url).hostname or ""

    @property
    def port(self) -> int:
        """The port, also where the URL has none."""
        return urlsplit(self.base_url).port or (443 if self.tls else 80)

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        return urlsplit(self.base_url).netloc

    @property
    def prefix(self) -> str:
        """What goes before every path, ``""`` or ``/something``."""
        return urlsplit(self.base_url).path


def find_provider(
    environ: Mapping[str, str], *, base_url: str | None = None, served: ProviderTable | None = None
) -> Provider:
    """Return the provider that the user's settings or environment name, or the default.

    :param environ: the user's environment: ANTHROPIC_BASE_URL, NODE_EXTRA_CA_CERTS, SSL_CERT_FILE.
    :param base_url: from the user's settings; wins over the environment.
    :param served: another provider than Anthropic; the environment's address is Anthropic's, and not asked.
    :raises EgressError: the URL can't be used.
    """
    ca_file = environ.get("NODE_EXTRA_CA_CERTS") or environ.get("SSL_CERT_FILE") or ""
    if served is not None:
        place = served.source or f"the provider {served.name}"
        url = normalise_base_url(served.base_url, resolution=f"Correct its base_url ({place})")
        named = not served.built_in
    else:
        said = base_url or environ.get("ANTHROPIC_BASE_URL") or ""
        url, named = normalise_base_url(said or DEFAULT_BASE_URL), bool(said)
    return Provider(
        base_url=url, user_named=named, ca_file=Path(ca_file) if ca_file.startswith("/") else None
    )


def table_credential(served: ProviderTable, key: str) -> Credential:
    """Return the credential of another provider than Anthropic, whose key is known."""
    match served.auth:
        case Auth.API_KEY:
            return Credential(kind=CredentialKind.API_KEY, value=key, variable="ANTHROPIC_API_KEY")
        case Auth.BEARER:
            return Credential(kind=CredentialKind.BEARER, value=key, variable="ANTHROPIC_AUTH_TOKEN")


def normalise_base_url(url: str, *, resolution: str = "Correct or unset ANTHROPIC_BASE_URL") -> str:
    """Return the URL in the one form that is compared and connected to.

    :param resolution: what the user can do about a wrong one.
    :raises EgressError: it is not http(s), has user information, a query or odd characters, or is plain http
        to a public address.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise _bad_url("it can't be parsed", resolution) from error
    if parts.scheme not in {"http", "https"}:
        raise _bad_url("it is neither http nor https", resolution)
    if "@" in parts.netloc:
        # Not echoed: what stands there is usually a password.
        raise _bad_url("it holds user information", resolution)
    if parts.query or parts.fragment:
        raise _bad_url("it has a query or a fragment", resolution)
    try:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address | None = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if address is None:
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise _bad_url("its host is not a valid name", resolution) from error
        if not _HOST.fullmatch(host):
            raise _bad_url("its host is not a valid name", resolution)
    if address is not None and address.is_global and parts.scheme == "http":
        raise _bad_url("plain http to a public address would send the key in the clear", resolution)
    prefix = parts.path.rstrip("/")
    if not _PREFIX.fullmatch(prefix) or any(part in {".", ".."} for part in prefix.split("/")):
        raise _bad_url("its path has odd characters", resolution)
    literal = f"[{host}]" if address is not None and address.version == 6 else host
    default = 443 if parts.scheme == "https" else 80
    return f"{parts.scheme}://{literal}{f':{port}' if port not in (None, default) else ''}{prefix}"


def _bad_url(why: str, resolution: str) -> EgressError:
    return EgressError(f"The API's base URL can't be used: {why}", resolution=resolution)


def find_credential(environ: Mapping[str, str], home: Path) -> Credential | None:
    """Return the credential that Claude Code itself would use here, or None when there is none.

    :param environ: the user's environment.
    :param home: the user's home directory, for the subscription's token in ``.claude/.credentials.json``.
    :raises EgressError: there is one that can't be used (malformed, expired).
    """
    for variable, kind in (
        ("ANTHROPIC_API_KEY", CredentialKind.API_KEY),
        ("ANTHROPIC_AUTH_TOKEN", CredentialKind.BEARER),
        ("CLAUDE_CODE_OAUTH_TOKEN", CredentialKind.BEARER),
    ):
        value = environ.get(variable, "").strip()
        if value:
            if not _VALUE.fullmatch(value):
                raise EgressError(f"{variable} holds characters that no credential has")
            return Credential(kind=kind, value=value, variable=variable)
    directory = environ.get("CLAUDE_CONFIG_DIR", "")
    file = (Path(directory) if directory.startswith("/") else home / ".claude") / ".credentials.json"
    if read_subscription_token(file) is None:
        return None
    return Credential(kind=CredentialKind.BEARER, variable="CLAUDE_CODE_OAUTH_TOKEN", file=file)


def read_subscription_token(file: Path) -> str | None:
    """Return the access token in Claude Code's credentials file, None when there is no file or no token.

    :raises EgressError: the file can't be read, or the token has expired. It is never renewed from here: that
        would invalidate the one that the user's Claude Code holds.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise EgressError("Claude Code's credentials can't be read", details=str(error)) from error
    try:
        # Before it becomes a stream: a directory can't be one.
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise EgressError("Claude Code's credentials are not in a regular file")
        with os.fdopen(os.dup(descriptor), "rb") as stream:
            content = stream.read(_MAX_CREDENTIALS_FILE + 1)
    finally:
        os.close(descriptor)
    try:
        if len(content) > _MAX_CREDENTIALS_FILE:
            raise ValueError("too large")
        oauth = json.loads(content).get("claudeAiOauth") or {}
        token, expires_ms = oauth.get("accessToken"), oauth.get("expiresAt")
        expired = expires_ms is not None and float(expires_ms) / 1000 <= time.time()
    except (ValueError, AttributeError, TypeError, RecursionError):
        # Without the cause: a decoding error quotes what it read.
        raise EgressError("Claude Code's credentials file is malformed", resolution=_RENEW) from None
    if not token:
        return None
    if not isinstance(token, str) or not _VALUE.fullmatch(token):
        raise EgressError("Claude Code's credentials file is malformed", resolution=_RENEW)
    if expired:
        raise EgressError(
            "The subscription's token in Claude Code's credentials file has expired",
            details="clsecure never renews it: that would end the session of your own Claude Code.",
            resolution=f"Start `claude` once on this machine, or: {_RENEW}",
        )
    return token
