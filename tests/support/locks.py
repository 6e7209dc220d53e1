"""A lock in a directory that its last holder removes."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO


def open_lock(directory: Path, mode: int) -> IO[str]:
    """Hold the one lock; the last holder removes the directory with it, so look whether it is still there."""
    while True:
        directory.mkdir(mode=mode, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            file = (directory / "lock").open("w")
            fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(file.fileno()).st_ino == (directory / "lock").stat().st_ino:
                    return file
            file.close()
