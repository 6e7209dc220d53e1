"""What every package has in common: the version, the time, the machine that it is for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from clsecure import process
from clsecure.errors import BackendUnavailableError, StateError, ToolError
from clsecure.process import Command

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
OUTPUT = ROOT / "build" / "packages"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""The versions of CPython that one package serves; a further one needs its wheels in the lock."""

Say = Callable[[str], None]
"""Told what happens, a line each."""


class Architecture(StrEnum):
    """The machines that there are packages for, as the kernel calls them."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"

    @property
    def debian(self) -> str:
        """Return what Debian calls it; Fedora's names are the kernel's."""
        return {"x86_64": "amd64", "aarch64": "arm64"}[self.value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What is built.

    :param epoch: seconds; no file in a package is newer, and no other time gets into it.
    """

    version: str
    epoch: int
    architecture: Architecture

    @property
    def next_python(self) -> str:
        """The first version of Python that is not served."""
        major, minor = PYTHONS[-1].split(".")
        return f"{major}.{int(minor) + 1}"

    @property
    def package_version(self) -> str:
        """The version as deb and rpm sort it: what comes before a release has a ``~`` (1.0rc1 → 1.0~rc1)."""
        return re.sub(r"\.?(?=(a|b|rc|dev)[0-9])", "~", self.version)

    def deb(self, directory: Path) -> Path:
        """Return where the Debian package lies."""
        return directory / f"clsecure_{self.package_version}_{self.architecture.debian}.deb"

    def rpm(self, directory: Path) -> Path:
        """Return where the RPM package lies."""
        return directory / f"clsecure-{self.package_version}-1.{self.architecture}.rpm"


def this_release() -> Release:
    """Return what this checkout builds on this machine.

    :raises StateError: nobody says when the sources were changed last.
    :raises BackendUnavailableError: there are no packages for this machine.
    """
    try:
        architecture = Architecture(os.uname().machine)
    except ValueError:
        raise BackendUnavailableError(f"there are no packages for {os.uname().machine}") from None
    return Release(version=source_version(), epoch=_epoch(), architecture=architecture)


def source_version() -> str:
    """Return the version: it is written in ``clsecure/__init__.py`` and nowhere else."""
    text = (ROOT / "clsecure" / "__init__.py").read_text()
    found = re.search(r'^__version__ = "([0-9][0-9a-z.]*)"$', text, re.MULTILINE)
    if found is None:
        raise StateError("clsecure/__init__.py names no version")
    return found[1]


def _epoch() -> int:
    named = os.environ.get("SOURCE_DATE_EPOCH", "")
    if named.isdigit():
        return int(named)
    try:
        return int(git("log", "-1", "--format=%ct"))
    except ToolError as error:
        raise StateError(
            "the time of the last commit is not known",
            details=error.details,
            resolution="Build in a checkout with its .git, or set SOURCE_DATE_EPOCH.",
        ) from error


def git(*arguments: str) -> str:
    """Ask git about this checkout, which may be somebody else's (``./dev test`` as root)."""
    return run("git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments).decode().strip()


def run(
    *argv: str, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 600
) -> bytes:
    """Run a tool of the build to its end and return its output.

    :param env: besides PATH and the locale.
    :raises ToolError: it is missing, or failed.
    """
    whole = {"PATH": process.SYSTEM_PATH, "LC_ALL": "C.UTF-8", "TZ": "UTC", **(env or {})}
    return process.run(Command(argv=argv, cwd=cwd, env=whole, timeout=timeout)).check().stdout
