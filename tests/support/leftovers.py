"""What a session is made of, noted by the host while it runs, so that a test can see all of it gone."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support import sweep

GONE_WITHIN = 30.0
_CGROUPS = ("/sys/fs/cgroup/clsecure", "/sys/fs/cgroup/unified/clsecure")


def groups_of(worker: str) -> list[Path]:
    """Return the control groups that are there of a worker, of both versions."""
    own = Path("/proc/self/cgroup").read_text().splitlines()
    places = [Path(root, worker) for root in _CGROUPS]
    for line in own:
        _, controllers, path = line.split(":", 2)
        places += [
            Path(f"/sys/fs/cgroup/{c}{path.rstrip('/')}/clsecure", worker)
            for c in controllers.split(",")
            if c
        ]
    return [place for place in places if place.exists()]


def wait_until(happened: Callable[[], object], what: str, timeout: float = 60.0) -> None:
    """Look again and again; fail when it did not happen in time."""
    end = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < end, f"not within {timeout:g} s: {what}"
        time.sleep(0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """A running session.

    :param processes: (pid, time of start) of the command line, its descendants and all of the worker's.
    :param namespaces: those that are not the host's, each with a descriptor: the kernel gives the number of
        one that is gone to the next.
    :param sockets: everything that the processes hold; what they share with others is left out.
    """

    worker: str
    uid: int
    processes: frozenset[tuple[int, str]]
    namespaces: dict[str, int]
    sockets: frozenset[str]

    def assert_gone(self, within: float = GONE_WITHIN) -> None:
        """Fail unless nothing of it is left, at the latest after so many seconds."""
        end = time.monotonic() + within
        wait_until(lambda: not sweep.processes_of(self.uid), "no process of the worker", within)
        left = max(0.5, end - time.monotonic())
        wait_until(lambda: not self._alive(), f"the session's own processes end: {self._alive()}", left)
        assert not self.namespaces.keys() & namespaces_of(*all_pids())
        for descriptor in self.namespaces.values():
            os.close(descriptor)
        assert not self.sockets & sockets_of(*all_pids())
        assert not [line for line in mounts() if self.worker in line or "/var/lib/clsecure/view" in line]
        # Those of others, of a docker beside us say, stay.
        assert not [line for line in mounts() if " nsfs " in line and line.split()[3] in self.namespaces]
        assert groups_of(self.worker) == []

    def _alive(self) -> set[tuple[int, str]]:
        return {each for each in self.processes if started(each[0]) == each[1]}


def traces(pid: int, *, worker: str, uid: int) -> Traces:
    """Note what a running session is made of.

    :param pid: of the command line.
    """
    mine = {pid, *descendants(pid), *sweep.processes_of(uid)}
    others = set(all_pids()) - mine
    return Traces(
        worker=worker,
        uid=uid,
        processes=frozenset((each, when) for each in mine if (when := started(each))),
        namespaces=_held(mine, namespaces_of(*mine) - namespaces_of(*others)),
        sockets=sockets_of(*mine) - sockets_of(*others),
    )


def all_pids() -> list[int]:
    """Return every live process of the machine."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if started(pid)]


def descendants(pid: int) -> list[int]:
    """Return the children of a process, theirs, and so on."""
    found: list[int] = []
    for thread in _listed(Path(f"/proc/{pid}/task")):
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def started(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; nothing for one that is gone or a zombie."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] not in "ZX":
            return fields[19]
    return ""


def namespaces_of(*pids: int) -> frozenset[str]:
    """Return the namespaces that processes are in, as the kernel names them."""
    return frozenset(
        link for pid in pids for name in _listed(Path(f"/proc/{pid}/ns")) if (link := _link(pid, "ns", name))
    )


def sockets_of(*pids: int) -> frozenset[str]:
    """Return the sockets that processes hold, as the kernel names them."""
    return frozenset(
        link
        for pid in pids
        for name in _listed(Path(f"/proc/{pid}/fd"))
        if (link := _link(pid, "fd", name)).startswith("socket:")
    )


def mounts() -> list[str]:
    """Return the mounts of this mount namespace."""
    return Path("/proc/self/mountinfo").read_text().splitlines()


def _held(pids: set[int], namespaces: frozenset[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for pid in pids:
        for name in _listed(Path(f"/proc/{pid}/ns")):
            link = _link(pid, "ns", name)
            if link in namespaces and link not in found:
                # Of a process that ended meanwhile; another one that is in there still is looked at, too.
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    found[link] = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    return found


def _listed(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208  # a process may end meanwhile
    except OSError:
        return []


def _link(pid: int, kind: str, name: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/{kind}/{name}")  # noqa: PTH115  # no path of any file
    except OSError:
        return ""
