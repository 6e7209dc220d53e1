"""Results: one document that fits its schema, tables without markup, nothing hostile on a terminal."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pexpect
import pytest

from clsecure.cli import render
from clsecure.cli.render import SessionRow
from clsecure.egress.wire import HostTotals
from clsecure.model import (
    CheckResult,
    CheckStatus,
    ImportedUnit,
    ImportFinding,
    ImportResult,
    IsolationMode,
    NetworkPolicy,
    Phase,
    Severity,
    Vantage,
    Verification,
)
from clsecure.session.dependencies import MANAGERS
from clsecure.session.limits import LimitResult
from clsecure.session.result import (
    EgressResult,
    RecordResult,
    SessionResult,
    SetupStep,
    VerificationResult,
)
from clsecure.session.setup import SCRIPT
from clsecure.session.words import human_size
from tests.support.cli import ROOT
from tests.support.schema import check, load

OID = "0123456789abcdef0123456789abcdef01234567"
HOSTILE = "a\x1b[2J\u202e[red]b[/] :smile:\n"
ROW = SessionRow(
    session_id="20260101-000000-abc",
    project="/home/u/app",
    session="default",
    mode=IsolationMode.USER,
    status="kept",
    worker_user="claude-worker-app-abc",
    size=5_000_000,
    age_s=7300.5,
    unimported=True,
)
IMPORT = ImportResult(
    branch="claude/app",
    tip=OID,
    tree=OID,
    commits=2,
    uncommitted_commit=None,
    files_changed=3,
    submodules=(
        ImportedUnit(
            path="sub", branch="claude/app", tip=OID, tree=OID, base_commit=OID, base_tree=OID, commits=1
        ),
    ),
    refused=("a",),
    findings=(ImportFinding(kind="hook", path="x", severity=Severity.HIGH, message="y"),),
)
EGRESS = EgressResult(
    policy="allowlist",
    requests=4,
    denied=1,
    bytes_in=10,
    bytes_out=20,
    tokens=None,
    hosts=(HostTotals(host="files.example.org", port=443, requests=4, denied=1),),
    warnings=("the budget of requests is used up",),
)
CHECK = CheckResult(
    check_id="mounts",
    status=CheckStatus.PASS,
    vantage=Vantage.HOST,
    phase=Phase.START,
    expected="as planned",
    observed="as planned",
)
RESULT: dict[str, Any] = {
    "session_id": "s",
    "project": Path("/p"),
    "session": "default",
    "mode": IsolationMode.NAMESPACE,
    "network": NetworkPolicy.API,
    "worker_user": "w",
    "agent": "claude",
    "exit_code": 0,
    "base_commit": OID,
    "base_tree": OID,
    "duration_s": timedelta(seconds=1.5),
    "phases": {"run": 0.5},
    "setup": (SetupStep(name="npm", status="failed", exit_code=1, duration_s=0.5, log="/l"),),
    "egress": EGRESS,
    "limits": {
        "memory": LimitResult(value=1 << 30, enforced_by="cgroup"),
        "cpus": LimitResult(value=0.5, enforced_by=None),
    },
    "verification": VerificationResult.of(Verification(checks=(CHECK,))),
    "import": IMPORT,
    "kept": False,
    "record": RecordResult(path="/r", sha256="0" * 64, keyids=("k",)),
    "warnings": (),
}


def documents(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_the_result_fits_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    for result in (RESULT, RESULT | {"import": None, "record": None}, RESULT | {"egress": None, "later": {}}):
        render.write_json(result)
        check(documents(capsys), load("result"))


@pytest.mark.parametrize("key", RESULT)
def test_the_schema_wants_every_key(key: str) -> None:
    with pytest.raises(AssertionError):
        check(render.plain({k: v for k, v in RESULT.items() if k != key}), load("result"))


def test_the_schema_knows_the_fields_of_a_result_and_of_what_is_in_it() -> None:
    fields = {field.name.removesuffix("_") for field in dataclasses.fields(SessionResult)}
    assert fields >= set(load("result")["required"])
    wanted = load("result")["properties"]["import"]["anyOf"][0]["required"]
    assert set(wanted) == {field.name for field in dataclasses.fields(ImportResult)}
    step = load("result")["properties"]["setup"]["items"]
    assert set(step["required"]) == {field.name for field in dataclasses.fields(SetupStep)}
    assert set(step["properties"]["name"]["enum"]) == {SCRIPT, "dependencies", *MANAGERS}
    egress = load("result")["properties"]["egress"]["anyOf"][0]
    assert set(egress["required"]) == {field.name for field in dataclasses.fields(EgressResult)}
    record = load("result")["properties"]["record"]["anyOf"][0]
    assert set(record["required"]) == {field.name for field in dataclasses.fields(RecordResult)}
    host = egress["properties"]["hosts"]["items"]
    assert set(host["required"]) == {field.name for field in dataclasses.fields(HostTotals)}


@pytest.mark.parametrize("rows", [[], [ROW], [ROW, dataclasses.replace(ROW, size=None, unimported=None)]])
def test_the_list_fits_its_schema(capsys: pytest.CaptureFixture[str], rows: list[SessionRow]) -> None:
    render.write_sessions(rows, json=True)
    document = documents(capsys)
    check(document, load("list"))
    assert len(document["sessions"]) == len(rows)


def test_the_list_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    render.write_sessions([ROW], json=False)
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["SESSION", "ID", "PROJECT"]
    assert line.split() == [
        "20260101-000000-abc", "/home/u/app", "default", "user", "kept", "4.8", "MiB", "2", "h", "yes",
        "claude-worker-app-abc",
    ]  # fmt: skip
    render.write_sessions([], json=False)
    assert capsys.readouterr().out == ""


def test_a_table_takes_text_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    render.write_table(["A", "[b]"], [[HOSTILE, "x" * 300], ["[link=x]y[/link]", "日本"]])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "\\x1b[2J\\u202e[red]b[/] :smile:\\n" in lines[1]
    assert "x" * 300 in lines[1]
    assert "[link=x]y[/link]" in lines[2]


def test_values_become_plain() -> None:
    @dataclasses.dataclass(frozen=True)
    class Sample:
        import_: Path
        raw: bytes

    assert render.plain(Sample(import_=Path("/x"), raw=b"\xff")) == {"import": "/x", "raw": "\\udcff"}


def test_a_diff_in_a_pipe_is_exact_and_on_a_terminal_escaped() -> None:
    diff = b"+a\x1b[2J\xff\n"
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
    code = f"{start}\nfrom clsecure.cli import render\nrender.write_diff({diff!r})"
    argv = [sys.executable, "-I", "-c", code]
    assert subprocess.run(argv, capture_output=True, timeout=60).stdout == diff
    child = pexpect.spawn(argv[0], argv[1:], timeout=30, env=dict(os.environ))
    child.expect(pexpect.EOF)
    child.wait()
    assert child.before == b"+a\\x1b[2J\\xff\r\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (20480, "20 KiB"), (1 << 50, "1024.0 TiB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("age", "text"), [(-1, "0 s"), (59.9, "59 s"), (60, "1 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_ages_for_people(age: float, text: str) -> None:
    assert render.human_age(age) == text
