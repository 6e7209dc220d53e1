"""git on hostile objects: bounded in memory, processor time, output and wall time."""

from __future__ import annotations

import os
import resource
import select
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import IO, Self

from clsecure import process
from clsecure.errors import ImportRejectedError
from clsecure.git import Git
from clsecure.terminal import escape

MIB = 1 << 20

_CONFIG = (
    # Blobs above it are streamed, never held or compared line by line.
    "core.bigFileThreshold=16m",
    # File mappings are not counted by RLIMIT_DATA, but small windows keep the address space sane as well.
    "core.packedGitWindowSize=32m",
    "core.packedGitLimit=512m",
    "core.deltaBaseCacheLimit=64m",
    "pack.threads=2",
    "pack.windowMemory=128m",
    "diff.renames=false",
    "diff.algorithm=myers",
    "diff.suppressBlankEmpty=false",
    "core.attributesFile=/dev/null",
    "i18n.logOutputEncoding=utf-8",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one git process on hostile objects may use.

    :param deadline: on the clock of ``time.monotonic()``.
    :param memory: bytes of data segment and private mappings.
    :param cpu_s: processor seconds.
    :param file_bytes: the largest file it may write.
    """

    deadline: float
    memory: int = 2048 * MIB
    cpu_s: int = 600
    file_bytes: int = 8192 * MIB

    @classmethod
    def within(cls, seconds: float) -> Bounds:
        """Bounds that end in so many seconds."""
        return cls(deadline=time.monotonic() + seconds)

    def shorter(self, seconds: float) -> Bounds:
        """The same, but at most so many seconds from now."""
        return replace(self, deadline=min(self.deadline, time.monotonic() + seconds))


class Child:
    """One git process. Leaving the context kills it if it still runs."""

    def __init__(
        self, git: Git, *args: str, bounds: Bounds, stdin: IO[bytes] | int | None = None, ask: bool = False
    ) -> None:
        """Start it; ``ask`` gives it a pipe for questions instead of ``stdin``."""
        self.what = f"git {args[0]}"
        self.bounds = bounds
        quiet = replace(git, extra_env={"GIT_ATTR_NOSYSTEM": "1", **git.extra_env})
        config = [part for setting in _CONFIG for part in ("-c", setting)]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the child
        try:
            self.process = quiet.spawn(
                *config,
                *args,
                stdin=process.PIPE if ask else stdin,
                stdout=process.PIPE,
                stderr=self._stderr,
            )
        except BaseException:
            self._stderr.close()
            raise
        self._limit(resource.RLIMIT_DATA, bounds.memory)
        self._limit(resource.RLIMIT_CPU, bounds.cpu_s)
        self._limit(resource.RLIMIT_FSIZE, bounds.file_bytes)
        self._limit(resource.RLIMIT_CORE, 0)
        assert self.process.stdout is not None  # noqa: S101  # asked for above
        self._out = self.process.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN | select.POLLHUP)

    def _limit(self, what: int, value: int) -> None:
        with suppress(ProcessLookupError):
            _, hard = resource.prlimit(self.process.pid, what)
            if hard != resource.RLIM_INFINITY:
                value = min(value, hard)
            resource.prlimit(self.process.pid, what, (value, value))

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill it and wait for it."""
        if self.process.poll() is None:
            self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self.process.wait()
        self._stderr.close()

    def read(self, size: int = MIB) -> bytes:
        """Return some output, b"" at its end.

        :raises ImportRejectedError: the deadline has passed.
        """
        remaining = self.bounds.deadline - time.monotonic()
        if remaining <= 0 or not self._poll.poll(int(remaining * 1000) + 1):
            raise ImportRejectedError(f"{self.what} on the agent's objects did not end in time")
        return os.read(self._out, size)

    def write(self, data: bytes) -> None:
        """Ask a question that fits into a pipe."""
        assert self.process.stdin is not None  # noqa: S101  # ask=True
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def chunks(self, max_bytes: int) -> Iterator[bytes]:
        """Yield all output, then check the exit status.

        :raises ImportRejectedError: there is more than ``max_bytes`` of it.
        """
        total = 0
        while chunk := self.read():
            total += len(chunk)
            if total > max_bytes:
                raise ImportRejectedError(
                    f"{self.what} on the agent's objects gives more than {max_bytes} bytes"
                )
            yield chunk
        self.finish()

    def items(self, separator: bytes, max_bytes: int, max_item: int = MIB) -> Iterator[bytes]:
        """Yield output in pieces that end in a separator (which is cut off)."""
        rest = b""
        for chunk in self.chunks(max_bytes):
            *whole, rest = (rest + chunk).split(separator)
            yield from whole
            if len(rest) > max_item:
                raise ImportRejectedError(f"{self.what} on the agent's objects gives an endless item")
        if rest:
            yield rest

    def words(self) -> str:
        """What it said on stderr, the end of it, escaped."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - 4000))
        return escape(self._stderr.read(4000), keep_newlines=True).strip()

    def finish(self) -> None:
        """Wait for the end and judge it."""
        status = self.status()
        if status != 0:
            killed = f" (signal {-status})" if status < 0 else ""
            raise ImportRejectedError(
                f"{self.what} refuses the agent's objects{killed}", details=self.words() or None
            )

    def status(self) -> int:
        """Wait for the end and return the exit status."""
        try:
            return self.process.wait(timeout=max(0.1, self.bounds.deadline - time.monotonic()))
        except process.TimeoutExpired as error:
            raise ImportRejectedError(f"{self.what} on the agent's objects did not end in time") from error


def output(
    git: Git, *args: str, bounds: Bounds, max_bytes: int = MIB, stdin: IO[bytes] | None = None
) -> bytes:
    """Run to the end and return the (bounded) output."""
    with Child(git, *args, bounds=bounds, stdin=stdin) as child:
        return b"".join(child.chunks(max_bytes))


class Objects:
    """One ``git cat-file --batch`` that is asked again and again."""

    def __init__(self, git: Git, *, bounds: Bounds, max_object: int = 32 * MIB) -> None:
        """Start it; objects larger than ``max_object`` are refused, not read."""
        self._max = max_object
        self._check = Child(git, "cat-file", "--batch-check", bounds=bounds, ask=True)
        try:
            self._batch = Child(git, "cat-file", "--batch", bounds=bounds, ask=True)
        except BaseException:
            self._check.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End both processes."""
        self._check.__exit__(kind, error, trace)
        self._batch.__exit__(kind, error, trace)

    def info(self, name: str) -> tuple[str, int] | None:
        """Type and size, None when there is no such object."""
        self._check.write(name.encode("ascii") + b"\n")
        line, rest = self._line(self._check)
        if rest:
            raise ImportRejectedError("git cat-file answered out of turn")
        fields = line.split(b" ")
        return (
            None if fields[-1] in (b"missing", b"ambiguous") else (fields[1].decode("ascii"), int(fields[2]))
        )

    def read(self, name: str, kind: str) -> bytes:
        """Content of an object of the given type.

        :raises ImportRejectedError: it is missing, of another type or too large.
        """
        found = self.info(name)
        if found is None or found[0] != kind:
            raise ImportRejectedError(f"{name} is not a {kind} of the agent's work")
        if found[1] > self._max:
            raise ImportRejectedError(f"the {kind} {name} is larger than {self._max} bytes")
        self._batch.write(name.encode("ascii") + b"\n")
        _, data = self._line(self._batch)
        parts = [data]
        missing = found[1] + 1 - len(data)
        while missing > 0:
            chunk = self._batch.read(missing)
            if not chunk:
                raise ImportRejectedError(f"git could not read {name}", details=self._batch.words() or None)
            parts.append(chunk)
            missing -= len(chunk)
        return b"".join(parts)[:-1]

    @staticmethod
    def _line(child: Child) -> tuple[bytes, bytes]:
        data = b""
        while b"\n" not in data:
            chunk = child.read()
            if not chunk:
                raise ImportRejectedError("git cat-file ended early", details=child.words() or None)
            data += chunk
        line, _, rest = data.partition(b"\n")
        return line, rest
