"""Programs of the user's own that a session calls: hooks, notifications. Never one of a repository's."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clsecure import process
from clsecure.errors import ToolError, UsageError
from clsecure.process import Command

_MAX_OUTPUT = 64 * 1024
_MAX_LINE = 2000
_GRACE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How it ended.

    :param status: as in subprocess, negative for a signal; None when it took too long and was ended.
    :param lines: what it said on both outputs, bounded; may need escaping.
    """

    status: int | None
    lines: tuple[str, ...]

    @property
    def failure(self) -> str | None:
        """In words; None when all is well."""
        if self.status is None:
            return "did not end in time and was ended"
        if self.status < 0:
            return f"was ended by signal {-self.status}"
        return f"failed with status {self.status}" if self.status else None


def check(path: Path, what: str) -> None:
    """Refuse what somebody else could have written, or what can't be run. Links of the user's are followed.

    :raises UsageError: it is not a program of the user's or of root's.
    """
    why = None
    try:
        found = path.stat()
    except OSError as error:
        why = error.strerror or str(error)
    else:
        if not stat.S_ISREG(found.st_mode):
            why = "it is not a regular file"
        elif found.st_uid not in (os.getuid(), 0):
            why = "it belongs to somebody else"
        elif found.st_mode & 0o022:
            why = "others may write it"
        elif not os.access(path, os.X_OK):
            why = "it is not executable"
    if why is not None:
        raise UsageError(
            f"the {what} can't be run", details=f"{path}: {why}", resolution="correct it, or take it away"
        )


def run(
    argv: tuple[str, ...],
    document: object,
    *,
    environ: Mapping[str, str],
    home: Path,
    seconds: float,
    pass_fds: Sequence[int] = (),
    most: int = _MAX_OUTPUT,
) -> Ended:
    """Run a program from the home, with a JSON document on its standard input, and wait for its end.

    It has a session of its own: Ctrl-C reaches clsecure alone, and what it leaves behind when it takes too
    long, or is interrupted, is ended with it.

    :param pass_fds: descriptors that it inherits by their numbers.
    :param most: bytes of its output.
    """
    with contextlib.ExitStack() as stack:
        # In memory: a program that reads nothing makes nobody wait.
        given = stack.enter_context(os.fdopen(os.memfd_create("document", os.MFD_CLOEXEC), "w+b"))
        given.write(json.dumps(document).encode() + b"\n")
        given.flush()
        given.seek(0)
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, read)
        os.set_blocking(write, True)
        try:
            child = process.spawn(
                Command(argv=argv, env=environ, cwd=home), stdin=given, stdout=write, stderr=write,
                new_session=True, pass_fds=pass_fds,
            )  # fmt: skip
        except OSError as error:
            raise ToolError(f"{argv[0]} could not be started", details=str(error)) from error
        finally:
            os.close(write)
        try:
            said, ended = _follow(child, read, time.monotonic() + seconds, most)
        except BaseException:
            _end(child)
            raise
        if not ended:
            _end(child)
        said += _rest(read, most - len(said))
        status = child.wait(timeout=_GRACE_SECONDS) if ended else None
    lines = said[:most].decode("utf-8", "surrogateescape").splitlines()
    return Ended(status=status, lines=tuple(line[:_MAX_LINE] for line in lines if line.strip()))


def _follow(child: process.Process[bytes], read: int, deadline: float, most: int) -> tuple[bytes, bool]:
    """Read until the program itself has ended: what it leaves running may hold the pipe for ever."""
    said = b""
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        end = os.pidfd_open(child.pid)
        stack.callback(os.close, end)
        selector.register(end, selectors.EVENT_READ)
        selector.register(read, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            ready = {key.fd for key, _ in selector.select(left)}
            if read in ready:
                data = os.read(read, 65536)
                said = (said + data)[:most]
                if not data:
                    selector.unregister(read)
            if end in ready:
                return said, True
    return said, False


def _rest(read: int, most: int) -> bytes:
    try:
        return os.read(read, most) if most > 0 else b""
    except BlockingIOError:
        return b""


def _end(child: process.Process[bytes]) -> None:
    """End the program with all of its group: asked first, then made to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(process.TimeoutExpired):
            child.wait(timeout=_GRACE_SECONDS)
