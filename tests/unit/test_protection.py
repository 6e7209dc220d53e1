"""The rows of ``clsecure info``: what counts as held, and that every residual has its place."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path

from clsecure.model import (
    CheckResult,
    CheckStatus,
    NetworkPolicy,
    Phase,
    Vantage,
)
from clsecure.verify.bait import put_out
from clsecure.verify.checks import Area
from clsecure.verify.host import BARRIER_CHECKS
from clsecure.verify.inside import INSIDE_CHECKS, check_inside
from clsecure.verify.protection import (
    RESIDUALS,
    Protection,
    barrier_rows,
    in_order,
    tried_rows,
    unnamed_residuals,
)
from clsecure.verify.tried import Tried
from tests.support.person import CHECKOUT
from tests.support.tried import OWN, tried


def broken(subject: Tried) -> list[str]:
    return [row.property for row in tried_rows(subject) if row.status is Protection.NOT_HELD]


def open_(subject: Tried) -> list[str]:
    return [row.property for row in tried_rows(subject) if row.status is Protection.NOT_ENFORCED]


def barrier(status: CheckStatus) -> list[CheckResult]:
    return [
        CheckResult(
            check_id=check.check_id,
            status=status,
            vantage=Vantage.HOST,
            phase=Phase.START,
            expected="x",
            observed="y",
        )
        for check in BARRIER_CHECKS
    ]


def test_every_residual_of_the_threat_model_is_known_and_no_other() -> None:
    text = (CHECKOUT / "docs" / "threat-model.md").read_text()
    assert set(RESIDUALS) == set(re.findall(r"^\| \*\*(R[0-9]+)\*\* \|", text, re.MULTILINE))


def test_every_residual_is_named_by_a_row_or_listed_below() -> None:
    rows = [*barrier_rows(barrier(CheckStatus.PASS)), *tried_rows(tried())]
    named = {number for row in rows for number in row.residuals}
    assert named <= set(RESIDUALS)
    assert named | set(unnamed_residuals(rows)) == set(RESIDUALS)
    assert {"R1", "R2", "R6", "R7", "R10"} <= named


def test_what_holds_is_held() -> None:
    assert broken(tried()) == []
    assert open_(tried()) == ["the number of open files is bounded", "processor time is bounded"]


def test_every_check_of_the_barrier_has_a_row_with_its_outcome() -> None:
    for status, protection in (
        (CheckStatus.PASS, Protection.HELD),
        (CheckStatus.FAIL, Protection.NOT_HELD),
        (CheckStatus.SKIP, Protection.NOT_ENFORCED),
    ):
        rows = list(barrier_rows(barrier(status)))
        assert len(rows) == len(BARRIER_CHECKS)
        assert {row.status for row in rows} == {protection}


def test_every_area_has_rows_in_the_order_of_the_table() -> None:
    rows = in_order([*tried_rows(tried()), *barrier_rows(barrier(CheckStatus.PASS))])
    assert list(dict.fromkeys(row.area for row in rows)) == [
        area for area in Area if area is not Area.LEFTOVERS
    ]


def test_rows_of_what_was_tried_are_those_of_the_checks() -> None:
    """One table: what a check says, ``clsecure info`` says."""
    subject = tried({"marker": True})
    results = check_inside(subject, subject.spec, Phase.START)
    properties = {check.check_id: check.property for check in INSIDE_CHECKS}
    rows = {row.property: row.status for row in tried_rows(subject)}
    marks = {CheckStatus.PASS: Protection.HELD, CheckStatus.FAIL: Protection.NOT_HELD,
             CheckStatus.SKIP: Protection.NOT_ENFORCED}  # fmt: skip
    assert {properties[result.check_id]: marks[result.status] for result in results}.items() <= rows.items()
    assert rows["no process of this machine is seen"] is Protection.NOT_HELD


def test_a_full_network_is_said_to_be_open_and_the_machine_itself_is_still_tried() -> None:
    spec = replace(tried().spec, network=NetworkPolicy.FULL, listener=False)
    inside = {"routes": {"IPv4": None, "IPv6": None}, "interfaces": ["lo", "eth0"], "listening": []}
    subject = tried(inside, spec=spec, port=None)
    assert "the internet is open, as you said" in open_(subject)
    assert broken(subject) == []
    assert len(broken(tried(inside, spec=spec, port=None, heard_inside=frozenset({OWN[-1]})))) == 1


def test_what_a_killed_session_left_is_taken_away_and_nobody_elses(tmp_path) -> None:
    """Only what is old, and held by nobody: another session may be looking just now."""
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(put_out(tmp_path, tmp_path))
        left = [tmp_path / "info-x", Path(tempfile.mkdtemp(prefix="clsecure-info-", dir="/var/tmp"))]
        young, other, empty = tmp_path / "info-young", tmp_path / "info-other", tmp_path / "info-empty"
        for path in (left[0], young, other, empty):
            path.mkdir()
        for path in (*left, young):
            (path / "bait").write_text("bait\n")
        (other / "letter").write_text("not ours\n")
        dirs = [Path(held.files["state"]).parent, Path(held.files["temporary"]).parent]
        for path in (*left, other, empty, *dirs):
            os.utime(path, (1, 1))
        with put_out(tmp_path, tmp_path):
            assert not any(path.exists() for path in left)
            assert all(path.exists() for path in (*dirs, young, other, empty))


def test_bait_is_really_there_and_is_taken_away(tmp_path) -> None:
    with put_out(tmp_path, tmp_path) as bait:
        assert Path(bait.files["state"]).read_text() == Path(bait.files["temporary"]).read_text() == "bait\n"
        assert {"127.0.0.1", "an abstract socket", "a socket in /tmp"} <= set(bait.order()["sockets"])
        assert bait.ears.heard() == frozenset()
        places = [Path(path).parent for path in bait.files.values() if path.endswith("/bait")]
        assert len(places) >= 3
    assert not any(place.exists() for place in places)
