"""Bounded walks through what others can write to: only directories are opened, and no link is followed."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import stat
import time

from clsecure.privileged.root.processes import keep_only, run_and_exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clsecure.privileged.root.messages import Message

    Judge = Callable[[str, os.stat_result, str], str | None]
    Enters = Callable[[os.stat_result, int], bool]

NAMES, NAME_LIMIT = 10, 200
DEPTH = 96
GRACE_SECONDS = 2.0
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# A character that is escaped takes up to twelve.
_ANSWER_LIMIT = 256 * 1024
_CHECK_EVERY = 256


class Findings:
    """What was found of one kind: how many, the first of them by name, and whether all was looked at."""

    def __init__(self) -> None:
        self.count = 0
        self.names: list[str] = []
        self.complete = True

    def add(self, name: str) -> None:
        """Take note of one more."""
        self.count += 1
        if len(self.names) < NAMES:
            self.names.append(name[:NAME_LIMIT])

    def message(self) -> Message:
        """As it is sent."""
        return {"count": self.count, "names": self.names, "complete": self.complete}

    @classmethod
    def of(cls, names: Iterator[str]) -> Findings:
        """Take note of all of them."""
        found = cls()
        for name in names:
            found.add(name)
        return found


class Walk:
    """A walk in a child of its own, which is given a few seconds in all.

    :param places: where it begins; one that is not there is passed over.
    :param judge: says of a name what is to be told of it; relative to the current directory, whose path comes
        last.
    :param enters: whether a directory is of interest, which lies so many levels below the place.
    :param but: paths that are left out, with what is below.
    :param seconds: most that it may take.
    :param first: done in the child before anything else.
    """

    def __init__(
        self,
        places: tuple[str, ...],
        judge: Judge,
        *,
        enters: Enters = lambda *_: True,
        but: frozenset[str] = frozenset(),
        seconds: float,
        first: Callable[[], object] = lambda: None,
    ) -> None:
        self.places, self.judge, self.enters, self.but, self.seconds = places, judge, enters, but, seconds
        self._answer, words = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            run_and_exit(lambda: self._run(words, first))
        os.close(words)

    def result(self) -> dict[str, Message]:
        """Return what was found by place; nothing, and not complete, for one that took too long."""
        data, until = b"", time.monotonic() + self.seconds + GRACE_SECONDS
        try:
            while select.select([self._answer], [], [], max(0.0, until - time.monotonic()))[0]:
                part = os.read(self._answer, _ANSWER_LIMIT)
                data += part
                if not part or len(data) > _ANSWER_LIMIT:
                    break
        finally:
            self.close()
        try:
            said = json.loads(data)
            return {place: said[place] for place in self.places}
        except (ValueError, KeyError, TypeError, RecursionError):
            unknown = Findings()
            unknown.complete = False
            return {place: unknown.message() for place in self.places}

    def close(self) -> None:
        """End it, if it has not ended by itself."""
        if self._answer >= 0:
            os.close(self._answer)
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._answer = -1

    # ------------------------------------------------------------ in the child

    def _run(self, words: int, first: Callable[[], object]) -> None:
        # The caller's connection and the account's lock are among what the worker may not hold.
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        keep_only(words)
        most = int(self.seconds + GRACE_SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (most, most))
        first()
        self._until = time.monotonic() + self.seconds
        found = {place: self._place(place).message() for place in self.places}
        with open(3, "wb") as answer:
            answer.write(json.dumps(found).encode())

    def _place(self, place: str) -> Findings:
        found = Findings()
        try:
            fd = os.open(place, _OPEN)
        except FileNotFoundError:
            return found
        except OSError:
            # What is no directory, or is closed to the worker, can't be looked through.
            found.complete = False
            return found
        try:
            self._directory(fd, place, os.fstat(fd).st_dev, 0, found)
        except OSError:
            found.complete = False
        finally:
            os.close(fd)
        return found

    def _directory(self, fd: int, path: str, device: int, depth: int, found: Findings) -> None:
        """Look at every name of a directory, then go into those of the same file system."""
        os.fchdir(fd)
        for name in self._look(path, device, depth, found):
            if depth >= DEPTH or time.monotonic() > self._until:
                found.complete = False
                return
            try:
                inner = os.open(name, _OPEN, dir_fd=fd)
            except FileNotFoundError:
                continue
            except OSError:
                found.complete = False
                continue
            try:
                if os.fstat(inner).st_dev == device:
                    self._directory(inner, f"{path}/{name}", device, depth + 1, found)
            except OSError:
                found.complete = False
            finally:
                os.close(inner)

    def _look(self, path: str, device: int, depth: int, found: Findings) -> list[str]:
        """Judge every name of the current directory; return the directories that are of interest."""
        below = []
        with os.scandir(".") as names:
            for number, each in enumerate(names):
                if number % _CHECK_EVERY == _CHECK_EVERY - 1 and time.monotonic() > self._until:
                    found.complete = False
                    break
                try:
                    info = each.stat(follow_symlinks=False)
                except OSError:
                    continue
                if info.st_dev != device or (self.but and f"{path}/{each.name}" in self.but):
                    continue
                if (what := self.judge(each.name, info, path)) is not None:
                    found.add(f"{what}{path}/{each.name}")
                if stat.S_ISDIR(info.st_mode) and self.enters(info, depth):
                    below.append(each.name)
        return below
