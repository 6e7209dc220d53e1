"""The checks on a sandbox whose command runs, by what the host sees of the worker's processes in /proc.

What an alarm ends is a session with work in it, so none may be false. What is seen inside was made at the
barrier, and the kernel takes none of it back for a moment: a process has its uids, groups, capabilities,
filter and namespaces from its parent, and no program raises them. A process that is just ending is not
judged, nor is a first process of a PID namespace by what the tool itself gave it. A process in no known place
counts when it is there at two looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from clsecure.backends.api import Place, RunningFacts, RunningKind
from clsecure.model import CheckResult, DockerAccess, IsolationMode, Phase, SandboxSpec, Vantage
from clsecure.verify.checks import EVERY_MODE, LOCAL, Area, Check, Observation
from clsecure.verify.mountinfo import SYSTEM, below

_NONE = "0000000000000000"
_CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_OF_GVISOR = frozenset({"running-no-new-privileges", "running-outside"})
_SANDBOXS = (Place.INSIDE, Place.ENGINE)
_RIGHT = "no process otherwise"
_SHOWN = 3
# The kernel mounts further parts of these by itself, when somebody looks, and takes them away again.
_OF_ITSELF = frozenset({"nfs", "nfs4", "cifs", "smb3", "afs", "autofs"})
_AS_STARTED = "as at the start"

_Observe = Callable[[RunningFacts, SandboxSpec], Observation]


def _account(facts: RunningFacts, spec: SandboxSpec) -> Observation:
    def wrong(kind: RunningKind) -> bool:
        uids, gids = _numbers(kind, "Uid"), _numbers(kind, "Gid")
        if kind.place is Place.SIDECAR:
            return not all(_is_workers(number, facts, spec) for number in uids | gids)
        return uids != {spec.account.uid} or gids != {spec.account.gid}

    return _all(facts, (Place.INSIDE, Place.SIDECAR), wrong, "Uid", "Gid")


def _groups(facts: RunningFacts, spec: SandboxSpec) -> Observation:
    def wrong(kind: RunningKind) -> bool:
        groups = _numbers(kind, "Groups")
        if kind.place is Place.SIDECAR:
            return not all(_is_workers(number, facts, spec) for number in groups)
        return not groups <= {spec.account.gid}

    return _all(facts, (Place.INSIDE, Place.SIDECAR), wrong, "Groups")


def _capabilities(facts: RunningFacts, spec: SandboxSpec) -> Observation:
    def wrong(kind: RunningKind) -> bool:
        if all(kind.status.get(name) == _NONE for name in _CAPABILITY_SETS):
            return False
        # firejail's inner process and engines have them over a user namespace of their own, and only that.
        may_have = kind.place is not Place.INSIDE or (kind.first and spec.mode is IsolationMode.NAMESPACE)
        return not may_have or _is_hosts(kind, "user", facts)

    return _all(facts, (Place.INSIDE, Place.ENGINE, Place.SIDECAR), wrong, *_CAPABILITY_SETS)


def _no_new_privileges(facts: RunningFacts, _spec: SandboxSpec) -> Observation:
    def wrong(kind: RunningKind) -> bool:
        return kind.status.get("NoNewPrivs") != "1"

    return _all(facts, (Place.INSIDE, Place.ENGINE, Place.SIDECAR), wrong, "NoNewPrivs")


def _seccomp(facts: RunningFacts, spec: SandboxSpec) -> Observation:
    def wrong(kind: RunningKind) -> bool:
        # The helper's and firejail's first process only wait: what they start is the launcher.
        waits = kind.first and kind.place is Place.INSIDE and spec.mode in LOCAL
        return not waits and kind.status.get("Seccomp") != "2"

    return _all(facts, (Place.INSIDE, Place.SIDECAR), wrong, "Seccomp")


def _namespaces(facts: RunningFacts, _spec: SandboxSpec) -> Observation:
    def wrong(kind: RunningKind) -> bool:
        if kind.place is Place.INSIDE:
            # Which of those are not the host's, the barrier has seen.
            return set(kind.namespaces.values()) != {"own"}
        return any(_is_hosts(kind, name, facts) for name in kind.namespaces)

    return _all(facts, (Place.INSIDE, Place.ENGINE, Place.SIDECAR), wrong)


def _outside(facts: RunningFacts, spec: SandboxSpec) -> Observation:
    def wrong(kind: RunningKind) -> bool:
        # A container of the machine's docker may run as the worker, in a PID namespace of its own.
        lent = spec.docker is DockerAccess.HOST
        return not lent or _is_hosts(kind, "pid", facts)

    return _all(facts, (Place.OUTSIDE,), wrong)


def _mounts(facts: RunningFacts, spec: SandboxSpec) -> Observation:
    """What comes along with a directory of the machine's goes with it, too."""
    if facts.new_mounts is None or facts.gone_mounts is None:
        return Observation(expected=_AS_STARTED, observed="they were not seen", holds=None)
    given = tuple(str(mount.target) for mount in spec.mounts)
    new = [
        each.target
        for each in facts.new_mounts
        if each.on not in _OF_ITSELF or each.target in given or not below(each.target, given)
    ]
    gone = [
        each.target
        for each in facts.gone_mounts
        if each.target in (*given, *SYSTEM) or not below(each.target, (*given, *SYSTEM))
    ]
    wrong = [f"{target} was mounted" for target in new] + [f"{target} is gone" for target in gone]
    return Observation.equal(_AS_STARTED, "; ".join(wrong) or _AS_STARTED)


def _is_hosts(kind: RunningKind, name: str, facts: RunningFacts) -> bool:
    whose = kind.namespaces.get(name, "host")
    return whose == "host" or (whose == "own" and name in facts.shared)


def _numbers(kind: RunningKind, name: str) -> set[int]:
    return {int(word) for word in kind.status.get(name, "").split()}


def _is_workers(number: int, facts: RunningFacts, spec: SandboxSpec) -> bool:
    first, count = facts.further or (0, 0)
    return number in (spec.account.uid, spec.account.gid) or first <= number < first + count


def _all(
    facts: RunningFacts, places: Iterable[Place], wrong: Callable[[RunningKind], bool], *shown: str
) -> Observation:
    """Hold where no process in these places is wrong; say which ones are, and by what."""
    if not any(kind.place in _SANDBOXS for kind in facts.kinds):
        # At its very end, or where this kernel says too little: nothing was shown.
        return Observation(expected=_RIGHT, observed="no process of the sandbox was seen", holds=None)
    found = [kind for kind in facts.kinds if kind.place in places and wrong(kind)]
    words = [_described(kind, shown) for kind in found[:_SHOWN]]
    return Observation.equal(_RIGHT, "; ".join(words) or _RIGHT)


def _described(kind: RunningKind, shown: Iterable[str]) -> str:
    spaces = [f"{name} {whose}" for name, whose in sorted(kind.namespaces.items()) if whose != "own"]
    seen = [f"{name}={' '.join(kind.status.get(name, '?').split())}" for name in shown] or spaces
    pids = ", ".join(map(str, kind.pids))
    return f"{kind.count} {kind.place.value} (pid {pids}, {kind.program}): {', '.join(seen)}"


def _check(
    check_id: str, text: str, area: Area, threats: tuple[str, ...], observe: _Observe, *residuals: str
) -> Check[RunningFacts]:
    return Check(
        check_id=f"running-{check_id}",
        property=text,
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=area,
        threats=threats,
        residuals=residuals,
        observe=observe,
    )


RUNNING_CHECKS: tuple[Check[RunningFacts], ...] = (
    _check("account", "every running process is the worker's", Area.PRIVILEGES, ("A1", "C2"), _account),
    _check("groups", "no running process has a further group", Area.PRIVILEGES, ("C2", "C5"), _groups),
    _check(
        "capabilities", "no running process has a capability of the machine's", Area.PRIVILEGES,
        ("C2", "C14"), _capabilities, "R1", "R33",
    ),
    _check(
        "no-new-privileges", "no program raises a running process", Area.PRIVILEGES, ("C2",),
        _no_new_privileges,
    ),
    _check(
        "seccomp", "every running process has a system call filter", Area.PRIVILEGES, ("C1", "C3", "C4"),
        _seccomp, "R1",
    ),
    _check(
        "namespaces", "every running process is in the sandbox's namespaces", Area.PROCESSES,
        ("A12", "B1", "C3", "C13"), _namespaces, "R1", "R4", "R35",
    ),
    _check(
        "mounts", "nothing else is mounted in the running sandbox", Area.FILES, ("A1", "C4"), _mounts,
    ),
    _check(
        "outside", "no process of the worker's is beside the sandbox", Area.PROCESSES, ("C12", "C14", "E1"),
        _outside, "R9",
    ),
)  # fmt: skip


def check_running(facts: RunningFacts, spec: SandboxSpec) -> tuple[CheckResult, ...]:
    """Judge what runs. Under gVisor the host sees that kernel's processes, not the agent's."""
    checks = [check for check in RUNNING_CHECKS if not spec.is_gvisor or check.check_id in _OF_GVISOR]
    return tuple(check.judge(facts, spec, Phase.RUNNING) for check in checks)
