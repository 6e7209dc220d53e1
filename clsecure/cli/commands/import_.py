"""``clsecure import SESSION``: bring the work of a kept session home."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from clsecure import logs
from clsecure.cli import render
from clsecure.cli.commands.diff import project_here
from clsecure.cli.options import ImportOptions, Invocation
from clsecure.errors import UsageError
from clsecure.installation import require_installation
from clsecure.settings.values.output import OutputFormat

if TYPE_CHECKING:
    from clsecure.session.kept import KeptSession
    from clsecure.session.ui import Ui

log = logs.get("import")


def execute(invocation: Invocation, ui: Ui) -> int:
    """Import without asking: the command is the answer."""
    from clsecure.cli.companions import imported, session_hooks
    from clsecure.cli.recording import record_later_checks, record_options
    from clsecure.model import OnFinish
    from clsecure.session.checks import not_checked
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
    ) as held:
        kept, verification = held.verified()
        record = kept.record
        if verification is not None and verification.failed:
            record_later_checks(kept, verification, invocation.layers, ui)
        if options.anyway:
            _insist(kept, ui)
        else:
            kept.require_verified()
        anyway = options.anyway and bool(record.failed_checks)
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
            import_anyway=anyway,
            verification=verification,
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
                "import_anyway": anyway,
                "warnings": [*(not_checked(verification) if verification else ()), *finished.warnings],
            }
        )
    return 0


def _insist(kept: KeptSession, ui: Ui) -> None:
    """Have the session's tag typed: work of a broken isolation is nobody's slip of the finger."""
    failed = kept.record.failed_checks
    if not failed:
        ui.note("no check of this session failed; --import-anyway was not needed")
        return
    ui.warn("the isolation of this session did not hold:")
    for line in failed:
        ui.warn(line)
    if not ui.interactive:
        raise UsageError(
            "--import-anyway asks for the session's tag, and nobody can be asked here",
            resolution="run it on a terminal",
        )
    if not ui.confirm_typed("What the agent did outside of its sandbox is not known.", kept.tag):
        raise UsageError("that is not the session's tag; nothing is imported")
    log.warning("import_anyway", failed=list(failed))
