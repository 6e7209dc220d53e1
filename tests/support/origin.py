"""Servers that a gateway's clients ask for: their side of each connection is accepted and played by hand."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.gateways import TIMEOUT


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A listener on this machine's loopback."""

    listener: socket.socket
    port: int

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"

    def accept(self) -> socket.socket:
        connection, _ = self.listener.accept()
        connection.settimeout(TIMEOUT)
        return connection

    def nobody_came(self) -> bool:
        """Tell whether nobody connected. Ask when whoever might have has been answered."""
        self.listener.setblocking(False)
        try:
            self.listener.accept()[0].close()
        except BlockingIOError:
            return True
        finally:
            self.listener.settimeout(TIMEOUT)
        return False


@contextmanager
def origin(host: str = "127.0.0.1") -> Iterator[Origin]:
    """Listen."""
    with socket.create_server((host, 0)) as listener:
        listener.settimeout(TIMEOUT)
        yield Origin(listener=listener, port=listener.getsockname()[1])


@contextmanager
def serving(answer: Callable[[socket.socket], None], *, certificate: Path | None = None) -> Iterator[Origin]:
    """Listen, and answer each connection in a thread of its own until it returns."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)

    def one(connection: socket.socket) -> None:
        try:
            with connection:
                if context is None:
                    answer(connection)
                else:
                    with context.wrap_socket(connection, server_side=True) as secured:
                        answer(secured)
        except OSError:
            # A client that goes away is no failure of the server's.
            pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            connection.settimeout(TIMEOUT)
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    with origin() as listening:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listening
        # Wakes the thread that accepts; closing alone would not.
        listening.listener.shutdown(socket.SHUT_RDWR)
        thread.join(TIMEOUT)


def echo(connection: socket.socket) -> None:
    """Send back what comes, until the other side has sent all."""
    while data := connection.recv(1 << 16):
        connection.sendall(data)
