"""The only program that a sandbox ever executes by itself: it becomes harmless, waits, and becomes the agent.

Runs as the worker inside the sandbox (``/usr/bin/python3 -I -S launcher.py``) with a SOCK_SEQPACKET socket as
descriptor 0 whose other end is the root helper. Sandboxes fail open (firejail started where it can't work
prints a warning and runs the program unsandboxed); this one fails closed, because nothing of what the agent
wants to run is known here until the host has looked at this very process and said ``start``.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import struct
import sys
import termios
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing takes longer to import than this program to run
    from collections.abc import Sequence
    from typing import Any

    Message = dict[str, Any]

MESSAGE_LIMIT = 256 * 1024
CONTROL, STREAMS = "/run/clsecure/control", "/run/clsecure/streams"

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 4, 38, 22
PR_SET_CHILD_SUBREAPER = 36
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
EPERM, ENOSYS = 1, 38

LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1
SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_ADD_RULE, SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
FS_V1 = (1 << 13) - 1
FS_ALL = (1 << 16) - 1
BIND_TCP = 1
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1, 2
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

# What an agent never needs and a kernel exploit or an escape likes. Not ptrace: debuggers and leak checkers
# need it, and the own PID namespace and uid bound it. The numbers are those of the kernel's own tables
# (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
DENIED = {
    "x86_64": {
        "setns": 308, "unshare": 272, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161,
        "open_by_handle_at": 304, "name_to_handle_at": 303, "keyctl": 250, "add_key": 248, "request_key": 249,
        "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "init_module": 175, "finit_module": 313,
        "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320, "reboot": 169, "swapon": 167,
        "swapoff": 168, "acct": 163, "quotactl": 179, "quotactl_fd": 443, "iopl": 172, "ioperm": 173,
        "lookup_dcookie": 212, "nfsservctl": 180, "syslog": 103, "settimeofday": 164, "clock_settime": 227,
        "adjtimex": 159, "clock_adjtime": 305, "sethostname": 170, "setdomainname": 171, "vhangup": 153,
        "modify_ldt": 154, "uselib": 134, "fanotify_init": 300,
    },
    "aarch64": {
        "setns": 268, "unshare": 97, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51,
        "open_by_handle_at": 265, "name_to_handle_at": 264, "keyctl": 219, "add_key": 217, "request_key": 218,
        "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "init_module": 105, "finit_module": 273,
        "delete_module": 106, "kexec_load": 104, "kexec_file_load": 294, "reboot": 142, "swapon": 224,
        "swapoff": 225, "acct": 89, "quotactl": 60, "quotactl_fd": 443, "lookup_dcookie": 18,
        "nfsservctl": 42, "syslog": 116, "settimeofday": 170, "clock_settime": 112, "adjtimex": 171,
        "clock_adjtime": 266, "sethostname": 161, "setdomainname": 162, "vhangup": 58, "fanotify_init": 262,
    },
}  # fmt: skip
# The same number everywhere. "Not there": glibc falls back to clone, whose flags are not behind a pointer.
MISSING = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "clone3": 435, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
    "open_tree_attr": 467,
}  # fmt: skip
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE = {"x86_64": 56, "aarch64": 220}
IOCTL = {"x86_64": 16, "aarch64": 29}
SOCKET = {"x86_64": 41, "aarch64": 198}
SOCKETPAIR = {"x86_64": 53, "aarch64": 199}
X32_BIT = 0x40000000
NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (NEWTIME: unshare or clone3 only)."""
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
ALLOWED_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK: no vsock, no packet, no Bluetooth, no AF_ALG."""
AF_UNIX = 1
"""The only family of pairs: the kernel makes a socket of any other one, too, before it says that it can't."""

libc = ctypes.CDLL(None, use_errno=True)


def syscall(number: int, *args: Any) -> int:
    """Call the kernel; -1 becomes OSError."""
    result: int = libc.syscall(ctypes.c_long(number), *args)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def landlock_abi() -> int:
    """Return the version of Landlock that the kernel has, 0 for none."""
    try:
        return syscall(SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION)
    except OSError:
        return 0


def restrict(abi: int, allowed: Sequence[tuple[str, int]], *, bind: bool = True) -> None:
    """Restrict this process and all it will become to paths, each with the rights below it.

    Nothing outside can be signalled or reached by an abstract socket any more, as far as the ABI knows of it;
    without ``bind`` no TCP port can be taken.
    """
    rights = (
        FS_V1 | (REFER if abi >= 2 else 0) | (TRUNCATE if abi >= 3 else 0) | (IOCTL_DEV if abi >= 5 else 0)
    )
    ports = BIND_TCP if abi >= 4 and not bind else 0
    scoped = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL if abi >= 6 else 0
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    attributes = struct.pack("QQQ", rights, ports, scoped)[:size]
    ruleset = syscall(SYS_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    try:
        for path, wanted in allowed:
            allow(ruleset, path, wanted & rights)
        syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def landlock(writable: list[str]) -> int:
    """Let this process and all it will become read what the view holds, and write only where it may.

    Returns the ABI that was applied, 0 where the kernel has none.
    """
    abi = landlock_abi()
    if abi:
        places = ("/tmp", "/var/tmp", "/run/lock", f"/run/user/{os.getuid()}", "/dev", "/proc", *writable)
        everything = [(path, FS_ALL) for path in places]
        restrict(abi, [("/", EXECUTE | READ_FILE | READ_DIR), *everything])
    return abi


def allow(ruleset: int, path: str, rights: int) -> None:
    """Add one rule; a path that isn't there, or can't be come to anyway, needs none."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        if not os.path.isdir(path):
            rights &= FILE_RIGHTS
        syscall(SYS_LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


def seccomp(families: Sequence[int] = ALLOWED_FAMILIES, also: Sequence[int] = ()) -> bool:
    """Install the filter; return False on an architecture that has no table here.

    Sockets of these families only, pairs of local ones only, and no system call of further numbers.
    """
    machine = os.uname().machine
    if machine not in DENIED:
        return False
    load, jump_eq, jump_ge, jump_set, ret = 0x20, 0x15, 0x35, 0x45, 0x06
    deny, missing = SECCOMP_RET_ERRNO | EPERM, SECCOMP_RET_ERRNO | ENOSYS
    program = [
        (load, 0, 0, 4),
        (jump_eq, 1, 0, AUDIT_ARCH[machine]),
        (ret, 0, 0, SECCOMP_RET_KILL_PROCESS),
        (load, 0, 0, 0),
        (jump_ge, 0, 1, X32_BIT),
        (ret, 0, 0, missing),
    ]
    for number in (*DENIED[machine].values(), *also):
        program += [(jump_eq, 0, 1, number), (ret, 0, 0, deny)]
    for number in MISSING.values():
        program += [(jump_eq, 0, 1, number), (ret, 0, 0, missing)]
    program += [(jump_eq, 0, 3, CLONE[machine]), (load, 0, 0, 16), (jump_set, 0, 1, NAMESPACE_FLAGS)]
    program += [(ret, 0, 0, deny), (load, 0, 0, 0)]
    program += [(jump_eq, 0, 4, IOCTL[machine]), (load, 0, 0, 24), (jump_eq, 1, 0, TIOCSTI)]
    program += [(jump_eq, 0, 1, TIOCLINUX), (ret, 0, 0, deny), (load, 0, 0, 0)]
    program += [(jump_eq, 0, 4, SOCKETPAIR[machine]), (load, 0, 0, 16), (jump_eq, 1, 0, AF_UNIX)]
    program += [(ret, 0, 0, deny), (load, 0, 0, 0)]
    program += [(jump_eq, 0, len(families) + 2, SOCKET[machine]), (load, 0, 0, 16)]
    program += [(jump_eq, len(families) - i, 0, family) for i, family in enumerate(families)]
    program += [(ret, 0, 0, deny), (ret, 0, 0, SECCOMP_RET_ALLOW)]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return True


def make_terminal(size: tuple[int, int]) -> tuple[int, int]:
    """Return (master, slave) of a pty of this sandbox's own, of the given rows and columns."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[0], size[1], 0, 0))
    return master, slave


def make_listener(address: str, port: int) -> socket.socket:
    """Return a listening socket of this network namespace; port 0 for a free one."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((address, port))
    listener.listen(128)
    return listener


def receive(control: socket.socket) -> tuple[Message, list[int]]:
    """Return (message, descriptors)."""
    fds = array.array("i")
    data, ancillary, _, _ = control.recvmsg(MESSAGE_LIMIT, socket.CMSG_SPACE(16), socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload)
    if not data:
        sys.exit(126)
    return json.loads(data), list(fds)


def report(control: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send one message with descriptors."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    control.sendmsg([json.dumps(message).encode()], ancillary)


def piece(name: str) -> tuple[str, ...]:
    """Return the argument vector of another root-owned program that lies beside this one."""
    return ("/usr/bin/python3", "-I", "-S", f"{os.path.dirname(os.path.abspath(__file__))}/{name}")


class Probes:
    """What is tried in here before the agent is let in: a program of root's own, of which nothing stays.

    It has all restrictions of this process, and the caller's descriptors.
    """

    def __init__(self) -> None:
        self.any = False

    def begin(self, stdio: list[int]) -> None:
        """Start one; an earlier one ends."""
        self.end()
        if len(stdio) != 3:
            raise OSError(22, "three descriptors were expected")
        # Whatever it starts, and starts apart from itself, becomes this process's child when its parent ends.
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        # Same uid: nothing of it looks into this process, or changes what it is about to execute.
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        self.any = True
        if os.fork() == 0:
            try:
                become_probe(stdio)
            except OSError as error:
                os.write(2, f"{error}\n".encode())
            finally:
                os._exit(127)
        for fd in stdio:
            os.close(fd)

    def end(self) -> None:
        """Kill all that was started, and wait until none of it is there.

        The kernel kills everything but this process and the first of the PID namespace under one lock, so
        nothing that forks outruns it. The helper passes no probe on where that namespace is not the
        sandbox's own.
        """
        if not self.any:
            return
        # EPERM: there is nothing left that could be killed.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        # The agent's orphans are the first process's, as ever.
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        self.any = False


def become_probe(stdio: list[int]) -> None:
    """In the child: execute the probe, with its own session and no other descriptor."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.setsid()
    for target, fd in enumerate(stdio):
        os.dup2(fd, target)
    os.closerange(3, 1024)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    names = ("HOME", "USER", "LOGNAME", "LC_ALL")
    env = {name: os.environ[name] for name in names if name in os.environ}
    argv = piece("inside.py")
    os.execve(argv[0], argv, {**env, "PATH": "/usr/bin:/bin"})


def started(control: socket.socket) -> tuple[Message, list[int]]:
    """Return the message that says what to execute, and its descriptors; start probes until it comes."""
    probes = Probes()
    try:
        while True:
            message, fds = receive(control)
            if message["verb"] != "probe":
                return message, fds
            probes.begin(fds)
    finally:
        probes.end()


def execute(message: Message, stdio: list[int]) -> None:
    """Become the agent."""
    os.chdir(message["cwd"])
    for target, fd in enumerate(stdio):
        os.dup2(fd, target)
    # The limit of open files is the user's business; core dumps would be files nobody asked for.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Python ignores these, and what is ignored stays so across exec: `yes | head` would complain.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    env = {os.fsencode(k): os.fsencode(v) for k, v in message["env"].items()}
    argv = [os.fsencode(a) for a in message["argv"]]
    candidates = [argv[0]]
    if b"/" not in argv[0]:
        path = env.get(b"PATH", b"/usr/bin:/bin").split(b":")
        candidates = [os.path.join(directory, argv[0]) for directory in path if directory.startswith(b"/")]
    failure: OSError = FileNotFoundError(2, f"{message['argv'][0]}: command not found")
    for candidate in candidates:
        try:
            os.execve(candidate, argv, env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            failure = error
    raise failure


class Streams:
    """Standard input and output by sockets of the host, where no descriptors can be handed in or out."""

    def __init__(self, *, terminal: bool) -> None:
        self.fds = {tag: self._connect(tag) for tag in (("t", "w") if terminal else ("0", "1", "2"))}
        self.pump = 0

    def _connect(self, tag: str) -> int:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.connect(STREAMS)
        stream.sendall(tag.encode())
        return stream.detach()

    def start(self, master: int | None, listener: socket.socket | None) -> None:
        """Start what carries bytes to them; it has this process's restrictions."""
        if listener:
            bridge("gateway", listener.fileno())
        if master is not None:
            self.pump = bridge("terminal", master, self.fds["t"], self.fds["w"])

    def drained(self) -> None:
        """Wait until what was shown is out."""
        deadline = time.monotonic() + 3
        while self.pump and time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(self.pump, os.WNOHANG)[0]:
                    return
            time.sleep(0.01)


def bridge(what: str, *fds: int) -> int:
    """Start a program that carries bytes; return its pid."""
    child = os.fork()
    if child == 0:
        for fd in range(3, 64):
            with contextlib.suppress(OSError):
                os.set_inheritable(fd, fd in fds)
        argv = (*piece("bridge.py"), what, *map(str, fds))
        os.execve(argv[0], argv, {"PATH": "/usr/bin:/bin"})
    return child


def watch(control: socket.socket, streams: Streams | None) -> None:
    """Go on as a child. The parent, a container's first process, waits for it and says how it ended.

    Whoever is left in the container then dies with the parent.
    """
    # The agent has the same uid, and nothing to look for in here. Done before there is a child, which may be
    # faster; what that executes can be looked into again.
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    child = os.fork()
    if child == 0:
        os.setsid()
        return
    os.closerange(0, control.fileno())
    os.closerange(control.fileno() + 1, 1024)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (1, 2):
        os.dup2(null, fd)
    # Python would heed this one. Of those that nobody heeds, none comes through to a first process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            if streams:
                streams.drained()
            report(control, {"status": 128 - code if code < 0 else code})
            os._exit(0)


def open_control() -> socket.socket:
    """Return the socket whose other end is the helper: descriptor 0, or in a container its one place."""
    if stat.S_ISSOCK(os.fstat(0).st_mode):
        # It moves away from 0, where the agent's standard input will be.
        return socket.socket(fileno=os.dup(0))
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.connect(CONTROL)
    return control


def close_libffi() -> None:
    """Close the file of its own that libffi holds from 3.5 on, for callbacks: nothing calls back here."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if "/libffi.so" in os.readlink(f"/proc/self/fd/{name}"):
                os.close(int(name))


def main() -> None:
    """Become harmless, report, wait, become the agent."""
    close_libffi()
    control = open_control()
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    try:
        with contextlib.suppress(PermissionError):
            os.setsid()
        orders, _ = receive(control)
        terminal = make_terminal(orders["terminal"]) if orders["terminal"] else None
        listener = make_listener(*orders["listener"]) if orders["listener"] else None
        streams = Streams(terminal=bool(terminal)) if orders["plain"] else None
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "no_new_privs")
        if orders["processes"]:
            # Of this uid there is no process but the session's own, so this counts the session.
            resource.setrlimit(resource.RLIMIT_NPROC, (orders["processes"],) * 2)
        abi = landlock(orders["writable"])
        filtered = seccomp()
        port = listener.getsockname()[1] if listener else None
        # Closed before the host looks: it must see no descriptor but those that the agent may have.
        sent = ([listener.fileno()] if listener else []) + ([terminal[0]] if terminal else [])
        if streams:
            streams.start(terminal[0] if terminal else None, listener)
            sent = []
        report(control, {"event": "made"}, sent)
        if listener:
            listener.close()
        if terminal:
            os.close(terminal[0])
        report(
            control,
            {
                "event": "ready",
                "landlock": abi,
                "seccomp": filtered,
                "port": port,
                "terminal": terminal is not None,
                "kernel": " ".join(os.uname()[2:4]),
            },
        )
        message, stdio = started(control)
        if orders["status"]:
            watch(control, streams)
        if streams and not terminal:
            stdio = [streams.fds[tag] for tag in ("0", "1", "2")]
        if terminal:
            stdio = [terminal[1]] * 3
            if os.getsid(0) != os.getpid():
                raise OSError(1, "the terminal can't be made the controlling one")
            fcntl.ioctl(terminal[1], termios.TIOCSCTTY, 0)
        if len(stdio) != 3:
            raise OSError(22, "three descriptors were expected")
        execute(message, stdio)
    except (OSError, ValueError, KeyError, TypeError) as error:
        report(control, {"event": "failed", "error": str(error)})
        sys.exit(127)


if __name__ == "__main__":
    main()
