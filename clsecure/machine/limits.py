"""Which limits of a session this machine can enforce, and by what. What really holds is seen at a start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from clsecure.machine.probe import Probe, ProbeStatus, read_small

_CONTROLLERS = {"memory": "memory", "pids": "pids", "cpus": "cpu"}
_UNIFIED = "/sys/fs/cgroup"


def enforceable() -> Mapping[str, str | None]:
    """Return by limit what would hold it: ``systemd``, ``cgroup``, ``rlimit``, ``measured``, or None."""
    found: dict[str, str | None] = {name: _by_group(controller) for name, controller in _CONTROLLERS.items()}
    # Threads of the session's own uid can be counted without a controller, memory can't.
    found["pids"] = found["pids"] or "rlimit"
    return {**found, "open_files": "rlimit", "disk": "measured"}


def _by_group(controller: str) -> str | None:
    unified = (read_small(f"{_UNIFIED}/cgroup.controllers") or "").split()
    if controller not in unified and not Path(_UNIFIED, controller, "cgroup.procs").exists():
        return None
    return "systemd" if Path("/run/systemd/system").is_dir() else "cgroup"


def probe_limits() -> Probe:
    """Which limits hold here."""
    found = enforceable()
    lacking = [name for name, how in found.items() if how is None]
    observed = ", ".join(f"{name} ({how})" for name, how in found.items() if how)
    if not lacking:
        return Probe(name="limits", status=ProbeStatus.OK, observed=observed)
    return Probe(
        name="limits",
        status=ProbeStatus.WARNING,
        observed=f"{observed}; not enforced: {', '.join(lacking)}",
        fix="boot with these controllers of control groups (cgroup_enable=memory and the like)",
    )
