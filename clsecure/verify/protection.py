"""What a mode protects on this machine, row by row: what the host saw of a sandbox, and what was tried.

Pure: two reports of the same probe, one from inside and one from outside, become rows. Where the host has
seen something itself, that decides; what the inside says adds to it. A row that could not be tried is never
called held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from clsecure.model import CheckResult, CheckStatus, IsolationMode, Mount, NetworkPolicy, SandboxSpec
from clsecure.verify.bait import OWN_ADDRESS
from clsecure.verify.checks import Area
from clsecure.verify.host import BARRIER_CHECKS

Report = Mapping[str, Any]


class Protection(StrEnum):
    """How it stands with a property."""

    HELD = "held"
    NOT_HELD = "not held"
    NOT_ENFORCED = "not enforced here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One property.

    :param evidence: what was observed; may need escaping.
    :param residuals: numbers of docs/threat-model.md that concern it.
    """

    area: Area
    property: str
    status: Protection
    evidence: str
    residuals: tuple[str, ...] = ()


RESIDUALS = {
    "R1": "one kernel for all: a kernel exploit leaves every sandbox",
    "R2": "world-readable files of /usr and /etc can be read",
    "R3": "what the agent sees, it can send to the model's provider",
    "R4": "firejail (namespace), pasta or slirp4netns (full network) are trusted",
    "R5": "an agent can open its own home to other accounts while it runs",
    "R6": "limits of memory and processors need control groups; within them the machine gets slower",
    "R7": "workers' homes count to no quota of yours; a limit of the disk is measured every few seconds",
    "R8": "a member of the group can keep others waiting for 30 seconds",
    "R9": "a helper that root kills leaves the sandbox running until the next start",
    "R10": "the agent's bytes reach your terminal as they are, clipboard (OSC 52) and links (OSC 8) included",
    "R11": "git status in your repository runs the filters that you configured",
    "R12": "names of workers and arguments of the agent's processes are seen by other accounts",
    "R13": "what is mounted writable is the agent's to change",
    "R14": "programs inside may trace each other",
    "R15": "the filter of a full network is out of the worker's reach, not of yours",
    "R16": "an account made later with a uid of the workers' range would share it",
    "R17": "device events of the host can be heard (AF_NETLINK)",
    "R18": "timing and cache side channels",
    "R19": "inside the encryption of an allowed host the gateway sees nothing",
    "R20": "where this machine has a proxy, that resolves the names",
    "R21": "with credentials = copy the key is inside",
    "R22": "a budget of tokens counts at the end of a reply",
    "R23": "full network: addresses that this machine gets later may be reached",
    "R24": "full network: what goes out is neither logged nor judged by name",
    "R25": "a gateway that somebody took over could use your key",
    "R26": "a host allowed by its exact name may lead to a private address",
    "R27": "a token in the path of a registry's URL goes in",
    "R28": "a rewritten command may come home where the agent commits past its git's filter",
    "R29": "programs of a shared Homebrew are its owner's",
    "R30": "what setup_network opens is open to the scripts of packages",
    "R31": "with github_token the token is the setup script's to keep",
    "R32": "a command that prints a provider's key runs outside, as you",
    "R33": "with --allow-docker more of the kernel is within the agent's reach",
    "R34": "with --allow-docker=host the agent is as good as root",
    "R35": "podman, conmon and the OCI runtime are trusted (container)",
    "R36": "docker's daemon is root, shared and trusted (container with docker)",
    "R37": "which image a container has is the engine's word",
    "R38": "a user's image store counts to no quota and stays when the account goes",
    "R39": "with gVisor, what is mounted inside is gVisor's word",
    "R40": "limits of single containers have no effect, those of the session do",
    "R41": "uids of containers beside a session are given out again, late",
    "R42": "docker opens what is mounted again, by its path",
}
"""The residuals of docs/threat-model.md in a few words, for those who have only the installed package."""

_TERMINAL = ("TIOCSTI", "TIOCLINUX")
_REFUSED = frozenset({"EPERM", "ENOSYS", "EACCES", "EAFNOSUPPORT", "EOPNOTSUPP"})
_PLAIN_DEVICES = frozenset(
    [
        *("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue"),
        *("fd", "stdin", "stdout", "stderr", "console", "log"),
        # A link that OCI runtimes make, to a file of /proc that they cover.
        "core",
    ]
)
_LIMITS: Mapping[str, tuple[str, str, str | None]] = {
    "memory": ("memory is bounded", "R6", None),
    "cpus": ("processor time is bounded", "R6", None),
    "pids": ("the number of processes is bounded", "R6", "NPROC"),
    "disk": ("its files on the disk are bounded", "R7", None),
    "open_files": ("the number of open files is bounded", "R6", "NOFILE"),
}
_STATUS = {
    CheckStatus.PASS: Protection.HELD,
    CheckStatus.FAIL: Protection.NOT_HELD,
    CheckStatus.SKIP: Protection.NOT_ENFORCED,
}


def barrier_rows(results: Iterable[CheckResult]) -> Iterator[Row]:
    """Give what the host saw of the waiting process, a row each."""
    checks = {check.check_id: check for check in BARRIER_CHECKS}
    for result in results:
        check = checks[result.check_id]
        wanted = "" if result.status is CheckStatus.PASS else f"; expected {result.expected}"
        yield Row(
            area=check.area,
            property=check.property,
            status=_STATUS[result.status],
            evidence=f"seen from outside: {' '.join(result.observed.split())}{wanted}",
            residuals=check.residuals,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit of the sandbox.

    :param value: for people; None when there is none.
    :param by: what holds it; None for nothing on this machine.
    """

    value: str | None
    by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What was tried.

    :param limits: memory, cpus, pids, disk and open_files, as the sandbox was built.
    :param files: label to path of what the host has put out.
    :param port: of the gateway's listener inside, None without one.
    :param inside: the probe's report from inside; hostile only if the sandbox's own python is.
    :param outside: the same program's report from outside, as the user: what can be had at all.
    :param heard_outside: listeners of the host that heard the probe outside.
    :param heard_inside: those that heard it from inside.
    """

    spec: SandboxSpec
    inside: Report
    outside: Report
    heard_outside: frozenset[str]
    heard_inside: frozenset[str]
    files: Mapping[str, str]
    limits: Mapping[str, Limit]
    port: int | None = None


def tried_rows(tried: Tried) -> Iterator[Row]:
    """Give what was tried inside, a row each."""
    yield from _files(tried)
    yield from _network(tried)
    yield from _processes(tried)
    yield from _privileges(tried)
    yield from _devices(tried)
    yield from _resources(tried)


def in_order(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Sort by area; within one as they came."""
    order = list(Area)
    return tuple(sorted(rows, key=lambda row: order.index(row.area)))


def unnamed_residuals(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the residuals that no row names."""
    named = {number for row in rows for number in row.residuals}
    return tuple(number for number in RESIDUALS if number not in named)


def _row(area: Area, text: str, *, held: bool | None, evidence: str, residuals: tuple[str, ...] = ()) -> Row:
    status = {True: Protection.HELD, False: Protection.NOT_HELD, None: Protection.NOT_ENFORCED}[held]
    return Row(area=area, property=text, status=status, evidence=evidence, residuals=residuals)


def _files(tried: Tried) -> Iterator[Row]:
    yield _bait(tried, "home", "your home is out of reach", ("R5",))
    yield _bait(tried, "state", "a file of clsecure's own state in it, too")
    yield _bait(tried, "temporary", "the temporary directory is the session's own")
    refused = {label: tried.inside["files"][label] for label in ("root's home", "passwords")}
    yield _row(
        Area.FILES,
        "root's files are out of reach",
        held=all(refused.values()),
        evidence=_errors(refused),
    )
    homes, given = set(tried.inside["home"]), {m.target.parts[2] for m in tried.spec.mounts if _in_home(m)}
    others = homes - {tried.spec.account.home.name} - given
    yield _row(
        Area.FILES,
        "no home of another account is seen",
        held=not others,
        evidence=f"/home holds {_names(homes)}; outside {len(tried.outside['home'])} names",
    )
    written = tried.inside["written"]
    yield _row(
        Area.FILES,
        "the system's files can be read, not written",
        held=all(written.values()),
        evidence=f"making a file: {_errors(written)}",
        residuals=("R2", "R29"),
    )


def _bait(tried: Tried, label: str, text: str, residuals: tuple[str, ...] = ()) -> Row:
    """Judge a file of the user's: there outside, not inside."""
    path = PurePosixPath(tried.files[label])
    inside, outside = tried.inside["files"][label], tried.outside["files"][label]
    given = [m for m in tried.spec.mounts if path.is_relative_to(m.source) or m.source.is_relative_to(path)]
    if outside is not None:
        held, evidence = None, f"could not be tried: {path} can't be read outside either ({outside})"
    elif inside is None and given:
        held, evidence = None, f"you have mounted {given[0].source}"
        residuals = (*residuals, "R13")
    else:
        held = inside is not None
        evidence = f"{path}: inside {inside or 'it can be read'}, outside it can be read"
    return _row(Area.FILES, text, held=held, evidence=evidence, residuals=residuals)


def _in_home(mount: Mount) -> bool:
    return len(mount.target.parts) > 2 and mount.target.parts[1] == "home"


def _network(tried: Tried) -> Iterator[Row]:
    full = tried.spec.network is NetworkPolicy.FULL
    loopback = ("127.0.0.1", "::1")
    yield _unheard(tried, loopback, "services on this machine's loopback are out of reach", ("R26",))
    yield _unheard(tried, (OWN_ADDRESS,), "services on this machine's other addresses, too", ("R23",))
    yield _unheard(
        tried, ("an abstract socket", "a socket in /tmp"), "local sockets of this machine are out of reach"
    )
    routes = tried.inside["routes"]
    if full:
        yield _row(
            Area.NETWORK,
            "the internet is open, as you said",
            held=None,
            evidence=f"network = full; ways out: {_names(f for f, error in routes.items() if not error)}",
            residuals=("R3", "R4", "R15", "R23", "R24"),
        )
        return
    yield _row(
        Area.NETWORK,
        "no packet leaves by itself",
        held=all(routes.values()) and set(tried.inside["interfaces"]) <= {"lo"},
        evidence=f"{_errors(routes)}; interfaces: {_names(tried.inside['interfaces'])}; "
        f"outside {_names(tried.outside['interfaces'])}",
    )
    answering = tried.inside["resolvers"]
    yield _row(
        Area.NETWORK,
        "no resolver answers",
        held=not answering,
        evidence=f"inside: {_names(answering)}; outside: {_names(tried.outside['resolvers'])}",
    )
    ports = set(tried.inside["listening"])
    yield _row(
        Area.NETWORK,
        "the gateway's port is the only one" if tried.port else "there is no port to connect to",
        held=ports == ({tried.port} if tried.port else set()),
        evidence=f"listening inside: {_names(map(str, sorted(ports)))}",
        residuals=("R3", "R19", "R20", "R21", "R22", "R25", "R26", "R27") if tried.port else (),
    )


def _unheard(tried: Tried, labels: Sequence[str], text: str, residuals: tuple[str, ...] = ()) -> Row:
    """Judge by what the host's own listeners heard; what was never heard outside shows nothing."""
    heard = [label for label in labels if label in tried.heard_inside]
    could = [label for label in labels if label in tried.heard_outside]
    inside = {label: tried.inside["connected"][label] or "answered by another" for label in could}
    evidence = f"not heard by the host: {_errors(inside)}; each of them hears you"
    held: bool | None = True
    if heard:
        held, evidence = False, f"heard from inside: {_names(heard)}"
    elif not could:
        held, evidence = None, f"could not be tried: there is none ({_names(labels)})"
    return _row(Area.NETWORK, text, held=held, evidence=evidence, residuals=residuals)


def _processes(tried: Tried) -> Iterator[Row]:
    seen = tried.inside["marker"]
    evidence = (
        f"sees {tried.inside['processes']} processes, outside there are {tried.outside['processes']}; "
        f"one of yours is {'among them' if seen else 'not among them'}"
    )
    yield _row(
        Area.PROCESSES,
        "no process of this machine is seen",
        held=not seen if tried.outside["marker"] else None,
        evidence=evidence,
        residuals=("R12", "R14"),
    )


def _privileges(tried: Tried) -> Iterator[Row]:
    root = tried.inside["root_uid"]
    status = tried.inside["status"]
    # podman's containers: the barrier has seen from outside that this is the worker, without a capability.
    named = tried.spec.mode is IsolationMode.CONTAINER and status.get("Uid", "?").split()[0] == "0"
    bare = all(status.get(name, "?").strip("0") == "" for name in ("CapEff", "CapBnd"))
    became = "the worker is called 0 inside" if named else root or "works"
    yield _row(
        Area.PRIVILEGES,
        "root is not to be had",
        held=(root is not None or (named and bare)) and status.get("NoNewPrivs") == "1",
        evidence=f"becoming root: {became}; uid {status.get('Uid', '?').partition(' ')[0]}, "
        f"NoNewPrivs {status.get('NoNewPrivs', '?')}, CapBnd {status.get('CapBnd', '?')}",
    )
    calls = {name: error for name, error in tried.inside["calls"].items() if name not in _TERMINAL}
    reached = [name for name, error in calls.items() if error not in _REFUSED]
    open_outside = [name for name in calls if tried.outside["calls"].get(name) not in _REFUSED]
    yield _row(
        Area.PRIVILEGES,
        "system calls that no agent needs are refused",
        held=not reached if calls else None,
        evidence=f"reached: {_names(reached)}; refused: {_errors(calls)}; "
        f"outside, {len(open_outside)} of {len(calls)} are not",
        residuals=("R1", "R18"),
    )


def _devices(tried: Tried) -> Iterator[Row]:
    devices = set(tried.inside["devices"])
    further = devices - _PLAIN_DEVICES
    yield _row(
        Area.DEVICES,
        "no device of this machine's but the plain ones",
        held=not further,
        evidence=f"{len(devices)} names in /dev{f', among them {_names(further)}' if further else ''}; "
        f"outside {len(tried.outside['devices'])}",
        residuals=("R17",),
    )
    calls = {name: tried.inside["calls"].get(name) for name in _TERMINAL}
    yield _row(
        Area.DEVICES,
        "nothing can be typed into your terminal",
        held=all(error in _REFUSED for error in calls.values()) if tried.inside["calls"] else None,
        evidence=f"{_errors(calls)}; the agent has a terminal of its own, what it writes is shown as it is",
        residuals=("R10",),
    )


def _resources(tried: Tried) -> Iterator[Row]:
    limits = tried.inside["limits"]
    for name, (text, residual, rlimit) in _LIMITS.items():
        limit = tried.limits[name]
        if limit.value is None:
            evidence = "no limit is set"
        else:
            evidence = f"{limit.value}, {f'held by: {limit.by}' if limit.by else 'nothing here can hold it'}"
        if rlimit is not None:
            evidence += f"; RLIMIT_{rlimit} inside {_limit(limits[rlimit])}"
        yield _row(
            Area.RESOURCES,
            text,
            held=True if limit.value is not None and limit.by is not None else None,
            evidence=evidence,
            residuals=(residual,),
        )
    yield _row(
        Area.RESOURCES,
        "no core dumps are written",
        held=limits["CORE"] == 0,
        evidence=f"RLIMIT_CORE {_limit(limits['CORE'])}",
    )


def _limit(value: int | None) -> str:
    return "none" if value is None else str(value)


def _errors(results: Mapping[str, str | None]) -> str:
    """Group what came of several attempts by their error: "EPERM (bpf, mount)"."""
    groups: dict[str, list[str]] = {}
    for name, error in results.items():
        groups.setdefault(error or "works", []).append(name)
    return ", ".join(f"{error} ({', '.join(names)})" for error, names in groups.items())


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
