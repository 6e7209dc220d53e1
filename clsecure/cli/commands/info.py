"""``clsecure info``: what the chosen mode really protects on this machine, tried and not claimed."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clsecure.cli import render
from clsecure.cli.box import wanted_box
from clsecure.cli.options import Invocation
from clsecure.errors import EXIT_VERIFICATION
from clsecure.installation import require_installation
from clsecure.privileged.client import HelperConnection
from clsecure.settings.values.output import OutputFormat
from clsecure.terminal import escape

if TYPE_CHECKING:
    from clsecure.session.info import Wanted
    from clsecure.session.ui import Ui
    from clsecure.verify.protection import Row

_MARKS = {"held": "held", "not held": "NOT HELD", "not enforced here": "not enforced"}
_WIDTH = 110


def execute(invocation: Invocation, ui: Ui) -> int:
    """Look and tell. Exit status 0 when everything holds that this machine can enforce."""
    installation = require_installation()
    connection = HelperConnection(installation.helper)
    try:
        from clsecure.session.info import look
        from clsecure.session.store import state_directory

        wanted = wanted_box(invocation, ui)
        state = state_directory()
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ui.phase("looking at a sandbox from both sides"):
            rows = look(
                wanted,
                connection,
                installation=installation,
                home=Path.home(),
                state=state,
            )
    finally:
        connection.close()
    broken = [row for row in rows if row.status.value == "not held"]
    if invocation.output is OutputFormat.JSON:
        render.write_json(document(wanted, rows))
    else:
        render.write("".join(f"{line}\n" for line in table(wanted, rows)))
    return EXIT_VERIFICATION if broken else 0


def document(wanted: Wanted, rows: Sequence[Row]) -> dict[str, object]:
    """Return what ``--output json`` prints (docs/info.schema.json)."""
    from clsecure.verify.protection import RESIDUALS, unnamed_residuals

    return {
        "mode": wanted.mode,
        "network": wanted.network,
        "holds": all(row.status.value != "not held" for row in rows),
        "rows": rows,
        "residuals": RESIDUALS,
        "residuals_of_no_row": unnamed_residuals(rows),
    }


def table(wanted: Wanted, rows: Sequence[Row]) -> Iterator[str]:
    """Give the lines that people read."""
    from clsecure.verify.protection import RESIDUALS

    yield f"mode {wanted.mode}, network {wanted.network}: a sandbox was built, looked at and tried"
    area = ""
    for row in rows:
        if row.area.value != area:
            area = row.area.value
            yield ""
            yield area
        numbers = f"  [{', '.join(row.residuals)}]" if row.residuals else ""
        yield f"  {_MARKS[row.status.value]:<12}  {row.property}{numbers}"
        evidence = textwrap.wrap(escape(row.evidence), _WIDTH - 16, break_on_hyphens=False)
        yield from (f"{'':16}{line}" for line in evidence)
    yield ""
    yield "what is not held, by number (docs/threat-model.md):"
    named = {number for row in rows for number in row.residuals}
    for number, text in sorted(RESIDUALS.items(), key=lambda item: int(re.sub(r"\D", "", item[0]))):
        yield f"  {number:<4}{' ' if number in named else '*'} {text}"
    yield "  (* of no row above: nothing that could be tried here)"
