"""The disk under a worker's home, and under what an engine of the session's own stores."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time

from clsecure.privileged.root.kernel import PR_SET_NO_NEW_PRIVS, prctl
from clsecure.privileged.root.messages import Refused
from clsecure.privileged.root.processes import become, run_and_exit
from clsecure.privileged.root.state import DISK_RESERVE
from clsecure.privileged.root.userspace import start_as_root_of_range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from clsecure.privileged.root.messages import Entry

INODE_RESERVE = 100_000
COUNT_SECONDS, COUNT_INTERVAL = 20, 5.0


class Disk:
    """Watches what a session fills: a reserve always stays free, and what it has stays below a limit.

    That is counted as the worker, in a child, and only when the file systems have filled up since.

    :param storage: of the session's own engine, which may be on another disk than the home; not there yet.
    """

    def __init__(self, entry: Entry, limit: int, *, storage: str | None = None) -> None:
        self.entry, self.limit, self.pipe, self.pid = entry, limit, -1, 0
        self.next, self.until, self.counted, self.said = 0.0, 0.0, -1, b""
        self.storage = storage
        # The storage itself comes and goes, what it lies in stays.
        self.watched: list[str] = [entry["home"], *([os.path.dirname(storage)] if storage else [])]
        if low := self.low():
            raise Refused(f"there is too little room on the disk of {low}: free some")

    def free(self) -> int:
        """Return the bytes that are free for plain users, of all the disks."""
        rooms = {os.stat(place).st_dev: os.statvfs(place) for place in self.watched}
        return sum(room.f_bavail * room.f_frsize for room in rooms.values())

    def low(self) -> str | None:
        """Return the place on whose disk the reserve is touched, of space or of inodes."""
        for place in self.watched:
            room = os.statvfs(place)
            space = room.f_bavail * room.f_frsize < min(DISK_RESERVE, room.f_blocks * room.f_frsize // 20)
            if space or (room.f_files and room.f_favail < min(INODE_RESERVE, room.f_files // 20)):
                return place
        return None

    def look(self, ready: Sequence[Any]) -> str | None:
        """Return which bound was passed, None as long as none is. ``ready``: what can be read."""
        if self.low() is not None:
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
            self.pid = self._start(words)
        except OSError:
            os.close(read)
            return "disk"
        finally:
            os.close(words)
        # Only now is there a child to end: without one its number is 0, which means all of our group.
        self.pipe, self.until, self.said = read, time.monotonic() + 3 * COUNT_SECONDS, b""
        return None

    def _start(self, words: int) -> int:
        argv = ["/usr/bin/du", "-s", "-x", "-c", "--block-size=1", "--", self.entry["home"]]
        most = (resource.RLIMIT_CPU, (COUNT_SECONDS, COUNT_SECONDS))
        if self.storage is not None:
            # What containers wrote belongs to uids of the range, and may be closed to the worker itself. The
            # way to it is root's alone, so it begins there.
            place = self.storage

            def begin() -> None:
                resource.setrlimit(*most)
                os.chdir(place)

            return start_as_root_of_range(self.entry, *argv, ".", output=words, first=begin)
        pid = os.fork()
        if pid == 0:
            null = os.open("/dev/null", os.O_RDWR)
            for target, fd in ((0, null), (1, words), (2, null)):
                os.dup2(fd, target)

            def execute() -> None:
                resource.setrlimit(*most)
                become(self.entry, empty_bounding_set=True)
                prctl(PR_SET_NO_NEW_PRIVS, 1)
                os.execve(argv[0], argv, {"LC_ALL": "C"})

            run_and_exit(execute)
        return pid

    def _result(self) -> str | None:
        # A line for each place, then one for all of them. du writes each by itself: its end is what counts.
        if said := os.read(self.pipe, 4096):
            self.said += said
            return None
        lines = self.said.splitlines()
        self.close()
        self.next = time.monotonic() + COUNT_INTERVAL
        # What can't be counted in that time is too much.
        total = lines[-1].split()[0] if lines and lines[-1].endswith(b"total") else b""
        return None if total.isdigit() and int(total) <= self.limit else "disk"

    def close(self) -> None:
        """End a count that is under way."""
        if self.pipe >= 0:
            os.close(self.pipe)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pipe = -1
