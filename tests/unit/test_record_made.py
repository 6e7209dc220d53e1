"""What a record is made from: real values, bounded, without secrets; late where it has to be."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clsecure import logs
from clsecure.audit import envelope
from clsecure.audit.keys import KeyPair
from clsecure.audit.records import Records
from clsecure.errors import SessionNotFoundError
from clsecure.importer.values import CommitSummary, FileChange, Review, UnitSummary
from clsecure.model import (
    CheckResult,
    CheckStatus,
    ContainerSpec,
    Engine,
    ImportedUnit,
    ImportFinding,
    ImportResult,
    IsolationMode,
    KeptProgram,
    Mount,
    NetworkPolicy,
    OnFinish,
    Phase,
    SandboxSpec,
    Severity,
    Vantage,
    Verification,
    WorkerAccount,
    WorkerImage,
)
from clsecure.session.clock import Clock
from clsecure.session.finish import Finished
from clsecure.session.keeping import RecordOptions
from clsecure.session.plan import SessionPlan
from clsecure.session.record import Recorder, record_late
from clsecure.session.result import EgressResult, SessionResult, SetupStep, VerificationResult
from clsecure.session.store import SessionDirectory, SessionRecord, SessionStatus
from tests.support import schema

SECRET = "sk-ant-CANARY-hunter2"
IDS = [f"2026010{n}-000000-0123456789ab" for n in range(1, 4)]
A, B, C, D = ("a" * 40, "b" * 40, "c" * 40, "d" * 40)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logs, "_pending", deque(maxlen=1000))
    monkeypatch.setattr(logs, "_secrets", set())
    yield
    logs.close()


def plan(session_id: str = IDS[0], **changes: Any) -> SessionPlan:
    values: dict[str, Any] = {
        "session_id": session_id, "started": datetime(2026, 1, 1, tzinfo=UTC), "project": Path("/p"),
        "project_name": "p", "session": "default", "mode": IsolationMode.CONTAINER,
        "network": NetworkPolicy.API, "agent": "claude",
        "command": ("/opt/tool", "--key", SECRET, f"https://u:{SECRET}@x"), "shell": False,
        "mounts": (Mount(source=Path("/a"), target=Path("/b")),), "full_clone": False,
        "on_finish": OnFinish.IMPORT, "branch": None, "message": SECRET, "resume": None,
        "time_limit": timedelta(minutes=2), "base_url": f"https://me:{SECRET}@api.example/x",
        "stdout_is_ours": False,
    }  # fmt: skip
    return SessionPlan(**{**values, **changes})


def record(session_id: str = IDS[0]) -> SessionRecord:
    return SessionRecord(
        session_id=session_id, project="/p", session="default", mode="container", network="api",
        agent="claude", worker_user="claude-worker-p", status=SessionStatus.RUNNING,
        created=1.5, updated=2.5, base_commit=C, base_tree=D, exit_code=3,
    )  # fmt: skip


SPEC = SandboxSpec(
    mode=IsolationMode.CONTAINER,
    account=WorkerAccount(name="claude-worker-p", uid=1001, gid=1001, home=Path("/h")),
    gateway_token=SECRET,
    program=KeptProgram(name="claude", sha256="e" * 64, version="2.1"),
    container=ContainerSpec(
        engine=Engine.PODMAN,
        image=WorkerImage(
            name="worker", image_id="sha256:1", agents={"claude": "2.1"}, programs={"claude": "f" * 64}
        ),
    ),
)


def review(files: int = 2, path: str = "", name: str = "x\u202e\x1b") -> Review:
    changes = tuple(
        FileChange(path=f"{name}{n}", raw=b"", status="A", old_mode="0", new_mode="0", old_id="", new_id="")
        for n in range(files)
    )
    commit = CommitSummary(
        id=B, subject=name, author="A <a>", committer="A <a>", author_time=0, commit_time=0
    )
    unit = UnitSummary(
        path=path, commits=(commit,), commit_count=1, uncommitted=True, rewritten=False, changes=changes,
        files_changed=files, added=files, deleted=0, untracked=0, insertions=None, deletions=None,
        other_refs=(),
    )  # fmt: skip
    findings = tuple(
        ImportFinding(kind="hook", path=name, severity=severity, message=name)
        for severity in (Severity.INFO, Severity.HIGH)
        for _ in range(files)
    )
    return Review(units=(unit,), findings=findings, refused=(name,), diff=lambda **_: iter(()))


IMPORTED = ImportResult(
    branch="claude/p", tip=A, tree=D, commits=1, uncommitted_commit=A, files_changed=2,
    submodules=(ImportedUnit(path="sub", branch="claude/p", tip=B, tree=D, base_commit=C, base_tree=D,
                             commits=1),),
)  # fmt: skip


class Bench:
    """A session's surroundings, as far as a record needs them."""

    def __init__(self, top: Path) -> None:
        self.state = top / "state"
        self.state.mkdir(mode=0o700)
        self.place = SessionDirectory(self.state / "sessions" / "p-0123456789ab")
        self.place.make()
        self.warnings: list[str] = []
        self.options = RecordOptions(state=self.state)
        logs.record(self.place.events)

    def recorder(self, made: SessionPlan) -> Recorder:
        return Recorder(
            SimpleNamespace(  # type: ignore[arg-type]
                plan=made,
                place=self.place,
                clock=Clock(),
                warnings=self.warnings,
                warn=self.warnings.append,
                repository=SimpleNamespace(git_dir=Path("/nowhere")),
                around=SimpleNamespace(store=SimpleNamespace(root=self.state), environ={}),
            ),
            Verification,
        )

    def said(self, session_id: str = IDS[0]) -> dict[str, Any]:
        sealed = Records(self.state).read(session_id)
        envelope.verify(sealed, KeyPair(self.state).key())
        schema.check(sealed.statement, schema.load("record"))
        assert SECRET not in json.dumps(sealed.statement)
        return dict(sealed.statement)

    def run(
        self, session_id: str = IDS[0], finished: Finished | None = None, **changes: Any
    ) -> SessionResult:
        recorder = self.recorder(plan(session_id))
        recorder.begin(SPEC, record(session_id), resumed=False)
        if finished is None:
            finished = Finished(imported=IMPORTED, kept=False, seen=review())
        return recorder.conclude(
            result(session_id), record(session_id), finished, changes.get("verification", Verification())
        )

    def late(self, finished: Finished | None, **options: Any) -> Any:
        return record_late(
            self.place, record(), self.options, finished=finished, warn=self.warnings.append, **options
        )


def result(session_id: str = IDS[0], **changes: Any) -> SessionResult:
    values: dict[str, Any] = {
        "session_id": session_id, "project": "/p", "session": "default", "mode": "container",
        "network": "api", "worker_user": "w", "agent": "claude", "exit_code": 3, "base_commit": C,
        "base_tree": D, "duration_s": 1.0, "phases": {"run": 0.5},
        "setup": (SetupStep(name="npm", status="ok", exit_code=0, duration_s=0.1, log="/l"),),
        "egress": EgressResult(policy="api", requests=1, denied=0, bytes_in=1, bytes_out=1, tokens=None),
        "warnings": (f"a warning with {SECRET}",),
    }  # fmt: skip
    return SessionResult(**{**values, **changes})


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    logs.register_secret(SECRET)
    return Bench(tmp_path)


def test_it_says_what_ran_and_no_secret(bench: Bench) -> None:
    done = bench.run()
    assert done.record is not None
    assert bench.warnings == []
    said = bench.said()
    predicate = said["predicate"]
    command = predicate["plan"]["command"]
    assert (command["program"], command["arguments"]) == ("tool", 3)
    assert len(command["sha256"]) == 64
    assert predicate["plan"]["base_url"] == "https://***@api.example/x"
    assert predicate["sandbox"]["program"]["sha256"] == "e" * 64
    assert predicate["sandbox"]["image"] == {
        "name": "worker", "id": "sha256:1", "agents": {"claude": "2.1"}, "programs": {"claude": "f" * 64},
    }  # fmt: skip
    assert predicate["exit_code"] == 3
    assert [u["digest"]["gitCommit"] for u in said["subject"]] == [A, B]
    assert said["subject"][0]["annotations"] | {"commits": []} == {
        "branch": "claude/p", "path": "", "base_commit": C, "base_tree": D, "commits": [],
    }  # fmt: skip
    text = json.dumps(said, ensure_ascii=False)
    assert not set(text) & set("\u202e\x1b")
    assert not bench.place.run_file.exists()


def test_it_is_bounded_and_keeps_the_worst(bench: Bench) -> None:
    huge = review(files=900, name="n" * 5000)
    bench.run(finished=Finished(imported=IMPORTED, kept=False, seen=huge))
    predicate = bench.said()["predicate"]
    [unit] = predicate["work"]["units"]
    assert (len(unit["files"]), unit["files_changed"]) == (500, 900)
    assert len(predicate["findings"]) == 500
    assert {f["severity"] for f in predicate["findings"]} == {"high"}
    assert len(unit["commits"][0]["subject"]) <= 2001


@pytest.mark.parametrize(
    ("finished", "action"),
    [
        (Finished(imported=IMPORTED, kept=True, seen=review()), "import"),
        (Finished(imported=None, kept=True, seen=review()), "keep"),
        (Finished(imported=None, kept=False, discarded=True), "discard"),
    ],
)
def test_it_says_what_was_decided(bench: Bench, finished: Finished, action: str) -> None:
    bench.run(finished=finished)
    said = bench.said()
    [decision] = said["predicate"]["decisions"]
    assert (decision["action"], decision["kept"]) == (action, finished.kept)
    assert ("gitCommit" in said["subject"][0]["digest"]) is (action == "import")


def test_a_failed_check_is_in_it_and_that_nothing_was_imported(bench: Bench) -> None:
    check = CheckResult(
        check_id="uids", status=CheckStatus.FAIL, vantage=Vantage.HOST, phase=Phase.END, expected="0",
        observed="1\x1b" + "x" * 9000,
    )  # fmt: skip
    many = tuple(replace(check, status=CheckStatus.PASS) for _ in range(1500))
    bench.run(finished=Finished(imported=None, kept=True), verification=Verification(checks=(*many, check)))
    predicate = bench.said()["predicate"]
    assert predicate["verification"]["failed"] == 1
    assert len(predicate["verification"]["checks"]) == 1000
    assert predicate["verification"]["checks"][0]["status"] == "fail"
    assert predicate["decisions"][0]["action"] == "refuse"


def test_what_failed_in_an_earlier_run_still_counts(bench: Bench) -> None:
    recorder = bench.recorder(plan())
    recorder.begin(SPEC, record(), resumed=True)
    before = VerificationResult(status="failed", failed_before=("uids: expected 0; observed 1",))
    recorder.conclude(
        result(verification=before), record(), Finished(imported=None, kept=True), Verification()
    )
    predicate = bench.said()["predicate"]
    assert predicate["verification"]["failed_before"] == ["uids: expected 0; observed 1"]
    assert predicate["decisions"][0]["action"] == "refuse"


def test_a_record_that_cannot_be_made_is_a_warning_and_ends_nothing(bench: Bench) -> None:
    (bench.state / "records").write_bytes(b"")
    done = bench.run()
    assert done.record is None
    assert any("has no record" in warning for warning in done.warnings)
    assert bench.place.run_file.exists(), "what it is made from is kept"
    (bench.state / "records").unlink()
    assert bench.late(Finished(imported=IMPORTED, kept=False, seen=review())) is not None
    assert bench.said()["predicate"]["complete"] is False


def test_a_later_import_is_added_to_the_record(bench: Bench) -> None:
    bench.run(finished=Finished(imported=None, kept=True, seen=review()))
    assert bench.late(Finished(imported=IMPORTED, kept=True, seen=review())) is not None
    again = replace(IMPORTED, branch="claude/p-2", tip=C, submodules=())
    bench.late(Finished(imported=again, kept=False, seen=review()), import_anyway=True)
    said = bench.said()
    assert [d["action"] for d in said["predicate"]["decisions"]] == ["keep", "import", "import"]
    assert [u["digest"]["gitCommit"] for u in said["subject"]] == [A, B, C]
    assert said["predicate"]["verification"]["import_anyway"] is True
    assert said["predicate"]["complete"] is True
    assert Records(bench.state).of_commit(C) == IDS[0]
    assert bench.late(None) is None, "its removal changes nothing"


def test_h11_nothing_is_taken_from_a_record_that_was_tampered_with(bench: Bench) -> None:
    bench.run(finished=Finished(imported=None, kept=True, seen=review()))
    path = Records(bench.state).path(IDS[0])
    path.write_bytes(path.read_bytes().replace(b'"keyid":"', b'"keyid":"0'))
    bench.late(Finished(imported=IMPORTED, kept=False, seen=review()))
    assert any("does not hold" in warning for warning in bench.warnings)
    predicate = bench.said()["predicate"]
    assert [d["action"] for d in predicate["decisions"]] == ["import"]
    assert predicate["complete"] is False
    assert "plan" not in predicate


def test_a_run_that_was_killed_is_recorded_when_it_is_removed(bench: Bench) -> None:
    bench.recorder(plan()).begin(SPEC, record(), resumed=False)
    assert bench.late(None) is not None
    predicate = bench.said()["predicate"]
    assert (predicate["complete"], predicate["decisions"][0]["action"]) == (False, "none")
    assert predicate["plan"]["command"]["program"] == "tool"


def test_a_run_that_was_killed_is_recorded_when_another_follows(bench: Bench) -> None:
    bench.recorder(plan()).begin(SPEC, record(), resumed=False)
    bench.run(IDS[1])
    assert bench.said(IDS[0])["predicate"]["complete"] is False
    assert bench.said(IDS[1])["predicate"]["complete"] is True


@pytest.mark.parametrize(
    "shape",
    [
        '"decisions": 5, "timeline": 7',
        '"timeline": {}',
        '"verification": []',
        f'"session": {{"id": "{IDS[0]}"}}',
    ],
)
def test_h11_a_state_of_any_shape_keeps_nobody_from_going_on(bench: Bench, shape: str) -> None:
    bench.recorder(plan()).begin(SPEC, record(), resumed=False)
    text = bench.place.run_file.read_text()
    bench.place.run_file.write_text(text[:-1] + f", {shape}}}")
    bench.late(None)
    bench.late(Finished(imported=IMPORTED, kept=False, seen=review()))
    odd = replace(record(), created="x", exit_code=[])  # type: ignore[arg-type]
    record_late(bench.place, odd, bench.options, finished=None, warn=bench.warnings.append)
    bench.run(IDS[1])
    assert bench.said(IDS[1])["predicate"]["complete"] is True


@pytest.mark.parametrize("harm", ["junk", "another session", "no session", "link", "deep"])
def test_h11_what_a_killed_run_wrote_down_is_taken_only_as_it_is(
    bench: Bench, tmp_path: Path, harm: str
) -> None:
    bench.recorder(plan()).begin(SPEC, record(), resumed=False)
    file = bench.place.run_file
    match harm:
        case "junk":
            file.write_bytes(b"\xff")
        case "another session":
            file.write_text(file.read_text().replace(IDS[0], IDS[2]))
        case "no session":
            file.write_text('{"plan": {}}')
        case "link":
            file.rename(tmp_path / "elsewhere")
            file.symlink_to(tmp_path / "elsewhere")
        case "deep":
            file.write_bytes(b"[" * 200_000)
    bench.late(Finished(imported=IMPORTED, kept=False, seen=review()))
    assert "plan" not in bench.said()["predicate"]
    with pytest.raises(SessionNotFoundError):
        Records(bench.state).read(IDS[2])


def test_h11_a_log_of_events_that_was_changed_is_said_in_the_record(bench: Bench) -> None:
    for number in range(3):
        logs.get("x").info("e", number=number)
    lines = bench.place.events.read_bytes().splitlines(keepends=True)
    bench.place.events.write_bytes(b"".join([lines[0], *lines[2:]]))
    bench.run()
    assert bench.said()["predicate"]["event_log"]["broken"] == 2
    assert any("line 2" in warning for warning in bench.warnings)
