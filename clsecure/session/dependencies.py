"""The dependencies of a workspace: where they lie, in the worker's home, and what installing them said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from clsecure.session.store import SessionRecord

MANAGERS = ("npm", "pnpm", "yarn", "pip", "uv", "poetry", "cargo", "go", "bundler")
"""The steps of an installation, by name."""

_PLACE = ".local/share/clsecure"
_MAX_LINES = 200
_MAX_CHANGED = 20


def venv_of(home: Path) -> Path:
    """Return the virtual environment: outside of the work tree, so that it can't come home."""
    return home / _PLACE / "venv"


def install_env(home: Path) -> Mapping[str, str]:
    """Return what keeps package managers' own files out of the work tree; for the agent later, too."""
    place = home / _PLACE
    return {
        "UV_PROJECT_ENVIRONMENT": str(venv_of(home)),
        "BUNDLE_PATH": str(place / "bundle"),
        "BUNDLE_APP_CONFIG": str(place / "bundle-config"),
        "YARN_INSTALL_STATE_PATH": str(place / "yarn-install-state.gz"),
    }


def agents_env(record: SessionRecord, home: Path) -> Mapping[str, str]:
    """Return what the agent needs to use what was installed for it."""
    if not record.installed:
        return {}
    venv = {"VIRTUAL_ENV": str(venv_of(home))} if record.venv else {}
    return {**install_env(home), **venv}


def agents_path(record: SessionRecord, home: Path) -> list[PurePosixPath]:
    """Return the directories of programs that were installed, by the setup script, too."""
    own = PurePosixPath(home / ".local/bin")
    return [PurePosixPath(venv_of(home) / "bin"), own] if record.venv else [own]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one package manager.

    :param status: ``ok``, ``failed`` or ``missing``.
    :param why: of what is missing; hostile.
    """

    name: str
    status: str
    exit_code: int | None
    seconds: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What ``prepare.py`` said, and whoever else could write there: it is worth words, and no more.

    :param outcomes: one for each package manager at most.
    :param changed: what differs in the work tree now; hostile.
    :param venv: there is a virtual environment.
    """

    outcomes: tuple[Outcome, ...]
    changed: tuple[str, ...]
    venv: bool


def read_report(data: bytes, *, elapsed: float) -> Report:
    """Read the lines of a report; what is none is left out.

    :param elapsed: seconds that all of it took.
    """
    outcomes: dict[str, Outcome] = {}
    changed: tuple[str, ...] = ()
    venv = False
    for entry in _entries(data):
        name, status = entry.get("step"), entry.get("status")
        if name in MANAGERS and name not in outcomes and status in ("ok", "failed", "missing"):
            code, seconds = entry.get("exit_code"), entry.get("seconds")
            outcomes[name] = Outcome(
                name=name,
                status=status,
                exit_code=code if type(code) is int and 0 <= code <= 255 else None,
                seconds=seconds if type(seconds) is float and 0 <= seconds <= elapsed else 0.0,
                why=str(entry.get("why"))[:200],
            )
        names = entry.get("changed")
        if isinstance(names, list) and not changed:
            changed = tuple(str(each)[:200] for each in names[:_MAX_CHANGED])
        venv = venv or entry.get("venv") is True
    return Report(outcomes=tuple(outcomes.values()), changed=changed, venv=venv)


def _entries(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n")[:_MAX_LINES]:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            yield entry
