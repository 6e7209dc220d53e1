"""What of the user's or the repository's runs inside besides the agent: in a sandbox of its own, watched.

Unlike :mod:`.tools` it runs other people's code, so all that comes out of it is hostile: kept bounded, shown
escaped, and believed no more than the agent is.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from clsecure.agents.spec import AgentSpec, GatewayAccess, environment
from clsecure.backends.local import LocalBackend, LocalSandbox
from clsecure.backends.streams import write_all
from clsecure.egress.client import Gateway
from clsecure.errors import StateError
from clsecure.model import SandboxCommand, SandboxSpec, WorkerAccount
from clsecure.session import limits
from clsecure.terminal import escape
from clsecure.verify.checks import require
from clsecure.verify.host import check_barrier

MAX_LOG = 10 << 20
_MAX_LINE = 4096
_MAX_REPORT = 256 << 10
_SHOWN_LINE = 200
_LAST_LINES = 5
_CHUNK = 65536
_DRAIN_SECONDS = 10.0
_HIDDEN = b"********"

# Who runs there is no agent: no variable of any provider passes.
_NOBODY = AgentSpec(name="inside", title="", argv_unattended=(), argv_resume=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What a program left.

    :param status: 128+N for signal N; None when the time was over.
    :param report: the beginning of its standard output; hostile.
    :param last: the last lines of the rest, escaped and cut.
    :param warnings: limits that struck.
    """

    status: int | None
    report: bytes
    last: tuple[str, ...]
    warnings: tuple[str, ...] = ()


class OutputLog:
    """Keeps the output of programs in a file, of the user's alone and bounded; shows it line by line.

    :param path: None to keep nothing.
    :param hidden: secrets that neither the file nor anybody sees.
    :param show: gets each line, escaped and cut.
    :raises StateError: the file can't be made.
    """

    def __init__(
        self, path: Path | None, *, hidden: Sequence[str] = (), show: Callable[[str], None] | None = None
    ) -> None:
        self._hidden = [secret.encode() for secret in hidden if secret]
        self._show = show
        self._room = MAX_LOG
        self.last: deque[str] = deque(maxlen=_LAST_LINES)
        self._file: BinaryIO | None = None
        if path is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                self._file = os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)
            except OSError as error:
                raise StateError(f"{path} can't be written", details=str(error)) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def copy(self, source: BinaryIO) -> None:
        """Take everything in until the end; for a thread of its own."""
        rest = b""
        while data := source.read(_CHUNK):
            *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                self.line(line)
            while len(rest) > _MAX_LINE:
                self.line(rest[:_MAX_LINE])
                rest = rest[_MAX_LINE:]
        if rest:
            self.line(rest)

    def line(self, line: bytes) -> None:
        """Take one line in."""
        for secret in self._hidden:
            line = line.replace(secret, _HIDDEN)
        self._keep(line + b"\n")
        text = escape(line[:_MAX_LINE].strip())
        if text:
            shown = text if len(text) <= _SHOWN_LINE else f"{text[:_SHOWN_LINE]}…"
            self.last.append(shown)
            if self._show is not None:
                self._show(shown)

    def _keep(self, data: bytes) -> None:
        if self._file is None or self._room <= 0:
            return
        if len(data) > self._room:
            data, self._room = b"(the log is full)\n", 0
        self._room -= len(data)
        # On a full disk the output is lost, not the session.
        with contextlib.suppress(OSError):
            self._file.write(data)


def inner_environment(
    environ: Mapping[str, str],
    *,
    account: WorkerAccount,
    session: str,
    access: GatewayAccess | None = None,
    tool_env: Mapping[str, str] | None = None,
    extra_path: Sequence[PurePosixPath] = (),
    late_path: Sequence[PurePosixPath] = (),
) -> dict[str, str]:
    """Return the complete environment of such a program: no credential, no provider, no key.

    :param environ: the user's environment, of which only what concerns languages and colours passes.
    :param access: the gateway, for programs that go out through it.
    """
    return environment(
        _NOBODY,
        environ,
        user=account.name,
        home=PurePosixPath(account.home),
        session=session,
        terminal=False,
        gateway=access,
        tool_env=tool_env,
        extra_path=extra_path,
        late_path=late_path,
    )


def through(
    gateway: Gateway | None, make: Callable[[GatewayAccess | None], Mapping[str, str]]
) -> Callable[[LocalSandbox], Mapping[str, str]]:
    """Return what serves a sandbox's listening socket by a gateway and makes the environment for it.

    :param make: gets what leads there, None where there is no gateway.
    """

    def environ(sandbox: LocalSandbox) -> Mapping[str, str]:
        if sandbox.listener is None or sandbox.port is None or gateway is None:
            return make(None)
        gateway.serve(sandbox.listener, port=sandbox.port)
        return make(GatewayAccess(port=sandbox.port, token=gateway.token))

    return environ


def run_inside(
    backend: LocalBackend,
    spec: SandboxSpec,
    *,
    program: Path,
    arguments: Sequence[str],
    cwd: Path,
    environ: Callable[[LocalSandbox], Mapping[str, str]],
    log: OutputLog,
    seconds: float,
    feed: bytes = b"",
) -> Ended:
    """Run one of our programs in a sandbox of its own, and with it whatever it is there to run.

    Every process of it is dead afterwards, whatever happened.

    :param cwd: absolute path inside.
    :param environ: gets the sandbox, whose listening socket is to be served, and returns the whole
        environment.
    :param seconds: all that it may take.
    :param feed: its standard input.
    :raises VerificationError: the sandbox is not what was promised; nothing ran.
    """
    with contextlib.ExitStack() as stack:
        sandbox = stack.enter_context(backend.open(spec))
        require(check_barrier(sandbox.facts, spec))
        env = environ(sandbox)
        in_read, in_write = _pipe(stack)
        out_read, out_write = _pipe(stack)
        err_read, err_write = _pipe(stack)
        command = SandboxCommand(
            argv=("/usr/bin/python3", "-I", "-S", str(program), *arguments), env=env, cwd=cwd
        )
        sandbox.start(command, stdio=(in_read.fileno(), out_write.fileno(), err_write.fileno()))
        for given in (in_read, out_write, err_write):
            given.close()
        report = _Beginning()
        readers = [
            threading.Thread(target=report.copy, args=(out_read,), daemon=True),
            threading.Thread(target=log.copy, args=(err_read,), daemon=True),
        ]
        for reader in readers:
            reader.start()
        try:
            with contextlib.suppress(BrokenPipeError), in_write:
                write_all(in_write.fileno(), feed)
            status = sandbox.wait(timeout=seconds)
        finally:
            if sandbox.end is None:
                sandbox.kill()
                sandbox.wait()
            # Every writer is dead.
            for reader in readers:
                reader.join(timeout=_DRAIN_SECONDS)
        struck = () if sandbox.end is None else tuple(limits.warnings(sandbox.end, spec.limits))
        return Ended(status=status, report=bytes(report.data), last=tuple(log.last), warnings=struck)


class _Beginning:
    """The beginning of a stream; the rest is taken in and forgotten, so that nobody waits for a reader."""

    def __init__(self) -> None:
        self.data = bytearray()

    def copy(self, source: BinaryIO) -> None:
        while chunk := source.read(_CHUNK):
            self.data += chunk[: _MAX_REPORT - len(self.data)]


def _pipe(stack: contextlib.ExitStack) -> tuple[BinaryIO, BinaryIO]:
    read, write = os.pipe2(os.O_CLOEXEC)
    # Unbuffered: what is there is shown, not what fills a buffer.
    reader: BinaryIO = os.fdopen(read, "rb", buffering=0)
    writer: BinaryIO = os.fdopen(write, "wb", buffering=0)
    stack.callback(reader.close)
    stack.callback(writer.close)
    return reader, writer
