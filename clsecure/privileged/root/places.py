"""What a sandbox has in the places of its plan, each beside what belongs there, as the machine has it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time

from clsecure.privileged.root.processes import become, run_and_exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from clsecure.privileged.root.messages import Entry, Message

    Outside = int | str | Message | None  # a descriptor, a path, or what was seen there before

SECONDS = 10.0


def places_of(pid: int, wanted: Iterable[tuple[str, Outside]], entry: Entry) -> Message:
    """Return which file a process has in each place, and which one belongs there; None for nothing."""
    places = dict(wanted)
    seen = seen_as(entry, pid, tuple(places))
    return {
        target: {"inside": inside, "outside": known(outside)}
        for (target, outside), inside in zip(places.items(), seen, strict=True)
    }


def seen_as(entry: Entry, pid: int, paths: Sequence[str]) -> list[Message | None]:
    """Return which files a process has at absolute paths, as the worker finds them; None for nothing.

    The worker goes there, in a child: the caller can have had anything mounted in between, which takes no
    more than to name it, closed directories and file systems that never answer among it.
    """
    with opened_root(pid) as root:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
        if child == 0:
            run_and_exit(lambda: _tell(entry, root, paths, writing))
    os.close(writing)
    try:
        found = json.loads(_read(reading, time.monotonic() + SECONDS))
    except ValueError:
        found = [None] * len(paths)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return found  # type: ignore[no-any-return]  # written above


def _tell(entry: Entry, root: int, paths: Sequence[str], to: int) -> None:
    become(entry, empty_bounding_set=True)
    with open(to, "w", encoding="ascii") as file:
        json.dump([seen_from(root, path) for path in paths], file)


def _read(fd: int, until: float) -> bytes:
    data = b""
    while select.select((fd,), (), (), max(0.0, until - time.monotonic()))[0] and (
        piece := os.read(fd, 1 << 16)
    ):
        data += piece
    return data


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
