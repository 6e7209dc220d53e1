"""The way of a session, phase by phase. Every acquisition registers its release at the same place."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from clsecure import logs
from clsecure.agents.find import AgentBinary, find_agent
from clsecure.agents.request import AgentHome, HomeRequest
from clsecure.agents.spec import AgentSpec, environment, find_spec
from clsecure.backends.api import Backend
from clsecure.backends.local import LocalBackend, LocalSandbox
from clsecure.egress.client import Gateway, start_gateway
from clsecure.egress.provider import find_credential, find_provider
from clsecure.egress.wire import GatewayConfig
from clsecure.errors import (
    EXIT_TIME_LIMIT,
    AgentError,
    ClsecureError,
    EgressError,
    HelperError,
    SessionNotFoundError,
    UsageError,
)
from clsecure.installation import Installation
from clsecure.model import (
    CheckStatus,
    IsolationMode,
    KeptProgram,
    NetworkPolicy,
    SandboxCommand,
    SandboxSpec,
    StartState,
    WorkerAccount,
)
from clsecure.privileged.client import HelperConnection
from clsecure.session.clock import Clock
from clsecure.session.finish import Decision, Finish, Finished
from clsecure.session.plan import SessionPlan
from clsecure.session.relay import PipeRelay, relay_terminal, terminal_size
from clsecure.session.result import SessionResult
from clsecure.session.store import SessionDirectory, SessionRecord, SessionStatus, Store
from clsecure.session.tools import run_tool
from clsecure.session.ui import ResumeQuestion, Ui
from clsecure.verify.host import check_barrier, require
from clsecure.workspace.clone import forget_files, prepare
from clsecure.workspace.repository import Repository
from clsecure.workspace.state_file import load, save
from clsecure.workspace.stream import stream_in

log = logs.get("session")

_INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What of the user's world a session is made from.

    :param environ: the user's environment.
    :param home: the user's home.
    :param terminal: descriptors 0 and 1 are terminals.
    """

    environ: Mapping[str, str]
    home: Path
    terminal: bool
    installation: Installation
    store: Store


class SessionRunner:
    """One session from the plan to the result."""

    def __init__(
        self,
        plan: SessionPlan,
        repository: Repository,
        ui: Ui,
        around: Surroundings,
        connection: HelperConnection,
    ) -> None:
        self.plan, self.repository, self.ui, self.around = plan, repository, ui, around
        self.connection = connection
        self.clock = Clock()
        self.warnings: list[str] = []
        self.agent: AgentSpec = find_spec(plan.agent)
        self.place: SessionDirectory = around.store.session(str(plan.project), plan.session)

    # ------------------------------------------------------------ the way

    def run(self) -> SessionResult:
        """Go the whole way.

        :raises ClsecureError: the session did not happen, or its work waits in the kept session.
        """
        with ExitStack() as stack:
            with self.clock.phase("provision"):
                binary = self._binary()
                gateway_config = self._gateway_config()
                self.place.make()
                stack.enter_context(self.place.locked())
                logs.record(self.place.events)
                account = self._lease()
                gateway = stack.enter_context(start_gateway(gateway_config)) if gateway_config else None
                backend = LocalBackend(self.plan.mode, self.connection)
                spec = SandboxSpec(
                    mode=self.plan.mode,
                    account=account,
                    mounts=self.plan.mounts,
                    program=self._keep(binary),
                )
            self.ui.use_tag(self.plan.tag)
            record, start = self._workspace(backend, spec)
            status = self._run(backend, spec, record, gateway)
            record = self.place.write(record, exit_code=status, updated=time.time())
            finished = self._finish(backend, spec, record, start)
        return self._result(record, status, finished)

    def _lease(self) -> WorkerAccount:
        with self.ui.phase("preparing the worker account"):
            account = self.connection.lease(
                project=str(self.plan.project), session=self.plan.session, create=True
            )
        log.info("account_leased", name=account.name, uid=account.uid, created=account.created)
        return account

    # ------------------------------------------------------------ what is needed, before anything is made

    def _binary(self) -> AgentBinary | None:
        """Find the agent's program; not needed for a shell or a command of the user's, but given if there."""
        if not self.agent.executables:
            return None
        try:
            exclude = (self.repository.top,)
            return find_agent(self.agent, self.around.environ, self.around.home, exclude=exclude)
        except AgentError:
            if self.plan.command is None and not self.plan.shell:
                raise
            return None

    def _keep(self, binary: AgentBinary | None) -> KeptProgram | None:
        """Have the program in root's own store; what runs is what was hashed."""
        if binary is None:
            return None
        from clsecure.agents.digests import cache_directory, sha256_of

        cache = cache_directory(self.around.environ, self.around.home)
        with self.ui.phase(f"making {self.agent.title} available"):
            digest = sha256_of(binary.path, cache=cache)
            fd = os.open(binary.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                self.connection.keep_agent(executable=fd, sha256=digest)
            finally:
                os.close(fd)
        log.info("agent_kept", name=self.agent.name, version=binary.version, sha256=digest)
        return KeptProgram(name=self.agent.executables[0], sha256=digest, version=binary.version)

    def _gateway_config(self) -> GatewayConfig | None:
        """Return what the gateway is started with; None where there is nothing to forward to."""
        if self.plan.network is not NetworkPolicy.API or self.agent.base_url_env is None:
            return None
        credential = find_credential(self.around.environ, self.around.home)
        if credential is None:
            if self.plan.command is None and not self.plan.shell:
                raise EgressError(
                    f"there is no key for {self.agent.title}",
                    resolution="Set ANTHROPIC_API_KEY, log in with `claude`, or run `claude setup-token` and "
                    "set CLAUDE_CODE_OAUTH_TOKEN",
                )
            self.warnings.append("no key for the model's API was found: the session has no network at all")
            self.ui.warn(self.warnings[-1])
            return None
        if credential.value:
            logs.register_secret(credential.value)
        provider = find_provider(self.around.environ, base_url=self.plan.base_url)
        return GatewayConfig(provider=provider, credential=credential, log=self.place.egress_log)

    # ------------------------------------------------------------ the private copy

    def _workspace(self, backend: Backend, spec: SandboxSpec) -> tuple[SessionRecord, StartState]:
        """Return the record and the start state of a workspace that is ready: the kept one, or a new one."""
        record = self.place.read()
        if record is not None and not spec.account.created and self._resume(record):
            return self._resumed(backend, spec, record)
        try:
            return self._fresh(backend, spec)
        except BaseException:
            self._undo(spec.account)
            raise

    def _resume(self, record: SessionRecord) -> bool:
        if not record.resumable:
            if self.plan.resume:
                raise SessionNotFoundError(
                    "there is no kept session to go on with", resolution="See what there is: clsecure list"
                )
            return False
        if self.plan.resume is not None:
            resume = self.plan.resume
        elif record.status is SessionStatus.IMPORTED:
            resume = False
        else:
            state = "interrupted" if record.status is SessionStatus.RUNNING else "ended"
            work = "its work is not imported yet" if record.holds_work else "nothing in it waits"
            resume = self.ui.choose_resume(ResumeQuestion(session=record.session, state=f"{state}, {work}"))
        if not resume and record.holds_work:
            self._really_lose(record)
        return resume

    def _really_lose(self, record: SessionRecord) -> None:
        """A fresh start deletes the workspace; work that is nowhere else needs a second yes."""
        question = "The kept session holds work that is in no branch yet. Delete it and start fresh?"
        if not self.ui.confirm(question):
            raise UsageError(
                "the kept session holds work that is in no branch yet",
                resolution=f"Bring it home first: clsecure import {self.place.path.name}; "
                f"or remove it: clsecure cleanup {record.worker_user}",
            )

    def _resumed(
        self, backend: Backend, spec: SandboxSpec, record: SessionRecord
    ) -> tuple[SessionRecord, StartState]:
        start = load(self.place.start_file)
        assert record.workspace is not None  # noqa: S101  # resumable says so
        home = self._agent_home(spec, PurePosixPath(record.workspace))
        with self.clock.phase("clone_in"), self.ui.phase("preparing the kept workspace"):
            self._unpack(
                backend, spec, record.workspace, lambda out: stream_in(None, None, out, home_files=home.files)
            )
        record = self.place.write(
            record,
            session_id=self.plan.session_id,
            mode=self.plan.mode.value,
            network=self.plan.network.value,
            agent=self.plan.agent,
            status=SessionStatus.RUNNING,
            unimported=None,
            updated=time.time(),
        )
        return replace(record, exit_code=-1), start

    def _fresh(self, backend: Backend, spec: SandboxSpec) -> tuple[SessionRecord, StartState]:
        account, now = spec.account, time.time()
        workspace = str(PurePosixPath(account.home) / self.repository.project)
        record = self.place.write(
            SessionRecord(
                session_id=self.plan.session_id,
                project=str(self.plan.project),
                session=self.plan.session,
                mode=self.plan.mode.value,
                network=self.plan.network.value,
                agent=self.plan.agent,
                worker_user=account.name,
                status=SessionStatus.PREPARING,
                created=now,
                updated=now,
            )
        )
        with self.clock.phase("clone_in"):
            with self.ui.phase("copying the repository"):
                if not account.created:
                    self.connection.reset()
                shutil.rmtree(self.place.base, ignore_errors=True)
                start = prepare(self.repository, self.place.base, full=self.plan.full_clone)
            save(start, self.place.start_file)
            for warning in start.warnings:
                self.warnings.append(warning)
                self.ui.warn(warning)
            home = self._agent_home(spec, PurePosixPath(workspace))
            with self.ui.phase("making the private copy"):
                self._unpack(
                    backend,
                    spec,
                    workspace,
                    lambda out: stream_in(start, self.repository, out, home_files=home.files),
                )
            forget_files(start)
        record = self.place.write(
            record,
            status=SessionStatus.RUNNING,
            workspace=workspace,
            base_commit=start.top.head,
            base_tree=start.top.base_tree,
            updated=time.time(),
        )
        return record, start

    def _agent_home(self, spec: SandboxSpec, workspace: PurePosixPath) -> AgentHome:
        home = self.agent.home(
            HomeRequest(
                user_home=self.around.home,
                worker_home=PurePosixPath(spec.account.home),
                workspace=workspace,
                environ=self.around.environ,
                version=spec.program.version if spec.program else None,
            )
        )
        for line in home.left_out:
            log.info("agent_setting_left_out", what=line)
        return home

    def _unpack(self, backend: Backend, spec: SandboxSpec, workspace: str, feed: object) -> None:
        run_tool(
            backend,
            spec,
            program=self.around.installation.unpack,
            arguments=(workspace,),
            feed=feed,  # type: ignore[arg-type]
        )

    def _undo(self, account: WorkerAccount) -> None:
        """A start that failed leaves nothing behind; there is no work yet."""
        with contextlib.suppress(ClsecureError):
            if account.created:
                self.connection.remove()
            else:
                self.connection.reset()
        shutil.rmtree(self.place.base, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.place.start_file.unlink(missing_ok=True)
            (self.place.path / "session.json").unlink(missing_ok=True)

    # ------------------------------------------------------------ the agent

    def _run(
        self, backend: LocalBackend, spec: SandboxSpec, record: SessionRecord, gateway: Gateway | None
    ) -> int:
        """Run the agent to its end; return the exit status. Every process of it is dead then."""
        resumed = record.exit_code is not None
        interactive = self.around.terminal
        spec = replace(
            spec,
            listener=gateway is not None,
            terminal=terminal_size(0) if interactive else None,
            network=self.plan.network,
        )
        with self.clock.phase("start"), self.ui.phase("building the sandbox"):
            sandbox_context = backend.open(spec)
            sandbox = sandbox_context.__enter__()
        try:
            with self.clock.phase("verify_start"):
                results = check_barrier(sandbox.facts, spec)
                log.info("barrier_checked", results={r.check_id: r.status.value for r in results})
                require(results)
                for result in results:
                    if result.status is CheckStatus.SKIP:
                        self.warnings.append(f"not enforced here: {result.check_id} ({result.observed})")
            port = self._serve(sandbox, gateway)
            self._banner()
            return self._execute(sandbox, spec, record, port, gateway, resumed=resumed)
        finally:
            with self.clock.phase("quiesce"):
                sandbox_context.__exit__(None, None, None)

    def _serve(self, sandbox: LocalSandbox, gateway: Gateway | None) -> int | None:
        if gateway is None or sandbox.listener is None:
            return None
        port: int = sandbox.listener.getsockname()[1]
        with self.clock.phase("gateway"):
            gateway.serve(sandbox.listener)
        return port

    def _banner(self) -> None:
        network = {
            NetworkPolicy.NONE: "no network",
            NetworkPolicy.API: "the model's API and nothing else",
            NetworkPolicy.FULL: "the internet",
        }[self.plan.network]
        if self.agent.base_url_env is None and self.plan.network is NetworkPolicy.API:
            network = "no network (this agent needs none)"
        lines = [
            f"{self.agent.title if self.plan.command is None else self.plan.command[0]} runs isolated",
            f"mode {self.plan.mode}, network: {network}",
            f"project {self.plan.project}, session {self.plan.session}",
            *(
                f"mounted: {m.source} at {m.target}{'' if m.read_only else ', writable'}"
                for m in self.plan.mounts
            ),
            *(f"residual: {w}" for w in self.warnings if w.startswith("not enforced")),
        ]
        self.ui.banner(lines)

    def _execute(
        self,
        sandbox: LocalSandbox,
        spec: SandboxSpec,
        record: SessionRecord,
        port: int | None,
        gateway: Gateway | None,
        *,
        resumed: bool,
    ) -> int:
        assert record.workspace is not None  # noqa: S101  # the workspace is ready
        env = environment(
            self.agent,
            self.around.environ,
            user=spec.account.name,
            home=PurePosixPath(spec.account.home),
            session=self.plan.session,
            terminal=spec.terminal is not None,
            port=port,
            token=gateway.token if gateway else None,
            credential_variable=self._credential_variable(),
            extra_path=[PurePosixPath(m.target) / "bin" for m in self.plan.mounts],
        )
        command = SandboxCommand(argv=self._argv(resumed=resumed), env=env, cwd=Path(record.workspace))
        limit = self.plan.time_limit
        deadline = time.monotonic() + limit.total_seconds() if limit else None
        log.info("agent_started", argv=list(command.argv), pid=sandbox.facts.pid)
        with self.clock.phase("run"):
            if spec.terminal is not None:
                sandbox.start(command, stdio=None)
                in_time = relay_terminal(sandbox, stdin=0, stdout=1, deadline=deadline)
            else:
                in_time = self._piped(sandbox, command, deadline)
        status = self._status(sandbox, in_time=in_time)
        if gateway is not None and not gateway.alive():
            self.warnings.append(
                "the gateway ended during the session: the agent had no network from then on"
            )
            self.ui.warn(self.warnings[-1])
        log.info("agent_ended", status=status, in_time=in_time)
        return status

    def _piped(self, sandbox: LocalSandbox, command: SandboxCommand, deadline: float | None) -> bool:
        relay = PipeRelay(to_stderr=self.plan.stdout_is_ours)
        try:
            sandbox.start(command, stdio=relay.stdio)
            relay.begin()
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                return sandbox.wait(timeout=left) is not None
            except KeyboardInterrupt:
                sandbox.kill()
                sandbox.wait()
                self.warnings.append("interrupted")
                return True
        finally:
            if sandbox.end is None:
                sandbox.kill()
                sandbox.wait()
            relay.finish()

    def _status(self, sandbox: LocalSandbox, *, in_time: bool) -> int:
        if not in_time:
            sandbox.kill()
        status = sandbox.wait()
        if not in_time:
            self.warnings.append("the time limit was reached; the agent was ended")
            self.ui.warn(self.warnings[-1])
            return EXIT_TIME_LIMIT
        if "interrupted" in self.warnings:
            return _INTERRUPTED
        if status is None:
            raise HelperError("the sandbox's end was not seen")
        return status

    def _argv(self, *, resumed: bool) -> tuple[str, ...]:
        if self.plan.command is not None:
            return self.plan.command
        if self.plan.shell:
            return self.agent.argv_shell
        return self.agent.argv_resume if resumed else self.agent.argv_unattended

    def _credential_variable(self) -> str | None:
        credential = find_credential(self.around.environ, self.around.home)
        return credential.variable if credential else None

    # ------------------------------------------------------------ the end

    def _finish(
        self, backend: Backend, spec: SandboxSpec, record: SessionRecord, start: StartState
    ) -> Finished:
        finish = Finish(
            ui=self.ui,
            clock=self.clock,
            backend=backend,
            spec=spec,
            place=self.place,
            start=start,
            exporter=self.around.installation.export,
            author=self.repository.identity,
            started=record.created,
        )
        decision = Decision(
            on_finish=self.plan.on_finish,
            branch=self.plan.branch_name,
            chosen=self.plan.branch is not None,
            message=self.plan.commit_message,
        )
        try:
            finished = finish.conclude(record, decision)
        except ClsecureError:
            self.place.write(record, status=SessionStatus.KEPT, unimported=None, updated=time.time())
            self.ui.warn(f"the work is kept; try again with: clsecure import {self.place.path.name}")
            raise
        if finished.discarded:
            with self.ui.phase("deleting the workspace"):
                self.connection.reset()
                shutil.rmtree(self.place.base, ignore_errors=True)
        self.warnings += finished.warnings
        return finished

    def _result(self, record: SessionRecord, status: int, finished: Finished) -> SessionResult:
        log.info("session_finished", duration_s=self.clock.total(), phases=self.clock.phases)
        return SessionResult(
            session_id=self.plan.session_id,
            project=str(self.plan.project),
            session=self.plan.session,
            mode=self.plan.mode.value,
            network=self.plan.network.value,
            worker_user=record.worker_user,
            agent=self.plan.agent,
            exit_code=status,
            base_commit=record.base_commit,
            base_tree=record.base_tree,
            duration_s=self.clock.total(),
            phases=dict(self.clock.phases),
            import_=finished.imported,
            kept=finished.kept,
            warnings=tuple(self.warnings),
        )


def refuse_unsupported(plan: SessionPlan) -> None:
    """Say what is not there yet, before anything is made.

    :raises UsageError: the plan needs it.
    """
    if plan.mode is IsolationMode.CONTAINER:
        raise UsageError(
            "container mode is not there yet", resolution="Use --mode namespace (the default) or --mode user"
        )


def is_terminal() -> bool:
    """Tell whether the agent can be talked to: standard input and output are terminals."""
    return sys.stdin is not None and sys.stdout is not None and os.isatty(0) and os.isatty(1)
