"""The gateway's log as the commands read it: the last run, while it grows, whatever stands in it."""

from __future__ import annotations

import json
import os

import pytest

from clsecure.egress import journal
from clsecure.egress.journal import Journal, begin_run, denials
from clsecure.egress.rules import NOT_ALLOWED
from clsecure.errors import EgressError


def line(host="files.example.org", port=443, **changes):
    fields = {
        "time": "2026-01-02T03:04:05.678+00:00", "event": "request", "host": host, "port": port,
        "method": "CONNECT", "path": "-", "status": 403, "decision": "deny", "rule": NOT_ALLOWED,
        "reason": "nothing allows it", "bytes_in": 1, "bytes_out": 2, "duration_ms": 0.5, **changes,
    }  # fmt: skip
    return json.dumps(fields).encode() + b"\n"


def append(path, data):
    with path.open("ab") as file:
        file.write(data)


def hosts(path, **options):
    with Journal(path, **options) as log:
        return [entry.host for entry in log.read()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "egress.jsonl"


def test_only_the_last_run_counts_unless_all_are_asked_for(path):
    for run in ("one", "two", "three"):
        begin_run(path, run)
        append(path, line(host=f"{run}.example.org"))
    assert hosts(path) == ["three.example.org"]
    assert hosts(path, every_run=True) == ["one.example.org", "two.example.org", "three.example.org"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("before", [0, 1, 40, 61, 62, 63, 64, 65, 1000])
def test_the_last_run_is_found_wherever_the_pieces_are_cut(path, monkeypatch, before):
    monkeypatch.setattr(journal, "_CHUNK", 64)
    append(path, b"x" * before + b"\n" if before else b"")
    begin_run(path, "one")
    append(path, line(host="old.example.org"))
    begin_run(path, "two")
    append(path, line(host="new.example.org"))
    assert hosts(path) == ["new.example.org"]


def test_a_log_without_runs_is_read_whole(path):
    append(path, line() * 3)
    assert hosts(path) == ["files.example.org"] * 3


def test_a_run_begins_on_a_line_of_its_own_after_a_torn_one(path):
    append(path, line(host="old.example.org")[:-20])
    begin_run(path, "two")
    append(path, line(host="new.example.org"))
    assert hosts(path) == ["new.example.org"]
    assert hosts(path, every_run=True) == ["new.example.org"]


def test_an_agents_text_begins_no_run(path):
    begin_run(path, "one")
    append(path, line(path='\n{"event": "session", "session_id": "x"}\n'))
    append(path, line(host='{"event": "session", '))
    assert len(hosts(path)) == 2


def test_what_is_written_later_is_read_later(path):
    with Journal(path) as log:
        assert list(log.read()) == []
        begin_run(path, "one")
        whole = line(host="first.example.org")
        append(path, whole[:30])
        assert list(log.read()) == []
        append(path, whole[30:] + line(host="second.example.org"))
        assert [entry.host for entry in log.read()] == ["first.example.org", "second.example.org"]
        assert list(log.read()) == []


@pytest.mark.parametrize(
    "junk",
    [
        b"\n", b"no json\n", b"[]\n", b"null\n", b"1\n", b'"request"\n', b'{"event": "request"}\n',
        b"\xff\xfe\n",        b"[" * 100_000 + b"\n", b"{" + b"x" * (journal.MAX_LINE * 3) + b"\n",
        line(bytes_in=None), line(port="http"), line(status=[]), line(port=1e999),
        json.dumps({"event": "allow", "host": "h"}).encode() + b"\n",
    ],
)  # fmt: skip
def test_what_is_no_request_is_passed_over(path, junk):
    append(path, line(host="one.example.org") + junk + line(host="two.example.org"))
    assert hosts(path) == ["one.example.org", "two.example.org"]


def test_a_full_log_says_so(path):
    append(path, line())
    with Journal(path) as log:
        assert list(log.read())
        assert not log.full
        append(path, b'{"event": "log_full"}\n')
        assert list(log.read()) == []
        assert log.full


def test_a_link_or_a_pipe_in_its_place_is_refused(path, tmp_path):
    target = tmp_path / "elsewhere"
    target.write_bytes(b"mine\n")
    path.symlink_to(target)
    with pytest.raises(EgressError):
        begin_run(path, "one")
    with pytest.raises(EgressError), Journal(path) as log:
        list(log.read())
    assert target.read_bytes() == b"mine\n"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(EgressError), Journal(path) as log:
        list(log.read())


def test_denials_of_hosts_and_of_rules_are_told_apart(path):
    append(path, line() * 2 + line(port=80) + line(rule="path", host="api.example.com"))
    append(path, line(decision="allow", rule="allowed") + line(rule="denied", host="bad.example.org"))
    with Journal(path) as log:
        found = denials(log.read())
    assert dict(found.hosts) == {("files.example.org", 443): 2, ("files.example.org", 80): 1}
    assert dict(found.rules) == {"path": 1, "denied": 1}
