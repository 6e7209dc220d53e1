"""The way of a session, phase by phase. Every acquisition registers its release at the same place."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from clsecure import logs
from clsecure.agents.find import AgentBinary, find_agent
from clsecure.agents.spec import find_spec
from clsecure.backends.choose import backend_for
from clsecure.backends.local import LocalBackend
from clsecure.egress.client import Gateway, start_gateway
from clsecure.errors import EXIT_VERIFICATION, AgentError, ClsecureError, NotStartedError, StateError
from clsecure.interrupts import EndedBySignal, deferred
from clsecure.model import (
    ContainerSpec,
    DockerAccess,
    IsolationMode,
    KeptProgram,
    NetworkPolicy,
    SandboxSpec,
    Verification,
    WorkerAccount,
)
from clsecure.privileged.client import HelperConnection
from clsecure.session.checks import all_failed, not_checked
from clsecure.session.cleanup_hook import CleanupLevel, clean_up, is_needed, purge
from clsecure.session.context import Context, Surroundings
from clsecure.session.copy import PrivateCopy, Workspace
from clsecure.session.execution import Execution
from clsecure.session.limits import effective, named
from clsecure.session.network import Arrangement, arrange
from clsecure.session.plan import SessionPlan
from clsecure.session.record import Recorder
from clsecure.session.relay import terminal_size
from clsecure.session.result import (
    ContainerResult,
    EgressResult,
    SessionResult,
    SetupStep,
    VerificationResult,
)
from clsecure.session.store import SessionRecord, SessionStatus
from clsecure.session.ui import Ui
from clsecure.session.verification import Place, Verifier, workspace_name
from clsecure.workspace.repository import Repository

if TYPE_CHECKING:
    from clsecure.egress.full import FullNetwork
    from clsecure.session.finish import Finished
    from clsecure.session.limits import LimitResult
    from clsecure.session.setup import SetupWork
    from clsecure.verify.userside import UserSide

log = logs.get("session")


class SessionRunner:
    """One session from the plan to the result."""

    def __init__(
        self,
        plan: SessionPlan,
        repository: Repository,
        ui: Ui,
        around: Surroundings,
        connection: HelperConnection,
        *,
        asking: Callable[[], None] = lambda: None,
    ) -> None:
        self._asking = asking
        self.context = Context(
            plan=plan,
            repository=repository,
            ui=ui,
            around=around,
            connection=connection,
            agent=find_spec(plan.agent, () if plan.own_agent is None else (plan.own_agent,)),
            place=around.store.session(str(plan.project), plan.session),
            warnings=list(plan.warnings),
        )
        self.workspace: Workspace | None = None
        self.setup: tuple[SetupStep, ...] = ()

    def run(self) -> SessionResult:
        """Go the whole way.

        :raises ClsecureError: the session did not happen, or its work waits in the kept session.
        """
        context, plan = self.context, self.context.plan
        gateway = None
        with ExitStack() as stack:
            with context.clock.phase("provision"):
                container = self._container()
                binary = self._binary(container)
                work = self._setup_work()
                network = arrange(context)
                full = stack.enter_context(_full_network()) if plan.network is NetworkPolicy.FULL else None
                context.place.make()
                stack.enter_context(context.place.locked())
                logs.record(context.place.events)
                account = stack.enter_context(self._leased())
                if network.gateway is not None:
                    from clsecure.egress.journal import begin_run

                    begin_run(context.place.egress_log, plan.session_id)
                    gateway = stack.enter_context(start_gateway(network.gateway))
                backend = backend_for(plan.mode, context.connection, container)
                spec = SandboxSpec(
                    mode=plan.mode,
                    account=account,
                    mounts=plan.mounts,
                    program=self._keep(binary),
                    container=container,
                )
            context.ui.use_tag(plan.tag)
            verifier = stack.enter_context(self._verifier(backend))
            verifier.prepare()
            copy = PrivateCopy(context, backend, spec)
            self.workspace = workspace = copy.ready()
            self.workspace = workspace = self._noted(workspace)
            agents_spec = replace(
                spec,
                listener=gateway is not None,
                gateway_token=gateway.token if gateway is not None else None,
                terminal=terminal_size(0) if context.around.terminal else None,
                network=plan.network,
                network_namespace=full.namespace if full else None,
                allow_private=plan.allow_private,
                limits=effective(plan.limits),
                required_limits=named(plan.limits),
                disk_reserve=True,
                docker=plan.docker,
                workspace=str(workspace.directory) if plan.docker is DockerAccess.OWN else None,
            )
            execution, recorder = None, Recorder(context)
            try:
                if work is not None and not workspace.resumed:
                    workspace = self._set_up(work, workspace, backend, agents_spec, gateway)
                execution = Execution(
                    context,
                    agents_spec,
                    workspace,
                    network=network,
                    gateway=gateway,
                    verifier=verifier,
                )
                status = execution.run(
                    backend, meanwhile=partial(self._meanwhile, recorder, agents_spec, workspace)
                )
            except BaseException as error:
                if execution is None or not execution.begun or isinstance(error, NotStartedError):
                    copy.give_back(workspace)
                    self.workspace = workspace if workspace.resumed else None
                raise
            if not verifier.found.verification.failed:
                # Nothing more runs in a sandbox that is not what was promised.
                self._clean_up(workspace, backend, agents_spec, gateway)
            egress = _traffic(context, network, gateway) if gateway is not None else None
            if full is not None and full.ended:
                context.warn(f"{full.connector} ended before the session did: nothing went out after that")
                again = stack.enter_context(_full_network())
                agents_spec = replace(agents_spec, network_namespace=again.namespace)
            record = context.place.write(
                workspace.record,
                exit_code=status,
                updated=time.time(),
                failed_checks=all_failed(workspace.record, verifier.found.verification),
            )
            record, verification = self._verify(verifier, agents_spec, record)
            if record.failed_checks:
                status, finished = EXIT_VERIFICATION, self._refuse(record)
            else:
                finished = self._finish(backend, spec, record, workspace)
            result = self._result(
                record,
                status,
                finished,
                egress,
                limits=execution.limits,
                container=container,
                verification=VerificationResult.of(verification, workspace.record.failed_checks),
            )
            return recorder.conclude(result, record, finished, verification)

    @contextmanager
    def _leased(self) -> Iterator[WorkerAccount]:
        """Hold the worker account; one that was made for a session that then did not happen is removed.

        An end that is forced keeps the work.
        """
        context, plan = self.context, self.context.plan
        known, account = context.place.read() is not None, None
        try:
            with deferred(), context.ui.phase("preparing the worker account"):
                account = context.connection.lease(
                    project=str(plan.project), session=plan.session, create=True
                )
            log.info("account_leased", name=account.name, uid=account.uid, created=account.created)
            yield account
        except BaseException as error:
            made = account is not None and account.created and self.workspace is None
            if made:
                self._remove_worker()
            if made or not (known or self.workspace):
                shutil.rmtree(context.place.path, ignore_errors=True)
            elif isinstance(error, KeyboardInterrupt | EndedBySignal):
                self._keep_work()
            raise

    def _remove_worker(self) -> None:
        """Remove the account over a connection of its own: on the other one an answer may be under way."""
        context, plan = self.context, self.context.plan
        context.connection.close()
        with contextlib.suppress(ClsecureError):
            connection = HelperConnection(context.around.installation.helper)
            try:
                connection.lease(project=str(plan.project), session=plan.session, create=False)
                connection.remove()
            finally:
                connection.close()

    def _keep_work(self) -> None:
        """Say where the work of a session is that was ended from outside."""
        place = self.context.place
        record = place.read()
        if record is None or not record.holds_work:
            return
        if record.status is SessionStatus.RUNNING:
            self._wait(record)
        self.context.ui.warn(
            f"the work is kept: go on with clsecure --resume, or clsecure import {place.path.name}"
        )

    def _wait(self, record: SessionRecord) -> None:
        """Write down that work waits. On a full disk the last known state says so as well: interrupted."""
        with contextlib.suppress(StateError):
            self.context.place.write(record, status=SessionStatus.KEPT, unimported=None, updated=time.time())

    # ------------------------------------------------------------ what is needed, before anything is made

    def _container(self) -> ContainerSpec | None:
        """Settle the image of container mode, and have it where its engine finds it."""
        plan, around = self.context.plan, self.context.around
        if plan.mode is not IsolationMode.CONTAINER:
            return None
        from clsecure.session.images import WantedContainer, container_for

        return container_for(
            WantedContainer(
                engine=plan.engine, image=plan.image, runtime=plan.runtime, mirror=plan.image_mirror
            ),
            installation=around.installation,
            state=around.store.root,
            environ=around.environ,
            ui=self.context.ui,
        )

    def _binary(self, container: ContainerSpec | None) -> AgentBinary | None:
        """Find the agent's program; not needed for a shell or a command of the user's, but given if there.

        What an image brings along is not looked for on the machine.
        """
        context = self.context
        in_image = container is not None and context.agent.name in container.image.agents
        if not context.agent.executables or in_image:
            return None
        try:
            exclude = (context.repository.top,)
            return find_agent(context.agent, context.around.environ, context.around.home, exclude=exclude)
        except AgentError:
            if context.runs_agent:
                raise
            return None

    def _keep(self, binary: AgentBinary | None) -> KeptProgram | None:
        """Have the program in root's own store; what runs is what was hashed."""
        if binary is None:
            return None
        from clsecure.agents.digests import cache_directory, sha256_of

        context = self.context
        cache = cache_directory(context.around.environ, context.around.home)
        with context.ui.phase(f"making {context.agent.title} available"):
            digest = sha256_of(binary.path, cache=cache)
            fd = os.open(binary.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                context.connection.keep_agent(executable=fd, sha256=digest)
            finally:
                os.close(fd)
        log.info("agent_kept", name=context.agent.name, version=binary.version, sha256=digest)
        return KeptProgram(name=context.agent.executables[0], sha256=digest, version=binary.version)

    # ------------------------------------------------------------ what else runs inside

    def _setup_work(self) -> SetupWork | None:
        """Read what the setup is made from, before anything is made."""
        if not self.context.plan.has_setup:
            return None
        from clsecure.session.setup import setup_work

        return setup_work(self.context)

    def _set_up(
        self,
        work: SetupWork,
        workspace: Workspace,
        backend: LocalBackend,
        spec: SandboxSpec,
        gateway: Gateway | None,
    ) -> Workspace:
        """Prepare a fresh workspace for the agent."""
        from clsecure.session.setup import Setup
        from clsecure.session.setup_network import SessionNetwork

        network = SessionNetwork(gateway=gateway, namespace=spec.network_namespace)
        ready, self.setup = Setup(self.context, backend, spec, network).run(work, workspace)
        return ready

    def _clean_up(
        self, workspace: Workspace, backend: LocalBackend, spec: SandboxSpec, gateway: Gateway | None
    ) -> None:
        """Run the repository's cleanup hook: the agent is dead, and what the hook writes comes home, too."""
        context = self.context
        if not is_needed(workspace.record, CleanupLevel.STOP):
            return
        log_file = context.place.path / "cleanup.log"
        log_file.unlink(missing_ok=True)
        with context.clock.phase("cleanup"):
            warning = clean_up(
                workspace.record,
                CleanupLevel.STOP,
                backend=backend,
                spec=spec,
                installation=context.around.installation,
                environ=context.around.environ,
                ui=context.ui,
                # With a full network programs go out by themselves.
                gateway=None if context.plan.network is NetworkPolicy.FULL else gateway,
                plan=context.plan,
                log_file=log_file,
            )
        if warning:
            context.warn(warning)

    def _purge(self, record: SessionRecord, account: WorkerAccount) -> None:
        """Run it once more, offline, before the workspace is deleted."""
        context = self.context
        warning = purge(
            record,
            account,
            connection=context.connection,
            installation=context.around.installation,
            environ=context.around.environ,
            ui=context.ui,
        )
        if warning:
            context.warn(warning)

    # ------------------------------------------------------------ the end

    def _verifier(self, backend: LocalBackend) -> AbstractContextManager[Verifier]:
        context, around = self.context, self.context.around
        place = Place(
            home=around.home, state=around.store.root, environ=around.environ, session=context.plan.session
        )
        return contextlib.closing(Verifier(backend, context.connection, around.installation, place))

    def _verify(
        self, verifier: Verifier, spec: SandboxSpec, record: SessionRecord
    ) -> tuple[SessionRecord, Verification]:
        """Look for the last time, and write down how the isolation stood."""
        try:
            with self.context.clock.phase("verify_end"), self.context.ui.phase("verifying the isolation"):
                verifier.end(
                    spec,
                    workspace=workspace_name(record),
                    user_side=partial(self._user_side, spec, record),
                )
        except BaseException as error:
            # What failed until then counts, whoever looks the next time.
            with contextlib.suppress(StateError):
                record = self.context.place.write(
                    record, failed_checks=all_failed(record, verifier.found.verification)
                )
            if isinstance(error, ClsecureError | OSError):
                self._wait(record)
            raise
        verification = verifier.found.verification
        for warning in not_checked(verification):
            self.context.warn(warning)
        record = self.context.place.write(
            record,
            verified=not verification.failed,
            failed_checks=all_failed(record, verifier.found.verification),
            updated=time.time(),
        )
        return record, verification

    def _meanwhile(self, recorder: Recorder, spec: SandboxSpec, workspace: Workspace) -> None:
        """While the sandbox comes up: begin the record, import what the end needs."""
        import clsecure.session.finish
        import clsecure.session.traffic  # noqa: F401

        recorder.begin(spec, workspace.record, resumed=workspace.resumed)

    def _noted(self, workspace: Workspace) -> Workspace:
        """Note how the user's side stands before anything of the repository's runs inside."""
        from clsecure.verify.userstate import user_state

        context = self.context
        state = workspace.record.user_state or user_state(context.repository, context.around.home)
        return replace(workspace, record=context.place.write(workspace.record, user_state=state))

    def _user_side(self, spec: SandboxSpec, record: SessionRecord) -> UserSide:
        from clsecure.verify.userside import look

        context = self.context
        return look(context.repository, context.around.home, spec, record.user_state)

    def _refuse(self, record: SessionRecord) -> Finished:
        """Keep a session whose isolation did not hold."""
        from clsecure.session.finish import Finished

        self._wait(record)
        place = self.context.place.path.name
        self.context.warn("the isolation did not hold; nothing is imported, and the session is kept")
        for line in record.failed_checks:
            self.context.warn(line)
        self.context.ui.note(f"look at its work with: clsecure diff {place}")
        self.context.ui.note(f"take it all the same with: clsecure import {place} --import-anyway")
        return Finished(imported=None, kept=True)

    def _finish(
        self, backend: LocalBackend, spec: SandboxSpec, record: SessionRecord, workspace: Workspace
    ) -> Finished:
        from clsecure.session.finish import Decision, Finish

        context, plan = self.context, self.context.plan
        finish = Finish(
            ui=context.ui,
            clock=context.clock,
            backend=backend,
            spec=spec,
            place=context.place,
            start=workspace.start,
            exporter=context.around.installation.export,
            author=context.repository.identity,
            started=record.created,
            asking=self._asking,
        )
        decision = Decision(
            on_finish=plan.on_finish,
            branch=plan.branch_name,
            chosen=plan.branch is not None,
            message=plan.commit_message,
        )
        try:
            finished = finish.conclude(record, decision)
        except ClsecureError:
            self._wait(record)
            context.ui.warn(f"the work is kept; try again with: clsecure import {context.place.path.name}")
            raise
        if finished.discarded:
            self._purge(record, spec.account)
            with context.ui.phase("deleting the workspace"):
                context.connection.reset()
                shutil.rmtree(context.place.base, ignore_errors=True)
        context.warnings.extend(finished.warnings)
        return finished

    def _result(
        self,
        record: SessionRecord,
        status: int,
        finished: Finished,
        egress: EgressResult | None,
        *,
        limits: Mapping[str, LimitResult],
        container: ContainerSpec | None,
        verification: VerificationResult,
    ) -> SessionResult:
        context, plan = self.context, self.context.plan
        log.info("session_finished", duration_s=context.clock.total(), phases=context.clock.phases)
        return SessionResult(
            session_id=plan.session_id,
            project=str(plan.project),
            session=plan.session,
            mode=plan.mode.value,
            network=plan.network.value,
            worker_user=record.worker_user,
            agent=plan.agent,
            exit_code=status,
            base_commit=record.base_commit,
            base_tree=record.base_tree,
            duration_s=context.clock.total(),
            phases=dict(context.clock.phases),
            setup=self.setup,
            egress=egress,
            limits=dict(limits),
            docker=plan.docker.value,
            container=ContainerResult.of(container) if container else None,
            verification=verification,
            import_=finished.imported,
            kept=finished.kept,
            warnings=tuple(context.warnings),
        )


def _traffic(context: Context, network: Arrangement, gateway: Gateway) -> EgressResult:
    """End the gateway, and say what went through it."""
    from clsecure.session.traffic import report

    return report(context, gateway.close(), api_host=network.api_host)


def _full_network() -> FullNetwork:
    from clsecure.egress.full import FullNetwork

    return FullNetwork()


def is_terminal() -> bool:
    """Tell whether the agent can be talked to: standard input and output are terminals."""
    return sys.stdin is not None and sys.stdout is not None and os.isatty(0) and os.isatty(1)
