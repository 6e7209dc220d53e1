"""The log of events: each line binds the one before, across runs, processes, kills and full disks."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from clsecure import logs
from clsecure.chain import ChainReport, ChainWriter, Head, verify
from tests.support.cli import ROOT


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logs, "_pending", deque(maxlen=1000))
    yield
    logs.close()


def look(data: bytes, known: Head | None = None) -> ChainReport:
    return verify(io.BytesIO(data), known=known)


def write_run(file: Path, *names: str) -> None:
    logs._pending.clear()
    logs.record(file)
    for name in names:
        logs.get("x").info(name, number=len(name), text="\u202e")
    logs.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    file = tmp_path / "events.jsonl"
    write_run(file, "one", "two", "three")
    write_run(file, "four", "five")
    return file


def test_each_line_has_the_hash_of_the_one_before_across_runs(log: Path) -> None:
    previous = "0" * 64
    for line in log.read_bytes().splitlines():
        assert json.loads(line)["prev"] == previous
        previous = hashlib.sha256(line).hexdigest()
    report = look(log.read_bytes())
    assert (report.broken, report.head, report.torn) == (None, Head(lines=5, sha256=previous), ())


def test_h11_a_change_of_any_byte_is_found_and_the_line_named(log: Path) -> None:
    whole = log.read_bytes()
    known = look(whole).head
    chosen = random.Random(6)
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << chosen.randrange(8)
        report = look(bytes(changed), known)
        line = whole[:at].count(b"\n") + 1
        assert report.broken is not None, at
        # A line's own change shows there where it is no line of the log any more, else by the next one.
        assert line <= report.broken <= line + 1, (at, report)


def test_h11_lines_taken_away_reordered_repeated_or_added_are_found(log: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    known = look(log.read_bytes()).head
    for number in range(5):
        assert look(b"".join(lines[:number] + lines[number + 1 :]), known).broken == number + 1
        assert (
            look(b"".join([*lines[: number + 1], lines[number], *lines[number + 1 :]])).broken == number + 2
        )
    for number in range(4):
        swapped = [*lines]
        swapped[number], swapped[number + 1] = swapped[number + 1], swapped[number]
        assert look(b"".join(swapped)).broken == number + 1
    assert look(b"".join([*lines, b'{"event": "added"}\n'])).broken == 6


def test_h11_a_log_made_anew_from_some_line_on_is_not_the_one_of_the_record(
    log: Path, tmp_path: Path
) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    known = look(log.read_bytes()).head
    forged = tmp_path / "forged"
    forged.write_bytes(b"".join(lines[:2]))
    write_run(forged, "three", "four", "other")
    assert look(forged.read_bytes()).broken is None
    assert look(forged.read_bytes(), known).broken == 5
    shorter = look(b"".join(lines[:3]), known)
    assert (shorter.broken, shorter.why) == (4, "it is missing: the record names 5 lines")


def test_what_was_added_after_the_record_does_not_hurt_it(log: Path) -> None:
    known = look(log.read_bytes()).head
    write_run(log, "six")
    report = look(log.read_bytes(), known)
    assert (report.broken, report.head.lines) == (None, 6)


def test_a_torn_last_line_is_noted_and_the_chain_goes_on_after_it(log: Path) -> None:
    whole = log.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last + 1, len(whole)):
        log.write_bytes(whole[:end])
        assert look(whole[:end]).torn == (5,)
        write_run(log, "after")
        data = log.read_bytes()
        report = look(data)
        assert (report.broken, report.torn, report.head.lines) == (None, (5,), 7)
        note = json.loads(data.splitlines()[5])
        assert (note["event"], note["lost"]) == ("log_resumed", 0)
        for at in range(0, len(data), 13):
            changed = bytearray(data)
            changed[at] ^= 1
            assert look(bytes(changed), report.head).broken is not None, (end, at)


def test_a_torn_line_in_the_middle_that_nobody_noted_is_broken(log: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:40] + b"\n"
    assert look(b"".join(lines)).broken == 3
    assert look(b"".join([*lines[:2], b"junk\n", *lines[2:]])).broken == 3
    assert look(b"".join([*lines[:3], b"junk\n"])).broken == 3


def test_a_full_disk_loses_events_and_says_how_many(tmp_path: Path) -> None:
    file = tmp_path / "log"
    code = f"""
import resource, signal, sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from clsecure import logs
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
logs.record(Path({str(file)!r}))
log = logs.get("x")
log.info("before")
resource.setrlimit(resource.RLIMIT_FSIZE, (250, resource.RLIM_INFINITY))
for number in range(3):
    log.info("lost", number=number)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.info("after")
"""
    subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=60)
    data = file.read_bytes()
    names = [json.loads(line).get("event") for line in data.splitlines() if line.endswith(b"}")]
    assert names == ["before", "log_resumed", "after"]
    note = json.loads(data.splitlines()[2])
    assert note["lost"] == 3
    assert (look(data).broken, look(data).torn) == (None, (2,))


def test_several_processes_append_to_one_chain(tmp_path: Path) -> None:
    file = tmp_path / "log"
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from clsecure import logs
logs.record(Path({str(file)!r}))
for number in range(40):
    logs.get("x").info("e", who=sys.argv[1], number=number)
"""
    children = [subprocess.Popen([sys.executable, "-I", "-c", code, str(n)]) for n in range(3)]
    assert [child.wait(timeout=120) for child in children] == [0, 0, 0]
    report = look(file.read_bytes())
    assert (report.broken, report.head.lines, report.torn) == (None, 120, ())


def test_a_kill_at_any_point_leaves_a_chain_that_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "log"
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from clsecure import logs
logs.record(Path({str(file)!r}))
print(flush=True)
while True:
    logs.get("x").info("e", text="x" * 3000)
"""
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-I", "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        while file.stat().st_size < 100_000:
            os.sched_yield()
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=60)
        child.stdout.close()
        write_run(file, "after")
        report = look(file.read_bytes())
        assert report.broken is None
        assert json.loads(file.read_bytes().splitlines()[-1])["event"] == "after"
        file.unlink()


def test_a_log_that_was_not_chained_is_kept_beside(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text('{"event": "old"}\n')
    write_run(file, "new")
    assert (tmp_path / "log.old").read_text() == '{"event": "old"}\n'
    assert look(file.read_bytes()).head.lines == 1


def test_a_lock_that_somebody_holds_costs_the_event_and_no_more(tmp_path: Path) -> None:
    import fcntl

    file = tmp_path / "log"
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    writer, other = ChainWriter(os.open(file, flags)), os.open(file, flags)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError):
        writer(b'{"event": "lost"}\n')
    os.close(other)
    writer(b'{"event": "after"}\n')
    writer.close()
    assert [json.loads(line).get("lost") for line in file.read_bytes().splitlines()] == [1, None]
    assert look(file.read_bytes()).broken is None


def test_a_line_of_any_length_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.record(file)
    logs.get("x").info("huge", text="x" * (2 << 20))
    logs.get("x").info("after")
    assert file.stat().st_size < 1000
    assert (look(file.read_bytes()).broken, look(file.read_bytes()).head.lines) == (None, 2)
