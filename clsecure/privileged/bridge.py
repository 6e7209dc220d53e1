"""Carries bytes inside a sandbox that hands no descriptors out (gVisor), between it and sockets of the host.

Started by the launcher, with its restrictions, as ``bridge.py gateway LISTENER`` or
``bridge.py terminal MASTER STREAM SIZES``; the numbers are inherited descriptors.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import sys
import termios
import threading

GATEWAY = "/run/clsecure/gateway"
CHUNK = 65536


def copy(source: socket.socket, target: socket.socket) -> None:
    """Copy one direction to its end, and pass that on."""
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def carry(inside: socket.socket) -> None:
    """Connect one client to the gateway."""
    with inside, contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as outside:
        outside.connect(GATEWAY)
        back = threading.Thread(target=copy, args=(outside, inside), daemon=True)
        back.start()
        copy(inside, outside)
        back.join()


def gateway(listener: socket.socket) -> None:
    """Accept for ever."""
    while True:
        inside, _ = listener.accept()
        threading.Thread(target=carry, args=(inside,), daemon=True).start()


def terminal(master: int, stream: int, sizes: int) -> None:
    """Carry what is typed and shown until the terminal is closed on its other side."""
    watched = [master, stream, sizes]
    pending = b""
    while True:
        ready, _, _ = select.select(watched, [], [])
        if sizes in ready:
            data = os.read(sizes, CHUNK)
            pending += data
            *lines, pending = pending.split(b"\n")
            for line in lines:
                rows, columns = map(int, line.split())
                fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            if not data:
                watched.remove(sizes)
        if stream in ready:
            typed = os.read(stream, CHUNK)
            if typed:
                write_all(master, typed)
            else:
                watched.remove(stream)
        if master in ready:
            try:
                shown = os.read(master, CHUNK)
            except OSError:  # EIO: nobody has the other side any more
                return
            if not shown:
                return
            write_all(stream, shown)


def write_all(fd: int, data: bytes) -> None:
    """Write to the end."""
    while data:
        data = data[os.write(fd, data) :]


def main() -> None:
    """Do what was asked for."""
    what, *numbers = sys.argv[1:]
    if what == "gateway":
        gateway(socket.socket(fileno=int(numbers[0])))
    else:
        terminal(*map(int, numbers))


if __name__ == "__main__":
    main()
