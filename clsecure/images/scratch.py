"""Where an image is built, and that nothing of it stays, whoever the files belong to and however it ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from clsecure import process
from clsecure.errors import ToolError
from clsecure.process import SYSTEM_PATH, Command

WORK = Path("/var/tmp")  # noqa: S108  # directories of our own in it
"""Where a root file system is made: open to the account that mmdebstrap uses, and on a disk."""
_PREFIX = "clsecure-image-"
# Between its making and its lock a directory looks like one that nobody works in; earlier versions held none.
_YOUNG_SECONDS = 3600.0


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Make a directory that others can enter; gone at the end. What killed builds left goes first."""
    _sweep()
    place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=WORK))
    try:
        place.chmod(0o755)
        with _held(place):
            yield place
    finally:
        _remove(place)


@contextlib.contextmanager
def _held(place: Path) -> Iterator[bool]:
    """Hold a directory while somebody works in it; give False where somebody else does."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def _sweep() -> None:
    """Remove this user's directories in which nobody works any more."""
    for place in WORK.glob(f"{_PREFIX}*"):
        # Others can put there what they like.
        with contextlib.suppress(OSError):
            found = place.lstat()
            own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
            if own and time.time() - found.st_mtime > _YOUNG_SECONDS:
                with _held(place) as free:
                    if free:
                        _remove(place)


def _remove(place: Path) -> None:
    """Remove a directory; what a plain user's build made in it belongs to the range of uids that it used."""
    shutil.rmtree(place, ignore_errors=True)
    if not place.exists() or os.geteuid() == 0:
        return
    env = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}
    below = [str(each) for each in place.glob("*")]
    # It can't take away what lies in a directory of the user's own; that is empty then.
    with contextlib.suppress(ToolError):
        process.run(Command(argv=("mmdebstrap", "--unshare-helper", "rm", "-rf", "--", *below), env=env))
    shutil.rmtree(place, ignore_errors=True)
