"""``clsecure doctor``: what this machine has and lacks for each mode, and the command that mends it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from clsecure.cli import render
from clsecure.cli.options import Invocation
from clsecure.errors import EXIT_FAILURE
from clsecure.machine import examine
from clsecure.machine.probe import Probe, ProbeStatus
from clsecure.model import IsolationMode
from clsecure.settings.values import OutputFormat
from clsecure.terminal import escape

if TYPE_CHECKING:
    from clsecure.session.ui import Ui

DEFAULT_MODE = IsolationMode.NAMESPACE

_MARKS = {
    ProbeStatus.OK: "ok",
    ProbeStatus.INFO: "-",
    ProbeStatus.WARNING: "note",
    ProbeStatus.MISSING: "LACKS",
}


def execute(invocation: Invocation, ui: Ui) -> int:  # noqa: ARG001  # nothing is asked
    """Look and tell. Exit status 0 when the default mode works here."""
    probes = examine.examine()
    if invocation.output is OutputFormat.JSON:
        render.write_json(document(probes))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in table(probes)))
    return 0 if examine.mode_works(DEFAULT_MODE, probes) else EXIT_FAILURE


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
    if mode is IsolationMode.CONTAINER:
        return "not there yet"
    missing = examine.lacks(mode, probes)
    if missing:
        return f"does not work: {', '.join(probe.name for probe in missing)}"
    return "works"
