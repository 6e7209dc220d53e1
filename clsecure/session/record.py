"""The record of a session: begun with the agent, signed and kept at its end, or later."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsecure import logs
from clsecure.audit import files
from clsecure.audit.records import is_id
from clsecure.errors import ClsecureError, SessionNotFoundError, StateError, VerificationError
from clsecure.model import SandboxSpec, Verification
from clsecure.session import recorded
from clsecure.session.host_facts import host_facts
from clsecure.session.keeping import RecordOptions, keep, leave_note, load_signing
from clsecure.session.recorded import Json
from clsecure.session.result import RecordResult, SessionResult
from clsecure.session.store import SessionDirectory, SessionRecord

if TYPE_CHECKING:
    from clsecure.session.context import Context
    from clsecure.session.finish import Finished

log = logs.get("record")

_MOST = 4 << 20
_LOAD_AFTER_S = 1.0
_UNFIT = (ClsecureError, OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError)
"""What a state file of any shape may lead to. No session fails for its record, nor does its clean-up."""


class Recorder:
    """The record of one run.

    :param found: what the checks found so far.
    """

    def __init__(self, context: Context, found: Callable[[], Verification]) -> None:
        plan, around = context.plan, context.around
        self._context, self._found = context, found
        self._options = RecordOptions(
            state=around.store.root,
            ssh_key=plan.record_ssh_key,
            notes=plan.record_notes,
            environ=around.environ,
        )
        self._host: dict[str, object] | None = None
        self._spec: SandboxSpec | None = None
        self._said: dict[str, Any] = {}
        self._loading = threading.Timer(_LOAD_AFTER_S, self._beside)

    def close(self) -> None:
        """Wait for what is done beside: its libraries abort the program when its end cuts them off."""
        self._loading.cancel()
        if self._loading.is_alive():
            self._loading.join()

    def begin(self, spec: SandboxSpec, record: SessionRecord, *, resumed: bool) -> None:
        """Write down what is going to run, for the record of a run that is killed.

        :raises StateError: that is not possible.
        """
        self._close_earlier(record)
        self._tell(spec, record, resumed=resumed)
        self._write_down()
        # Takes as long as a sandbox to start: done while the agent works.
        self._loading.daemon = True
        self._loading.start()

    def _tell(self, spec: SandboxSpec, record: SessionRecord, *, resumed: bool) -> None:
        self._spec = spec
        self._said = {
            **_session(record, self._context.place, resumed=resumed),
            "plan": recorded.said(recorded.plan_of(self._context.plan)),
            "sandbox": recorded.said(recorded.sandbox_of(spec)),
        }

    def _write_down(self) -> None:
        files.write(self._context.place.run_file, json.dumps(self._said).encode("ascii"))

    @contextmanager
    def of_refusal(self, spec: SandboxSpec) -> Iterator[None]:
        """Where a check does not let the run begin, sign and keep what is known of it, and say so.

        :param spec: of the sandbox, while nothing nearer is known.
        """
        try:
            yield
        except VerificationError as error:
            verification = self._found()
            if not verification.failed:
                verification = replace(verification, checks=(*verification.checks, *error.checks))
            if self._refuse(self._spec or spec, verification):
                seen = f"clsecure record show {self._context.plan.session_id}"
                error.resolution = f"{error.resolution or ''}\nWhat was found: {seen}".strip()
            raise

    def _refuse(self, spec: SandboxSpec, verification: Verification) -> bool:
        context = self._context
        self.close()
        try:
            there = context.place.read()
            if there is None:
                return False
            record = replace(there, session_id=context.plan.session_id, exit_code=None)
            self._close_earlier(record)
            if not self._said:
                self._tell(spec, record, resumed=there.session_id != record.session_id)
            said = {
                **self._said,
                "host": recorded.said(host_facts(spec.mode, spec.container)),
                "complete": False,
                "verification": recorded.said(recorded.verification_of(verification)),
                "warnings": recorded.said(list(context.warnings)),
            }
            _add_end(said, record, None, refused=True)
            subject = recorded.subject_of(record.session_id, record, None, None)
            keep(said, subject, context.place, self._options, context.warn)
        except _UNFIT as error:
            log.warning("no_record", error=str(error))
            return False
        return True

    def _look_ahead(self) -> None:
        load_signing()
        assert self._spec is not None  # noqa: S101  # begun
        self._host = host_facts(self._spec.mode, self._spec.container)

    def _beside(self) -> None:
        self._look_ahead()
        # For a run that is killed: what it began with, by now.
        self._said |= {
            "host": recorded.said(self._host),
            "verification": recorded.said(recorded.verification_of(self._found())),
        }
        with suppress(*_UNFIT):
            self._write_down()

    def _close_earlier(self, record: SessionRecord) -> None:
        """Sign what is known of a run in the same place that was killed, before this one writes over it."""
        place = self._context.place
        begun = _begun(place)
        if begun is not None and begun["session"]["id"] != record.session_id:
            earlier = replace(record, session_id=begun["session"]["id"], exit_code=None)
            record_late(place, earlier, self._options, finished=None, warn=self._context.warn)

    def conclude(
        self, result: SessionResult, record: SessionRecord, finished: Finished, verification: Verification
    ) -> SessionResult:
        """Sign and keep the record; return the result with it.

        Without a record a session has still ended as it did: that it lacks is a warning.
        """
        context = self._context
        try:
            with context.clock.phase("record"):
                self.close()
                if self._host is None:
                    self._look_ahead()
                made = self._conclude(result, record, finished, verification)
                if finished.imported is not None:
                    git_dir = context.repository.git_dir
                    leave_note(git_dir, finished.imported, made, self._options, context.warn)
        except _UNFIT as error:
            made = None
            words = error.brief if isinstance(error, ClsecureError) else str(error)
            context.warn(f"this session has no record: {words}")
        return replace(
            result,
            record=made,
            duration_s=context.clock.total(),
            phases=dict(context.clock.phases),
            warnings=tuple(context.warnings),
        )

    def _conclude(
        self, result: SessionResult, record: SessionRecord, finished: Finished, verification: Verification
    ) -> RecordResult:
        failed_before = result.verification.failed_before if result.verification else ()
        said = {
            **self._said,
            "host": recorded.said(self._host),
            "complete": True,
            "setup": recorded.said([asdict(step) for step in result.setup]),
            "limits": recorded.said({name: asdict(limit) for name, limit in result.limits.items()}),
            "network": recorded.said(result.egress),
            "verification": recorded.said(recorded.verification_of(verification, failed_before)),
            "timings": {"duration_s": result.duration_s, "phases": result.phases},
            "warnings": recorded.said(list(result.warnings)),
        }
        _add_end(said, record, finished, refused=bool(verification.failed or failed_before))
        subject = recorded.subject_of(record.session_id, record, finished.imported, finished.seen)
        return keep(said, subject, self._context.place, self._options, self._context.warn)


def record_late(
    place: SessionDirectory,
    record: SessionRecord,
    options: RecordOptions,
    *,
    finished: Finished | None,
    git_dir: Path | None = None,
    import_anyway: bool = False,
    verification: Verification | None = None,
    warn: Callable[[str], None],
) -> RecordResult | None:
    """Write down what became of a session after its run: its later import, or its removal.

    Stands on the signed record of the run; where the run was killed before there was one, on what was written
    down when its agent began. The caller holds the session.

    :param finished: what became of the work; None when the session is removed, goes on with another run, or
        was only looked at. Then there is a new record only where there was none, or where more has failed.
    :param git_dir: the user's repository, for the note of an import.
    :param import_anyway: the user took the work home although a check had failed.
    :param verification: the checks that the run itself did not come to; None where it did.
    """
    try:
        known, subject = _known(place, record, options, warn)
        ended = "decisions" in known
        if verification is not None:
            begun = [] if ended else known.get("verification", {}).get("checks", [])
            known["verification"] = recorded.said(recorded.verification_of(verification))
            known["verification"]["checks"][:0] = begun
        checks = known.setdefault("verification", recorded.verification_of(Verification()))
        besides = recorded.failed_besides(record.failed_checks, checks["checks"])
        if finished is None and ended and besides == checks["failed_before"]:
            return None
        checks["failed_before"] = besides
        if finished is not None or not ended:
            _add_end(known, record, finished)
        checks["import_anyway"] = checks["import_anyway"] or import_anyway
        imported = None if finished is None else finished.imported
        if imported is not None or not subject:
            seen = finished.seen if finished else None
            fresh = recorded.subject_of(record.session_id, record, imported, seen)
            subject = [unit for unit in subject if "gitCommit" in unit["digest"]] + fresh
        made = keep(known, subject, place, options, warn)
        if imported is not None and git_dir is not None:
            leave_note(git_dir, imported, made, options, warn)
        return made
    except _UNFIT as error:
        words = error.brief if isinstance(error, ClsecureError) else str(error)
        warn(f"the record of this session could not be written: {words}")
        return None


def _known(
    place: SessionDirectory, record: SessionRecord, options: RecordOptions, warn: Callable[[str], None]
) -> tuple[dict[str, Any], list[Any]]:
    """Return what is known of a run already, and what the record of it was about."""
    from clsecure.audit import envelope
    from clsecure.audit.keys import KeyPair
    from clsecure.audit.records import Records

    try:
        sealed = Records(options.state).read(record.session_id)
        envelope.verify(sealed, KeyPair(options.state).key())
        return dict(sealed.predicate), list(sealed.statement["subject"])
    except SessionNotFoundError:
        pass
    except ClsecureError as error:
        warn(f"the earlier record of this session does not hold ({error.brief}); nothing is taken from it")
    begun = _begun(place)
    if begun is not None and begun["session"]["id"] == record.session_id:
        resumed = begun["session"].get("resumed") is True
        return {**begun, **_session(record, place, resumed=resumed), "complete": False}, []
    return {**_session(record, place, resumed=False), "complete": False}, []


def _begun(place: SessionDirectory) -> dict[str, Any] | None:
    """Return what was written down when the agent of a run began that has no record yet."""
    with suppress(FileNotFoundError, StateError, ValueError, RecursionError):
        begun = json.loads(files.read(place.run_file, most=_MOST))
        if isinstance(begun, dict) and is_id(str(begun.get("session", {}).get("id"))):
            return begun
    return None


def _session(record: SessionRecord, place: SessionDirectory, *, resumed: bool) -> dict[str, Any]:
    session = {
        "id": record.session_id,
        "name": record.session,
        "project": record.project,
        "place": place.path.name,
        "mode": record.mode,
        "network": record.network,
        "agent": record.agent,
        "worker_user": record.worker_user,
        "workspace_made": recorded.stamp(record.created),
        "base_commit": record.base_commit,
        "base_tree": record.base_tree,
        "resumed": resumed,
    }
    return {"session": recorded.said(session)}


def _add_end(
    said: dict[str, Any], record: SessionRecord, finished: Finished | None, *, refused: bool = False
) -> None:
    """Add what was decided, and what the work was.

    :param refused: nothing was decided: a check had failed.
    """
    decision: Json = {"at": recorded.stamp(time.time()), "action": "none", "kept": False}
    if finished is not None:
        action = "discard" if finished.discarded else "keep" if finished.imported is None else "import"
        decision |= {"action": action, "kept": finished.kept}
        if finished.imported is not None:
            decision |= {"branch": finished.imported.branch, "tip": finished.imported.tip}
        if finished.seen is not None:
            said["work"] = recorded.said(recorded.work_of(finished.seen))
            said["findings"] = recorded.said(recorded.findings_of(finished.seen))
    if refused:
        decision["action"] = "refuse"
    said["exit_code"] = record.exit_code
    said["decisions"] = [*said.get("decisions", []), recorded.said(decision)]
    said["timeline"] = [*said.get("timeline", []), *recorded.timeline()][-recorded.MAX_EVENTS :]
