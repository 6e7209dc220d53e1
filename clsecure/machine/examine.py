"""All probes in the order of the table, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from clsecure.errors import ClsecureError
from clsecure.machine import engines, kernel, limits, programs
from clsecure.machine.probe import EVERY, Probe, ProbeStatus
from clsecure.model import IsolationMode

_PROBES: tuple[Callable[[], Probe], ...] = (
    kernel.probe_kernel,
    programs.probe_python,
    programs.probe_git,
    programs.probe_sudo,
    programs.probe_helper,
    programs.probe_permission,
    kernel.probe_namespaces,
    kernel.probe_container,
    kernel.probe_seccomp,
    kernel.probe_landlock,
    programs.probe_firejail,
    programs.probe_firejail_isolates,
    kernel.probe_cgroups,
    limits.probe_limits,
    kernel.probe_mandatory_access_control,
    kernel.probe_tiocsti,
    kernel.probe_uid_range,
    kernel.probe_disk,
    kernel.probe_home,
    programs.probe_git_lfs,
    programs.probe_npm,
    programs.probe_connector,
    programs.probe_nft,
    programs.probe_gh,
)


def examine() -> tuple[Probe, ...]:
    """Look at everything. Takes about a second; a probe that fails becomes a finding itself."""
    with ThreadPoolExecutor(1) as background:
        of_containers = background.submit(engines.probes)
        found = tuple(_look(probe) for probe in _PROBES)
        return (*found, *of_containers.result())


def _look(probe: Callable[[], Probe]) -> Probe:
    try:
        return probe()
    except (OSError, ValueError, ClsecureError) as error:
        return Probe(
            name=probe.__name__.removeprefix("probe_").replace("_", " "),
            status=ProbeStatus.MISSING,
            observed=f"could not be looked at: {error}",
            needed_by=EVERY,
        )


def lacks(mode: IsolationMode, probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
    """Return what keeps a mode from working."""
    return tuple(each for each in probes if each.status is ProbeStatus.MISSING and mode in each.needed_by)


def mode_works(mode: IsolationMode, probes: tuple[Probe, ...]) -> bool:
    """Tell whether everything that a mode depends on is there."""
    return not lacks(mode, probes)
