"""A running session's container and the engine that holds it, seen from the host as root."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.support.hostile import DEADLINE, LiveAgent

ENVIRONMENT = ("CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF", "CONTAINERS_REGISTRIES_CONF", "HOME", "TMPDIR")


def engine_of(agent: LiveAgent) -> int:
    """Return the pid, on the host, of the podman that holds a session's agent."""
    (found,) = [pid for pid in agent.processes() if words_of(pid)[:1] == ["/usr/bin/podman"]]
    return found


def words_of(pid: int) -> list[str]:
    """Return a process's argument vector; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def in_engine(agent: LiveAgent, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a program as the engine itself could: root of its user namespace, in all of its namespaces."""
    pid = engine_of(agent)
    lines = Path(f"/proc/{pid}/environ").read_text().split("\0")
    env = {name: value for name, _, value in (line.partition("=") for line in lines) if name in ENVIRONMENT}
    return subprocess.run(
        ["nsenter", "--target", str(pid), "--user", "--mount", "--pid", "--net", "--ipc", "--uts", *argv],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **env},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def inspected(agent: LiveAgent) -> dict[str, Any]:
    """Return what podman says of the session's one container."""
    (found,) = json.loads(_said(in_engine(agent, "podman", "inspect", _container(agent))))
    return dict(found)


def _container(agent: LiveAgent) -> str:
    return str(agent.target.account()["name"])


def _said(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done
    return done.stdout
