"""What a mode protects here: a sandbox as a session would have it, looked at from outside and from inside."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from clsecure.backends.choose import backend_for
from clsecure.backends.local import LocalBackend
from clsecure.errors import ClsecureError, SessionBusyError
from clsecure.installation import Installation
from clsecure.model import (
    CheckStatus,
    ContainerSpec,
    IsolationMode,
    Mount,
    NetworkPolicy,
    ResourceLimits,
    SandboxSpec,
)
from clsecure.privileged.client import HelperConnection
from clsecure.session.limits import effective, named
from clsecure.session.probing import Control, control, probing, try_inside
from clsecure.verify.bait import put_out
from clsecure.verify.host import check_barrier
from clsecure.verify.protection import Row, barrier_rows, in_order, tried_rows

SESSION = "clsecure-info"
"""The environment whose account is made for this, and removed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What of a session decides over its isolation."""

    mode: IsolationMode
    network: NetworkPolicy
    allow_private: bool = False
    mounts: tuple[Mount, ...] = ()
    limits: ResourceLimits = field(default_factory=ResourceLimits)
    container: ContainerSpec | None = None
    image_lost: Callable[[], None] | None = None
    """Gives the engine the container's image again, should it have lost it."""

    def backend(self, connection: HelperConnection) -> LocalBackend:
        """Return what builds it."""
        backend = backend_for(self.mode, connection, self.container)
        backend.image_lost = self.image_lost
        return backend


def look(
    wanted: Wanted, connection: HelperConnection, *, installation: Installation, home: Path, state: Path
) -> tuple[Row, ...]:
    """Build the sandbox, look, try, and take everything away again.

    Where the host does not confirm the sandbox nothing is tried in it: the rows of the barrier alone come.

    :param state: a directory of the user's own, for bait.
    :raises BackendUnavailableError: the sandbox does not come up on this machine.
    :raises VerificationError: the probe gave no report.
    """
    with contextlib.ExitStack() as stack:
        namespace = None
        if wanted.network is NetworkPolicy.FULL:
            from clsecure.egress.full import FullNetwork

            namespace = stack.enter_context(FullNetwork()).namespace
        bait = stack.enter_context(put_out(home, state, os.environ))
        spec = stack.enter_context(own_account(wanted, connection, home, namespace))
        outside: list[Control] = []
        sandbox = stack.enter_context(
            wanted.backend(connection).open(
                spec, meanwhile=lambda: outside.append(control(installation.inside, bait))
            )
        )
        results = check_barrier(sandbox.facts, spec)
        rows = list(barrier_rows(results))
        if any(result.status is CheckStatus.FAIL for result in results):
            return in_order(rows)
        with probing(sandbox, spec, installation.inside, bait) as probe:
            tried = try_inside(probe, outside[0], bait=bait, sandbox=sandbox, spec=spec)
        return in_order([*rows, *tried_rows(tried)])


@contextmanager
def own_account(
    wanted: Wanted, connection: HelperConnection, home: Path, namespace: int | None
) -> Iterator[SandboxSpec]:
    """Hold an account for this alone: that of a session has files in it that an agent could have changed."""
    try:
        account = connection.lease(project=str(home), session=SESSION, create=True)
    except SessionBusyError as error:
        raise SessionBusyError(
            "another 'clsecure info' or 'clsecure verify' is running",
            details=error.details,
            resolution="Wait until it is done",
        ) from error
    try:
        yield SandboxSpec(
            mode=wanted.mode,
            account=account,
            container=wanted.container,
            mounts=wanted.mounts,
            listener=wanted.network in (NetworkPolicy.API, NetworkPolicy.ALLOWLIST),
            network=wanted.network,
            network_namespace=namespace,
            allow_private=wanted.allow_private,
            limits=effective(wanted.limits),
            required_limits=named(wanted.limits),
            disk_reserve=True,
        )
    finally:
        with contextlib.suppress(ClsecureError):
            connection.remove()
