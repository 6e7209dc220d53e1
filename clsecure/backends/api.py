"""What every backend offers. The way is the same in all modes: open, inspect, start, wait, close."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from clsecure.backends.container.spec import ContainerPlan
from clsecure.model import IsolationMode, SandboxCommand, SandboxSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """What is in a network namespace, by the host; each kind bounded.

    :param interfaces: their names.
    :param routes: names of interfaces that routes lead to.
    :param ports: on which something listens (TCP), on any address.
    :param sockets: abstract Unix sockets.
    :param datagrams: what takes packets without a connection: kind (UDP, raw and so on) and port.
    """

    interfaces: tuple[str, ...]
    routes: tuple[str, ...]
    ports: tuple[int, ...]
    sockets: tuple[str, ...]
    datagrams: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIdentity:
    """Which file it is, whose, and what it allows (``mode`` of stat(2))."""

    device: int
    inode: int
    uid: int
    mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceFacts:
    """What a sandbox has in a place of its plan, and what belongs there; None for nothing."""

    inside: FileIdentity | None
    outside: FileIdentity | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What this process opened, to be mounted.

    :param path: where it is, through no link.
    """

    path: str
    identity: FileIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What this process knew by itself when it asked for a sandbox.

    :param given: by target.
    :param mountinfo: the lines of its own /proc/self/mountinfo.
    """

    given: Mapping[str, Given] = field(default_factory=dict)
    mountinfo: tuple[str, ...] = ()


Map = tuple[tuple[int, ...], ...]
"""Lines of user_namespaces(7): first number inside, first outside, how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapFacts:
    """Who the numbers of user namespaces are to the machine.

    :param uids, gids: of the sandbox's.
    :param host_uids, host_gids: of the helper's own.
    :param images, tty: the uid, and the gid, that an engine maps besides the worker's; None for none.
    """

    uids: Map
    gids: Map
    host_uids: Map
    host_gids: Map
    images: int | None = None
    tty: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramFacts:
    """The agent's program.

    :param path: of root's kept copy, outside.
    :param inside: what is in its place in the sandbox; None for nothing.
    """

    path: Path
    kept: FileIdentity
    inside: FileIdentity | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyringFacts:
    """The session keyring that a sandbox's processes have, as the kernel told the first of them.

    :param serial: its number.
    :param name: the kernel calls a nameless one ``_ses``.
    :param helper: number of the root helper's, of which that process came.
    """

    serial: int
    name: str
    helper: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFacts:
    """What was wanted of an engine, and what it says of the container that it made (inspect)."""

    plan: ContainerPlan
    inspected: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """What the host sees in /proc of the process that waits at the barrier.

    :param pid: in the host's PID namespace.
    :param status: the fields of /proc/PID/status.
    :param namespaces: name to ``name:[inode]``.
    :param host_namespaces: the same of the host's own first process tree.
    :param mountinfo: the lines of /proc/PID/mountinfo.
    :param descriptors: number to link target.
    :param executable: target of /proc/PID/exe.
    :param interpreter: that is the very file which this machine has as /usr/bin/python3.
    :param landlock_abi: what the launcher applied, 0 for none.
    :param seccomp_filter: the launcher's own filter is on.
    :param kernel: release and version of the kernel that the launcher sees (uname(2)).
    :param network: None where it was not seen.
    :param port: on which the launcher listens for the gateway.
    :param program: None where the sandbox has none of its own.
    :param packet_filter: that of a full network, as nft(8) lists it; "" where there is none.
    :param container: None in the other modes.
    :param places: by path inside.
    :param maps: None where it was not seen.
    :param image_programs: name of each agent that its image has to a descriptor of what is in its place; None
        for nothing that everybody may read. They are the sandbox's, and closed with it.
    :param keyring: None where the sandbox does not come of the root helper.
    """

    pid: int
    status: Mapping[str, str]
    namespaces: Mapping[str, str]
    host_namespaces: Mapping[str, str]
    mountinfo: tuple[str, ...]
    descriptors: Mapping[int, str]
    executable: str
    landlock_abi: int
    seccomp_filter: bool
    interpreter: bool = False
    kernel: str = ""
    network: NetworkFacts | None = None
    port: int | None = None
    program: ProgramFacts | None = None
    packet_filter: str | None = None
    container: ContainerFacts | None = None
    places: Mapping[str, PlaceFacts] = field(default_factory=dict)
    asked: Asked = field(default_factory=Asked)
    maps: MapFacts | None = None
    keyring: KeyringFacts | None = None
    image_programs: Mapping[str, int | None] = field(default_factory=dict)


class Place(StrEnum):
    """Where a process of the worker's is, by its PID namespace and those around that."""

    INSIDE = "inside"
    """In the sandbox."""
    ENGINE = "engine"
    """podman's, which holds the sandbox's container; with gVisor its kernel, too."""
    SIDECAR = "sidecar"
    """The session's own engine, or one of its containers."""
    HELD = "held"
    """A child of the root helper, for the session: a count of the disk, the outer one of firejail's two."""
    MOVING = "moving"
    """In none of these, and not seen there before."""
    OUTSIDE = "outside"
    """In none of these, and there already when the helper looked before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningKind:
    """Processes of a running sandbox that are alike in all of this.

    :param first: of their PID namespace: the one that everything else in it dies with.
    :param status: Uid, Gid, Groups, the five capability sets, NoNewPrivs and Seccomp of /proc/PID/status.
    :param namespaces: name to ``own`` (that of the sandbox at the barrier), ``host`` or ``other``.
    :param program: what one of them executes; hostile.
    :param pids: the first few, in the host's PID namespace.
    """

    place: Place
    first: bool
    status: Mapping[str, str]
    namespaces: Mapping[str, str]
    program: str
    pids: tuple[int, ...]
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherMount:
    """A mount of a running sandbox that was not there at the barrier, or was and is not.

    :param on: kind of the file system that it is mounted on.
    """

    target: str
    kind: str
    on: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningFacts:
    """What the host sees in /proc of the worker's processes while the command runs.

    :param processes: how many were looked at; one that was ending is not among them.
    :param cut: there were more than a look takes; the next one begins with them.
    :param further: first and number of the further uids that a session's own engine has.
    :param shared: namespaces that the sandbox at the barrier had in common with the host.
    :param new_mounts, gone_mounts: the first few; None where they were not seen.
    """

    kinds: tuple[RunningKind, ...]
    processes: int
    cut: bool = False
    further: tuple[int, int] | None = None
    shared: frozenset[str] = frozenset()
    new_mounts: tuple[OtherMount, ...] | None = None
    gone_mounts: tuple[OtherMount, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend can enforce; an unmet need of the plan is refused."""

    own_network: bool
    own_pid_namespace: bool
    file_system_view: bool


class SandboxHandle(Protocol):
    """A sandbox whose launcher waits at the barrier, or runs the command."""

    @property
    def facts(self) -> ProcessFacts:
        """What was seen at the barrier."""

    @property
    def enforced(self) -> Mapping[str, str]:
        """Which limits of the spec hold, and by what: cgroup, systemd, engine, rlimit, measured."""

    @property
    def listener(self) -> socket.socket | None:
        """The listening socket on the sandbox's loopback, when the spec asked for one."""

    @property
    def terminal(self) -> int | None:
        """The master side of the pty made inside, when the spec asked for one."""

    def start(self, command: SandboxCommand, *, stdio: tuple[int, int, int] | None) -> None:
        """Let the launcher exec the command. ``stdio`` is None exactly when there is a terminal."""

    def wait(self, *, timeout: float | None = None) -> int | None:
        """Return the command's exit status (128+N for signal N), or None when the time is over.

        Returns only after every process of the sandbox is dead.
        """

    def kill(self) -> None:
        """End every process of the sandbox; :meth:`wait` then returns soon."""


class Backend(Protocol):
    """One isolation mode on this machine."""

    mode: IsolationMode
    capabilities: Capabilities

    def open(
        self, spec: SandboxSpec, *, meanwhile: Callable[[], None] | None = None
    ) -> AbstractContextManager[SandboxHandle]:
        """Build the sandbox up to the barrier; leaving the context kills and releases all of it.

        :param meanwhile: work of the caller's, done while the sandbox comes up.
        """
