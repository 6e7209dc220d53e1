"""Full network: a network namespace of the session's own, connected by pasta or slirp4netns, run as the user.

No part of this is root's: a user and a network namespace are made as the user, and what connects them speaks
to the outside as any program of the user's would. The helper only moves the session into the namespace, by a
descriptor, and loads the packet filter there that drops the host's addresses, private ranges and metadata.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from clsecure import process
from clsecure.errors import BackendUnavailableError, ToolError
from clsecure.machine.probe import CONNECTORS, find_connector, install_command, user_namespaces_closed
from clsecure.process import Command

RESOLVER: Final = "169.254.1.3"
"""Where DNS is answered inside, by the host's own resolver. The filter knows this one address, and it is the
only one that both can be made to use: slirp4netns answers at the third address of its network."""

_READY_SECONDS = 10.0
_POLL_SECONDS = 0.01
_END_SECONDS = 5.0
_WORDS = 4000
_WAITS = "cat"
# No port of the host comes in, none of the session's goes out to the host, and the gateway's address is not
# the host's loopback. Source: pasta(1).
_PASTA = (
    "pasta",
    "--foreground",
    "--quiet",
    "--config-net",
    "--no-map-gw",
    "--tcp-ports=none",
    "--udp-ports=none",
    "--tcp-ns=none",
    "--udp-ns=none",
    f"--dns-forward={RESOLVER}",
)
# IPv4 only: its IPv6 is experimental. The MTU costs nothing, since no packet of it is sent anywhere as it is.
# Source: slirp4netns(1).
_SLIRP = (
    "slirp4netns",
    "--configure",
    "--mtu=65520",
    "--cidr=169.254.1.0/24",
    "--disable-host-loopback",
    "--enable-sandbox",
    "--enable-seccomp",
)


class FullNetwork:
    """A connected network namespace and its descriptor; a context manager that ends both.

    The first process of the namespace and what connects it wait on a pipe of ours: when this process dies,
    however, they end. When what connects it dies, its interface goes with it, and the namespace has no way
    out any more.

    :param connector: one of :data:`CONNECTORS` by name; the first that is installed by default.
    :raises BackendUnavailableError: none is installed, or it can't make or connect the namespace.
    """

    def __init__(self, connector: str | None = None) -> None:
        """Start everything and wait until there is a way out."""
        self.connector = connector or find_connector()
        if self.connector is None:
            raise _unavailable(f"neither {' nor '.join(CONNECTORS)} is installed", install_command("pasta"))
        self.namespace = -1
        self._children: list[tuple[process.Process[bytes], int]] = []
        self._end, self._hold = os.pipe2(os.O_CLOEXEC)
        # Never full and never closed while somebody may write: a warning must not end the network.
        self._words, self._errors = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            first = self._pasta() if self.connector == "pasta" else self._slirp()
            self.namespace = os.open(f"/proc/{first}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

    @property
    def ended(self) -> bool:
        """Something of it is not there any more, so nothing goes out."""
        # By descriptor: who is not waited for keeps its number, which close() needs.
        return bool(select.select([pidfd for _, pidfd in self._children], [], [], 0)[0])

    def close(self) -> None:
        """End it; what is still in the namespace has no way out any more."""
        for fd in (self._hold, self._end, self._words, self._errors, self.namespace):
            if fd >= 0:
                os.close(fd)
        self._hold = self._end = self._words = self._errors = self.namespace = -1
        deadline = time.monotonic() + _END_SECONDS
        while self._children:
            child, pidfd = self._children.pop()
            select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
            # All of its group: a pasta that fails early leaves a child that waits for it for ever.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            os.close(pidfd)

    def __enter__(self) -> FullNetwork:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

    def _pasta(self) -> int:
        """Return a process in the namespace that pasta made and connected."""
        pasta = self._spawn(*_PASTA, "--", _WAITS).pid

        def connected() -> bool:
            first = _first_child(pasta)
            # It executes its program when all is done, after confining itself.
            return _is_waiting(first) and _has_route(first)

        self._wait_for(connected, "pasta gave the namespace no route in time")
        return _first_child(pasta)

    def _slirp(self) -> int:
        """Return a process in a namespace that is connected by slirp4netns."""
        first = self._spawn("unshare", "--user", "--map-root-user", "--net", "--", _WAITS).pid
        self._wait_for(lambda: _is_waiting(first), "the namespace was not made in time")
        ready, done = os.pipe2(os.O_CLOEXEC)
        try:
            fds = (f"--ready-fd={done}", f"--exit-fd={self._end}")
            self._spawn(*_SLIRP, *fds, str(first), "tap0", pass_fds=(done, self._end))
            # Not the route: that is there before its sandbox is, in which it may fail.
            waiting = "slirp4netns did not connect the namespace in time"
            self._wait_for(lambda: bool(select.select([ready], [], [], 0)[0]), waiting)
        finally:
            os.close(ready)
            os.close(done)
        return first

    def _spawn(self, *argv: str, pass_fds: tuple[int, ...] = ()) -> process.Process[bytes]:
        command = Command(argv=argv, cwd=Path("/"))
        try:
            child = process.spawn(
                command, stdin=self._end, stderr=self._errors, new_session=True, pass_fds=pass_fds
            )
        except ToolError as error:
            raise _unavailable(error.brief, install_command(argv[0])) from error
        self._children.append((child, os.pidfd_open(child.pid)))
        return child

    def _wait_for(self, ready: Callable[[], bool], late: str) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not ready():
            if self.ended:
                raise self._failure()
            if time.monotonic() > deadline:
                raise _unavailable(late, "check that this machine has a route to the internet")
            time.sleep(_POLL_SECONDS)

    def _failure(self) -> BackendUnavailableError:
        """Return the error of a child that ended, in its own words."""
        said = ""
        with contextlib.suppress(BlockingIOError):
            said = os.read(self._words, _WORDS).decode("utf-8", "replace").strip()
        why = said or f"{self.connector} ended at once"
        setting = user_namespaces_closed()
        if setting is None:
            return _unavailable(why, "clsecure doctor")
        name, value = setting
        fix = f"sudo sysctl {name}={value}"
        if self.connector != "pasta":
            fix = f"{install_command('pasta')} (it may have a permission of its own), or: {fix}"
        return _unavailable(f"{why}\nplain users can't make user namespaces here ({name})", fix)


def _first_child(pid: int) -> int:
    """Return a process's first child, 0 for none."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()[0])
    return 0


def _has_route(pid: int) -> bool:
    """Tell whether the namespace has an interface besides loopback and a default route of either family."""
    with contextlib.suppress(OSError):
        routes = Path(f"/proc/{pid}/net/route").read_text(encoding="ascii").splitlines()[1:]
        if any(line.split()[1] == "00000000" for line in routes):
            return True
        routes = Path(f"/proc/{pid}/net/ipv6_route").read_text(encoding="ascii").splitlines()
        return any(line.split()[0] == "0" * 32 and line.split()[9] != "lo" for line in routes)
    return False


def _is_waiting(pid: int) -> bool:
    """Tell whether a process of the namespace is there, and executes what waits for the end."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="ascii") == f"{_WAITS}\n"
    return False


def _unavailable(why: str, fix: str) -> BackendUnavailableError:
    return BackendUnavailableError("there is no way to a full network here", details=why, resolution=fix)
