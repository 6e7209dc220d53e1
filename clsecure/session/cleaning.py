"""When the cleanup hook of the session under way runs: after the agent, and before the workspace goes."""

from __future__ import annotations

from clsecure.backends.local import LocalBackend
from clsecure.egress.client import Gateway
from clsecure.model import NetworkPolicy, SandboxSpec, WorkerAccount
from clsecure.session.cleanup_hook import CleanupLevel, clean_up, is_needed, purge
from clsecure.session.context import Context
from clsecure.session.store import SessionRecord


def clean_up_after_agent(
    context: Context, record: SessionRecord, backend: LocalBackend, spec: SandboxSpec, gateway: Gateway | None
) -> None:
    """Run the repository's cleanup hook: the agent is dead, and what the hook writes comes home, too."""
    if not is_needed(record, CleanupLevel.STOP):
        return
    log_file = context.place.path / "cleanup.log"
    log_file.unlink(missing_ok=True)
    with context.clock.phase("cleanup"):
        warning = clean_up(
            record,
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


def clean_up_before_removal(context: Context, record: SessionRecord | None, account: WorkerAccount) -> None:
    """Run it once more, offline, before the workspace is deleted."""
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
