"""The only caller of ``subprocess``."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from clsecure.errors import ToolError

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs of the machine are looked for: absolute directories, never the user's PATH."""


_PATIENCE_SECONDS = 20.0

# The second is git's own, from index-pack.
_DISK_FULL = ("No space left on device", "Out of diskspace", "Disk quota exceeded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program to run on the host, as the user.

    :param argv: program first; found on ``env["PATH"]`` when it has no slash.
    :param env: the whole environment of the child.
    :param stderr: a descriptor that it goes to, None to collect it.
    :param timeout: seconds; every wait has an end.
    :param pass_fds: descriptors that it inherits by their numbers.
    """

    argv: tuple[str | bytes, ...]
    env: Mapping[str, str] = field(default_factory=lambda: {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"})
    cwd: Path | None = None
    input: bytes | None = None
    stderr: int | None = None
    timeout: float = 600.0
    pass_fds: tuple[int, ...] = ()

    def display(self) -> str:
        """Return a line that can be pasted into a shell."""
        return shlex.join(
            a if isinstance(a, str) else a.decode("utf-8", "backslashreplace") for a in self.argv
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """What a finished command left."""

    command: Command
    returncode: int
    stdout: bytes
    stderr: bytes

    def check(self) -> CommandResult:
        """Return itself, or raise :class:`ToolError` with the command's own words."""
        if self.returncode != 0:
            words = self.stderr[-4000:].decode("utf-8", "replace")
            full = any(sign in words for sign in _DISK_FULL)
            raise ToolError(
                f"{self.command.argv[0]!s} failed with status {self.returncode}"
                f"{': the disk is full' if full else ''}",
                details=f"{self.command.display()}\n{words}".rstrip(),
                resolution="Free some space and run it again" if full else None,
            )
        return self


def run(command: Command) -> CommandResult:
    """Run to the end and collect both outputs.

    :raises ToolError: the program is missing or did not end in time (it is killed then).
    """
    try:
        done = subprocess.run(
            command.argv,
            env=dict(command.env),
            cwd=command.cwd,
            input=command.input,
            stdin=subprocess.DEVNULL if command.input is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if command.stderr is None else command.stderr,
            timeout=command.timeout,
            pass_fds=command.pass_fds,
            check=False,
        )
    except FileNotFoundError as error:
        raise ToolError(f"{command.argv[0]!s} is not installed", details=str(error)) from error
    except subprocess.TimeoutExpired as error:
        raise ToolError(
            f"{command.argv[0]!s} did not end within {command.timeout:g} s", details=command.display()
        ) from error
    return CommandResult(
        command=command, returncode=done.returncode, stdout=done.stdout, stderr=done.stderr or b""
    )


def run_group(command: Command) -> CommandResult:
    """Run to the end, in a session of its own: what cuts it short ends all of that first, and waits for it.

    :raises ToolError: the program is missing or did not end in time.
    """
    child = spawn(command, stdout=PIPE, stderr=PIPE, new_session=True)
    with child:
        try:
            stdout, stderr = child.communicate(timeout=command.timeout)
        except subprocess.TimeoutExpired as error:
            _end_group(child)
            raise ToolError(
                f"{command.argv[0]!s} did not end within {command.timeout:g} s", details=command.display()
            ) from error
        except BaseException:
            _end_group(child)
            raise
    return CommandResult(command=command, returncode=child.returncode, stdout=stdout, stderr=stderr)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Ask all of a process group to end, then end it; return when its first process is gone, and the rest."""
    try:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(child.pid, signal.SIGTERM)
            child.wait(_PATIENCE_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            # Others of the group belong to init now, which may be slow to say that they are dead.
            until = time.monotonic() + 2
            while time.monotonic() < until:
                os.killpg(child.pid, 0)
                time.sleep(0.02)


def spawn(
    command: Command,
    *,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    new_session: bool = False,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start and return at once; the caller waits, closes and kills. ``None`` is /dev/null."""
    try:
        return subprocess.Popen(
            command.argv,
            env=dict(command.env),
            cwd=command.cwd,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=subprocess.DEVNULL if stderr is None else stderr,
            start_new_session=new_session,
            pass_fds=tuple(pass_fds),
        )
    except FileNotFoundError as error:
        raise ToolError(f"{command.argv[0]!s} is not installed", details=str(error)) from error


PIPE = subprocess.PIPE
STDOUT = subprocess.STDOUT
Process = subprocess.Popen
TimeoutExpired = subprocess.TimeoutExpired
