"""A budget warns at nine tenths and refuses what goes beyond it."""

from __future__ import annotations

import json

import pytest

from clsecure.egress.budget import Meter
from clsecure.egress.events import EventLog
from clsecure.policy import Budget


@pytest.fixture
def log(tmp_path):
    return EventLog(tmp_path / "log", max_size=1 << 20, secrets=())


def events(tmp_path) -> list[tuple[str, float, int, int]]:
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    return [(line["what"], line["share"], line["used"], line["limit"]) for line in lines]


def test_without_a_budget_nothing_is_bounded_and_all_is_counted(log, tmp_path):
    meter = Meter(Budget(), log)
    assert meter.request() is None
    assert meter.take_bytes(1 << 50)
    meter.add_tokens(1 << 50)
    assert meter.request() is None
    assert meter.state()["bytes"] == {"used": 1 << 50, "limit": None}
    assert events(tmp_path) == []


def test_requests_are_warned_of_and_then_refused(log, tmp_path):
    meter = Meter(Budget(requests=20), log)
    assert [meter.request() for _ in range(20)] == [None] * 20
    denial = meter.request()
    assert denial is not None
    assert (denial.rule, denial.status) == ("budget", 403)
    assert "20 requests" in denial.reason
    assert "the user can raise it" in denial.reason
    assert events(tmp_path) == [("requests", 0.9, 18, 20), ("requests", 1.0, 20, 20)]
    assert len(log.totals.warnings) == 2


def test_bytes_that_do_not_fit_are_not_passed_on_and_end_everything(log, tmp_path):
    meter = Meter(Budget(bytes=2 << 30), log)
    assert meter.take_bytes((2 << 30) - 10)
    assert not meter.take_bytes(11)
    assert meter.state()["bytes"]["used"] == (2 << 30) - 10
    denial = meter.request()
    assert denial is not None
    assert "2 GiB" in denial.reason
    assert [share for _, share, _, _ in events(tmp_path)] == [0.9, 1.0]


def test_a_reply_may_go_beyond_the_tokens_and_is_the_last_one(log, tmp_path):
    meter = Meter(Budget(tokens=1000), log)
    meter.add_tokens(899)
    assert events(tmp_path) == []
    meter.add_tokens(1)
    meter.add_tokens(50)
    assert meter.request() is None
    meter.add_tokens(5000)
    denial = meter.request()
    assert denial is not None
    assert "1000 tokens" in denial.reason
    assert events(tmp_path) == [("tokens", 0.9, 900, 1000), ("tokens", 1.0, 5950, 1000)]


def test_a_budget_of_nothing_allows_nothing(log):
    assert Meter(Budget(requests=0), log).request() is not None
    assert Meter(Budget(tokens=0), log).request() is not None
