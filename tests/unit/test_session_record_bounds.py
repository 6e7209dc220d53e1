"""What is kept of a session stays readable, whatever an agent makes of it."""

from __future__ import annotations

import json
from pathlib import Path

from clsecure.session.keeping import _MOST, _fit
from clsecure.session.store import SessionDirectory, SessionRecord, SessionStatus


def test_a_session_with_a_thousand_failed_checks_is_still_known(tmp_path: Path) -> None:
    place = SessionDirectory(tmp_path / "session")
    place.make()
    record = SessionRecord(
        session_id="20260102-150405-0123456789ab", project="/p", session="default", mode="user",
        network="none", agent="demo", worker_user="w", status=SessionStatus.KEPT, created=0.0, updated=0.0,
    )  # fmt: skip
    failed = tuple(f"own:{number}: expected x; observed {'é' * 600}" for number in range(1000))
    place.write(record, failed_checks=failed)
    again = place.read()
    assert again is not None
    assert again.failed_checks[:99] == failed[:99]
    assert len(again.failed_checks) == 100
    # Written again and again, as a session is that goes on.
    assert place.write(again, failed_checks=(*again.failed_checks, *failed)).failed_checks[:99] == failed[:99]


def test_a_record_is_cut_where_names_of_the_agents_would_make_it_unreadable() -> None:
    files = [{"path": "\\U0001f600" * 1200, "status": "A"} for _ in range(500)]
    said = {
        "work": {"units": [{"files": files, "commits": [], "other_refs": []}], "refused": ["x" * 4000] * 500},
        "findings": [{"path": "y" * 8000}] * 500,
        "warnings": ["z" * 4000] * 500,
        "timeline": [],
        "verification": {"checks": []},
    }
    _fit(said)
    assert len(json.dumps(said)) <= _MOST
    assert said["cut"] is True
    assert said["findings"]
    small = {"work": {"units": [], "refused": []}, "findings": [1], "warnings": [], "timeline": []}
    _fit(small)
    assert small == {"work": {"units": [], "refused": []}, "findings": [1], "warnings": [], "timeline": []}
