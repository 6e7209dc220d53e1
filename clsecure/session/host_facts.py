"""What a session ran on: kernel, distribution, and the programs that held it."""

from __future__ import annotations

import os
import re
import sys

from clsecure import __version__
from clsecure.errors import ToolError
from clsecure.model import ContainerSpec, Engine, IsolationMode
from clsecure.process import Command, run

_SECONDS = 5.0
_VERSION = re.compile(rb"\d+(?:\.\d+)+[-+~.\w]*")


def host_facts(mode: IsolationMode, container: ContainerSpec | None) -> dict[str, object]:
    """Ask the machine, and the programs for their versions; one that does not say it has none."""
    return {
        "kernel": f"{os.uname().sysname} {os.uname().release}",
        "machine": os.uname().machine,
        "distribution": _distribution(),
        "clsecure": __version__,
        "python": sys.version.split()[0],
        "programs": {name: _version(argv) for name, argv in _programs(mode, container).items()},
    }


def _programs(mode: IsolationMode, container: ContainerSpec | None) -> dict[str, tuple[str, ...]]:
    programs: dict[str, tuple[str, ...]] = {"git": ("git", "version")}
    if mode is IsolationMode.NAMESPACE:
        programs["firejail"] = ("firejail", "--version")
    if container is not None:
        engine = "podman" if container.engine is Engine.PODMAN else "dockerd"
        programs[engine] = (engine, "--version")
    return programs


def _version(argv: tuple[str, ...]) -> str | None:
    try:
        found = _VERSION.search(run(Command(argv=argv, timeout=_SECONDS)).stdout)
    except (ToolError, OSError):
        return None
    return found[0].decode("ascii", "replace") if found else None


def _distribution() -> str | None:
    import platform

    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None
