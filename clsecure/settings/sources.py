"""Where settings come from: flags, environment, the user's and the machine's files. Read here, judged later.

Standard library only, so that commands which need no settings never pay for pydantic. Nothing is read from
the repository; :mod:`.project` does that once it is known.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from clsecure.errors import UsageError
from clsecure.settings import files
from clsecure.settings.files import MAX_FILE_BYTES, Assignment
from clsecure.settings.keys import KEYS, SECRET, SPELLINGS, canonical, nearest

__all__ = [
    "DEFAULT",
    "KEYS",
    "MAX_FILE_BYTES",
    "Entry",
    "Layer",
    "Layers",
    "Source",
    "gather",
    "read_file",
]

ENVIRONMENT_PREFIX = "CLSECURE_"
TOML_NAME = "config.toml"
SYSTEM_DIRECTORY = Path("/etc/clsecure")
MISPLACED = ".clsecure.conf"
"""A name that people try, and that nobody reads."""

# Names in our environment that are no settings: what hooks and sessions are told, what the tests use.
_OTHER_VARIABLES = (
    "CLSECURE_CLEANUP_LEVEL",
    "CLSECURE_DEV_",
    "CLSECURE_IMAGES",
    "CLSECURE_POLICY_URL",
    "CLSECURE_PROJECT_DIR",
    "CLSECURE_TEST_",
    "CLSECURE_WORKER_",
)


class Layer(StrEnum):
    """Where a value came from, strongest first. The project's is not like the others: it only narrows."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    USER_FILE = "user file"
    PROJECT = "project"
    SYSTEM = "system"
    DEFAULT = "default"

    @property
    def rank(self) -> int:
        """0 for the strongest."""
        return tuple(Layer).index(self)


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
    """One value as it was written.

    :param item: the text is one item of a list: commas in it do not part it further.
    :param table: what a table of ``[providers]`` or ``[agents]`` says, whose name is the text.
    """

    key: str
    text: str
    source: Source
    item: bool = False
    table: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """All that was found, strongest layer first; at most one entry per key and layer, but for lists.

    :param ceilings: what the machine's ``[enforce]`` says: nothing exceeds it.
    :param directory: what relative mounts of the command line start at.
    :param home: what ``~/`` stands for.
    """

    entries: tuple[Entry, ...] = ()
    ceilings: tuple[Entry, ...] = ()
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
    flags: Sequence[Entry] = (),
    *,
    environ: Mapping[str, str] | None = None,
    file: bool = True,
    system: Path = SYSTEM_DIRECTORY,
) -> Layers:
    """Collect every layer.

    :param flags: what the command line said, as the parser made it.
    :param environ: the environment, the process's own by default.
    :param file: read the files; off for commands that must work when they are broken.
    :param system: where the machine's files are. Code alone can say so: who could name another place by a
        flag or variable would be rid of the ceilings.
    :raises UsageError: a file that can't be accepted, or an unknown key.
    """
    env = os.environ if environ is None else environ
    home = _home(env)
    entries = [*flags, *_from_environment(env)]
    warnings: list[str] = []
    ceilings: list[Entry] = []
    if file:
        found = [path for path in _candidates(env, home) if os.path.lexists(path)]
        read = found[:1]
        toml = settings_directory(env, home)
        if toml is not None and os.path.lexists(toml / TOML_NAME):
            read.append(toml / TOML_NAME)
        entries += _of_files(
            [(path, files.read_own(path)) for path in read], Layer.USER_FILE, ceilings=ceilings
        )
        warnings += [f"{path} is not read, because {found[0]} is there" for path in found[1:]]
        warnings += _readable_secrets(entries, read)
        if home is not None:
            warnings += misplaced(home, toml / "config" if toml is not None else home / ".clsecurerc")
        paths = (system / "config", system / TOML_NAME)
        machine = [(path, data) for path in paths if (data := files.read_system(path)) is not None]
        entries += _of_files(machine, Layer.SYSTEM, ceilings=ceilings)
    return Layers(
        entries=tuple(entries),
        ceilings=tuple(ceilings),
        warnings=tuple(warnings),
        directory=_directory(),
        home=home,
    )


def read_file(path: Path) -> list[Entry]:
    """Read a file of the user's: TOML where its name says so, flat ``key = value`` lines otherwise.

    :raises UsageError: not a regular file that the user owns, too large, NUL, not UTF-8, not well-formed, an
        unknown key, or a key given twice under any of its spellings.
    """
    return _of_files([(path, files.read_own(path))], Layer.USER_FILE, ceilings=[])


def _readable_secrets(entries: Sequence[Entry], paths: Sequence[Path]) -> list[str]:
    """Return a warning for each file of the user's that holds a key and that others can read."""
    found = []
    for path in paths:
        holds = any(e.key in SECRET and e.source.where.startswith(f"{path}:") for e in entries)
        with suppress(OSError):
            if holds and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
                found.append(f"{path} holds a key, and others can read it: chmod 600 {path}")
    return found


def misplaced(directory: Path, right: Path) -> list[str]:
    """Return a warning where a file of settings lies under a name that nobody reads."""
    found = directory / MISPLACED
    if not os.path.lexists(found):
        return []
    return [f"{found} is not read by anything; settings belong in {right}"]


def assignments(path: Path, data: bytes) -> list[Assignment]:
    """Return what a file says, whichever its format.

    :raises UsageError: it is not well-formed.
    """
    if path.suffix != ".toml":
        return files.flat(data, path)
    from clsecure.settings import tables

    return tables.parse(data, path)


def to_entries(path: Path, assignment: Assignment, layer: Layer) -> list[Entry]:
    """Return the entries of one assignment.

    :raises UsageError: its value is of a type that the key can't have.
    """
    if assignment.wrong is not None:
        raise files.line_error(path, assignment.line, f"{assignment.written} {assignment.wrong}")
    key = assignment.key or ""
    return [
        Entry(
            key=key,
            text=text.text,
            source=Source(layer=layer, where=f"{path}:{text.line}"),
            item=assignment.items,
            table=assignment.table,
        )
        for text in assignment.texts
    ]


class Once:
    """Holds each key against being set a second time, in whatever spelling or file."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Path, int]] = {}

    def add(self, path: Path, assignment: Assignment) -> None:
        """Note one assignment.

        :raises UsageError: its key was set before.
        """
        key = assignment.key or "" if assignment.table is None else assignment.written
        if key in self._seen:
            first, line = self._seen[key]
            place = f"in line {line}" if first == path else f"in {first}:{line}"
            raise files.line_error(path, assignment.line, f"{key} is set a second time (first {place})")
        self._seen[key] = path, assignment.line


def _of_files(found: Sequence[tuple[Path, bytes]], layer: Layer, *, ceilings: list[Entry]) -> list[Entry]:
    """Return what files say that are one layer together; what they enforce is added to ``ceilings``."""
    once, enforced = Once(), Once()
    entries: list[Entry] = []
    for path, data in found:
        for assignment in assignments(path, data):
            if assignment.ceiling and layer is not Layer.SYSTEM:
                raise files.line_error(
                    path,
                    assignment.line,
                    "[enforce] is for the machine's own file",
                    resolution=f"an administrator can put it into {SYSTEM_DIRECTORY / TOML_NAME}",
                )
            if assignment.key is None:
                raise files.line_error(
                    path,
                    assignment.line,
                    f"unknown key {assignment.written[:64]!r}",
                    resolution=_meant(assignment.written, path),
                )
            (enforced if assignment.ceiling else once).add(path, assignment)
            (ceilings if assignment.ceiling else entries).extend(to_entries(path, assignment, layer))
    return entries


def _meant(written: str, path: Path) -> str:
    if path.name != TOML_NAME:
        return nearest(written)
    from clsecure.settings.tables import ENFORCE, TABLES

    table, dot, name = written.partition(".")
    if dot and table == "enforce":
        return nearest(name, ENFORCE)
    return nearest(name, TABLES.get(table, ())) if dot else nearest(table, (*KEYS, *SPELLINGS, *TABLES))


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
                resolution=nearest(name.removeprefix(ENVIRONMENT_PREFIX)),
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


def settings_directory(env: Mapping[str, str], home: Path | None) -> Path | None:
    xdg = env.get("XDG_CONFIG_HOME", "")
    if xdg.startswith("/"):  # its specification: a relative one is to be ignored
        return Path(xdg, "clsecure")
    return None if home is None else home / ".config/clsecure"


def _candidates(env: Mapping[str, str], home: Path | None) -> list[Path]:
    directory = settings_directory(env, home)
    paths = [] if directory is None else [directory / "config"]
    if home is not None:
        paths.append(home / ".clsecurerc")
    return paths


def _directory() -> Path:
    try:
        return Path.cwd()
    except OSError:  # removed beneath us; whoever needs it says so better
        return Path("/")
