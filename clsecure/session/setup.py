"""Before the agent, once per fresh workspace: the user's setup script, then what the lock files name.

Each runs in a sandbox of its own of the session's spec. It reaches what ``setup_network`` says, the session's
own network where nothing is said. A failure is told and kept in the result; it ends no session.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clsecure import logs
from clsecure.agents.spec import GatewayAccess
from clsecure.backends.local import LocalBackend
from clsecure.model import SandboxSpec
from clsecure.session.context import Context
from clsecure.session.copy import Workspace
from clsecure.session.dependencies import (
    Outcome,
    Report,
    agents_path,
    install_env,
    read_report,
    venv_of,
)
from clsecure.session.inside import Ended, OutputLog, inner_environment, run_inside, through
from clsecure.session.own_engine import engine_env
from clsecure.session.portable import late_path, mounted_path
from clsecure.session.result import SetupStep
from clsecure.session.setup_network import SessionNetwork, Way, egress_log, way_out
from clsecure.session.setup_source import TOKEN, Script, github_token, read_script
from clsecure.session.store import SessionStatus
from clsecure.terminal import escape

log = logs.get("setup")

_SECONDS = 30 * 60.0
_TIME_OVER = "timeout"
_MAX_NAMES = 5
SCRIPT = "script"
"""The step that is the user's script; the others are named for the package managers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupWork:
    """What is to be done in a fresh workspace."""

    script: Script | None = None
    dependencies: bool = False


def setup_work(context: Context) -> SetupWork | None:
    """Read what the setup is made from; None when there is nothing to do.

    :raises UsageError: the script or the token can't be had.
    """
    plan, around = context.plan, context.around
    script = None
    if plan.setup_script is not None:
        token = None
        if plan.github_token:
            token = github_token(around.environ, around.home, context.repository.top)
        script = read_script(plan.setup_script, token=token)
    if script is None and not plan.install_dependencies:
        return None
    return SetupWork(script=script, dependencies=plan.install_dependencies)


class Setup:
    """Prepares one fresh workspace."""

    def __init__(
        self, context: Context, backend: LocalBackend, spec: SandboxSpec, network: SessionNetwork
    ) -> None:
        self._context, self._backend, self._network = context, backend, network
        self._spec = replace(spec, terminal=None, listener=False)
        self._path = context.place.path / "setup.log"
        limit = context.plan.time_limit
        self._deadline = time.monotonic() + min(_SECONDS, limit.total_seconds() if limit else _SECONDS)
        self._venv = False

    def run(self, work: SetupWork, workspace: Workspace) -> tuple[Workspace, tuple[SetupStep, ...]]:
        """Do the work; return the workspace that is ready now, and what was done.

        :raises ClsecureError: a sandbox is not what was promised, or its network can't be had.
        """
        context = self._context
        steps: list[SetupStep] = []
        for path in (self._path, egress_log(context)):
            path.unlink(missing_ok=True)
        with context.clock.phase("setup"), way_out(context, self._spec, self._network) as way:
            if work.script is not None:
                steps.append(self._script(work.script, way, workspace))
            if work.dependencies:
                steps += self._dependencies(way, workspace)
        record = context.place.write(
            workspace.record,
            status=SessionStatus.RUNNING,
            installed=work.dependencies,
            venv=self._venv,
            updated=time.time(),
        )
        log.info("setup_ended", steps={step.name: step.status for step in steps})
        return replace(workspace, record=record), tuple(steps)

    # ------------------------------------------------------------ the two parts

    def _script(self, script: Script, way: Way, workspace: Workspace) -> SetupStep:
        hidden = () if script.token is None else (script.token,)
        more = {} if script.token is None else {TOKEN: script.token}
        begun = time.monotonic()
        ended = self._run(
            way, workspace, ("script", script.name), "the setup script", more, hidden=hidden, feed=script.data
        )
        status = _TIME_OVER if ended.status is None else "failed" if ended.status else "ok"
        step = self._step(SCRIPT, status, ended.status, time.monotonic() - begun)
        if status != "ok":
            hint = ""
            if script.misses_token:
                hint = "; it names GH_TOKEN, which it gets with github_token = yes only (docs/setup.md)"
            self._warn(f"the setup script {_how(step)}", ended.last, hint)
        return step

    def _dependencies(self, way: Way, workspace: Workspace) -> list[SetupStep]:
        venv = venv_of(self._spec.account.home)
        begun = time.monotonic()
        ended = self._run(
            way,
            workspace,
            ("dependencies", str(venv)),
            "the dependencies",
            install_env(self._spec.account.home),
        )
        elapsed = time.monotonic() - begun
        report = read_report(ended.report, elapsed=elapsed)
        self._venv = report.venv
        steps = [self._outcome(outcome, report, ended) for outcome in report.outcomes]
        self._say_changed(report.changed)
        if ended.status != 0:
            status = _TIME_OVER if ended.status is None else "failed"
            steps.append(self._step("dependencies", status, ended.status, elapsed))
            self._warn(f"installing the dependencies {_how(steps[-1])}", ended.last)
        elif not steps:
            self._context.ui.note("no dependencies to install: the repository has no lock file that is known")
        return steps

    def _outcome(self, outcome: Outcome, report: Report, ended: Ended) -> SetupStep:
        """Return the step, and say what did not go well."""
        step = self._step(outcome.name, outcome.status, outcome.exit_code, outcome.seconds)
        if outcome.status == "missing":
            self._context.warn(f"{outcome.name}: {escape(outcome.why)}; nothing was installed by it")
        elif outcome.status == "failed":
            # Whose the last words are is clear only where nothing came after it.
            last = ended.last if outcome is report.outcomes[-1] else ()
            self._warn(f"{outcome.name} {_how(step)}", last)
        return step

    def _say_changed(self, names: Sequence[str]) -> None:
        if names:
            shown = ", ".join(escape(name[:80]) for name in names[:_MAX_NAMES])
            more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
            self._context.warn(f"installing changed {shown}{more}: it comes home with the agent's work")

    def _run(
        self,
        way: Way,
        workspace: Workspace,
        arguments: tuple[str, str],
        what: str,
        more: Mapping[str, str],
        *,
        hidden: tuple[str, ...] = (),
        feed: bytes = b"",
    ) -> Ended:
        context, spec = self._context, self._spec

        def make(access: GatewayAccess | None) -> dict[str, str]:
            env = inner_environment(
                context.around.environ,
                account=spec.account,
                session=context.plan.session,
                access=access,
                tool_env={**way.tool_env, **engine_env(way.spec.docker, spec.mode)},
                extra_path=[*agents_path(workspace.record, spec.account.home), *mounted_path(context.plan)],
                late_path=late_path(context.plan),
            )
            return {**env, **more, "CLSECURE_PROJECT_DIR": str(workspace.directory)}

        with context.ui.progress(f"running {what}") as show:
            tokens = () if way.gateway is None else (way.gateway.token,)
            output = OutputLog(self._path, hidden=(*hidden, *tokens), show=show)
            try:
                output.line(f"=== {what}".encode())
                ended = run_inside(
                    self._backend,
                    way.spec,
                    program=context.around.installation.prepare,
                    arguments=arguments,
                    cwd=Path(workspace.directory),
                    environ=through(way.gateway, make),
                    log=output,
                    seconds=max(0.0, self._deadline - time.monotonic()),
                    feed=feed,
                )
            finally:
                output.close()
        for warning in ended.warnings:
            context.warn(warning)
        return ended

    # ------------------------------------------------------------ words

    def _step(self, name: str, status: str, exit_code: int | None, seconds: float) -> SetupStep:
        return SetupStep(
            name=name,
            status=status,
            exit_code=exit_code,
            duration_s=round(max(0.0, seconds), 3),
            log=str(self._path),
        )

    def _warn(self, what: str, last: tuple[str, ...], hint: str = "") -> None:
        said = f": {' | '.join(last)}" if last else ""
        self._context.warn(f"{what}{said} (all of it: {self._path}){hint}")


def _how(step: SetupStep) -> str:
    if step.status == _TIME_OVER:
        return "did not end in time and was ended"
    return "failed" if step.exit_code is None else f"failed with status {step.exit_code}"
