"""A probe in a sandbox, and the same one outside beside it: what they could do becomes facts of checks."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from clsecure import process
from clsecure.backends.local import LocalSandbox
from clsecure.errors import ToolError, VerificationError
from clsecure.model import NetworkPolicy, ResourceLimits, SandboxCommand, SandboxSpec
from clsecure.process import Command
from clsecure.settings.values.amounts import human_limit
from clsecure.verify.bait import Bait
from clsecure.verify.probe import Probe
from clsecure.verify.tried import Limit, Report, Tried

_ARGV = ("/usr/bin/python3", "-I", "-S")
_SECONDS = 20.0
_PATIENCE_FILTER = 3.0
"""A packet filter refuses at once, but by IPv6 nothing answers while the kernel tries a new address out."""
_PATIENCE_OUTSIDE = 0.5
"""Here a name server may be far away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What the probe can do outside, as the user: what it can't do there, nothing inside shows.

    :param heard: listeners of the host that heard it.
    """

    report: Report
    heard: frozenset[str]


def control(program: Path, bait: Bait, *, patience: float = _PATIENCE_OUTSIDE) -> Control:
    """Let the probe try everything outside. Nobody else may use the bait meanwhile.

    :param program: the root-owned probe.
    :param patience: seconds for connections that nobody answers.
    :raises ToolError: it failed.
    """
    order = json.dumps(bait.order(outside=True, patience=patience)).encode() + b"\n"
    bait.said()
    command = Command(
        argv=(*_ARGV, str(program)),
        input=order,
        stderr=bait.words,
        timeout=_SECONDS,
        # One more than the standard three: that it finds such ones is shown here.
        pass_fds=(bait.words,),
    )
    done = process.run(command)
    if done.returncode != 0:
        raise ToolError("the probe outside failed", details=bait.said())
    try:
        reply = json.loads(done.stdout)
    except ValueError as error:
        raise ToolError("the probe outside gave no report", details=str(error)) from error
    if "error" in reply:
        raise ToolError("the probe outside failed", details=str(reply["error"]))
    report = Report.parse(reply)
    return Control(report=report, heard=bait.ears.heard(_came(report)))


@contextmanager
def probing(sandbox: LocalSandbox, spec: SandboxSpec, program: Path, bait: Bait) -> Iterator[Probe]:
    """Start the probe in a sandbox that waits at the barrier.

    Where that hands no descriptors in, the probe is the command itself, and the sandbox serves nothing else.
    Leaving closes what the probe reads; the sandbox is its owner's to start or to close.

    :raises VerificationError: what the probe does not answer, with its own last words.
    """
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(contextlib.ExitStack())
        (in_read, in_write), (out_read, out_write) = (os.pipe2(os.O_CLOEXEC) for _ in range(2))
        for fd in (in_write, out_read):
            stack.callback(os.close, fd)
        for fd in (in_read, out_write):
            given.callback(os.close, fd)
        bait.said()
        stdio = (in_read, out_write, bait.words)
        if sandbox.can_probe:
            sandbox.probe(stdio)
        else:
            sandbox.start(_command(spec, program), stdio=stdio)
        given.close()
        try:
            yield Probe(in_write, out_read)
        except VerificationError as error:
            words = bait.said()
            if not words:
                raise
            details = "\n".join(part for part in (error.details, words) if part)
            raise VerificationError(error.brief, details=details, resolution=error.resolution) from error


def _command(spec: SandboxSpec, program: Path) -> SandboxCommand:
    home = spec.account.home
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "LC_ALL": "C.UTF-8"}
    return SandboxCommand(argv=(*_ARGV, str(program)), env=env, cwd=home)


def try_inside(
    probe: Probe, outside: Control, *, bait: Bait, sandbox: LocalSandbox, spec: SandboxSpec
) -> Tried:
    """Let the probe try everything inside, and hear who connects meanwhile.

    :raises VerificationError: it gave no report.
    """
    bait.ears.heard()
    full = spec.network is NetworkPolicy.FULL
    patience = _PATIENCE_FILTER if full else None
    inside = probe.battery(bait.order(full=full, private=full and not spec.allow_private, patience=patience))
    return Tried(
        spec=spec,
        files=bait.files,
        services=bait.services,
        addresses=bait.ears.addresses,
        port=sandbox.port if sandbox.listener else None,
        limits=built_limits(spec.limits, sandbox.enforced),
        landlock=sandbox.facts.landlock_abi,
        words=bait.words_path,
        inside=inside,
        outside=outside.report,
        heard_outside=outside.heard,
        heard_inside=bait.ears.heard(_came(inside)),
    )


def _came(report: Report) -> list[str]:
    """Return the listeners to which a probe says that it came; the host's ears know better."""
    return [label for label, error in report.connected.items() if error is None]


def built_limits(limits: ResourceLimits, enforced: Mapping[str, str]) -> dict[str, Limit]:
    """Return the limits of a sandbox, and what holds each."""
    given = {part.name: getattr(limits, part.name) for part in fields(limits)}
    return {
        name: Limit(
            most=value or None, value=human_limit(name, value) if value else None, by=enforced.get(name)
        )
        for name, value in given.items()
    }
