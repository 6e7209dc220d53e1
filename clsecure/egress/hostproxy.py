"""The proxies that this machine itself uses on its way out, and when.

A target's name is then resolved at the proxy: the gateway can't check or pin the addresses behind it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import unquote_to_bytes, urlsplit

from clsecure.egress.addresses import Target, check_scope, scope_of
from clsecure.egress.wire import HostProxies
from clsecure.errors import EgressError

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """One proxy.

    :param tls: it is spoken to over TLS.
    :param authorization: the value of Proxy-Authorization, None where it asks for none.
    """

    host: str
    port: int
    tls: bool = False
    authorization: bytes | None = field(default=None, repr=False)

    @property
    def secret(self) -> str | None:
        """What must not come back in a reply: user and password as they are sent."""
        return None if self.authorization is None else self.authorization.rpartition(b" ")[2].decode("ascii")

    @property
    def target(self) -> Target:
        """What is connected to: the user named it, so it may be anywhere."""
        return Target(host=self.host, port=self.port, may_be_private=True)


def parse_proxy(url: str) -> Proxy:
    """Read a proxy's URL.

    :raises EgressError: it is malformed or of a kind that is not spoken here. It is not quoted, since it may
        hold a password.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise _bad_proxy("it can't be parsed") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise _bad_proxy("only http:// and https:// proxies are spoken to")
    if not host or not host.isascii() or not host.isprintable():
        raise _bad_proxy("it names no host")
    authorization = None
    if parts.username is not None:
        # Environments hold any bytes, and so do passwords.
        user, password = (
            unquote_to_bytes((part or "").encode("utf-8", "surrogateescape"))
            for part in (parts.username, parts.password)
        )
        authorization = b"Basic " + base64.b64encode(user + b":" + password)
    return Proxy(
        host=host,
        port=port or _DEFAULT_PORTS[parts.scheme],
        tls=parts.scheme == "https",
        authorization=authorization,
    )


def _bad_proxy(why: str) -> EgressError:
    return EgressError(
        f"This machine's own proxy can't be used: {why}",
        resolution="Correct or unset HTTP_PROXY and HTTPS_PROXY",
    )


class WayOut:
    """Decides which proxy a target is reached through.

    :raises EgressError: a proxy's URL can't be used.
    """

    def __init__(self, proxies: HostProxies) -> None:
        self._http = parse_proxy(proxies.http) if proxies.http else None
        self._https = parse_proxy(proxies.https) if proxies.https else None
        self._bypassed: Callable[[str], object] | None = None
        if proxies.no_proxy and (self._http or self._https):
            # Costly to import, and few machines have a proxy. Not later: the gateway gives up its files.
            from urllib.request import proxy_bypass

            self._bypassed = partial(proxy_bypass, proxies={"no": proxies.no_proxy})

    @property
    def tls(self) -> bool:
        """Some proxy is spoken to over TLS."""
        return any(proxy is not None and proxy.tls for proxy in (self._http, self._https))

    def for_tunnel(self, target: Target) -> Proxy | None:
        """Return the proxy for a stream of bytes, None for the direct way.

        :raises AddressDeniedError: the target is an address that it must not be.
        """
        return self._https if self._https is not None and self._applies(target) else None

    def for_http(self, target: Target) -> Proxy | None:
        """Return the proxy for plain HTTP, None for the direct way.

        :raises AddressDeniedError: the target is an address that it must not be.
        """
        return self._http if self._http is not None and self._applies(target) else None

    def _applies(self, target: Target) -> bool:
        address = target.address
        # This machine's own loopback is never behind a proxy, and what a key goes to in the clear is checked.
        loopback = target.host == "localhost" or (address is not None and address.is_loopback)
        if target.connect is not None or target.must_be_private or loopback:
            return False
        if self._bypassed is not None and self._bypassed(target.authority):
            return False
        if address is not None:
            check_scope(target, scope_of(address))
        return True
