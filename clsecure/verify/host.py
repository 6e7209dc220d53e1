"""The checks on the very process that waits at the barrier, by what the host sees of it in /proc.

A table: one row, one property. ``threats`` are the ids of docs/threat-model.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clsecure.backends.api import ProcessFacts
from clsecure.backends.container.spec import DOCKER_SOCKET
from clsecure.installation import PACKAGE_DIRECTORY, SETUP_DIRECTORY
from clsecure.machine.kernel import landlock_abi
from clsecure.model import (
    GVISOR,
    CheckResult,
    DockerAccess,
    Engine,
    IsolationMode,
    Phase,
    SandboxSpec,
    Vantage,
)
from clsecure.verify.checks import CONTAINER, EVERY_MODE, LOCAL, Area, Check, Observation

_CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_PSEUDO = frozenset({"tmpfs", "proc", "sysfs", "devpts", "devtmpfs", "cgroup", "cgroup2", "mqueue", "nsfs"})
_SYSTEM = (
    "/usr",
    "/etc",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt/clsecure",
    "/run/firejail",
)


_OWN_KERNEL = "own-kernel"
_OF_GVISOR = frozenset({"account", "groups", "no-new-privileges", "seccomp", "namespaces", _OWN_KERNEL})
_PIECES = (str(PACKAGE_DIRECTORY), str(SETUP_DIRECTORY))
_ENGINE_FILES = (
    "/etc/passwd", "/etc/group", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv",
)  # fmt: skip
_MEMORY = ("/tmp", "/var/tmp", "/run", "/dev/shm")  # noqa: S108  # paths of the inside
_KERNEL = ("/proc", "/sys", "/dev")
_GROUPS = frozenset({"cgroup", "cgroup2"})
# Each sandbox has ones of its own: one whose number is mounted outside, too, is the machine's. Of control
# groups there is only one.
_OF_ONE = frozenset({"tmpfs", "proc", "sysfs", "devpts", "devtmpfs", "mqueue"})
_MEMORY_KINDS = frozenset({"tmpfs", "devtmpfs", "mqueue"})
_DEVICES = frozenset({"/null", "/zero", "/full", "/random", "/urandom", "/tty"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MountLine:
    """One line of mountinfo. Source: proc_pid_mountinfo(5).

    :param device: number of the file system.
    :param root: what of it is mounted.
    """

    device: str
    root: str
    target: str
    kind: str
    read_only: bool

    @classmethod
    def parse(cls, line: str) -> MountLine:
        """Parse one line; octal escapes of the target stay as they are."""
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        return cls(
            device=fields[2],
            root=fields[3],
            target=fields[4],
            kind=right.split(" ")[0],
            read_only="ro" in fields[5].split(","),
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


def _executable(facts: ProcessFacts, _spec: SandboxSpec) -> Observation:
    right = facts.executable.startswith("/usr/bin/python3")
    return Observation(expected="/usr/bin/python3", observed=facts.executable, holds=right)


def _below(path: str, roots: Iterable[str]) -> bool:
    return any(PurePosixPath(path).is_relative_to(root) for root in roots)


def _mounts(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    """Every mount of a real file system is one of the plan's, and read-only unless the plan says not."""
    writable = [str(spec.account.home), *(str(m.target) for m in spec.mounts if not m.read_only)]
    known = [*_SYSTEM, *writable, *(str(m.target) for m in spec.mounts)]
    if spec.docker is not DockerAccess.NONE:
        known.append(str(DOCKER_SOCKET))
    machines = _machine_devices()
    wrong = []
    effective = {}
    for line in map(MountLine.parse, facts.mountinfo):
        shared = line.kind in _MEMORY_KINDS and line.device in machines and not _is_device(line)
        if shared and not _below(line.target, known):
            wrong.append(f"{line.target} is the machine's")
        if line.kind in _PSEUDO and not _below(line.target, ["/home", "/root", "/srv"]):
            continue
        if line.kind in _PSEUDO and line.target == "/home":
            continue
        if not _below(line.target, known):
            wrong.append(line.target)
        effective[line.target] = line
    wrong += [
        f"{line.target} is writable"
        for line in effective.values()
        if not line.read_only and not _below(line.target, [*writable, "/run/firejail"])
    ]
    return Observation.equal("as planned", "; ".join(sorted(set(wrong))) or "as planned")


def _engine(spec: SandboxSpec) -> Engine | None:
    return spec.container.engine if spec.container else None


def _container_root(facts: ProcessFacts, _spec: SandboxSpec) -> Observation:
    roots = [line for line in map(MountLine.parse, facts.mountinfo) if line.target == "/"]
    observed = "; ".join(f"{line.kind} {'ro' if line.read_only else 'rw'}" for line in roots)
    return Observation.equal("overlay ro", observed)


def _container_mounts(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    """Every mount is the image, one of the plan's, or one that engines make; and no more is writable."""
    home = str(spec.account.home)
    writable = [home, *(str(m.target) for m in spec.mounts if not m.read_only)]
    sockets = ["/run/clsecure/control"]
    if spec.docker is not DockerAccess.NONE:
        sockets.append(str(DOCKER_SOCKET))
    known = [*_PIECES, *_ENGINE_FILES, *writable, *sockets, *(str(m.target) for m in spec.mounts)]
    if spec.program is not None:
        known.append(f"/opt/clsecure/bin/{spec.program.name}")
    machines = _machine_devices()
    wrong = []
    effective = {}
    for line in map(MountLine.parse, facts.mountinfo):
        effective[line.target] = line
        shared = line.kind in _OF_ONE and line.device in machines
        if shared and not _is_device(line) and not _below(line.target, known):
            wrong.append(f"{line.target} is the machine's")
        own = line.kind in _PSEUDO - _GROUPS and (_below(line.target, _MEMORY) or line.target in _KERNEL)
        hidden = line.kind in ("tmpfs", "devtmpfs", "proc", "sysfs") and _below(
            line.target, ("/proc", "/sys")
        )
        device = line.kind in ("devtmpfs", "tmpfs", "devpts", "mqueue") and _below(line.target, ("/dev",))
        groups = line.kind in _GROUPS and _below(line.target, ("/sys/fs/cgroup",)) and line.read_only
        if not (own or groups or hidden or device or line.target == "/" or _below(line.target, known)):
            wrong.append(line.target)
    wrong += [
        f"{line.target} is writable"
        for line in effective.values()
        if not line.read_only and line.kind not in _PSEUDO and not _below(line.target, [*writable, *sockets])
    ]
    return Observation.equal("as planned", "; ".join(sorted(set(wrong))) or "as planned")


def _machine_devices() -> frozenset[str]:
    """Return the device numbers of the file systems that are mounted outside."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    return frozenset(MountLine.parse(line).device for line in lines.splitlines())


def _is_device(line: MountLine) -> bool:
    """Tell whether a mount is one of the plain devices, which engines take from the machine's /dev."""
    return line.root in _DEVICES and _below(line.target, ("/dev", "/proc", "/sys"))


def _own_kernel(facts: ProcessFacts, _spec: SandboxSpec) -> Observation:
    host = " ".join(os.uname()[2:4])
    sees = "the host's kernel" if facts.kernel == host else "another kernel"
    name = PurePosixPath(facts.executable).name
    return Observation.equal(f"{GVISOR}, another kernel", f"{name}, {sees}")


def _root(facts: ProcessFacts, _spec: SandboxSpec) -> Observation:
    roots = [line for line in map(MountLine.parse, facts.mountinfo) if line.target == "/"]
    observed = "; ".join(f"{line.kind} {'ro' if line.read_only else 'rw'}" for line in roots)
    return Observation.equal("tmpfs ro", observed)


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
        check_id="root",
        property="the root is the helper's own, read-only",
        modes=LOCAL,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("A1",),
        observe=_root,
    ),
    Check(
        check_id="mounts",
        property="the mounts are those of the plan",
        modes=LOCAL,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("A1", "A11"),
        residuals=("R4", "R13", "R29"),
        observe=_mounts,
    ),
    Check(
        check_id="container-root",
        property="the root is the image, read-only",
        modes=CONTAINER,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("A1", "C8"),
        residuals=("R37",),
        observe=_container_root,
    ),
    Check(
        check_id="container-mounts",
        property="the mounts are those of the plan",
        modes=CONTAINER,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("A1", "A11", "C8"),
        residuals=("R13", "R29", "R35", "R36"),
        observe=_container_mounts,
    ),
    Check(
        check_id=_OWN_KERNEL,
        property="the kernel inside is gVisor's",
        modes=CONTAINER,
        vantage=Vantage.HOST,
        area=Area.PROCESSES,
        threats=("C14",),
        residuals=("R1", "R39"),
        observe=_own_kernel,
    ),
)


def _concerns(check: Check[ProcessFacts], spec: SandboxSpec) -> bool:
    """Tell whether a check is one of this sandbox."""
    if spec.is_gvisor:
        # What the host sees is gVisor's own process: what the agent may is that kernel's business.
        return check.check_id in _OF_GVISOR
    return spec.mode in check.modes and check.check_id != _OWN_KERNEL


def check_barrier(
    facts: ProcessFacts, spec: SandboxSpec, phase: Phase = Phase.START
) -> tuple[CheckResult, ...]:
    """Run every check of the mode; a feature that the kernel lacks is a skip, never a pass."""
    return tuple(check.judge(facts, spec, phase) for check in BARRIER_CHECKS if _concerns(check, spec))
