"""The way of a session, phase by phase. Every acquisition registers its release at the same place."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from clsecure import logs
from clsecure.agents.spec import find_spec
from clsecure.backends.local import LocalBackend
from clsecure.egress.client import Gateway
from clsecure.errors import EXIT_VERIFICATION, NotStartedError
from clsecure.model import ContainerSpec, SandboxSpec
from clsecure.privileged.client import HelperConnection
from clsecure.session import ending
from clsecure.session.checks import all_failed
from clsecure.session.cleaning import clean_up_after_agent
from clsecure.session.context import Context, Surroundings
from clsecure.session.copy import PrivateCopy, Workspace
from clsecure.session.execution import Execution
from clsecure.session.network import Arrangement
from clsecure.session.plan import SessionPlan
from clsecure.session.provision import Provision, agents_spec, full_network, provide
from clsecure.session.record import Recorder
from clsecure.session.result import (
    ContainerResult,
    EgressResult,
    SessionResult,
    SetupStep,
    VerificationResult,
)
from clsecure.session.store import SessionRecord
from clsecure.session.ui import Ui
from clsecure.session.verification import Place, Verifier
from clsecure.workspace.repository import Repository

if TYPE_CHECKING:
    from clsecure.session.finish import Finished
    from clsecure.session.limits import LimitResult
    from clsecure.session.setup import SetupWork

log = logs.get("session")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    """What the agent ran in, and how it ended."""

    spec: SandboxSpec
    workspace: Workspace
    status: int
    limits: Mapping[str, LimitResult]


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
        context = self.context
        with ExitStack() as stack:
            provision = provide(context, stack, happened=lambda: self.workspace is not None)
            backend, gateway, full = provision.backend, provision.gateway, provision.full
            context.ui.use_tag(context.plan.tag)
            verifier = stack.enter_context(self._verifier(backend))
            verifier.prepare()
            recorder = Recorder(context, lambda: verifier.found.verification)
            stack.callback(recorder.close)
            with recorder.of_refusal(provision.spec):
                ran = self._run_agent(provision, verifier, recorder)
            spec, workspace = ran.spec, ran.workspace
            if not verifier.found.verification.failed:
                # Nothing more runs in a sandbox that is not what was promised.
                clean_up_after_agent(context, workspace.record, backend, spec, gateway)
            egress = _traffic(context, provision.network, gateway) if gateway is not None else None
            if full is not None and full.ended:
                context.warn(f"{full.connector} ended before the session did: nothing went out after that")
                again = stack.enter_context(full_network())
                spec = replace(spec, network_namespace=again.namespace)
            record = context.place.write(
                workspace.record,
                exit_code=ran.status,
                updated=time.time(),
                failed_checks=all_failed(workspace.record, verifier.found.verification),
            )
            record, verification = ending.verify(context, verifier, spec, record)
            if record.failed_checks:
                finished = ending.refuse(context, record)
            else:
                finished = ending.finish(context, provision, workspace, record, asking=self._asking)
            result = self._result(
                record,
                EXIT_VERIFICATION if record.failed_checks else ran.status,
                finished,
                egress,
                limits=ran.limits,
                container=provision.container,
                verification=VerificationResult.of(verification, workspace.record.failed_checks),
            )
            return recorder.conclude(result, record, finished, verification)

    def _run_agent(self, provision: Provision, verifier: Verifier, recorder: Recorder) -> _Ran:
        """Make the workspace ready and run the agent in it; leave things as they were where it never ran."""
        context, backend, gateway = self.context, provision.backend, provision.gateway
        copy = PrivateCopy(context, backend, provision.spec)
        self.workspace = workspace = copy.ready()
        self.workspace = workspace = self._noted(workspace)
        spec = agents_spec(context, provision, workspace)
        execution = None
        try:
            if provision.setup is not None and not workspace.resumed:
                workspace = self._set_up(provision.setup, workspace, backend, spec, gateway)
            execution = Execution(
                context,
                spec,
                workspace,
                network=provision.network,
                gateway=gateway,
                verifier=verifier,
            )
            status = execution.run(backend, meanwhile=partial(_meanwhile, recorder, spec, workspace))
        except BaseException as error:
            if execution is None or not execution.begun or isinstance(error, NotStartedError):
                copy.give_back(workspace)
                self.workspace = workspace if workspace.resumed else None
            raise
        return _Ran(spec=spec, workspace=workspace, status=status, limits=execution.limits)

    def _verifier(self, backend: LocalBackend) -> AbstractContextManager[Verifier]:
        context, around = self.context, self.context.around
        place = Place(
            home=around.home, state=around.store.root, environ=around.environ, session=context.plan.session
        )
        return contextlib.closing(Verifier(backend, context.connection, around.installation, place))

    def _noted(self, workspace: Workspace) -> Workspace:
        """Note how the user's side stands before anything of the repository's runs inside."""
        from clsecure.verify.userstate import user_state

        context = self.context
        state = workspace.record.user_state or user_state(context.repository, context.around.home)
        return replace(workspace, record=context.place.write(workspace.record, user_state=state))

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


def _meanwhile(recorder: Recorder, spec: SandboxSpec, workspace: Workspace) -> None:
    """While the sandbox comes up: begin the record, import what the end needs."""
    import clsecure.session.finish
    import clsecure.session.traffic  # noqa: F401

    recorder.begin(spec, workspace.record, resumed=workspace.resumed)


def _traffic(context: Context, network: Arrangement, gateway: Gateway) -> EgressResult:
    """End the gateway, and say what went through it."""
    from clsecure.session.traffic import report

    return report(context, gateway.close(), api_host=network.api_host)
