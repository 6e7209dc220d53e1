"""Calls of the kernel that the standard library lacks: mounts, namespaces, prctl."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x20000000, 0x40000000
CLONE_NEWUSER = 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH, MOVE_MOUNT_F_EMPTY_PATH = 2, 4
OPEN_TREE_CLONE, AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = 1, -100, 0x1000, 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
PR_SET_KEEPCAPS, CAP_DAC_READ_SEARCH, CAPABILITY_VERSION_3 = 8, 2, 0x20080522
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442  # the same on every architecture
SYS_KEYCTL, KEYCTL_JOIN_SESSION_KEYRING = {"x86_64": 250, "aarch64": 219}, 1
KEYCTL_GET_KEYRING_ID, KEYCTL_DESCRIBE, KEY_SPEC_SESSION_KEYRING = 0, 6, -3
KEY_TEXT, NAME_LIMIT = 8192, 100
"""More than any description of a key has; what is told of it."""
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C
IFF_UP, IFF_RUNNING = 0x1, 0x40

libc = ctypes.CDLL(None, use_errno=True)


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


def loopback_address(address: str) -> None:
    """Give lo of this network namespace a further address, and no more of its network than that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for order, value in ((SIOCSIFADDR, address), (SIOCSIFNETMASK, "255.255.255.255")):
            request = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(probe, order, request)


def own_keyring() -> None:
    """Leave the caller's keys behind."""
    call("syscall", SYS_KEYCTL[os.uname().machine], KEYCTL_JOIN_SESSION_KEYRING, None)


def session_keyring() -> tuple[int, str]:
    """Return number and name of this process's session keyring; one without any has that of its uid."""
    number, ring = SYS_KEYCTL[os.uname().machine], ctypes.c_long(KEY_SPEC_SESSION_KEYRING)
    serial = call("syscall", number, KEYCTL_GET_KEYRING_ID, ring, 0)
    text = ctypes.create_string_buffer(KEY_TEXT)
    call("syscall", number, KEYCTL_DESCRIBE, ring, text, ctypes.c_long(KEY_TEXT))
    return serial, text.value.decode("utf-8", "replace").rpartition(";")[2][:NAME_LIMIT]


def drop_bounding_set() -> None:
    """Give up every capability for whatever this process executes."""
    capability = 0
    while libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) == 0:
        capability += 1


def keep_capabilities(*capabilities: int) -> None:
    """Have these alone, of those that this process is permitted (capset(2))."""
    wanted = sum(1 << capability for capability in capabilities)
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    low, high = wanted & 0xFFFFFFFF, wanted >> 32
    call("capset", header, struct.pack("6I", low, low, 0, high, high, 0))
