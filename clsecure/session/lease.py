"""The worker account of a session: held while it runs, removed again, or left with the work in it."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from clsecure import logs
from clsecure.errors import ClsecureError, StateError
from clsecure.interrupts import EndedBySignal, deferred
from clsecure.model import WorkerAccount
from clsecure.privileged.client import HelperConnection
from clsecure.session.context import Context
from clsecure.session.store import SessionRecord, SessionStatus

log = logs.get("session")


@contextmanager
def leased(context: Context, *, happened: Callable[[], bool]) -> Iterator[WorkerAccount]:
    """Hold the worker account; one that was made for a session that then did not happen is removed.

    An end that is forced keeps the work.

    :param happened: there is a workspace that is worth keeping.
    """
    plan = context.plan
    known, account = context.place.read() is not None, None
    try:
        with deferred(), context.ui.phase("preparing the worker account"):
            account = context.connection.lease(project=str(plan.project), session=plan.session, create=True)
        log.info("account_leased", name=account.name, uid=account.uid, created=account.created)
        yield account
    except BaseException as error:
        made = account is not None and account.created and not happened()
        if made:
            _remove(context)
        if made or not (known or happened()):
            shutil.rmtree(context.place.path, ignore_errors=True)
        elif isinstance(error, KeyboardInterrupt | EndedBySignal):
            _keep_work(context)
        raise


def note_kept(context: Context, record: SessionRecord) -> None:
    """Write down that work waits. On a full disk the last known state says so as well: interrupted."""
    with contextlib.suppress(StateError):
        context.place.write(record, status=SessionStatus.KEPT, unimported=None, updated=time.time())


def _remove(context: Context) -> None:
    """Remove the account over a connection of its own: on the other one an answer may be under way."""
    plan = context.plan
    context.connection.close()
    with contextlib.suppress(ClsecureError):
        connection = HelperConnection(context.around.installation.helper)
        try:
            connection.lease(project=str(plan.project), session=plan.session, create=False)
            connection.remove()
        finally:
            connection.close()


def _keep_work(context: Context) -> None:
    """Say where the work of a session is that was ended from outside."""
    place = context.place
    record = place.read()
    if record is None or not record.holds_work:
        return
    if record.status is SessionStatus.RUNNING:
        note_kept(context, record)
    context.ui.warn(f"the work is kept: go on with clsecure --resume, or clsecure import {place.path.name}")
