"""What a tool itself answers, where no configuration says it: the user's own, never the repository's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from clsecure import process
from clsecure.egress.presets.files import is_inside
from clsecure.egress.presets.values import Person
from clsecure.errors import ToolError
from clsecure.process import Command

DEADLINE = 10.0
"""Seconds for one answer."""

_MAX_ANSWER = 64 << 10

# Where the version managers keep their tools: a shim finds nothing without.
_MANAGERS = re.compile(
    r"(?:ASDF|FNM|MISE|N|NODENV|NVM|PYENV|RUSTUP|VOLTA)_[A-Z_]+|XDG_[A-Z_]+|HOME|USER|LOGNAME"
)


def find_tools(name: str, person: Person) -> Iterator[Path]:
    """Yield the programs of a name on the user's PATH, first come first."""
    seen = set()
    for directory in _path(person):
        program = Path(directory) / name
        # Not Path.is_file(): it raises for directories that the user may not enter.
        if program in seen or not os.path.isfile(program) or not os.access(program, os.X_OK):  # noqa: PTH113
            continue
        seen.add(program)
        if not is_inside(program, person.repository):
            yield program


def ask(
    program: Path, *args: str, person: Person, variables: str = "", settings: dict[str, str] | None = None
) -> str | None:
    """Return what a program prints, None when it fails or takes too long.

    :param variables: pattern of further names of the user's environment that it gets.
    :param settings: variables that it gets besides, whatever the user's say.
    """
    result = run(program, *args, person=person, variables=variables, settings=settings)
    if result is None or result.returncode != 0:
        return None
    return result.stdout[:_MAX_ANSWER].decode("utf-8", "replace")


def run(
    program: Path, *args: str, person: Person, variables: str = "", settings: dict[str, str] | None = None
) -> process.CommandResult | None:
    """Like :func:`ask`, for programs that answer by failing."""
    env = {
        name: value
        for name, value in person.environ.items()
        if _MANAGERS.fullmatch(name) or (variables and re.fullmatch(variables, name))
    }
    env |= {
        "PATH": ":".join(_path(person)),
        "HOME": str(person.home),
        "LC_ALL": "C.UTF-8",
        **(settings or {}),
    }
    try:
        # Started where nothing lies: some tools read configuration of the directory that they stand in.
        return process.run(Command(argv=(str(program), *args), env=env, cwd=Path("/"), timeout=DEADLINE))
    except (OSError, ToolError):
        return None


def _path(person: Person) -> list[str]:
    """Return the entries of PATH that are absolute and outside of the repository."""
    return [
        entry
        for entry in person.environ.get("PATH", "").split(":")
        if entry.startswith("/") and not is_inside(Path(entry), person.repository)
    ]
