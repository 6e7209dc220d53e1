"""What a mode protects on this machine, row by row: what the host saw of a sandbox, and what was tried.

Pure: results of checks become rows. Where the host has seen something itself, that decides; what the inside
says adds to it. A row that could not be tried is never called held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from clsecure.model import CheckResult, CheckStatus, NetworkPolicy, Phase
from clsecure.verify.checks import Area
from clsecure.verify.host import BARRIER_CHECKS
from clsecure.verify.inside import INSIDE_CHECKS, check_inside
from clsecure.verify.tried import Tried
from clsecure.verify.words import names


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
    "R43": "who is you, or root, can forge a record",
    "R44": "checks look at moments, not all the time",
    "R45": "after the end, only so much is looked at where everybody may write",
    "R46": "checks of your own run outside, as you",
    "R47": "what this machine mounts below a directory that you gave comes along",
}
"""The residuals of docs/threat-model.md in a few words, for those who have only the installed package."""

_LIMITS = {
    "memory": ("memory is bounded", "R6"),
    "cpus": ("processor time is bounded", "R6"),
    "disk": ("its files on the disk are bounded", "R7"),
}
"""What no process inside can see of itself: the host says what holds it."""
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


def tried_rows(tried: Tried) -> Iterator[Row]:
    """Give what was tried inside, a row each, and what only the host can know."""
    checks = {check.check_id: check for check in INSIDE_CHECKS}
    for result in check_inside(tried, tried.spec, Phase.START):
        check = checks[result.check_id]
        wanted = "" if result.status is CheckStatus.PASS else f"; expected: {result.expected}"
        yield Row(
            area=check.area,
            property=check.property,
            status=_STATUS[result.status],
            evidence=f"{' '.join(result.observed.split())}{wanted}",
            residuals=check.residuals,
        )
    if tried.spec.network is NetworkPolicy.FULL:
        ways = (label for label in ("IPv4", "IPv6") if tried.inside.routes.get(label) is None)
        yield Row(
            area=Area.NETWORK,
            property="the internet is open, as you said",
            status=Protection.NOT_ENFORCED,
            evidence=f"network = full; ways out: {names(ways)}",
            residuals=("R3", "R4", "R15", "R23", "R24"),
        )
    for name, (text, residual) in _LIMITS.items():
        limit = tried.limits[name]
        held_by = f"held by: {limit.by}" if limit.by else "nothing here can hold it"
        yield Row(
            area=Area.RESOURCES,
            property=text,
            status=Protection.HELD if limit.value and limit.by else Protection.NOT_ENFORCED,
            evidence=f"{limit.value}, {held_by}" if limit.value else "no limit is set",
            residuals=(residual,),
        )


def in_order(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Sort by area; within one as they came."""
    order = list(Area)
    return tuple(sorted(rows, key=lambda row: order.index(row.area)))


def unnamed_residuals(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the residuals that no row names."""
    named = {number for row in rows for number in row.residuals}
    return tuple(number for number in RESIDUALS if number not in named)
