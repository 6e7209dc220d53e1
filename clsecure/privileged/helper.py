#!/usr/bin/python3 -IS
"""The one part of clsecure that runs as root.

Started by sudo without arguments (the sudoers rule says ``""``), as ``/usr/bin/python3 -I -S``: standard
library only, nothing of the user's environment. Standard input is a SOCK_SEQPACKET socket; every message is
one JSON object, descriptors come with it as SCM_RIGHTS. The caller is who SUDO_UID says.

One connection holds at most one account (``lease``) and one sandbox at a time (``run``). When the other end
goes away, for whatever reason, everything of the session is killed.

What makes the verbs harmless in the hands of every member of the group:

* names, uids and paths are derived here; the caller gives a project path and a session name as *text*;
* accounts are found in this file's own registry only, and only the caller's own;
* no argument vector is taken for root: ``start`` is passed on unread to the launcher, which is the worker;
* files of the caller come as descriptors that the caller could open; nothing is opened by the caller's path;
* what the worker can do itself (unpacking, deleting its files) is done after setresuid().
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import grp
import hashlib
import json
import os
import pwd
import re
import resource
import select
import signal
import socket
import stat
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing takes longer to import than this program to run
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, NoReturn

    Message = dict[str, Any]
    Entry = dict[str, Any]
    GivenMount = tuple[str, bool, int]  # target, read-only, descriptor
    KeptAgent = tuple[str, str] | None
    Limits = dict[str, Any]
    Map = list[tuple[int, int, int]]  # first inside, first outside, how many

PROTOCOL = 1
STATE = "/var/lib/clsecure"
CONFIG = "/etc/clsecure/helper.json"
FIREJAIL = "/usr/bin/firejail"
PYTHON = "/usr/bin/python3"
NFT = "/usr/sbin/nft"
PODMAN = "/usr/bin/podman"
RUN = "/run/clsecure"
PROXY_PORT = 3128
ENGINE_SECONDS = 60.0
HERE = os.path.dirname(os.path.abspath(__file__))

MESSAGE_LIMIT = 256 * 1024
LOG_LIMIT = 16 * 1024
PATH_LIMIT = 4096
MOUNT_LIMIT = 32
AGENT_LIMIT = 1024**3
AGENT_VERSIONS = 3
DISK_RESERVE = 1024**3
INODE_RESERVE = 100_000
COUNT_SECONDS, COUNT_INTERVAL = 20, 5.0
CPU_PERIOD = 100_000
CONTROLLERS = ("memory", "pids", "cpu")
LIMITS: dict[str, tuple[type, float, float]] = {
    "memory": (int, 16 << 20, 1 << 60),
    "cpus": (float, 0.01, 10_000.0),
    "pids": (int, 16, 1 << 22),
    "open_files": (int, 64, 1 << 30),
    "disk": (int, 1 << 20, 1 << 60),
}
LOCK_SECONDS = 30.0
QUIESCE_SECONDS = 10.0
CLEAR_SECONDS = 2.0
TICK_SECONDS = 1.0

DEFAULTS = {
    # systemd's table of uids leaves 1879048192..2147352575 to nobody; subordinate ranges end far below. Wide,
    # because a uid is given out once: who makes and removes workers all day must not use them up for others.
    "uid_first": 1_900_000_000,
    "uid_count": 200_000_000,
    "home_base": "/home",
    "accounts_per_user": 64,
    # Behind the uids. The first number is every engine's tty group, then come ranges of 65,536 for the accounts
    # whose sessions have an engine of their own; a range is free again when all that had it is deleted.
    "range_first": 2_100_000_000,
    "range_count": 700,
}
RANGE, OVERFLOW, TTY = 65536, 65534, 5

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x20000000, 0x40000000
CLONE_NEWUSER = 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH, MOVE_MOUNT_F_EMPTY_PATH = 2, 4
OPEN_TREE_CLONE, AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = 1, -100, 0x1000, 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442  # the same on every architecture
SYS_KEYCTL, KEYCTL_JOIN_SESSION_KEYRING = {"x86_64": 250, "aarch64": 219}, 1
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
NS_GET_USERNS, NS_GET_NSTYPE, NS_GET_OWNER_UID = 0xB701, 0xB703, 0xB704
SIOCSIFFLAGS, IFF_UP, IFF_RUNNING, RTF_LOCAL_OR_ANYCAST = 0x8914, 0x1, 0x40, 0x80100000

SESSION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}\Z")
ACCOUNT_NAME = re.compile(r"claude-worker-[a-z0-9-]{1,18}\Z")
PROGRAM = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
CLOSED_TARGETS = ("usr", "etc", "proc", "sys", "dev", "bin", "sbin", "lib", "run", "tmp", "var", "boot")

# Loopback, link-local, benchmark, multicast, reserved, IPv6 that leads to IPv4; metadata that is elsewhere
# (Alibaba, Azure; AWS, Google, Scaleway). Source: IANA's special-purpose address registries.
CLOSED = (
    "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "198.18.0.0/15", "224.0.0.0/3",
    "100.100.100.200", "168.63.129.16",
    "::/8", "2001::/32", "2002::/16", "fe80::/9", "ff00::/8", "fd00:ec2::/32", "fd20:ce::254", "fd00:42::42",
)  # fmt: skip
PRIVATE = ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
RESOLVER = "169.254.1.3"
FILTER = """table inet clsecure {{
  chain out {{
    type filter hook output priority 0; policy accept;
    oifname "lo" accept
    ip daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} accept
    ip daddr {{ {ipv4} }} reject with icmpx type admin-prohibited
    ip6 daddr {{ {ipv6} }} reject with icmpx type admin-prohibited
  }}
}}"""

INHERITED_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}

libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):  # noqa: N818  # an answer, not an accident
    """The request is not acceptable, or can't be done; the text goes to the caller."""


class Busy(Refused):
    """Somebody else holds the lock."""


# ---------------------------------------------------------------- kernel


def call(name: str, *args: Any) -> int:
    """Call a function of the C library; -1 becomes OSError."""
    result: int = getattr(libc, name)(*args)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """mount(2)."""
    texts = (None if text is None else os.fsencode(text) for text in (source, target, kind))
    call("mount", *texts, ctypes.c_ulong(flags), None if data is None else data.encode())


def tree_of(fd: int) -> int:
    """Return a detached copy of the mounts at and below a descriptor: of this mount namespace only."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE
    return call("syscall", SYS_OPEN_TREE, fd, b"", flags)


def attach(tree: int, target: str, attributes: int) -> None:
    """Restrict a detached tree, all of it, and only then put it in its place."""
    attr = struct.pack("QQQQ", attributes, 0, MS_PRIVATE, 0)
    call("syscall", SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH | AT_RECURSIVE, attr, len(attr))
    where = os.fsencode(target)
    call("syscall", SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, where, MOVE_MOUNT_F_EMPTY_PATH)
    os.close(tree)


def bind(source: str, target: str, attributes: int) -> None:
    """Bind a file or directory of the machine, with everything mounted below it, and restrict all of it."""
    fd = os.open(source, os.O_PATH | os.O_CLOEXEC)
    attach(tree_of(fd), target, attributes)
    os.close(fd)


def tmpfs(target: str, mode: str, options: str) -> None:
    """Mount an empty memory file system."""
    mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode},{options}")


def prctl(option: int, argument: int) -> None:
    """prctl(2) with one argument."""
    call("prctl", option, ctypes.c_ulong(argument), 0, 0, 0)


def loopback_up() -> None:
    """Bring up lo of this network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP | IFF_RUNNING))


def host_addresses() -> list[str]:
    """Return what the kernel takes for the machine itself: its addresses, anycast ones, and local ranges."""
    found = set()
    with open("/proc/net/fib_trie", encoding="ascii") as file:
        address = ""
        for line in file:
            if "--" in line:
                address = line.split()[-1]
            elif " LOCAL" in line:
                found.add(address + line.split()[0])
    with contextlib.suppress(FileNotFoundError), open("/proc/net/ipv6_route", encoding="ascii") as file:
        for address, size, *_, flags, _device in map(str.split, file):
            if int(flags, 16) & RTF_LOCAL_OR_ANYCAST:
                found.add(f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address))}/{int(size, 16)}")
    return sorted(found)


def close_network(namespace: int, caller: int, addresses: Iterable[str]) -> None:
    """Enter the network namespace of a full network, and load the filter there that the worker can't lift."""
    if fcntl.ioctl(namespace, NS_GET_NSTYPE) != CLONE_NEWNET:
        raise Refused("the descriptor is no network namespace")
    # The caller's own making. Those of root's, the machine's first, can be opened by anybody (/run/netns).
    owner, spaces = array.array("I", [0]), fcntl.ioctl(namespace, NS_GET_USERNS)
    fcntl.ioctl(spaces, NS_GET_OWNER_UID, owner)
    os.close(spaces)
    if owner[0] != caller:
        raise Refused("the network namespace is not the caller's own")
    call("setns", namespace, CLONE_NEWNET)
    ipv6 = [address for address in addresses if ":" in address]
    ipv4 = [address for address in addresses if ":" not in address]
    tool(NFT, FILTER.format(resolver=RESOLVER, ipv4=", ".join(ipv4), ipv6=", ".join(ipv6)))


# ---------------------------------------------------------------- messages


def receive(conn: socket.socket) -> tuple[Message | None, list[int]]:
    """Return (message, descriptors), or (None, []) at the end. Descriptors are close-on-exec."""
    size = socket.CMSG_SPACE(array.array("i").itemsize * (MOUNT_LIMIT + 8))
    data, ancillary, flags, _ = conn.recvmsg(MESSAGE_LIMIT, size, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not data:
        close_all(fds)
        return None, []
    message = None
    with contextlib.suppress(ValueError, RecursionError):
        message = json.loads(data)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or not isinstance(message, dict):
        close_all(fds)
        raise Refused("the message is too large, or not a JSON object")
    return message, list(fds)


def send(conn: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send one message with descriptors."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    conn.sendmsg([json.dumps(message).encode()], ancillary)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that came along."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def text(message: Message, key: str, limit: int = PATH_LIMIT) -> str:
    """Return a string field, checked."""
    value = message.get(key)
    # JSON also knows texts that stand for no bytes: lone surrogates.
    with contextlib.suppress(UnicodeEncodeError):
        data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else b""
        if 0 < len(data) <= limit and b"\0" not in data:
            return str(value)
    raise Refused(f"{key} must be a text of at most {limit} bytes")


# ---------------------------------------------------------------- state of root's own


def own_directory(path: str, mode: int) -> str:
    """Make a root-owned directory; refuse one that somebody else could have made or can change."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)
        os.chmod(path, mode)
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != 0 or info.st_mode & 0o022:
        raise Refused(f"{path} is not a directory of root's own")
    return path


def configuration() -> Message:
    """Return the machine's settings: DEFAULTS, overridden by a root-owned JSON file."""
    try:
        fd = os.open(CONFIG, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return dict(DEFAULTS)
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != 0 or info.st_mode & 0o022:
            raise Refused(f"{CONFIG} is not a file of root's own")
        loaded = json.loads(file.read(65536))
    for key, value in loaded.items():
        if key not in DEFAULTS or type(value) is not type(DEFAULTS[key]):
            raise Refused(f"{CONFIG}: {key} is not a setting, or of the wrong kind")
    base = loaded.get("home_base", DEFAULTS["home_base"])
    if not re.match(r"/[^/]", base) or os.path.normpath(base) != base or base.split("/")[1] in CLOSED_TARGETS:
        raise Refused(f"{CONFIG}: {base!r} is no plain absolute path, or hidden in sandboxes (home_base)")
    return {**DEFAULTS, **loaded}


def write_file(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write a file of root's own so that it is whole or not there."""
    fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    os.rename(path + ".new", path)


@contextlib.contextmanager
def locked(path: str, *, wait: float) -> Iterator[None]:
    """Hold an exclusive lock on a file in root's own directory."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(f"{os.path.basename(path)} is in use; try again") from None
                select.select([], [], [], 0.01)
        yield
    finally:
        os.close(fd)


class Registry:
    """The accounts that this helper made, one file each, and who owns them."""

    def __init__(self, config: Message) -> None:
        self.config = config
        own_directory(STATE, 0o711)
        self.directory = own_directory(f"{STATE}/registry", 0o700)
        self.locks = own_directory(f"{STATE}/locks", 0o700)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the registry while names and uids are given out."""
        return locked(f"{self.locks}/registry", wait=LOCK_SECONDS)

    def entries(self) -> list[Entry]:
        """Return every account as a dict."""
        found = []
        for name in sorted(os.listdir(self.directory)):
            if ACCOUNT_NAME.match(name):
                with open(f"{self.directory}/{name}", encoding="utf-8") as file:
                    found.append(json.load(file))
        return found

    def find(self, owner: int, project: str, session: str) -> Entry | None:
        """Return the account of exactly this user, path and session, or None."""
        wanted = (owner, project, session)
        return next((e for e in self.entries() if (e["owner"], e["project"], e["session"]) == wanted), None)

    def add(self, owner: int, project: str, session: str) -> Entry:
        """Give out a name and a uid that were never used before, and write them down first of all."""
        entries = self.entries()
        if sum(e["owner"] == owner for e in entries) >= self.config["accounts_per_user"]:
            limit = self.config["accounts_per_user"]
            raise Refused(f"you have {limit} workers already; remove some with: clsecure cleanup")
        name = self._free_name(owner, project, session, {e["name"] for e in entries})
        entry = {
            "name": name, "uid": self.free_uid(), "owner": owner, "project": project, "session": session,
            "home": f"{self.config['home_base']}/{name}", "created": int(time.time()),
        }  # fmt: skip
        write_file(f"{self.directory}/{name}", json.dumps(entry).encode())
        return entry

    def give_range(self, entry: Entry) -> None:
        """Give an account further uids that nobody else has, for the containers of an engine of its own."""
        if "range" in entry:
            return
        taken, others = {e.get("range") for e in self.entries()}, subordinate_ranges()
        first = self.config["range_first"]
        for start in range(first + RANGE, first + (1 + self.config["range_count"]) * RANGE, RANGE):
            if start not in taken and not any(a < start + RANGE and start < b for a, b in others):
                entry["range"] = start
                write_file(f"{self.directory}/{entry['name']}", json.dumps(entry).encode())
                return
        raise Refused(f"all ranges of uids are in use; remove workers, or set others in {CONFIG}")

    def forget(self, entry: Entry) -> None:
        """Take an account out, last of all."""
        os.unlink(f"{self.directory}/{entry['name']}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.locks}/{entry['name']}")

    def _free_name(self, owner: int, project: str, session: str, taken: set[str]) -> str:
        base = os.path.basename(project.rstrip("/")).lower()
        slug = re.sub(r"[^a-z0-9]+", "-", base)[:10].strip("-") or "project"
        for attempt in range(1000):
            seed = "\0".join((str(owner), project, session, str(attempt))).encode("utf-8", "surrogateescape")
            name = f"claude-worker-{slug}-{hashlib.sha256(seed).hexdigest()[:6]}"
            home = f"{self.config['home_base']}/{name}"
            known_name = known(pwd.getpwnam, name) or known(grp.getgrnam, name)
            if name not in taken and not known_name and not os.path.lexists(home):
                return name
        raise Refused("no free account name was found")

    def free_uid(self) -> int:
        """Return the next uid of the range. The counter only rises: a uid is never used twice."""
        counter = f"{self.directory}/.next-uid"
        first, end = self.config["uid_first"], self.config["uid_first"] + self.config["uid_count"]
        try:
            with open(counter, encoding="ascii") as file:
                uid: int = max(first, int(file.read()))
        except FileNotFoundError:
            uid = first
        ranges = subordinate_ranges()
        while known(pwd.getpwuid, uid) or known(grp.getgrgid, uid) or any(a <= uid < b for a, b in ranges):
            uid += 1
        if uid >= end:
            raise Refused(f"the range of worker uids is used up; set another in {CONFIG}")
        write_file(counter, str(uid + 1).encode())
        return uid


def known(lookup: Callable[[Any], object], key: object) -> bool:
    """Tell whether the machine's user database has it (passwd, NSS)."""
    try:
        lookup(key)
    except KeyError:
        return False
    return True


def subordinate_ranges() -> list[tuple[int, int]]:
    """Return all (first, end) of /etc/subuid and /etc/subgid."""
    ranges = []
    for path in ("/etc/subuid", "/etc/subgid"):
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            found = re.findall(rb"^[^:\n]*:(\d+):(\d+)\s*$", file.read(), re.MULTILINE)
            ranges += [(int(start), int(start) + int(count)) for start, count in found]
    return ranges


# ---------------------------------------------------------------- processes


def tool(*argv: str, timeout: float = 60, worker: Entry | None = None) -> None:
    """Run a program of the machine to its end, as root, or as the worker (rm and chmod of its own home).

    A failure of root's is raised with its words; how the worker's ended is seen by what it left.
    """
    words = os.memfd_create("words") if worker is None else os.open("/dev/null", os.O_WRONLY)
    null = os.open("/dev/null", os.O_RDONLY)
    pid = os.fork()
    if pid == 0:
        for target, fd in ((0, null), (1, words), (2, words)):
            os.dup2(fd, target)

        def execute() -> None:
            if worker is not None:
                become(worker, empty_bounding_set=True)
                prctl(PR_SET_NO_NEW_PRIVS, 1)
            os.execve(argv[0], argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"})

        run_and_exit(execute)
    pidfd = os.pidfd_open(pid)
    if not select.select([pidfd], [], [], timeout)[0]:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(pidfd)
    with open(null), open(words, "rb", buffering=0) as output:
        if worker is None and status != 0:
            output.seek(0)
            said = output.read(500).decode("utf-8", "replace").strip()
            raise Refused(f"{os.path.basename(argv[0])} failed: {said or 'not done in time'}")


def run_and_exit(action: Callable[[], object]) -> NoReturn:
    """Run in a forked child and never return, whatever happens."""
    status = 126
    try:
        action()
        status = 0
    except BaseException as error:  # noqa: BLE001  # a forked child must not return
        os.write(2, f"{error}\n".encode("utf-8", "replace"))
    finally:
        os._exit(status)


def become(entry: Entry, *, empty_bounding_set: bool) -> None:
    """Turn this process into the worker, for good."""
    if empty_bounding_set:
        capability = 0
        while libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) == 0:
            capability += 1
    os.setgroups([])
    os.setresgid(entry["uid"], entry["uid"], entry["uid"])
    os.setresuid(entry["uid"], entry["uid"], entry["uid"])


def enter_user_namespace(entry: Entry, words: socket.socket, also: int = 0) -> None:
    """Turn this process into root of a new user namespace that is the worker to everybody else."""
    os.setgroups([])
    os.setresgid(entry["uid"], entry["uid"], entry["uid"])
    os.setresuid(entry["uid"], entry["uid"], entry["uid"])
    call("unshare", CLONE_NEWUSER | also)
    words.send(b"made")
    if words.recv(1) != b"1":
        raise Refused("the helper is gone")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def write_maps(pid: int, uids: Map, gids: Map) -> None:
    """Say who the numbers of a new user namespace are to the machine."""
    for name, lines in (("uid_map", uids), ("gid_map", gids)):
        with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
            file.write("".join(f"{inside} {outside} {count}\n" for inside, outside, count in lines))


def credentials_of(words: socket.socket, timeout: float) -> int:
    """Wait for a word; return the pid that the kernel has for who said it."""
    if select.select([words], [], [], timeout)[0]:
        data, ancillary, _, _ = words.recvmsg(64, 256)
        for level, kind, payload in ancillary:
            if data and level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                return int(struct.unpack("3i", payload)[0])
    return 0


def uids_of(pid: int | str) -> list[bytes]:
    """Return the four uids of a live process as bytes; nothing for one that is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file if line.startswith((b"State:", b"Uid:")))
    except OSError:
        return []
    return [] if fields[b"State"].split()[0] in (b"Z", b"X") else fields[b"Uid"].split()


def is_of(entry: Entry, uids: Iterable[bytes]) -> bool:
    """Tell whether one of a process's uids is the account's, or of its range."""
    first = entry.get("range", -RANGE)
    return any(uid == entry["uid"] or first <= uid < first + RANGE for uid in map(int, uids))


def processes_of(entry: Entry) -> list[int]:
    """Return the live processes of the account: by any of their four uids."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and is_of(entry, uids_of(name))]


def quiesce(entry: Entry) -> int:
    """Kill every process of the account until none is left; return how many were seen.

    kill(-1) as the worker first: the kernel does it under one lock, so a fork bomb can't outrun it. Then by
    pid, which also gets set-uid programs (firejail's own processes run with another effective uid).
    """
    seen, deadline = 0, time.monotonic() + QUIESCE_SECONDS
    for place in cgroups(entry):
        write_small(f"{place}/cgroup.kill", "1")
    while pids := processes_of(entry):
        seen = max(seen, len(pids))
        if time.monotonic() > deadline:
            raise Refused(f"processes of {entry['name']} did not die: {pids[:10]}")
        pid = os.fork()
        if pid == 0:
            run_and_exit(lambda: kill_all_as(entry))
        os.waitpid(pid, 0)
        for victim in pids:
            kill_if_of(victim, entry)
        select.select([], [], [], 0.005)
    cgroup_remove(entry)
    return seen


def kill_all_as(entry: Entry) -> None:
    """Become the worker and kill every process that it may kill, this one last."""
    become(entry, empty_bounding_set=True)
    os.kill(-1, signal.SIGKILL)


def kill_if_of(pid: int, entry: Entry) -> None:
    """Kill a process after making sure, on a handle of that very process, that it is the worker's."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            if is_of(entry, uids_of(pid)):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


# ---------------------------------------------------------------- cgroups and limits


def parse_limits(message: Message) -> Limits:
    """Return the limits that the caller asks for: names of this table, numbers in their ranges."""
    wanted: dict[str, Any] = message.get("limits") or {}
    for name, value in wanted.items():
        kind, least, most = LIMITS.get(name, (Refused, 0, 0))
        is_number = type(value) is kind  # a truth value is an int to isinstance()
        if not is_number or not least <= value <= most:
            raise Refused(f"limits: {str(name)[:32]!r} must be a number in its range")
    return dict(wanted)


def cgroup_root() -> str | None:
    """Return the root of the unified hierarchy where this helper manages groups itself, or None."""
    if os.path.isdir("/run/systemd/system"):
        return None
    for path in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        if os.path.exists(f"{path}/cgroup.controllers"):
            return path
    return None


def cgroups(entry: Entry) -> list[str]:
    """Return the account's groups where this helper manages them itself: the unified one, then those of v1.

    Those of v1 lie below this process's own: what bounds the caller goes on to bound the worker.
    """
    places = [f"{root}/clsecure/{entry['name']}"] if (root := cgroup_root()) else []
    if not os.path.isdir("/run/systemd/system"):
        own = cgroup_paths("self")
        places += [f"{own[c]}/clsecure/{entry['name']}" for c in ("memory", "pids", "cpu") if c in own]
    return places


def cgroup_paths(pid: int | str) -> dict[str, str]:
    """Return the directory of a process's group by controller; "" is the unified hierarchy's."""
    found: dict[str, str] = {}
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            for name in controllers.split(","):
                tops = ("", "/unified") if not name else (f"/{name}",)
                for top in tops:
                    place = f"/sys/fs/cgroup{top}{path.rstrip('/')}"
                    if os.path.exists(f"{place}/cgroup.procs") and ".." not in path.split("/"):
                        found.setdefault(name, place)
    return found


def cgroup_enter(entry: Entry, pid: int, limits: Limits) -> dict[str, str]:
    """Put the first process of a sandbox into groups of its own; return which limits hold there, and how.

    All of it can be killed at once then. On systemd a transient scope with delegation, as its single-writer
    rule wants it; else groups below the root. Best effort: the kill by uid in quiesce() stands without it,
    and a limit counts only when the kernel says so.
    """
    how = "cgroup"
    if os.path.isdir("/run/systemd/system"):
        how = "systemd"
        cgroup_scope(entry, pid, limits)
    else:
        for place in cgroups(entry):
            with contextlib.suppress(OSError):
                os.makedirs(place, mode=0o755, exist_ok=True)
                for parent in (place.rpartition("/clsecure/")[0], os.path.dirname(place)):
                    for name in CONTROLLERS:
                        write_small(f"{parent}/cgroup.subtree_control", f"+{name}")
                for file, value in limit_files(limits):
                    write_small(f"{place}/{file}", value)
                write_small(f"{place}/cgroup.procs", str(pid))
    return dict.fromkeys(confirmed(pid, limits), how)


def cgroup_scope(entry: Entry, pid: int, limits: Limits) -> None:
    """Ask systemd for the scope. Source: org.freedesktop.systemd1(5), StartTransientUnit."""
    manager = "org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager"
    unit = f"clsecure-{entry['name']}-{pid}.scope"
    bounds = []
    if "memory" in limits:
        bounds += [f"MemoryMax t {limits['memory']}", "MemorySwapMax t 0"]
    if "pids" in limits:
        bounds += [f"TasksMax t {limits['pids']}"]
    if "cpus" in limits:
        bounds += [f"CPUQuotaPerSecUSec t {int(limits['cpus'] * 1_000_000)}"]
    count = 3 + len(bounds)
    properties = f"{count} PIDs au 1 {pid} Delegate b true CollectMode s inactive-or-failed"
    request = f"call {manager} StartTransientUnit ssa(sv)a(sa(sv)) {unit} fail {properties}"
    with contextlib.suppress(Refused, OSError):
        tool("/usr/bin/busctl", "--quiet", *" ".join([request, *bounds, "0"]).split(), timeout=5)
        # The unit is made by a job of systemd's: what it holds is looked at when the process is there.
        deadline = time.monotonic() + CLEAR_SECONDS
        while not any(p.endswith(unit) for p in cgroup_paths(pid).values()) and time.monotonic() < deadline:
            select.select([], [], [], 0.005)


def limit_files(limits: Limits) -> list[tuple[str, str]]:
    """Return what to write into a group, of both versions; a file that is not there takes nothing."""
    files = []
    if "memory" in limits:
        memory = str(limits["memory"])
        files += [("memory.max", memory), ("memory.swap.max", "0")]
        files += [("memory.limit_in_bytes", memory), ("memory.memsw.limit_in_bytes", memory)]
    if "pids" in limits:
        files += [("pids.max", str(limits["pids"]))]
    if "cpus" in limits:
        quota = int(limits["cpus"] * CPU_PERIOD)
        files += [("cpu.max", f"{quota} {CPU_PERIOD}"), ("cpu.cfs_period_us", str(CPU_PERIOD))]
        files += [("cpu.cfs_quota_us", str(quota))]
    return files


def confirmed(pid: int, limits: Limits) -> list[str]:
    """Return the limits that the kernel says hold for a process."""
    held, places = [], cgroup_paths(pid)
    for name, controller, files in (
        ("memory", "memory", ("memory.max", "memory.limit_in_bytes")),
        ("pids", "pids", ("pids.max",)),
        ("cpus", "cpu", ("cpu.max", "cpu.cfs_quota_us")),
    ):
        found = [read_small(f"{p}/{f}") for p in (places.get(controller), places.get("")) if p for f in files]
        bounds = [int(text.split()[0]) for text in found if text and text.split()[0].isdigit()]
        most = limits.get(name, 0) * (CPU_PERIOD if name == "cpus" else 1)
        if name in limits and any(0 < bound <= most for bound in bounds):
            held.append(name)
    return held


def struck(places: dict[str, str]) -> dict[str, int]:
    """Return how often the limits of groups struck: processes killed for memory, forks refused."""
    counts = {}
    for name, controller, files, key in (
        ("memory", "memory", ("memory.events", "memory.oom_control"), "oom_kill"),
        ("pids", "pids", ("pids.events",), "max"),
    ):
        for place in (places.get(controller), places.get("")):
            for file in files:
                words = (read_small(f"{place}/{file}") or "").split() if place else []
                if key in words[:-1]:
                    counts[name] = int(words[words.index(key) + 1])
    return counts


def read_small(path: str) -> str | None:
    """Return a small file of the kernel's, None when it is not there or can't be read."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read(4096)
    except (OSError, ValueError):
        return None


def write_small(path: str, value: str) -> None:
    """Write a file of the kernel's that may not be there, or may refuse the value."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)


def cgroup_remove(entry: Entry) -> None:
    """Take the account's groups away; they are busy for a moment after their last process was killed."""
    deadline = time.monotonic() + CLEAR_SECONDS
    for place in cgroups(entry):
        with contextlib.suppress(OSError):
            while True:
                try:
                    os.rmdir(place)
                except OSError as error:
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        raise
                    select.select([], [], [], 0.005)
                else:
                    os.rmdir(os.path.dirname(place))
                    break


class Disk:
    """Watches the disk of a worker's home: a reserve always stays free, and the home stays below a limit.

    The home is counted as the worker, in a child, and only when the file system has filled up since.
    """

    def __init__(self, entry: Entry, limit: int) -> None:
        self.entry, self.limit, self.pipe, self.pid = entry, limit, -1, 0
        self.next, self.until, self.counted = 0.0, 0.0, -1
        if self.low():
            raise Refused(f"there is too little room on the disk of {entry['home']}: free some")

    def free(self) -> int:
        """Return the bytes that are free for plain users."""
        room = os.statvfs(self.entry["home"])
        return room.f_bavail * room.f_frsize

    def low(self) -> bool:
        """Tell whether the reserve is touched, of space or of inodes."""
        room = os.statvfs(self.entry["home"])
        space = room.f_bavail * room.f_frsize < min(DISK_RESERVE, room.f_blocks * room.f_frsize // 20)
        return space or bool(room.f_files and room.f_favail < min(INODE_RESERVE, room.f_files // 20))

    def look(self, ready: Sequence[Any]) -> str | None:
        """Return which bound was passed, None as long as none is. ``ready``: what can be read."""
        if self.low():
            return "reserve"
        if self.pipe in ready:
            return self._result()
        if self.pipe >= 0 and time.monotonic() > self.until:
            return "disk"
        if self.limit and self.pipe < 0 and time.monotonic() >= self.next:
            free = self.free()
            # Of all that was ever free: else room that is given back hides as much new growth.
            self.counted = max(self.counted, free) if self.counted >= 0 else self.counted
            if self.counted < 0 or self.counted - free >= min(self.limit // 20, 64 << 20):
                self.counted = free
                return self._count()
        return None

    def _count(self) -> str | None:
        """Begin to count; what can't be counted, for want of processes say, is too much."""
        read, words = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = os.fork()
        except OSError:
            os.close(read)
            os.close(words)
            return "disk"
        # Only now is there a child to end: without one its number is 0, which means all of our group.
        self.pipe, self.until = read, time.monotonic() + 3 * COUNT_SECONDS
        if self.pid == 0:
            null = os.open("/dev/null", os.O_RDWR)
            for target, fd in ((0, null), (1, words), (2, null)):
                os.dup2(fd, target)

            home = self.entry["home"]

            def execute() -> None:
                resource.setrlimit(resource.RLIMIT_CPU, (COUNT_SECONDS, COUNT_SECONDS))
                become(self.entry, empty_bounding_set=True)
                prctl(PR_SET_NO_NEW_PRIVS, 1)
                os.execve("/usr/bin/du", ("du", "-s", "-x", "--block-size=1", "--", home), {"LC_ALL": "C"})

            run_and_exit(execute)
        os.close(words)
        return None

    def _result(self) -> str | None:
        words = os.read(self.pipe, 64).split()
        self.close()
        self.next = time.monotonic() + COUNT_INTERVAL
        # What can't be counted in that time is too much.
        return None if words and words[0].isdigit() and int(words[0]) <= self.limit else "disk"

    def close(self) -> None:
        """End a count that is under way."""
        if self.pipe >= 0:
            os.close(self.pipe)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pipe = -1


# ---------------------------------------------------------------- accounts


def ensure_account(entry: Entry) -> None:
    """Make what is missing of an account; refuse a home that is not what was made."""
    name, uid, home = entry["name"], entry["uid"], entry["home"]
    if not known(grp.getgrnam, name):
        tool("/usr/sbin/groupadd", "--gid", str(uid), name)
    if not known(pwd.getpwnam, name):
        how = f"--no-log-init --system --uid {uid} --gid {uid} --no-create-home --shell /usr/sbin/nologin"
        tool("/usr/sbin/useradd", *how.split(), "--comment", "clsecure worker", "--home-dir", home, name)
    if pwd.getpwnam(name).pw_uid != uid or grp.getgrnam(name).gr_gid != uid:
        raise Refused(f"the account {name} is not the one that was made here")
    own_directory(os.path.realpath(os.path.dirname(home)), 0o755)
    with contextlib.suppress(FileExistsError):
        os.mkdir(home, 0o700)
    close_home(entry)


def close_home(entry: Entry) -> None:
    """Give the home to the worker alone: an agent can open its own to everybody on the machine."""
    fd = os.open(entry["home"], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_uid not in (entry["uid"], 0):
            raise Refused(f"{entry['home']} belongs to somebody else")
        os.fchown(fd, entry["uid"], entry["uid"])
        os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def wipe_home(entry: Entry) -> None:
    """Delete all that is in the home, as the worker: its links and permissions can hurt only itself.

    The home itself stays: the directory above is root's. That its removal fails is no failure.
    """
    home, delete = entry["home"], ("/bin/rm", "-rf", "--one-file-system", "--", entry["home"])
    if not os.path.isdir(home):
        return
    tool(*delete, timeout=600, worker=entry)
    if os.listdir(home):
        # Directories without permissions: only their owner may open them up, and only now is it worth it.
        tool("/bin/chmod", "-R", "u+rwX", "--", home, timeout=600, worker=entry)
        tool(*delete, timeout=600, worker=entry)
    if left := os.listdir(home):
        raise Refused(f"{len(left)} entries in {home} could not be deleted")


def remove_account(registry: Registry, entry: Entry) -> None:
    """Take everything of an account away; the registry entry goes last, so a failure can be tried again.

    What takes as long as the worker's files want happens before the lock that all members share.
    """
    name = entry["name"]
    quiesce(entry)
    wipe_home(entry)
    with registry.lock():
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(entry["home"])
        for path in ("/var/mail", "/var/spool/mail", "/var/spool/cron/crontabs", "/var/spool/cron"):
            with contextlib.suppress(OSError):
                os.unlink(f"{path}/{name}")
        if known(pwd.getpwnam, name):
            tool("/usr/sbin/userdel", name)
        if known(grp.getgrnam, name):
            tool("/usr/sbin/groupdel", name)
        registry.forget(entry)


# ---------------------------------------------------------------- agent binaries


def keep_agent(owner: int, digest: str, source: int) -> str:
    """Copy an agent's executable into root's own store unless it is there; return its directory."""
    info = os.fstat(source)
    if not stat.S_ISREG(info.st_mode) or not 0 < info.st_size <= AGENT_LIMIT:
        raise Refused("the agent is not a regular file of at most 1 GiB")
    own_directory(f"{STATE}/agents", 0o711)
    store = own_directory(f"{STATE}/agents/{owner}", 0o711)
    target, copy = f"{store}/{digest}", f"{store}/.new"
    with locked(f"{store}/.lock", wait=LOCK_SECONDS):
        if os.path.isdir(target):
            os.utime(target)
            return target
        room = os.statvfs(store)
        if room.f_bavail * room.f_frsize < info.st_size + DISK_RESERVE:
            raise Refused(f"there is too little room in {STATE} for the agent")
        try:
            with open(copy, "w+b") as file:
                offset = 0
                while sent := os.sendfile(file.fileno(), source, offset, info.st_size - offset):
                    offset += sent
                file.seek(0)
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise Refused("the agent's file changed while it was copied")
                os.fchmod(file.fileno(), 0o555)
                os.fsync(file.fileno())
            own_directory(target + ".new", 0o755)
            os.rename(copy, f"{target}.new/agent")
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(copy)
        os.rename(target + ".new", target)
        versions = [name for name in os.listdir(store) if SHA256.match(name)]
        for old in sorted(versions, key=lambda n: os.stat(f"{store}/{n}").st_mtime)[:-AGENT_VERSIONS]:
            os.unlink(f"{store}/{old}/agent")
            os.rmdir(f"{store}/{old}")
    return target


# ---------------------------------------------------------------- the view


class View:
    """The file system that a sandbox sees: a new root that holds only what is named here."""

    def __init__(
        self,
        entry: Entry,
        mounts: list[GivenMount],
        agent: KeptAgent,
        *,
        setuid_allowed: bool,
        memory: int | None,
    ) -> None:
        self.entry, self.agent = entry, agent
        quarter = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
        self.size = min(quarter, memory or quarter)
        self.root = own_directory(f"{STATE}/view", 0o700)
        self.read_only = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | (0 if setuid_allowed else MOUNT_ATTR_NOSUID)
        # Before there is a mount namespace of its own: the kernel copies no mounts out of another one.
        self.mounts = [(target, read_only, tree_of(fd)) for target, read_only, fd in mounts]

    def at(self, path: str) -> str:
        """Return where a path of the inside is being built."""
        return self.root + path

    def directory(self, path: str, mode: int = 0o755) -> str:
        """Make a directory and its parents in the new root."""
        os.makedirs(self.at(path), exist_ok=True)
        os.chmod(self.at(path), mode)
        return self.at(path)

    def writable(self, path: str, mode: int = 0o755) -> None:
        """Make a directory that stays writable: a mount of its own, in the one memory file system."""
        made = self.directory(path, mode)
        mount(made, made, None, MS_BIND)

    def build(self, *, home: bool = True) -> None:
        """Assemble the new root in this process's own mount namespace."""
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        tmpfs(self.root, "755", f"size={self.size}")
        self._private()
        self._system()
        self._devices()
        if home:
            place = self.directory(self.entry["home"])
            bind(self.entry["home"], place, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
        if self.agent is not None:
            digest_directory, name = self.agent
            made = f"{self.directory('/opt/clsecure/bin')}/{name}"
            write_file(made, b"", 0o755)
            bind(f"{digest_directory}/agent", made, self.read_only | MOUNT_ATTR_NOSUID)
        for target, read_only, tree in self.mounts:
            self._given(target, tree, read_only=read_only)

    def _system(self) -> None:
        for name in ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            if os.path.islink(f"/{name}"):
                os.symlink(os.readlink(f"/{name}"), self.at(f"/{name}"))
            elif os.path.isdir(f"/{name}"):
                bind(f"/{name}", self.directory(f"/{name}"), self.read_only)
        ours = self.directory("/opt/clsecure/etc")
        for name, content in user_files(self.entry, self.entry["uid"]).items():
            write_file(f"{ours}/{name}", content.encode(), 0o644)
        # Files that are mounts of their own, as containers have them: the layer below does not show them.
        for name in ("hosts", "hostname", "resolv.conf"):
            if os.path.ismount(f"/etc/{name}") and os.path.isfile(f"/etc/{name}"):
                with open(f"/etc/{name}", "rb") as file:
                    write_file(f"{ours}/{name}", file.read(LOG_LIMIT), 0o644)
        # Not files mounted over the host's: the kernel drops such a mount when somebody on the host renames
        # another file into its place, and that is how useradd writes /etc/passwd.
        flags = MS_RDONLY | MS_NODEV | (MS_NOSUID if self.read_only & MOUNT_ATTR_NOSUID else 0)
        mount("overlay", self.directory("/etc"), "overlay", flags, f"lowerdir={ours}:/etc")

    def _private(self) -> None:
        for path in ("/run", "/var", "/opt"):
            self.writable(path)
        self.writable("/tmp", 0o1777)
        for path in ("/var/tmp", "/run/lock"):
            self.directory(path, 0o1777)
        for path in ("var/lib", "var/log", "var/cache", "root", "srv", "mnt", "media", "proc", "sys", "home"):
            self.directory(f"/{path}")
        uid = self.entry["uid"]
        os.chown(self.directory(f"/run/user/{uid}", 0o700), uid, uid)

    def _devices(self) -> None:
        self.writable("/dev/shm", 0o1777)
        dev = self.at("/dev")
        for name in DEVICES:
            write_file(f"{dev}/{name}", b"")
            mount(f"/dev/{name}", f"{dev}/{name}", None, MS_BIND)
        for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
            os.symlink(f"/proc/self/fd{target}", f"{dev}/{name}")
        options = "newinstance,ptmxmode=0666,mode=0620,gid=5"
        mount("devpts", self.directory("/dev/pts"), "devpts", MS_NOSUID | MS_NOEXEC, options)
        os.symlink("pts/ptmx", f"{dev}/ptmx")

    def resolver(self) -> None:
        """Name the resolver of a full network, also where the host's file is a link into its /run."""
        place = os.path.realpath("/etc/resolv.conf")
        content = f"nameserver {RESOLVER}\n".encode()
        if place.startswith("/run/"):
            self.directory(os.path.dirname(place))
            write_file(self.at(place), content, 0o644)
        elif os.path.isfile(place):
            made = self.at("/opt/clsecure/etc/resolv.conf")
            write_file(made, content, 0o644)
            bind(made, self.at(place), self.read_only | MOUNT_ATTR_NOSUID)

    def _given(self, target: str, tree: int, *, read_only: bool) -> None:
        made = self.at(target)
        if os.path.realpath(made) != made:
            raise Refused(f"the mount target {target!r} leads through a link")
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            os.makedirs(made, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(made), exist_ok=True)
            os.close(os.open(made, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))
        attach(tree, made, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (MOUNT_ATTR_RDONLY if read_only else 0))

    def enter(self, *, host_proc: bool, cgroup: bool = False) -> None:
        """Make the new root the only one. ``host_proc``: firejail looks at the host's /proc first."""
        if host_proc:
            mount("/proc", self.at("/proc"), None, MS_BIND | MS_REC)
            mount("/sys", self.at("/sys"), None, MS_BIND | MS_REC)
        else:
            mount("sysfs", self.at("/sys"), "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
        if cgroup:
            # The sandbox's own groups, and only those: engines want to see what they would put limits on.
            flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
            mount("cgroup2", self.at("/sys/fs/cgroup"), "cgroup2", flags)
        os.chdir(self.root)
        call("pivot_root", b".", b".")
        call("umount2", b".", MNT_DETACH)
        os.chdir("/")
        mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def parse_mounts(message: Message, fds: list[int], entry: Entry) -> list[GivenMount]:
    """Return [(target, read_only, fd)], checked: in no closed directory, not nested, opened by the caller."""
    wanted = message.get("mounts", [])
    if not isinstance(wanted, list) or len(wanted) > MOUNT_LIMIT or len(wanted) != len(fds):
        raise Refused("mounts and descriptors do not match")
    parsed: list[GivenMount] = []
    for item, fd in zip(wanted, fds, strict=True):
        if not isinstance(item, dict):
            raise Refused("a mount must be an object")
        target = text(item, "target")
        # Not "//x": normpath() leaves two slashes, and the checks below would take it for another place.
        if target != os.path.normpath(target) or not re.match(r"/[^/]", target) or "\n" in target:
            raise Refused(f"the mount target {target!r} is not a plain absolute path")
        if target.split("/")[1].rstrip("0123456789x") in CLOSED_TARGETS:
            raise Refused(f"nothing can be mounted below /{target.split('/')[1]}")
        for other in (*(t for t, _, _ in parsed), entry["home"], "/opt/clsecure"):
            if f"{target}/".startswith(f"{other}/") or f"{other}/".startswith(f"{target}/"):
                raise Refused(f"the mount target {target!r} overlaps another one")
        mode, place = os.fstat(fd).st_mode, os.readlink(f"/proc/self/fd/{fd}")
        # A namespace is a regular file, too; it has no place.
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) or not place.startswith("/"):
            raise Refused(f"only directories and files can be mounted ({target!r})")
        parsed.append((target, item.get("read_only") is not False, fd))
    return parsed


# ---------------------------------------------------------------- engines


CONTAINERS_CONF = """# Written by clsecure for this engine; nothing else of the machine's configuration is read.
[containers]
cgroups = "disabled"
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
log_driver = "k8s-file"
log_size_max = 10000000
[engine]
runtime = "crun"
runtime_supports_nocgroups = ["crun", "runsc", "kata", "krun", "youki", "crun-vm"]
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""
STORAGE_CONF = """[storage]
driver = "overlay"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers"
[storage.options]
additionalimagestores = [{images}]
[storage.options.overlay]
ignore_chown_errors = "{single}"
"""
IMAGES = "/opt/clsecure/images"


class Engine:
    """podman's API as root of a user namespace of its own: to everybody else it is the worker.

    It needs no set-uid program and no capability of the machine's; with its first process everything of it dies.

    :param api: the listening socket, handed over as systemd does it (sd_listen_fds(3)).
    :param images: the owner's image store, read-only; None without one.
    :param storage: a directory of the engine's own for what it stores, None for memory.
    :param wide: with the account's range of further uids, and a network namespace that it may build networks in.
    """

    def __init__(
        self,
        entry: Entry,
        api: socket.socket,
        *,
        tty: int,
        images: Entry | None = None,
        storage: str | None = None,
        wide: bool = False,
        proxy: str | None = None,
    ) -> None:
        self.entry, self.api, self.images, self.storage = entry, api, images, storage
        self.wide, self.proxy = wide, proxy
        uid = entry["uid"]
        self.uids: Map = [(0, uid, 1)]
        self.gids: Map = [(0, uid, 1), (TTY, tty, 1)]
        if wide:
            self.uids += [(1, entry["range"], RANGE - 1)]
            self.gids = [(0, uid, 1), (1, entry["range"], RANGE - 1)]
        elif images is not None:
            # Who the image's files belong to. Mapped, so that mount points can be made above them; the store
            # itself is read-only here, and the agent is somebody else and has no capability.
            self.uids += [(OVERFLOW, images["uid"], 1)]
            self.gids += [(OVERFLOW, images["uid"], 1)]
        self.words, self.inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.words.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    def started(self, timeout: float) -> int:
        """In the helper: give the new user namespace its maps; return the pid of its first process."""
        pid = credentials_of(self.words, timeout)
        if not pid or not is_of(self.entry, uids_of(pid)):
            raise Refused("the engine did not come up")
        write_maps(pid, self.uids, self.gids)
        return pid

    def go(self) -> None:
        """Let it go on."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.words.send(b"1")

    def furnish(self, view: View) -> None:
        """In the child: what the engine needs of the view."""
        for path in ("/run", "/run/containers", "/var/lib/containers", "/var/cache/containers"):
            os.chown(view.directory(path), self.entry["uid"], self.entry["uid"])
        if self.storage is not None:
            flags = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
            # The images of a session's own engine may hold set-uid programs: they raise nobody out of its range.
            bind(self.storage, view.at("/var/lib/containers"), 0 if self.wide else flags)
        stores = []
        if self.images is not None:
            bind(self.images["home"], view.directory(IMAGES), view.read_only | MOUNT_ATTR_NOSUID)
            stores = [f'"{IMAGES}/storage"']
        hard = [resource.getrlimit(limit)[1] for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)]
        files, processes = (
            n if 0 <= n < most else most for n, most in zip(hard, (1 << 20, 1 << 22), strict=True)
        )
        ours = view.directory("/opt/clsecure/etc")
        conf = CONTAINERS_CONF.format(files=files, processes=processes)
        write_file(f"{ours}/containers.conf", conf.encode(), 0o644)
        conf = STORAGE_CONF.format(images=", ".join(stores), single="false" if self.wide else "true")
        write_file(f"{ours}/storage.conf", conf.encode(), 0o644)
        short = '"docker.io"' if self.wide else ""
        conf = f'unqualified-search-registries = [{short}]\nshort-name-mode = "disabled"\n'
        write_file(f"{ours}/registries.conf", conf.encode(), 0o644)

    def run(self) -> NoReturn:
        """In the child, still root: fork into the new PID namespace; its first process is the engine's root."""
        first = os.fork()
        if first:
            os.closerange(0, 1024)
            _, status = os.waitpid(first, 0)
            os._exit(exit_code(status))
        run_and_exit(self._first)

    def _first(self) -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        enter_user_namespace(self.entry, self.inside, CLONE_NEWNS | (CLONE_NEWNET if self.wide else 0))
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if self.wide:
            loopback_up()
        main = os.fork()
        if main == 0:
            env = {
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/run/engine", "TMPDIR": "/var/tmp",
                "CONTAINERS_CONF": "/opt/clsecure/etc/containers.conf",
                "CONTAINERS_STORAGE_CONF": "/opt/clsecure/etc/storage.conf",
                "CONTAINERS_REGISTRIES_CONF": "/opt/clsecure/etc/registries.conf",
                # Images are built in the engine's own namespaces: nothing there is the agent's to gain.
                "BUILDAH_ISOLATION": "chroot",
                "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "podman.sock",
            }  # fmt: skip
            if self.proxy:
                env |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), self.proxy)
            os.dup2(self.api.fileno(), 3)
            os.closerange(4, 1024)
            os.execve(PODMAN, (PODMAN, "system", "service", "--time=0"), env)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        self.api.close()
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == main:
                os._exit(exit_code(status))


def given_listener(fd: int) -> socket.socket:
    """Return a listening Unix socket of the caller's; refuse anything else."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise Refused("the engine's socket is none")
    given = socket.socket(fileno=os.dup(fd))
    listening = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if (given.family, given.type, listening) != (socket.AF_UNIX, socket.SOCK_STREAM, 1):
        given.close()
        raise Refused("the engine's socket does not listen")
    return given


def listen(path: str, kind: socket.SocketKind, *, uid: int, gid: int, mode: int) -> socket.socket:
    """Return a listening socket at a path in a directory of root's own."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(path)
    os.chmod(path, mode)
    os.chown(path, uid, gid)
    listener.listen(64)
    return listener


def image_store(registry: Registry, owner: int) -> Entry:
    """Return the owner's image store as an account that nothing else runs as; make it when it isn't there.

    Not in passwd. The directory above is closed, so that nobody on the machine comes to a set-uid file in it.
    """
    own_directory(f"{STATE}/images", 0o711)
    place = own_directory(f"{STATE}/images/{owner}", 0o700)
    home, note = f"{place}/store", f"{place}/account.json"
    try:
        with open(note, encoding="ascii") as file:
            entry: Entry = json.load(file)
    except FileNotFoundError:
        with registry.lock():
            entry = {"name": f"images-{owner}", "uid": registry.free_uid(), "owner": owner, "home": home}
        write_file(note, json.dumps(entry).encode())
    with contextlib.suppress(FileExistsError):
        os.mkdir(home, 0o755)
    os.chown(home, entry["uid"], entry["uid"], follow_symlinks=False)
    return entry


def engine_storage(entry: Entry) -> str:
    """Return an empty directory for what the session's own engine stores."""
    own_directory(f"{STATE}/engines", 0o711)
    place = f"{STATE}/engines/{entry['name']}"
    wipe_storage(entry)
    os.mkdir(place, 0o700)
    os.chown(place, entry["uid"], entry["uid"], follow_symlinks=False)
    return place


def wipe_storage(entry: Entry) -> None:
    """Delete what a session's own engine stored, as root of its user namespace: it can hurt only itself."""
    place = f"{STATE}/engines/{entry['name']}"
    if "range" not in entry or not os.path.lexists(place):
        return
    words, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    pid = os.fork()
    if pid == 0:

        def execute() -> None:
            words.close()
            os.chdir("/")
            null = os.open("/dev/null", os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            enter_user_namespace(entry, inside, CLONE_NEWNS)
            argv = ("/bin/rm", "-rf", "--one-file-system", "--", place)
            os.execve(argv[0], argv, {"LC_ALL": "C"})

        run_and_exit(execute)
    inside.close()
    with words:
        if credentials_of(words, 5) == pid:
            gids = [(0, entry["uid"], 1), (1, entry["range"], RANGE - 1)]
            write_maps(pid, gids, gids)
            words.send(b"1")
    pidfd = os.pidfd_open(pid)
    if not select.select([pidfd], [], [], 600)[0]:
        os.kill(pid, signal.SIGKILL)
    os.close(pidfd)
    os.waitpid(pid, 0)
    # It could empty the directory; the one above is root's.
    os.rmdir(place)


class Sidecar:
    """The session's own engine: podman in a sandbox of its own, with further uids and a network namespace.

    The session's sandbox enters that network namespace; it shares nothing else with it but the workspace.
    """

    def __init__(
        self, entry: Entry, api: socket.socket, *, tty: int, workspace: str, proxy: str | None
    ) -> None:
        self.entry, self.workspace = entry, workspace
        self.place = parse_workspace(entry, workspace)
        self.engine = Engine(entry, api, tty=tty, storage=engine_storage(entry), wide=True, proxy=proxy)
        self.pid = self.pidfd = self.network = -1

    def launch(self, go: Callable[[int], None]) -> None:
        """Start it; ``go`` gets the pid of its first process before that does anything."""
        go_read, go_write = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(go_write)
            run_and_exit(lambda: self._stage(go_read))
        os.close(go_read)
        self.pidfd = os.pidfd_open(self.pid)
        go(self.pid)
        os.write(go_write, b"1")
        os.close(go_write)
        first = self.engine.started(10)
        self.network = os.open(f"/proc/{first}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.engine.go()

    def _stage(self, go: int) -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.read(go, 1) != b"1":
            raise Refused("the helper is gone")
        os.setsid()
        for number in INHERITED_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        call("syscall", SYS_KEYCTL[os.uname().machine], KEYCTL_JOIN_SESSION_KEYRING, None)
        view = View(
            self.entry, [(self.workspace, False, self.place)], None, setuid_allowed=False, memory=None
        )
        spaces = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWPID | CLONE_NEWNET
        call("unshare", spaces)
        socket.sethostname("engine")
        view.build(home=False)
        self.engine.furnish(view)
        view.enter(host_proc=False, cgroup=True)
        os.umask(0o022)
        self.engine.run()

    def end(self) -> None:
        """Kill it, and delete what it stored once every process of the session is dead."""
        if self.pid > 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.pidfd)
        if self.network >= 0:
            os.close(self.network)
        os.close(self.place)


class ImageStore:
    """podman on an image store, as the account that the store's files belong to, without a network."""

    def __init__(self, entry: Entry, api: socket.socket, *, tty: int) -> None:
        self.entry, self.engine = entry, Engine(entry, api, tty=tty)
        self.pid, self.log, self.words = -1, os.memfd_create("words"), ""

    def launch(self) -> None:
        """Start it."""
        self.pid = os.fork()
        if self.pid == 0:
            run_and_exit(self._stage)
        self.engine.started(10)
        self.engine.go()
        self.engine.api.close()

    def _stage(self) -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        for number in INHERITED_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        null = os.open("/dev/null", os.O_RDWR)
        for target, fd in ((0, null), (1, self.log), (2, self.log)):
            os.dup2(fd, target)
        call("syscall", SYS_KEYCTL[os.uname().machine], KEYCTL_JOIN_SESSION_KEYRING, None)
        view = View(self.entry, [], None, setuid_allowed=False, memory=None)
        spaces = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWPID | CLONE_NEWNET
        call("unshare", spaces)
        socket.sethostname("images")
        view.build(home=False)
        self.engine.storage = self.entry["home"]
        self.engine.furnish(view)
        view.enter(host_proc=False, cgroup=True)
        os.umask(0o022)
        self.engine.run()

    def end(self) -> None:
        """End it."""
        if self.pid > 0:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        quiesce(self.entry)
        with open(self.log, "rb") as file:
            file.seek(0)
            self.words = file.read(LOG_LIMIT).decode("utf-8", "replace")


def parse_workspace(entry: Entry, path: str) -> int:
    """Open a directory below the worker's home, through no link: the worker could have made one."""
    home = f"{entry['home']}/"
    parts = path.removeprefix(home).split("/")
    if not path.startswith(home) or any(part in ("", ".", "..") for part in parts):
        raise Refused("the workspace must be below the worker's home")
    fd = os.open(entry["home"], os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    for part in parts:
        try:
            inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


# ---------------------------------------------------------------- sandboxes


def require_root_owned(path: str, also: int = 0) -> None:
    """Refuse a program that is missing, or that somebody else than root could have changed."""
    try:
        info = os.stat(path)
    except FileNotFoundError:
        raise Refused(f"{path} is not installed") from None
    if info.st_uid != 0 or info.st_mode & 0o022 or info.st_mode & also != also:
        raise Refused(f"{path} is not root's own{' set-uid' if also else ''} program")


def user_files(entry: Entry, uid: int) -> dict[str, str]:
    """Return the databases of users that a sandbox sees. ``uid``: the worker's, inside."""
    name, home = entry["name"], entry["home"]
    root = "root:x:0:0:root:/root:/usr/sbin/nologin\n" if uid else ""
    worker = f"{name}:x:{uid}:{uid}::{home}:/bin/bash\n"
    return {
        "passwd": f"{root}{worker}nobody:x:65534:65534::/:/usr/sbin/nologin\n",
        "group": ("root:x:0:\n" if uid else "") + f"tty:x:5:\n{name}:x:{uid}:\nnogroup:x:65534:\n",
    }


class Sandbox:
    """One sandbox, from its first process to the death of its last."""

    def __init__(self, entry: Entry, registry: Registry, message: Message, fds: list[int]) -> None:
        self.entry = entry
        self.mode, self.container = message.get("mode"), message.get("engine")
        if self.mode not in ("user", "namespace", "container"):
            raise Refused("the mode must be user, namespace or container")
        if self.container not in (("podman", "docker") if self.mode == "container" else (None,)):
            raise Refused("containers have an engine, podman or docker, and nothing else has")
        self.docker = message.get("docker")
        if self.docker not in (None, "own", "host"):
            raise Refused("docker must be own or host")
        self.tty = registry.config["range_first"]
        self.network = None
        api = None
        if self.container == "podman":
            require_root_owned(PODMAN)
            api = given_listener(fds.pop(0) if fds else -1)
        if message.get("network_namespace") is True:
            self.network, *fds = fds
        private = message.get("private") is True
        if private and self.network is None:
            raise Refused("only a network namespace can be opened to private addresses")
        if self.network is not None and (self.docker == "own" or self.container == "docker"):
            raise Refused("an engine's own network and a full network do not go together")
        self.closed = CLOSED if private else CLOSED + PRIVATE
        self.mounts = parse_mounts(message, fds, entry)
        self.agent = None
        if message.get("agent") is not None:
            digest, name = text(message, "agent", 64), text(message, "agent_name", 32)
            directory = f"{STATE}/agents/{entry['owner']}/{digest}"
            if not SHA256.match(digest) or not PROGRAM.match(name) or not os.path.isdir(directory):
                raise Refused("the agent is not in the store")
            self.agent = (directory, name)
        if self.mode == "namespace":
            require_root_owned(FIREJAIL, stat.S_ISUID)
        self.limits = parse_limits(message)
        self.disk = None
        if message.get("disk_reserve") is True or "disk" in self.limits:
            self.disk = Disk(entry, self.limits.get("disk", 0))
        self.passed: str | None = None
        self.struck: dict[str, int] = {}
        terminal = message.get("terminal")
        size = [type(n) is int and 0 < n < 10000 for n in terminal] if isinstance(terminal, list) else []
        if terminal is not None and size != [True, True]:
            raise Refused("the terminal must be rows and columns")
        # The session's own engine makes networks in the same namespace, from where the gateway is wanted, too.
        # There is no way out of it but that gateway.
        anywhere = ("0.0.0.0", PROXY_PORT) if self.docker == "own" else ("127.0.0.1", 0)
        self.api, self.workspace = api, text(message, "workspace") if self.docker == "own" else ""
        self.status: int | None = None
        self.engine: Engine | None = None
        self.sidecar: Sidecar | None = None
        self.run_directory = ""
        self.sockets: dict[str, socket.socket] = {}
        self.pid = self.pidfd = self.main_pidfd = self.log = -1
        self.orders = {
            "listener": list(anywhere) if message.get("listener") is True else None,
            "status": bool(self.container),
            "terminal": terminal,
            "writable": [entry["home"], *(t for t, read_only, _ in self.mounts if not read_only)],
        }

    def prepare(self, registry: Registry) -> None:
        """Make what has to be there before the first process; :meth:`end` takes it away."""
        if self.container or self.docker:
            self._make_sockets()
        if self.api is not None:
            images = image_store(registry, self.entry["owner"])
            self.engine = Engine(self.entry, self.api, tty=self.tty, images=images)
        if self.docker == "own":
            require_root_owned(PODMAN)
            with registry.lock():
                registry.give_range(self.entry)
            proxy = f"http://127.0.0.1:{PROXY_PORT}" if self.orders["listener"] else None
            self.sidecar = Sidecar(
                self.entry, self.sockets["docker"], tty=self.tty, workspace=self.workspace, proxy=proxy
            )

    def _make_sockets(self) -> None:
        """Make the places where the inside meets this process and the caller: in a directory of root's own."""
        uid, owner = self.entry["uid"], self.entry["owner"]
        own_directory(RUN, 0o711)
        self.run_directory = own_directory(f"{RUN}/{self.entry['name']}", 0o711)
        if self.container:
            path = f"{self.run_directory}/control"
            self.sockets["control"] = listen(path, socket.SOCK_SEQPACKET, uid=uid, gid=uid, mode=0o600)
            self.sockets["control"].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            for name, content in user_files(self.entry, uid if self.container == "docker" else 0).items():
                write_file(f"{self.run_directory}/{name}", content.encode(), 0o644)
        if self.docker:
            # The worker by its group, the caller as the owner: images are brought along, or the host's is lent.
            path = f"{self.run_directory}/docker.sock"
            self.sockets["docker"] = listen(path, socket.SOCK_STREAM, uid=owner, gid=uid, mode=0o660)

    def launch(self) -> None:
        """Start the first process; it becomes the launcher and reports over ``self.control``."""
        if self.sidecar is not None:
            self.sidecar.launch(self._limited)
        self.control, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.log, log = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.words = b""
        self.main: Message = {}
        go_read, go_write = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(go_write)
            os.dup2(log, 1)
            os.dup2(log, 2)
            run_and_exit(lambda: self._stage(inside, go_read))
        os.close(log)
        os.close(go_read)
        inside.close()
        self.pidfd = os.pidfd_open(self.pid)
        self._limited(self.pid)
        by_rlimit = [n for n in ("pids", "open_files") if n in self.limits and n not in self.enforced]
        self.enforced |= dict.fromkeys(by_rlimit, "rlimit")
        self.enforced |= {"disk": "measured"} if "disk" in self.limits else {}
        # The launcher lowers it: firejail makes its user namespace as root, who has processes of its own.
        self.orders["processes"] = self.limits["pids"] if "pids" in by_rlimit else None
        os.write(go_write, b"1")
        os.close(go_write)
        if self.engine is not None:
            self.engine.started(10)
            self.engine.go()
        if not self.container:
            self._tell(self.orders)

    def _limited(self, pid: int) -> None:
        """Put a first process into the session's groups."""
        self.enforced = cgroup_enter(self.entry, pid, self.limits)
        self.groups = cgroup_paths(pid)

    def _tell(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Say something to the launcher. That it is dead already is seen, and told, where its end is."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(self.control, message, fds)

    def _stage(self, inside: socket.socket, go: int) -> None:
        """In the child, still root: namespaces, view, then the worker for good."""
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.read(go, 1) != b"1":
            raise Refused("the helper is gone")
        if "open_files" in self.limits:
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            most = self.limits["open_files"]
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, hard),) * 2 if hard >= 0 else (most, most))
        os.setsid()
        for number in INHERITED_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        if self.container == "docker":
            # docker's own daemon makes the container: this process only stands for it here.
            os.dup2(inside.fileno(), 0)
            os.closerange(3, 1024 * 1024)
            become(self.entry, empty_bounding_set=True)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            while True:
                signal.pause()
        call("syscall", SYS_KEYCTL[os.uname().machine], KEYCTL_JOIN_SESSION_KEYRING, None)
        view = View(
            self.entry,
            self.mounts,
            self.agent,
            setuid_allowed=self.mode == "namespace",
            memory=self.limits.get("memory"),
        )
        own_pids = CLONE_NEWPID if self.mode != "namespace" else 0
        if self.network is not None:
            close_network(self.network, self.entry["owner"], [*self.closed, *host_addresses()])
        if self.sidecar is not None:
            call("setns", self.sidecar.network, CLONE_NEWNET)
        own_network = CLONE_NEWNET if self.network is None and self.sidecar is None else 0
        spaces = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
        call("unshare", spaces | own_network | own_pids)
        socket.sethostname("clsecure")
        loopback_up()
        view.build()
        if self.network is not None:
            view.resolver()
        if self.engine is not None:
            self.engine.furnish(view)
            bind(self.run_directory, view.directory(RUN), view.read_only)
        elif self.docker:
            made = f"{view.directory(RUN)}/docker.sock"
            write_file(made, b"")
            bind(f"{self.run_directory}/docker.sock", made, view.read_only)
        view.enter(host_proc=self.mode == "namespace", cgroup=self.engine is not None)
        os.umask(0o022)
        if self.engine is not None:
            self.engine.run()
        os.dup2(inside.fileno(), 0)
        os.closerange(3, 1024 * 1024)
        if self.mode == "user":
            self._first_process()
        else:
            become(self.entry, empty_bounding_set=False)
            # Without "--", behind which firejail would run everything through the account's shell.
            self._exec(FIREJAIL, "--quiet", f"--profile={HERE}/firejail.profile", PYTHON)

    def _exec(self, *program: str) -> None:
        name, home = self.entry["name"], self.entry["home"]
        argv = (*program, "-I", "-S", f"{HERE}/launcher.py")
        env = {"PATH": "/usr/bin:/bin", "HOME": home, "USER": name, "LOGNAME": name, "SHELL": "/bin/sh"}
        os.execve(argv[0], argv, env)

    def _first_process(self) -> None:
        """Fork into the new PID namespace; its first process only waits, and everything dies with it."""
        first = os.fork()
        if first:
            os.closerange(0, 1)
            _, status = os.waitpid(first, 0)
            os._exit(exit_code(status))
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        become(self.entry, empty_bounding_set=True)
        # The change of uid took both: die with the parent, and let nobody of the same uid look into this.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_DUMPABLE, 0)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        main = os.fork()
        if main == 0:
            self._exec(PYTHON)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == main:
                os._exit(exit_code(status))

    def barrier(self, conn: socket.socket) -> bool:
        """Wait for the launcher, look at that very process, and hand everything to the caller."""
        deadline = time.monotonic() + (ENGINE_SECONDS if self.container else 20)
        fds = array.array("i")
        try:
            if self.container and not self._connected(conn, deadline):
                return False
            # What it made comes first and by itself: at ``ready`` the launcher holds no copy any more.
            report: Message = {"event": "made"}
            while report.get("event") == "made":
                if not self._awaited(conn, deadline):
                    return False
                report, pid = self._word(fds)
            if report.get("event") != "ready":
                raise Refused(f"the launcher gave up: {report.get('error')}")
            facts = facts_of(pid)
            if self.container == "docker":
                self.enforced |= dict.fromkeys(confirmed(pid, self.limits), "engine")
                self.groups = cgroup_paths(pid)
            if self.enforced.get("pids") == "rlimit":
                found = re.search(
                    r"^Max processes +\d+ +(\d+)", read_small(f"/proc/{pid}/limits") or "", re.MULTILINE
                )
                if found is None or int(found[1]) > self.limits["pids"]:
                    del self.enforced["pids"]
            self.main, self.main_pidfd = facts, os.pidfd_open(pid)
            ready = {"event": "ready", "report": report, "facts": facts, "enforced": self.enforced}
            if self.docker == "host":
                fds.append(self.sockets.pop("docker").detach())
            send(conn, ready, fds)
        finally:
            close_all(fds)
        return True

    def _connected(self, conn: socket.socket, deadline: float) -> bool:
        """Wait for the launcher in the container: the first process of the worker's that connects."""
        listener = self.sockets.pop("control")
        self.control.close()
        self.control = listener
        try:
            while True:
                if not self._awaited(conn, deadline):
                    return False
                self.control, _ = listener.accept()
                size = struct.calcsize("3i")
                peer = self.control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
                if struct.unpack("3i", peer)[1] == self.entry["uid"]:
                    break
                self.control.close()
                self.control = listener
        finally:
            if self.control is not listener:
                listener.close()
            os.unlink(f"{self.run_directory}/control")
        self.control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._tell(self.orders)
        return True

    def _awaited(self, conn: socket.socket, deadline: float) -> bool:
        """Wait for a word of the launcher's; False when the caller went away meanwhile."""
        waited: list[Any] = [self.control, conn, self.pidfd]
        while True:
            ready, _, _ = select.select(waited, [], [], max(0, deadline - time.monotonic()))
            if self.control in ready:
                return True
            if conn in ready:
                if not conn.recv(1, socket.MSG_PEEK) or self.container:
                    return False  # gone, or about to say that the container will not come
                waited.remove(conn)  # a message: it waits its turn
            if self.pidfd in ready or not ready:
                raise Refused(f"the sandbox did not come up: {self.drain() or 'no word from it'}")

    def _word(self, fds: array.array[int]) -> tuple[Message, int]:
        """Return what the launcher said and the pid that the kernel has for it; keep the descriptors."""
        data = b""
        ancillary: list[tuple[int, int, bytes]] = []
        with contextlib.suppress(ConnectionResetError):
            data, ancillary, _, _ = self.control.recvmsg(4096, 4096, socket.MSG_CMSG_CLOEXEC)
        pid = 0
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid, _, _ = struct.unpack("3i", payload)
            elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload)
        if not data or pid <= 0:
            raise Refused(f"the sandbox did not come up: {self.drain() or 'it ended at once'}")
        report: Message = json.loads(data)
        return report, pid

    def serve(self, conn: socket.socket) -> None:
        """Pass ``start`` on, wait for the end; a ``kill``, or the caller's death, ends it at once."""
        watch: list[Any] = [conn, self.control, self.pidfd, self.main_pidfd, self.log]
        while True:
            counting = [self.disk.pipe] if self.disk and self.disk.pipe >= 0 else []
            ready, _, _ = select.select([*watch, *counting], [], [], TICK_SECONDS)
            if self._is_over(ready):
                return
            if self.log in ready:
                self.drain()
                if self.log_closed:
                    watch.remove(self.log)
            if self.control in ready:
                data = b""
                with contextlib.suppress(ConnectionResetError):
                    data = self.control.recv(4096)
                if not data:
                    watch.remove(self.control)
                with contextlib.suppress(ValueError, AttributeError):
                    said = json.loads(data)
                    if said.get("event") == "failed":
                        send(conn, {"event": "failed", "error": str(said.get("error", ""))})
                    if self.container and type(said.get("status")) is int:
                        self.status = said["status"] & 0xFF
            if self.pidfd in ready:
                return
            if self.main_pidfd in ready:
                watch.remove(self.main_pidfd)
                if not self.container and not self.clear():
                    return
            if self.container and self.control not in watch and self.main_pidfd not in watch:
                # With its first process, which this was, a container is dead, and all that it said is heard.
                return
            if self.main_pidfd in ready:
                continue
            if conn in ready:
                message, fds = receive(conn)
                try:
                    if message is None or message.get("verb") != "start":
                        return
                    self._tell(message, fds)
                    # Once: firejail's processes hold the inner end too, and never read it.
                    with contextlib.suppress(OSError):
                        self.control.shutdown(socket.SHUT_WR)
                finally:
                    close_all(fds)

    def _is_over(self, ready: Sequence[Any]) -> bool:
        self._note_struck()
        if self.disk:
            self.passed = self.disk.look(ready)
        return self.passed is not None

    def _note_struck(self) -> None:
        """Keep what the groups count: they may be gone with their last process."""
        with contextlib.suppress(OSError, ValueError):
            for name, count in struck(self.groups).items():
                self.struck[name] = max(count, self.struck.get(name, 0))

    def clear(self) -> bool:
        """The command has ended: end what it left running, so that the sandbox ends and gives the status.

        firejail would do it (deterministic-shutdown), but sleeps for 100 ms even where nothing is left. False
        when there is more than this gets in time, a fork bomb say: then the sandbox is to be killed.
        """
        deadline = time.monotonic() + CLEAR_SECONDS
        while not select.select([self.pidfd], [], [], 0.03)[0] and time.monotonic() < deadline:
            for pid in processes_of(self.entry):
                if self._is_left(pid):
                    kill_if_of(pid, self.entry)
        return bool(select.select([self.pidfd], [], [], 0)[0])

    def _is_left(self, pid: int) -> bool:
        """Tell whether a process is in the command's PID namespace, and not its first, which is firejail."""
        try:
            with open(f"/proc/{pid}/status", "rb") as file:
                inside = next(line for line in file if line.startswith(b"NSpid:")).split()[-1]
            return inside != b"1" and os.readlink(f"/proc/{pid}/ns/pid") == self.main["namespaces"]["pid"]
        except (OSError, StopIteration):
            return False

    def _remove_sockets(self) -> None:
        for made in self.sockets.values():
            made.close()
        if self.run_directory:
            for name in os.listdir(self.run_directory):
                os.unlink(f"{self.run_directory}/{name}")
            os.rmdir(self.run_directory)

    log_closed = False

    def drain(self) -> str:
        """Collect what the sandbox's own programs said, bounded."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.log, 4096):
                self.words = (self.words + data)[-LOG_LIMIT:]
            self.log_closed = True
        return self.words.decode("utf-8", "replace").strip()

    def end(self) -> Message:
        """Kill whatever is left, collect the status, give the status back."""
        running, code = True, 137
        if self.pid > 0:
            running = not select.select([self.pidfd], [], [], 0)[0]
            if running:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self._note_struck()
            _, status = os.waitpid(self.pid, 0)
            code = exit_code(status)
        if self.container:
            # That one runs until it is killed; the launcher says how the command ended.
            running, code = self.status is None, 137 if self.status is None else self.status
        if self.disk:
            self.disk.close()
        if self.sidecar is not None:
            self.sidecar.end()
        killed = quiesce(self.entry)
        wipe_storage(self.entry)
        self._remove_sockets()
        close_home(self.entry)
        words = ""
        if self.pid > 0:
            words = self.drain()
            self.control.close()
        close_all(fd for fd in (self.pidfd, self.main_pidfd, self.log) if fd >= 0)
        return {
            "event": "exit", "status": code, "killed": killed, "interrupted": running, "log": words,
            "passed": self.passed, "struck": self.struck,
        }  # fmt: skip


def exit_code(status: int) -> int:
    """Return a wait status in the shell's way: 128+N for signal N."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def facts_of(pid: int) -> Message:
    """Return what /proc says of a process; the caller, who may not look, decides on it."""
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


# ---------------------------------------------------------------- verbs


class Service:
    """One caller's connection."""

    def __init__(self, conn: socket.socket, caller: int) -> None:
        self.conn, self.caller = conn, caller
        self.registry = Registry(configuration())
        self.entry: Entry | None = None
        self.held = contextlib.ExitStack()

    def serve(self) -> None:
        """Answer until the caller goes away."""
        while True:
            fds: list[int] = []
            try:
                message, fds = receive(self.conn)
                if message is None:
                    return
                verb = message.get("verb")
                if not isinstance(verb, str) or verb not in self.VERBS:
                    raise Refused("there is no such verb")
                self.VERBS[verb](self, message, fds)
            except Refused as refused:
                send(self.conn, {"error": str(refused)})
            except (BrokenPipeError, ConnectionResetError):
                return
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                send(self.conn, {"error": f"the message is malformed ({type(error).__name__})"})
            except OSError as error:
                name = errno.errorcode.get(error.errno or 0, "")
                send(self.conn, {"error": f"{error} ({name})", "errno": error.errno})
            finally:
                close_all(fds)

    def hello(self, _message: Message, _fds: list[int]) -> None:
        """Say which protocol this is."""
        send(self.conn, {"protocol": PROTOCOL, "directory": HERE})

    def accounts(self, _message: Message, _fds: list[int]) -> None:
        """List the caller's own accounts."""
        entries = [e for e in self.registry.entries() if e["owner"] == self.caller]
        mine = [{**entry, "busy": self._busy(entry)} for entry in entries]
        send(self.conn, {"accounts": mine})

    def _busy(self, entry: Entry) -> bool:
        if self.entry is not None and self.entry["name"] == entry["name"]:
            return False
        try:
            with locked(f"{self.registry.locks}/{entry['name']}", wait=0):
                return False
        except Busy:
            return True

    def lease(self, message: Message, _fds: list[int]) -> None:
        """Hold the caller's account for a project and session, made when it isn't there yet."""
        if self.entry is not None:
            raise Refused("this connection holds an account already")
        project, session = text(message, "project"), text(message, "session", 32)
        if not project.startswith("/") or not SESSION_NAME.match(session):
            raise Refused("the project must be an absolute path, and the session a plain name")
        with self.registry.lock():
            entry = self.registry.find(self.caller, project, session)
            created = entry is None
            if entry is None:
                if message.get("create") is not True:
                    raise Refused("there is no such worker")
                entry = self.registry.add(self.caller, project, session)
            try:
                self.held.enter_context(locked(f"{self.registry.locks}/{entry['name']}", wait=0))
            except Busy:
                send(self.conn, {"error": f"{entry['name']} is running", "busy": True})
                return
        try:
            reaped = quiesce(entry)
            with self.registry.lock():
                ensure_account(entry)
        except BaseException:
            self.held.close()
            raise
        self.entry = entry
        # With an empty home it is as good as new: whoever made it was ended before it was of use.
        created = created or not os.listdir(entry["home"])
        send(self.conn, {"account": entry, "created": created, "reaped": reaped})

    def _leased(self) -> Entry:
        if self.entry is None:
            raise Refused("no account is held; lease one first")
        return self.entry

    def agent(self, message: Message, fds: list[int]) -> None:
        """Keep an agent's executable, root-owned and read-only."""
        digest = text(message, "sha256", 64)
        if not SHA256.match(digest) or len(fds) != 1:
            raise Refused("an agent is one descriptor and its sha256")
        send(self.conn, {"path": keep_agent(self.caller, digest, fds[0])})

    def run(self, message: Message, fds: list[int]) -> None:
        """Build a sandbox, wait for ``start``, report its end."""
        sandbox = Sandbox(self._leased(), self.registry, message, fds)
        try:
            sandbox.prepare(self.registry)
            sandbox.launch()
            if sandbox.barrier(self.conn):
                sandbox.serve(self.conn)
        finally:
            result = sandbox.end()
        send(self.conn, result)

    def images(self, message: Message, fds: list[int]) -> None:
        """Run an engine on the caller's image store, offline, until the caller says enough."""
        require_root_owned(PODMAN)
        if len(fds) != 1:
            raise Refused("the store's engine is one listening socket")
        entry = image_store(self.registry, self.caller)
        store = ImageStore(entry, given_listener(fds[0]), tty=self.registry.config["range_first"])
        with locked(f"{self.registry.locks}/{entry['name']}", wait=LOCK_SECONDS):
            quiesce(entry)
            try:
                store.launch()
                send(self.conn, {"event": "ready"})
                self.conn.recv(1, socket.MSG_PEEK)
            finally:
                store.end()
        send(self.conn, {"event": "exit", "log": store.words})

    def late(self, _message: Message, _fds: list[int]) -> None:
        """Take no notice of what was meant for a sandbox that has ended meanwhile."""

    def reset(self, _message: Message, _fds: list[int]) -> None:
        """Empty the held account's home."""
        entry = self._leased()
        quiesce(entry)
        wipe_home(entry)
        send(self.conn, {"done": True})

    def remove(self, _message: Message, _fds: list[int]) -> None:
        """Remove the held account and everything of it."""
        remove_account(self.registry, self._leased())
        self.held.close()
        self.entry = None
        send(self.conn, {"done": True})

    VERBS = {  # noqa: RUF012  # a constant of this class
        "hello": hello,
        "accounts": accounts,
        "lease": lease,
        "agent": agent,
        "run": run,
        "images": images,
        "start": late,
        "kill": late,
        "enough": late,
        "reset": reset,
        "remove": remove,
    }


def on_its_own() -> None:
    """Shed what the caller could have set up to stop or cut this process in the middle.

    A key on the caller's terminal (Ctrl-Z while the shared lock is held), a timer that survives exec, a limit
    on the size of files while useradd writes /etc/passwd.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in INHERITED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.setitimer(signal.ITIMER_REAL, 0)
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
        try:
            resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (OSError, ValueError):
            sys.exit("clsecure helper: a limit (ulimit -f, ulimit -t) is set and can't be lifted here")


def main() -> None:
    """Check who calls, and serve."""
    caller = os.environ.get("SUDO_UID", "")
    os.environ.clear()
    if os.geteuid() != 0 or not caller.isdigit() or int(caller) == 0 or not known(pwd.getpwuid, int(caller)):
        sys.exit("clsecure helper: run by sudo for a plain user only")
    if len(sys.argv) != 1 or not stat.S_ISSOCK(os.fstat(0).st_mode):
        sys.exit("clsecure helper: takes no arguments, and a socket as standard input")
    os.umask(0o022)
    os.chdir("/")
    on_its_own()
    conn = socket.socket(fileno=os.dup(0))
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_LIMIT)
    service = Service(conn, int(caller))
    with service.held:
        service.serve()


if __name__ == "__main__":
    main()
