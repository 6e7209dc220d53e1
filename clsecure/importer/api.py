"""The import in three steps: admit the stream, review what arrived, promote it to a branch."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from clsecure.errors import ImportRejectedError
from clsecure.importer import findings, summary
from clsecure.importer.bounded import MIB, Bounds
from clsecure.importer.findings import Expected
from clsecure.importer.frames import (
    ExportLimits,
    LfsRecord,
    PackRecord,
    RecordReader,
    UnitRecord,
    reject,
)
from clsecure.importer.promote import check_branch_name, promote_units, recover
from clsecure.importer.quarantine import Quarantine, finish
from clsecure.importer.values import Admitted, AdmittedUnit, Review
from clsecure.model import ImportedUnit, ImportResult, StartState, StartUnit
from clsecure.terminal import escape

__all__ = [
    "Admitted", "ExportLimits", "Review", "admit", "check_branch_name", "export_request", "promote",
    "recover", "review",
]  # fmt: skip

DEFAULT_LIMITS = ExportLimits()
_DIFF_BYTES = 32 * MIB


def export_request(
    start: StartState,
    workspace: Path,
    *,
    message: str,
    author_name: str,
    author_email: str,
    temp: Path | None = None,
    deadline_s: float = 600.0,
) -> bytes:
    """Return the line that ``export.py`` reads.

    :param workspace: the top work tree, as a path inside the sandbox.
    :param temp: a directory inside with room for what is new, None for the sandbox's /tmp.
    """
    import base64
    import json

    request = {
        "workspace": str(workspace),
        "units": [
            {
                "path": base64.b64encode(unit.path).decode("ascii"),
                "head": unit.head,
                "base_tree": unit.base_tree,
                "object_format": "sha1" if len(unit.head) == 40 else "sha256",
            }
            for unit in start.units
        ],
        "portable": start.rules,
        "message": message,
        "author_name": author_name,
        "author_email": author_email,
        "max_refused": 200,
        "temp": None if temp is None else str(temp),
        "deadline_s": deadline_s,
    }
    return json.dumps(request).encode("ascii") + b"\n"


def admit(
    stream: BinaryIO, start: StartState, directory: Path, *, limits: ExportLimits = DEFAULT_LIMITS
) -> Admitted:
    """Read the exporter's stream into quarantine and examine everything that arrived.

    :param stream: the exporter's stdout, unread. The caller looks at the exporter's status as well.
    :param directory: a private directory of the tool's own, on a disk with room; what a former, killed
        import left in it is cleared first (see :func:`recover`, to be asked before). It has to stay as long
        as the result is used; then the caller removes it.
    :raises ImportRejectedError: something is malformed, too large, incomplete or dangerous. Nothing outside
        of ``directory`` has been touched.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    recover(directory)
    for name in ("units", "lfs", "outgoing"):
        shutil.rmtree(directory / name, ignore_errors=True)
    arrived = _Arrival(start=start, directory=directory, limits=limits)
    try:
        arrived.receive(stream)
        return arrived.judge()
    except OSError as error:
        raise ImportRejectedError(
            "the agent's work could not be received",
            details=f"{error.strerror}: {escape(str(error.filename or ''))}",
            resolution="Make room, then import again; the work is kept",
        ) from error


def review(
    admitted: Admitted,
    *,
    author_name: str,
    author_email: str,
    started: float,
    limits_s: float = 300.0,
) -> Review:
    """Compute summary and findings from the imported objects alone.

    :param author_name, author_email: the identity that was configured for the agent.
    :param started: when the session began, seconds since 1970.
    :raises ImportRejectedError: it took longer than ``limits_s`` or more than the bounds allow.
    """
    bounds = Bounds(deadline=time.monotonic() + limits_s, memory=admitted.limits.memory)
    expected = Expected(author=f"{author_name} <{author_email}>", started=started, now=time.time())

    def diff(*, max_bytes: int = _DIFF_BYTES) -> Iterator[bytes]:
        within = Bounds(deadline=time.monotonic() + limits_s, memory=admitted.limits.memory)
        return chain.from_iterable(
            summary.diff(unit, bounds=within, max_bytes=max_bytes) for unit in admitted.units
        )

    return Review(
        units=tuple(
            summary.summarise(unit, bounds=bounds)
            for unit in admitted.units
            if unit.changed or unit.other_refs
        ),
        findings=findings.find(admitted.units, expected, bounds=bounds),
        refused=admitted.refused,
        diff=diff,
    )


def promote(
    admitted: Admitted, reviewed: Review, branch: str, *, numbered: bool = False
) -> ImportResult | None:
    """Create the branch; None when the session changed nothing.

    :param branch: its name, equally in every submodule with changes.
    :param numbered: the name is a default: where it is taken, the next free one like it is used.
    :raises ClsecureError: nothing half-made is visible then, and calling again is safe.
    """
    if not admitted.changed:
        return None
    made = promote_units(admitted, branch, numbered=numbered)
    top = admitted.top
    tip = made.tips.get(top.start.path, top.final)
    return ImportResult(
        branch=made.branch,
        tip=tip,
        tree=_tree(top, tip),
        commits=top.commits,
        uncommitted_commit=None if top.uncommitted is None else tip,
        files_changed=reviewed.files_changed,
        submodules=tuple(
            ImportedUnit(
                path=escape(unit.start.path),
                branch=made.branch,
                tip=made.tips[unit.start.path],
                tree=_tree(unit, made.tips[unit.start.path]),
                base_commit=unit.start.head,
                base_tree=unit.start.base_tree,
                commits=unit.commits,
            )
            for unit in admitted.units[1:]
            if unit.changed
        ),
        refused=admitted.refused,
        findings=reviewed.findings,
    )


def _tree(unit: AdmittedUnit, tip: str) -> str:
    """Return the tree of what the branch names: a start that was dirty and left alone is in none."""
    if unit.uncommitted is not None:
        return unit.tree  # a former import made the same one, with another date, where tip is not ours
    return unit.git.text("rev-parse", "--verify", f"{tip}^{{tree}}")


class _Arrival:
    """The state of one reception."""

    def __init__(self, *, start: StartState, directory: Path, limits: ExportLimits) -> None:
        self.directory = directory
        self.limits = limits
        self.starts: dict[bytes, StartUnit] = {unit.path: unit for unit in start.units}
        self.records: dict[bytes, UnitRecord] = {}
        self.quarantines: dict[bytes, Quarantine] = {}
        self.lfs: dict[bytes, list[str]] = {}
        self.packed: set[bytes] = set()
        self.home_size: int | None = None
        (directory / "units").mkdir()
        (directory / "lfs").mkdir()

    def receive(self, stream: BinaryIO) -> None:
        reader = RecordReader(stream, self.limits)
        current: bytes | None = None
        for record in reader.records():
            match record:
                case UnitRecord():
                    current = self._unit(record)
                case PackRecord():
                    if current is None or current in self.packed:
                        reject("a pack that belongs to no repository")
                    self.packed.add(current)
                    self._pack(reader, current, record.size)
                case LfsRecord():
                    if current is None:
                        reject("an LFS object that belongs to no repository")
                    self._lfs(reader, current, record)
        if self.records.keys() != self.starts.keys():
            reject("a repository is missing")
        self.home_size = reader.home_size

    def judge(self) -> Admitted:
        finals = {path: record.uncommitted or record.tip for path, record in self.records.items()}
        units = []
        for path in self.starts:
            quarantine, record = self.quarantines[path], self.records[path]
            verdict = quarantine.judge(record, finals, bounds=self._bounds())
            unit = finish(quarantine, record, verdict, tuple(self.lfs.get(path, ())))
            units.append(self._wanted_lfs(unit))
        return Admitted(
            units=tuple(units), directory=self.directory, limits=self.limits, home_size=self.home_size
        )

    def _bounds(self) -> Bounds:
        return Bounds(deadline=time.monotonic() + self.limits.judge_s, memory=self.limits.memory)

    def _unit(self, record: UnitRecord) -> bytes:
        if record.path not in self.starts or record.path in self.records:
            reject("a repository that was not cloned in")
        self.records[record.path] = record
        place = self.directory / "units" / f"{len(self.records)}.git"
        self.quarantines[record.path] = Quarantine.create(self.starts[record.path], place, limits=self.limits)
        return record.path

    def _room(self, size: int) -> None:
        free = shutil.disk_usage(self.directory).free
        if free < size + self.limits.reserve_bytes:
            raise ImportRejectedError(
                "there is no room for the agent's work",
                details=f"{size} bytes of {free} are needed, and {self.limits.reserve_bytes} stay free",
                resolution="Make room, then import again; the work is kept",
            )

    def _pack(self, reader: RecordReader, path: bytes, size: int) -> None:
        # Three times: as it arrives, indexed in quarantine, and on its way to the user's repository.
        self._room(3 * size)
        spool = self.directory / "units" / "incoming.pack"
        with spool.open("wb") as file:
            for _ in reader.copy(file):
                pass
        self.quarantines[path].accept(spool, bounds=self._bounds())
        spool.unlink()

    def _lfs(self, reader: RecordReader, path: bytes, record: LfsRecord) -> None:
        self._room(2 * record.size)
        digest = hashlib.sha256()
        place = self.directory / "lfs" / record.oid
        with place.open("wb") as file:
            for chunk in reader.copy(file):
                digest.update(chunk)
        if digest.hexdigest() != record.oid:
            raise ImportRejectedError("an LFS object of the agent's work is not what its name says")
        self.lfs.setdefault(path, []).append(record.oid)

    def _wanted_lfs(self, unit: AdmittedUnit) -> AdmittedUnit:
        """Leave out what no pointer of the work names: nothing else fills the user's store."""
        if not unit.lfs:
            return unit
        named = self.quarantines[unit.start.path].pointers(unit.tree, bounds=self._bounds())
        return replace(unit, lfs=tuple(oid for oid in unit.lfs if oid in named and unit.changed))
