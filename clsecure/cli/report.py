"""What people read of a record: sections of a few words each, the same for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clsecure.cli import report_parts as parts
from clsecure.cli.report_rows import Mark, Report, text
from clsecure.errors import VerificationError
from clsecure.session.words import number

if TYPE_CHECKING:
    from clsecure.session.proof import Proof


def sections(statement: Mapping[str, Any], proofs: Iterable[Proof]) -> Report:
    """Return the report of a record.

    :param proofs: what was found when it was verified.
    :raises VerificationError: it has not the form of a record, which no signed one lacks.
    """
    try:
        return _report(statement["predicate"], tuple(proofs))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise VerificationError("that is no record of clsecure", details=repr(error)) from error


def _report(said: Mapping[str, Any], proofs: tuple[Proof, ...]) -> Report:
    verdict, mark = _verdict(said, proofs)
    session = said["session"]
    return Report(
        title=text(f"{session['project']}, session {session['name']} ({session['id']})"),
        verdict=verdict,
        mark=mark,
        sections=(
            parts.record(proofs),
            parts.plan(said),
            parts.checks(said),
            parts.residuals(said),
            parts.findings(said),
            parts.commits(said),
            parts.files(said),
            parts.network(said),
            parts.decisions(said),
            parts.phases(said),
            parts.timeline(said),
        ),
    )


def lines(report: Report) -> Iterator[str]:
    """Yield the report as text."""
    yield report.title
    yield report.verdict
    for section in report.sections:
        yield ""
        yield section.title.upper()
        if not section.rows:
            yield f"  {section.nothing}"
        widths = [
            min(60, max((len(row.cells[index]) for row in section.rows), default=0))
            for index in range(len(section.columns))
        ]
        for row in section.rows:
            cells = [cell.ljust(width) for cell, width in zip(row.cells, widths, strict=True)]
            yield f"  {'  '.join(cells)}".rstrip()
        if section.note:
            yield f"  {section.note}"


def _verdict(said: Mapping[str, Any], proofs: Sequence[Proof]) -> tuple[str, Mark]:
    broken = {proof.what for proof in proofs if proof.standing.value == "broken"}
    if broken & {"form", "signature", "ssh_signature"}:
        return "This record does not hold. Nothing in it can be relied on.", Mark.BAD
    if broken:
        return "The record is as it was signed, but what it is about is not there as it says.", Mark.BAD
    checked = said.get("verification", {})
    failed = checked.get("failed", 0) + len(checked.get("failed_before", []))
    if failed:
        anyway = " The work was imported anyway." if said["verification"]["import_anyway"] else ""
        return f"The isolation did not hold: {number(failed, 'check')} failed.{anyway}", Mark.BAD
    if not said["complete"]:
        return "The run did not come to its end; what is here is what was known then.", Mark.WEAK
    if not said["verification"]["checks"]:
        return "No check is recorded.", Mark.WEAK
    return "No check failed.", Mark.GOOD
