"""The checks of a sandbox, phase by phase."""

from __future__ import annotations

import contextlib
from pathlib import Path

from clsecure.backends.choose import backend_for
from clsecure.installation import Installation
from clsecure.model import NetworkPolicy, Verification
from clsecure.privileged.client import HelperConnection
from clsecure.session.info import Wanted, own_account
from clsecure.verify.host import check_barrier


def verify_mode(
    wanted: Wanted, connection: HelperConnection, *, installation: Installation, home: Path, state: Path
) -> Verification:
    """Build a sandbox as a session would have it, without an agent, run every check, take all away again.

    :param state: a directory of the user's own, for bait.
    :raises BackendUnavailableError: the sandbox does not come up on this machine.
    """
    del installation, state
    with contextlib.ExitStack() as stack:
        namespace = None
        if wanted.network is NetworkPolicy.FULL:
            from clsecure.egress.full import FullNetwork

            namespace = stack.enter_context(FullNetwork()).namespace
        spec = stack.enter_context(own_account(wanted, connection, home, namespace))
        backend = backend_for(wanted.mode, connection, wanted.container)
        sandbox = stack.enter_context(backend.open(spec))
        return Verification(checks=check_barrier(sandbox.facts, spec))
