"""``clsecure cleanup``: remove workers with everything of theirs. Never a running one, never by prefix."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from clsecure.cli import render
from clsecure.cli.commands.list import all_items
from clsecure.cli.options import CleanupOptions, Invocation
from clsecure.errors import ClsecureError, SessionBusyError, SessionNotFoundError, UsageError
from clsecure.installation import require_installation
from clsecure.privileged.client import HelperConnection
from clsecure.session.cleanup_hook import purge
from clsecure.settings.values.output import OutputFormat

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from clsecure.session.inventory import Item
    from clsecure.session.ui import Ui


def execute(invocation: Invocation, ui: Ui) -> int:
    """Choose, ask, remove; what could not be removed is the error at the end."""
    options = invocation.options
    assert isinstance(options, CleanupOptions)  # noqa: S101  # the dispatcher's word
    chosen = _choose(options, all_items(), ui)
    removed, skipped = [], []
    for item in chosen:
        if item.running:
            ui.warn(f"{item.name} is running and stays")
            skipped.append(item.name)
            continue
        if item.holds_work and not _second_yes(item, ui, yes=options.yes):
            skipped.append(item.name)
            continue
        remove(item, ui)
        ui.note(f"removed {item.name}")
        removed.append(item.name)
    if skipped and not removed and options.sessions:
        raise SessionBusyError(
            f"nothing was removed ({', '.join(skipped)})",
            resolution="End what is running; work that is in no branch goes with --yes only",
        )
    if invocation.output is OutputFormat.JSON:
        render.write_json({"removed": removed, "skipped": skipped})
    return 0


def _choose(options: CleanupOptions, items: Sequence[Item], ui: Ui) -> list[Item]:
    if options.sessions:
        return [_named(name, items) for name in options.sessions]
    if not items:
        ui.note("there is nothing to remove")
        return []
    if options.everything:
        idle = [item for item in items if not item.running]
        for item in items:
            ui.note(f"{item.name}  {item.status}{', unimported work' if item.holds_work else ''}")
        if options.yes or ui.confirm_typed(
            f"This removes {len(idle)} sessions with all their files.", "DELETE ALL"
        ):
            return list(items)
        raise UsageError("nothing was removed", resolution="Confirm with --yes, or by typing DELETE ALL")
    if not ui.interactive:
        raise UsageError(
            "there is no terminal to pick on",
            resolution="Name the sessions: clsecure cleanup SESSION…, or clsecure cleanup --all --yes",
        )
    lines = [
        f"{item.name}  {item.project}  {item.status}{', unimported work' if item.holds_work else ''}"
        for item in items
    ]
    return [items[index] for index in ui.choose_many("Which sessions shall be removed?", lines)]


def _named(name: str, items: Sequence[Item]) -> Item:
    found = [
        item
        for item in items
        if name in (item.name, item.session, item.account.name if item.account else "")
        or (item.record is not None and item.record.session_id == name)
    ]
    exact = [item for item in found if item.name == name] or found
    if len(exact) != 1:
        raise SessionNotFoundError(
            f"there is no session {name!r}" if not exact else f"{name!r} could be several sessions",
            resolution="See all of them with: clsecure list",
        )
    return exact[0]


def _second_yes(item: Item, ui: Ui, *, yes: bool) -> bool:
    if yes or ui.confirm(f"{item.name} holds work that is in no branch. Remove it for good?"):
        return True
    ui.warn(f"{item.name} stays: bring its work home with: clsecure import {item.name}")
    return False


def remove(item: Item, ui: Ui) -> None:
    """Remove one worker and what the state directory has of it, after the repository's own clean-up."""
    if item.account is not None:
        installation = require_installation()
        connection = HelperConnection(installation.helper)
        try:
            account = connection.lease(
                project=item.account.project, session=item.account.session, create=False
            )
            warning = purge(
                item.record,
                account,
                connection=connection,
                installation=installation,
                environ=os.environ,
                ui=ui,
            )
            if warning:
                ui.warn(f"{item.name}: {warning}")
            with ui.phase(f"removing {item.name}"):
                connection.remove()
        finally:
            connection.close()
    if item.place.path.is_dir():
        with item.place.locked():
            _last_record(item, ui)
            _forget(item.place.path)


def _last_record(item: Item, ui: Ui) -> None:
    """Sign what is known of a run that was killed: with the session, all else that tells of it goes."""
    if item.record is None or not item.place.run_file.exists():
        return
    from clsecure.session.keeping import RecordOptions
    from clsecure.session.record import record_late
    from clsecure.session.store import state_directory

    record_late(item.place, item.record, RecordOptions(state=state_directory()), finished=None, warn=ui.warn)


def _forget(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise ClsecureError(f"{path} could not be removed", details=str(error)) from error
