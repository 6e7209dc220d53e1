"""From a dead agent to a decision: export, quarantine, findings, question, branch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from clsecure import logs
from clsecure.backends.api import Backend
from clsecure.importer.api import Admitted, Review, admit, export_request, promote, review
from clsecure.interrupts import deferred
from clsecure.model import ImportResult, OnFinish, SandboxSpec, Severity, StartState
from clsecure.session.clock import Clock
from clsecure.session.store import SessionDirectory, SessionRecord, SessionStatus
from clsecure.session.tools import run_tool
from clsecure.session.ui import FinishChoice, FinishQuestion, ReviewLine, Ui
from clsecure.session.words import number

log = logs.get("finish")

_SHOWN_COMMITS = 20
_SHOWN_FILES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do with the work, and how the branch is called.

    :param branch: the name; ``chosen`` when the user gave it: then it is taken as it is or refused.
    """

    on_finish: OnFinish
    branch: str
    chosen: bool
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What became of the work.

    :param seen: what it was, for the record; None where nobody looked.
    """

    imported: ImportResult | None
    kept: bool
    discarded: bool = False
    seen: Review | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The end of one session; nothing of it runs any more.

    :param author: name and address that commits of the session carry.
    :param asking: called when the question is about to be put: somebody may have to be fetched.
    """

    ui: Ui
    clock: Clock
    backend: Backend
    spec: SandboxSpec
    place: SessionDirectory
    start: StartState
    exporter: Path
    author: tuple[str, str]
    started: float
    asking: Callable[[], None] = lambda: None

    def conclude(self, record: SessionRecord, decision: Decision) -> Finished:
        """Bring the work into quarantine, show it, ask or obey, and write down what became of it.

        :raises ClsecureError: it can't come home as it is; the workspace stays.
        """
        if decision.on_finish is OnFinish.DISCARD:
            # Work that can't be brought out must not be what keeps it from being thrown away.
            return self._discard(record)
        with self.quarantined(record, decision.message) as (admitted, seen):
            log.info("work_reviewed", commits=seen.commits, files_changed=seen.files_changed)
            choice = self._choose(decision, admitted, seen)
            if choice.message in (None, decision.message):
                return self._carry_out(record, decision, choice, admitted, seen)
        with self.quarantined(record, choice.message or "") as (admitted, seen):
            return self._carry_out(record, decision, choice, admitted, seen)

    @contextmanager
    def quarantined(self, record: SessionRecord, message: str) -> Iterator[tuple[Admitted, Review]]:
        """Give the work as it lies in quarantine, with its review; the quarantine is gone afterwards."""
        try:
            with self.clock.phase("export"), self.ui.phase("bringing the work out"):
                admitted = self._export(record, message)
            with self.clock.phase("findings"), self.ui.phase("looking through the work"):
                name, email = self.author
                seen = review(admitted, author_name=name, author_email=email, started=self.started)
            yield admitted, seen
        finally:
            shutil.rmtree(self.place.export, ignore_errors=True)

    def _export(self, record: SessionRecord, message: str) -> Admitted:
        assert record.workspace is not None  # noqa: S101  # there is nothing to finish without one
        name, email = self.author
        request = export_request(
            self.start,
            Path(record.workspace),
            message=message,
            author_name=name,
            author_email=email,
            # The sandbox's own /tmp is memory; the work may be larger than that.
            temp=self.spec.account.home,
        )
        admitted: list[Admitted] = []

        def feed(out: BinaryIO) -> None:
            out.write(request)

        def collect(stream: BinaryIO) -> None:
            admitted.append(admit(stream, self.start, self.place.export))

        run_tool(self.backend, self.spec, program=self.exporter, arguments=(), feed=feed, collect=collect)
        return admitted[0]

    # ------------------------------------------------------------ the decision

    def _choose(self, decision: Decision, admitted: Admitted, seen: Review) -> FinishChoice:
        """Show what changed, and ask where somebody is there to answer."""
        if not has_work(admitted, seen):
            self.ui.note("the agent changed nothing")
        else:
            self.ui.show_review(list(review_lines(seen)))
        if decision.on_finish is not OnFinish.ASK:
            return FinishChoice(action=decision.on_finish)
        if not has_work(admitted, seen) or not self.ui.interactive:
            return FinishChoice(action=OnFinish.KEEP)
        self.asking()
        return self.ui.choose_finish(self._question(decision, admitted, seen))

    def _carry_out(
        self,
        record: SessionRecord,
        decision: Decision,
        choice: FinishChoice,
        admitted: Admitted,
        seen: Review,
    ) -> Finished:
        left = [f"stays behind: {item}" for item in seen.refused]
        left += [
            f"commits on {ref} are not on the branch that comes home"
            for unit in seen.units
            for ref in unit.other_refs
        ]
        for warning in left:
            self.ui.warn(warning)
        match choice.action:
            case OnFinish.IMPORT:
                branch = choice.branch or decision.branch
                numbered = not decision.chosen and branch == decision.branch
                return self._import(
                    record, admitted, seen, branch=branch, numbered=numbered, left=tuple(left)
                )
            case OnFinish.DISCARD:
                return replace(self._discard(record), seen=seen)
            case _:
                waits = has_work(admitted, seen)
                self._write(record, SessionStatus.KEPT, unimported=waits, size=admitted.home_size)
                if waits:
                    self.ui.note(f"kept. Bring it home with: clsecure import {self.place.path.name}")
                return Finished(imported=None, kept=True, seen=seen, warnings=tuple(left))

    def _discard(self, record: SessionRecord) -> Finished:
        self._write(record, SessionStatus.DONE, unimported=False, size=0)
        self.ui.note("the work is discarded")
        return Finished(imported=None, kept=False, discarded=True)

    def _question(self, decision: Decision, admitted: Admitted, seen: Review) -> FinishQuestion:
        uncommitted = any(unit.uncommitted for unit in admitted.units)
        return FinishQuestion(
            branch=decision.branch,
            loss=f"{number(seen.commits, 'commit')}, {number(seen.files_changed, 'changed file')}",
            diff=lambda: b"".join(seen.diff()),
            message=decision.message if uncommitted else None,
        )

    def _import(
        self,
        record: SessionRecord,
        admitted: Admitted,
        seen: Review,
        *,
        branch: str,
        numbered: bool,
        left: tuple[str, ...],
    ) -> Finished:
        """Make the branch. What could not come home keeps the session."""
        kept = bool(left)
        status = SessionStatus.KEPT if kept else SessionStatus.IMPORTED
        with self.clock.phase("import"), self.ui.phase("making the branch"), deferred():
            imported = promote(admitted, seen, branch, numbered=numbered)
            branch_made = imported.branch if imported else None
            self._write(record, status, unimported=kept, size=admitted.home_size, branch=branch_made)
        if imported is not None:
            log.info("branch_made", branch=imported.branch, tip=imported.tip, commits=imported.commits)
            self.ui.note(f"imported as {imported.branch} ({imported.tip[:12]})")
            self.ui.note(f"look at it with: git log -p HEAD..{imported.branch}")
        return Finished(imported=imported, kept=kept, seen=seen, warnings=left)

    def _write(
        self,
        record: SessionRecord,
        status: SessionStatus,
        *,
        unimported: bool,
        size: int | None,
        branch: str | None = None,
    ) -> None:
        self.place.write(
            record,
            status=status,
            unimported=unimported,
            size=size,
            branch=branch or record.branch,
            updated=time.time(),
        )


def has_work(admitted: Admitted, seen: Review) -> bool:
    """Tell whether anything would be lost without the workspace."""
    return admitted.changed or bool(seen.refused) or any(unit.other_refs for unit in seen.units)


def review_lines(seen: Review) -> Iterator[ReviewLine]:
    """Say what changed: commits, files, counts, then what to look at before checking it out."""
    for unit in seen.units:
        if not unit.commit_count and not unit.files_changed:
            continue
        where = f" in {unit.path}" if unit.path else ""
        lines = "" if unit.insertions is None else f", +{unit.insertions} -{unit.deletions} lines"
        yield ReviewLine(
            text=f"{number(unit.commit_count, 'commit')}, "
            f"{number(unit.files_changed, 'changed file')}{where} "
            f"({unit.added} new, {unit.deleted} deleted{lines})"
        )
        for commit in unit.commits[:_SHOWN_COMMITS]:
            yield ReviewLine(text=f"  {commit.id[:10]} {commit.subject}")
        if unit.commit_count > _SHOWN_COMMITS:
            yield ReviewLine(text=f"  … {unit.commit_count - _SHOWN_COMMITS} more commits")
        if unit.uncommitted:
            yield ReviewLine(
                text=f"  not committed: becomes one commit ({number(unit.untracked, 'new file')})"
            )
        for change in unit.changes[:_SHOWN_FILES]:
            yield ReviewLine(text=f"  {change.status} {change.path}")
        if unit.files_changed > _SHOWN_FILES:
            yield ReviewLine(text=f"  … {unit.files_changed - _SHOWN_FILES} more files")
        if unit.rewritten:
            yield ReviewLine(text="  the agent rewrote the history it was given", severity=Severity.HIGH)
    for finding in seen.findings:
        if finding.severity is not Severity.INFO:
            yield ReviewLine(text=f"{finding.path}: {finding.message}", severity=finding.severity)
    for item in seen.refused:
        yield ReviewLine(text=f"stays behind: {item}", severity=Severity.WARNING)
