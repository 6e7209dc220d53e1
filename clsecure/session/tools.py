"""The tool's own programs inside: each in a fresh offline sandbox of the session's spec."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from clsecure.backends.api import Backend
from clsecure.errors import ClsecureError, ToolError
from clsecure.model import NetworkPolicy, SandboxCommand, SandboxSpec
from clsecure.settings.limits import defaults
from clsecure.verify.checks import require
from clsecure.verify.host import check_barrier

_STDERR_LIMIT = 4000
_END_SECONDS = 60.0


def run_tool(
    backend: Backend,
    spec: SandboxSpec,
    *,
    program: Path,
    arguments: Sequence[str],
    feed: Callable[[BinaryIO], None],
    meanwhile: Callable[[], None] | None = None,
    collect: Callable[[BinaryIO], None] | None = None,
) -> None:
    """Run one of our programs inside and talk to it over pipes.

    :param feed: writes its standard input.
    :param meanwhile: work of the caller's before that, done while the sandbox comes up.
    :param collect: reads its standard output to the end; hostile.
    :raises ToolError: it failed; its words are in the details (hostile).
    """
    offline = replace(
        spec,
        listener=False,
        terminal=None,
        network=NetworkPolicy.NONE,
        network_namespace=None,
        allow_private=False,
        # Not the agent's: what it left must come out, also where it was given little.
        limits=defaults(),
        disk_reserve=False,
    )
    with contextlib.ExitStack() as stack:
        in_read, in_write = _pipe(stack)
        out_read, out_write = _pipe(stack)
        err_read, err_write = _pipe(stack)
        sandbox = stack.enter_context(backend.open(offline, meanwhile=meanwhile))
        require(check_barrier(sandbox.facts, offline))
        home = str(spec.account.home)
        command = SandboxCommand(
            argv=("/usr/bin/python3", "-I", "-S", str(program), *arguments),
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": home, "LC_ALL": "C.UTF-8", "TMPDIR": "/tmp"},  # noqa: S108
            cwd=spec.account.home,
        )
        sandbox.start(command, stdio=(in_read.fileno(), out_write.fileno(), err_write.fileno()))
        for ours in (in_read, out_write, err_write):
            ours.close()
        # A reader that is gone has said why on its standard error, and its status tells.
        with contextlib.suppress(BrokenPipeError), in_write:
            feed(in_write)
        if collect is not None:
            try:
                collect(out_read)
            except BaseException as error:
                sandbox.kill()
                sandbox.wait(timeout=_END_SECONDS)
                words = _words(err_read)
                if words and not (isinstance(error, ClsecureError) and error.resolution):
                    raise ToolError(f"{program.stem} failed inside the sandbox", details=words) from None
                raise
        status = sandbox.wait(timeout=None if collect is None else _END_SECONDS)
        if status != 0:
            raise ToolError(
                f"{program.stem} failed inside the sandbox (status {status})", details=_words(err_read)
            )


def _pipe(stack: contextlib.ExitStack) -> tuple[BinaryIO, BinaryIO]:
    read, write = os.pipe2(os.O_CLOEXEC)
    reader: BinaryIO = os.fdopen(read, "rb")
    writer: BinaryIO = os.fdopen(write, "wb")
    stack.callback(reader.close)
    stack.callback(_close_quietly, writer)
    return reader, writer


def _close_quietly(file: BinaryIO) -> None:
    with contextlib.suppress(BrokenPipeError):
        file.close()


def _words(file: BinaryIO) -> str:
    os.set_blocking(file.fileno(), False)
    return (file.read(_STDERR_LIMIT) or b"").decode("utf-8", "replace").strip()
