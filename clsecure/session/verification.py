"""The checks of a sandbox, phase by phase: before the agent, while it runs, after it is dead."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from clsecure import logs
from clsecure.backends.api import RunningFacts
from clsecure.backends.local import LocalBackend, LocalSandbox
from clsecure.errors import VerificationError
from clsecure.installation import Installation
from clsecure.model import (
    CheckResult,
    CheckStatus,
    DockerAccess,
    Engine,
    NetworkPolicy,
    Phase,
    SandboxSpec,
    Verification,
)
from clsecure.privileged.client import HelperConnection
from clsecure.session.boxes import verifiable
from clsecure.session.checks import Checks
from clsecure.session.info import Wanted, own_account
from clsecure.session.own_checks import find_own_checks, run_own_checks
from clsecure.session.probing import Control, control, probing, try_inside
from clsecure.session.store import SessionRecord
from clsecure.settings.sources import settings_directory
from clsecure.verify.bait import Bait, put_out
from clsecure.verify.changes import differences, not_compared
from clsecure.verify.checks import require
from clsecure.verify.engines import check_engine
from clsecure.verify.fresh import check_fresh
from clsecure.verify.host import check_barrier
from clsecure.verify.inside import check_inside, unanswered
from clsecure.verify.leftovers import check_leftovers
from clsecure.verify.probe import Probe
from clsecure.verify.running import check_running
from clsecure.verify.tried import Tried
from clsecure.verify.userside import UserSide, check_user_side, look
from clsecure.workspace.repository import Repository

log = logs.get("verification")

_PATIENCE = 0.1
"""Seconds that connections outside may take which nobody answers: all that is known of them is that."""


NO_WORKSPACE = ".none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What of the user's the probe is to try for.

    :param state: a directory of the user's own.
    :param session: the session's name, for checks of the user's own.
    """

    home: Path
    state: Path
    environ: Mapping[str, str]
    session: str = ""


class Verifier:
    """Makes the checks of one session; to be closed.

    :param backend: builds its sandboxes.
    :param place: what of the user's the probe is to try for.
    :raises UsageError: a check of the user's own can't be run.
    """

    def __init__(
        self,
        backend: LocalBackend,
        connection: HelperConnection,
        installation: Installation,
        place: Place,
    ) -> None:
        self._backend, self._connection, self._place = backend, connection, place
        self._probe = installation.inside
        self._own = find_own_checks(settings_directory(place.environ, place.home))
        self._out = contextlib.ExitStack()
        self._beside = ThreadPoolExecutor(1)
        self._control: Future[tuple[Bait, Control]] | None = None
        self._before: Tried | None = None
        self.found = Checks()
        # Not the agent's alone: a setup script and a cleanup hook are the repository's word as well.
        backend.watch = self.looked

    def close(self) -> None:
        """Take away what is put out for the probe."""
        self._beside.shutdown()
        self._out.close()

    # ------------------------------------------------------------ before the agent

    def prepare(self) -> None:
        """Begin to put out what the probe is to try for, and to let it try outside, beside all else."""
        self._control = self._beside.submit(self._put_out)

    def start(self, sandbox: LocalSandbox, spec: SandboxSpec) -> tuple[CheckResult, ...]:
        """Check the very sandbox that waits for its command; return what was found.

        :raises VerificationError: one does not hold; nothing may start.
        """
        results = check_barrier(sandbox.facts, spec)
        self._take(results)
        # What ran before the agent counts as well.
        require(self.found.verification.checks)
        if sandbox.can_probe:
            results += self._inside_at_start(sandbox, spec)
        return results

    def start_apart(self, spec: SandboxSpec) -> None:
        """Do the same in a sandbox of its own, where no probe can be let into the one that waits.

        :raises VerificationError: one does not hold; nothing may start.
        """
        with self._backend.open(_fresh(spec)) as sandbox:
            self._inside_at_start(sandbox, spec)

    def _inside_at_start(self, sandbox: LocalSandbox, spec: SandboxSpec) -> tuple[CheckResult, ...]:
        try:
            self._before = self._try(sandbox, spec)
        except VerificationError as error:
            self._take([unanswered(error, Phase.START)])
            raise
        results = check_inside(self._before, spec, Phase.START)
        self._take(results)
        require(results)
        return results

    # ------------------------------------------------------------ after it

    def looked(self, facts: RunningFacts, spec: SandboxSpec) -> bool:
        """Take in what the host sees of the running sandbox; False when it does not hold any more."""
        self._take(check_running(facts, spec))
        return not self.found.verification.failed

    def end(
        self, spec: SandboxSpec, *, workspace: str, user_side: Callable[[], UserSide] | None = None
    ) -> None:
        """Look for the last time: at a fresh sandbox of the same kind, at the machine, at the user's side.

        :param workspace: name of the directory in the home that the work comes home from.
        :param user_side: looks at that; it takes its time, so beside the rest.
        """
        self.prepare()
        with ThreadPoolExecutor(1) as beside:
            looking = beside.submit(user_side) if user_side else None
            self._fresh_at_end(_fresh(spec))
            rules = spec.network is NetworkPolicy.FULL
            images = spec.container is not None and spec.container.engine is Engine.PODMAN
            left = self._connection.inspect(workspace, rules=rules, images=images)
            self._take(check_leftovers(left, spec))
            if (containers := self._backend.containers_left(spec)) is not None:
                self._take(check_engine(containers, spec))
            if looking is not None:
                self._take(check_user_side(looking.result(), spec))

    def _fresh_at_end(self, fresh: SandboxSpec) -> None:
        with self._backend.open(fresh) as sandbox:
            results = check_barrier(sandbox.facts, fresh, Phase.END)
            self._take(results)
            # Nothing is tried in a sandbox that is not what it should be.
            if all(result.status is not CheckStatus.FAIL for result in results):
                self._inside_at_end(sandbox, fresh)

    def _inside_at_end(self, sandbox: LocalSandbox, spec: SandboxSpec) -> None:
        try:
            tried = self._try(sandbox, spec, then=lambda probe: self._ask_further(probe, spec))
        except VerificationError as error:
            self._take([unanswered(error, Phase.END)])
            return
        self._take(check_inside(tried, spec, Phase.END))
        if self._before is not None:
            self._take([differences(self._before, tried.inside, port=tried.port)])
        else:
            self._take([not_compared()])

    def _ask_further(self, probe: Probe, spec: SandboxSpec) -> None:
        self._take(check_fresh(probe, spec))
        self._take(run_own_checks(self._own, probe, spec, session=self._place.session, phase=Phase.END))

    # ------------------------------------------------------------ both

    def _put_out(self) -> tuple[Bait, Control]:
        self._out.close()
        bait = self._out.enter_context(put_out(self._place.home, self._place.state, self._place.environ))
        return bait, control(self._probe, bait, patience=_PATIENCE)

    def _try(
        self, sandbox: LocalSandbox, spec: SandboxSpec, then: Callable[[Probe], None] = lambda _: None
    ) -> Tried:
        assert self._control is not None  # noqa: S101  # put out before
        bait, outside = self._control.result()
        try:
            with probing(sandbox, spec, self._probe, bait) as probe:
                tried = try_inside(probe, outside, bait=bait, sandbox=sandbox, spec=spec)
                then(probe)
                return tried
        finally:
            self._out.close()

    def _take(self, results: Iterable[CheckResult]) -> None:
        results = tuple(results)
        self.found.add(results)
        for result in results:
            if result.status is CheckStatus.FAIL:
                log.warning(
                    "check_failed",
                    check=result.check_id,
                    phase=result.phase.value,
                    expected=result.expected,
                    observed=result.observed,
                )


def _fresh(spec: SandboxSpec) -> SandboxSpec:
    """Return what a sandbox is like in which nothing but the probe runs."""
    return replace(
        spec,
        terminal=None,
        docker=DockerAccess.NONE,
        workspace=None,
        gateway_token=None,
        # It writes nothing, and must come up where the agent has filled the disk.
        disk_reserve=False,
        limits=replace(spec.limits, disk=None),
        required_limits=spec.required_limits - {"disk"},
    )


def workspace_name(record: SessionRecord) -> str:
    """Return the name of the directory in the worker's home that the work comes home from."""
    return Path(record.workspace or NO_WORKSPACE).name


def verify_session(
    record: SessionRecord, repository: Repository, verifier: Verifier, spec: SandboxSpec
) -> Verification:
    """Look at a session that has ended: a fresh sandbox of its kind, what it left, and the user's side.

    Of a session that was verified at its end the user's side is not looked at again: what they did since is
    nobody else's.

    :param spec: as the session is recorded; see :func:`.boxes.verifiable`.
    """
    with verifiable(record, spec) as whole:
        user_side = partial(look, repository, Path.home(), whole, record.user_state)
        verifier.end(
            whole,
            workspace=workspace_name(record),
            user_side=None if record.verified else user_side,
        )
    return verifier.found.verification


def verify_mode(
    wanted: Wanted, connection: HelperConnection, *, installation: Installation, place: Place
) -> Verification:
    """Build a sandbox as a session would have it, without an agent, run every check, take all away again.

    :raises BackendUnavailableError: the sandbox does not come up on this machine.
    """
    with contextlib.ExitStack() as stack:
        namespace = None
        if wanted.network is NetworkPolicy.FULL:
            from clsecure.egress.full import FullNetwork

            namespace = stack.enter_context(FullNetwork()).namespace
        spec = stack.enter_context(own_account(wanted, connection, place.home, namespace))
        backend = wanted.backend(connection)
        verifier = stack.enter_context(contextlib.closing(Verifier(backend, connection, installation, place)))
        with contextlib.suppress(VerificationError):
            verifier.prepare()
            if spec.is_gvisor:
                verifier.start_apart(spec)
            with backend.open(spec) as sandbox:
                verifier.start(sandbox, spec)
        verifier.end(spec, workspace=NO_WORKSPACE)
        return verifier.found.verification
