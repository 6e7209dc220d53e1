"""What a mode protects here: a sandbox as a session would have it, looked at from outside and from inside."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import BinaryIO

from clsecure import process
from clsecure.backends.choose import backend_for
from clsecure.backends.local import LocalSandbox
from clsecure.errors import ClsecureError, SessionBusyError, ToolError
from clsecure.installation import Installation
from clsecure.model import (
    CheckStatus,
    ContainerSpec,
    IsolationMode,
    Mount,
    NetworkPolicy,
    ResourceLimits,
    SandboxCommand,
    SandboxSpec,
)
from clsecure.privileged.client import HelperConnection
from clsecure.process import Command
from clsecure.session.limits import effective, named
from clsecure.settings.values import human_limit
from clsecure.verify.bait import Bait, put_out
from clsecure.verify.host import check_barrier
from clsecure.verify.protection import Limit, Report, Row, Tried, barrier_rows, in_order, tried_rows

SESSION = "clsecure-info"
"""The environment whose account is made for this, and removed again."""

_REPORT_LIMIT = 256 * 1024
_WORDS_LIMIT = 4000
_SECONDS = 20.0
_ARGV = ("/usr/bin/python3", "-I", "-S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What of a session decides over its isolation."""

    mode: IsolationMode
    network: NetworkPolicy
    allow_private: bool = False
    mounts: tuple[Mount, ...] = ()
    limits: ResourceLimits = field(default_factory=ResourceLimits)
    container: ContainerSpec | None = None


def look(
    wanted: Wanted, connection: HelperConnection, *, installation: Installation, home: Path, state: Path
) -> tuple[Row, ...]:
    """Build the sandbox, look, try, and take everything away again.

    Where the host does not confirm the sandbox nothing is tried in it: the rows of the barrier alone come.

    :param state: a directory of the user's own, for bait.
    :raises BackendUnavailableError: the sandbox does not come up on this machine.
    :raises ToolError: the probe gave no report.
    """
    with contextlib.ExitStack() as stack:
        namespace = None
        if wanted.network is NetworkPolicy.FULL:
            from clsecure.egress.full import FullNetwork

            namespace = stack.enter_context(FullNetwork()).namespace
        bait = stack.enter_context(put_out(home, state))
        spec = stack.enter_context(own_account(wanted, connection, home, namespace))
        outside: list[Report] = []
        sandbox = stack.enter_context(
            backend_for(wanted.mode, connection, wanted.container).open(
                spec, meanwhile=lambda: outside.append(_outside(installation.inside, bait))
            )
        )
        results = check_barrier(sandbox.facts, spec)
        rows = list(barrier_rows(results))
        if any(result.status is CheckStatus.FAIL for result in results):
            return in_order(rows)
        heard_outside = bait.heard()
        inside = _inside(sandbox, spec, installation.inside, bait)
        tried = Tried(
            spec=spec,
            files=bait.files,
            port=sandbox.port if sandbox.listener else None,
            limits=_limits(spec.limits, sandbox.enforced),
            inside=inside,
            outside=outside[0],
            heard_outside=heard_outside,
            heard_inside=bait.heard(),
        )
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
            "another 'clsecure info' is running", details=error.details, resolution="Wait until it is done"
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


def _limits(limits: ResourceLimits, enforced: Mapping[str, str]) -> dict[str, Limit]:
    given = {part.name: getattr(limits, part.name) for part in fields(limits)}
    return {
        name: Limit(value=human_limit(name, value) if value else None, by=enforced.get(name))
        for name, value in given.items()
    }


def _outside(program: Path, bait: Bait) -> Report:
    done = process.run(Command(argv=(*_ARGV, str(program)), input=bait.orders, timeout=_SECONDS))
    report: Report = json.loads(done.check().stdout)
    return report


def _inside(sandbox: LocalSandbox, spec: SandboxSpec, program: Path, bait: Bait) -> Report:
    with contextlib.ExitStack() as stack:
        # Files in memory: nothing inside can make this process wait, or fill more than it reads.
        given, said, words = (stack.enter_context(_memory(name)) for name in ("given", "said", "words"))
        given.write(bait.orders)
        given.seek(0)
        command = SandboxCommand(
            argv=(*_ARGV, str(program)),
            env={"PATH": "/usr/bin:/bin", "HOME": str(spec.account.home), "LC_ALL": "C.UTF-8"},
            cwd=spec.account.home,
        )
        sandbox.start(command, stdio=(given.fileno(), said.fileno(), words.fileno()))
        status = sandbox.wait(timeout=_SECONDS)
        said.seek(0)
        words.seek(0)
        try:
            report: Report = json.loads(said.read(_REPORT_LIMIT)) if status == 0 else {}
        except ValueError:
            report = {}
        if not report:
            details = words.read(_WORDS_LIMIT).decode("utf-8", "replace")
            raise ToolError(f"the probe inside gave no report (status {status})", details=details)
        return report


@contextmanager
def _memory(name: str) -> Iterator[BinaryIO]:
    with os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC), "w+b", buffering=0) as file:
        yield file
