"""A name server of the test's own, by UDP and TCP, and a person whose machine asks it; addresses, too."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import socketserver
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.support.overlaid import overlaid
from tests.support.person import Person

_TYPES = {4: 1, 6: 28}
_NO_SUCH_NAME = 3


class NameServer:
    """Answers from a table that may change at any time, and remembers what it was asked.

    :param address: it listens on port 53 there.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.table: dict[str, list[str]] = {}
        self.asked: list[str] = []
        server = self

        class Datagram(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                data, reply = self.request
                reply.sendto(server.answer(data), self.client_address)

        class Stream(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError, struct.error):
                    (size,) = struct.unpack("!H", self.request.recv(2, socket.MSG_WAITALL))
                    answer = server.answer(self.request.recv(size, socket.MSG_WAITALL))
                    self.request.sendall(struct.pack("!H", len(answer)) + answer)

        self._servers: list[socketserver.BaseServer] = [
            socketserver.ThreadingUDPServer((address, 53), Datagram),
            socketserver.ThreadingTCPServer((address, 53), Stream),
        ]

    def __enter__(self) -> NameServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def asked_about(self, word: str) -> list[str]:
        """Return the questions whose name holds a word."""
        return [name for name in self.asked if word in name]

    def answer(self, query: bytes) -> bytes:
        """Note a query and return its answer."""
        name, end = _name(query)
        self.asked.append(name)
        (kind,) = struct.unpack_from("!H", query, end)
        known = self.table.get(name)
        found = [ipaddress.ip_address(each) for each in known or ()]
        records = b"".join(
            struct.pack("!HHHLH", 0xC00C, kind, 1, 0, len(each.packed)) + each.packed
            for each in found
            if _TYPES[each.version] == kind
        )
        count = sum(_TYPES[each.version] == kind for each in found)
        flags = 0x8580 | (0 if known is not None else _NO_SUCH_NAME)
        return query[:2] + struct.pack("!HHHHH", flags, 1, count, 0, 0) + query[12 : end + 4] + records


def question(name: str) -> bytes:
    """Return a query for the IPv4 address of a name."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", 0x4242, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, 1, 1)


def _name(query: bytes) -> tuple[str, int]:
    labels, at = [], 12
    while size := query[at]:
        labels.append(query[at + 1 : at + 1 + size].decode("ascii", "replace"))
        at += 1 + size
    return ".".join(labels).lower(), at + 1


def own_resolver(person: Person, server: NameServer, directory: Path) -> Person:
    """Return the person as one whose machine asks a name server of the test's."""
    file = directory / "resolv.conf"
    file.write_text(f"nameserver {server.address}\noptions timeout:2 attempts:1\n")
    file.chmod(0o644)
    return overlaid(person, {"/etc/resolv.conf": file})


@contextlib.contextmanager
def own_address(*addresses: str) -> Iterator[str]:
    """Give the machine addresses of the test's own, on an interface that goes away again."""
    name = f"clst{os.urandom(4).hex()}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)

    ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p")
    try:
        for address in addresses:
            options = ["nodad"] if ":" in address else []
            ip("addr", "add", f"{address}/{128 if options else 32}", "dev", name, *options)
        for end in (name, f"{name}p"):
            ip("link", "set", end, "up")
        yield name
    finally:
        ip("link", "delete", name)
