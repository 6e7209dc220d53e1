"""The disk under a worker's home."""

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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from clsecure.privileged.root.messages import Entry

INODE_RESERVE = 100_000
COUNT_SECONDS, COUNT_INTERVAL = 20, 5.0


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
