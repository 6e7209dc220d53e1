"""Which addresses the provider's name may lead to. What was checked is what is connected to.

A name that the user did not name must lead to public addresses. One that the user did name may lead to
private ones (a model gateway on the LAN), but stays what it was at first: a public name that turns private
later is somebody else's doing. Link-local addresses, and with them the clouds' metadata services, are never
allowed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from enum import StrEnum

from clsecure.egress.provider import Provider
from clsecure.errors import EgressError

Resolver = Callable[[str, int], Awaitable[list[str]]]
"""Host and port to addresses as text."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LIFETIME = 60.0
_TIMEOUT = 15.0
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Metadata services that are not link-local.
_METADATA = frozenset({ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")})


class Scope(StrEnum):
    """Where an address leads."""

    PUBLIC = "public"
    PRIVATE = "private"
    """Loopback, private ranges, carrier-grade NAT."""

    FORBIDDEN = "forbidden"
    """Link-local, multicast, unspecified, reserved, metadata."""


def scope_of(address: Address) -> Scope:
    """Return where an address leads; IPv6 forms that carry an IPv4 address lead where that one does."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return scope_of(inner)
        if address.teredo is not None:
            return Scope.FORBIDDEN
    if (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address in _METADATA
        or (address.is_reserved and not address.is_loopback)
    ):
        return Scope.FORBIDDEN
    return Scope.PUBLIC if address.is_global else Scope.PRIVATE


async def system_resolver(host: str, port: int) -> list[str]:
    """Ask the machine's own resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


class AddressBook:
    """The provider's addresses, resolved now and then and checked each time.

    :param resolve: how a name becomes addresses.
    """

    def __init__(self, provider: Provider, *, resolve: Resolver = system_resolver) -> None:
        self._provider = provider
        self._resolve = resolve
        self._scope: Scope | None = None
        self._addresses: tuple[str, ...] = ()
        self._expires = 0.0

    async def addresses(self) -> tuple[str, ...]:
        """Return the addresses that may be connected to, best first.

        :raises EgressError: the name can't be resolved, or leads to where it must not.
        """
        now = asyncio.get_running_loop().time()
        if now >= self._expires:
            self._addresses = self._check(await self._look_up())
            self._expires = now + _LIFETIME
        return self._addresses

    def forget(self) -> None:
        """Resolve anew next time: none of the addresses answered."""
        self._expires = 0.0

    async def _look_up(self) -> list[Address]:
        host = self._provider.host
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            pass
        try:
            async with asyncio.timeout(_TIMEOUT):
                found = await self._resolve(host, self._provider.port)
            return [ipaddress.ip_address(address) for address in found]
        except (OSError, ValueError, UnicodeError) as error:
            raise EgressError(f"{host} can't be resolved") from error

    def _check(self, found: list[Address]) -> tuple[str, ...]:
        host = self._provider.host
        if not found:
            raise EgressError(f"{host} has no address")
        scopes = {scope_of(address) for address in found}
        if Scope.FORBIDDEN in scopes or len(scopes) != 1:
            raise EgressError(f"{host} leads to an address that is never allowed, or to mixed ones")
        scope = scopes.pop()
        if scope is Scope.PRIVATE and not self._provider.user_named:
            raise EgressError(f"{host} leads to a private address")
        if self._scope not in {None, scope}:
            raise EgressError(f"{host} led to {self._scope} addresses and now leads to {scope} ones")
        if scope is Scope.PUBLIC and not self._provider.tls:
            raise EgressError(f"{host} is public: plain http would send the key in the clear")
        self._scope = scope
        return tuple(str(address) for address in found)
