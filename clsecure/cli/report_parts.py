"""The sections of a report, each from its part of a record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clsecure.cli.report_rows import Mark, Section, row, text
from clsecure.session.words import human_size, number
from clsecure.settings.values.amounts import human_limit

if TYPE_CHECKING:
    from clsecure.session.proof import Proof

_STATUS = {"pass": Mark.GOOD, "fail": Mark.BAD, "skip": Mark.WEAK}
_SEVERITY = {"high": Mark.BAD, "warning": Mark.WEAK}
_STANDING = {"holds": Mark.GOOD, "broken": Mark.BAD, "absent": Mark.WEAK}
_LETTERS = {"A": "new", "M": "changed", "D": "deleted", "T": "another type"}


def record(proofs: Sequence[Proof]) -> Section:
    """Say what was found when the record was verified."""
    rows = [
        row(p.what.replace("_", " "), p.standing.value, p.words, mark=_STANDING[p.standing]) for p in proofs
    ]
    return Section(title="This record", columns=("what", "stands", "seen"), rows=tuple(rows))


def plan(said: Mapping[str, Any]) -> Section:
    """Say what ran, on and in what."""
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
            f"{name} {human_limit(name, limit['value'])} ({limit['enforced_by'] or 'not enforced'})"
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
        rows=tuple(row(name, str(value)) for name, value in rows.items() if value not in (None, "")),
    )


def checks(said: Mapping[str, Any]) -> Section:
    """Say each check, with what it expected and saw."""
    checks = said.get("verification", {}).get("checks", [])
    return Section(
        title="Verification",
        columns=("check", "what holds", "stands", "looked from", "when", "expected", "observed"),
        rows=tuple(
            row(
                check["check_id"],
                check["property"],
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


def residuals(said: Mapping[str, Any]) -> Section:
    """Say what was not held or could not be looked at; never silent."""
    plan = said.get("plan") or {}
    rows = [
        row(check["check_id"], f"could not be checked here: {check['observed']}", mark=Mark.WEAK)
        for check in said.get("verification", {}).get("checks", [])
        if check["status"] == "skip"
    ]
    rows += [
        row(f"limit of {name}", "nothing enforces it on this machine", mark=Mark.WEAK)
        for name, limit in said.get("limits", {}).items()
        if limit["enforced_by"] is None
    ]
    rows += [
        row("in another run, or later", line, mark=Mark.BAD)
        for line in said.get("verification", {}).get("failed_before", [])
    ]
    if plan.get("docker") == "host":
        rows.append(row("docker", "the agent had this machine's docker: as good as root", mark=Mark.BAD))
    if said["session"]["network"] == "full":
        rows.append(row("network", "the whole internet was within reach", mark=Mark.WEAK))
    if said["event_log"]["broken"] is not None:
        rows.append(row("event log", "was changed before the record was made", mark=Mark.BAD))
    rows += [row("warning", warning, mark=Mark.WEAK) for warning in said.get("warnings", [])]
    numbers = {
        residual
        for check in said.get("verification", {}).get("checks", [])
        for residual in check["residuals"]
    }
    known = f": {', '.join(sorted(numbers, key=_in_order))} concern what was checked" if numbers else ""
    return Section(
        title="What was not held",
        columns=("what", "why"),
        rows=tuple(rows),
        note=text(f"What no mode holds is in docs/threat-model.md, under Residuals{known}."),
    )


def findings(said: Mapping[str, Any]) -> Section:
    """Say what to look at first."""
    return Section(
        title="Look at this before you check the branch out",
        columns=("how much", "file", "why"),
        rows=tuple(
            row(f["severity"], f["path"], f["message"], mark=_SEVERITY.get(f["severity"], Mark.PLAIN))
            for f in said.get("findings", [])
        ),
    )


def commits(said: Mapping[str, Any]) -> Section:
    """Say what the agent committed."""
    rows, more = [], 0
    for unit in _units(said):
        rows += [
            row(unit["path"], commit["id"][:12], commit["author"], commit["subject"])
            for commit in unit["commits"]
        ]
        more += unit["commit_count"] - len(unit["commits"])
        if unit["uncommitted"]:
            rows.append(row(unit["path"], "", "", "what was not committed, as one commit"))
        if unit["rewritten"]:
            rows.append(row(unit["path"], "", "", "the history that was given was rewritten", mark=Mark.BAD))
    return Section(
        title="Commits",
        columns=("in", "commit", "author, as written", "subject"),
        rows=tuple(rows),
        nothing="none",
        note=f"and {number(more, 'more commit')}" if more else "",
    )


def files(said: Mapping[str, Any]) -> Section:
    """Say what it did to files."""
    rows, more = [], 0
    for unit in _units(said):
        rows += [row(_LETTERS.get(f["status"], f["status"]), f["path"]) for f in unit["files"]]
        more += unit["files_changed"] - len(unit["files"])
    rows += [
        row("stays behind", item, mark=Mark.WEAK) for item in (said.get("work") or {}).get("refused", [])
    ]
    return Section(
        title="Files",
        columns=("what", "file"),
        rows=tuple(rows),
        nothing="none was changed",
        note=f"and {number(more, 'more file')}" if more else "",
    )


def network(said: Mapping[str, Any]) -> Section:
    """Say what went through the gateway."""
    seen = said.get("network")
    if seen is None:
        return Section(
            title="Network", columns=("host",), nothing="no gateway: nothing went out through clsecure"
        )
    return Section(
        title="Network",
        columns=("host", "requests", "denied", "to the agent", "from it"),
        rows=tuple(
            row(
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


def decisions(said: Mapping[str, Any]) -> Section:
    """Say what was decided."""
    return Section(
        title="Decisions",
        columns=("when", "what", "branch", "tip"),
        rows=tuple(
            row(d["at"], d["action"], d.get("branch", ""), d.get("tip", "")) for d in said["decisions"]
        ),
    )


def phases(said: Mapping[str, Any]) -> Section:
    """Say how long each phase took."""
    timings = said.get("timings") or {"phases": {}, "duration_s": 0}
    return Section(
        title="Time",
        columns=("phase", "seconds"),
        rows=tuple(row(name, f"{seconds:.2f}") for name, seconds in timings["phases"].items()),
        note=f"in all {timings['duration_s']:.2f} s" if timings["phases"] else "",
    )


def timeline(said: Mapping[str, Any]) -> Section:
    """Say what happened when."""
    return Section(
        title="Timeline",
        columns=("when", "room", "event"),
        rows=tuple(
            row(
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


def _in_order(residual: str) -> tuple[int, str]:
    digits = "".join(c for c in residual if c in "0123456789")
    return int(digits or 0), residual
