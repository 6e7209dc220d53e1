"""A provider's key, from where the user's settings say it is. Read on the host, once per session.

What is read is never shown, logged or passed on as an argument; errors name the place alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from clsecure import logs, process
from clsecure.errors import EgressError, ToolError
from clsecure.process import Command
from clsecure.settings.structured import KeySource, ProviderTable

MAX_KEY_BYTES = 16 << 10
COMMAND_SECONDS = 60.0
_MAX_WORDS = 2000
_KEY = re.compile(r"[\x21-\x7e]{1,16384}")


class Waiting(Protocol):
    """How the user hears that a command is asked."""

    def phase(self, text: str) -> AbstractContextManager[None]:
        """Show that something is going on."""

    def note(self, text: str) -> None:
        """Say one line."""


def provider_key(
    served: ProviderTable,
    *,
    environ: Mapping[str, str],
    home: Path,
    exclude: Sequence[Path],
    ui: Waiting,
    seconds: float = COMMAND_SECONDS,
) -> str:
    """Return the key of a provider. From now on nothing logs it.

    :param environ: the user's environment.
    :param home: what ``~/`` stands for, and where a command starts.
    :param exclude: directories whose programs don't count: the repository's.
    :param seconds: most that a command may take.
    :raises EgressError: it is not there, or is none.
    """
    source = served.key
    if source.variable is not None and environ.get(source.variable, "").strip():
        return _checked(environ[source.variable], served, f"the variable {source.variable}")
    if source.literal is not None:
        return _checked(source.literal.value, served, str(source))
    if source.file is not None:
        path = _below_home(source.file, home)
        return _checked(_first_line(_read(path, served, exclude)), served, f"the file {path}")
    if source.command is not None:
        said = _ask(source, served, environ=environ, home=home, exclude=exclude, ui=ui, seconds=seconds)
        return _checked(_first_line(said), served, str(source))
    raise EgressError(
        f"there is no key for the provider {served.name}: {source.variable} is not set",
        resolution=f"export {source.variable}=…"
        + (", or set kimi_api_key in your settings" if served.built_in else ""),
    )


def _checked(text: str, served: ProviderTable, place: str) -> str:
    key = text.strip()
    if not _KEY.fullmatch(key):
        raise EgressError(
            f"{place} holds no key for the provider {served.name}",
            details="A key is one word of printable ASCII characters, on the first line.",
            resolution=f"correct it, or where the key comes from ({served.source or served.name})",
        )
    logs.register_secret(key)
    return key


def _first_line(data: bytes) -> str:
    return data.split(b"\n", 1)[0].decode("utf-8", "replace")


def _below_home(text: str, home: Path) -> Path:
    return home / text[2:] if text.startswith("~/") else Path(text)


def _is_below(path: Path, tops: Sequence[Path]) -> bool:
    """Tell whether a path, or what it leads to, lies in one of the directories."""
    real = Path(os.path.realpath(path))
    return any(each.is_relative_to(os.path.realpath(top)) for top in tops for each in (path, real))


def _read(path: Path, served: ProviderTable, exclude: Sequence[Path]) -> bytes:
    """Return the content of a file that nobody but the user can read."""

    def unusable(why: str, resolution: str) -> EgressError:
        return EgressError(
            f"the key of the provider {served.name} can't be read from {path}: {why}", resolution=resolution
        )

    if _is_below(path, exclude):
        raise unusable("it lies in the repository, whose files go inside", "put the key elsewhere")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        why = "it is a link" if path.is_symlink() else error.strerror or "it can't be opened"
        raise unusable(why, "put the key there, in a plain file with mode 0600") from None
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise unusable("it is no regular file", "put the key there, in a plain file with mode 0600")
        if facts.st_uid != os.geteuid():
            raise unusable("it belongs to somebody else", "take a file of your own")
        if stat.S_IMODE(facts.st_mode) & 0o077:
            raise unusable("others have rights to it", f"chmod 600 {path}")
        with os.fdopen(os.dup(fd), "rb") as file:
            data = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise unusable(error.strerror or "it can't be read", "put the key there, in a plain file") from None
    finally:
        os.close(fd)
    if len(data) > MAX_KEY_BYTES:
        raise unusable("it is larger than 16 KiB", "put the key alone there")
    return data


# ------------------------------------------------------------ commands


def _ask(
    source: KeySource,
    served: ProviderTable,
    *,
    environ: Mapping[str, str],
    home: Path,
    exclude: Sequence[Path],
    ui: Waiting,
    seconds: float,
) -> bytes:
    """Run the user's command; return what it printed."""
    assert source.command is not None  # noqa: S101  # the caller's word
    path = ":".join(entry for entry in environ.get("PATH", "").split(":") if entry.startswith("/"))
    program = _program(source.command[0], served, path=path, home=home, exclude=exclude)
    command = Command(
        argv=(str(program), *source.command[1:]), env={**environ, "PATH": path, "PWD": str(home)}, cwd=home
    )
    asks = _is_terminal(0)
    words = f"asking {program.name} for the key of {served.name}"
    if asks:
        ui.note(words)  # a line that moves would write over its questions
    with contextlib.nullcontext() if asks else ui.phase(words):
        try:
            with _started(command, asks=asks) as child:
                out, err, why = _listen(child, time.monotonic() + seconds, seconds)
        except (OSError, ToolError) as error:
            raise _failed(served, program, "it can't be started") from error
    if why is not None or child.returncode != 0:
        # A script that traces itself says the key there, too.
        key = out.split(b"\n", 1)[0].strip()
        err = err.replace(key, logs.REDACTED.encode()) if key else err
        raise _failed(served, program, why or f"status {child.returncode}", err)
    return out


def _failed(served: ProviderTable, program: Path, why: str, words: bytes = b"") -> EgressError:
    said = words[:_MAX_WORDS].decode("utf-8", "replace").strip()
    return EgressError(
        f"{program} did not give the key of the provider {served.name}: {why}",
        details=said or None,
        resolution=f"try it yourself; it stands in key_command ({served.source or served.name})",
    )


def _program(name: str, served: ProviderTable, *, path: str, home: Path, exclude: Sequence[Path]) -> Path:
    """Return the program that is meant: never one of a relative directory or the repository."""
    if "/" in name:
        candidates = [_below_home(name, home)]
    else:
        candidates = [Path(entry) / name for entry in path.split(":") if entry]
    for candidate in candidates:
        found = candidate.is_absolute() and candidate.is_file() and os.access(candidate, os.X_OK)
        if found and not _is_below(candidate, exclude):
            return candidate
    raise EgressError(
        f"{name}, which has the key of the provider {served.name}, is not installed",
        details="Looked on the PATH; its relative directories and the repository's programs don't count.",
        resolution=f"install it, or correct key_command ({served.source or served.name})",
    )


@contextmanager
def _started(command: Command, *, asks: bool) -> Iterator[process.Process[bytes]]:
    """Run a program; what is left of it at the end is killed."""
    # Where it may ask, it stays in the terminal's own group of processes, or it could not read from there,
    # and its questions are seen: it is the user's program, and has the terminal anyway.
    child = process.spawn(
        command,
        stdin=0 if asks else None,
        stdout=process.PIPE,
        stderr=2 if asks and _is_terminal(2) else process.PIPE,
        new_session=not asks,
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            if asks:
                child.kill()
            else:
                os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()


_TOO_MUCH = "it said more than 16 KiB"


def _listen(
    child: process.Process[bytes], deadline: float, seconds: float
) -> tuple[bytes, bytes, str | None]:
    """Return what a program says until it ends, both bounded, and why it was not waited for any longer."""
    assert child.stdout is not None  # noqa: S101  # it was asked for
    out, err = child.stdout.fileno(), child.stderr.fileno() if child.stderr is not None else None
    said = {pipe: b"" for pipe in (out, err) if pipe is not None}
    ended, why = os.pidfd_open(child.pid), None
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            for pipe in said:
                os.set_blocking(pipe, False)
                selector.register(pipe, selectors.EVENT_READ)
            over = False
            while not over and why is None:
                ready = {key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))}
                # What it left running may hold the pipes open: its own end is what counts.
                over = ended in ready
                for pipe in said if over else ready:
                    if not _take(pipe, said) and not over:
                        selector.unregister(pipe)
                if not ready:
                    why = f"it did not end within {seconds:g} s"
                elif any(len(data) > MAX_KEY_BYTES for data in said.values()):
                    why = _TOO_MUCH
    finally:
        os.close(ended)
    return said[out], b"" if err is None else said[err], why


def _take(pipe: int, said: dict[int, bytes]) -> bool:
    """Take what is there, up to more than is looked at; False at the end."""
    while len(said[pipe]) <= MAX_KEY_BYTES:
        try:
            data = os.read(pipe, 4096)
        except BlockingIOError:
            return True
        if not data:
            return False
        said[pipe] += data
    return True


def _is_terminal(fd: int) -> bool:
    with contextlib.suppress(OSError):
        return os.isatty(fd)
    return False
