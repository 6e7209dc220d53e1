"""The host's own listeners: which there are, and who of those that come to them is the probe.

Anybody on this machine may connect to them meanwhile, as whoever looks for open ports does. So the probe says
a word that nobody else knows, and who does not say it was not heard.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

from clsecure.verify.services import BAIT

_BY_UDP = " by UDP"
LOOPBACK = ("127.0.0.1", "::1", f"127.0.0.1{_BY_UDP}", f"::1{_BY_UDP}")
ABSTRACT, NAMED = "an abstract socket", "a socket in /tmp"
MOST_ADDRESSES = 32
"""Of this machine's own; those from which it speaks to others come first."""
_ANYWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""RFC 5737 and 3849: nobody's; connecting a datagram socket sends nothing."""
_FAMILIES = {socket.AF_INET: "inet", socket.AF_INET6: "inet6", socket.AF_UNIX: "unix"}
_GRACE = 0.2
"""Seconds in which a word may be on its way still: what connects a sandbox passes it on by and by."""
_CALLERS = 64
"""Most that are listened to at a time; those that have been silent for longest give way."""

Place = tuple[str, str | tuple[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ears:
    """Listeners of the user's.

    :param word: what the probe says to each of them.
    :param addresses: the labels of those at this machine's own addresses, but for loopback.
    """

    word: str
    addresses: tuple[str, ...]
    _listeners: Mapping[str, socket.socket] = field(repr=False)

    def places(self, kind: socket.SocketKind) -> dict[str, Place]:
        """Return family and address of those that take connections, or datagrams."""
        return {
            label: (_FAMILIES[each.family], _address(each))
            for label, each in self._listeners.items()
            if each.type == kind
        }

    def heard(self, expected: Iterable[str] = ()) -> frozenset[str]:
        """Return the listeners to which the word was said since this was last asked.

        :param expected: those to which the probe says that it came. They, and whoever has connected and says
            nothing, are waited for, for a moment.
        """
        wanted = self._listeners.keys() & set(expected)
        found: set[str] = set()
        callers: dict[socket.socket, tuple[str, bytearray]] = {}
        deadline = time.monotonic() + _GRACE
        try:
            while True:
                for label, each in self._listeners.items():
                    if each.type == socket.SOCK_DGRAM:
                        found.update(label for data in _received(each) if data == self.word.encode())
                    else:
                        _accept(each, label, callers)
                found.update(_said(callers, self.word.encode()))
                left = deadline - time.monotonic()
                if left <= 0 or not (callers or wanted - found):
                    return frozenset(found)
                _wait([*callers, *(self._listeners[label] for label in wanted - found)], left)
        finally:
            for each in callers:
                each.close()


@contextlib.contextmanager
def listening(directory: Path) -> Iterator[Ears]:
    """Listen at all that this machine has of each kind: one without IPv6 has no listener there.

    :param directory: of the socket with a name.
    """
    with contextlib.ExitStack() as stack:
        word = secrets.token_hex(16)
        listeners = {label: stack.enter_context(each) for label, each in _listeners(directory)}
        inside = {*LOOPBACK, ABSTRACT, NAMED}
        yield Ears(
            word=word,
            addresses=tuple(label for label in listeners if label not in inside),
            _listeners=listeners,
        )


def own_addresses() -> tuple[str, ...]:
    """Return this machine's addresses but for those of loopback and of single links, bounded.

    Of a whole range that is routed to the machine itself it is one of its addresses.
    """
    from clsecure.privileged.root.network import host_addresses

    found: list[str] = []
    for each in host_addresses():
        with contextlib.suppress(ValueError):
            network = ip_network(each, strict=False)
            address = network[0] if network.num_addresses == 1 else network[1]
            if not (address.is_loopback or address.is_link_local or address.is_multicast):
                found.append(str(address))
    speaks = {_speaks_from(family, far) for family, far in _ANYWHERE}
    ordered = sorted(dict.fromkeys(found), key=lambda each: each not in speaks)
    return tuple(ordered[:MOST_ADDRESSES])


def _speaks_from(family: socket.AddressFamily, far: str) -> str | None:
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((far, 9))
        return str(probe.getsockname()[0])
    return None


def _wanted(directory: Path) -> Iterator[tuple[str, int, str | tuple[str, int], int]]:
    """Give label, family, address and kind of each."""
    yield NAMED, socket.AF_UNIX, str(directory / "socket"), socket.SOCK_STREAM
    yield ABSTRACT, socket.AF_UNIX, f"\0{BAIT}{secrets.token_hex(8)}", socket.SOCK_STREAM
    for address in (*LOOPBACK[:2], *own_addresses()):
        family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
        yield address, family, (address, 0), socket.SOCK_STREAM
        yield f"{address}{_BY_UDP}", family, (address, 0), socket.SOCK_DGRAM


def _listeners(directory: Path) -> Iterator[tuple[str, socket.socket]]:
    for label, family, place, kind in _wanted(directory):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(family, kind))
            listener.settimeout(0)
            listener.bind(place)
            if kind == socket.SOCK_STREAM:
                listener.listen(16)
            if label == NAMED:
                (directory / "socket").chmod(0o777)
            stack.pop_all()
            yield label, listener


def _address(listener: socket.socket) -> str | tuple[str, int]:
    found = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return found if isinstance(found, str) else found.decode()
    return str(found[0]), int(found[1])


def _received(listener: socket.socket) -> Iterator[bytes]:
    """Give the datagrams that have come; of one that is too long, the beginning."""
    with contextlib.suppress(OSError):
        for _ in range(_CALLERS):
            yield listener.recv(256)


def _accept(listener: socket.socket, label: str, callers: dict[socket.socket, tuple[str, bytearray]]) -> None:
    with contextlib.suppress(OSError):
        for _ in range(_CALLERS):
            caller = listener.accept()[0]
            caller.settimeout(0)
            callers[caller] = (label, bytearray())


def _said(callers: dict[socket.socket, tuple[str, bytearray]], word: bytes) -> set[str]:
    """Return the labels of those who have said the word; who is gone or says another is dropped."""
    found = set()
    for caller in list(callers):
        label, said = callers[caller]
        try:
            data = caller.recv(len(word) - len(said))
        except BlockingIOError:
            continue
        except OSError:
            data = b""
        said += data
        if said == word:
            found.add(label)
        if said == word or not data or not word.startswith(said):
            callers.pop(caller)
            caller.close()
    for caller in list(callers)[: max(0, len(callers) - _CALLERS)]:
        callers.pop(caller)
        caller.close()
    return found


def _wait(sockets: Iterable[socket.socket], seconds: float) -> None:
    poll = select.poll()
    for each in sockets:
        poll.register(each, select.POLLIN)
    poll.poll(seconds * 1000)
