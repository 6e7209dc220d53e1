"""What the kernel says of the process at the barrier; the caller, who may not look, decides on it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import stat
import struct

from clsecure.privileged.root.kernel import CLONE_NEWNET, call, session_keyring
from clsecure.privileged.root.messages import Refused, close_all
from clsecure.privileged.root.network import NFT, TABLE
from clsecure.privileged.root.places import identity, opened_at, opened_root, seen_as
from clsecure.privileged.root.processes import PYTHON, become, run_and_exit, tool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from clsecure.privileged.root.messages import Entry, Message

MOST, NAME_LIMIT = 64, 128
"""Of one kind: interfaces, ports, sockets; and characters of a name."""
WORDS = 1024
CONNECTIONLESS = ("udp", "udp6", "udplite", "udplite6", "icmp", "icmp6", "raw", "raw6", "packet")
LISTENS, TCP_LISTEN = "0A", 10
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, NLMSG_ERROR, NLMSG_DONE = 4, 20, 0x301, 2, 3
DIAG_SECONDS = 2.0
SO_ACCEPTCON = 1 << 16
AUTOBIND = re.compile(r"@[0-9a-f]{5}\Z")
PROGRAM_SECONDS = 10.0
PROGRAMS = "/opt/clsecure/bin"
"""Where a sandbox has the agent's program."""


def facts_of(pid: int) -> Message:
    """Return what /proc says of a process itself."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    # Of all that ends a line elsewhere, the kernel escapes this one alone.
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        mountinfo = [line.rstrip("\n") for line in file]
    descriptors = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            descriptors[name] = os.readlink(f"/proc/{pid}/fd/{name}")
    return {
        "pid": pid,
        "status": status,
        "maps": maps_of(pid),
        "host_maps": maps_of(os.getpid()),
        "namespaces": {n: os.readlink(f"/proc/{pid}/ns/{n}") for n in os.listdir(f"/proc/{pid}/ns")},
        "host_namespaces": {n: os.readlink(f"/proc/self/ns/{n}") for n in os.listdir("/proc/self/ns")},
        "mountinfo": mountinfo,
        "descriptors": descriptors,
        "executable": os.readlink(f"/proc/{pid}/exe"),
        # By the file: its path is one of the sandbox's own view.
        "interpreter": os.path.samefile(f"/proc/{pid}/exe", PYTHON),
    }


def maps_of(pid: int) -> Message:
    """Return who the numbers of a process's user namespace are: first inside, first outside, how many."""
    found = {}
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", encoding="ascii") as file:
            found[name] = [[int(number) for number in line.split()] for line in file]
    return found


def keyrings(told: int) -> Message:
    """Return the session keyring that a sandbox's first process told of, and this process's own.

    From outside nothing is seen of whose keyring a process has.

    :param told: the file in which it did; a container of docker's daemon does not come of it, and has none.
    """
    said = os.pread(told, WORDS, 0)
    return {"own": json.loads(said) if said else None, "helper": session_keyring()[0]}


def network_of(pid: int) -> Message:
    """Return what is in a process's network namespace: nobody inside has a say in it."""
    try:
        ports = listening(pid)
    except OSError:
        # A kernel that does not answer that has a table. For it, all connections of the machine are gone
        # through, twice: ten times of all else here.
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
        "datagrams": cut(datagrams(pid)),
    }


def datagrams(pid: int) -> Iterator[str]:
    """Give the sockets of a process's network that take packets without a connection, by kind and port."""
    for kind in CONNECTIONLESS:
        for fields in table(pid, kind):
            if kind == "packet":
                yield kind
            elif len(fields) > 3:
                # What of an address stands there is the number of a protocol for raw sockets.
                yield f"{kind} {int(fields[1].rpartition(':')[2], 16)}"


def listening(pid: int) -> set[int]:
    """Return the TCP ports on which something listens in a process's network namespace (sock_diag(7))."""
    with socket_in(pid, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as diag:
        diag.settimeout(DIAG_SECONDS)
        found = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            wanted = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 0, 1 << TCP_LISTEN)
            diag.send(struct.pack("=IHHII", 16 + len(wanted), SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, 0, 0) + wanted)
            kind = 0
            while kind != NLMSG_DONE:
                data = diag.recv(1 << 16)
                while data:
                    length, kind = struct.unpack_from("=IH", data)
                    if kind == NLMSG_ERROR or length < struct.calcsize("=IHHII"):
                        raise OSError(errno.ENOTSUP, "sock_diag")
                    if kind == SOCK_DIAG_BY_FAMILY:
                        found.add(struct.unpack_from(">H", data, 20)[0])
                    data = data[(length + 3) & ~3 :]
    return found


def socket_in(pid: int, *kind: int) -> socket.socket:
    """Return a socket of a process's network namespace; this process is in that for nothing else."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    space = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        call("setns", space, CLONE_NEWNET)
        try:
            return socket.socket(*kind)
        finally:
            try:
                call("setns", own, CLONE_NEWNET)
            except OSError:
                os._exit(1)  # with which the session ends: this process must not stay in there
    finally:
        close_all((own, space))


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


def program_of(pid: int, agent: tuple[str, str] | None, entry: Entry) -> Message | None:
    """Return what a process has in the place of the agent's program, and root's kept copy beside it."""
    if agent is None:
        return None
    directory, name = agent
    path = f"{directory}/agent"
    inside = None
    with contextlib.suppress(OSError):
        (inside,) = seen_as(entry, pid, (f"{PROGRAMS}/{name}",))
    return {"path": path, "kept": identity(os.stat(path, follow_symlinks=False)), "inside": inside}


def image_program(pid: int, name: str, entry: Entry) -> int | None:
    """Return a program of an image, open to be read by the caller; None where there is none.

    The worker opens it, who has no more to say than anybody: the caller can have had another place mounted
    there, which takes no more than to name it: a closed directory, or one of /proc, whose files go by who
    opens them. It is not waited for long: that can be a file system of the caller's, too.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, contextlib.suppress(OSError), opened_root(pid) as root:
        child = os.fork()
        if child == 0:
            run_and_exit(lambda: _send_program(root, name, entry, theirs))
        theirs.close()
        try:
            ours.settimeout(PROGRAM_SECONDS)
            _, found, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
            return found[0] if found else None
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    theirs.close()
    return None


def _send_program(root: int, name: str, entry: Entry, words: socket.socket) -> None:
    """In a child: open a program as the worker, if it is one that everybody may read."""
    # That there is none is no word on the caller's terminal.
    with contextlib.suppress(OSError):
        become(entry, empty_bounding_set=True)
        place = opened_at(root, f"{PROGRAMS}/{name}")
        mode = os.fstat(place).st_mode
        if stat.S_ISREG(mode) and mode & stat.S_IROTH:
            found = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            socket.send_fds(words, [b"1"], [found])


def filter_of(pid: int) -> str:
    """Return the packet filter of a process's network namespace, as the kernel has it; "" for none."""
    space = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return tool(NFT, "list", "table", *TABLE, network=space, timeout=10)
    except Refused:
        return ""
    finally:
        os.close(space)
