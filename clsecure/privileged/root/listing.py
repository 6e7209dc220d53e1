"""An image store as it was when it was filled: noted by root, and held against what is there later."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat

from clsecure.privileged.root.state import STATE, write_file
from clsecure.privileged.root.walk import Findings, Walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.root.messages import Message

SECONDS = 20.0
"""An image has tens of thousands of files: a fraction of a second, beside other work."""

MOST = 1_000_000
"""Names that are counted: their owner decides how many there are."""


class Listing:
    """One look at an owner's image store: every name in it, whose it is, and when it was last changed.

    Whoever writes to a file changes its ctime, which nobody can set. Of directories it does not count: a mode
    that is put right again is no change.
    """

    def __init__(self, owner: int) -> None:
        self.place, self.note = f"{STATE}/images/{owner}/store", f"{STATE}/images/{owner}/listing"
        self.before = self._noted()
        lines: list[bytes] = []

        def judge(name: str, info: os.stat_result, directory: str) -> None:
            changed = 0 if stat.S_ISDIR(info.st_mode) else (info.st_ctime_ns, info.st_size, info.st_ino)
            about = (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, changed)
            if len(lines) <= MOST:
                lines.append(hashlib.sha256(os.fsencode(f"{directory}/{name}\0{about}")).digest())

        def last(found: Findings) -> None:
            if len(lines) > MOST:
                found.complete = False
            found.add(hashlib.sha256(b"".join(sorted(lines))).hexdigest())

        self.walk = Walk((self.place,), judge, seconds=SECONDS, last=last)

    def close(self) -> None:
        """End the look."""
        self.walk.close()

    def compared(self) -> Message:
        """Return what differs from the note; not all where there is none, or another load is under way."""
        seen, found = self._seen(), Findings()
        if seen is None or self.before is None or self._noted() != self.before:
            found.complete = False
        elif seen != self.before[0]:
            found.add(f"{self.place}: other files than were loaded")
        if seen is not None and self.before is None and self._noted() is None:
            # Of a store that an older version filled: the next look has something to compare with. A note
            # that is there by now is of a load that had not ended when this look began.
            with contextlib.suppress(OSError):  # another session's end may do the same
                self._write(seen)
        return found.message()

    def noted(self) -> None:
        """Write down how it is now."""
        if (seen := self._seen()) is not None:
            self._write(seen)

    def _write(self, seen: str) -> None:
        write_file(self.note, json.dumps(seen).encode())

    def _seen(self) -> str | None:
        result = self.walk.result()[self.place]
        return result["names"][0] if result["complete"] and result["names"] else None

    def _noted(self) -> tuple[str, int, int] | None:
        """Return what was noted, and which note it is: each fill of the store makes another one."""
        with contextlib.suppress(FileNotFoundError), open(self.note, encoding="ascii") as file:
            info = os.fstat(file.fileno())
            return json.load(file), info.st_ino, info.st_ctime_ns
        return None


def forget(owner: int) -> None:
    """The store is about to change."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{STATE}/images/{owner}/listing")
