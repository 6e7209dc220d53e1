"""``clsecure report SESSION``: what a session was, for people; with ``--html`` as a page."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from clsecure.cli import render
from clsecure.cli.commands.record import find
from clsecure.cli.options import Invocation, ReportOptions
from clsecure.session.store import Store
from clsecure.settings.values.output import OutputFormat

if TYPE_CHECKING:
    from clsecure.session.ui import Ui


def execute(invocation: Invocation, ui: Ui) -> int:
    """Print it, or write the page. A record that does not hold is shown as such, and is no failure here."""
    from clsecure.audit.records import Records
    from clsecure.cli.page import page, write
    from clsecure.cli.report import lines, sections
    from clsecure.session.proof import examine

    options = invocation.options
    assert isinstance(options, ReportOptions)  # noqa: S101  # the dispatcher's word
    state = Store().root
    records = Records(state)
    session_id = find(records, options.session)
    sealed, path = records.read(session_id), records.path(session_id)
    report = sections(sealed.statement, examine(records, session_id, state=state).proofs)
    if options.html is not None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        write(options.html, page(report, record=path, sha256=digest))
        ui.note(f"written: {options.html}")
    if invocation.output is OutputFormat.JSON:
        render.write_json({"session_id": session_id, "html": options.html, "report": report})
    elif options.html is None:
        render.write("".join(f"{line}\n" for line in lines(report)))
    return 0
