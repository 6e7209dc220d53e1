"""The checks on the very process that waits at the barrier, by what the host sees of it in /proc.

A table: one row, one property. ``threats`` are the ids of docs/threat-model.md.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from clsecure.agents.digests import cache_directory, sha256_of, sha256_of_image
from clsecure.backends.api import ProcessFacts
from clsecure.errors import AgentError
from clsecure.machine.kernel import landlock_abi
from clsecure.model import CheckResult, Engine, IsolationMode, Phase, SandboxSpec, Vantage
from clsecure.verify.checks import EVERY_MODE, LOCAL, Area, Check, Observation
from clsecure.verify.containers import CONTAINER_CHECKS, OWN_KERNEL
from clsecure.verify.maps import MAP_CHECKS
from clsecure.verify.mounts import MOUNT_CHECKS
from clsecure.verify.network import NETWORK_CHECKS, PACKET_FILTER

_CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_PROGRAM, _KEYRING = "agent-program", "session-keyring"
_NAMELESS = "_ses"
_PYTHON = re.compile(r"/usr/bin/python3(?:\.[0-9]{1,3})?")
_OF_GVISOR = frozenset(
    {
        "account",
        "groups",
        "no-new-privileges",
        "seccomp",
        "namespaces",
        OWN_KERNEL,
        "image",
        "engine-plan",
        _KEYRING,
    }
)


def _uids(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    observed = f"{facts.status.get('Uid')} / {facts.status.get('Gid')}"
    uid, gid = "\t".join([str(spec.account.uid)] * 4), "\t".join([str(spec.account.gid)] * 4)
    return Observation.equal(f"{uid} / {gid}", observed)


def _groups(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    groups = facts.status.get("Groups", "?").split()
    extra = [g for g in groups if g != str(spec.account.gid)]
    return Observation.equal("no further group", "no further group" if not extra else " ".join(extra))


def _no_new_privileges(facts: ProcessFacts, _spec: SandboxSpec) -> Observation:
    return Observation.equal("1", facts.status.get("NoNewPrivs", "?"))


def _capabilities(facts: ProcessFacts, _spec: SandboxSpec) -> Observation:
    held = [f"{name}={facts.status.get(name, '?')}" for name in _CAPABILITY_SETS]
    observed = " ".join(h for h in held if not h.endswith("=0000000000000000"))
    return Observation.equal("none", observed or "none")


def _seccomp(facts: ProcessFacts, _spec: SandboxSpec) -> Observation:
    own = "own filter" if facts.seccomp_filter else "no filter of the launcher's"
    return Observation.equal("2, own filter", f"{facts.status.get('Seccomp', '?')}, {own}")


def _landlock(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    """The launcher says what it applied; that there is nothing to apply is believed of the kernel alone."""
    expected, kernel = "ABI 1 or later", landlock_abi()
    if facts.landlock_abi:
        return Observation(expected=expected, observed=f"ABI {facts.landlock_abi}", holds=True)
    if not kernel:
        return Observation(expected=expected, observed="this kernel has no Landlock", holds=None)
    # An engine's filter may deny it to all containers; nothing else does.
    denied = spec.mode is IsolationMode.CONTAINER
    observed = f"none, of this kernel's ABI {kernel}"
    return Observation(expected=expected, observed=observed, holds=None if denied else False)


def _namespaces(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    wanted = ["mnt", "pid", "net", "ipc", "uts"]
    if spec.mode in LOCAL:
        wanted.append("cgroup")
    # docker's daemon makes none: there the worker is an uid of the machine's, without any capability.
    if spec.mode is IsolationMode.NAMESPACE or _engine(spec) is Engine.PODMAN:
        wanted.append("user")
    shared = [
        name
        for name in wanted
        if name not in facts.namespaces
        or name not in facts.host_namespaces
        or facts.namespaces[name] == facts.host_namespaces[name]
    ]
    expected = f"own {', '.join(wanted)}"
    if shared:
        return Observation.equal(expected, f"shared with the host: {', '.join(shared)}")
    if _beside_engine(facts, spec):
        return Observation.equal(expected, "pid shared with the container's engine, which has capabilities")
    return Observation.equal(expected, expected)


def _beside_engine(facts: ProcessFacts, spec: SandboxSpec) -> bool:
    """Tell whether a process could see and trace podman, which is the same uid: that is one namespace up."""
    numbers = facts.status.get("NSpid", "").split()
    return _engine(spec) is Engine.PODMAN and not spec.is_gvisor and len(numbers) < 3


def _descriptors(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    """At the barrier: three for the standard ones, the control socket, and the pty that was asked for."""
    foreign = []
    sockets = terminals = 0
    for number, target in sorted(facts.descriptors.items()):
        sockets += target.startswith("socket:")
        terminals += target.startswith("/dev/pts/")
        standard = number <= 2 and (target == "/dev/null" or target.startswith("pipe:"))
        if not standard and not target.startswith(("socket:", "/dev/pts/")):
            foreign.append(f"{number} -> {target}")
    if sockets > 1 or terminals > (1 if spec.terminal else 0):
        foreign.append(f"{sockets} sockets, {terminals} terminals")
    return Observation.equal("only its own", "; ".join(foreign) or "only its own")


def _executable(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    """By the very file, where that is the machine's; which one an image has is the business of its digest."""
    if spec.mode in LOCAL:
        expected = "this machine's /usr/bin/python3"
        observed = f"{'the same' if facts.interpreter else 'another'} file, {facts.executable}"
        return Observation(expected=expected, observed=observed, holds=facts.interpreter)
    right = _PYTHON.fullmatch(facts.executable) is not None
    return Observation(expected="/usr/bin/python3", observed=facts.executable, holds=right)


def _keyring(facts: ProcessFacts, _spec: SandboxSpec) -> Observation:
    """One with a name was made by somebody, or is all that a uid has: the kernel's ``_uid_ses``."""
    expected, found = "a new one", facts.keyring
    if found is None:
        return Observation.equal(expected, "the kernel was not asked")
    if found.serial == found.helper:
        return Observation.equal(expected, "that of the process from which the sandbox comes")
    return Observation.equal(
        expected, expected if found.name == _NAMELESS else f"the one called {found.name[:60]}"
    )


def _engine(spec: SandboxSpec) -> Engine | None:
    return spec.container.engine if spec.container else None


def _programs(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    """Judge by their bytes those that a session brings along, or that its image has."""
    return _program(facts, spec) if spec.program is not None else _image_programs(facts, spec)


def _image_programs(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    assert spec.container is not None  # noqa: S101  # the check concerns no other sandbox
    found = []
    for name in sorted(spec.container.image.programs):
        descriptor = facts.image_programs.get(name)
        if descriptor is None:
            found.append(f"{name}: nothing that everybody may read is in its place")
            continue
        try:
            digest = sha256_of_image(descriptor, cache=cache_directory(os.environ, Path.home()))
            found.append(f"{name} {digest}")
        except AgentError as error:
            found.append(f"{name}: {error.details or error.brief}")
    expected = [f"{name} {digest}" for name, digest in sorted(spec.container.image.programs.items())]
    return Observation.equal(", ".join(expected), ", ".join(found))


def _program(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    assert spec.program is not None  # noqa: S101  # the caller's word
    expected = f"root's copy, {spec.program.sha256}"
    found = facts.program
    if found is None or found.inside is None:
        return Observation.equal(expected, "there is none in its place")
    kept, inside = found.kept, found.inside
    if (inside.device, inside.inode) != (kept.device, kept.inode):
        return Observation.equal(expected, "another file is in its place")
    if inside.uid != 0 or not stat.S_ISREG(inside.mode) or inside.mode & 0o022:
        return Observation.equal(expected, f"uid {inside.uid} may write it (mode {inside.mode:o})")
    try:
        # Two hundred megabytes are read once: then the file's times say that it is the same.
        digest = sha256_of(found.path, cache=cache_directory(os.environ, Path.home()))
    except AgentError as error:
        return Observation.equal(
            expected, f"root's copy, which can't be read: {error.details or error.brief}"
        )
    return Observation.equal(expected, f"root's copy, {digest}")


BARRIER_CHECKS: tuple[Check[ProcessFacts], ...] = (
    Check(
        check_id="account",
        property="all uids and gids are the worker's",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.PRIVILEGES,
        threats=("A1", "C2"),
        residuals=("R16",),
        observe=_uids,
    ),
    Check(
        check_id="groups",
        property="no supplementary group",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.PRIVILEGES,
        threats=("C2", "C5"),
        observe=_groups,
    ),
    Check(
        check_id="no-new-privileges",
        property="no set-uid program raises it",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.PRIVILEGES,
        threats=("C2",),
        observe=_no_new_privileges,
    ),
    Check(
        check_id="capabilities",
        property="no capability, and none can be gained",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.PRIVILEGES,
        threats=("C2", "C14"),
        observe=_capabilities,
    ),
    Check(
        check_id="seccomp",
        property="a system call filter is on",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.PRIVILEGES,
        threats=("C1", "C3", "C4"),
        residuals=("R1",),
        observe=_seccomp,
    ),
    Check(
        check_id="landlock",
        property="writes are confined by Landlock too",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("A1", "B4"),
        observe=_landlock,
    ),
    Check(
        check_id="namespaces",
        property="own mount, PID, network, IPC and UTS namespaces",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.PROCESSES,
        threats=("A12", "B1", "C13", "C14"),
        residuals=("R1", "R4", "R9"),
        observe=_namespaces,
    ),
    Check(
        check_id="descriptors",
        property="no descriptor of the host's",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("A8",),
        observe=_descriptors,
    ),
    Check(
        check_id="executable",
        property="the launcher runs, nothing else",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.PROCESSES,
        threats=("C11", "C14"),
        observe=_executable,
    ),
    Check(
        check_id=_KEYRING,
        property="its processes have a session keyring of their own, and none of your keys",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.PRIVILEGES,
        threats=("A9",),
        residuals=("R36",),
        observe=_keyring,
    ),
    Check(
        check_id=_PROGRAM,
        property="the agent's program is root's copy of the planned one, or the one in its image's lock",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("C11", "I2"),
        residuals=("R39",),
        observe=_programs,
    ),
    *MAP_CHECKS,
    *MOUNT_CHECKS,
    *NETWORK_CHECKS,
    *CONTAINER_CHECKS,
)


def _concerns(check: Check[ProcessFacts], spec: SandboxSpec) -> bool:
    """Tell whether a check is one of this sandbox."""
    if check.check_id == _KEYRING and _engine(spec) is Engine.DOCKER:
        # Its daemon starts the container, and has no keys of the user's.
        return False
    if spec.is_gvisor:
        # What the host sees is gVisor's own process: what the agent may is that kernel's business.
        return check.check_id in _OF_GVISOR
    if check.check_id == _PROGRAM and spec.program is None:
        return spec.container is not None and bool(spec.container.image.programs)
    if check.check_id == PACKET_FILTER and spec.network_namespace is None:
        return False
    return spec.mode in check.modes and check.check_id != OWN_KERNEL


def check_barrier(
    facts: ProcessFacts, spec: SandboxSpec, phase: Phase = Phase.START
) -> tuple[CheckResult, ...]:
    """Run every check of the mode; a feature that the kernel lacks is a skip, never a pass."""
    return tuple(check.judge(facts, spec, phase) for check in BARRIER_CHECKS if _concerns(check, spec))
