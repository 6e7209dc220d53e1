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
PENDING = 500_000
"""Directories that may wait to be looked at: their names are held in memory."""
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
    :param last: done there with what was found of a place.
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
        last: Callable[[Findings], object] = lambda _: None,
    ) -> None:
        self.places, self.judge, self.enters, self.but, self.seconds = places, judge, enters, but, seconds
        self.last = last
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
        seen = {place: self._place(place) for place in self.places}
        for each in seen.values():
            self.last(each)
        found = {place: each.message() for place, each in seen.items()}
        with open(3, "wb") as answer:
            answer.write(json.dumps(found).encode())

    def _place(self, place: str) -> Findings:
        found = Findings()
        try:
            fd = os.open(place, _OPEN)
        except FileNotFoundError:
            return found
        except OSError:
            # What is no directory, or is closed, can't be looked through.
            found.complete = False
            return found
        try:
            self._through(fd, place, found)
        except OSError:
            found.complete = False
        finally:
            os.close(fd)
        return found

    def _through(self, fd: int, place: str, found: Findings) -> None:
        """Look through a place, however deep it goes: the way back up is ``..``, where it came from.

        Only the directory itself is held open, as the current one.
        """
        os.fchdir(fd)
        self._mount = mount_of(fd)
        path, levels = place, [_Level(name="", info=os.fstat(fd))]
        self._look(path, levels[0], 0, found)
        pending = len(levels[0].below)
        while levels:
            level = levels[-1]
            if time.monotonic() > self._until or pending > PENDING:
                found.complete = False
                return
            if level.below:
                name = level.below.pop()
                pending -= 1
                if (info := self._enter(name, found)) is not None:
                    path = f"{path}/{name}"
                    levels.append(_Level(name=name, info=info))
                    self._look(path, levels[-1], len(levels) - 1, found)
                    pending += len(levels[-1].below)
                continue
            levels.pop()
            if levels:
                path = path[: -len(level.name) - 1]
                os.chdir("..")
                if not os.path.samestat(os.stat("."), levels[-1].info):
                    # Somebody moves directories about: no way is known any more.
                    found.complete = False
                    return

    @staticmethod
    def _enter(name: str, found: Findings) -> os.stat_result | None:
        """Go into a directory; None, and it is told, when that can't be done."""
        try:
            fd = os.open(name, _OPEN)
        except FileNotFoundError:
            return None
        except OSError:
            found.complete = False
            return None
        try:
            os.fchdir(fd)
            return os.fstat(fd)
        except OSError:
            found.complete = False
            return None
        finally:
            os.close(fd)

    def _look(self, path: str, level: _Level, depth: int, found: Findings) -> None:
        """Judge every name of the current directory; note the directories that are of interest."""
        try:
            names = os.scandir(".")
        except OSError:
            found.complete = False
            return
        with names:
            for number, each in enumerate(names):
                if number % _CHECK_EVERY == _CHECK_EVERY - 1 and time.monotonic() > self._until:
                    found.complete = False
                    break
                try:
                    info = each.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError:
                    found.complete = False
                    continue
                if self.but and f"{path}/{each.name}" in self.but:
                    continue
                if stat.S_ISDIR(info.st_mode) and info.st_dev != level.info.st_dev:
                    try:
                        if self._is_mounted(each.name):
                            continue
                    except OSError:
                        found.complete = False
                        continue
                if (what := self.judge(each.name, info, path)) is not None:
                    found.add(f"{what}{path}/{each.name}")
                if stat.S_ISDIR(info.st_mode) and self.enters(info, depth):
                    level.below.append(each.name)

    def _is_mounted(self, name: str) -> bool:
        """Tell whether something is mounted here. The device does not tell: subvolumes have their own."""
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return mount_of(fd) != self._mount
        finally:
            os.close(fd)


class _Level:
    """One directory on the way down: its name, which one it is, and what is still to be looked at in it."""

    def __init__(self, *, name: str, info: os.stat_result) -> None:
        self.name, self.info = name, info
        self.below: list[str] = []


def mount_of(fd: int) -> str:
    """Return which mount a descriptor is on."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return next(line for line in file if line.startswith("mnt_id:"))
