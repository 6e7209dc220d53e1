"""Working on a kept session later: its import, its diff."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clsecure import logs
from clsecure.backends.choose import backend_for
from clsecure.errors import SessionNotFoundError
from clsecure.installation import Installation
from clsecure.privileged.client import HelperConnection
from clsecure.session.boxes import recorded_spec
from clsecure.session.clock import Clock
from clsecure.session.finish import Finish
from clsecure.session.store import SessionRecord, Store
from clsecure.session.ui import Ui
from clsecure.workspace.repository import discover
from clsecure.workspace.state_file import load


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSession:
    """A kept session, held for as long as the context lasts."""

    record: SessionRecord
    finish: Finish


@contextmanager
def kept_session(
    name: str, *, ui: Ui, store: Store, installation: Installation, project: str | None
) -> Iterator[KeptSession]:
    """Hold a kept session.

    :param project: full path of the project that the user stands in: its sessions are found by name.
    :raises SessionNotFoundError: there is none of that name, or nothing in it waits.
    :raises SessionBusyError: it is running.
    """
    place, record = store.find(name, project=project)
    with place.locked():
        record = place.read() or record
        if not record.resumable:
            raise SessionNotFoundError(
                f"session {place.path.name} has no workspace any more",
                resolution="See all sessions with: clsecure list",
            )
        logs.record(place.events)
        connection = HelperConnection(installation.helper)
        try:
            account = connection.lease(project=record.project, session=record.session, create=False)
            spec = recorded_spec(record, account)
            repository = discover(Path(record.project))
            yield KeptSession(
                record=record,
                finish=Finish(
                    ui=ui,
                    clock=Clock(),
                    backend=backend_for(spec.mode, connection, spec.container),
                    spec=spec,
                    place=place,
                    start=load(place.start_file),
                    exporter=installation.export,
                    author=repository.identity,
                    started=record.created,
                ),
            )
        finally:
            connection.close()
