"""What can be done from here: tried, and told. ``clsecure info`` runs it inside a sandbox, and outside.

Standard input is one JSON object that says what the host has put out; standard output gets one JSON object.
Whatever is tried has arguments that do nothing where it is allowed: outside it runs as the user, for real.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing takes longer to import than this program to run
    from collections.abc import Callable
    from typing import Any

INPUT_LIMIT = 1 << 16
LISTED = 64
"""Most names of one directory."""
PATIENCE = 0.5
"""Seconds that a connection or an answer may take."""

# Arguments that are wrong on purpose: a filter answers before the kernel looks at them.
CALLS = {
    "x86_64": {
        "unshare": (272, 0), "mount": (165, 0, 0, 0, 0, 0), "setns": (308, -1, 0), "chroot": (161, 0),
        "keyctl": (250, 0, -3, 0), "bpf": (321, 0, 0, 0), "perf_event_open": (298, 0, 0, -1, -1, 0),
        "open_by_handle_at": (304, -1, 0, 0), "io_uring_setup": (425, 0, 0), "userfaultfd": (323, -1),
        "init_module": (175, 0, 0, 0), "TIOCSTI": (16, -1, 0x5412, 0), "TIOCLINUX": (16, -1, 0x541C, 0),
    },
    "aarch64": {
        "unshare": (97, 0), "mount": (40, 0, 0, 0, 0, 0), "setns": (268, -1, 0), "chroot": (51, 0),
        "keyctl": (219, 0, -3, 0), "bpf": (280, 0, 0, 0), "perf_event_open": (241, 0, 0, -1, -1, 0),
        "open_by_handle_at": (265, -1, 0, 0), "io_uring_setup": (425, 0, 0), "userfaultfd": (282, -1),
        "init_module": (105, 0, 0, 0), "TIOCSTI": (29, -1, 0x5412, 0), "TIOCLINUX": (29, -1, 0x541C, 0),
    },
}  # fmt: skip
FAMILIES = {"AF_PACKET": (17, socket.SOCK_RAW), "AF_ALG": (38, socket.SOCK_SEQPACKET), "AF_VSOCK": (40, 1)}
QUESTION = b"\0\0\1\0\0\1\0\0\0\0\0\0\0\0\2\0\1"
"""Which servers has the root zone? Any resolver answers that, and it tells nobody a thing."""


def tried(action: Callable[[], object]) -> str | None:
    """Return None when it worked, else the name of the error."""
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return None


def read(path: str) -> str | None:
    """Try to read the beginning of a file, or to list a directory; an empty one holds nothing."""
    empty = False

    def look() -> None:
        nonlocal empty
        if os.path.isdir(path):
            empty = not os.listdir(path)
            return
        with open(path, "rb") as file:
            file.read(1)

    return tried(look) or ("empty" if empty else None)


def listed(path: str) -> list[str]:
    """Return the names in a directory."""
    try:
        return sorted(os.listdir(path))[:LISTED]
    except OSError:
        return []


def text(path: str) -> str:
    """Return a small file of the kernel's or the system's, empty when it can't be read."""
    try:
        with open(path, "rb") as file:
            return file.read(1 << 16).decode("utf-8", "replace")
    except OSError:
        return ""


def written(directory: str) -> str | None:
    """Try to make a file in a directory."""
    path = f"{directory.rstrip('/')}/.clsecure-info-{os.getpid()}"

    def write() -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        os.unlink(path)

    return tried(write)


def connected(family: str, address: Any) -> str | None:
    """Try to connect to a listening socket."""
    kind = {"inet": socket.AF_INET, "inet6": socket.AF_INET6, "unix": socket.AF_UNIX}[family]

    def connect() -> None:
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.settimeout(PATIENCE)
            probe.connect(tuple(address) if isinstance(address, list) else address)

    return tried(connect)


def routed(family: socket.AddressFamily, address: str) -> str | None:
    """Tell whether there is a way to an address; connecting a datagram socket sends nothing."""

    def connect() -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))

    return tried(connect)


def resolved() -> list[str]:
    """Return the name servers of resolv.conf that answer."""
    lines = [line.split() for line in text("/etc/resolv.conf").splitlines()]
    servers = [words[1] for words in lines if words[:1] == ["nameserver"] and len(words) > 1][:3]
    answering = []
    for server in servers:

        def ask(server: str = server) -> None:
            family = socket.AF_INET6 if ":" in server else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.settimeout(PATIENCE)
                probe.connect((server, 53))
                probe.send(QUESTION)
                probe.recv(512)

        if tried(ask) is None:
            answering.append(server)
    return answering


def listening() -> list[int]:
    """Return the TCP ports on which something listens here, in this network namespace."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in text(f"/proc/net/{name}").splitlines()[1:]]
    return sorted({int(row[1].rpartition(":")[2], 16) for row in rows if len(row) > 3 and row[3] == "0A"})


def processes(marker: str) -> tuple[int, bool]:
    """Return how many processes are seen, and whether the host's marked one is among them."""
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    mine = str(os.getpid())
    return len(pids), any(marker in text(f"/proc/{pid}/cmdline") for pid in pids if pid != mine)


def calls() -> dict[str, str | None]:
    """Try system calls and socket families that no agent needs."""
    libc = ctypes.CDLL(None, use_errno=True)
    results = {}
    for name, (number, *arguments) in CALLS.get(os.uname().machine, {}).items():

        def call(number: int = number, arguments: list[int] = arguments) -> None:
            if libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) == -1:
                raise OSError(ctypes.get_errno(), "refused")

        results[name] = tried(call)
    for name, (family, kind) in FAMILIES.items():

        def open_one(family: int = family, kind: int = kind) -> None:
            socket.socket(family, kind).close()

        results[name] = tried(open_one)
    return results


def limits() -> dict[str, int | None]:
    """Return the limits of this process, None for none."""
    names = ("NPROC", "NOFILE", "AS", "FSIZE", "CPU", "CORE")
    found = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0] for name in names}
    return {name: None if value == resource.RLIM_INFINITY else value for name, value in found.items()}


def status() -> dict[str, str]:
    """Return what the kernel says of this process."""
    wanted = ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "CapEff", "CapBnd")
    lines = [line.partition(":") for line in text("/proc/self/status").splitlines()]
    return {key: " ".join(value.split()) for key, _, value in lines if key in wanted}


def main() -> None:
    """Try everything and tell."""
    orders = json.loads(sys.stdin.buffer.read(INPUT_LIMIT))
    count, seen = processes(orders["marker"])
    document = {
        "files": {label: read(path) for label, path in orders["files"].items()},
        "home": listed("/home"),
        "root": listed("/"),
        "written": {path: written(path) for path in ("/", "/usr", "/etc")},
        "connected": {label: connected(*where) for label, where in orders["sockets"].items()},
        "routes": {
            # Of the blocks for documentation: nobody's (RFC 5737, RFC 3849).
            "IPv4": routed(socket.AF_INET, "192.0.2.1"),
            "IPv6": routed(socket.AF_INET6, "2001:db8::1"),
        },
        "resolvers": resolved(),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "listening": listening(),
        "processes": count,
        "marker": seen,
        "status": status(),
        "root_uid": tried(lambda: os.setresuid(0, 0, 0)),
        "calls": calls(),
        "devices": listed("/dev"),
        "limits": limits(),
        "cgroups": text("/proc/self/cgroup").split(),
    }
    sys.stdout.write(json.dumps(document))


if __name__ == "__main__":
    main()
