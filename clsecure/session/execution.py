"""The agent's own time: sandbox, barrier, gateway, relay, end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from clsecure import logs
from clsecure.agents.spec import GatewayAccess, environment
from clsecure.backends.api import RunningFacts
from clsecure.backends.local import LocalBackend, LocalSandbox
from clsecure.egress.client import Gateway
from clsecure.errors import EXIT_INTERRUPTED, EXIT_TIME_LIMIT, HelperError, StateError
from clsecure.model import (
    CheckStatus,
    DockerAccess,
    Engine,
    NetworkPolicy,
    SandboxCommand,
    SandboxSpec,
    Vantage,
)
from clsecure.session import limits
from clsecure.session.checks import all_failed
from clsecure.session.context import Context
from clsecure.session.copy import Workspace
from clsecure.session.dependencies import agents_env, agents_path
from clsecure.session.network import Arrangement
from clsecure.session.opening import docker_lines, opening_lines
from clsecure.session.own_engine import bring_along, engine_env, gateway_host
from clsecure.session.portable import late_path, mounted_path
from clsecure.session.relay import PipeRelay, relay_terminal
from clsecure.session.verification import Verifier

log = logs.get("session")

_DRAIN_SECONDS = 30.0
_HURRY_SECONDS = 1.0


class Execution:
    """Runs the agent once."""

    def __init__(
        self,
        context: Context,
        spec: SandboxSpec,
        workspace: Workspace,
        *,
        network: Arrangement,
        gateway: Gateway | None,
        verifier: Verifier,
    ) -> None:
        self._context, self._spec, self._workspace = context, spec, workspace
        self._verifier = verifier
        self._network, self._gateway = network, gateway
        self.begun = False
        self._broken = False
        self.limits: Mapping[str, limits.LimitResult] = {}

    def run(self, backend: LocalBackend, *, meanwhile: Callable[[], None]) -> int:
        """Run to the end; return the exit status. Every process of the agent is dead then.

        :param meanwhile: done while the sandbox comes up.
        """
        clock, ui = self._context.clock, self._context.ui
        if self._spec.is_gvisor:
            with clock.phase("verify_start"), ui.phase("trying a sandbox"):
                self._verifier.start_apart(self._spec)

        with clock.phase("start"), ui.phase("building the sandbox"):
            opened = backend.open(self._spec, meanwhile=meanwhile)
            sandbox = opened.__enter__()
        try:
            with clock.phase("verify_start"):
                self._verify(sandbox)
            port = self._serve(sandbox)
            if self._spec.docker is DockerAccess.OWN:
                self._bring_along()
            ui.banner(self._banner())
            return self._execute(sandbox, port)
        finally:
            with clock.phase("quiesce"):
                opened.__exit__(None, None, None)

    def _verify(self, sandbox: LocalSandbox) -> None:
        results = self._verifier.start(sandbox, self._spec)
        log.info("checked", results={r.check_id: r.status.value for r in results})
        # What the probe could not try here is no word about the sandbox.
        lacking = [r for r in results if r.status is CheckStatus.SKIP and r.vantage is Vantage.HOST]
        self._context.warnings.extend(f"not enforced here: {r.check_id} ({r.observed})" for r in lacking)
        asked = self._spec.limits
        self._context.warnings.extend(limits.lacking(asked, sandbox.enforced))
        self.limits = limits.results(asked, sandbox.enforced)

    def _bring_along(self) -> None:
        context = self._context
        with context.clock.phase("images"):
            bring_along(
                context.plan.docker_images, self._spec.account.name, context.around.environ, context.ui
            )

    def _serve(self, sandbox: LocalSandbox) -> int | None:
        if self._gateway is None or sandbox.listener is None or sandbox.port is None:
            return None
        with self._context.clock.phase("gateway"):
            self._gateway.serve(sandbox.listener, port=sandbox.port)
        self._context.warnings.extend(self._gateway.residuals)
        return sandbox.port

    def _banner(self) -> list[str]:
        plan, agent = self._context.plan, self._context.agent
        what = plan.command[0] if plan.command else "a shell" if plan.shell else agent.title
        return [
            f"{what} runs isolated",
            *opening_lines(plan, self._network.gateway, uses_api=agent.base_url_env is not None),
            *docker_lines(plan),
            f"project {plan.project}, session {plan.session}",
            limits.describe(self._spec.limits),
            *(f"mounted: {line}" for line in plan.mounted),
            *(f"residual: {w}" for w in self._context.warnings if w.startswith("not enforced")),
            *(f"residual: {w}" for w in (self._gateway.residuals if self._gateway else ())),
        ]

    def _execute(self, sandbox: LocalSandbox, port: int | None) -> int:
        context, plan, spec = self._context, self._context.plan, self._spec
        env = environment(
            context.agent,
            context.around.environ,
            user=spec.account.name,
            home=PurePosixPath(spec.account.home),
            session=plan.session,
            terminal=spec.terminal is not None,
            gateway=self._access(port),
            credentials=self._network.given,
            models=self._network.models,
            tool_env={
                **plan.tool_env,
                **engine_env(spec.docker, spec.mode),
                **_root_env(spec),
                **agents_env(self._workspace.record, spec.account.home),
            },
            extra_path=[*agents_path(self._workspace.record, spec.account.home), *mounted_path(plan)],
            late_path=late_path(plan),
        )
        command = SandboxCommand(argv=self._argv(), env=env, cwd=Path(self._workspace.directory))
        limit = plan.time_limit
        deadline = time.monotonic() + limit.total_seconds() if limit else None
        log.info("agent_started", program=command.argv[0], arguments=len(command.argv), pid=sandbox.facts.pid)
        self.begun = True
        sandbox.looked = lambda facts: self._looked(sandbox, facts)
        with context.clock.phase("run"):
            if spec.terminal is not None:
                sandbox.start(command, stdio=None)
                in_time = relay_terminal(sandbox, stdin=0, stdout=1, deadline=deadline)
            else:
                in_time = self._piped(sandbox, command, deadline)
        status = self._status(sandbox, in_time=in_time)
        if sandbox.end is not None:
            for warning in limits.warnings(sandbox.end, spec.limits):
                context.warn(warning)
        log.info("agent_ended", status=status, in_time=in_time)
        return status

    def _looked(self, sandbox: LocalSandbox, facts: RunningFacts) -> None:
        """End the agent when its isolation does not hold any more."""
        if not self._verifier.looked(facts, self._spec) and not self._broken:
            self._broken = True
            sandbox.kill()
            # Now: whatever happens to this process, it counts.
            place = self._context.place
            record = place.read() or self._workspace.record
            with contextlib.suppress(StateError):
                place.write(record, failed_checks=all_failed(record, self._verifier.found.verification))

    def _access(self, port: int | None) -> GatewayAccess | None:
        if self._gateway is None or port is None:
            return None
        return GatewayAccess(
            port=port,
            token=self._gateway.token,
            credential_variable=self._network.variable,
            # With a full network programs go out by themselves.
            proxy=self._context.plan.network is not NetworkPolicy.FULL,
            host=gateway_host(self._spec.docker),
        )

    def _piped(self, sandbox: LocalSandbox, command: SandboxCommand, deadline: float | None) -> bool:
        relay = PipeRelay(to_stderr=self._context.plan.stdout_is_ours)
        patience: float | None = _HURRY_SECONDS
        try:
            sandbox.start(command, stdio=relay.stdio)
            relay.begin()
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                in_time = sandbox.wait(timeout=left) is not None
                # As long as it takes: somebody may be reading the output in a pager.
                patience = None if in_time else _DRAIN_SECONDS
            except KeyboardInterrupt:
                sandbox.kill()
                sandbox.wait()
                self._context.warnings.append("interrupted")
                in_time, patience = True, _DRAIN_SECONDS
            return in_time
        finally:
            if sandbox.end is None:
                sandbox.kill()
                sandbox.wait()
            relay.finish(patience=patience)

    def _status(self, sandbox: LocalSandbox, *, in_time: bool) -> int:
        if not in_time:
            sandbox.kill()
        status = sandbox.wait()
        if self._broken:
            self._context.warn("a check of the isolation failed while the agent ran; it was ended")
        if not in_time:
            self._context.warn("the time limit was reached; the agent was ended")
            return EXIT_TIME_LIMIT
        if "interrupted" in self._context.warnings:
            return EXIT_INTERRUPTED
        if status is None:
            raise HelperError("the sandbox's end was not seen")
        return status

    def _argv(self) -> tuple[str, ...]:
        plan, agent = self._context.plan, self._context.agent
        if plan.command is not None:
            return plan.command
        if plan.shell:
            return agent.argv_shell
        return agent.argv_resume if self._workspace.resumed else agent.argv_unattended


def _root_env(spec: SandboxSpec) -> dict[str, str]:
    """Tell agents that won't work as root what podman's containers are: the worker is called 0 there."""
    podman = spec.container is not None and spec.container.engine is Engine.PODMAN
    return {"IS_SANDBOX": "1"} if podman else {}
