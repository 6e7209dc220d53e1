"""The helper's conversation with what it started: the launcher's words, and those of other programs."""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import socket
import struct
import time

from clsecure.privileged.root.messages import Refused, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from clsecure.privileged.root.messages import Message

LOG_LIMIT, PIPE_LIMIT = 16 * 1024, 64 * 1024
PATIENCE = 1 << 20
"""Bytes of words after which none is waited for any more."""
WORD_LIMIT = 4096


class Channel:
    """One sandbox's control socket and log.

    :param control: the helper's end, or where the launcher is to connect.
    :param pidfd: the sandbox's first process.
    """

    def __init__(self, control: socket.socket, log: int, pidfd: int) -> None:
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.control, self.log, self.pidfd = control, log, pidfd
        self.log_closed, self._words, self._patience = False, b"", PATIENCE

    def accept(self, uid: int, awaited: Callable[[], bool]) -> bool:
        """Take the first connection of a process of this uid; False when it was given up meanwhile."""
        with self.control as listener:
            while awaited():
                conn, _ = listener.accept()
                if peer_uid(conn) == uid:
                    conn.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                    self.control = conn
                    return True
                conn.close()
        return False

    def tell(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Say something to the launcher. That it is dead already is seen, and told, where its end is."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(self.control, message, fds)

    def no_more(self) -> None:
        """Say that nothing more comes: firejail's processes hold the inner end too, and never read it."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)

    def awaited(self, conn: socket.socket, deadline: float, *, heeds: bool) -> bool:
        """Wait for a word of the launcher's; False when the caller went away meanwhile.

        :param heeds: also when it has something to say.
        """
        waited: list[Any] = [self.control, conn, self.pidfd]
        while True:
            ready, _, _ = select.select(waited, [], [], max(0, deadline - time.monotonic()))
            if self.control in ready:
                return True
            if conn in ready:
                if not conn.recv(1, socket.MSG_PEEK) or heeds:
                    return False
                waited.remove(conn)  # a message: it waits its turn
            if self.pidfd in ready or not ready:
                raise Refused(f"the sandbox did not come up: {self.drain() or 'no word from it'}")

    def word(self, fds: array.array[int]) -> tuple[Message, int]:
        """Return what the launcher said and the pid that the kernel has for it; keep the descriptors."""
        data = b""
        ancillary: list[tuple[int, int, bytes]] = []
        with contextlib.suppress(ConnectionResetError):
            data, ancillary, _, _ = self.control.recvmsg(WORD_LIMIT, WORD_LIMIT, socket.MSG_CMSG_CLOEXEC)
        pid = 0
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid, _, _ = struct.unpack("3i", payload)
            elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload)
        if not data or pid <= 0:
            raise Refused(f"the sandbox did not come up: {self.drain() or 'it ended at once'}")
        report = understood(data)
        if report is None:
            raise Refused("the launcher's report is malformed")
        return report, pid

    def late_word(self) -> Message | None:
        """Return what the launcher said after the start; {} for what can't be understood, None at the end."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = self.control.recv(WORD_LIMIT)
        return (understood(data) or {}) if data else None

    def drain(self) -> str:
        """Collect what the sandbox's own programs said, bounded.

        As root of the session's own engine an agent comes to the other end, and can write for ever: this
        process is in none of the groups that bound the session.
        """
        with contextlib.suppress(BlockingIOError):
            for _ in range(PIPE_LIMIT // 4096):
                data = os.read(self.log, 4096)
                self._words = (self._words + data)[-LOG_LIMIT:]
                self._patience -= len(data)
                if not data or self._patience < 0:
                    self.log_closed = True
                    break
        return self._words.decode("utf-8", "replace").strip()


def peer_uid(conn: socket.socket) -> int:
    """Return the uid that the kernel has for who connected."""
    peer = conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", peer)[1]
    return uid


def understood(data: bytes) -> Message | None:
    """Return an object of hostile JSON; None for anything else."""
    with contextlib.suppress(ValueError, RecursionError):
        message = json.loads(data)
        if isinstance(message, dict):
            return message
    return None
