"""The first thing that a TLS client says: which host it means. Pure; strict, bounded, fed piece by piece.

Read by hand, since no library in reach reads a ClientHello without answering it. It understands just enough
to find the name and to be sure that the target, however it reads, finds no other one: everything must add up
to the byte, nothing may come twice, and what is not understood is refused.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import IntEnum

MAX_SIZE = 16 << 10
"""Most that a client may send until its hello is complete."""

HANDSHAKE = 0x16
"""First byte of every TLS connection."""

_CLIENT_HELLO = 1
_MAX_RECORD = 1 << 14
_SERVER_NAME = 0
# The standard's, its last drafts', and the older encrypted server name.
_ENCRYPTED = frozenset({0xFE0D, 0xFE0C, 0xFE0B, 0xFE0A, 0xFE09, 0xFE08, 0xFFCE})


class Alert(IntEnum):
    """Reasons in TLS's own words."""

    DECODE_ERROR = 50
    ACCESS_DENIED = 49
    MISSING_EXTENSION = 109
    UNRECOGNIZED_NAME = 112


class HelloError(Exception):
    """What a client said is refused.

    :param reason: for the log; nothing of the client's own words in it.
    :param alert: tells a client that speaks TLS.
    """

    def __init__(self, reason: str, *, alert: int = Alert.DECODE_ERROR) -> None:
        super().__init__(reason)
        self.reason = reason
        self.alert = alert

    @property
    def record(self) -> bytes:
        """The fatal alert, as it goes to the client."""
        return bytes((0x15, 3, 1, 0, 2, 2, self.alert))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a ClientHello says.

    :param server_name: as it was sent; None when the client names none.
    :param encrypted: it may hold another name that can't be read here.
    """

    server_name: bytes | None
    encrypted: bool


class HelloReader:
    """Takes a client's first bytes until its hello is complete."""

    def __init__(self) -> None:
        self._seen = 0
        self._record = bytearray()
        self._message = bytearray()

    def feed(self, data: bytes) -> Hello | None:
        """Take the next piece; return the hello when it is complete. What follows it does not matter.

        :raises HelloError: it is none.
        """
        self._record += data
        self._seen += len(data)
        while len(self._record) >= 5:
            kind, major, _, *length = self._record[:5]
            size = length[0] << 8 | length[1]
            if kind != HANDSHAKE or major != 3 or not 0 < size <= _MAX_RECORD:
                raise HelloError("this is no TLS handshake")
            if len(self._record) < 5 + size:
                break
            self._message += self._record[5 : 5 + size]
            del self._record[: 5 + size]
            if (hello := self._complete()) is not None:
                return hello
        if self._record and self._record[0] != HANDSHAKE:
            raise HelloError("this is no TLS handshake")
        if self._seen > MAX_SIZE:
            raise HelloError("the TLS hello is too large")
        return None

    def _complete(self) -> Hello | None:
        message = self._message
        if message[0] != _CLIENT_HELLO:
            raise HelloError("a TLS handshake begins with a client's hello")
        if len(message) < 4:
            return None
        size = int.from_bytes(message[1:4], "big")
        if size > MAX_SIZE:
            raise HelloError("the TLS hello is too large")
        if len(message) < 4 + size:
            return None
        if len(message) > 4 + size:
            raise HelloError("something follows the TLS hello in its own record")
        return _parse(bytes(message[4:]))


def check_hello(hello: Hello, host: str) -> None:
    """Compare what a client says in TLS with what it asked the gateway for.

    :param host: in canonical form; an address has no name in TLS.
    :raises HelloError: it means another host, or may.
    """
    if hello.encrypted:
        raise HelloError("an encrypted client hello (ECH) hides the host", alert=Alert.ACCESS_DENIED)
    if hello.server_name is None:
        if not _is_address(host):
            raise HelloError("the TLS hello names no host (SNI)", alert=Alert.MISSING_EXTENSION)
    elif hello.server_name != host.encode("ascii"):
        raise HelloError(
            "the TLS hello names another host (SNI) than the one asked for", alert=Alert.UNRECOGNIZED_NAME
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class _Cursor:
    """Takes fields off the front of a message; whatever does not fit is refused."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise HelloError("the TLS hello is malformed")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, length_size: int, *, least: int, most: int) -> bytes:
        size = self.number(length_size)
        if not least <= size <= most:
            raise HelloError("the TLS hello is malformed")
        return self.take(size)


def _parse(body: bytes) -> Hello:
    cursor = _Cursor(body)
    version = cursor.number(2)
    if not 0x0300 <= version <= 0x0303:
        raise HelloError("the TLS hello is of an unknown version")
    cursor.take(32)
    cursor.vector(1, least=0, most=32)
    if len(cursor.vector(2, least=2, most=0xFFFE)) % 2:
        raise HelloError("the TLS hello is malformed")
    cursor.vector(1, least=1, most=0xFF)
    extensions = _extensions(_Cursor(cursor.vector(2, least=0, most=0xFFFF))) if cursor.left else {}
    if cursor.left:
        raise HelloError("the TLS hello is malformed")
    name = None if _SERVER_NAME not in extensions else _server_name(_Cursor(extensions[_SERVER_NAME]))
    return Hello(server_name=name, encrypted=not _ENCRYPTED.isdisjoint(extensions))


def _extensions(cursor: _Cursor) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while cursor.left:
        kind = cursor.number(2)
        if kind in found:
            raise HelloError("the TLS hello holds an extension twice")
        found[kind] = cursor.vector(2, least=0, most=0xFFFF)
    return found


def _server_name(outer: _Cursor) -> bytes:
    names = _Cursor(outer.vector(2, least=1, most=0xFFFF))
    kind = names.number(1)
    name = names.vector(2, least=1, most=255)
    if kind != 0 or names.left or outer.left:
        raise HelloError("the TLS hello names its host in an odd way")
    return name
