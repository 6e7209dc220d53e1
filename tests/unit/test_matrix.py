"""The isolation matrix says what the results of the tests say, and all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clsecure.verify.table import ALL_CHECKS
from tests.support.matrix import Broken, Looked, Results, Tried, merged, rendered, threats, threats_of
from tests.support.person import CHECKOUT

MODEL = (CHECKOUT / "docs" / "threat-model.md").read_text()
NO_SUCH = "not applicable"
NOT_TRIED = "not tried here"
SMALL = """
## The threats

| id | the attack | held by |
|---|---|---|
| A1 | all files | the view |
| A2, A4\u2013A5 | keys | nothing is given (R7) |
| B1 | a packet | R3 |

## Residuals
| R3 | A9 | x |
"""


def tried(threat: str, mode: str | None, outcome: str = "passed", **more: str) -> Tried:
    test = more.pop("test", f"tests/hostile/test_x.py::test_{threat.lower()}_x[{mode}]")
    return Tried(test=test, threats=(threat,), mode=mode, outcome=outcome, **more)


def row(document: str, name: str) -> list[str]:
    (line,) = [each for each in document.splitlines() if each.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("| ").split(" |")]


def small(*results: Tried) -> str:
    return rendered(Results(tried=results), model=SMALL, checks=())


def test_every_threat_of_the_model_is_in_it() -> None:
    known = threats(MODEL)
    assert {"A1", "A6", "D3", "D24", "D33", "H15", "I7"} <= set(known)
    document = rendered(Results(), model=MODEL, checks=ALL_CHECKS)
    assert all(row(document, threat)[2:5] != [] for threat in known)
    named = {each for check in ALL_CHECKS for each in check.threats}
    assert named <= set(known)


def test_every_check_is_in_it() -> None:
    document = rendered(Results(), model=MODEL, checks=ALL_CHECKS)
    assert all(row(document, check.check_id) for check in ALL_CHECKS)


def test_hostile_tests_are_of_threats_of_the_model() -> None:
    names = [
        line.removeprefix("def ").partition("(")[0]
        for path in CHECKOUT.glob("tests/hostile/*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def test_")
    ]
    assert len(names) > 100
    assert {each for name in names for each in threats_of(name)} <= set(threats(MODEL))


def test_a_name_may_be_of_several_threats() -> None:
    assert threats_of("test_b13_i4_a_hook[user]") == ("B13", "I4")
    assert threats_of("test_basic_things") == ()


@pytest.mark.parametrize(
    ("results", "cells"),
    [
        ([tried("A1", "user"), tried("A1", "user", test="y")], ["holds (2)", NO_SUCH]),
        ([tried("A1", "user"), tried("A1", "user", "failed", test="y")], ["**FAILS** (1 of 2)", NO_SUCH]),
        ([tried("A1", "user", "skipped", why="w"), tried("A1", "namespace")], [NOT_TRIED, "holds (1)"]),
        ([tried("A1", None)], [NO_SUCH, NO_SUCH]),
        ([tried("A1", "container")], [NO_SUCH, NO_SUCH]),
        ([], [NOT_TRIED, NOT_TRIED]),
    ],
)  # fmt: skip
def test_how_a_threat_stands_in_a_mode(results: list[Tried], cells: list[str]) -> None:
    assert row(small(*results), "A1")[2:4] == cells


def test_what_is_not_tried_because_it_is_a_residual_is_called_one() -> None:
    assert row(small(), "B1")[2] == "residual R3"
    assert row(small(tried("B1", "user")), "B1")[2] == "holds (1)"
    assert row(small(), "A5")[-1] == "R7"


def test_why_something_was_skipped_is_said() -> None:
    assert "- no podman: A1 (container)" in small(tried("A1", "container", "skipped", why="no podman"))


def test_no_text_breaks_the_table() -> None:
    document = small(tried("A1", "user", "skipped", why="a|b\n| c"))
    assert r"- a\|b \| c: A1 (user)" in document


def test_a_check_that_fails_once_fails_and_a_sabotage_that_is_not_noticed_is_loud() -> None:
    check = ALL_CHECKS[0]
    looked = [
        Looked(check_id=check.check_id, mode="user", status=status, phase=phase, observed="x")
        for status, phase in (("pass", "start"), ("fail", "end"))
    ]
    broken = [
        Broken(check_id=check.check_id, mode=mode, how="x", noticed=noticed)
        for mode, noticed in (("user", True), ("namespace", False))
    ]
    results = Results(looked=tuple(looked), broken=tuple(broken))
    cells = row(rendered(results, model=SMALL, checks=ALL_CHECKS), check.check_id)
    assert cells[2:4] == ["**FAILS**", NOT_TRIED]
    assert cells[-1] == "user, **NOT in namespace**"


def test_results_put_together_are_as_bad_as_the_worst() -> None:
    first = Results(
        versions={"git": "2.39", "x": "1"}, tried=(tried("A1", "user"), tried("A2", "user", "failed"))
    )
    second = Results(
        versions={"git": "2.47"},
        tried=(tried("A1", "user", "skipped", why="w"), tried("A2", "user"), tried("A4", None)),
    )
    both = merged([first, second])
    assert both.versions == {"git": "2.39; 2.47", "x": "1"}
    assert {(each.threats[0], each.outcome) for each in both.tried} == {
        ("A1", "passed"), ("A2", "failed"), ("A4", "passed"),
    }  # fmt: skip
    assert merged([second, first]).document() == both.document()
    assert Results.parse(json.loads(json.dumps(both.document()))).document() == both.document()


def test_the_order_in_which_tests_end_changes_nothing() -> None:
    results = [tried("A1", "user"), tried("A2", "user"), tried("A2", "user", "skipped", test="z", why="w")]
    assert small(*results) == small(*reversed(results))


def test_a_run_with_several_processes_writes_all_of_its_results(tmp_path: Path) -> None:
    """A run of its own: tests of two modes, one of them failing, one skipped, in two processes."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["tests.support.matrix_plugin"]\n')
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        '@pytest.mark.parametrize("mode", [pytest.param(m, marks=pytest.mark.xdist_group("hostile-" + m)) '
        'for m in ("user", "namespace")])\n'
        "def test_a1_a2_x(mode):\n    assert mode == 'user'\n"
        '@pytest.mark.xdist_group("hostile-container")\n'
        "def test_a4_x():\n    pytest.skip('not today')\n"
        "def test_b1_x():\n    pass\n"
        "def test_b2_deselected():\n    pass\n"
        "def test_other(record_property):\n"
        "    record_property('checks', [dict(check_id='c', mode='user', status='pass', phase='start', "
        "observed='o')])\n"
        "def test_sabotage(record_property):\n"
        "    record_property('sabotage', dict(check_id='c', mode='user', how='h'))\n    assert False\n"
    )
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {CHECKOUT}\n")
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-n",
            "2",
            "--dist",
            "loadgroup",
            "-q",
            "-k",
            "not deselected",
        ],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "CLSECURE_TEST_MATRIX": str(tmp_path / "build"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1, done
    results = Results.parse(json.loads((tmp_path / "build" / "isolation-matrix.json").read_text()))
    assert {(each.threats, each.mode, each.outcome, each.why) for each in results.tried} == {
        (("A1", "A2"), "user", "passed", ""),
        (("A1", "A2"), "namespace", "failed", ""),
        (("A4",), "container", "skipped", "not today"),
        (("B1",), None, "passed", ""),
        (("B2",), None, "skipped", "left out of this run"),
    }
    assert [each.status for each in results.looked] == ["pass"]
    assert [each.noticed for each in results.broken] == [False]
    assert results.versions["python"]
    assert "**FAILS**" in (tmp_path / "build" / "isolation-matrix.md").read_text()
