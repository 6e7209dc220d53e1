"""The repository's own clean-up, ``.clsecure/on-cleanup``: at a session's end and before its workspace goes.

It runs as the worker, in a fresh sandbox of the session's spec. Whether a sandbox is opened at all was
decided when the workspace was made: a session without a hook pays nothing.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from clsecure import logs
from clsecure.agents.spec import GatewayAccess
from clsecure.backends.local import LocalBackend
from clsecure.egress.client import Gateway
from clsecure.errors import ClsecureError, StateError
from clsecure.installation import Installation
from clsecure.model import DockerAccess, SandboxSpec, WorkerAccount
from clsecure.privileged.client import HelperConnection
from clsecure.session.boxes import recorded_spec
from clsecure.session.dependencies import agents_env, agents_path
from clsecure.session.inside import OutputLog, inner_environment, run_inside, through
from clsecure.session.loading import loading_backend
from clsecure.session.own_engine import engine_env
from clsecure.session.plan import SessionPlan
from clsecure.session.portable import late_path, mounted_path
from clsecure.session.store import SessionRecord, state_directory
from clsecure.session.ui import Ui
from clsecure.settings.limits import defaults
from clsecure.terminal import escape

log = logs.get("cleanup")

HOOK = Path(".clsecure/on-cleanup")
# Between TERM and KILL, and for the sandbox to come and go (privileged/cleanup.py has the first).
_PATIENCE_SECONDS = 15.0
_NAMES = {"hook": str(HOOK), "compose": "docker compose down"}


class CleanupLevel(StrEnum):
    """Why it runs: the session ends and may be gone on with, or everything of it goes."""

    STOP = "stop"
    PURGE = "purge"


def has_hook(top: Path) -> bool:
    """Tell whether the repository has something by that name now; what it is worth is seen inside."""
    try:
        return not stat.S_ISDIR(os.lstat(top / HOOK).st_mode)
    except OSError:
        return False


def is_needed(record: SessionRecord, level: CleanupLevel) -> bool:
    """Tell whether there is anything to open a sandbox for, and one that can be trusted to hold it."""
    if record.failed_checks:
        return False
    return record.workspace is not None and (record.cleanup_hook or _stands_in(record, level))


def _stands_in(record: SessionRecord, level: CleanupLevel) -> bool:
    """Tell whether compose files stand in for a hook: the session has the machine's docker.

    Nothing is left of an engine of its own. At a purge nobody has said that docker may be used again.
    """
    lent = record.docker_access == DockerAccess.HOST
    return level is CleanupLevel.STOP and lent and not record.skip_docker_autodetect


def clean_up(
    record: SessionRecord,
    level: CleanupLevel,
    *,
    backend: LocalBackend,
    spec: SandboxSpec,
    installation: Installation,
    environ: Mapping[str, str],
    ui: Ui,
    gateway: Gateway | None = None,
    plan: SessionPlan | None = None,
    log_file: Path | None = None,
) -> str | None:
    """Run what there is to run; return a warning where it did not go well. Never raises over the hook.

    :param spec: of the sandbox: with a listener where there is a gateway.
    :param plan: of the session that ends; None where none does.
    :param log_file: keeps its output.
    """
    if not is_needed(record, level):
        return None
    try:
        with ui.progress("cleaning up inside") as show:
            report, last, in_time = _run(
                record,
                level,
                backend=backend,
                spec=spec,
                installation=installation,
                gateway=gateway,
                make=_environment(record, level, spec, environ, plan),
                output=OutputLog(log_file, hidden=() if gateway is None else (gateway.token,), show=show),
            )
    except KeyboardInterrupt:
        # At the end of a session it ends the hook and not the session: the work is still to come home.
        if level is CleanupLevel.PURGE:
            raise
        return "the clean-up was interrupted"
    except ClsecureError as error:
        log.info("cleanup_failed", level=level.value, why=error.brief)
        return f"the clean-up did not run: {escape(error.brief)}"
    log.info("cleanup_ended", level=level.value, what=str(report.get("what"))[:20], in_time=in_time)
    return _warning(report, last, in_time=in_time)


def purge(
    record: SessionRecord | None,
    account: WorkerAccount,
    *,
    connection: HelperConnection,
    installation: Installation,
    environ: Mapping[str, str],
    ui: Ui,
) -> str | None:
    """Run the clean-up before a workspace goes, offline and in the mode that the session had.

    :returns: a warning where it did not go well; what is to be removed goes all the same.
    """
    if record is None or not record.resumable or not is_needed(record, CleanupLevel.PURGE):
        return None
    try:
        spec = recorded_spec(record, account)
    except StateError as error:
        return f"the clean-up did not run: {error.brief}"
    return clean_up(
        record,
        CleanupLevel.PURGE,
        backend=loading_backend(
            spec.mode,
            connection,
            spec.container,
            installation=installation,
            state=state_directory(),
            environ=environ,
            ui=ui,
        ),
        spec=replace(spec, limits=defaults(), disk_reserve=True),
        installation=installation,
        environ=environ,
        ui=ui,
    )


def _environment(
    record: SessionRecord,
    level: CleanupLevel,
    spec: SandboxSpec,
    environ: Mapping[str, str],
    plan: SessionPlan | None,
) -> Callable[[GatewayAccess | None], dict[str, str]]:
    account = spec.account
    tool_env = {**(plan.tool_env if plan else {}), **engine_env(spec.docker, spec.mode)}

    def make(access: GatewayAccess | None) -> dict[str, str]:
        env = inner_environment(
            environ,
            account=account,
            session=record.session,
            access=access,
            tool_env={**tool_env, **agents_env(record, account.home)},
            extra_path=[*agents_path(record, account.home), *(mounted_path(plan) if plan else ())],
            late_path=late_path(plan) if plan else (),
        )
        return {
            **env,
            "CLSECURE_CLEANUP_LEVEL": level.value,
            "CLSECURE_PROJECT_DIR": str(record.workspace),
            "CLSECURE_WORKER_USER": account.name,
            "CLSECURE_WORKER_HOME": str(account.home),
        }

    return make


def _run(
    record: SessionRecord,
    level: CleanupLevel,
    *,
    backend: LocalBackend,
    spec: SandboxSpec,
    installation: Installation,
    gateway: Gateway | None,
    make: Callable[[GatewayAccess | None], dict[str, str]],
    output: OutputLog,
) -> tuple[dict[str, Any], tuple[str, ...], bool]:
    seconds = record.cleanup_hook_timeout
    try:
        ended = run_inside(
            backend,
            replace(
                spec,
                terminal=None,
                listener=gateway is not None,
                gateway_token=gateway.token if gateway is not None else None,
            ),
            program=installation.cleanup,
            arguments=(str(seconds), *(("docker",) if _stands_in(record, level) else ())),
            cwd=Path(str(record.workspace)),
            environ=through(gateway, make),
            log=output,
            seconds=seconds + _PATIENCE_SECONDS,
        )
    finally:
        output.close()
    # Whatever ran there could write a report, too: it decides over nothing but the words of a warning.
    try:
        report = json.loads(ended.report.split(b"\n", 1)[0] or b"{}")
    except (ValueError, RecursionError):
        report = {}
    last = (*ended.last, *ended.warnings)
    return report if isinstance(report, dict) else {}, last, ended.status is not None


def _warning(report: Mapping[str, Any], last: tuple[str, ...], *, in_time: bool) -> str | None:
    what = report.get("what")
    said = f": {' | '.join(last)}" if last else ""
    if not in_time:
        return f"{HOOK} did not end in time and was ended{said}"
    if what == "nothing":
        return None
    if what == "unusable":
        return f"{HOOK} was not run: {escape(str(report.get('why'))[:300])}"
    name = _NAMES.get(str(what))
    if name is None:
        return f"{HOOK} left no report{said}"
    if report.get("in_time") is not True:
        return f"{name} did not end in time and was ended{said}"
    code = report.get("exit_code")
    return None if code == 0 else f"{name} failed with status {escape(str(code)[:20])}{said}"
