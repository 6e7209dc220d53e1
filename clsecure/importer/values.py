"""What the steps of an import hand to each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from clsecure.git import Git
from clsecure.importer.frames import ExportLimits
from clsecure.model import ImportFinding, StartUnit


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedUnit:
    """One repository whose new objects lie in quarantine, complete and judged.

    :param git: the quarantine: a bare repository of the tool's own with the unit's ``base`` as alternate.
    :param tip: the agent's HEAD (the start's ``head`` when it was unborn).
    :param uncommitted: the commit on top of it with what was not committed, None when there was nothing.
    :param tree: tree of what comes home.
    :param commits: commits that ``tip`` has and the start's ``head`` has not.
    :param changed: there are commits, or ``tree`` is not the tree that was cloned in.
    :param rewritten: the start's ``head`` is no ancestor of ``tip``. Computed here, not believed.
    :param other_refs: branches and the like that hold commits which do not come home; escaped claims.
    :param untracked, deleted, ignored: counts as claimed by the exporter.
    """

    start: StartUnit
    git: Git
    tip: str
    uncommitted: str | None
    tree: str
    commits: int
    changed: bool
    rewritten: bool
    absent: bool
    other_refs: tuple[str, ...]
    refused: tuple[str, ...]
    untracked: int
    deleted: int
    ignored: int
    lfs: tuple[str, ...] = ()
    """sha256 of the LFS objects of this unit, in ``Admitted.directory / "lfs"``."""

    @property
    def final(self) -> str:
        """The commit that the branch will name."""
        return self.uncommitted or self.tip


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """All that arrived. ``directory`` holds it and belongs to the caller, who removes it afterwards.

    :param home_size: bytes that the worker's home takes on the disk, as claimed; None when unknown.
    """

    units: tuple[AdmittedUnit, ...]
    directory: Path
    limits: ExportLimits
    home_size: int | None = None

    @property
    def top(self) -> AdmittedUnit:
        """The user's repository itself."""
        return self.units[0]

    @property
    def changed(self) -> bool:
        """Whether there is anything to import."""
        return any(unit.changed for unit in self.units)

    @property
    def refused(self) -> tuple[str, ...]:
        """What can't come home, by escaped name with the reason."""
        return tuple(item for unit in self.units for item in unit.refused)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitSummary:
    """One commit, raw: no mailmap, no replacement, escaped for printing. Times are seconds since 1970."""

    id: str
    subject: str
    author: str
    committer: str
    author_time: int
    commit_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One changed path of a unit against what was cloned in.

    :param path: escaped, with the unit's path in front.
    :param raw: bytes, within the unit.
    :param status: A, M, D or T.
    """

    path: str
    raw: bytes
    status: str
    old_mode: str
    new_mode: str
    old_id: str
    new_id: str
    insertions: int | None = None
    deletions: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSummary:
    """What changed in one unit.

    :param changes: at most ``MAX_CHANGES`` of them; ``files_changed`` is the whole number.
    :param insertions, deletions: None when they could not be counted within the bounds.
    :param untracked: files that the agent had not committed nor staged, counted in the imported objects.
    """

    path: str
    commits: tuple[CommitSummary, ...]
    commit_count: int
    uncommitted: bool
    rewritten: bool
    changes: tuple[FileChange, ...]
    files_changed: int
    added: int
    deleted: int
    untracked: int
    insertions: int | None
    deletions: int | None
    other_refs: tuple[str, ...]


class DiffFunction(Protocol):
    """Gives the difference to what was cloned in as escaped text, piece by piece."""

    def __call__(self, *, max_bytes: int = ...) -> Iterator[bytes]:
        """Yield UTF-8 without controls but line feed and tab."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What the user is shown before the branch is made.

    :param units: those with changes, or with commits that do not come home (``other_refs``).
    """

    units: tuple[UnitSummary, ...]
    findings: tuple[ImportFinding, ...]
    refused: tuple[str, ...]
    diff: DiffFunction

    @property
    def files_changed(self) -> int:
        """Changed files of all units."""
        return sum(unit.files_changed for unit in self.units)

    @property
    def commits(self) -> int:
        """The agent's own commits of all units, without those for uncommitted work."""
        return sum(unit.commit_count for unit in self.units)
