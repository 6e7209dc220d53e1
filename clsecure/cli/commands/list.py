"""``clsecure list``: every worker and session of this user."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from clsecure.cli import render
from clsecure.cli.options import Invocation
from clsecure.installation import require_installation
from clsecure.privileged.client import HelperConnection
from clsecure.session.inventory import Item, inventory
from clsecure.session.store import Store
from clsecure.settings.values.output import OutputFormat

if TYPE_CHECKING:
    from clsecure.session.ui import Ui


def execute(invocation: Invocation, ui: Ui) -> int:
    """Print the table."""
    items = all_items()
    render.write_sessions([row(item) for item in items], json=invocation.output is OutputFormat.JSON)
    if not items and invocation.output is OutputFormat.HUMAN:
        ui.note("no sessions yet; start one with: clsecure")
    return 0


def all_items() -> tuple[Item, ...]:
    """Ask the helper and read the state directory."""
    connection = HelperConnection(require_installation().helper)
    try:
        return inventory(Store(), connection.accounts())
    finally:
        connection.close()


def row(item: Item) -> render.SessionRow:
    """Return one line of the table."""
    record, account = item.record, item.account
    begun = record.created if record else account.created.timestamp() if account else time.time()
    worker = account.name if account else record.worker_user if record else ""
    return render.SessionRow(
        session_id=item.name,
        project=item.project,
        session=item.session,
        mode=record.mode if record else "",
        status=item.status,
        worker_user=worker,
        size=record.size if record else None,
        age_s=max(0.0, time.time() - begun),
        unimported=record.unimported if record else None,
    )
