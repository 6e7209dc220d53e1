"""What a sandbox has in the places of its plan, each beside what belongs there, as the machine has it."""

from __future__ import annotations

import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from clsecure.privileged.root.messages import Message

    Outside = int | str | Message | None  # a descriptor, a path, or what was seen there before


def places_of(pid: int, wanted: Iterable[tuple[str, Outside]]) -> Message:
    """Return which file a process has in each place, and which one belongs there; None for nothing."""
    found = {}
    with opened_root(pid) as root:
        for target, outside in wanted:
            found[target] = {"inside": seen_from(root, target), "outside": known(outside)}
    return found


def known(outside: Outside) -> Message | None:
    """Return which file it is that belongs somewhere."""
    if not isinstance(outside, (int, str)):
        return outside
    with contextlib.suppress(OSError):
        return identity(os.fstat(outside) if isinstance(outside, int) else os.lstat(outside))
    return None


@contextlib.contextmanager
def opened_root(pid: int) -> Iterator[int]:
    """Hold the root of a process's files."""
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield root
    finally:
        os.close(root)


def seen_from(root: int, path: str) -> Message | None:
    """Return which file is at an absolute path below a root, None for nothing; no link is followed."""
    try:
        place = opened_at(root, path)
    except OSError:
        return None
    try:
        return identity(os.fstat(place))
    finally:
        os.close(place)


def opened_at(root: int, path: str) -> int:
    """Return a descriptor of what is at an absolute path below a root; it reads and writes nothing.

    Step by step: a link in there would lead through this process's own root.
    """
    place = os.dup(root)
    for part in filter(None, path.split("/")):
        try:
            inner = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
        finally:
            os.close(place)
        place = inner
    return place


def identity(status: os.stat_result) -> Message:
    """Return which file it is, whose, and what it allows."""
    return {
        "device": status.st_dev, "inode": status.st_ino, "uid": status.st_uid, "mode": status.st_mode,
    }  # fmt: skip
