"""What is on the other side while the gateway is measured: a process of its own, so that no lock is shared.

``python -m benchmarks.endpoints CERTIFICATE`` prints its ports as JSON and serves until its standard input
ends. Everything is as plain as it can be: what is to be measured is what lies in between.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable

BLOCK = 1 << 20
DOWN, UP = b"D", b"U"
SENT = b'"sent": '
"""In each event of a stream, followed by the time at which it was sent, of the clock of all processes."""

_EVENT = b'event: content_block_delta\ndata: {"type": "content_block_delta", %b%b}\n\n'


def events(count: int, interval: float) -> dict[str, object]:
    """Return the body of a request that :func:`_api` answers with a stream."""
    user = {"user_id": f"{interval}"}
    return {"model": "m", "max_tokens": count, "stream": True, "metadata": user, "messages": []}


def _api(connection: socket.socket) -> None:
    """Answer requests to the Messages API, one after the other: with events, each saying when it was sent."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb") as file:
        while line := file.readline():
            length = 0
            while line not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
                line = file.readline()
            body = json.loads(file.read(length))
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for _ in range(body["max_tokens"]):
                time.sleep(float(body["metadata"]["user_id"]))
                event = _EVENT % (SENT, repr(time.monotonic()).encode())
                connection.sendall(b"%x\r\n%b\r\n" % (len(event), event))
            connection.sendall(b"0\r\n\r\n")


def _web(connection: socket.socket) -> None:
    """Answer ``GET /SIZE`` with so many bytes."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb") as file:
        while line := file.readline():
            size = int(line.split()[1].rpartition(b"/")[2])
            while file.readline() not in (b"\r\n", b""):
                pass
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            send(connection, size)


def _bulk(connection: socket.socket) -> None:
    """Send or take as many bytes as the client says, and then say that it is done."""
    with connection:
        order = b""
        while len(order) < 9:
            order += connection.recv(9 - len(order))
        size = int.from_bytes(order[1:], "big")
        if order[:1] == DOWN:
            send(connection, size)
        else:
            receive(connection, size)
            connection.sendall(b"!")


def send(connection: socket.socket, size: int) -> None:
    """Send so many bytes."""
    block = memoryview(bytes(BLOCK))
    while size > 0:
        connection.sendall(block[:size])
        size -= BLOCK


def receive(connection: socket.socket, size: int) -> None:
    """Take exactly so many bytes."""
    block = memoryview(bytearray(BLOCK))
    while size > 0:
        got = connection.recv_into(block, min(size, BLOCK))
        if not got:
            raise EOFError(size)
        size -= got


def _serve(answer: Callable[[socket.socket], None], *, tls: ssl.SSLContext | None = None) -> int:
    """Answer every connection in a thread of its own; return the port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            answer(connection if tls is None else tls.wrap_socket(connection, server_side=True))

    def accept() -> None:
        while True:
            threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


def main(certificate: str) -> None:
    """Serve until the standard input ends."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    ports = {"api": _serve(_api), "web": _serve(_web), "tcp": _serve(_bulk), "tls": _serve(_bulk, tls=tls)}
    sys.stdout.write(json.dumps(ports) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
