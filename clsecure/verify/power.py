"""What can be done inside: processes, privileges, devices, limits. Pure judgements of what was tried."""

from __future__ import annotations

from collections.abc import Callable

from clsecure.model import IsolationMode, SandboxSpec
from clsecure.verify import calls
from clsecure.verify.checks import Observation
from clsecure.verify.tried import Tried
from clsecure.verify.words import NOT_TOLD, errors, limit, names, told, untried

_MISSING = frozenset({"ENOENT", "ENOTDIR", "ENXIO", "ENODEV"})
_OF_GVISOR = frozenset({"fuse", "net"})
"""Devices that gVisor makes, of its own kernel."""
_PLAIN_DEVICES = frozenset(
    [
        *("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue"),
        *("fd", "stdin", "stdout", "stderr", "console", "log"),
        # A link that OCI runtimes make, to a file of /proc that they cover.
        "core",
    ]
)


def host_processes(tried: Tried, _spec: SandboxSpec) -> Observation:
    """Look for the process of the host's whose argument vector everybody outside can read."""
    expected = "a process of yours is not among them"
    count = f"sees {tried.inside.processes} processes, outside there are {tried.outside.processes}"
    observed = f"{count}; one of yours is {'among them' if tried.inside.marker else 'not among them'}"
    if not tried.inside.marker and not tried.outside.marker:
        return untried(expected, "outside it is not seen either")
    return Observation(expected=expected, observed=observed, holds=not tried.inside.marker)


def root(tried: Tried, spec: SandboxSpec) -> Observation:
    """Judge by what root would be: in podman's containers the worker is called 0, and has no capability."""
    status, root = tried.inside.status, tried.inside.root_uid
    uid = status.get("Uid", "?").split()[0]
    named = spec.mode is IsolationMode.CONTAINER and uid == "0"
    bare = all(status.get(name, "?").strip("0") == "" for name in ("CapEff", "CapBnd"))
    program, raised = tried.inside.raised
    stays = raised is None or str(raised) == uid
    became = "the worker is called 0 inside" if named else root or "works"
    ran = f"{program} runs as {'?' if raised is None else raised}" if program else "no set-uid program"
    observed = (
        f"becoming root: {became}; {ran}; "
        f"uid {uid}, NoNewPrivs {status.get('NoNewPrivs', '?')}, CapBnd {status.get('CapBnd', '?')}"
    )
    holds = (root is not None or (named and bare)) and stays and status.get("NoNewPrivs") == "1"
    # gVisor's /proc has no such line: what its kernel grants is its own business, and nothing of the host's.
    if spec.is_gvisor and "NoNewPrivs" not in status:
        holds = stays
        if raised is None:
            return untried("neither by a call nor by a set-uid program", observed)
    return Observation(expected="neither by a call nor by a set-uid program", observed=observed, holds=holds)


def refused(*only: str) -> Callable[[Tried, SandboxSpec], Observation]:
    """Judge system calls: refused before the kernel looks at them, which it does outside."""

    def observe(tried: Tried, _spec: SandboxSpec) -> Observation:
        expected = "refused"
        reached = [name for name in only if not calls.refused(tried.inside.calls, name)]
        # What was not told outside shows nothing; inside it is not known to be refused.
        could = [name for name in only if calls.refused(tried.outside.calls, name) is False]
        if not reached and not could:
            return untried(expected, "outside they are refused, too" if only else "none is known here")
        outside = f"outside, {len(could)} of {len(only)} are not"
        observed = f"reached: {names(reached)}; refused: {len(only) - len(reached)}; {outside}"
        return Observation(expected=expected, observed=observed, holds=not reached)

    return observe


def namespaces(tried: Tried, spec: SandboxSpec) -> Observation:
    """Judge whether one can be made: in a user namespace a process has every capability, over more of it."""
    judged = refused(*calls.NAMESPACES)(tried, spec)
    inside, outside = tried.inside.user_namespace, tried.outside.user_namespace
    made = f"a user namespace: {inside or 'can be made'}, outside: {outside or 'can be made'}"
    if inside is None:
        return Observation(expected="none can be made", observed=f"{made}; {judged.observed}", holds=False)
    holds = True if judged.holds is None and outside is None else judged.holds
    return Observation(expected="none can be made", observed=f"{made}; {judged.observed}", holds=holds)


def devices(tried: Tried, spec: SandboxSpec) -> Observation:
    """Compare the names in /dev with those that every sandbox has."""
    expected = "the plain ones"
    further = set(tried.inside.devices) - _PLAIN_DEVICES - (_OF_GVISOR if spec.is_gvisor else frozenset())
    outside = tried.outside.devices
    if not further and set(outside) <= _PLAIN_DEVICES:
        return untried(expected, "outside there is no other device either")
    count = f"{len(tried.inside.devices)} names in /dev"
    observed = f"{count}{f', among them {names(further)}' if further else ''}; outside {len(outside)}"
    return Observation(expected=expected, observed=observed, holds=not further)


def escapes(tried: Tried, spec: SandboxSpec) -> Observation:
    """Judge what ways out of containers begin with, and processes whose root is another."""
    expected = "each is refused, or not there"
    inside = tried.inside.escapes
    works = [name for name, error in inside.items() if error is None]
    foreign = tried.inside.foreign
    if works or foreign:
        observed = f"works: {names(works)}; other roots that can be entered: {names(foreign)}"
        if spec.is_gvisor and not foreign:
            # What gVisor lets its root do, it does itself: it has neither the machine's files nor devices.
            return Observation(expected=expected, observed=f"in a kernel of gVisor's {observed}", holds=None)
        return Observation(expected=expected, observed=observed, holds=False)
    there = told(inside, (name for name, error in tried.outside.escapes.items() if error not in _MISSING))
    if tried.outside.own is not None or not there:
        return untried(expected, "outside there is nothing of it")
    observed = f"{errors(there)}; outside they are there"
    return Observation(expected=expected, observed=observed, holds=NOT_TOLD not in there.values())


def core_dumps(tried: Tried, _spec: SandboxSpec) -> Observation:
    """A core dump would be a file of the agent's that nobody asked for."""
    core = tried.inside.limits.get("CORE")
    return Observation(expected="RLIMIT_CORE 0", observed=f"RLIMIT_CORE {limit(core)}", holds=core == 0)


def rlimit(name: str, rlimit: str) -> Callable[[Tried, SandboxSpec], Observation]:
    """Judge a limit: set, held by something, and there where a process's own limit holds it."""

    def observe(tried: Tried, _spec: SandboxSpec) -> Observation:
        wanted, inside = tried.limits[name], tried.inside.limits.get(rlimit)
        shown = f"RLIMIT_{rlimit} inside {limit(inside)}"
        expected = "a limit that is held"
        if wanted.value is None or wanted.most is None:
            return Observation(expected=expected, observed=f"no limit is set; {shown}", holds=None)
        if wanted.by is None:
            observed = f"{wanted.value}, nothing here can hold it; {shown}"
            return Observation(expected=expected, observed=observed, holds=None)
        there = wanted.by != "rlimit" or (inside is not None and inside <= wanted.most)
        observed = f"{wanted.value}, held by: {wanted.by}; {shown}"
        return Observation(expected=expected, observed=observed, holds=there)

    return observe


def descriptors(tried: Tried, _spec: SandboxSpec) -> Observation:
    """Whatever a program inherits besides the standard three is somebody's mistake."""
    found = tried.inside.descriptors
    if not found and not tried.outside.descriptors:
        return untried("none", "outside, the probe does not see the one that it was given")
    return Observation(expected="none", observed=names(found), holds=not found)
