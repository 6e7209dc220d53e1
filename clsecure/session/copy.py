"""The private copy: a new one, or the kept one made ready again."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import BinaryIO

from clsecure import logs
from clsecure.agents.request import AgentHome, HomeRequest
from clsecure.backends.api import Backend
from clsecure.errors import ClsecureError, SessionNotFoundError, UsageError
from clsecure.model import SandboxSpec, StartState
from clsecure.session.boxes import recorded
from clsecure.session.cleaning import clean_up_before_removal
from clsecure.session.cleanup_hook import has_hook
from clsecure.session.context import Context
from clsecure.session.portable import inside_of, missing, uses_servers
from clsecure.session.store import SessionRecord, SessionStatus
from clsecure.session.tools import run_tool
from clsecure.session.ui import ResumeQuestion
from clsecure.workspace.clone import forget_files, prepare
from clsecure.workspace.portable import look
from clsecure.workspace.state_file import load, save
from clsecure.workspace.stream import Sent, stream_in

log = logs.get("session")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A private copy that is ready for the agent.

    :param directory: the work tree, inside.
    :param resumed: the agent worked in it before.
    """

    record: SessionRecord
    start: StartState
    directory: PurePosixPath
    resumed: bool


class PrivateCopy:
    """Makes the workspace of one session."""

    def __init__(self, context: Context, backend: Backend, spec: SandboxSpec) -> None:
        self._context, self._backend, self._spec = context, backend, spec
        self._plan, self._ui, self._place = context.plan, context.ui, context.place
        self._before: SessionRecord | None = None

    def ready(self) -> Workspace:
        """Return the kept workspace where the user wants it, else a new one.

        :raises UsageError: work would be lost that nobody gave up.
        """
        record = self._before = self._place.read()
        if self._spec.account.created:
            record = None
        elif record is None:
            raise UsageError(
                "the worker of this session has files, but what they belong to is not known any more",
                details="The state directory was removed while the worker account was not.",
                resolution=f"Remove the worker: clsecure cleanup {self._spec.account.name}; "
                "or start another environment: clsecure --session NAME",
            )
        if self._resume(record):
            assert record is not None  # noqa: S101  # only a record can be resumed
            return self._resumed(record)
        try:
            return self._fresh()
        except BaseException:
            self._undo()
            raise

    def _resume(self, record: SessionRecord | None) -> bool:
        if record is None or not record.resumable:
            if self._plan.resume:
                raise SessionNotFoundError(
                    "there is no kept session to go on with", resolution="See what there is: clsecure list"
                )
            return False
        if self._plan.resume is not None:
            resume = self._plan.resume
        elif record.status is SessionStatus.IMPORTED or not (record.holds_work or self._ui.interactive):
            # Nothing waits in it. A conversation may be worth going on with: that is for a person to say.
            resume = False
        else:
            state = "interrupted" if record.status is SessionStatus.RUNNING else "ended"
            work = "its work is not imported yet" if record.holds_work else "nothing in it waits"
            resume = self._ui.choose_resume(ResumeQuestion(session=record.session, state=f"{state}, {work}"))
        if not resume and record.holds_work:
            self._really_lose(record)
        return resume

    def _really_lose(self, record: SessionRecord) -> None:
        """A fresh start deletes the workspace; work that is nowhere else needs a second yes."""
        question = "The kept session holds work that is in no branch yet. Delete it and start fresh?"
        if not self._ui.confirm(question):
            raise UsageError(
                "the kept session holds work that is in no branch yet",
                resolution=f"Bring it home first: clsecure import {self._place.path.name}; "
                f"or remove it: clsecure cleanup {record.worker_user}",
            )

    def _resumed(self, record: SessionRecord) -> Workspace:
        assert record.workspace is not None  # noqa: S101  # resumable says so
        start, directory = load(self._place.start_file), PurePosixPath(record.workspace)
        home = self._agent_home(directory)
        with self._context.clock.phase("clone_in"), self._ui.phase("preparing the kept workspace"):
            self._unpack(directory, lambda out: stream_in(None, None, out, home_files=home.files))
        record = self._place.write(
            record,
            session_id=self._plan.session_id,
            mode=self._plan.mode.value,
            network=self._plan.network.value,
            agent=self._plan.agent,
            docker_access=self._plan.docker.value,
            **recorded(self._spec.container),
            status=SessionStatus.RUNNING,
            unimported=None,
            verified=False,
            # Of a run whose end nobody looked at, what was before it still counts.
            user_state=None if record.verified else record.user_state,
            updated=time.time(),
        )
        if record.failed_checks:
            self._context.warn("the isolation of this session did not hold before: nothing is imported")
        return Workspace(record=record, start=start, directory=directory, resumed=True)

    def _fresh(self) -> Workspace:
        account, plan, now = self._spec.account, self._plan, time.time()
        repository = self._context.repository
        self._purge()
        directory = PurePosixPath(account.home) / repository.project
        record = self._place.write(
            SessionRecord(
                session_id=plan.session_id,
                project=str(plan.project),
                session=plan.session,
                mode=plan.mode.value,
                network=plan.network.value,
                agent=plan.agent,
                docker_access=plan.docker.value,
                **recorded(self._spec.container),
                worker_user=account.name,
                status=SessionStatus.PREPARING,
                created=now,
                updated=now,
            )
        )
        with self._context.clock.phase("clone_in"):
            if not account.created:
                self._context.connection.reset()
            shutil.rmtree(self._place.base, ignore_errors=True)
            start, sent = self._copied(directory)
            forget_files(start)
        for warning in (*start.warnings, *sent.warnings):
            self._context.warn(warning)
        if start.portable:
            self._ui.note(f"in the copy, commands name what is there inside: {', '.join(start.portable)}")
        record = self._place.write(
            record,
            # A setup that is cut short is done again from the start: what it left is not to be trusted with
            # the user's token, and nothing of the agent's is in it.
            status=SessionStatus.PREPARING if plan.has_setup else SessionStatus.RUNNING,
            workspace=str(directory),
            base_commit=start.top.head,
            base_tree=start.top.base_tree,
            cleanup_hook=has_hook(repository.top),
            cleanup_hook_timeout=plan.cleanup_hook_timeout,
            skip_docker_autodetect=plan.skip_docker_autodetect,
            updated=time.time(),
        )
        return Workspace(record=record, start=start, directory=directory, resumed=False)

    def _purge(self) -> None:
        """Let the workspace that is going to be replaced clean up after itself."""
        if self._before is None or not self._before.resumable or self._spec.account.created:
            return
        clean_up_before_removal(self._context, self._before, self._spec.account)

    def _copied(self, directory: PurePosixPath) -> tuple[StartState, Sent]:
        """Copy the repository while the sandbox comes up that receives it, then send it there."""
        repository = self._context.repository
        made: list[tuple[StartState, AgentHome]] = []

        def make() -> None:
            with self._ui.phase("copying the repository"):
                start = self._portable(
                    prepare(repository, self._place.base, full=self._plan.full_clone), directory
                )
                save(start, self._place.start_file)
                made.append((start, self._agent_home(directory)))

        def write(out: BinaryIO) -> Sent:
            ((start, home),) = made
            with self._ui.phase("making the private copy"):
                return stream_in(start, repository, out, home_files=home.files)

        sent = self._unpack(directory, write, meanwhile=make)
        return made[0][0], sent

    def _portable(self, start: StartState, directory: PurePosixPath) -> StartState:
        """Find out what of the agent files can't work inside, and say what is missing there."""
        inside = inside_of(self._context, directory)
        found = look(start, inside)
        lines = missing(found.servers, inside, self._plan) if uses_servers(self._context) else ()
        return replace(start, portable=found.rewrites, warnings=(*start.warnings, *lines))

    def _agent_home(self, directory: PurePosixPath) -> AgentHome:
        around = self._context.around
        home = self._context.agent.home(
            HomeRequest(
                user_home=around.home,
                worker_home=PurePosixPath(self._spec.account.home),
                workspace=directory,
                environ=around.environ,
                version=self._spec.program.version if self._spec.program else None,
            )
        )
        for line in home.left_out:
            log.info("agent_setting_left_out", what=line)
        return home

    def _unpack(
        self,
        directory: PurePosixPath,
        write: Callable[[BinaryIO], Sent],
        *,
        meanwhile: Callable[[], None] | None = None,
    ) -> Sent:
        sent: list[Sent] = []
        run_tool(
            self._backend,
            self._spec,
            program=self._context.around.installation.unpack,
            arguments=(str(directory),),
            feed=lambda out: sent.append(write(out)),
            meanwhile=meanwhile,
        )
        return sent[0]

    def give_back(self, workspace: Workspace) -> None:
        """Leave things as they were: the agent never ran in it."""
        if workspace.resumed and self._before is not None:
            self._place.write(self._before)
        else:
            self._undo()

    def _undo(self) -> None:
        """A start that failed leaves no half-made copy behind; there is no work yet."""
        if not self._spec.account.created:
            with contextlib.suppress(ClsecureError):
                self._context.connection.reset()
        shutil.rmtree(self._place.base, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._place.start_file.unlink(missing_ok=True)
        record = self._place.read()
        if record is not None:
            with contextlib.suppress(ClsecureError):
                self._place.write(record, status=SessionStatus.DONE, unimported=False, updated=time.time())
