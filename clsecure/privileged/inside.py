"""What can be done from here: tried, and told. A server on standard input and output, inside and outside.

One JSON object a line: an order, its reply; the end of the input ends it.

- ``{"do": "try", ...}``: the battery. The order says what the host has put out; the reply is what came of it.
- ``{"do": "run", "argv": [...] | "command": "...", "seconds": N}``: ``status``, ``stdout`` and ``stderr``
  (base64, bounded), ``late`` when the time was over. Nothing of it is left running.

Whatever is tried has arguments that do nothing where it is allowed: outside it runs as the user, for real.
"""

from __future__ import annotations

import binascii
import contextlib
import ctypes
import errno
import json
import os
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
    from collections.abc import Callable, Iterable
    from typing import Any

    Message = dict[str, Any]

ORDER_LIMIT = 1 << 18
OUTPUT_LIMIT = 1 << 17
"""Most bytes of each output of a program."""
LISTED = 256
"""Most names of one directory."""
PATIENCE = 0.1
"""Seconds that all connections and answers together may take, where the order says nothing else."""
SECONDS = 10.0
"""The same for a program."""
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 4, 22, 36, 38
SECCOMP_MODE_FILTER, SECCOMP_RET_TRACE, SECCOMP_RET_ALLOW = 2, 0x7FF00000, 0x7FFF0000
SYS_LANDLOCK_CREATE_RULESET, LANDLOCK_CREATE_RULESET_VERSION = 444, 1
CLONE_NEWUSER = 0x10000000
WORDS = "/proc/self/fd/2"
"""Standard error: a file of the host's that everybody may use, and of which there is nothing but this."""

QUESTION = b"\0\0\1\0\0\1\0\0\0\0\0\0\0\0\2\0\1"
"""Which servers has the root zone? Any resolver answers that, and it tells nobody a thing."""
OPENED = {
    os.O_WRONLY: (
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug",
        "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper", "/sys/power/state",
        "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/memory/release_agent",
        "/sys/fs/cgroup/pids/release_agent", "/etc/ld.so.preload", "/etc/passwd", "/etc/sudoers",
    ),
    os.O_RDONLY: ("/dev/mem", "/dev/port", "/dev/kmsg", "/proc/kcore", "/proc/kmsg"),
}  # fmt: skip
"""What a way out of containers begins with. Only opened: neither read, nor written, nor made."""
RESOLVER = "resolver "
RAISING = ("/usr/bin/su", "/bin/su", "/usr/bin/sudo", "/usr/bin/passwd")
FAR = {
    "IPv4": ((socket.AF_INET, "192.0.2.1"),),  # nobody's: RFC 5737
    "IPv6": ((socket.AF_INET6, "2001:db8::1"),),  # nobody's: RFC 3849
    "169.254.169.254": ((socket.AF_INET, "169.254.169.254"),),
    "fd00:ec2::254": ((socket.AF_INET6, "fd00:ec2::254"),),
    "10.0.0.0/8": ((socket.AF_INET, "10.0.0.1"), (socket.AF_INET, "10.0.2.2")),
    "172.16.0.0/12": ((socket.AF_INET, "172.16.0.1"), (socket.AF_INET, "172.17.0.1")),
    "192.168.0.0/16": ((socket.AF_INET, "192.168.0.1"), (socket.AF_INET, "192.168.1.1")),
    "100.64.0.0/10": ((socket.AF_INET, "100.64.0.1"),),
}

libc = ctypes.CDLL(None, use_errno=True)


def tried(action: Callable[[], object]) -> str | None:
    """Return None when it worked, else the name of the error."""
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return None


def apart(action: Callable[[], object]) -> str | None:
    """Try what would change this process in a child that is gone afterwards."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            action()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == 0 else errno.errorcode.get(code, str(code))


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


def opened(path: str, flags: int) -> str | None:
    """Try to open something that is there."""
    flags |= os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    return tried(lambda: os.close(os.open(path, flags)))


def usable(path: str) -> str | None:
    """Tell whether a socket could be connected to, without doing it: that may start who listens there."""

    def look() -> None:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.ENOTSOCK, path)
        if not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, path)

    return tried(look)


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


def noded() -> str | None:
    """Try to make a device, that of /dev/null."""
    path = f"/tmp/.clsecure-info-{os.getpid()}"

    def make() -> None:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.unlink(path)

    return tried(make)


def attempts(order: Message) -> Iterable[tuple[str, int, int, Any]]:
    """Give label, family, kind and address of what is to be come to: listeners, services, name servers."""
    families = {"inet": socket.AF_INET, "inet6": socket.AF_INET6, "unix": socket.AF_UNIX}
    for label, (family, address) in {**order["sockets"], **order["services"]}.items():
        place = tuple(address) if isinstance(address, list) else address
        yield label, families[family], socket.SOCK_STREAM, place
    for server in nameservers():
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        yield f"{RESOLVER}{server}", family, socket.SOCK_DGRAM, (server, 53)


def reached(order: Message) -> dict[str, str | None]:
    """Try to connect to listening sockets, and to be answered by resolv.conf's name servers; all at once.

    To the host's own listeners the order's word is said: so they know who it was. To services nothing is.
    """
    results: dict[str, str | None] = {}
    waiting: dict[int, tuple[str, socket.socket]] = {}
    poll = select.poll()

    def came(label: str, each: socket.socket, code: int) -> None:
        results[label] = errno.errorcode.get(code, str(code)) if code else None
        if not code and label in order["sockets"]:
            with contextlib.suppress(OSError):
                each.send(order["word"].encode())
        each.close()

    def begin(label: str, each: socket.socket, address: Any) -> None:
        each.settimeout(0)
        code = each.connect_ex(address)
        asks = each.type == socket.SOCK_DGRAM
        if asks and not code:
            with contextlib.suppress(OSError):
                each.send(QUESTION)
        elif code != errno.EINPROGRESS:
            came(label, each, code)
            return
        waiting[each.fileno()] = (label, each)
        poll.register(each, select.POLLIN if asks else select.POLLOUT)

    for label, family, kind, place in attempts(order):
        try:
            begin(label, socket.socket(family, kind), place)
        except OSError as error:
            results[label] = errno.errorcode.get(error.errno or 0, "?")
    deadline, late = time.monotonic() + order.get("patience", PATIENCE), False
    while waiting and not late:
        left = deadline - time.monotonic()
        # On a busy machine the time may be over before anything was looked at: once it is.
        late = left <= 0
        for fd, _ in poll.poll(max(0.0, left) * 1000):
            label, each = waiting.pop(fd)
            poll.unregister(fd)
            came(label, each, failed(each))
    for label, each in waiting.values():
        results[label] = "ETIMEDOUT"
        each.close()
    return results


def failed(each: socket.socket) -> int:
    """Return the error of a connection, or of the answer to a question; 0 for none."""
    if each.type == socket.SOCK_STREAM:
        return each.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    try:
        each.recv(512)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def nameservers() -> list[str]:
    """Return the name servers of resolv.conf."""
    lines = [line.split() for line in text("/etc/resolv.conf").splitlines()]
    return [words[1] for words in lines if words[:1] == ["nameserver"] and len(words) > 1][:3]


def routed(places: Iterable[tuple[socket.AddressFamily, str]]) -> str | None:
    """Tell whether there is a way to one of the addresses; connecting a datagram socket sends nothing."""
    error = None
    for family, address in places:

        def connect(family: socket.AddressFamily = family, address: str = address) -> None:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))

        error = tried(connect)
        if error is None:
            return None
    return error


def sent(kind: str, address: str, port: int = 9, *, word: bytes = b"") -> str | None:
    """Try to send a datagram that nobody answers: a packet filter says at once that it may not go."""

    def send() -> None:
        family = socket.AF_INET6 if kind == "inet6" else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))
            probe.send(word)
            if code := probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, "refused")

    return tried(send)


def listening() -> list[int]:
    """Return the TCP ports on which something listens here, in this network namespace."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in text(f"/proc/net/{name}").splitlines()[1:]]
    ports = {int(row[1].rpartition(":")[2], 16) for row in rows if len(row) > 3 and row[3] == "0A"}
    return sorted(ports)[:LISTED]


def addresses6() -> list[str]:
    """Return the IPv6 addresses that this network namespace has."""
    return sorted({line.split()[0] for line in text("/proc/net/if_inet6").splitlines() if line.split()})[
        :LISTED
    ]


def processes(marker: str) -> tuple[int, bool, list[str]]:
    """Return how many processes are seen, whether the host's marked one is, and those with another root."""
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    mine, root = str(os.getpid()), os.stat("/")
    foreign = []
    for pid in pids:
        with contextlib.suppress(OSError):
            found = os.stat(f"/proc/{pid}/root/")
            if (found.st_dev, found.st_ino) != (root.st_dev, root.st_ino):
                foreign.append(pid)
    return (
        len(pids),
        any(marker in text(f"/proc/{pid}/cmdline") for pid in pids if pid != mine),
        foreign[:LISTED],
    )


def called(call: list[int]) -> str | None:
    """Call the kernel, with a number and arguments; None when it does, else the name of the error."""
    if libc.syscall(*map(ctypes.c_long, [*call, 0, 0, 0, 0, 0, 0][:7])) == -1:
        return errno.errorcode.get(ctypes.get_errno(), "?")
    return None


def handed_over(calls: dict[str, list[int]]) -> dict[str, str | None]:
    """Tell what filters answer to system calls of which none is executed.

    A child hands them over to a tracer, which it has not got: ENOSYS. Filters that refuse come before that.
    """
    out, into = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            hand_over({call[0] for call in calls.values()})
            os.write(into, json.dumps({name: called(call) for name, call in calls.items()}).encode())
        except OSError as error:
            os.write(2, f"{error}\n".encode())
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as told:
        said = told.read()
    os.waitpid(child, 0)
    if not said:
        raise OSError("nothing could be handed over to a tracer")
    return dict(json.loads(said))


def hand_over(numbers: Iterable[int]) -> None:
    """Execute these system calls no more."""
    load, jump_eq, ret = 0x20, 0x15, 0x06
    program = [(load, 0, 0, 0)]
    for number in numbers:
        program += [(jump_eq, 0, 1, number), (ret, 0, 0, SECCOMP_RET_TRACE)]
    program += [(ret, 0, 0, SECCOMP_RET_ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def landlock_abi() -> int:
    """Return the version of Landlock that can be had here, 0 for none."""
    arguments = (SYS_LANDLOCK_CREATE_RULESET, 0, 0, LANDLOCK_CREATE_RULESET_VERSION)
    return max(0, int(libc.syscall(*map(ctypes.c_long, arguments))))


def signalled() -> dict[str, str | None]:
    """Tell whether the first process here could be signalled; nothing where it is another account's."""
    if status("1").get("Uid", "").split() != [str(os.getuid())] * 4:
        return {}
    return {"first process": tried(lambda: os.kill(1, 0))}


def escapes() -> dict[str, str | None]:
    """Try how ways out of containers begin."""
    results = {path: opened(path, flags) for flags, paths in OPENED.items() for path in paths}
    results["mknod"] = noded()
    results["raw socket"] = tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close())
    return results


def raised() -> tuple[str, int | None]:
    """Execute a set-uid program of root's and see as whom it runs; "" where there is none.

    It is asked for its help and can't write that, for the pipe is full: so it is there to be looked at.
    """
    for program in RAISING:
        with contextlib.suppress(OSError):
            found = os.stat(program)
            if found.st_mode & stat.S_ISUID and found.st_uid == 0:
                return program, effective(program)
    return "", None


def effective(program: str) -> int | None:
    """Return the effective uid that a program has when it says its help."""
    out, into = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(into, b"\0" * 65536)
    os.set_blocking(into, True)
    null = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0)
    actions = [null, (os.POSIX_SPAWN_DUP2, into, 1), (os.POSIX_SPAWN_DUP2, into, 2)]
    child = os.posix_spawn(program, [program, "--help"], {"LC_ALL": "C"}, file_actions=actions,
                           setsigdef=[signal.SIGPIPE])  # fmt: skip
    uid = None
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        fields = status(str(child))
        uid = int(fields["Uid"].split()[1]) if "Uid" in fields else None
        if fields.get("State", "Z")[:1] in "SZ":
            break
        time.sleep(0.001)
    # It may be root's, which nobody here can kill: with the reader gone it ends by itself.
    os.close(out)
    os.close(into)
    os.waitpid(child, 0)
    return uid


def limits() -> dict[str, int | None]:
    """Return the limits of this process, None for none."""
    names = ("NPROC", "NOFILE", "AS", "FSIZE", "CPU", "CORE")
    found = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0] for name in names}
    return {name: None if value == resource.RLIM_INFINITY else value for name, value in found.items()}


def status(pid: str = "self") -> dict[str, str]:
    """Return what the kernel says of a process."""
    wanted = ("State", "Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "CapEff", "CapBnd")
    lines = [line.partition(":") for line in text(f"/proc/{pid}/status").splitlines()]
    return {key: " ".join(value.split()) for key, _, value in lines if key in wanted}


def inherited() -> list[str]:
    """Return the descriptors that came with this process, besides the standard three."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            # The last is this process's own: libffi, which ctypes loads, holds its file from 3.5 on.
            if int(name) > 2 and "/libffi.so" not in target:
                found.append(f"{name} -> {target}")
    return sorted(found)[:LISTED]


def battery(order: Message) -> Message:
    """Try everything and tell."""
    # First: what this opens itself must not be among it.
    descriptors = inherited()
    count, seen, foreign = processes(order["marker"])
    results = reached(order)
    connected = {label: error for label, error in results.items() if not label.startswith(RESOLVER)}
    answering = {label for label in results.keys() - connected.keys() if results[label] is None}
    word = order["word"].encode()
    connected.update((label, sent(*place, word=word)) for label, place in order["datagrams"].items())
    connected.update((label, usable(path)) for label, path in order["looked_at"].items())
    program, euid = raised()
    return {
        "files": {label: read(path) for label, path in order["files"].items()},
        "home": listed("/home"),
        "root": listed("/"),
        "written": {path: written(path) for path in ("/", "/usr", "/etc")},
        "own": written(order["own"]),
        "connected": connected,
        "sent": {label: sent(*where) for label, where in order["packets"].items()},
        "routes": {label: routed(places) for label, places in FAR.items()},
        "resolvers": sorted(label.removeprefix(RESOLVER) for label in answering),
        "interfaces": sorted(name for _, name in socket.if_nameindex())[:LISTED],
        "addresses6": addresses6(),
        "listening": listening(),
        "processes": count,
        "marker": seen,
        "foreign": foreign,
        "status": {key: value for key, value in status().items() if key != "State"},
        "root_uid": apart(lambda: os.setresuid(0, 0, 0)),
        "raised": [program, euid],
        "user_namespace": apart(new_user_namespace),
        "calls": {
            **handed_over(order["handed_over"]),
            **{name: called(call) for name, call in order["called"].items()},
        },
        "landlock": landlock_abi(),
        "reopened": {"read": opened(WORDS, os.O_RDONLY), "written": opened(WORDS, os.O_WRONLY)},
        "signalled": signalled(),
        "confined": text("/proc/self/attr/current").strip("\0\n"),
        "escapes": escapes(),
        "devices": listed("/dev"),
        "limits": limits(),
        "descriptors": descriptors,
    }


def new_user_namespace() -> None:
    """Go into a user namespace of one's own, where one is root."""
    if libc.unshare(CLONE_NEWUSER) == -1:
        raise OSError(ctypes.get_errno(), "unshare")


def run(order: Message) -> Message:
    """Run a program to its end, or until its time is over; nothing of it is left."""
    argv = order["argv"] if "argv" in order else ["/bin/sh", "-c", order["command"]]
    outputs = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        *((os.POSIX_SPAWN_DUP2, write, target) for target, (_, write) in enumerate(outputs, 1)),
    ]
    try:
        # Python ignores these two, and what is ignored stays so across exec.
        child = os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions, setpgroup=0,
                                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])  # fmt: skip
    except OSError as error:
        for fd in sum(outputs, ()):
            os.close(fd)
        return {"status": 126 if error.errno == errno.EACCES else 127, "late": False, "stdout": "",
                "stderr": binascii.b2a_base64(str(error).encode(), newline=False).decode()}  # fmt: skip
    for _, write in outputs:
        os.close(write)
    said = {read: bytearray() for read, _ in outputs}
    code = None
    try:
        code = followed(child, said, time.monotonic() + min(float(order.get("seconds", SECONDS)), 600.0))
    finally:
        swept(child)
        for fd in said:
            os.close(fd)
    out, err = (binascii.b2a_base64(data, newline=False).decode() for data in said.values())
    return {"status": code, "late": code is None, "stdout": out, "stderr": err}


def followed(child: int, said: dict[int, bytearray], deadline: float) -> int | None:
    """Take in what a child says until it has ended; return its status, 128+N for signal N, None when late."""
    open_ones = list(said)
    while (left := deadline - time.monotonic()) > 0:
        # Whom it started may hold its output for ever, and it may close its output itself: so both are asked.
        for fd in select.select(open_ones, [], [], min(left, 0.02 if open_ones else 0.001))[0]:
            data = os.read(fd, 65536)
            said[fd] += data[: OUTPUT_LIMIT - len(said[fd])]
            if not data:
                open_ones.remove(fd)
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if ended is not None:
            for fd in open_ones:
                os.set_blocking(fd, False)
                with contextlib.suppress(BlockingIOError):
                    said[fd] += os.read(fd, max(0, OUTPUT_LIMIT - len(said[fd])))
            return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status
    return None


def swept(group: int) -> None:
    """Kill a child and all that came of it; those that left its group become children of ours."""
    deadline = time.monotonic() + 2
    with contextlib.suppress(OSError):
        os.killpg(group, signal.SIGKILL)
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        me = str(os.getpid())
        for pid in filter(str.isdigit, os.listdir("/proc")):
            # The name of the program is in parentheses, and may hold anything.
            fields = text(f"/proc/{pid}/stat").rpartition(")")[2].split()
            if fields[1:2] == [me]:
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.001)


DONE = {"try": battery, "run": run}


def main() -> None:
    """Take orders until there are none."""
    # A program that runs here has the same uid: it must not write replies in our place, by /proc.
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    while line := sys.stdin.buffer.readline(ORDER_LIMIT):
        number = None
        try:
            order = json.loads(line)
            number = order.get("number")
            reply = DONE[order["do"]](order)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps({"number": number, **reply}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
