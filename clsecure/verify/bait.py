"""What the host puts out for a probe inside: things that are really there, and that the user can reach.

What the probe says of itself is worth little. Who connected to a listener is known here, and that each bait
can be had at all is shown by the same probe, run outside as the user.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clsecure import process
from clsecure.process import Command

OWN_ADDRESS = "this machine's address"
_ANYWHERE = ("192.0.2.1", 9)  # RFC 5737: nobody's; connecting a datagram socket sends nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Bait:
    """What was put out.

    :param files: label to a file or directory of the host's.
    :param sockets: label to family and address of a listener of ours.
    :param marker: a word in the argument vector of a process of ours.
    """

    files: Mapping[str, str]
    sockets: Mapping[str, tuple[str, str | tuple[str, int]]]
    marker: str
    _listeners: Mapping[str, socket.socket]

    @property
    def orders(self) -> bytes:
        """What the probe reads on its standard input."""
        return json.dumps({"files": self.files, "sockets": self.sockets, "marker": self.marker}).encode()

    def heard(self) -> frozenset[str]:
        """Return the listeners to which somebody has connected since this was last asked."""
        found = set()
        for label, listener in self._listeners.items():
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()
                    found.add(label)
        return frozenset(found)


@contextmanager
def put_out(home: Path, state: Path) -> Iterator[Bait]:
    """Put everything out, and take it away at the end.

    :param state: a directory of the user's own, below the home where it usually is.
    """
    with contextlib.ExitStack() as stack:
        shared = Path(tempfile.mkdtemp(prefix="clsecure-info-"))
        stack.callback(shutil.rmtree, shared, ignore_errors=True)
        own = Path(tempfile.mkdtemp(prefix="info-", dir=state))
        stack.callback(shutil.rmtree, own, ignore_errors=True)
        for directory in (shared, own):
            # No permission keeps a worker from the one in /tmp; the view must.
            directory.chmod(0o755)
            (directory / "bait").write_text("bait\n")
            (directory / "bait").chmod(0o644)
        listeners = {label: stack.enter_context(each) for label, each in _listeners(shared)}
        marker = f"clsecure-info-{secrets.token_hex(8)}"
        stack.enter_context(_marked(marker))
        yield Bait(
            files={"home": str(home), "state": str(own / "bait"), "temporary": str(shared / "bait"),
                   "root's home": "/root", "passwords": "/etc/shadow"},
            sockets={label: (_FAMILIES[each.family], _address(each)) for label, each in listeners.items()},
            marker=marker,
            _listeners=listeners,
        )  # fmt: skip


_FAMILIES = {socket.AF_INET: "inet", socket.AF_INET6: "inet6", socket.AF_UNIX: "unix"}


def _listeners(directory: Path) -> Iterator[tuple[str, socket.socket]]:
    """Give what this machine has of each kind: one without IPv6 has no listener there."""
    wanted: list[tuple[str, int, str | tuple[str, int]]] = [
        ("127.0.0.1", socket.AF_INET, ("127.0.0.1", 0)),
        ("::1", socket.AF_INET6, ("::1", 0)),
        ("an abstract socket", socket.AF_UNIX, f"\0clsecure-info-{secrets.token_hex(8)}"),
        ("a socket in /tmp", socket.AF_UNIX, str(directory / "socket")),
    ]
    own = _own_address()
    if own is not None:
        wanted.append((OWN_ADDRESS, socket.AF_INET, (own, 0)))
    for label, family, address in wanted:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.bind(address)
            listener.listen(16)
            listener.settimeout(0)
        except OSError:
            listener.close()
            continue
        if label == "a socket in /tmp":
            (directory / "socket").chmod(0o777)
        yield label, listener


def _own_address() -> str | None:
    """Return the address from which this machine speaks to others, None when it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ANYWHERE)
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _address(listener: socket.socket) -> str | tuple[str, int]:
    found = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return found if isinstance(found, str) else found.decode()
    return str(found[0]), int(found[1])


@contextmanager
def _marked(marker: str) -> Iterator[None]:
    """Hold a process of the user's whose argument vector everybody on this machine can read."""
    child = process.spawn(
        Command(argv=("/bin/sh", "-c", "read -r _", marker)), stdin=process.PIPE, new_session=True
    )
    try:
        yield
    finally:
        child.communicate(timeout=10)
