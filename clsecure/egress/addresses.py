"""Which addresses a target's name may lead to. What was checked is what is connected to.

A name that the user did not name must lead to public addresses. One that the user did name may lead to
private ones (a model gateway on the LAN), but stays what it was at first: a public name that turns private
later is somebody else's doing. Link-local addresses, and with them the clouds' metadata services, are never
allowed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from clsecure.errors import EgressError
from clsecure.policy import host_and_port

Resolver = Callable[[str, int], Awaitable[list[str]]]
"""Host and port to addresses as text."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_BOOKS = 256
_LIFETIME = 60.0
_TIMEOUT = 15.0
_THREADS = 3
_LOOPBACK = "127.0.0.1"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Metadata services that are not link-local: of AWS, Google, Scaleway, Alibaba and Azure.
_METADATA = frozenset(
    ipaddress.ip_address(address)
    for address in ("fd00:ec2::254", "fd20:ce::254", "fd00:42::42", "100.100.100.200", "168.63.129.16")
)


class Scope(StrEnum):
    """Where an address leads."""

    PUBLIC = "public"
    PRIVATE = "private"
    """Loopback, private ranges, carrier-grade NAT, and whatever addresses this machine has itself."""

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
        if address.is_site_local:
            # Deprecated, and still somebody's own network.
            return Scope.PRIVATE
    if (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address in _METADATA
        or (address.is_reserved and not address.is_loopback)
    ):
        return Scope.FORBIDDEN
    return Scope.PUBLIC if address.is_global else Scope.PRIVATE


def scope_here(address: Address) -> Scope:
    """Return where an address leads from this machine: to an address of its own, past its packet filter."""
    scope = scope_of(address)
    return Scope.PRIVATE if scope is Scope.PUBLIC and _is_own(address) else scope


def _is_own(address: Address) -> bool:
    """Tell whether the machine would speak to itself. Nothing is sent by asking that."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return ipaddress.ip_address(probe.getsockname()[0]) == address
    except OSError:
        return False


class SystemResolver:
    """The machine's own resolver, in threads of its own: a name that nobody answers for holds one up."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=_THREADS)

    async def __call__(self, host: str, port: int) -> list[str]:
        """Ask it."""
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        return list(dict.fromkeys(str(item[4][0]) for item in found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is connected to.

    :param host: as the client and the user call it, in canonical form.
    :param connect: the host whose addresses are used in the place of those of ``host``.
    :param may_be_private: the user named this very host and port.
    :param must_be_private: a secret would go there in the clear.
    :param denied: addresses that the user denied, by whatever name they are reached.
    """

    host: str
    port: int
    connect: str | None = None
    may_be_private: bool = False
    must_be_private: bool = False
    denied: frozenset[str] = frozenset()

    @property
    def address(self) -> Address | None:
        """The address that the host is, None when it is a name."""
        try:
            return ipaddress.ip_address(self.connect or self.host)
        except ValueError:
            return None

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL."""
        return host_and_port(self.host, self.port)


class AddressDeniedError(EgressError):
    """The target's addresses are not among those that it may lead to."""


class AddressBook:
    """One target's addresses, resolved now and then and checked each time.

    :param resolve: how a name becomes addresses.
    """

    def __init__(self, target: Target, *, resolve: Resolver) -> None:
        self._target = target
        self._resolve = resolve
        self._scope: Scope | None = None
        self._addresses: tuple[str, ...] = ()
        self._expires = 0.0

    async def addresses(self) -> tuple[str, ...]:
        """Return the addresses that may be connected to, best first.

        :raises AddressDeniedError: the name leads to where it must not.
        :raises EgressError: it can't be resolved.
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
        if (literal := self._target.address) is not None:
            return [literal]
        try:
            async with asyncio.timeout(_TIMEOUT):
                found = await self._resolve(self._target.connect or self._target.host, self._target.port)
            return [ipaddress.ip_address(address) for address in found]
        except (OSError, ValueError, UnicodeError) as error:
            raise EgressError(f"{self._target.host} can't be resolved") from error

    def _check(self, found: list[Address]) -> tuple[str, ...]:
        host = self._target.host
        if not found:
            raise EgressError(f"{host} has no address")
        if any(_is_among(address, self._target.denied) for address in found):
            raise AddressDeniedError(f"{host} leads to an address that the user denied")
        scopes = {scope_here(address) for address in found}
        if Scope.FORBIDDEN in scopes or len(scopes) != 1:
            raise AddressDeniedError(f"{host} leads to an address that is never allowed, or to mixed ones")
        scope = scopes.pop()
        check_scope(self._target, scope)
        if self._scope not in {None, scope}:
            raise AddressDeniedError(f"{host} led to {self._scope} addresses and now leads to {scope} ones")
        self._scope = scope
        return tuple(str(address) for address in found)


def _is_among(address: Address, denied: frozenset[str]) -> bool:
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    plain = inner or address
    return str(plain) in denied or (plain.is_loopback and _LOOPBACK in denied)


def check_scope(target: Target, scope: Scope) -> None:
    """Compare where a target leads with where it may.

    :raises AddressDeniedError: it must not lead there.
    """
    if scope is Scope.FORBIDDEN:
        raise AddressDeniedError(f"{target.host} is an address that is never allowed")
    if scope is Scope.PRIVATE and not target.may_be_private:
        raise AddressDeniedError(
            f"{target.host} leads to a private address",
            resolution="Only hosts and ports that the user named exactly may do that",
        )
    if scope is Scope.PUBLIC and target.must_be_private:
        raise AddressDeniedError(f"{target.host} is public: plain http would send the key in the clear")


class AddressBooks:
    """Address books of several targets. Those of names below a ``*.domain`` are an agent's to multiply.

    :param resolve: how names become addresses, the machine's own way by default: names that the user named
        don't wait for those that an agent makes up.
    """

    def __init__(self, *, resolve: Resolver | None = None) -> None:
        self._resolve_named = resolve or SystemResolver()
        self._resolve_others = resolve or SystemResolver()
        # Never forgotten: a name that was public must not turn private, and only these may be private. There
        # are no more of them than rules.
        self._named: dict[Target, AddressBook] = {}
        self._others: OrderedDict[Target, AddressBook] = OrderedDict()

    def of(self, target: Target) -> AddressBook:
        """Return the one book of a target."""
        named = target.may_be_private
        books = self._named if named else self._others
        book = books.get(target)
        if book is None:
            resolve = self._resolve_named if named else self._resolve_others
            book = books[target] = AddressBook(target, resolve=resolve)
            if len(self._others) > _MAX_BOOKS:
                self._others.popitem(last=False)
        return book
