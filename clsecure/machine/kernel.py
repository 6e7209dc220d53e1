"""Probes of the kernel and of what the machine itself is."""

from __future__ import annotations

import ctypes
import json
import os
import stat
from pathlib import Path

from clsecure.installation import STATE_DIRECTORY
from clsecure.machine.probe import CONTAINER, EVERY, NAMESPACE, Probe, ProbeStatus, read_small
from clsecure.privileged.root.state import CONFIG, DEFAULTS

MINIMUM_FREE_BYTES = 1 << 30

# The initial namespaces have fixed inode numbers (include/linux/proc_ns.h).
_INITIAL_NAMESPACE = {"pid": 0xEFFFFFFC, "user": 0xEFFFFFFD}
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_CREATE_RULESET_VERSION = 1


def landlock_abi() -> int:
    """Return the kernel's Landlock ABI, 0 when it has none or it is switched off."""
    libc = ctypes.CDLL(None, use_errno=True)
    abi: int = libc.syscall(
        ctypes.c_long(_LANDLOCK_CREATE_RULESET),
        None,
        ctypes.c_size_t(0),
        ctypes.c_uint32(_LANDLOCK_CREATE_RULESET_VERSION),
    )
    return max(abi, 0)


def probe_kernel() -> Probe:
    """The kernel's version, for reports."""
    return Probe(name="kernel", status=ProbeStatus.INFO, observed=os.uname().release)


def probe_namespaces() -> Probe:
    """The kernel has the namespaces, and their numbers are not limited to none."""
    kinds = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
    lacking = [
        kind
        for kind in kinds
        if not Path(f"/proc/self/ns/{kind}").exists()
        or read_small(f"/proc/sys/user/max_{kind}_namespaces") == "0"
    ]
    if lacking:
        return Probe(
            name="namespaces",
            status=ProbeStatus.MISSING,
            observed=f"not available: {', '.join(lacking)}",
            needed_by=EVERY,
            fix="raise user.max_*_namespaces (sysctl), or use a kernel with namespaces",
        )
    return Probe(name="namespaces", status=ProbeStatus.OK, observed=", ".join(kinds))


def probe_container() -> Probe:
    """Whether this is the machine itself: in foreign PID or user namespaces root is not quite root."""
    signs = [sign for sign in ("/run/.containerenv", "/.dockerenv") if Path(sign).exists()]
    signs += [
        f"foreign {kind} namespace"
        for kind, inode in _INITIAL_NAMESPACE.items()
        if Path(f"/proc/self/ns/{kind}").stat().st_ino != inode
    ]
    if signs:
        return Probe(
            name="container",
            status=ProbeStatus.WARNING,
            observed=f"this looks like the inside of a container ({', '.join(signs)})",
            fix="firejail does not isolate in most containers; the line 'firejail isolates' decides",
        )
    return Probe(name="container", status=ProbeStatus.OK, observed="not inside one")


def probe_landlock() -> Probe:
    """Landlock's ABI."""
    abi = landlock_abi()
    if abi == 0:
        return Probe(
            name="landlock",
            status=ProbeStatus.WARNING,
            observed="not available: --mode user sees what every account may read",
            fix="boot with lsm=landlock,… (kernel 5.13 or later)",
        )
    return Probe(name="landlock", status=ProbeStatus.OK, observed=f"ABI {abi}")


def probe_seccomp() -> Probe:
    """Seccomp filters."""
    actions = read_small("/proc/sys/kernel/seccomp/actions_avail") or ""
    if "errno" in actions.split():
        return Probe(name="seccomp", status=ProbeStatus.OK, observed="filters")
    return Probe(
        name="seccomp",
        status=ProbeStatus.MISSING,
        observed="no filters",
        needed_by=(*NAMESPACE, *CONTAINER),
        fix="use a kernel with CONFIG_SECCOMP_FILTER",
    )


def probe_cgroups() -> Probe:
    """Which cgroups there are, and who looks after them."""
    manager = "systemd" if Path("/run/systemd/system").is_dir() else "no systemd"
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return Probe(name="cgroups", status=ProbeStatus.OK, observed=f"v2, {manager}")
    if Path("/sys/fs/cgroup/unified").is_dir():
        return Probe(name="cgroups", status=ProbeStatus.INFO, observed=f"v1 hybrid, {manager}")
    present = Path("/sys/fs/cgroup/pids").is_dir() or Path("/sys/fs/cgroup/memory").is_dir()
    return Probe(
        name="cgroups",
        status=ProbeStatus.INFO if present else ProbeStatus.WARNING,
        observed=f"{'v1' if present else 'none'}, {manager}",
    )


def probe_mandatory_access_control() -> Probe:
    """AppArmor or SELinux, and Ubuntu's restriction of user namespaces."""
    found = []
    if read_small("/sys/module/apparmor/parameters/enabled") == "Y":
        found.append("AppArmor")
    enforcing = read_small("/sys/fs/selinux/enforce")
    if enforcing is not None:
        found.append("SELinux enforcing" if enforcing == "1" else "SELinux permissive")
    if read_small("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        found.append("user namespaces of plain users restricted")
    return Probe(name="access control", status=ProbeStatus.INFO, observed=", ".join(found) or "none")


def probe_tiocsti() -> Probe:
    """Whether the kernel itself keeps programs from typing into terminals; clsecure never relies on it."""
    value = read_small("/proc/sys/dev/tty/legacy_tiocsti")
    observed = {"0": "off", "1": "on (sessions have terminals of their own)"}.get(
        value or "", "kernel before 6.2"
    )
    return Probe(name="legacy TIOCSTI", status=ProbeStatus.INFO, observed=observed)


def probe_disk() -> Probe:
    """Free space where workspaces and state live."""
    places = {}
    for path in (Path("/home"), STATE_DIRECTORY):
        place = next(each for each in (path, *path.parents) if each.exists())
        free = os.statvfs(place)
        places[str(path)] = free.f_bavail * free.f_frsize
    observed = ", ".join(f"{path} {free / (1 << 30):.1f} GiB free" for path, free in places.items())
    if min(places.values()) < MINIMUM_FREE_BYTES:
        return Probe(name="disk", status=ProbeStatus.WARNING, observed=observed, fix="free some space")
    return Probe(name="disk", status=ProbeStatus.OK, observed=observed)


def probe_home() -> Probe:
    """Whether other accounts can look into this user's home (threat A1)."""
    home = Path("~").expanduser()
    mode = home.stat().st_mode
    if mode & 0o005 and os.geteuid() != 0:
        return Probe(
            name="home",
            status=ProbeStatus.WARNING,
            observed=f"{home} can be entered by every account of this machine, worker accounts among them",
            fix=f"chmod o-rwx {home}",
        )
    return Probe(name="home", status=ProbeStatus.OK, observed=stat.filemode(mode))


def probe_uid_range() -> Probe:
    """The range that worker accounts take their uids from: mapped here, and no other's subordinate range."""
    config = {**DEFAULTS, **json.loads(read_small(CONFIG) or "{}")}
    first, end = int(config["uid_first"]), int(config["uid_first"]) + int(config["uid_count"])
    observed = f"{first} to {end - 1}"
    problem = None
    if not any(start <= first and end <= stop for start, stop in _mapped_uids()):
        problem = "is not mapped in this user namespace"
    elif any(first < stop and start < end for start, stop in _subordinate_uids()):
        problem = "overlaps a range of /etc/subuid"
    if problem:
        return Probe(
            name="uid range",
            status=ProbeStatus.MISSING,
            observed=f"{observed} {problem}",
            needed_by=EVERY,
            fix=f'name another one in {CONFIG}: {{"uid_first": N, "uid_count": N}}',
        )
    return Probe(name="uid range", status=ProbeStatus.OK, observed=observed)


def _mapped_uids() -> list[tuple[int, int]]:
    rows = [line.split() for line in (read_small("/proc/self/uid_map") or "").splitlines()]
    return [(int(row[0]), int(row[0]) + int(row[2])) for row in rows if len(row) == 3]


def _subordinate_uids() -> list[tuple[int, int]]:
    rows = [line.split(":") for line in (read_small("/etc/subuid") or "").splitlines()]
    numbers = [row for row in rows if len(row) == 3 and row[1].isdigit() and row[2].isdigit()]
    return [(int(row[1]), int(row[1]) + int(row[2])) for row in numbers]
