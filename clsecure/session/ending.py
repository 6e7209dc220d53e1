"""The end of a session whose agent is dead: how the isolation stood, and what becomes of the work."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from clsecure.errors import ClsecureError, StateError
from clsecure.model import SandboxSpec, Verification
from clsecure.session.checks import all_failed, not_checked
from clsecure.session.cleaning import clean_up_before_removal
from clsecure.session.context import Context
from clsecure.session.copy import Workspace
from clsecure.session.lease import note_kept
from clsecure.session.provision import Provision
from clsecure.session.store import SessionRecord
from clsecure.session.verification import Verifier, workspace_name

if TYPE_CHECKING:
    from clsecure.session.finish import Finished
    from clsecure.verify.userside import UserSide


def verify(
    context: Context, verifier: Verifier, spec: SandboxSpec, record: SessionRecord
) -> tuple[SessionRecord, Verification]:
    """Look for the last time, and write down how the isolation stood.

    :raises ClsecureError: nobody could look; the work waits.
    """
    try:
        with context.clock.phase("verify_end"), context.ui.phase("verifying the isolation"):
            verifier.end(
                spec,
                workspace=workspace_name(record),
                user_side=partial(_user_side, context, spec, record),
            )
    except BaseException as error:
        # What failed until then counts, whoever looks the next time.
        with contextlib.suppress(StateError):
            record = context.place.write(
                record, failed_checks=all_failed(record, verifier.found.verification)
            )
        if isinstance(error, ClsecureError | OSError):
            note_kept(context, record)
        raise
    verification = verifier.found.verification
    for warning in not_checked(verification):
        context.warn(warning)
    record = context.place.write(
        record,
        verified=not verification.failed,
        failed_checks=all_failed(record, verifier.found.verification),
        updated=time.time(),
    )
    return record, verification


def refuse(context: Context, record: SessionRecord) -> Finished:
    """Keep a session whose isolation did not hold."""
    from clsecure.session.finish import Finished

    note_kept(context, record)
    place = context.place.path.name
    context.warn("the isolation did not hold; nothing is imported, and the session is kept")
    for line in record.failed_checks:
        context.warn(line)
    context.ui.note(f"look at its work with: clsecure diff {place}")
    context.ui.note(f"take it all the same with: clsecure import {place} --import-anyway")
    return Finished(imported=None, kept=True)


def finish(
    context: Context,
    provision: Provision,
    workspace: Workspace,
    record: SessionRecord,
    *,
    asking: Callable[[], None],
) -> Finished:
    """Bring the work home, keep it or delete it, as the user says.

    :param asking: see :class:`.finish.Finish`.
    :raises ClsecureError: it can't come home; it waits in the kept session.
    """
    from clsecure.session.finish import Decision, Finish

    plan = context.plan
    end = Finish(
        ui=context.ui,
        clock=context.clock,
        backend=provision.backend,
        spec=provision.spec,
        place=context.place,
        start=workspace.start,
        exporter=context.around.installation.export,
        author=context.repository.identity,
        started=record.created,
        asking=asking,
    )
    decision = Decision(
        on_finish=plan.on_finish,
        branch=plan.branch_name,
        chosen=plan.branch is not None,
        message=plan.commit_message,
    )
    try:
        finished = end.conclude(record, decision)
    except ClsecureError:
        note_kept(context, record)
        context.ui.warn(f"the work is kept; try again with: clsecure import {context.place.path.name}")
        raise
    if finished.discarded:
        clean_up_before_removal(context, record, provision.spec.account)
        with context.ui.phase("deleting the workspace"):
            context.connection.reset()
            shutil.rmtree(context.place.base, ignore_errors=True)
    context.warnings.extend(finished.warnings)
    return finished


def _user_side(context: Context, spec: SandboxSpec, record: SessionRecord) -> UserSide:
    from clsecure.verify.userside import look

    return look(context.repository, context.around.home, spec, record.user_state)
