"""What people read of a record: sections of a few words each, the same for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from clsecure.errors import VerificationError
from clsecure.session.words import human_size, number
from clsecure.terminal import escape

if TYPE_CHECKING:
    from clsecure.session.proof import Proof

_MOST = 300


class Mark(StrEnum):
    """How a row strikes the eye."""

    PLAIN = "plain"
    GOOD = "good"
    WEAK = "weak"
    BAD = "bad"


_STATUS = {"pass": Mark.GOOD, "fail": Mark.BAD, "skip": Mark.WEAK}
_SEVERITY = {"high": Mark.BAD, "warning": Mark.WEAK}
_STANDING = {"holds": Mark.GOOD, "broken": Mark.BAD, "absent": Mark.WEAK}
_LETTERS = {"A": "new", "M": "changed", "D": "deleted", "T": "another type"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line. The cells are escaped."""

    cells: tuple[str, ...]
    mark: Mark = Mark.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One heading with a table, or with ``nothing`` where the table is empty."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...] = ()
    nothing: str = "nothing"
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of it."""

    title: str
    verdict: str
    mark: Mark
    sections: tuple[Section, ...] = field(default_factory=tuple)


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
        title=_text(f"{session['project']}, session {session['name']} ({session['id']})"),
        verdict=verdict,
        mark=mark,
        sections=(
            _record(proofs),
            _plan(said),
            _checks(said),
            _residuals(said),
            _findings(said),
            _commits(said),
            _files(said),
            _network(said),
            _decisions(said),
            _phases(said),
            _timeline(said),
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
    if any(proof.standing.value == "broken" for proof in proofs):
        return "This record does not hold. Nothing in it can be relied on.", Mark.BAD
    failed = said.get("verification", {}).get("failed", 0)
    if failed:
        anyway = " The work was imported anyway." if said["verification"]["import_anyway"] else ""
        return f"The isolation did not hold: {number(failed, 'check')} failed.{anyway}", Mark.BAD
    if not said["complete"]:
        return "The run did not come to its end; what is here is what was known then.", Mark.WEAK
    if not said["verification"]["checks"]:
        return "No check is recorded.", Mark.WEAK
    return "No check failed.", Mark.GOOD


def _record(proofs: Sequence[Proof]) -> Section:
    rows = [
        _row(p.what.replace("_", " "), p.standing.value, p.words, mark=_STANDING[p.standing]) for p in proofs
    ]
    return Section(title="This record", columns=("what", "stands", "seen"), rows=tuple(rows))


def _plan(said: Mapping[str, Any]) -> Section:
    plan, sandbox, host = (said.get(key) or {} for key in ("plan", "sandbox", "host"))
    session, program, image = said["session"], sandbox.get("program") or {}, sandbox.get("image") or {}
    command = plan.get("command")
    rows = {
        "project": session["project"],
        "copied": f"{session['base_commit']}, as tree {session['base_tree']}",
        "mode": session["mode"],
        "engine": " ".join(str(plan.get(key)) for key in ("engine", "runtime") if plan.get(key)),
        "account": f"{session['worker_user']} ({sandbox.get('worker_uid', '?')})",
        "agent": f"{session['agent']} {program.get('version', '')}".strip(),
        "agent's program": program.get("sha256"),
        "image": f"{image['name']} {image['id']}" if image else None,
        "ran instead": f"{command['program']} with {number(command['arguments'], 'argument')}"
        if command
        else None,
        "network": session["network"],
        "allowed hosts": ", ".join(plan.get("allow", [])),
        "denied hosts": ", ".join(plan.get("deny", [])),
        "docker": plan.get("docker"),
        "mounts": ", ".join(
            f"{m['source']} at {m['target']}{'' if m['read_only'] else ' (writable)'}"
            for m in plan.get("mounts", [])
        ),
        "limits": ", ".join(
            f"{name} {limit['value']:g} ({limit['enforced_by'] or 'not enforced'})"
            for name, limit in said.get("limits", {}).items()
        ),
        "setup": ", ".join(f"{step['name']}: {step['status']}" for step in said.get("setup", [])),
        "kernel": host.get("kernel"),
        "distribution": host.get("distribution"),
        "clsecure": host.get("clsecure"),
        "programs": ", ".join(f"{name} {version}" for name, version in host.get("programs", {}).items()),
        "exit status": said["exit_code"],
    }
    return Section(
        title="What ran",
        columns=("what", "value"),
        rows=tuple(_row(name, str(value)) for name, value in rows.items() if value not in (None, "")),
    )


def _checks(said: Mapping[str, Any]) -> Section:
    checks = said.get("verification", {}).get("checks", [])
    return Section(
        title="Verification",
        columns=("check", "stands", "looked from", "when", "expected", "observed"),
        rows=tuple(
            _row(
                check["check_id"],
                check["status"],
                check["vantage"],
                check["phase"],
                check["expected"],
                check["observed"],
                mark=_STATUS.get(check["status"], Mark.PLAIN),
            )
            for check in checks
        ),
        nothing="no check is recorded",
    )


def _residuals(said: Mapping[str, Any]) -> Section:
    """Say what was not held or could not be looked at; never silent."""
    plan = said.get("plan") or {}
    rows = [
        _row(check["check_id"], f"could not be checked here: {check['observed']}", mark=Mark.WEAK)
        for check in said.get("verification", {}).get("checks", [])
        if check["status"] == "skip"
    ]
    rows += [
        _row(f"limit of {name}", "nothing enforces it on this machine", mark=Mark.WEAK)
        for name, limit in said.get("limits", {}).items()
        if limit["enforced_by"] is None
    ]
    if plan.get("docker") == "host":
        rows.append(_row("docker", "the agent had this machine's docker: as good as root", mark=Mark.BAD))
    if said["session"]["network"] == "full":
        rows.append(_row("network", "the whole internet was within reach", mark=Mark.WEAK))
    if said["event_log"]["broken"] is not None:
        rows.append(_row("event log", "was changed before the record was made", mark=Mark.BAD))
    rows += [_row("warning", warning, mark=Mark.WEAK) for warning in said.get("warnings", [])]
    return Section(
        title="What was not held",
        columns=("what", "why"),
        rows=tuple(rows),
        note="What no mode holds is in docs/threat-model.md, under Residuals.",
    )


def _findings(said: Mapping[str, Any]) -> Section:
    return Section(
        title="Look at this before you check the branch out",
        columns=("how much", "file", "why"),
        rows=tuple(
            _row(f["severity"], f["path"], f["message"], mark=_SEVERITY.get(f["severity"], Mark.PLAIN))
            for f in said.get("findings", [])
        ),
    )


def _commits(said: Mapping[str, Any]) -> Section:
    rows, more = [], 0
    for unit in _units(said):
        rows += [
            _row(unit["path"], commit["id"][:12], commit["author"], commit["subject"])
            for commit in unit["commits"]
        ]
        more += unit["commit_count"] - len(unit["commits"])
        if unit["uncommitted"]:
            rows.append(_row(unit["path"], "", "", "what was not committed, as one commit"))
        if unit["rewritten"]:
            rows.append(_row(unit["path"], "", "", "the history that was given was rewritten", mark=Mark.BAD))
    return Section(
        title="Commits",
        columns=("in", "commit", "author, as written", "subject"),
        rows=tuple(rows),
        nothing="none",
        note=f"and {number(more, 'more commit')}" if more else "",
    )


def _files(said: Mapping[str, Any]) -> Section:
    rows, more = [], 0
    for unit in _units(said):
        rows += [_row(_LETTERS.get(f["status"], f["status"]), f["path"]) for f in unit["files"]]
        more += unit["files_changed"] - len(unit["files"])
    rows += [
        _row("stays behind", item, mark=Mark.WEAK) for item in (said.get("work") or {}).get("refused", [])
    ]
    return Section(
        title="Files",
        columns=("what", "file"),
        rows=tuple(rows),
        nothing="none was changed",
        note=f"and {number(more, 'more file')}" if more else "",
    )


def _network(said: Mapping[str, Any]) -> Section:
    seen = said.get("network")
    if seen is None:
        return Section(
            title="Network", columns=("host",), nothing="no gateway: nothing went out through clsecure"
        )
    return Section(
        title="Network",
        columns=("host", "requests", "denied", "to the agent", "from it"),
        rows=tuple(
            _row(
                f"{host['host']}:{host['port']}",
                str(host["requests"]),
                str(host["denied"]),
                human_size(host["bytes_in"]),
                human_size(host["bytes_out"]),
                mark=Mark.WEAK if host["denied"] else Mark.PLAIN,
            )
            for host in seen["hosts"]
        ),
        nothing="nothing was asked for",
        note=f"{number(seen['requests'], 'request')}, {seen['denied']} denied, "
        f"{human_size(seen['bytes_in'])} in, {human_size(seen['bytes_out'])} out"
        + ("" if seen["complete"] else "; the gateway died: what its log has"),
    )


def _decisions(said: Mapping[str, Any]) -> Section:
    return Section(
        title="Decisions",
        columns=("when", "what", "branch", "tip"),
        rows=tuple(
            _row(d["at"], d["action"], d.get("branch", ""), d.get("tip", "")) for d in said["decisions"]
        ),
    )


def _phases(said: Mapping[str, Any]) -> Section:
    timings = said.get("timings") or {"phases": {}, "duration_s": 0}
    return Section(
        title="Time",
        columns=("phase", "seconds"),
        rows=tuple(_row(name, f"{seconds:.2f}") for name, seconds in timings["phases"].items()),
        note=f"in all {timings['duration_s']:.2f} s" if timings["phases"] else "",
    )


def _timeline(said: Mapping[str, Any]) -> Section:
    return Section(
        title="Timeline",
        columns=("when", "room", "event"),
        rows=tuple(
            _row(
                event["at"],
                event["room"],
                event["event"].replace("_", " "),
                mark=Mark.WEAK if event["level"] in ("warning", "error") else Mark.PLAIN,
            )
            for event in said["timeline"]
        ),
    )


def _units(said: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    units: Iterable[Mapping[str, Any]] = (said.get("work") or {}).get("units", [])
    return units


def _row(*cells: str, mark: Mark = Mark.PLAIN) -> Row:
    return Row(cells=tuple(_text(cell) for cell in cells), mark=mark)


def _text(text: str) -> str:
    """Return what may be seen, bounded. The record is escaped already; that is not relied on."""
    shown = escape(text)
    return shown if len(shown) <= _MOST else f"{shown[:_MOST]}…"
