"""The checks on what a sandbox of the helper's own making sees of files: its root and its mounts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clsecure.backends.api import ProcessFacts
from clsecure.backends.container.spec import DOCKER_SOCKET
from clsecure.model import DockerAccess, IsolationMode, SandboxSpec, Vantage
from clsecure.verify.checks import LOCAL, Area, Check, Observation

PSEUDO = frozenset({"tmpfs", "proc", "sysfs", "devpts", "devtmpfs", "cgroup", "cgroup2", "mqueue", "nsfs"})
_MEMORY_KINDS = frozenset({"tmpfs", "devtmpfs", "mqueue"})
_DEVICES = frozenset({"/null", "/zero", "/full", "/random", "/urandom", "/tty"})
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
    options: frozenset[str] = frozenset()

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
            options=frozenset(fields[5].split(",")),
        )


def below(path: str, roots: Iterable[str]) -> bool:
    """Tell whether a path is one of these, or below one."""
    return any(PurePosixPath(path).is_relative_to(root) for root in roots)


def machine_devices() -> frozenset[str]:
    """Return the device numbers of the file systems that are mounted outside."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    return frozenset(MountLine.parse(line).device for line in lines.splitlines())


def is_device(line: MountLine) -> bool:
    """Tell whether a mount is one of the plain devices, which engines take from the machine's /dev."""
    return line.root in _DEVICES and below(line.target, ("/dev", "/proc", "/sys"))


def _mounts(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    """Every mount of a real file system is one of the plan's, and read-only unless the plan says not."""
    writable = [str(spec.account.home), *(str(m.target) for m in spec.mounts if not m.read_only)]
    known = [*_SYSTEM, *writable, *(str(m.target) for m in spec.mounts)]
    if spec.docker is not DockerAccess.NONE:
        known.append(str(DOCKER_SOCKET))
    machines = machine_devices()
    wrong = []
    effective = {}
    for line in map(MountLine.parse, facts.mountinfo):
        shared = line.kind in _MEMORY_KINDS and line.device in machines and not is_device(line)
        if shared and not below(line.target, known):
            wrong.append(f"{line.target} is the machine's")
        if line.kind in PSEUDO and not below(line.target, ["/home", "/root", "/srv"]):
            continue
        if line.kind in PSEUDO and line.target == "/home":
            continue
        if not below(line.target, known):
            wrong.append(line.target)
        effective[line.target] = line
    wrong += [
        f"{line.target} is writable"
        for line in effective.values()
        if not line.read_only and not below(line.target, [*writable, "/run/firejail"])
    ]
    if spec.mode is IsolationMode.USER:
        # firejail is set-uid itself, and lays its own mounts over these.
        wrong += [
            f"{line.target} is not {option}"
            for line in effective.values()
            for option in ("nosuid", "nodev")
            if option not in line.options
        ]
    return Observation.equal("as planned", "; ".join(sorted(set(wrong))) or "as planned")


def _root(facts: ProcessFacts, _spec: SandboxSpec) -> Observation:
    roots = [line for line in map(MountLine.parse, facts.mountinfo) if line.target == "/"]
    observed = "; ".join(f"{line.kind} {'ro' if line.read_only else 'rw'}" for line in roots)
    return Observation.equal("tmpfs ro", observed)


MOUNT_CHECKS: tuple[Check[ProcessFacts], ...] = (
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
)
