"""The first message of TLS, as a client means it and as a hostile one bends it."""

from __future__ import annotations

import contextlib
import ssl
import struct

SERVER_NAME = 0
ENCRYPTED_HELLO = 0xFE0D
_RECORD, _HANDSHAKE = 5, 4


def client_hello(name: str | None) -> bytes:
    """Return a real ClientHello in one record, for a name or for none."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    out = ssl.MemoryBIO()
    with_name = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        with_name.do_handshake()
    return out.read()


def with_extension(hello: bytes, kind: int, data: bytes) -> bytes:
    """Return a ClientHello with one more extension at its end."""
    message = bytearray(hello[_RECORD:])
    at = _HANDSHAKE + 2 + 32
    at += 1 + message[at]  # session id
    at += 2 + int.from_bytes(message[at : at + 2])  # cipher suites
    at += 1 + message[at]  # compression
    extension = struct.pack("!HH", kind, len(data)) + data
    message[at : at + 2] = struct.pack("!H", int.from_bytes(message[at : at + 2]) + len(extension))
    message += extension
    message[1:4] = struct.pack("!I", len(message) - _HANDSHAKE)[1:]
    return record(bytes(message))


def server_name(*names: str) -> bytes:
    """Return the data of a server name extension that lists names."""
    listed = b"".join(struct.pack("!BH", 0, len(name)) + name.encode() for name in names)
    return struct.pack("!H", len(listed)) + listed


def record(message: bytes, kind: int = 22) -> bytes:
    """Return a record of TLS."""
    return struct.pack("!BHH", kind, 0x0301, len(message)) + message


def in_records(hello: bytes, size: int) -> bytes:
    """Return the same ClientHello in many small records."""
    message = hello[_RECORD:]
    return b"".join(record(message[at : at + size]) for at in range(0, len(message), size))
