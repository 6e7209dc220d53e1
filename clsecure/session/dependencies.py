"""Where the dependencies of a workspace lie: in the worker's own home, nothing of them shared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from clsecure.session.store import SessionRecord

MANAGERS = ("npm", "pnpm", "yarn", "pip", "uv", "poetry", "cargo", "go", "bundler")
"""The steps of an installation, by name."""

_PLACE = ".local/share/clsecure"


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
