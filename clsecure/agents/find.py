"""Finding an agent's program, wherever people install it, as one native executable."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from clsecure import process
from clsecure.agents import npm_package
from clsecure.agents.digests import VERSION, Known, cache_directory, recall, remember
from clsecure.agents.elf import Elf, read_elf
from clsecure.agents.spec import AgentSpec
from clsecure.errors import AgentError, ToolError
from clsecure.process import Command

_MAX_SCRIPT = 64 << 10
_MAX_HOPS = 5
_MAX_CANDIDATES = 200
_ANSWER = re.compile(r"\s*v?(\S{1,64})\s+\(Claude Code\)")
_INSTALL = "clsecure agent install claude"

# Absolute paths, or paths from the script's own directory, that a small wrapper script hands over to.
_HANDOVER = re.compile(
    r"""(?:exec|^|\s)[^\n#]*?["']?(?P<base>\$basedir|\$\{basedir\}|\$HOME|\$\{HOME\})?(?P<path>/[^\s"'$;&|<>()]+)["']?\s+["']?\$@""",
    re.MULTILINE,
)


class BinaryKind(StrEnum):
    """How the program came onto the machine."""

    NPM = "npm"
    NATIVE = "native"
    HOMEBREW = "homebrew"
    CLSECURE = "clsecure"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBinary:
    """One native executable.

    :param path: the real file, without links in it.
    :param version: ``unknown`` where nothing says it.
    """

    path: Path
    version: str
    kind: BinaryKind


class _Unusable(Exception):  # noqa: N818  # a reason to look further, not an error
    """A candidate that is not what is looked for."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def agents_directory(environ: Mapping[str, str], home: Path) -> Path:
    """Return where ``clsecure agent install`` puts programs."""
    base = environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else home / ".local/share") / "clsecure" / "agents"


def find_agent(
    spec: AgentSpec,
    environ: Mapping[str, str],
    home: Path,
    *,
    exclude: Sequence[Path] = (),
    elsewhere: Sequence[Path] | None = None,
) -> AgentBinary:
    """Return the agent's program: the user's PATH first, then the places where installers put it.

    :param environ: the user's environment; relative entries of PATH are skipped.
    :param exclude: directories whose programs don't count: the repository may bring a ``claude`` of its own.
    :param elsewhere: places to look at besides those below the home, None for the usual ones.
    :raises AgentError: none, or none that can be used.
    """
    reasons: list[str] = []
    barred = [Path(os.path.realpath(path)) for path in exclude]
    seen: set[Path] = set()
    for candidate in _candidates(spec, environ, home, elsewhere):
        if candidate in seen or len(seen) >= _MAX_CANDIDATES or not os.path.lexists(candidate):
            continue
        seen.add(candidate)
        try:
            path = _resolve(candidate, barred=barred, home=home)
            return _describe(path, spec, environ, home)
        except _Unusable as unusable:
            reasons.append(f"{candidate}: {unusable.reason}")
    if reasons:
        raise AgentError(
            f"{spec.title} is installed, but not in a form that can be used",
            details="\n".join(reasons),
            resolution=_INSTALL,
        )
    raise AgentError(
        f"{spec.title} is not installed",
        details="Looked on the PATH and where its installers put it",
        resolution=_INSTALL,
    )


def _candidates(
    spec: AgentSpec, environ: Mapping[str, str], home: Path, elsewhere: Sequence[Path] | None
) -> Iterator[Path]:
    for name in spec.executables:
        for entry in environ.get("PATH", "").split(":"):
            if entry.startswith("/"):
                yield Path(entry) / name
        yield home / ".local/bin" / name
        yield home / f".{name}" / "local" / name
        yield from _newest(agents_directory(environ, home) / spec.name, f"*/{name}")
        for directory in (".npm-global/bin", ".volta/bin", ".bun/bin", ".local/share/pnpm", ".linuxbrew/bin"):
            yield home / directory / name
        yield from _newest(home / ".nvm/versions/node", f"*/bin/{name}")
        if elsewhere is None:
            elsewhere = [Path("/usr/local/bin"), Path("/usr/bin"), Path("/home/linuxbrew/.linuxbrew/bin")]
        yield from (directory / name for directory in elsewhere)


def _newest(directory: Path, pattern: str) -> list[Path]:
    """Return the matches, highest version first."""

    def version(path: Path) -> list[int]:
        name = path.relative_to(directory).parts[0]
        return [int(number) for number in re.findall(r"[0-9]{1,9}", name)]

    try:
        return sorted(directory.glob(pattern), key=version, reverse=True)
    except OSError:
        return []


def _resolve(candidate: Path, *, barred: Sequence[Path], home: Path, hops: int = 0) -> Path:
    """Follow links and wrapper scripts down to one native executable.

    :raises _Unusable: there is none.
    """
    real = _real(candidate)
    if any(real.is_relative_to(directory) or candidate.is_relative_to(directory) for directory in barred):
        raise _Unusable(reason="belongs to the repository")
    package = npm_package.package_of(real)
    if real.name == "volta-shim":
        package = npm_package.volta_package(candidate.parent.parent)
        if package is None:
            raise _Unusable(reason="a volta shim of which no installation was found")
    elf, script = _inspect(real)
    if elf is not None and real.name != "volta-shim":
        _check_machine(elf)
        return real
    if package is not None:
        return _native_of(package)
    following = _handover(script, real, home) if script is not None else None
    if following is None or hops >= _MAX_HOPS:
        raise _Unusable(reason="neither a native program nor a wrapper that is known")
    return _resolve(following, barred=barred, home=home, hops=hops + 1)


def _real(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise _Unusable(reason="a link that leads nowhere") from None


def _native_of(package: Path) -> Path:
    """Return the platform's program of an npm package whose own entry is a script."""
    machine = os.uname().machine
    for program in npm_package.natives(package, machine):
        with suppress(_Unusable):
            real = _real(program)
            elf, _ = _inspect(real)
            if elf is not None:
                _check_machine(elf)
                return real
    raise _Unusable(reason="an npm package without a native program for this machine (an old release?)")


def _inspect(path: Path) -> tuple[Elf | None, str | None]:
    """Return the headers of a program, or the text of a script."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _Unusable(reason=f"can't be opened ({error.strerror})") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _Unusable(reason="not a regular file")
        elf = read_elf(descriptor)
        if elf is not None:
            return elf, None
        text = os.pread(descriptor, _MAX_SCRIPT, 0)
        return None, text.decode("utf-8", "replace") if text.startswith(b"#!") else None
    except OSError as error:
        raise _Unusable(reason=f"can't be read ({error.strerror})") from None
    finally:
        os.close(descriptor)


def _check_machine(elf: Elf) -> None:
    machine = os.uname().machine
    if elf.machine != machine:
        raise _Unusable(reason=f"built for {elf.machine}, this machine is {machine}")
    if elf.interpreter is not None and not Path(elf.interpreter).exists():
        library = "musl" if elf.musl else "a C library that is not here"
        raise _Unusable(reason=f"built for {library} ({elf.interpreter} is missing)")


def _handover(script: str, path: Path, home: Path) -> Path | None:
    """Return the program that a wrapper script executes with all its arguments."""
    for match in _HANDOVER.finditer(script):
        base, target = match.group("base"), match.group("path")
        match base:
            case None:
                following = Path(target)
            case "$HOME" | "${HOME}":
                following = home / target.lstrip("/")
            case _:
                following = path.parent / target.lstrip("/")
        if os.path.lexists(following) and following != path:
            return following
    return None


def _describe(path: Path, spec: AgentSpec, environ: Mapping[str, str], home: Path) -> AgentBinary:
    if not os.access(path, os.X_OK):
        raise _Unusable(reason="not executable")
    kind, version = _by_place(path, environ, home)
    if version is None:
        version = _ask(path, spec, environ, home)
    return AgentBinary(path=path, version=version, kind=kind)


def _by_place(path: Path, environ: Mapping[str, str], home: Path) -> tuple[BinaryKind, str | None]:
    """Tell how a program was installed, and its version where the place says it."""
    ours = Path(os.path.realpath(agents_directory(environ, home)))
    if path.is_relative_to(ours):
        return BinaryKind.CLSECURE, _version(path.parent.name)
    package = npm_package.package_of(path)
    if package is not None:
        return BinaryKind.NPM, npm_package.version(package)
    parts = path.parts
    if parts[-2:-1] == ("versions",):
        return BinaryKind.NATIVE, _version(parts[-1])
    for folder in ("Caskroom", "Cellar"):
        if folder in parts[:-3]:
            return BinaryKind.HOMEBREW, _version(parts[parts.index(folder) + 2])
    return BinaryKind.OTHER, None


def _version(text: str) -> str | None:
    return text if VERSION.fullmatch(text) else None


def _ask(path: Path, spec: AgentSpec, environ: Mapping[str, str], home: Path) -> str:
    """Return what the program itself says, asked once per state of the file.

    :raises _Unusable: it is another program of that name.
    """
    cache = cache_directory(environ, home)
    status = path.stat()
    known = recall(status, cache=cache)
    if known.version is not None:
        return known.version
    if os.geteuid() == 0 or not _only_ours(path):
        return "unknown"
    try:
        # A home that does not exist: asking for the version writes no state into the user's.
        result = process.run(
            Command(
                argv=(str(path), "--version"),
                env={"PATH": process.SYSTEM_PATH, "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"},
                cwd=Path("/"),
                timeout=10.0,
            )
        )
    except (OSError, ToolError):
        raise _Unusable(reason="does not tell its version") from None
    answer = _ANSWER.match(result.stdout[:200].decode("utf-8", "replace"))
    version = _version(answer.group(1)) if answer is not None else None
    if result.returncode != 0 or version is None:
        raise _Unusable(reason=f"does not answer as {spec.title}")
    remember(status, Known(sha256=known.sha256, version=version), cache=cache)
    return version


def _only_ours(path: Path) -> bool:
    """Only root or this user could have put the file there."""
    for place in (path, path.parent):
        status = place.stat()
        if status.st_uid not in {0, os.geteuid()} or status.st_mode & 0o002:
            return False
    return True
