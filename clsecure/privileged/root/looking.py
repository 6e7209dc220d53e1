"""What the processes of a running sandbox are, by /proc: looked at now and then, and told to the caller.

Nothing waits here for anybody. A caller that does not read is told no more until it does, and of very many
processes each look takes a part.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time

from clsecure.privileged.root.processes import is_of
from clsecure.privileged.root.registry import RANGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from clsecure.privileged.root.messages import Entry, Message

FIRST_SECONDS, EVERY_SECONDS, AGAIN_SECONDS = 1.0, 10.0, 1.0
BUDGET_SECONDS = 0.2
"""Most time of one look: the caller's ``kill`` waits behind it."""
KINDS, EXAMPLES, FIELD_LIMIT = 48, 3, 200
FIELDS = (
    "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp",
)  # fmt: skip
PLACES = ("outside", "inside", "engine", "moving", "held", "sidecar")
SPACES = ("user", "mnt", "pid", "net", "ipc", "uts")
STATUS_LIMIT, TABLE_LIMIT = 16 * 1024, 4 << 20
MOUNTS, TARGET_LIMIT = 8, 600
"""Of each kind of change, and characters of a place."""
DEPTH = 32
"""The kernel nests no PID namespaces deeper."""
SIOCOUTQ = 0x5411
NS_GET_PARENT = 0xB702


class Looking:
    """One sandbox's processes, from the start of its command.

    :param main: what was seen at the barrier of the process that becomes the command.
    :param engine: a child of this process in whose PID namespace for children the container's engine is.
    :param sidecar: the same of the session's own engine.
    :param plain: the container has a kernel of its own, whose processes have PID namespaces of their own.
    """

    def __init__(
        self, entry: Entry, main: Message, *, engine: int | None, sidecar: int | None, plain: bool
    ) -> None:
        self.entry, self.plain = entry, plain
        self.own, self.hosts = main["namespaces"], main["host_namespaces"]
        # Those that this kernel has: a process without one of them is just ending.
        self.spaces = tuple(name for name in SPACES if name in self.own)
        self.engine, self.sidecar = space_of_children(engine), space_of_children(sidecar)
        self.next = time.monotonic() + FIRST_SECONDS
        self.strays: set[tuple[int, str]] = set()
        self.begin = 0
        self.mounts = dict(map(mount_of, main["mountinfo"]))

    def tell(self, conn: socket.socket) -> None:
        """Look, when it is time, and say what was seen; nothing while the caller has not read the last."""
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + EVERY_SECONDS
        # Nothing that goes wrong in here is a reason to end the session, or to wait.
        with contextlib.suppress(OSError):
            if unread(conn):
                return
            said = json.dumps(self.look()).encode()
            if self.strays:
                # What was seen in a wrong place is looked at again soon: it counts when it is there twice.
                self.next = time.monotonic() + AGAIN_SECONDS
            conn.send(said, socket.MSG_DONTWAIT)

    def look(self) -> Message:
        """Return what is running; processes that are alike are one item."""
        kinds: dict[tuple[Any, ...], Message] = {}
        strays: set[tuple[int, str]] = set()
        known: dict[str, tuple[str, ...]] = {}
        until, count, cut = time.monotonic() + BUDGET_SECONDS, 0, False
        mounts = None
        for pid in self._turn():
            if cut := time.monotonic() > until:
                self.begin = pid
                break
            if (seen := seen_of(pid, self.entry, self.spaces, known)) is None:
                continue
            if (place := self._place(seen)) == "stray":
                strays.add((pid, seen["begun"]))
                place = "outside" if (pid, seen["begun"]) in self.strays else "moving"
            spaces = {name: self._whose(name, space) for name, space in seen["spaces"].items()}
            if mounts is None and spaces.get("mnt") == "own":
                mounts = self._changed(pid)
            key = (place, seen["first"], *seen["status"].values(), *spaces.values())
            kind = kinds.setdefault(key, {
                "place": place, "first": seen["first"], "status": seen["status"], "namespaces": spaces,
                "program": seen["program"], "pids": [], "count": 0,
            })  # fmt: skip
            kind["count"] += 1
            kind["pids"] += [pid] if kind["count"] <= EXAMPLES else []
            count += 1
        self.strays = strays
        found = sorted(kinds.values(), key=rank)
        first = self.entry.get("range")
        return {
            "event": "looked", "kinds": found[:KINDS], "processes": count, "cut": cut or len(found) > KINDS,
            "range": None if first is None else [first, RANGE],
            "shared": [name for name in self.spaces if self.own[name] == self.hosts.get(name)],
            "mounts": mounts,
        }  # fmt: skip

    def _changed(self, pid: int) -> Message | None:
        """Return what a process of the sandbox has mounted otherwise than at the barrier, None unseen.

        All in the sandbox have the same: whoever has not is seen by its namespace.
        """
        try:
            with opened(f"/proc/{pid}") as place:
                lines = read_at("mountinfo", place, TABLE_LIMIT).split("\n")[:-1]
                if os.readlink("ns/mnt", dir_fd=place) != self.own["mnt"]:
                    return None
        except OSError:
            return None
        now = dict(map(mount_of, lines))
        known = self.mounts | now
        kinds = {number: kind for (number, *_), kind in known.items()}
        return {
            name: [
                {"target": target[:TARGET_LIMIT], "kind": known[key], "on": kinds.get(parent, "")}
                for key in sorted(found)[:MOUNTS]
                for _, parent, _, target, _ in [key]
            ]
            for name, found in (("new", now.keys() - self.mounts), ("gone", self.mounts.keys() - now))
        }

    def _turn(self) -> list[int]:
        """Return every pid of the machine; where the last look ended, this one begins."""
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
        return [pid for pid in pids if pid >= self.begin] + [pid for pid in pids if pid < self.begin]

    def _place(self, seen: Message) -> str:
        """Tell where a process is, by its PID namespace and those around that."""
        innermost, *_ = around = seen["around"]
        if innermost == self.engine or (self.plain and self.engine in around):
            return "engine"
        if self.own["pid"] in around:
            return "inside"
        if self.sidecar in around:
            return "sidecar"
        # Started by this process: a count of the disk, or the outer one of firejail's two.
        is_held = innermost == self.hosts["pid"] and seen["parent"] == os.getpid()
        return "held" if is_held else "stray"

    def _whose(self, name: str, space: str) -> str:
        if space == self.own.get(name):
            return "own"
        return "host" if space == self.hosts.get(name) else "other"


def rank(kind: Message) -> tuple[int, bool, str, str]:
    """Order kinds so that what is cut off is what could be least wrong: containers can be of any uid."""
    status = kind["status"]
    is_own = "host" not in kind["namespaces"].values()
    return PLACES.index(kind["place"]), is_own, status["NoNewPrivs"], status["Seccomp"]


def space_of_children(stage: int | None) -> str | None:
    """Return the PID namespace of a process's children; None for no process, or one that has ended."""
    if stage is not None:
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{stage}/ns/pid_for_children")
    return None


def unread(conn: socket.socket) -> bool:
    """Tell whether something that was said on a socket was not read yet."""
    return int.from_bytes(fcntl.ioctl(conn, SIOCOUTQ, b"\0" * 4), "little") > 0


def seen_of(
    pid: int, entry: Entry, names: Sequence[str], known: dict[str, tuple[str, ...]]
) -> Message | None:
    """Return what /proc says of a process of the account's; None for another's, or one that is ending.

    All of it is of one and the same: a directory of /proc that is held open answers for no successor.

    :param names: the namespaces that it must have.
    :param known: what is around a PID namespace that was met before.
    """
    with contextlib.suppress(OSError, KeyError, IndexError), opened(f"/proc/{pid}") as process:
        status = status_of(process)
        if not is_of(entry, status["Uid"].encode().split()):
            return None
        if status["State"][:1] not in "ZX":
            return seen_at(process, status, names, known)
        # Its first thread has ended. Others may go on, and are the process then.
        for name in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, KeyError), opened(f"task/{name}", process) as thread:
                status = status_of(thread)
                if status["State"][:1] not in "ZX":
                    return seen_at(thread, status, names, known)
    return None


def seen_at(
    place: int, status: dict[str, str], names: Sequence[str], known: dict[str, tuple[str, ...]]
) -> Message:
    """Return what the open directory of a process, or of a thread, says."""
    spaces = {name: os.readlink(f"ns/{name}", dir_fd=place) for name in names}
    if spaces["pid"] not in known:
        known[spaces["pid"]] = tuple(around(os.open("ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=place)))
    program = ""
    with contextlib.suppress(OSError):
        program = os.readlink("exe", dir_fd=place)[:FIELD_LIMIT]
    return {
        "status": {name: status.get(name, "")[:FIELD_LIMIT] for name in FIELDS},
        "spaces": spaces,
        "around": known[spaces["pid"]],
        "first": status["NSpid"].split()[-1] == "1",
        "parent": int(status["PPid"]),
        "begun": read_at("stat", place).rpartition(")")[2].split()[19],
        "program": program,
    }


def around(space: int) -> Iterator[str]:
    """Yield a PID namespace, and those that it is in, outermost last; the descriptor is closed then."""
    for _ in range(DEPTH):
        try:
            yield os.readlink(f"/proc/self/fd/{space}")
            outer = fcntl.ioctl(space, NS_GET_PARENT)
        except OSError:
            # EPERM: that one is outside of this process's own.
            return
        finally:
            os.close(space)
        space = outer
    os.close(space)


@contextlib.contextmanager
def opened(path: str, place: int | None = None) -> Iterator[int]:
    """Hold a directory of /proc."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
    try:
        yield fd
    finally:
        os.close(fd)


def read_at(name: str, place: int, limit: int = STATUS_LIMIT) -> str:
    """Return a file of the kernel's, bounded."""
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=place), "rb") as file:
        return file.read(limit).decode("utf-8", "surrogateescape")


def mount_of(line: str) -> tuple[tuple[str, ...], str]:
    """Return what of a line of mountinfo stays as it is while something is mounted, and its kind.

    Where it lies in its file system does not stay, which is the host's to rename, nor do that one's options.
    """
    left, _, right = line.partition(" - ")
    number, parent, device, _, target, options = left.split(" ")[:6]
    return (number, parent, device, target, options), right.split(" ")[0]


def status_of(place: int) -> dict[str, str]:
    """Return the fields of a status file."""
    return dict(line.split(":\t", 1) for line in read_at("status", place).splitlines() if ":\t" in line)
