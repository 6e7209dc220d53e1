"""What a session ran on: kernel, distribution, and the programs that held it."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress

from clsecure import __version__
from clsecure.errors import ToolError
from clsecure.model import ContainerSpec, Engine, IsolationMode
from clsecure.process import PIPE, Command, Process, TimeoutExpired, spawn

_SECONDS = 5.0
_VERSION = re.compile(rb"\d+(?:\.\d+)+[-+~.\w]*")


class HostFacts:
    """Asks programs for their versions; they answer meanwhile."""

    def __init__(self, mode: IsolationMode, container: ContainerSpec | None) -> None:
        self._children: dict[str, Process[bytes]] = {}
        for name, argv in _programs(mode, container).items():
            with suppress(ToolError, OSError):
                self._children[name] = spawn(Command(argv=argv), stdout=PIPE)

    def collect(self) -> dict[str, object]:
        """Return everything; a program that gave no answer in time has none."""
        return {
            "kernel": f"{os.uname().sysname} {os.uname().release}",
            "machine": os.uname().machine,
            "distribution": _distribution(),
            "clsecure": __version__,
            "python": sys.version.split()[0],
            "programs": {name: _answer(child) for name, child in self._children.items()},
        }


def _programs(mode: IsolationMode, container: ContainerSpec | None) -> dict[str, tuple[str, ...]]:
    programs: dict[str, tuple[str, ...]] = {"git": ("git", "version")}
    if mode is IsolationMode.NAMESPACE:
        programs["firejail"] = ("firejail", "--version")
    if container is not None:
        engine = "podman" if container.engine is Engine.PODMAN else "dockerd"
        programs[engine] = (engine, "--version")
    return programs


def _answer(child: Process[bytes]) -> str | None:
    try:
        out, _ = child.communicate(timeout=_SECONDS)
    except TimeoutExpired:
        child.kill()
        out, _ = child.communicate()
    found = _VERSION.search(out)
    return found[0].decode("ascii", "replace") if found else None


def _distribution() -> str | None:
    import platform

    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None
