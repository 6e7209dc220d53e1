"""testinfra's connection into a sandbox: every command goes through the one probe that waits there.

Importing this imports testinfra: only those who use it do.
"""

from __future__ import annotations

from typing import Any

from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host

from clsecure.verify.probe import Probe

_LATE = 124
"""What timeout(1) ends with."""


class ProbeBackend(BaseBackend):  # type: ignore[misc]  # it has no types of its own
    """Runs what testinfra's modules ask for, in the sandbox and as the worker."""

    NAME = "clsecure"

    def __init__(self, probe: Probe) -> None:
        super().__init__("sandbox")
        self._probe = probe
        # Known without asking: the probe runs with LC_ALL=C.UTF-8.
        self._encoding = "utf-8"

    def run(self, command: str, *args: str, **_kwargs: Any) -> CommandResult:  # noqa: ANN401  # as the base has it
        """Run a line of the shell's.

        :raises VerificationError: the probe does not answer, or with nonsense.
        """
        line = self.get_command(command, *args)
        done = self._probe.run(line)
        words = done.stderr if done.status is not None else b"it did not end in time\n"
        status = _LATE if done.status is None else done.status
        return self.result(status, self.encode(line), done.stdout, words)

    def decode(self, data: bytes) -> str:
        """Take whatever a hostile program says."""
        return data.decode("utf-8", "surrogateescape")

    def encode(self, data: str) -> bytes:
        """Give back what :meth:`decode` took."""
        return data.encode("utf-8", "surrogateescape")


def host_over(probe: Probe) -> Host:
    """Return testinfra's host for a sandbox, as tests get it."""
    backend = ProbeBackend(probe)
    host = Host(backend)
    backend.set_host(host)
    return host
