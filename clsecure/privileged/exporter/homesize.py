"""What the worker's home takes on the disk."""

from __future__ import annotations

import contextlib
import os
import stat
import threading

MAX_ENTRIES = 3_000_000
MAX_SIZE = 1 << 40  # the reader refuses larger counts
SECONDS = 1.0


class HomeSize(threading.Thread):
    """Adds up what the home takes on the disk, while git works; our own directory in it is not its."""

    def __init__(self, home: str, ours: str) -> None:
        super().__init__(daemon=True)
        self.home, self.ours = os.fsencode(home), os.fsencode(ours)
        self.found: int | None = None
        self.start()

    def run(self) -> None:
        """Count every file once, however many names it has; what can't be looked at counts nothing."""
        total, seen, stack, linked = 0, 0, [self.home], set()
        while stack:
            with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if entry.path == self.ours:
                        continue
                    info = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(info.st_mode):
                        stack.append(entry.path)
                    elif info.st_nlink > 1:
                        if info.st_ino in linked:
                            continue
                        linked.add(info.st_ino)
                    total += info.st_blocks * 512
            if seen > MAX_ENTRIES:
                return
        self.found = min(total, MAX_SIZE)

    def value(self) -> int | None:
        """Return the bytes, None when it takes much longer than the export itself."""
        self.join(SECONDS)
        return self.found
