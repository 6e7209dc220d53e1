"""``clsecure diff SESSION``: the work of a kept session against what was cloned in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clsecure.cli import render
from clsecure.cli.options import DiffOptions, Invocation
from clsecure.errors import RepositoryError
from clsecure.installation import require_installation
from clsecure.settings.values.output import OutputFormat

if TYPE_CHECKING:
    from clsecure.session.ui import Ui


def execute(invocation: Invocation, ui: Ui) -> int:
    """Show the diff; nothing is decided."""
    from clsecure.session.kept import kept_session
    from clsecure.session.store import Store

    options = invocation.options
    assert isinstance(options, DiffOptions)  # noqa: S101  # the dispatcher's word
    with kept_session(
        options.session, ui=ui, store=Store(), installation=require_installation(), project=project_here()
    ) as kept:
        message = f"Uncommitted work of session {kept.record.session_id}"
        with kept.finish.quarantined(kept.record, message) as (_, seen):
            diff = b"".join(seen.diff())
            if invocation.output is OutputFormat.JSON:
                document = {
                    "session_id": kept.record.session_id,
                    "units": seen.units,
                    "findings": seen.findings,
                    "refused": seen.refused,
                    "diff": diff.decode("utf-8", "replace"),
                }
                render.write_json(render.plain(document))
            else:
                render.write_diff(diff)
    return 0


def project_here() -> str | None:
    """Return the project that the user stands in, if any: its sessions are known by their short names."""
    from clsecure.workspace.repository import discover

    try:
        return str(discover(Path.cwd()).top)
    except RepositoryError:
        return None
