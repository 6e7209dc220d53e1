"""What every backend offers. The way is the same in all modes: open, inspect, start, wait, close."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from clsecure.model import IsolationMode, SandboxCommand, SandboxSpec


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
    :param landlock_abi: what the launcher applied, 0 for none.
    :param seccomp_filter: the launcher's own filter is on.
    :param kernel: release and version of the kernel that the launcher sees (uname(2)).
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
    kernel: str = ""


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
