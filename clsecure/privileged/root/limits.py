"""Control groups: a session's own, what bounds it there, and what the kernel says of that."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import select
import time

from clsecure.privileged.root.messages import Refused
from clsecure.privileged.root.processes import tool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from clsecure.privileged.root.messages import Entry, Message

    Limits = dict[str, Any]

CLEAR_SECONDS = 2.0
CPU_PERIOD = 100_000
CONTROLLERS = ("memory", "pids", "cpu")
LIMITS: dict[str, tuple[type, float, float]] = {
    "memory": (int, 16 << 20, 1 << 60),
    "cpus": (float, 0.01, 10_000.0),
    "pids": (int, 16, 1 << 22),
    "open_files": (int, 64, 1 << 30),
    "disk": (int, 1 << 20, 1 << 60),
}


def parse_limits(message: Message) -> Limits:
    """Return the limits that the caller asks for: names of this table, numbers in their ranges."""
    wanted: dict[str, Any] = message.get("limits") or {}
    for name, value in wanted.items():
        kind, least, most = LIMITS.get(name, (Refused, 0, 0))
        is_number = type(value) is kind  # a truth value is an int to isinstance()
        if not is_number or not least <= value <= most:
            raise Refused(f"limits: {str(name)[:32]!r} must be a number in its range")
    return dict(wanted)


def cgroup_root() -> str | None:
    """Return the root of the unified hierarchy where this helper manages groups itself, or None."""
    if os.path.isdir("/run/systemd/system"):
        return None
    for path in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        if os.path.exists(f"{path}/cgroup.controllers"):
            return path
    return None


def cgroups(entry: Entry) -> list[str]:
    """Return the account's groups where this helper manages them itself: the unified one, then those of v1.

    Those of v1 lie below this process's own: what bounds the caller goes on to bound the worker.
    """
    places = [f"{root}/clsecure/{entry['name']}"] if (root := cgroup_root()) else []
    if not os.path.isdir("/run/systemd/system"):
        own = cgroup_paths("self")
        places += [f"{own[c]}/clsecure/{entry['name']}" for c in ("memory", "pids", "cpu") if c in own]
    return places


def cgroup_paths(pid: int | str) -> dict[str, str]:
    """Return the directory of a process's group by controller; "" is the unified hierarchy's."""
    found: dict[str, str] = {}
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            for name in controllers.split(","):
                tops = ("", "/unified") if not name else (f"/{name}",)
                for top in tops:
                    place = f"/sys/fs/cgroup{top}{path.rstrip('/')}"
                    if os.path.exists(f"{place}/cgroup.procs") and ".." not in path.split("/"):
                        found.setdefault(name, place)
    return found


def cgroup_enter(
    entry: Entry, pid: int, limits: Limits, *, beside: dict[str, str] | None = None
) -> dict[str, str]:
    """Put the first process of a sandbox into groups of its own; return which limits hold there, and how.

    All of it can be killed at once then. On systemd a transient scope with delegation, as its single-writer
    rule wants it; else groups below the root. Best effort: the kill by uid in quiesce() stands without it,
    and a limit counts only when the kernel says so.

    :param beside: the groups of what the session started before: one limit holds for both.
    """
    how = "cgroup"
    if os.path.isdir("/run/systemd/system"):
        how = "systemd"
        if beside:
            for place in set(beside.values()):
                write_small(f"{place}/cgroup.procs", str(pid))
        else:
            cgroup_scope(entry, pid, limits)
    else:
        for place in cgroups(entry):
            with contextlib.suppress(OSError):
                _make_group(place)
                for parent in (place.rpartition("/clsecure/")[0], os.path.dirname(place)):
                    for name in CONTROLLERS:
                        write_small(f"{parent}/cgroup.subtree_control", f"+{name}")
                for file, value in limit_files(limits):
                    write_small(f"{place}/{file}", value)
                write_small(f"{place}/cgroup.procs", str(pid))
    return dict.fromkeys(confirmed(pid, limits), how)


def _make_group(place: str) -> None:
    """Make a group, and the one above it again where the end of another session takes it away meanwhile."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            os.makedirs(place, mode=0o755, exist_ok=True)
            return
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)


def cgroup_scope(entry: Entry, pid: int, limits: Limits) -> None:
    """Ask systemd for the scope. Source: org.freedesktop.systemd1(5), StartTransientUnit."""
    manager = "org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager"
    unit = f"clsecure-{entry['name']}-{pid}.scope"
    bounds = []
    if "memory" in limits:
        bounds += [f"MemoryMax t {limits['memory']}", "MemorySwapMax t 0"]
    if "pids" in limits:
        bounds += [f"TasksMax t {limits['pids']}"]
    if "cpus" in limits:
        bounds += [f"CPUQuotaPerSecUSec t {int(limits['cpus'] * 1_000_000)}"]
    count = 3 + len(bounds)
    properties = f"{count} PIDs au 1 {pid} Delegate b true CollectMode s inactive-or-failed"
    request = f"call {manager} StartTransientUnit ssa(sv)a(sa(sv)) {unit} fail {properties}"
    with contextlib.suppress(Refused, OSError):
        tool("/usr/bin/busctl", "--quiet", *" ".join([request, *bounds, "0"]).split(), timeout=5)
        # The unit is made by a job of systemd's: what it holds is looked at when the process is there.
        deadline = time.monotonic() + CLEAR_SECONDS
        while not any(p.endswith(unit) for p in cgroup_paths(pid).values()) and time.monotonic() < deadline:
            select.select([], [], [], 0.005)


def limit_files(limits: Limits) -> list[tuple[str, str]]:
    """Return what to write into a group, of both versions; a file that is not there takes nothing."""
    files = []
    if "memory" in limits:
        memory = str(limits["memory"])
        files += [("memory.max", memory), ("memory.swap.max", "0")]
        files += [("memory.limit_in_bytes", memory), ("memory.memsw.limit_in_bytes", memory)]
    if "pids" in limits:
        files += [("pids.max", str(limits["pids"]))]
    if "cpus" in limits:
        quota = int(limits["cpus"] * CPU_PERIOD)
        files += [("cpu.max", f"{quota} {CPU_PERIOD}"), ("cpu.cfs_period_us", str(CPU_PERIOD))]
        files += [("cpu.cfs_quota_us", str(quota))]
    return files


def confirmed(pid: int, limits: Limits) -> list[str]:
    """Return the limits that the kernel says hold for a process."""
    held, places = [], cgroup_paths(pid)
    for name, controller, files in (
        ("memory", "memory", ("memory.max", "memory.limit_in_bytes")),
        ("pids", "pids", ("pids.max",)),
        ("cpus", "cpu", ("cpu.max", "cpu.cfs_quota_us")),
    ):
        found = [read_small(f"{p}/{f}") for p in (places.get(controller), places.get("")) if p for f in files]
        bounds = [int(text.split()[0]) for text in found if text and text.split()[0].isdigit()]
        most = limits.get(name, 0) * (CPU_PERIOD if name == "cpus" else 1)
        if name in limits and any(0 < bound <= most for bound in bounds):
            held.append(name)
    return held


def struck(places: dict[str, str]) -> dict[str, int]:
    """Return how often the limits of groups struck: processes killed for memory, forks refused."""
    counts = {}
    for name, controller, files, key in (
        ("memory", "memory", ("memory.events", "memory.oom_control"), "oom_kill"),
        ("pids", "pids", ("pids.events",), "max"),
    ):
        for place in (places.get(controller), places.get("")):
            for file in files:
                words = (read_small(f"{place}/{file}") or "").split() if place else []
                if key in words[:-1]:
                    counts[name] = int(words[words.index(key) + 1])
    return counts


def read_small(path: str) -> str | None:
    """Return a small file of the kernel's, None when it is not there or can't be read."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read(4096)
    except (OSError, ValueError):
        return None


def write_small(path: str, value: str) -> None:
    """Write a file of the kernel's that may not be there, or may refuse the value."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)


def cgroup_remove(entry: Entry) -> None:
    """Take the account's groups away; they are busy for a moment after their last process was killed."""
    deadline = time.monotonic() + CLEAR_SECONDS
    for place in cgroups(entry):
        with contextlib.suppress(OSError):
            while True:
                try:
                    os.rmdir(place)
                except OSError as error:
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        raise
                    select.select([], [], [], 0.005)
                else:
                    os.rmdir(os.path.dirname(place))
                    break


def limit_open_files(limits: Limits) -> None:
    """Lower this process's own limit, for good."""
    if "open_files" in limits:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = limits["open_files"]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, hard),) * 2 if hard >= 0 else (most, most))


def by_rlimit(pid: int, limits: Limits) -> set[str]:
    """Return the limits that the kernel says hold for a process by its resource limits."""
    said = read_small(f"/proc/{pid}/limits") or ""
    held = set()
    for name, line in (("pids", "Max processes"), ("open_files", "Max open files")):
        found = re.search(rf"^{line} +\d+ +(\d+)", said, re.MULTILINE)
        if name in limits and found is not None and int(found[1]) <= limits[name]:
            held.add(name)
    return held
