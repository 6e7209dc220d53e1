"""``clsecure verify``: run the checks of the isolation, of a mode or of a session, without an agent."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from clsecure.cli import render
from clsecure.cli.box import wanted_box
from clsecure.cli.options import Invocation, VerifyOptions
from clsecure.errors import EXIT_VERIFICATION
from clsecure.installation import require_installation
from clsecure.privileged.client import HelperConnection
from clsecure.settings.values import OutputFormat
from clsecure.terminal import escape

if TYPE_CHECKING:
    from clsecure.model import Verification
    from clsecure.session.info import Wanted
    from clsecure.session.ui import Ui

_MARKS = {"pass": "ok", "fail": "FAILED", "skip": "skipped"}


def execute(invocation: Invocation, ui: Ui) -> int:
    """Run them and tell. Exit status 0 when none failed, 123 when one did."""
    options = invocation.options
    assert isinstance(options, VerifyOptions)  # noqa: S101  # the dispatcher's word
    if options.list_checks:
        _list(as_json=invocation.output is OutputFormat.JSON)
        return 0
    from clsecure.session.store import state_directory
    from clsecure.session.verification import Place, verify_mode

    installation = require_installation()
    connection = HelperConnection(installation.helper)
    try:
        wanted = wanted_box(invocation, ui)
        state = state_directory()
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ui.phase("running the checks"):
            place = Place(home=Path.home(), state=state, environ=os.environ)
            found = verify_mode(wanted, connection, installation=installation, place=place)
    finally:
        connection.close()
    if invocation.output is OutputFormat.JSON:
        render.write_json(document(wanted, found))
    else:
        _show(wanted, found)
    return EXIT_VERIFICATION if found.failed else 0


def document(wanted: Wanted, found: Verification) -> dict[str, object]:
    """Return what ``--output json`` prints (docs/verify.schema.json)."""
    return {
        "mode": wanted.mode,
        "network": wanted.network,
        "session_id": None,
        "status": "failed" if found.failed else "passed",
        "checks": found.checks,
    }


def _show(wanted: Wanted, found: Verification) -> None:
    render.write_table(
        ("", "CHECK", "WHEN", "SEEN FROM", "OBSERVED"),
        [
            (_MARKS[c.status], c.check_id, c.phase, c.vantage, " ".join(c.observed.split()))
            for c in found.checks
        ],
    )
    for check in found.failed:
        render.write(
            f"\n{check.check_id} FAILED\n  expected  {escape(check.expected)}\n"
            f"  observed  {escape(check.observed)}\n"
        )
    counted = Counter(check.status.value for check in found.checks)
    render.write(
        f"\nmode {wanted.mode}, network {wanted.network}: {counted['pass']} hold, "
        f"{counted['fail']} failed, {counted['skip']} skipped\n"
    )


def _list(*, as_json: bool) -> None:
    from clsecure.verify.table import ALL_CHECKS

    if as_json:
        render.write_json(
            {
                "checks": [
                    {
                        "check_id": check.check_id,
                        "property": check.property,
                        "modes": sorted(check.modes),
                        "vantage": check.vantage,
                        "area": check.area,
                        "threats": check.threats,
                        "residuals": check.residuals,
                    }
                    for check in ALL_CHECKS
                ]
            }
        )
        return
    render.write_table(
        ("CHECK", "SEEN FROM", "MODES", "THREATS", "PROPERTY"),
        [
            (c.check_id, c.vantage, ", ".join(sorted(c.modes)), " ".join(c.threats), c.property)
            for c in ALL_CHECKS
        ],
    )
