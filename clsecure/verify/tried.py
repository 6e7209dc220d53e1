"""What a probe tells, and what the host knows beside it: the facts of the checks from inside.

A report is believed no more than who sent it: every part of it has its type and its bounds, or it is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from clsecure.errors import VerificationError
from clsecure.model import SandboxSpec

Errors = Mapping[str, str | None]
"""What was tried, each with the name of the error, None where it worked."""

_MOST = 512
_LONGEST = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one probe could do. All of it may hold hostile text.

    :param files: label to whether a file could be read, or a directory listed; ``empty`` holds nothing.
    :param home: the names in /home.
    :param root: the names in /.
    :param written: directories of the system's in which a file was to be made.
    :param own: the same for one of the user's own: shows that the probe can write at all.
    :param connected: label to whether the socket could be connected to, or a datagram be sent to it.
    :param sent: label to whether a packet could be sent there; asked only where a filter is to refuse it.
    :param routes: label to whether there is a way to such addresses.
    :param resolvers: name servers that answer.
    :param addresses6: the IPv6 addresses of the network namespace, as the kernel writes them.
    :param listening: TCP ports.
    :param processes: how many are seen.
    :param marker: the host's marked process is among them.
    :param foreign: pids of processes with another root, which can be entered.
    :param raised: a set-uid program and as whom it ran; None where there is none, or it could not be seen.
    :param calls: what came of system calls; :mod:`.calls` knows what it means.
    :param landlock: the version of Landlock that can be had there, 0 for none.
    :param reopened: whether the standard error can be opened once more: a file of the host's.
    :param signalled: whether the first process there can be signalled, where it is the same account's.
    :param confined: what another security module of the kernel's calls the process.
    :param escapes: how ways out of containers begin.
    :param limits: of this process, None for none.
    :param descriptors: those that it was born with, besides the standard three.
    """

    files: Errors
    home: tuple[str, ...]
    root: tuple[str, ...]
    written: Errors
    own: str | None
    connected: Errors
    sent: Errors
    routes: Errors
    resolvers: tuple[str, ...]
    interfaces: tuple[str, ...]
    addresses6: tuple[str, ...]
    listening: tuple[int, ...]
    processes: int
    marker: bool
    foreign: tuple[str, ...]
    status: Mapping[str, str]
    root_uid: str | None
    raised: tuple[str, int | None]
    user_namespace: str | None
    calls: Errors
    landlock: int
    reopened: Errors
    signalled: Errors
    confined: str
    escapes: Errors
    devices: tuple[str, ...]
    limits: Mapping[str, int | None]
    descriptors: tuple[str, ...]

    @classmethod
    def parse(cls, document: Mapping[str, object]) -> Report:
        """Take a probe's reply.

        :raises VerificationError: it is no report.
        """
        try:
            return cls(**{part.name: _PARTS[part.name](document[part.name]) for part in fields(cls)})
        except (KeyError, TypeError, ValueError) as error:
            raise VerificationError(
                "the probe inside gave no report that makes sense", details=str(error)
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit of the sandbox.

    :param most: as the sandbox was built; None when there is none.
    :param value: the same for people.
    :param by: what holds it; None for nothing on this machine.
    """

    most: float | None
    value: str | None
    by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What was tried.

    :param limits: memory, cpus, pids, disk and open_files.
    :param files: label to path of what the host has put out.
    :param services: label to path of the sockets of this machine's services.
    :param addresses: labels of the host's listeners at this machine's own addresses.
    :param landlock: the version that the launcher says it has applied, 0 for none.
    :param words: path of the file that is the probe's standard error, before it lost its name.
    :param port: of the gateway's listener inside, None without one.
    :param inside: the probe's report from inside.
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
    services: Mapping[str, str]
    addresses: tuple[str, ...]
    limits: Mapping[str, Limit]
    landlock: int
    words: str
    port: int | None = None


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise TypeError("no text, or a long one")
    return value


def _error(value: object) -> str | None:
    return None if value is None else _text(value)


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("no number")
    return value


def _some_number(value: object) -> int | None:
    return None if value is None else _number(value)


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("neither true nor false")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list) or len(value) > _MOST:
        raise TypeError("no list, or a long one")
    return value


def _map(value: object) -> dict[str, object]:
    if not isinstance(value, dict) or len(value) > _MOST or not all(isinstance(key, str) for key in value):
        raise TypeError("no map of names, or a long one")
    return value


def _names(value: object) -> tuple[str, ...]:
    return tuple(map(_text, _list(value)))


def _errors(value: object) -> Errors:
    return {_text(key): _error(error) for key, error in _map(value).items()}


def _pair(value: object) -> tuple[str, int | None]:
    program, uid = _list(value)
    return _text(program), _some_number(uid)


_PARTS: Mapping[str, Callable[[object], Any]] = {
    **dict.fromkeys(("files", "written", "connected", "sent", "routes", "calls", "escapes"), _errors),
    **dict.fromkeys(("reopened", "signalled"), _errors),
    **dict.fromkeys(("home", "root", "resolvers", "interfaces", "addresses6", "foreign", "devices"), _names),
    **dict.fromkeys(("own", "root_uid", "user_namespace"), _error),
    "descriptors": _names,
    "listening": lambda value: tuple(map(_number, _list(value))),
    "processes": _number,
    "landlock": _number,
    "confined": _text,
    "marker": _truth,
    "status": lambda value: {_text(key): _text(found) for key, found in _map(value).items()},
    "raised": _pair,
    "limits": lambda value: {_text(key): _some_number(found) for key, found in _map(value).items()},
}
