"""Known holes of container engines and runtimes, and whether what is installed here has them (threat C7).

What counts is the program's own version, and what the distribution's package says that it fixed besides:
distributions keep the version and add the fix. Where neither speaks of it nothing is known, and that is said.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clsecure import process
from clsecure.errors import ToolError
from clsecure.machine.probe import find_program
from clsecure.process import Command

_DOCUMENTATION = Path("/usr/share/doc")
_MAX_CHANGELOG = 16 << 20
_LOCAL = Path("/usr/local")
_VERSION = re.compile(r"([0-9]+(?:\.[0-9]+)+)(?:[-~.+]?rc\.?([0-9]+))?")
_FINAL = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Advisory:
    """One hole.

    :param fixed: the first version of each branch that has the fix; a branch that is not named has it from
        the last of them on.
    :param since: the first version that has the hole, None for all before the fix.
    :param what: a few words; what has to be the case for it to matter.
    """

    cve: str
    fixed: tuple[str, ...]
    what: str
    since: str | None = None


ADVISORIES: Mapping[str, tuple[Advisory, ...]] = {
    "runc": (
        Advisory(cve="CVE-2019-5736", fixed=("1.0.0-rc7",), what="a container overwrites runc itself"),
        Advisory(
            cve="CVE-2024-21626",
            fixed=("1.1.12",),
            since="1.0.0-rc93",
            what="a container keeps a directory of the host open",
        ),
        *(
            Advisory(
                cve=cve,
                fixed=("1.2.8", "1.3.3", "1.4.0-rc.3"),
                what="a container writes to the host's /proc",
            )
            for cve in ("CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881")
        ),
        Advisory(
            cve="CVE-2026-41579",
            fixed=("1.3.6", "1.4.3", "1.5.0-rc.3"),
            what="an image with a link in the place of /dev writes outside it",
        ),
    ),
    "crun": (
        Advisory(cve="CVE-2022-27650", fixed=("1.4.4",), what="exec gives inheritable capabilities"),
        Advisory(
            cve="CVE-2025-24965", fixed=("1.20",), what="an image writes outside it, where crun has krun"
        ),
        Advisory(cve="CVE-2026-30892", fixed=("1.27",), since="1.19", what="exec takes the user 1 for root"),
        Advisory(
            cve="CVE-2026-47766",
            fixed=("1.28",),
            what="an image with a link in the place of /dev writes outside it",
        ),
    ),
    "podman": (
        Advisory(
            cve="CVE-2024-1753", fixed=("4.9.4", "5.0.1"), what="a build mounts any directory of its host"
        ),
        Advisory(cve="CVE-2024-9341", fixed=("5.2.4",), what="an image mounts a directory of its host"),
        Advisory(cve="CVE-2024-9407", fixed=("5.2.4",), what="a build mounts a directory of its host"),
        Advisory(cve="CVE-2024-11218", fixed=("5.3.2",), what="a parallel build leaves its container"),
        Advisory(cve="CVE-2025-9566", fixed=("5.6.1",), what="kube play writes outside a volume"),
    ),
    "docker": (
        Advisory(
            cve="CVE-2024-41110",
            fixed=("23.0.15", "25.0.6", "26.1.5", "27.1.1"),
            what="requests pass authorization plugins",
        ),
        Advisory(cve="CVE-2026-34040", fixed=("29.3.1",), what="requests pass authorization plugins"),
    ),
}
"""By program. Sources: the projects' own advisories (github.com, GHSA) and release notes."""

_PACKAGES: Mapping[str, tuple[str, ...]] = {"docker": ("docker.io", "moby-engine", "docker-ce")}
"""What the packages are called that are not called as the program."""


def open_advisories(program: str, answer: str, *, path: Path | None = None) -> tuple[Advisory, ...]:
    """Return what is not known to be fixed.

    :param answer: the program's own words on its version; without a version nothing is known to be fixed.
    :param path: where it is installed; a distribution's package speaks for what is in its own place alone.
    """
    version = parse(answer)
    found = tuple(each for each in ADVISORIES.get(program, ()) if concerns(each, version))
    if not found or path is None or path.is_relative_to(_LOCAL):
        return found
    fixed = named_by_the_package(program)
    return tuple(each for each in found if each.cve not in fixed)


def concerns(advisory: Advisory, version: tuple[int, ...]) -> bool:
    """Tell whether a version of the project's own has the hole."""
    if version and advisory.since is not None and version < parse(advisory.since):
        return False
    fixed = [parse(each) for each in advisory.fixed]
    branch = next((each for each in fixed if each[:2] == version[:2]), max(fixed))
    return version < branch


def parse(text: str) -> tuple[int, ...]:
    """Return the first version in a text, release candidates before what they are for; ``()`` for none."""
    match = _VERSION.search(text)
    if match is None:
        return ()
    numbers = [int(part) for part in match[1].split(".")][:4]
    candidate = int(match[2]) if match[2] else _FINAL
    return (*numbers, *[0] * (4 - len(numbers)), candidate)


def named_by_the_package(program: str) -> frozenset[str]:
    """Return the holes that the changelog of a program's package names, which is what it fixes."""
    names = _PACKAGES.get(program, (program,))
    text = b"".join(_debian(name) for name in names)
    rpm = None if text else find_program("rpm")
    if rpm is not None:
        text = b"".join(_rpm(rpm, name) for name in names)
    return frozenset(found.decode() for found in re.findall(rb"CVE-[0-9]{4}-[0-9]{4,}", text))


def _debian(package: str) -> bytes:
    # A package of Debian's own has none but this one.
    for name in ("changelog.Debian.gz", "changelog.gz"):
        try:
            data = (_DOCUMENTATION / package / name).read_bytes()
            return zlib.decompressobj(wbits=31).decompress(data, _MAX_CHANGELOG)
        except (OSError, zlib.error):
            continue
    return b""


def _rpm(rpm: Path, package: str) -> bytes:
    try:
        done = process.run(Command(argv=(str(rpm), "-q", "--changelog", "--", package), timeout=10))
    except ToolError:
        return b""
    return done.stdout[:_MAX_CHANGELOG] if done.returncode == 0 else b""
