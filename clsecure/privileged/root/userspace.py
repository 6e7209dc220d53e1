"""User namespaces that the helper maps: root in there is the worker to everybody else."""

from __future__ import annotations

import os
import select
import socket
import struct

from clsecure.privileged.root.kernel import CLONE_NEWUSER, PR_SET_NO_NEW_PRIVS, call, prctl
from clsecure.privileged.root.messages import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.root.messages import Entry

    Map = list[tuple[int, int, int]]  # first inside, first outside, how many


def enter_user_namespace(entry: Entry, words: socket.socket, also: int) -> None:
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
