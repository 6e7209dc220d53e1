"""Full network: a network namespace of the session's own, connected by pasta, which runs as the user.

No part of this is root's: pasta makes a user and a network namespace as the user and speaks to the outside as
any program of the user's would. The helper only moves the session into the namespace, by a descriptor, and
loads the packet filter there that drops the host's addresses, private ranges and metadata.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

from clsecure import process
from clsecure.errors import BackendUnavailableError, ToolError
from clsecure.process import Command

RESOLVER: Final = "169.254.1.1"
"""Where DNS is answered inside: pasta passes queries on to the host's own resolver."""

_READY_SECONDS = 10.0
_POLL_SECONDS = 0.01
_END_SECONDS = 5.0
# No port of the host comes in, none of the session's goes out to the host, and the gateway's address is not
# the host's loopback. Source: pasta(1).
_OPTIONS = (
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


class FullNetwork:
    """A running pasta and the descriptor of its network namespace; a context manager that ends both.

    The namespace's first process waits on a pipe of ours: when this process dies, however, it ends, and pasta
    and the namespace's connection end with it.
    """

    def __init__(self) -> None:
        """Start pasta and wait until the namespace has a route.

        :raises BackendUnavailableError: pasta is missing, or can't make the namespace.
        """
        read, self._hold = os.pipe2(os.O_CLOEXEC)
        error_read, error_write = os.pipe2(os.O_CLOEXEC)
        self.namespace = -1
        try:
            self._child = process.spawn(
                Command(argv=("pasta", *_OPTIONS, "--", "cat"), cwd=Path("/")),
                stdin=read,
                stderr=error_write,
                new_session=True,
            )
        except ToolError as error:
            os.close(self._hold)
            raise _unavailable("pasta is not installed", "apt install passt, dnf install passt or "
                               "pacman -S passt") from error  # fmt: skip
        finally:
            os.close(read)
            os.close(error_write)
        try:
            self.namespace = self._wait(error_read)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(error_read)

    def close(self) -> None:
        """End pasta; what is still in the namespace has no way out any more."""
        for fd in (self._hold, self.namespace):
            if fd >= 0:
                os.close(fd)
        self._hold = self.namespace = -1
        self._child.terminate()
        try:
            self._child.wait(timeout=_END_SECONDS)
        except process.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def __enter__(self) -> FullNetwork:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

    def _wait(self, error: int) -> int:
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if self._child.poll() is not None:
                words = os.read(error, 4000).decode("utf-8", "replace")
                raise _unavailable(words.strip() or "pasta ended at once", "clsecure doctor")
            first = self._first_process()
            if first is not None and _has_route(first):
                return os.open(f"/proc/{first}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            time.sleep(_POLL_SECONDS)
        raise _unavailable("pasta gave the namespace no route in time", "check that this machine has one")

    def _first_process(self) -> int | None:
        pid = self._child.pid
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()[0])
        return None


def _has_route(pid: int) -> bool:
    """Tell whether the namespace has an interface besides loopback and a default route of either family."""
    with contextlib.suppress(OSError):
        routes = Path(f"/proc/{pid}/net/route").read_text(encoding="ascii").splitlines()[1:]
        if any(line.split()[1] == "00000000" for line in routes):
            return True
        routes = Path(f"/proc/{pid}/net/ipv6_route").read_text(encoding="ascii").splitlines()
        return any(line.split()[0] == "0" * 32 and line.split()[9] != "lo" for line in routes)
    return False


def _unavailable(why: str, fix: str) -> BackendUnavailableError:
    return BackendUnavailableError("there is no way to a full network here", details=why, resolution=fix)
