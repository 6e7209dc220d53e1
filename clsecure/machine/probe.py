"""What a probe says, and the few ways in which probes look.

A probe looks, it never changes anything. What it can't find out counts as missing where a mode depends on
it: a sandbox that might not hold is none.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from clsecure import process
from clsecure.model import IsolationMode
from clsecure.process import SYSTEM_PATH, Command

EVERY = tuple(IsolationMode)
NAMESPACE = (IsolationMode.NAMESPACE,)
CONTAINER = (IsolationMode.CONTAINER,)

BUILD_PROGRAMS = ("mmdebstrap", "apt-get", "dpkg-deb")
"""What building an image takes."""
PLAIN_BUILD_PROGRAMS = ("newuidmap", "newgidmap")
"""And what it takes for a plain user."""
GIVE_RANGES = "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER"
"""For a user without any; numbers that nobody else has."""
CONNECTORS = ("pasta", "slirp4netns")
"""What can connect a full network, the one that is taken first being faster and speaking IPv6, too."""

_MAX_FILE = 1 << 16
# What keeps plain users from making user namespaces: name, the value that does it, one that does not.
_USER_NAMESPACES = (
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("user.max_user_namespaces", "0", "10000"),
)


class ProbeStatus(StrEnum):
    """How a probe ended. Only ``MISSING`` keeps a mode from working."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One property of the machine.

    :param needed_by: the modes that don't work without it.
    :param fix: the command or change that helps, None when there is nothing to do.
    """

    name: str
    status: ProbeStatus
    observed: str
    needed_by: tuple[IsolationMode, ...] = ()
    fix: str | None = None


_PACKAGES: Mapping[str, Mapping[str, str]] = {
    "notify-send": {
        "apt-get": "libnotify-bin",
        "dnf": "libnotify",
        "pacman": "libnotify",
        "zypper": "libnotify-tools",
    },
    "newuidmap": {"apt-get": "uidmap", "dnf": "shadow-utils", "pacman": "shadow", "zypper": "shadow"},
    "newgidmap": {"apt-get": "uidmap", "dnf": "shadow-utils", "pacman": "shadow", "zypper": "shadow"},
    "apt-get": {"apt-get": "apt", "dnf": "apt", "pacman": "apt"},
    "dpkg-deb": {"apt-get": "dpkg", "dnf": "dpkg", "pacman": "dpkg", "zypper": "dpkg"},
    "debian-archive-keyring": {"dnf": "debian-keyring"},
    "nft": dict.fromkeys(("apt-get", "dnf", "pacman", "zypper"), "nftables"),
    "pasta": dict.fromkeys(("apt-get", "dnf", "pacman", "zypper"), "passt"),
    # tool: package manager -> package; the tool's own name where it is not listed
    "npm": {"apt-get": "npm", "dnf": "nodejs-npm", "pacman": "npm", "zypper": "npm-default"},
    "npx": {"apt-get": "npm", "dnf": "nodejs-npm", "pacman": "npm", "zypper": "npm-default"},
    "node": {"apt-get": "nodejs", "dnf": "nodejs", "pacman": "nodejs", "zypper": "nodejs-default"},
    "go": {"apt-get": "golang", "dnf": "golang"},
    "docker": {"apt-get": "docker.io", "dnf": "moby-engine"},
    "cargo": {"pacman": "rust"},
    "pipx": {"pacman": "python-pipx", "zypper": "python3-pipx"},
    "pip3": {"apt-get": "python3-pip", "dnf": "python3-pip", "pacman": "python-pip", "zypper": "python3-pip"},
    "python": {"apt-get": "python-is-python3", "dnf": "python-unversioned-command", "zypper": "python3"},
    "gh": {"pacman": "github-cli"},
    "python3": {"pacman": "python"},
}


def install_command(*tools: str) -> str:
    """Return the command that installs tools with this machine's package manager."""
    for manager, command in (
        ("apt-get", "sudo apt install"),
        ("dnf", "sudo dnf install"),
        ("pacman", "sudo pacman -S"),
        ("zypper", "sudo zypper install"),
    ):
        if find_program(manager) is not None:
            packages = dict.fromkeys(_PACKAGES.get(tool, {}).get(manager, tool) for tool in tools)
            return f"{command} {' '.join(packages)}"
    return f"install the package{'s' if len(tools) > 1 else ''} {', '.join(tools)}"


def find_program(name: str, path: str | None = None) -> Path | None:
    """Return where a program of the machine is (or one on ``path``), None when it is not installed."""
    found = shutil.which(name, path=path or SYSTEM_PATH)
    return Path(found) if found else None


def own_ranges() -> tuple[tuple[int, int], ...]:
    """Return the subordinate uids that this user was given: the first, and how many."""
    return _ranges("/etc/subuid")


def _ranges(path: str) -> tuple[tuple[int, int], ...]:
    uid = os.geteuid()
    whose = (pwd.getpwuid(uid).pw_name, str(uid))
    rows = [line.split(":") for line in (read_small(path) or "").splitlines()]
    return tuple(
        (int(row[1]), int(row[2]))
        for row in rows
        if len(row) == 3 and row[0] in whose and row[1].isdigit() and row[2].isdigit()
    )


def build_lacking() -> tuple[tuple[str, ...], bool]:
    """Return which programs of an image's building are missing, and whether the user has ranges for it.

    Root needs none of the latter; what comes from npm needs npm besides.
    """
    plain = os.geteuid() != 0
    programs = (*BUILD_PROGRAMS, *(PLAIN_BUILD_PROGRAMS if plain else ()))
    missing = tuple(name for name in programs if find_program(name) is None)
    return missing, not plain or bool(own_ranges() and _ranges("/etc/subgid"))


def find_connector() -> str | None:
    """Return which of :data:`CONNECTORS` would be used, None when none is installed."""
    return next((name for name in CONNECTORS if find_program(name) is not None), None)


def has_user_namespaces() -> bool:
    """Tell whether the kernel makes user namespaces, for root at least."""
    return Path("/proc/self/ns/user").exists() and read_small("/proc/sys/user/max_user_namespaces") != "0"


def user_namespaces_closed() -> tuple[str, str] | None:
    """Return the setting that keeps plain users from making user namespaces, and the value that lets them.

    A program with an AppArmor profile that permits it is not kept by the first of them.
    """
    for name, closed, opened in _USER_NAMESPACES:
        if read_small(f"/proc/sys/{name.replace('.', '/')}") == closed:
            return name, opened
    return None


def parse_version(text: str) -> tuple[int, ...]:
    """Return the first dotted number in a program's own words; ``()`` when there is none."""
    match = re.search(r"[0-9]+(?:\.[0-9]+)+", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def read_small(path: str) -> str | None:
    """Return a small file of the kernel's or the system's, stripped; None when it can't be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(_MAX_FILE).decode("utf-8", "replace").strip()
    except OSError:
        return None


def words(*argv: str, timeout: float = 10.0) -> str:
    """Return what a program says, on either output, bounded in time (seconds) and size."""
    done = process.run(Command(argv=argv, timeout=timeout))
    return (done.stdout + done.stderr)[:_MAX_FILE].decode("utf-8", "replace")


def versioned(
    name: str, answer: str, minimum: tuple[int, ...], needed_by: tuple[IsolationMode, ...], fix: str
) -> Probe:
    """Judge a program by the version in its own words."""
    version = parse_version(answer)
    shown = ".".join(map(str, version)) or "unknown version"
    if version >= minimum:
        return Probe(name=name, status=ProbeStatus.OK, observed=shown, needed_by=needed_by)
    wanted = ".".join(map(str, minimum))
    return Probe(
        name=name,
        status=ProbeStatus.MISSING,
        observed=f"{shown}, {wanted} or later is needed",
        needed_by=needed_by,
        fix=fix,
    )


def absent(name: str, needed_by: tuple[IsolationMode, ...], fix: str | None = None) -> Probe:
    """Return the probe of something that is not installed; information only when no mode needs it."""
    return Probe(
        name=name,
        status=ProbeStatus.MISSING if needed_by else ProbeStatus.INFO,
        observed="not installed",
        needed_by=needed_by,
        fix=fix or install_command(name),
    )


def is_setuid_root(path: Path) -> bool:
    """Tell whether a program gains root when it is started."""
    found = path.stat()
    return found.st_uid == 0 and bool(found.st_mode & stat.S_ISUID)
