"""How npm lays out Claude Code: a package of scripts, and one package per platform with the program."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clsecure.agents.digests import VERSION

PACKAGE = "@anthropic-ai/claude-code"
_MAX_JSON = 256 << 10
_ARCHITECTURES = {"x86_64": "x64", "aarch64": "arm64"}


def platform_packages(machine: str) -> tuple[str, ...]:
    """Return the names of the packages that hold the program for a machine, the usual C library first."""
    architecture = _ARCHITECTURES.get(machine)
    if architecture is None:
        return ()
    return (f"{PACKAGE}-linux-{architecture}", f"{PACKAGE}-linux-{architecture}-musl")


def package_of(path: Path) -> Path | None:
    """Return the directory of the package of Claude Code that a file belongs to."""
    for directory in path.parents:
        if (directory / "package.json").is_file():
            name = _describe(directory).get("name")
            belongs = isinstance(name, str) and (name == PACKAGE or name.startswith(f"{PACKAGE}-linux-"))
            return directory if belongs else None
        if directory.name == "node_modules":
            return None
    return None


def version(package: Path) -> str | None:
    """Return the version that a package says of itself."""
    value = _describe(package).get("version")
    return value if isinstance(value, str) and VERSION.fullmatch(value) else None


def volta_package(volta_home: Path) -> Path | None:
    """Return the package behind volta's shim."""
    image = volta_home / "tools/image/packages" / PACKAGE
    for directory in (image / "lib/node_modules" / PACKAGE, image):
        if _describe(directory).get("name") == PACKAGE:
            return directory
    return None


def natives(package: Path, machine: str) -> Iterator[Path]:
    """Yield where the program may lie: in the package, or in the platform's as Node would look for it."""
    for name in ("bin/claude.exe", "claude"):
        yield package / name
    real = Path(os.path.realpath(package))
    for name in platform_packages(machine):
        for directory in (real, *real.parents):
            if directory.name != "node_modules":
                yield directory / "node_modules" / name / "claude"


def _describe(directory: Path) -> dict[str, Any]:
    try:
        with (directory / "package.json").open("rb") as file:
            value = json.loads(file.read(_MAX_JSON))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
