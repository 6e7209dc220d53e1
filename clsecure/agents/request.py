"""What an agent's home is made from, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from clsecure.model import HomeFile


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeRequest:
    """From whose home, for which worker.

    :param user_home: the user's home on the host; read, never written.
    :param worker_home: the home inside.
    :param workspace: the work tree inside.
    :param environ: the user's environment; only names that move the settings' place are looked at.
    :param version: of the agent's program, where known.
    """

    user_home: Path
    worker_home: PurePosixPath
    workspace: PurePosixPath
    environ: Mapping[str, str] = field(default_factory=dict)
    version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentHome:
    """The files for the worker's home.

    :param left_out: one line for each thing of the user's that did not come along and may be missed; holds
        names of files, so it is escaped when printed.
    """

    files: tuple[HomeFile, ...] = ()
    left_out: tuple[str, ...] = ()


def empty_home(request: HomeRequest) -> AgentHome:  # noqa: ARG001  # the signature that a spec calls
    """Return nothing: an agent without settings."""
    return AgentHome()
