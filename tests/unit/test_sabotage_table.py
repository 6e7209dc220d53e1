"""No check without a sabotage, no sabotage that can rot: the table of tests/sabotage, tried without root."""

from __future__ import annotations

import ast

import pytest

from clsecure.verify.table import ALL_CHECKS
from tests.sabotage.table import SABOTAGE
from tests.support.sabotage import Replaced, Sabotage, patched

CHECKS = {check.check_id: check for check in ALL_CHECKS}


def test_every_check_is_sabotaged_and_nothing_else() -> None:
    assert len(CHECKS) == len(ALL_CHECKS), "an id is there twice"
    assert {row.check_id for row in SABOTAGE} == set(CHECKS)


@pytest.mark.parametrize("row", SABOTAGE, ids=lambda row: f"{row.check_id}: {row.how}")
def test_a_row_is_of_modes_of_its_check_and_explains_what_else_it_breaks(row: Sabotage) -> None:
    assert row.modes
    assert set(row.modes) <= set(CHECKS[row.check_id].modes)
    assert {*row.also, *row.perhaps} <= set(CHECKS)
    assert all({**row.also, **row.perhaps}.values())


def test_no_row_is_there_twice() -> None:
    known = [(row.check_id, row.how, mode) for row in SABOTAGE for mode in row.modes]
    assert len(known) == len(set(known))


@pytest.mark.parametrize(
    "row",
    [row for row in SABOTAGE if isinstance(row.broken, Replaced)],
    ids=lambda row: f"{row.check_id}: {row.how}",
)
def test_what_a_row_replaces_is_there_once_and_becomes_a_program(row: Sabotage) -> None:
    assert isinstance(row.broken, Replaced)
    for file, text in patched(row.broken.patches).items():
        if file.endswith(".py"):
            ast.parse(text, file)
