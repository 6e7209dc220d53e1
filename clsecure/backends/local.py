"""What `user` and `namespace` have in common: the helper builds the sandbox, the launcher waits in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from clsecure.backends.api import Asked, Capabilities, ContainerFacts, FileIdentity, Given, RunningFacts
from clsecure.backends.lending import lent
from clsecure.backends.reports import process_facts, running_facts, sandbox_end
from clsecure.backends.streams import Streams
from clsecure.errors import (
    BackendUnavailableError,
    HelperError,
    ImageLostError,
    NotStartedError,
    UsageError,
)
from clsecure.machine.containers import require_docker_socket
from clsecure.model import DockerAccess, IsolationMode, Mount, ResourceLimits, SandboxCommand, SandboxSpec
from clsecure.privileged.client import HelperConnection, SandboxEnd
from clsecure.privileged.leftovers import Found

# What podman says of a store, and of an image in it, that is not there.
_LOST_IMAGE = ("imageStore dir", "no such image", "image not known")


class LocalSandbox:
    """A sandbox whose launcher waits at the barrier, or runs the command."""

    def __init__(
        self,
        connection: HelperConnection,
        report: dict[str, Any],
        fds: list[int],
        *,
        plain: bool,
        asked: Asked,
        container: ContainerFacts | None = None,
    ) -> None:
        launcher = report["report"]
        self._connection = connection
        self.end: SandboxEnd | None = None
        self._failure: str | None = None
        self.looked: Callable[[RunningFacts], None] | None = None
        """Gets what the helper sees of the running sandbox, from :meth:`receive`: soon, then now and then."""
        self.enforced: Mapping[str, str] = report["enforced"]
        # They come last.
        count = len(fds) - sum(report["facts"]["programs"].values())
        self._programs = fds[count:]
        del fds[count:]
        self.facts = process_facts(report["facts"], launcher, container, self._programs, asked)
        self.listener: socket.socket | None = None
        self.terminal: int | None = None
        self.port: int | None = launcher["port"]
        self._streams: Streams | None = None
        if launcher["port"] is not None:
            self.listener = socket.socket(fileno=fds.pop(0))
        if plain:
            count = 2 if launcher["terminal"] else 3
            self._streams = Streams(fds[:count], terminal=launcher["terminal"])
            self.terminal = self._streams.terminal
            del fds[:count]
        elif launcher["terminal"]:
            self.terminal = fds.pop(0)
        self.engine_socket = socket.socket(fileno=fds.pop(0)) if fds else None
        """Where the sandbox asks for the machine's docker, when the spec lends it."""

    def probe(self, stdio: tuple[int, int, int]) -> None:
        """Let the launcher run the probe (``inside.py``) in this very sandbox until :meth:`start` ends it.

        A later one ends an earlier one; nothing that it started stays. Its end is no end of the sandbox.

        :raises UsageError: this sandbox hands no descriptors in; ask :attr:`can_probe`.
        """
        if not self.can_probe:
            raise UsageError("no probe can be started in this sandbox: it hands no descriptors in")
        self._connection.send({"verb": "probe"}, stdio)

    @property
    def can_probe(self) -> bool:
        """Tell whether :meth:`probe` works here: not where the sandbox has a kernel of its own (gVisor)."""
        return self._streams is None

    def start(self, command: SandboxCommand, *, stdio: tuple[int, int, int] | None) -> None:
        """Let the launcher exec the command; that it could not is told by :meth:`wait`."""
        message = {
            "verb": "start",
            "argv": list(command.argv),
            "env": dict(command.env),
            "cwd": str(command.cwd),
        }
        if self._streams is not None:
            self._connection.send(message)
            if stdio is not None:
                self._streams.carry(stdio)
            return
        self._connection.send(message, stdio or ())

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal inside another size."""
        if self._streams is not None:
            self._streams.resize(rows, columns)
        elif self.terminal is not None:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait(self, *, timeout: float | None = None) -> int | None:
        """Return the exit status after every process is dead, or None when the time is over.

        :raises NotStartedError: the command could not be started.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.end is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._connection], [], [], left)[0]:
                return None
            self.receive()
        if self._failure is not None:
            raise NotStartedError(
                "the command could not be started inside",
                details=self._failure,
                resolution="Programs outside of the system's directories come along with: --mount DIRECTORY",
            )
        return self.end.status

    def receive(self) -> None:
        """Take one event in: the end, what was seen of it meanwhile, or that the command could not start."""
        reply, _ = self._connection.receive()
        if reply["event"] == "failed":
            self._failure = str(reply["error"])
        elif reply["event"] == "looked":
            if self.looked is not None:
                self.looked(running_facts(reply))
        else:
            self.end = sandbox_end(reply)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the sandbox ends."""
        return self._connection.fileno()

    def kill(self) -> None:
        """End every process of the sandbox."""
        if self.end is None:
            self._connection.send({"verb": "kill"})

    def close(self) -> None:
        """Kill what is left and give the descriptors back."""
        if self.end is None:
            with contextlib.suppress(HelperError, UsageError):
                self.kill()
                self.wait(timeout=60)
        if self.listener is not None:
            self.listener.close()
        if self._streams is not None:
            self._streams.close()
        elif self.terminal is not None:
            os.close(self.terminal)
        self.terminal = None
        while self._programs:
            os.close(self._programs.pop())


class LocalBackend:
    """A mode that the root helper builds: ``user`` or ``namespace``."""

    capabilities = Capabilities(own_network=True, own_pid_namespace=True, file_system_view=True)

    def __init__(self, mode: IsolationMode, connection: HelperConnection) -> None:
        self.mode = mode
        self._connection = connection
        self.watch: Callable[[RunningFacts, SandboxSpec], bool] = lambda _facts, _spec: True
        """Judges what runs in every sandbox; one that does not hold is ended."""
        self.image_lost: Callable[[], None] | None = None
        """Gives the engine the container's image again, which it was seen to have and has no more."""
        self._container: ContainerFacts | None = None  # of the sandbox that comes up

    @contextmanager
    def open(
        self, spec: SandboxSpec, *, meanwhile: Callable[[], None] | None = None
    ) -> Iterator[LocalSandbox]:
        """Build the sandbox up to the barrier; leaving kills and releases all of it.

        :param meanwhile: work of the caller's, done while the helper builds.
        :raises BackendUnavailableError: the sandbox did not come up.
        """
        try:
            asked = self._come_up(spec, meanwhile)
        except ImageLostError:
            if self.image_lost is None:
                raise
            self.image_lost()
            # The caller's work is done already.
            asked = self._come_up(spec, None)
        sandbox = self._built(spec, asked)
        try:
            with contextlib.ExitStack() as stack:
                if sandbox.engine_socket is not None:
                    stack.enter_context(lent(sandbox.engine_socket, require_docker_socket()))
                yield sandbox
        finally:
            sandbox.close()

    def _come_up(self, spec: SandboxSpec, meanwhile: Callable[[], None] | None) -> Asked:
        """Ask the helper for the sandbox, and an engine for its container, if any."""
        given: dict[str, Given] = {}
        with contextlib.ExitStack() as stack:
            fds = [] if spec.network_namespace is None else [spec.network_namespace]
            for mount in spec.mounts:
                fd = _open_source(mount)
                stack.callback(os.close, fd)
                fds.append(fd)
                given[str(mount.target)] = _given(fd)
            table = Path("/proc/self/mountinfo").read_bytes().decode("utf-8", "surrogateescape")
            # Of all that ends a line elsewhere, the kernel escapes this one alone.
            asked = Asked(given=given, mountinfo=tuple(table.split("\n")[:-1]))
            request = {
                "mode": spec.mode.value,
                "listener": spec.listener,
                "network_namespace": spec.network_namespace is not None,
                "private": spec.allow_private,
                "terminal": list(spec.terminal) if spec.terminal else None,
                "agent": spec.program.sha256 if spec.program else None,
                "agent_name": spec.program.name if spec.program else None,
                "image_programs": sorted(spec.container.image.programs) if spec.container else [],
                "limits": _limits(spec.limits),
                "disk_reserve": spec.disk_reserve,
                "mounts": [{"target": str(m.target), "read_only": m.read_only} for m in spec.mounts],
            }
            if spec.docker is not DockerAccess.NONE:
                request |= {"docker": spec.docker.value, "workspace": spec.workspace}
                request |= {"gateway_token": spec.gateway_token}
            bring_up = stack.enter_context(self._prepared(spec, request, fds))
            self._connection.run(request, fds)
            self._sent()
            try:
                _together(meanwhile, bring_up)
            except BackendUnavailableError as error:
                words = f"{error.details or ''}\n{self._give_up()}".strip()
                lost = isinstance(error, ImageLostError) or any(sign in words for sign in _LOST_IMAGE)
                kind = ImageLostError if lost else BackendUnavailableError
                raise kind(error.brief, details=words, resolution=error.resolution) from error
            except BaseException:
                self._give_up()
                raise
        return asked

    def containers_left(self, spec: SandboxSpec) -> Found | None:
        """Return what an engine that outlives the session has of it; None where there is none to ask."""
        del spec
        return None

    def _prepared(
        self, spec: SandboxSpec, request: dict[str, Any], fds: list[int]
    ) -> AbstractContextManager[Callable[[], None] | None]:
        """Add to the request; give back what an engine is to be told once that is sent."""
        del spec, request, fds
        return contextlib.nullcontext()

    def _sent(self) -> None:
        """Wait for what an engine needs, if anything."""

    def _give_up(self) -> str:
        """End a sandbox that may be on its way still; return what its own programs said."""
        try:
            self._connection.send({"verb": "kill"})
            report, received = self._connection.receive()
            for fd in received:
                os.close(fd)
            if report["event"] == "ready":
                report, _ = self._connection.receive()
        except HelperError as error:
            return error.details or ""
        return str(report.get("log", ""))

    def _built(self, spec: SandboxSpec, asked: Asked) -> LocalSandbox:
        try:
            report, received = self._connection.receive()
            if report["event"] != "ready":
                raise HelperError("the sandbox ended at once", details=str(report.get("log", "")))
        except HelperError as error:
            raise BackendUnavailableError(
                f"the {spec.mode} sandbox did not come up",
                details=error.details,
                resolution="See what this machine lacks with: clsecure doctor",
            ) from error
        sandbox = LocalSandbox(
            self._connection, report, received, plain=spec.is_gvisor, asked=asked, container=self._container
        )
        sandbox.looked = lambda facts: None if self.watch(facts, spec) else sandbox.kill()
        lacking = sorted(spec.required_limits - sandbox.enforced.keys())
        if lacking:
            sandbox.close()
            name = lacking[0]
            raise BackendUnavailableError(
                f"the limit of {name} can't be enforced on this machine",
                details="The kernel has no controller of control groups for it that can be used here.",
                resolution=f"clsecure doctor says more; --limit {name}=none goes without it",
            )
        return sandbox


def _together(work: Callable[[], None] | None, bring_up: Callable[[], None] | None) -> None:
    """Do the caller's work and the engine's at the same time."""
    if work is None or bring_up is None:
        for task in (bring_up, work):
            if task is not None:
                task()
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        brought = pool.submit(bring_up)
        work()
        brought.result()


def _open_source(mount: Mount) -> int:
    """Open what is to be mounted as the user: what the user can't reach, root must not open for them."""
    try:
        fd = os.open(mount.source, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{mount.source} can't be mounted", details=str(error)) from error
    place = Path(f"/proc/self/fd/{fd}").readlink()
    if mount.direct and place != mount.source:
        os.close(fd)
        raise UsageError(
            f"{mount.source} can't be mounted",
            details=f"It leads to {place}",
            resolution="take the link away, or leave it out (a shared Homebrew: toolchains = false)",
        )
    return fd


def _given(fd: int) -> Given:
    """Return what was opened."""
    path, status = os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd)  # noqa: PTH115  # no path, a name
    identity = FileIdentity(device=status.st_dev, inode=status.st_ino, uid=status.st_uid, mode=status.st_mode)
    return Given(path=path, identity=identity)


def _limits(limits: ResourceLimits) -> dict[str, int | float]:
    found = {part.name: getattr(limits, part.name) for part in fields(limits)}
    return {name: float(most) if name == "cpus" else most for name, most in found.items() if most}
