"""Working on a kept session later: its import, its diff."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from clsecure import logs
from clsecure.errors import SessionNotFoundError, VerificationError
from clsecure.installation import Installation
from clsecure.model import Verification
from clsecure.privileged.client import HelperConnection
from clsecure.session.boxes import recorded_spec
from clsecure.session.checks import all_failed, not_checked
from clsecure.session.clock import Clock
from clsecure.session.finish import Finish
from clsecure.session.loading import loading_backend
from clsecure.session.store import SessionRecord, Store
from clsecure.session.ui import Ui
from clsecure.workspace.repository import discover
from clsecure.workspace.state_file import load


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSession:
    """A kept session, held for as long as the context lasts."""

    record: SessionRecord
    finish: Finish
    verify: Callable[[], Verification]
    """Looks at how the isolation stands now."""

    @property
    def tag(self) -> str:
        """What is typed to take the work home although a check failed."""
        return self.record.session_id[-6:]

    def verified(self) -> tuple[KeptSession, Verification | None]:
        """Make up for the checks of a run that was cut short, and write down how they stood.

        None where the run has made them itself.
        """
        if self.record.verified or self.record.failed_checks:
            return self, None
        return self.looked_again()

    def looked_again(self) -> tuple[KeptSession, Verification]:
        """Look how the isolation stands now. What fails counts from here on, like a failure of the run."""
        found = self.verify()
        for warning in not_checked(found):
            self.finish.ui.warn(warning)
        failed = all_failed(self.record, found)
        if found.failed or not (self.record.verified or failed):
            ended = self.record.verified or not failed
            changed = {"verified": ended, "failed_checks": failed, "updated": time.time()}
            return replace(self, record=self.finish.place.write(self.record, **changed)), found
        return self, found

    def require_verified(self) -> None:
        """Refuse work of a session whose isolation did not hold.

        :raises VerificationError: a check failed; the details say what was expected and observed.
        """
        if not self.record.failed_checks:
            return
        name = self.finish.place.path.name
        raise VerificationError(
            "the isolation of this session did not hold; nothing is imported",
            details="\n".join(self.record.failed_checks),
            resolution=f"Look at its work: clsecure diff {name}; take it all the same: "
            f"clsecure import {name} --import-anyway; or remove it: clsecure cleanup {name}",
        )


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
            backend = loading_backend(
                spec.mode,
                connection,
                spec.container,
                installation=installation,
                state=store.root,
                environ=os.environ,
                ui=ui,
            )

            def verify() -> Verification:
                from clsecure.session.verification import Place, Verifier, verify_session

                around = Place(home=Path.home(), state=store.root, environ=os.environ, session=record.session)
                verifier = Verifier(backend, connection, installation, around)
                with ui.phase("verifying the isolation"), closing(verifier):
                    return verify_session(record, repository, verifier, spec)

            yield KeptSession(
                record=record,
                verify=verify,
                finish=Finish(
                    ui=ui,
                    clock=Clock(),
                    backend=backend,
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
