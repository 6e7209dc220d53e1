"""The checks from inside: what the probe could do there, each beside what the same probe can do outside.

What the inside says of itself adds to what the host has seen, and never decides against it. Where the host's
own ear heard something, that counts. What could not be done outside either shows nothing: it is a skip, never
a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath

from clsecure.errors import ClsecureError
from clsecure.model import (
    CheckResult,
    CheckStatus,
    IsolationMode,
    Mount,
    NetworkPolicy,
    Phase,
    SandboxSpec,
    Vantage,
)
from clsecure.verify.bait import ABSTRACT, LOOPBACK, METADATA, NAMED, OWN_ADDRESS, PRIVATE
from clsecure.verify.checks import EVERY_MODE, Area, Check, Observation
from clsecure.verify.tried import Errors, Tried

REFUSED = frozenset({"EPERM", "ENOSYS", "EACCES", "EAFNOSUPPORT", "EOPNOTSUPP", "EPROTONOSUPPORT"})
"""The errors of a filter; any other comes of the arguments, which are wrong on purpose."""
_BY_FILTER = frozenset({"EHOSTUNREACH", "ENETUNREACH", "EACCES", "EPERM", "EADDRNOTAVAIL", "EAFNOSUPPORT"})
_TERMINAL = ("TIOCSTI", "TIOCLINUX")
_KEYS = ("keyctl", "add_key", "request_key")
_MISSING = frozenset({"ENOENT", "ENOTDIR", "ENXIO", "ENODEV"})
_LOCAL6 = frozenset({"0" * 31 + "1"})
_PLAIN_DEVICES = frozenset(
    [
        *("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue"),
        *("fd", "stdin", "stdout", "stderr", "console", "log"),
        # A link that OCI runtimes make, to a file of /proc that they cover.
        "core",
    ]
)
_ANSWERS = "inside-answers"


def errors(results: Errors) -> str:
    """Group what came of several attempts by their error: "EPERM (bpf, mount)"."""
    groups: dict[str, list[str]] = {}
    for name, error in results.items():
        groups.setdefault(error or "works", []).append(name)
    return ", ".join(f"{error} ({', '.join(names)})" for error, names in groups.items()) or "nothing"


def names(found: Iterable[str]) -> str:
    """List names in order, or say that there is none."""
    return ", ".join(sorted(found)) or "none"


def limit(value: int | None) -> str:
    """Say a limit of a process."""
    return "none" if value is None else str(value)


def _untried(expected: str, why: str) -> Observation:
    return Observation(expected=expected, observed=f"could not be tried: {why}", holds=None)


def mounted(path: PurePosixPath, spec: SandboxSpec) -> Mount | None:
    """Return the mount by which the user has shown a path, or something below it."""
    given = (m for m in spec.mounts if path.is_relative_to(m.source) or m.source.is_relative_to(path))
    return next(given, None)


def _canary(*labels: str) -> Callable[[Tried, SandboxSpec], Observation]:
    """Judge files of the user's: there outside, not inside."""

    def observe(tried: Tried, spec: SandboxSpec) -> Observation:
        expected = "it can't be read inside"
        there = [label for label in labels if tried.outside.files.get(label, "not asked for") is None]
        if not there:
            said = {
                tried.files.get(each, each): tried.outside.files.get(each, "there is none") for each in labels
            }
            return _untried(expected, f"outside it can't be read either ({errors(said)})")
        inside = {tried.files[label]: tried.inside.files.get(label, "not tried") for label in there}
        shown = {path: error for path, error in inside.items() if error is None}
        given = [mount for path in shown if (mount := mounted(PurePosixPath(path), spec))]
        if shown and len(given) == len(shown):
            return Observation(expected=expected, observed=f"you have mounted {given[0].source}", holds=None)
        observed = f"inside {errors(inside)}; outside it can be read"
        return Observation(expected=expected, observed=observed, holds=not shown)

    return observe


def _root_files(tried: Tried, _spec: SandboxSpec) -> Observation:
    expected = "neither root's home nor the passwords can be read"
    labels = ("root's home", "passwords")
    refused = {label: tried.inside.files.get(label, "not tried") for label in labels}
    if tried.outside.files.get("state", "") is not None:
        return _untried(expected, "outside, the probe can't read a file of your own")
    return Observation(expected=expected, observed=errors(refused), holds=None not in refused.values())


def _other_homes(tried: Tried, spec: SandboxSpec) -> Observation:
    expected = f"/home holds {spec.account.home.name} only, and what you mount"
    given = {
        m.target.parts[2] for m in spec.mounts if m.target.parts[1:2] == ("home",) and m.target.parts[2:]
    }
    others = set(tried.inside.home) - {spec.account.home.name} - given
    observed = f"/home holds {names(tried.inside.home)}; outside {len(tried.outside.home)} names"
    if not tried.outside.home:
        return _untried(expected, "outside, /home is empty, too")
    return Observation(expected=expected, observed=observed, holds=not others)


def _system(tried: Tried, _spec: SandboxSpec) -> Observation:
    expected = "no file can be made in /, /usr, /etc"
    if tried.outside.own is not None:
        return _untried(expected, f"outside, the probe can't make a file of your own ({tried.outside.own})")
    observed = f"making a file: {errors(tried.inside.written)}"
    return Observation(expected=expected, observed=observed, holds=None not in tried.inside.written.values())


def _unheard(*labels: str) -> Callable[[Tried, SandboxSpec], Observation]:
    """Judge by what the host's own listeners heard; what was never heard outside shows nothing."""

    def observe(tried: Tried, _spec: SandboxSpec) -> Observation:
        expected = "the host's listeners hear nobody"
        if heard := [label for label in labels if label in tried.heard_inside]:
            return Observation(expected=expected, observed=f"heard from inside: {names(heard)}", holds=False)
        could = [label for label in labels if label in tried.heard_outside]
        if not could:
            return _untried(expected, f"there is none ({names(labels)})")
        inside = {label: tried.inside.connected.get(label) or "answered by another" for label in could}
        observed = f"not heard by the host: {errors(inside)}; each of them hears you"
        return Observation(expected=expected, observed=observed, holds=True)

    return observe


def _services(tried: Tried, spec: SandboxSpec) -> Observation:
    expected = "no socket of a service of this machine's can be connected to"
    could = [label for label in tried.services if tried.outside.connected.get(label, "not tried") is None]
    inside = {label: tried.inside.connected.get(label, "not tried") for label in tried.services}
    reached = [
        label
        for label, error in inside.items()
        if error is None and mounted(PurePosixPath(tried.services[label]), spec) is None
    ]
    if reached:
        return Observation(expected=expected, observed=f"connected inside: {names(reached)}", holds=False)
    if not could:
        return _untried(expected, f"outside you can use none of {names(tried.services)}")
    tells = f"{errors({label: inside[label] for label in could})}; outside you can use each of them"
    return Observation(expected=expected, observed=tells, holds=True)


def _no_route(tried: Tried, _spec: SandboxSpec) -> Observation:
    expected = "no way out, and no interface but lo"
    inside, outside = tried.inside, tried.outside
    observed = (
        f"IPv4: {inside.routes.get('IPv4') or 'there is a way'}; interfaces: {names(inside.interfaces)}"
    )
    if inside.routes.get("IPv4") is None or not set(inside.interfaces) <= {"lo"}:
        return Observation(expected=expected, observed=observed, holds=False)
    if outside.routes.get("IPv4") is not None and set(outside.interfaces) <= {"lo"}:
        return _untried(expected, "this machine has no way out itself")
    return Observation(
        expected=expected, observed=f"{observed}; outside {names(outside.interfaces)}", holds=True
    )


def _ipv6(tried: Tried, _spec: SandboxSpec) -> Observation:
    expected = "no IPv6 but that of loopback"
    further = set(tried.inside.addresses6) - _LOCAL6
    way = tried.inside.routes.get("IPv6")
    observed = f"addresses: {names(further)}; way out: {way or 'there is one'}"
    if further or way is None:
        return Observation(expected=expected, observed=observed, holds=False)
    if not tried.outside.addresses6:
        return _untried(expected, "this machine has no IPv6")
    outside = f"{observed}; outside {len(tried.outside.addresses6)} addresses"
    return Observation(expected=expected, observed=outside, holds=True)


def _metadata(tried: Tried, spec: SandboxSpec) -> Observation:
    """Without a full network there is no way there; with one, the packet filter answers at once."""
    if spec.network is NetworkPolicy.FULL:
        expected = "the packet filter refuses them at once"
        labels = METADATA if spec.allow_private else (*METADATA, *PRIVATE)
        inside = {label: tried.inside.connected.get(label, "not tried") for label in labels}
        could = [label for label in METADATA if tried.outside.connected.get(label) not in _BY_FILTER]
        holds = all(error in _BY_FILTER for error in inside.values())
    else:
        expected = "there is no way to them"
        # A proxy of the machine's own makes no way: what counts is where packets may go.
        inside = {label: tried.inside.routes.get(label, "not tried") for label in (*METADATA, *PRIVATE)}
        could = [label for label in inside if tried.outside.routes.get(label, "not tried") is None]
        holds = None not in inside.values()
    if holds and not could:
        return _untried(expected, "outside there is no way to them either")
    return Observation(expected=expected, observed=errors(inside), holds=holds)


def _resolvers(tried: Tried, _spec: SandboxSpec) -> Observation:
    expected = "none answers"
    observed = f"inside: {names(tried.inside.resolvers)}; outside: {names(tried.outside.resolvers)}"
    if not tried.inside.resolvers and not tried.outside.resolvers:
        return _untried(expected, "outside none answers either")
    return Observation(expected=expected, observed=observed, holds=not tried.inside.resolvers)


def _ports(tried: Tried, _spec: SandboxSpec) -> Observation:
    wanted = {tried.port} if tried.port else set()
    expected = f"listening inside: {names(map(str, wanted))}"
    if not tried.outside.listening:
        return _untried(expected, "outside, no listener is seen")
    observed = f"listening inside: {names(map(str, sorted(tried.inside.listening)))}"
    return Observation(expected=expected, observed=observed, holds=set(tried.inside.listening) == wanted)


def _host_processes(tried: Tried, _spec: SandboxSpec) -> Observation:
    expected = "a process of yours is not among them"
    count = f"sees {tried.inside.processes} processes, outside there are {tried.outside.processes}"
    observed = f"{count}; one of yours is {'among them' if tried.inside.marker else 'not among them'}"
    if not tried.inside.marker and not tried.outside.marker:
        return _untried(expected, "outside it is not seen either")
    return Observation(expected=expected, observed=observed, holds=not tried.inside.marker)


def _root(tried: Tried, spec: SandboxSpec) -> Observation:
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
    return Observation(expected="neither by a call nor by a set-uid program", observed=observed, holds=holds)


def _refused(*only: str, without: Sequence[str] = ()) -> Callable[[Tried, SandboxSpec], Observation]:
    """Judge system calls: refused before the kernel looks at them, which it does outside."""

    def observe(tried: Tried, _spec: SandboxSpec) -> Observation:
        expected = "refused"
        calls = {
            name: error
            for name, error in tried.inside.calls.items()
            if (name in only if only else name not in without)
        }
        reached = [name for name, error in calls.items() if error not in REFUSED]
        refused = {name: error for name, error in calls.items() if error in REFUSED}
        could = [name for name in calls if tried.outside.calls.get(name, "EPERM") not in REFUSED]
        if not reached and not could:
            return _untried(expected, "outside they are refused, too" if calls else "none is known here")
        outside = f"outside, {len(could)} of {len(calls)} are not"
        observed = f"reached: {names(reached)}; refused: {errors(refused)}; {outside}"
        return Observation(expected=expected, observed=observed, holds=not reached)

    return observe


def _user_namespaces(tried: Tried, _spec: SandboxSpec) -> Observation:
    expected = "none can be made"
    inside, outside = tried.inside.user_namespace, tried.outside.user_namespace
    if inside is not None and outside is not None:
        return _untried(expected, f"outside none can be made either ({outside})")
    return Observation(expected=expected, observed=inside or "one can be made", holds=inside is not None)


def _devices(tried: Tried, _spec: SandboxSpec) -> Observation:
    expected = "the plain ones"
    further = set(tried.inside.devices) - _PLAIN_DEVICES
    outside = tried.outside.devices
    if not further and set(outside) <= _PLAIN_DEVICES:
        return _untried(expected, "outside there is no other device either")
    count = f"{len(tried.inside.devices)} names in /dev"
    observed = f"{count}{f', among them {names(further)}' if further else ''}; outside {len(outside)}"
    return Observation(expected=expected, observed=observed, holds=not further)


def _escapes(tried: Tried, _spec: SandboxSpec) -> Observation:
    expected = "each is refused, or not there"
    inside = tried.inside.escapes
    works = [name for name, error in inside.items() if error is None]
    foreign = tried.inside.foreign
    if works or foreign:
        observed = f"works: {names(works)}; other roots that can be entered: {names(foreign)}"
        return Observation(expected=expected, observed=observed, holds=False)
    there = [name for name in inside if tried.outside.escapes.get(name, "ENOENT") not in _MISSING]
    if tried.outside.own is not None or not there:
        return _untried(expected, "outside there is nothing of it")
    observed = f"{errors(inside)}; {len(there)} of {len(inside)} are there outside"
    return Observation(expected=expected, observed=observed, holds=True)


def _core_dumps(tried: Tried, _spec: SandboxSpec) -> Observation:
    core = tried.inside.limits.get("CORE")
    return Observation(expected="RLIMIT_CORE 0", observed=f"RLIMIT_CORE {limit(core)}", holds=core == 0)


def _rlimit(name: str, rlimit: str) -> Callable[[Tried, SandboxSpec], Observation]:
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


def _descriptors(tried: Tried, _spec: SandboxSpec) -> Observation:
    found = tried.inside.descriptors
    return Observation(expected="none", observed=names(found), holds=not found)


def _answers(_tried: Tried, _spec: SandboxSpec) -> Observation:
    return Observation.equal("a report", "a report")


def _check(
    check_id: str,
    area: Area,
    text: str,
    observe: Callable[[Tried, SandboxSpec], Observation],
    *,
    threats: tuple[str, ...],
    residuals: tuple[str, ...] = (),
) -> Check[Tried]:
    return Check(
        check_id=check_id,
        property=text,
        modes=EVERY_MODE,
        vantage=Vantage.INSIDE,
        area=area,
        threats=threats,
        residuals=residuals,
        observe=observe,
    )


_CALLS_ELSEWHERE = (*_TERMINAL, *_KEYS)
_GATEWAY_RESIDUALS = ("R3", "R19", "R20", "R21", "R22", "R25", "R26", "R27")
INSIDE_CHECKS: tuple[Check[Tried], ...] = (
    _check("canary-home", Area.FILES, "your home is out of reach", _canary("home"),
           threats=("A1", "A2"), residuals=("R5",)),
    _check("canary-state", Area.FILES, "a file of clsecure's own state in it, too", _canary("state"),
           threats=("A1", "H11")),
    _check("canary-temporary", Area.FILES, "the temporary directory is the session's own",
           _canary("temporary", "/var/tmp", "/dev/shm"), threats=("C13",)),  # noqa: S108  # labels
    _check("root-files", Area.FILES, "root's files are out of reach", _root_files, threats=("A1",)),
    _check("other-homes", Area.FILES, "no home of another account is seen", _other_homes,
           threats=("A1", "A11")),
    _check("system-read-only", Area.FILES, "the system's files can be read, not written", _system,
           threats=("A1", "I6"), residuals=("R2", "R29")),
    _check("inherited-descriptors", Area.FILES, "a program gets no descriptor but the standard three",
           _descriptors, threats=("A8",)),
    _check("loopback", Area.NETWORK, "services on this machine's loopback are out of reach",
           _unheard(*LOOPBACK), threats=("B2",), residuals=("R26",)),
    _check("own-address", Area.NETWORK, "services on this machine's other addresses, too",
           _unheard(OWN_ADDRESS), threats=("B2",), residuals=("R23",)),
    _check("local-sockets", Area.NETWORK, "local sockets of this machine are out of reach",
           _unheard(ABSTRACT, NAMED), threats=("B4",)),
    _check("service-sockets", Area.NETWORK, "engines, agents, buses and desktops of yours, too", _services,
           threats=("A10", "C5")),
    _check("no-route", Area.NETWORK, "no packet leaves by itself", _no_route, threats=("B1", "B5")),
    _check("ipv6", Area.NETWORK, "nor by IPv6", _ipv6, threats=("B1", "B5")),
    _check("metadata", Area.NETWORK, "metadata of clouds and private networks are out of reach", _metadata,
           threats=("B3",)),
    _check("resolvers", Area.NETWORK, "no resolver answers", _resolvers, threats=("B8",)),
    _check("gateway-port", Area.NETWORK, "the gateway's port is the only one", _ports,
           threats=("B12",), residuals=_GATEWAY_RESIDUALS),
    _check("no-port", Area.NETWORK, "there is no port to connect to", _ports, threats=("B1",)),
    _check("host-processes", Area.PROCESSES, "no process of this machine is seen", _host_processes,
           threats=("A12",), residuals=("R12", "R14")),
    _check("root-unreachable", Area.PRIVILEGES, "root is not to be had", _root, threats=("C2",)),
    _check("system-calls", Area.PRIVILEGES, "system calls that no agent needs are refused",
           _refused(without=_CALLS_ELSEWHERE), threats=("C4", "B1"), residuals=("R1", "R18")),
    _check("user-namespaces", Area.PRIVILEGES, "no user namespace can be made, in which one is root",
           _user_namespaces, threats=("C3",), residuals=("R1",)),
    _check("keyring", Area.PRIVILEGES, "the kernel's keys are out of reach", _refused(*_KEYS),
           threats=("A9", "C4")),
    _check("escape-probes", Area.PRIVILEGES, "no known way out of containers begins here", _escapes,
           threats=("C2", "C4", "A12")),
    _check("devices", Area.DEVICES, "no device of this machine's but the plain ones", _devices,
           threats=("C4",), residuals=("R17",)),
    _check("terminal-injection", Area.DEVICES, "nothing can be typed into your terminal",
           _refused(*_TERMINAL), threats=("C1",), residuals=("R10",)),
    _check("limit-processes", Area.RESOURCES, "the number of processes is bounded", _rlimit("pids", "NPROC"),
           threats=("F1",), residuals=("R6",)),
    _check("limit-files", Area.RESOURCES, "the number of open files is bounded",
           _rlimit("open_files", "NOFILE"), threats=("F2",), residuals=("R6",)),
    _check("core-dumps", Area.RESOURCES, "no core dumps are written", _core_dumps, threats=("F3",)),
    _check(_ANSWERS, Area.PROCESSES, "the probe inside answers, in time and with sense", _answers,
           threats=("C14",)),
)  # fmt: skip
_CLOSED = frozenset({"no-route", "ipv6", "resolvers", "gateway-port", "no-port"})
"""Of sandboxes without a full network."""


def concerns(check: Check[Tried], spec: SandboxSpec) -> bool:
    """Tell whether a check is one of this sandbox."""
    if spec.network is NetworkPolicy.FULL and check.check_id in _CLOSED:
        return False
    return check.check_id != ("no-port" if spec.listener else "gateway-port")


def check_inside(tried: Tried, spec: SandboxSpec, phase: Phase) -> tuple[CheckResult, ...]:
    """Run every check of the sandbox."""
    return tuple(check.judge(tried, spec, phase) for check in INSIDE_CHECKS if concerns(check, spec))


def unanswered(error: ClsecureError, phase: Phase) -> CheckResult:
    """Return what stands in the place of all of them where the probe gave no report."""
    return CheckResult(
        check_id=_ANSWERS,
        status=CheckStatus.FAIL,
        vantage=Vantage.INSIDE,
        phase=phase,
        expected="a report",
        observed=": ".join(part for part in (error.brief, error.details) if part),
    )
