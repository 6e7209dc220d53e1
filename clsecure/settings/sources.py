"""Where settings come from: flags, environment, the user's file. Read here, judged in :mod:`.model`.

Standard library only, so that commands which need no settings never pay for pydantic. Nothing is read from
the repository. Errors name file and line, never what stands there: a file may be a link to a secret.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from clsecure.errors import UsageError

ENVIRONMENT_PREFIX = "CLSECURE_"
MAX_FILE_BYTES = 64 * 1024

KEYS = (
    "mode", "network", "allow_domains", "deny_domains", "presets", "credentials", "provider_tools",
    "allow_private", "budget", "session", "agent", "on_finish", "full_clone", "mounts", "time_limit",
    "base_url", "output", "verbose",
)  # fmt: skip
"""The keys of the model, by name; a test keeps the two the same."""

LATER = (
    "docker", "install_dependencies", "setup_script", "cleanup_hook_timeout", "skip_docker_autodetect",
    "provider", "kimi_api_key",
)  # fmt: skip
"""Keys of the predecessor that do nothing yet: an old file stays usable, and a warning says so."""

_SPELLINGS = {
    "isolation_mode": "mode",
    "allow_network": "network",
    "allow_domain": "allow_domains",
    "deny_domain": "deny_domains",
    "preset": "presets",
    "mount": "mounts",
    "allow_docker": "docker",
    "install_deps": "install_dependencies",
}
# Names in our environment that are no settings: what hooks are told, what the tests use.
_OTHER_VARIABLES = (
    "CLSECURE_CLEANUP_LEVEL",
    "CLSECURE_DEV_",
    "CLSECURE_PROJECT_DIR",
    "CLSECURE_TEST_",
    "CLSECURE_WORKER_",
)
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")


class Layer(StrEnum):
    """Where a value came from, strongest first."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    USER_FILE = "user file"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The provenance of one value.

    :param where: ``--mode``, ``CLSECURE_MODE`` or ``/home/u/.config/clsecure/config:3``; empty for defaults.
    """

    layer: Layer
    where: str = ""

    def __str__(self) -> str:
        """Return it for people; the path in it may need escaping."""
        return self.where or self.layer.value


DEFAULT = Source(layer=Layer.DEFAULT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One value as it was written."""

    key: str
    text: str
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """All that was found, strongest layer first; at most one entry per key and layer, but for mounts.

    :param directory: what relative mounts of the command line start at.
    :param home: what ``~/`` stands for.
    """

    entries: tuple[Entry, ...] = ()
    warnings: tuple[str, ...] = ()
    directory: Path = field(default_factory=Path.cwd)
    home: Path | None = None

    def strongest(self, key: str) -> Entry | None:
        """Return the entry that decides over a key."""
        return next((entry for entry in self.entries if entry.key == key), None)

    def layer(self, layer: Layer) -> tuple[Entry, ...]:
        """Return the entries of one layer."""
        return tuple(entry for entry in self.entries if entry.source.layer is layer)


def gather(
    flags: Sequence[Entry] = (), *, environ: Mapping[str, str] | None = None, file: bool = True
) -> Layers:
    """Collect every layer.

    :param flags: what the command line said, as the parser made it.
    :param environ: the environment, the process's own by default.
    :param file: read the user's file; off for commands that must work when it is broken.
    :raises UsageError: a file that can't be accepted, or an unknown key.
    """
    env = os.environ if environ is None else environ
    home = _home(env)
    entries = [*flags, *_from_environment(env)]
    warnings: list[str] = []
    if file:
        found = [path for path in _candidates(env, home) if os.path.lexists(path)]
        for path in found[:1]:
            entries += read_file(path)
        warnings += [f"{path} is not read, because {found[0]} is there" for path in found[1:]]
    warnings += [
        f"{entry.key} is not supported yet and does nothing ({entry.source})"
        for entry in entries
        if entry.key in LATER
    ]
    return Layers(
        entries=tuple(entry for entry in entries if entry.key not in LATER),
        warnings=tuple(warnings),
        directory=_directory(),
        home=home,
    )


def read_file(path: Path) -> list[Entry]:
    """Read a file of flat ``key = value`` lines.

    :raises UsageError: not a regular file that the user owns, too large, NUL, not UTF-8, a line that is no
        assignment, an unknown key, or a key given twice under any of its spellings.
    """
    data = _read_bounded(path)
    if b"\0" in data:
        raise _file_error(path, data[: data.index(b"\0")].count(b"\n") + 1, "a NUL byte")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _file_error(path, data[: error.start].count(b"\n") + 1, "not UTF-8") from None
    seen: dict[str, int] = {}
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        written, equals, value = stripped.partition("=")
        if not equals or not _KEY.fullmatch(written.strip()):
            raise _file_error(path, number, "not a line of the form 'key = value'")
        key = canonical(written.strip())
        if key is None:
            raise _file_error(
                path, number, f"unknown key {written.strip()!r}", resolution=_nearest_key(written.strip())
            )
        if key in seen:
            raise _file_error(path, number, f"{key} is set a second time (first in line {seen[key]})")
        seen[key] = number
        source = Source(layer=Layer.USER_FILE, where=f"{path}:{number}")
        entries.append(Entry(key=key, text=_unquote(value.strip(), path, number), source=source))
    return entries


def canonical(written: str) -> str | None:
    """Return the key that a spelling stands for, None when there is none."""
    key = written.lower().replace("-", "_")
    key = _SPELLINGS.get(key, key)
    return key if key in KEYS or key in LATER else None


def _unquote(value: str, path: Path, number: int) -> str:
    if value[:1] in {'"', "'"}:
        end = value.find(value[0], 1)
        rest = value[end + 1 :].strip()
        if end < 0 or (rest and not rest.startswith("#")):
            raise _file_error(path, number, "the quotes do not close")
        return value[1:end]
    comment = re.search(r"(?:^|\s)#", value)
    return value[: comment.start()].rstrip() if comment else value


def _read_bounded(path: Path) -> bytes:
    try:
        # Non-blocking, or a FIFO would hold us here for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error.strerror or "can't be opened") from error
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise _unreadable(path, "not a regular file")
        # Dotfile managers make it a link, so links are followed, but never to what somebody else keeps from
        # others (a tool that may run with more rights must not become a way to read it).
        if facts.st_uid != os.geteuid() and not (facts.st_uid == 0 and facts.st_mode & stat.S_IROTH):
            raise _unreadable(path, "it belongs to somebody else")
        if facts.st_mode & stat.S_IWOTH:
            raise _unreadable(path, "everybody may write to it", resolution=f"chmod o-w {path}")
        if facts.st_size > MAX_FILE_BYTES:
            raise _unreadable(path, f"larger than {MAX_FILE_BYTES // 1024} KiB")
        data = b""
        while len(data) <= MAX_FILE_BYTES and (chunk := os.read(fd, MAX_FILE_BYTES + 1 - len(data))):
            data += chunk
    except OSError as error:
        raise _unreadable(path, error.strerror or "can't be read") from error
    finally:
        os.close(fd)
    if len(data) > MAX_FILE_BYTES:
        raise _unreadable(path, f"larger than {MAX_FILE_BYTES // 1024} KiB")
    return data


def _unreadable(path: Path, why: str, *, resolution: str | None = None) -> UsageError:
    return UsageError(
        f"the settings file {path} can't be used: {why}",
        resolution=resolution or "put a plain file of 'key = value' lines there, or remove it",
    )


def _file_error(path: Path, line: int, why: str, *, resolution: str | None = None) -> UsageError:
    return UsageError(f"{path}:{line}: {why}", resolution=resolution or f"correct line {line} of {path}")


def _nearest_key(written: str) -> str:
    import difflib

    valid = [*KEYS, *LATER, *_SPELLINGS]
    near = difflib.get_close_matches(written.lower().replace("-", "_"), valid, n=1)
    return f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(KEYS)}"


def _from_environment(env: Mapping[str, str]) -> list[Entry]:
    seen: dict[str, str] = {}
    entries = []
    for name in sorted(env):
        value = env[name]
        if not name.startswith(ENVIRONMENT_PREFIX) or name.startswith(_OTHER_VARIABLES) or not value.strip():
            continue
        key = canonical(name.removeprefix(ENVIRONMENT_PREFIX))
        if key is None:
            # Not a warning: CLSECURE_NETWROK=none that is ignored would open what was meant to be shut.
            raise UsageError(
                f"unknown environment variable {name}",
                resolution=_nearest_key(name.removeprefix(ENVIRONMENT_PREFIX)),
            )
        if key in seen:
            raise UsageError(f"{seen[key]} and {name} set the same thing", resolution=f"unset {name}")
        seen[key] = name
        entries.append(Entry(key=key, text=value, source=Source(layer=Layer.ENVIRONMENT, where=name)))
    return entries


def _home(env: Mapping[str, str]) -> Path | None:
    home = env.get("HOME", "")
    if home.startswith("/"):
        return Path(home)
    import pwd

    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        return None


def _candidates(env: Mapping[str, str], home: Path | None) -> list[Path]:
    paths = []
    xdg = env.get("XDG_CONFIG_HOME", "")
    if xdg.startswith("/"):  # its specification: a relative one is to be ignored
        paths.append(Path(xdg, "clsecure", "config"))
    elif home is not None:
        paths.append(home / ".config/clsecure/config")
    if home is not None:
        paths.append(home / ".clsecurerc")
    return paths


def _directory() -> Path:
    try:
        return Path.cwd()
    except OSError:  # removed beneath us; whoever needs it says so better
        return Path("/")
