"""What the kernel says of the process at the barrier; the caller, who may not look, decides on it."""

from __future__ import annotations

import contextlib
import os
import re

from clsecure.privileged.root.messages import Refused
from clsecure.privileged.root.network import NFT, TABLE
from clsecure.privileged.root.processes import tool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from clsecure.privileged.root.messages import Message

MOST, NAME_LIMIT = 64, 128
"""Of one kind: interfaces, ports, sockets; and characters of a name."""
LISTENS = "0A"
SO_ACCEPTCON = 1 << 16
AUTOBIND = re.compile(r"@[0-9a-f]{5}\Z")
PROGRAMS = ("opt", "clsecure", "bin")
"""Where a sandbox has the agent's program."""


def facts_of(pid: int) -> Message:
    """Return what /proc says of a process itself."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mountinfo = [line.rstrip("\n") for line in file]
    descriptors = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            descriptors[name] = os.readlink(f"/proc/{pid}/fd/{name}")
    return {
        "pid": pid,
        "status": status,
        "namespaces": {n: os.readlink(f"/proc/{pid}/ns/{n}") for n in os.listdir(f"/proc/{pid}/ns")},
        "host_namespaces": {n: os.readlink(f"/proc/self/ns/{n}") for n in os.listdir("/proc/self/ns")},
        "mountinfo": mountinfo,
        "descriptors": descriptors,
        "executable": os.readlink(f"/proc/{pid}/exe"),
    }


def network_of(pid: int) -> Message:
    """Return what is in a process's network namespace: nobody inside has a say in it."""
    ports = {
        int(fields[1].rpartition(":")[2], 16)
        for name in ("tcp", "tcp6")
        for fields in table(pid, name)
        if len(fields) > 3 and fields[3] == LISTENS
    }
    routes = {fields[0] for fields in table(pid, "route") if len(fields) > 1}
    routes |= {fields[9] for fields in table(pid, "ipv6_route", headed=False) if len(fields) > 9}
    sockets = {
        fields[7]
        for fields in table(pid, "unix")
        if len(fields) > 7
        and fields[7].startswith("@")
        # Sockets that pass credentials get such a name of the kernel's (unix(7), autobind).
        and (int(fields[3], 16) & SO_ACCEPTCON or not AUTOBIND.match(fields[7]))
    }
    return {
        # The header has two lines.
        "interfaces": cut(fields[0].partition(":")[0] for fields in table(pid, "dev") if ":" in fields[0]),
        "routes": cut(routes),
        "ports": sorted(ports)[:MOST],
        "sockets": cut(sockets),
    }


def table(pid: int, name: str, *, headed: bool = True) -> Iterator[list[str]]:
    """Yield the fields of a table's lines; nothing of one that this kernel does not have."""
    with (
        contextlib.suppress(FileNotFoundError),
        open(f"/proc/{pid}/net/{name}", encoding="utf-8", errors="replace") as file,
    ):
        if headed:
            next(file, None)
        yield from filter(None, map(str.split, file))


def cut(names: Iterable[str]) -> list[str]:
    """Return different names in order, not too many and not too long."""
    return sorted({name[:NAME_LIMIT] for name in names})[:MOST]


def program_of(pid: int, agent: tuple[str, str] | None) -> Message | None:
    """Return what a process has in the place of the agent's program, and root's kept copy beside it."""
    if agent is None:
        return None
    directory, name = agent
    path = f"{directory}/agent"
    inside = None
    with contextlib.suppress(OSError):
        # Step by step: a link in there would lead through this process's own root.
        place = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in (*PROGRAMS, name):
            try:
                inner = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
            finally:
                os.close(place)
            place = inner
        try:
            inside = identity(os.fstat(place))
        finally:
            os.close(place)
    return {"path": path, "kept": identity(os.stat(path, follow_symlinks=False)), "inside": inside}


def identity(status: os.stat_result) -> Message:
    """Return which file it is, whose, and what it allows."""
    return {
        "device": status.st_dev, "inode": status.st_ino, "uid": status.st_uid, "mode": status.st_mode,
    }  # fmt: skip


def filter_of(pid: int) -> str:
    """Return the packet filter of a process's network namespace, as the kernel has it; "" for none."""
    space = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return tool(NFT, "list", "table", *TABLE, network=space, timeout=10)
    except Refused:
        return ""
    finally:
        os.close(space)
