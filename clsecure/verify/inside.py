"""The checks from inside: what the probe could do there, each beside what the same probe can do outside.

What the inside says of itself adds to what the host has seen, and never decides against it. Where the host's
own ear heard something, that counts. What could not be done outside either shows nothing: it is a skip, never
a pass.
"""

from __future__ import annotations

from collections.abc import Callable

from clsecure.errors import ClsecureError
from clsecure.model import CheckResult, CheckStatus, NetworkPolicy, Phase, SandboxSpec, Vantage
from clsecure.verify import calls, power, reach
from clsecure.verify.checks import EVERY_MODE, Area, Check, Observation
from clsecure.verify.ears import ABSTRACT, LOOPBACK, NAMED
from clsecure.verify.tried import Tried

_ANSWERS = "inside-answers"


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


_GATEWAY_RESIDUALS = ("R3", "R19", "R20", "R21", "R22", "R25", "R26", "R27")
INSIDE_CHECKS: tuple[Check[Tried], ...] = (
    _check("canary-home", Area.FILES, "your home is out of reach", reach.canary("home"),
           threats=("A1", "A2"), residuals=("R5", "R13")),
    _check("canary-state", Area.FILES, "a file of clsecure's own state in it, too", reach.canary("state"),
           threats=("A1", "H11")),
    _check("canary-temporary", Area.FILES, "the temporary directory is the session's own",
           reach.canary("temporary", "/var/tmp", "/dev/shm"), threats=("C13",)),  # noqa: S108  # labels
    _check("root-files", Area.FILES, "root's files are out of reach", reach.root_files, threats=("A1",)),
    _check("other-homes", Area.FILES, "no home of another account is seen", reach.other_homes,
           threats=("A1", "A11")),
    _check("system-read-only", Area.FILES, "the system's files can be read, not written", reach.system,
           threats=("A1", "I6"), residuals=("R2", "R29")),
    _check("landlock-refuses", Area.FILES, "what only Landlock refuses is refused", reach.landlock,
           threats=("A1", "A12", "B4"), residuals=("R39",)),
    _check("inherited-descriptors", Area.FILES, "a program gets no descriptor but the standard three",
           power.descriptors, threats=("A8",)),
    _check("loopback", Area.NETWORK, "services on this machine's loopback are out of reach",
           reach.unheard(*LOOPBACK), threats=("B2",), residuals=("R26",)),
    _check("own-address", Area.NETWORK, "services on this machine's other addresses, too",
           reach.own_addresses, threats=("B2",), residuals=("R23",)),
    _check("local-sockets", Area.NETWORK, "local sockets of this machine are out of reach",
           reach.unheard(ABSTRACT, NAMED), threats=("B4",)),
    _check("service-sockets", Area.NETWORK, "engines, agents, buses, desktops and whatever else listens, too",
           reach.services, threats=("A10", "C5")),
    _check("no-route", Area.NETWORK, "no packet leaves by itself", reach.no_route, threats=("B1", "B5")),
    _check("ipv6", Area.NETWORK, "nor by IPv6", reach.ipv6, threats=("B1", "B5")),
    _check("metadata", Area.NETWORK, "metadata of clouds and private networks are out of reach",
           reach.metadata, threats=("B3",)),
    _check("resolvers", Area.NETWORK, "no resolver answers", reach.resolvers, threats=("B8",)),
    _check("gateway-port", Area.NETWORK, "the gateway's port is the only one", reach.ports,
           threats=("B12",), residuals=_GATEWAY_RESIDUALS),
    _check("no-port", Area.NETWORK, "there is no port to connect to", reach.ports, threats=("B1",)),
    _check("host-processes", Area.PROCESSES, "no process of this machine is seen", power.host_processes,
           threats=("A12",), residuals=("R12", "R14")),
    _check("root-unreachable", Area.PRIVILEGES, "root is not to be had", power.root, threats=("C2",)),
    _check("system-calls", Area.PRIVILEGES, "system calls that no agent needs are refused",
           power.refused(*calls.OTHERS), threats=("C4", "B1"), residuals=("R1", "R18")),
    _check("user-namespaces", Area.PRIVILEGES, "no namespace can be made, such as one in which one is root",
           power.namespaces, threats=("C3",), residuals=("R1",)),
    _check("keyring", Area.PRIVILEGES, "the kernel's keys are out of reach", power.refused(*calls.KEYS),
           threats=("A9", "C4")),
    _check("escape-probes", Area.PRIVILEGES, "no known way out of containers begins here", power.escapes,
           threats=("C2", "C4", "A12")),
    _check("devices", Area.DEVICES, "no device of this machine's but the plain ones", power.devices,
           threats=("C4",), residuals=("R17",)),
    _check("terminal-injection", Area.DEVICES, "nothing can be typed into your terminal",
           power.refused(*calls.TERMINAL), threats=("C1",), residuals=("R10",)),
    _check("limit-processes", Area.RESOURCES, "the number of processes is bounded",
           power.rlimit("pids", "NPROC"), threats=("F1",), residuals=("R6",)),
    _check("limit-files", Area.RESOURCES, "the number of open files is bounded",
           power.rlimit("open_files", "NOFILE"), threats=("F2",), residuals=("R6",)),
    _check("core-dumps", Area.RESOURCES, "no core dumps are written", power.core_dumps, threats=("F3",)),
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
