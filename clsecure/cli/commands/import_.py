"""``clsecure import SESSION``: bring the work of a kept session home."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from clsecure.cli import render
from clsecure.cli.commands.diff import project_here
from clsecure.cli.options import ImportOptions, Invocation
from clsecure.installation import require_installation
from clsecure.settings.values import OutputFormat

if TYPE_CHECKING:
    from clsecure.session.ui import Ui


def execute(invocation: Invocation, ui: Ui) -> int:
    """Import without asking: the command is the answer."""
    from clsecure.cli.companions import imported, session_hooks
    from clsecure.cli.recording import record_options
    from clsecure.model import OnFinish
    from clsecure.session.finish import Decision
    from clsecure.session.kept import kept_session
    from clsecure.session.plan import default_branch
    from clsecure.session.record import record_late
    from clsecure.session.store import Store

    options = invocation.options
    assert isinstance(options, ImportOptions)  # noqa: S101  # the dispatcher's word
    installation = require_installation()
    with kept_session(
        options.session, ui=ui, store=Store(), installation=installation, project=project_here()
    ) as kept:
        record = kept.record
        decision = Decision(
            on_finish=OnFinish.IMPORT,
            branch=options.branch
            or default_branch(
                project_name=Path(record.project).name,
                session=record.session,
                started=datetime.fromtimestamp(record.created).astimezone(),
            ),
            chosen=options.branch is not None,
            message=options.message or f"Uncommitted work of session {record.session_id}",
        )
        finished = kept.finish.conclude(record, decision)
        recorded = record_late(
            kept.finish.place,
            record,
            record_options(invocation.layers),
            finished=finished,
            git_dir=kept.finish.start.top.source_git_dir,
            warn=ui.warn,
        )
    if finished.imported is None:
        ui.note("there is nothing to import")
    else:
        imported(
            session_hooks(ui),
            session_id=record.session_id,
            project=record.project,
            session=record.session,
            what=finished.imported,
        )
    if invocation.output is OutputFormat.JSON:
        render.write_json(
            {
                "session_id": record.session_id,
                "import": render.plain(finished.imported),
                "kept": finished.kept,
                "record": render.plain(recorded),
                "warnings": list(finished.warnings),
            }
        )
    return 0
