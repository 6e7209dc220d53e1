"""What presets are resolved from, and to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clsecure.policy import NetworkRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Whose configuration is read.

    :param environ: the user's environment.
    :param home: the user's home.
    :param repository: the user's repository: its remotes count for ``git-remote``, and no program inside it
        is run.
    """

    environ: Mapping[str, str] = field(repr=False)
    home: Path
    repository: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One preset, resolved.

    :param rules: exact hosts and ports; ``where`` says which configuration named each.
    :param env: variables that make the tools inside use the same hosts, without secrets.
    :param notes: what the user should know, one sentence each.
    """

    name: str
    rules: tuple[NetworkRule, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
