"""User namespaces that the helper maps: root in there is the worker to everybody else."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct

from clsecure.privileged.root.kernel import CLONE_NEWNS, CLONE_NEWUSER, PR_SET_NO_NEW_PRIVS, call, prctl
from clsecure.privileged.root.messages import Refused
from clsecure.privileged.root.processes import run_and_exit
from clsecure.privileged.root.registry import RANGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from clsecure.privileged.root.messages import Entry

    Map = list[tuple[int, int, int]]  # first inside, first outside, how many


def enter_user_namespace(words: socket.socket, also: int) -> None:
    """Turn this process into root of a new user namespace that is the worker to everybody else.

    It is made while this is still root: there are machines where AppArmor lets nobody else make one that is
    of any use, and nothing of the worker's outside has a say in it then.
    """
    os.setgroups([])
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


def wide_map(entry: Entry) -> Map:
    """Return the map of an account with a range: root is the worker, and the range comes after it."""
    return [(0, entry["uid"], 1), (1, entry["range"], RANGE - 1)]


def start_as_root_of_range(
    entry: Entry, *argv: str, output: int | None = None, first: Callable[[], object] | None = None
) -> int:
    """Start a program of the machine's as root of a user namespace of the account's uids; return its pid.

    It can read and delete all that an engine of the account's ever wrote, and nothing of anybody else's.

    :param output: its standard output, nothing by default.
    :param first: done in the child, still root, before anything else; its directory is / otherwise.
    """
    words, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with words, inside:
        pid = os.fork()
        if pid == 0:

            def execute() -> None:
                words.close()
                os.chdir("/")
                null = os.open("/dev/null", os.O_RDWR)
                for fd, target in ((null, 0), (null if output is None else output, 1), (null, 2)):
                    os.dup2(fd, target)
                if first is not None:
                    first()
                enter_user_namespace(inside, CLONE_NEWNS)
                os.execve(argv[0], argv, {"LC_ALL": "C"})

            run_and_exit(execute)
        # Without the maps and the word it ends by itself, as this end is closed.
        if credentials_of(words, 5) == pid:
            write_maps(pid, wide_map(entry), wide_map(entry))
            with contextlib.suppress(OSError):
                words.send(b"1")
    return pid
