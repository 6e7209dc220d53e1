"""What the gateway takes from itself: some of it before it is given a secret, the files before it serves.

What stays open to a gateway that somebody took over: connecting over the network, which is its work, and
reading the files that are named here. It writes to the descriptors that it has, and nowhere else. It makes no
local socket, since a desktop's bus starts programs for whoever asks; name services that are asked through one
are passed over, and the next in the machine's list is asked.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import ssl
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from clsecure.egress.wire import GatewayConfig
from clsecure.errors import EgressError
from clsecure.privileged import launcher

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_ADDRESS_SPACE = 2 << 30
_DESCRIPTORS = 1024

_SYSTEM = (
    # Libraries that are loaded when they are needed (name services, encodings), settings of the resolver,
    # certificate authorities. The last two: systems that keep all of it elsewhere.
    "/usr", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/nix/store", "/gnu/store",
    # Where /etc/resolv.conf may lead, and caches of name services.
    "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager", "/run/connman", "/run/nscd",
    "/var/cache/nscd", "/var/lib/sss", "/var/lib/misc",
    "/dev/null", "/dev/urandom", "/sys/devices/system/cpu",
)  # fmt: skip
_MAX_LINKS = 2000

_UNIX = 1
# Programs, other processes, and what Landlock knows nothing of: modes, owners, times and attributes of files,
# and System V's memory, queues and semaphores. The numbers are from the tables that the launcher's are from.
_DENIED = {
    "x86_64": {
        "execve": 59, "execveat": 322, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
        "pidfd_getfd": 438, "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92,
        "fchown": 93, "lchown": 94, "fchownat": 260, "utime": 132, "utimes": 235, "futimesat": 261,
        "utimensat": 280, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "setxattrat": 463,
        "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "removexattrat": 466,
        "file_setattr": 469, "shmget": 29, "shmat": 30, "shmctl": 31, "semget": 64, "semop": 65, "semctl": 66,
        "semtimedop": 220, "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71,
    },
    "aarch64": {
        "execve": 221, "execveat": 281, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271,
        "pidfd_getfd": 438, "fchmod": 52, "fchmodat": 53, "fchmodat2": 452, "fchownat": 54, "fchown": 55,
        "utimensat": 88, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "setxattrat": 463, "removexattr": 14,
        "lremovexattr": 15, "fremovexattr": 16, "removexattrat": 466, "file_setattr": 469, "msgget": 186,
        "msgctl": 187, "msgrcv": 188, "msgsnd": 189, "semget": 190, "semctl": 191, "semtimedop": 192,
        "semop": 193, "shmget": 194, "shmctl": 195, "shmat": 196,
    },
}  # fmt: skip


def confine() -> None:
    """Make this process unreadable to others of the same user, unable to gain privileges, and bounded.

    :raises EgressError: the kernel refuses.
    """
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # What it makes is its user's alone.
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The last line after the limits of the requests themselves: a gateway that dies closes the network.
    _lower(resource.RLIMIT_AS, _ADDRESS_SPACE)
    _lower(resource.RLIMIT_NOFILE, _DESCRIPTORS)


def seal(config: GatewayConfig) -> tuple[str, ...]:
    """Give up files, programs, ports, signals and local sockets, as far as the kernel can hold that.

    For good, and for this thread and those it starts: to be called while there is no other.

    :return: what this kernel leaves open, for the user.
    :raises EgressError: the kernel can and refuses.
    """
    if threading.active_count() != 1:
        raise EgressError("The gateway can't confine itself", details="It has other threads already.")
    abi = launcher.landlock_abi()
    try:
        if abi:
            read, search = launcher.READ_FILE, launcher.READ_DIR
            allowed = [(path, read | search) for path in readable()]
            allowed += [(path, read) for path in _of_credential(config)]
            launcher.restrict(abi, allowed, bind=False)
        multicast = _asks_by_multicast(config)
        families = tuple(family for family in launcher.ALLOWED_FAMILIES if family != _UNIX or multicast)
        filtered = launcher.seccomp(families, tuple(_DENIED.get(os.uname().machine, {}).values()))
    except OSError as error:
        raise EgressError("The gateway can't confine itself", details=str(error)) from error
    return residuals(abi, filtered=filtered, multicast=multicast)


def residuals(abi: int, *, filtered: bool = True, multicast: bool = False) -> tuple[str, ...]:
    """Return what is left open.

    :param abi: version of the kernel's Landlock, 0 for none.
    :param filtered: there is a filter of system calls for this architecture.
    :param multicast: local sockets are left, since names below ``.local`` are asked through one.
    """
    found = []
    if abi == 0:
        found.append("the gateway can use all of your files (this kernel has no Landlock)")
    else:
        since = {"open ports": 4, "signal your other processes": 6}
        missing = [what for what, version in since.items() if abi < version]
        if missing:
            found.append(f"the gateway can {' and '.join(missing)} (this kernel's Landlock is too old)")
    if multicast or not filtered:
        why = "names below .local need that" if filtered else "no filter for this architecture"
        found.append(f"the gateway can connect to your programs' local sockets ({why})")
    return tuple(f"not enforced: {each}" for each in found)


def _asks_by_multicast(config: GatewayConfig) -> bool:
    hosts = [rule.pattern.host for rule in config.policy.allow]
    if config.provider is not None:
        hosts.append(config.provider.host)
    return any(host.endswith(".local") for host in hosts)


def readable() -> Iterator[str]:
    """Go through what a gateway reads while it serves, besides the credentials."""
    yield from _SYSTEM
    yield str(Path(__file__).resolve().parents[1])
    yield from dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix))
    yield from (path for path in sys.path if path.endswith(("-packages", "lib-dynload", ".zip")))
    # By its own name and by the one it has in the end: it is replaced, so its directory.
    resolver = Path("/etc/resolv.conf").resolve()
    yield str(resolver if resolver.parent == Path("/") else resolver.parent)
    yield from _of_authorities()


def _of_authorities() -> Iterator[str]:
    """Go through the certificate authorities: those in a directory are read when a certificate is checked."""
    paths = ssl.get_default_verify_paths()
    for place in (paths.cafile, paths.capath, paths.openssl_cafile, paths.openssl_capath):
        if place:
            yield from (place, str(Path(place).resolve()))
    own = os.environ.get("SSL_CERT_DIR", "")
    for directory in own.split(":") if own else ():
        yield directory
        yield from _leading_out(Path(directory))


def _leading_out(directory: Path) -> Iterator[str]:
    """Go through what links in a directory lead to elsewhere, except where all is readable anyway."""
    try:
        with os.scandir(directory) as entries:
            for number, entry in enumerate(entries):
                if number >= _MAX_LINKS:
                    return
                # Many, and at each start: not by way of Path.
                target = os.readlink(entry.path) if entry.is_symlink() else ""  # noqa: PTH115
                if "/" in target and not target.startswith(("/usr/", "/etc/")):
                    yield str(Path(entry.path).resolve())
    except OSError:
        # One that can't be read holds nothing that is trusted.
        return


def _of_credential(config: GatewayConfig) -> Iterable[str]:
    file = None if config.credential is None else config.credential.file
    if file is None:
        return ()
    # Claude Code replaces it, so its directory, by both of its names.
    return dict.fromkeys((str(file.parent), str(file.resolve().parent)))


def die_with(parent: int) -> None:
    """End when the parent process does, even when this one hangs.

    :param parent: its process id, since it may be gone already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise EgressError("The session is gone")


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise EgressError("The gateway can't confine itself", details=os.strerror(ctypes.get_errno()))


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (bound, bound))
