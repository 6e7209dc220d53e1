"""``clsecure doctor``: what this machine has and lacks for each mode, and the command that mends it."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from clsecure.cli import render
from clsecure.cli.commands.agent import directories_to_avoid
from clsecure.cli.options import Invocation
from clsecure.cli.worker_image import stored_image
from clsecure.errors import EXIT_FAILURE, AgentError
from clsecure.machine import examine
from clsecure.machine.probe import Probe, ProbeStatus
from clsecure.model import Engine, IsolationMode
from clsecure.session.words import number
from clsecure.settings.values.isolation import DEFAULT_IMAGE
from clsecure.settings.values.output import OutputFormat
from clsecure.terminal import escape

if TYPE_CHECKING:
    from clsecure.session.ui import Ui

DEFAULT_MODE = IsolationMode.NAMESPACE
STALE = timedelta(days=45)
"""From this age on an image lacks what distributions fixed since."""

_MARKS = {
    ProbeStatus.OK: "ok",
    ProbeStatus.INFO: "-",
    ProbeStatus.WARNING: "note",
    ProbeStatus.MISSING: "LACKS",
}


def execute(invocation: Invocation, ui: Ui) -> int:  # noqa: ARG001  # nothing is asked
    """Look and tell. Exit status 0 when the default mode works here."""
    probes = (*examine.examine(), probe_worker_image(), probe_claude())
    if invocation.output is OutputFormat.JSON:
        render.write_json(document(probes))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in table(probes)))
    return 0 if examine.mode_works(DEFAULT_MODE, probes) else EXIT_FAILURE


_NEWER = "update clsecure, then build; in a checkout: ./dev invoke lock-images"


def probe_worker_image() -> Probe:
    """How old the default image is; one that is not there is offered to be built when it is needed."""
    found, name = stored_image(DEFAULT_IMAGE, Engine.PODMAN), "worker image"
    build = f"clsecure images build {DEFAULT_IMAGE}"
    if found is None:
        return Probe(
            name=name,
            status=ProbeStatus.INFO,
            observed=f"{DEFAULT_IMAGE} is not there; container mode needs an image",
            fix=build,
        )
    days = found.age.days
    observed = f"{DEFAULT_IMAGE}, its packages are {number(days, 'day')} old"
    if found.age > STALE:
        # Its lock comes with clsecure: building again gives the same image.
        return Probe(name=name, status=ProbeStatus.WARNING, observed=observed, fix=_NEWER)
    return Probe(name=name, status=ProbeStatus.OK, observed=observed)


def probe_claude() -> Probe:
    """Claude Code, wherever people install it; looked for as the user only, since it may have to be run."""
    from clsecure.agents.find import find_agent
    from clsecure.agents.spec import find_spec

    if os.geteuid() == 0:
        return Probe(name="claude", status=ProbeStatus.INFO, observed="asked as root; ask again as yourself")
    try:
        home = Path("~").expanduser()
        found = find_agent(find_spec("claude"), os.environ, home, exclude=directories_to_avoid(home))
    except AgentError as error:
        return Probe(
            name="claude",
            status=ProbeStatus.WARNING,
            observed=error.brief,
            fix="clsecure agent install claude",
        )
    return Probe(name="claude", status=ProbeStatus.OK, observed=f"{found.version} ({found.path})")


def document(probes: tuple[Probe, ...]) -> dict[str, object]:
    """Return what ``--output json`` prints."""
    return {
        "modes": {
            mode.value: {
                "works": examine.mode_works(mode, probes),
                "default": mode is DEFAULT_MODE,
                "lacks": [probe.name for probe in examine.lacks(mode, probes)],
            }
            for mode in IsolationMode
        },
        "probes": [
            {
                "name": probe.name,
                "status": probe.status.value,
                "observed": probe.observed,
                "needed_by": [mode.value for mode in probe.needed_by],
                "fix": probe.fix,
            }
            for probe in probes
        ],
    }


def table(probes: tuple[Probe, ...]) -> list[str]:
    """Return the lines that people read."""
    width = max(len(probe.name) for probe in probes)
    lines = []
    for probe in probes:
        lines.append(f"{_MARKS[probe.status]:5}  {probe.name:{width}}  {escape(probe.observed)}")
        if probe.fix and probe.status is not ProbeStatus.OK:
            lines.append(f"{'':5}  {'':{width}}  → {escape(probe.fix)}")
    lines.append("")
    for mode in IsolationMode:
        name = f"--mode {mode.value}{' (default)' if mode is DEFAULT_MODE else ''}"
        lines.append(f"{name:26}  {_verdict(mode, probes)}")
    return lines


def _verdict(mode: IsolationMode, probes: tuple[Probe, ...]) -> str:
    missing = examine.lacks(mode, probes)
    if missing:
        return f"does not work: {', '.join(probe.name for probe in missing)}"
    return "works"
