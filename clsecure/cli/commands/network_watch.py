"""``clsecure network watch [SESSION]``: the requests of a session, one line each, until it ends."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from clsecure.cli import render
from clsecure.egress.control import live_policy
from clsecure.egress.journal import OPEN, Entry, Journal, Remark
from clsecure.egress.rules import NOT_ALLOWED
from clsecure.errors import EXIT_INTERRUPTED, EgressError
from clsecure.policy import host_and_port
from clsecure.session.store import SessionDirectory, SessionRecord
from clsecure.session.words import human_size
from clsecure.terminal import escape

if TYPE_CHECKING:
    from clsecure.session.ui import Ui

MAX_LISTED = 10_000
"""Requests in the JSON document: the last ones."""

_POLL_SECONDS = 0.2
_MAX_TEXT = 300
_SHOWN_HOSTS = 12


def execute(place: SessionDirectory, record: SessionRecord, ui: Ui, *, as_json: bool) -> int:
    """Show what there is, and what comes, or write down what there is now."""
    if as_json:
        render.write_json(document(place, record))
        return 0
    if place.busy():
        for words in rules_now(place):
            ui.note(words)
    try:
        for line in _follow(place):
            render.write(f"{text(line)}\n")
    except KeyboardInterrupt:
        # The way to stop looking on while the session goes on.
        return EXIT_INTERRUPTED
    return 0


def rules_now(place: SessionDirectory) -> Iterator[str]:
    """Say what a running session may reach, and what of its budget is used; nothing without a gateway."""
    try:
        now = live_policy(place.egress_control)
    except EgressError:
        return
    hosts = [rule["host"] for rule in now["allow"]]
    more = f", and {len(hosts) - _SHOWN_HOSTS} more" if len(hosts) > _SHOWN_HOSTS else ""
    yield f"network {now['policy']}; allowed hosts: {', '.join(hosts[:_SHOWN_HOSTS]) or 'none'}{more}"
    used = [
        f"{part['used']:,} of {part['limit']:,} {what}"
        for what, part in now["budget"].items()
        if part["limit"]
    ]
    if used:
        yield f"used: {', '.join(used)}"


def document(place: SessionDirectory, record: SessionRecord) -> dict[str, object]:
    """Return the last run's requests so far (``docs/network-watch.schema.json``)."""
    running = place.busy()
    last: deque[Entry] = deque(maxlen=MAX_LISTED)
    count = 0
    with Journal(place.egress_log) as journal:
        for entry in journal.requests():
            last.append(entry)
            count += 1
        complete = not journal.full
    return {
        "session_id": record.session_id,
        "running": running,
        "requests": [_escaped(entry) for entry in last],
        "left_out": count - len(last),
        "complete": complete,
    }


def text(line: Entry | Remark) -> str:
    """Return one line for people; nothing in it can command a terminal."""
    if isinstance(line, Remark):
        return f"{_clock(line.time)} ----- {_shown(line.text)}"
    target = host_and_port(line.host, line.port or None)
    path = "" if line.path == "-" else line.path
    words = [_clock(line.time), f"{line.decision:<5}", line.method, f"{target}{path}"]
    if line.decision != OPEN:
        words.append("-" if line.status is None else str(line.status))
        words.append(f"{human_size(line.bytes_in)} in, {human_size(line.bytes_out)} out")
    if line.rule == NOT_ALLOWED:
        # Its reason is for the agent: it names the command that the reader of this knows.
        words.append("(nothing allows it)")
    elif line.reason:
        words.append(f"({line.reason})")
    return " ".join(_shown(word) for word in words)


def _follow(place: SessionDirectory) -> Iterator[Entry | Remark]:
    with Journal(place.egress_log) as journal:
        while True:
            # Asked first: what is written before the end is read after it.
            running = place.busy()
            yield from journal.read()
            if not running:
                return
            time.sleep(_POLL_SECONDS)


def _clock(time_: str) -> str:
    try:
        return f"{datetime.fromisoformat(time_).astimezone():%H:%M:%S}"
    except ValueError:
        return "??:??:??"


def _shown(words: str) -> str:
    shown = escape(words)
    return shown if len(shown) <= _MAX_TEXT else f"{shown[:_MAX_TEXT]}…"


def _escaped(entry: Entry) -> Entry:
    return replace(
        entry,
        method=escape(entry.method),
        host=escape(entry.host),
        path=escape(entry.path),
        rule=escape(entry.rule),
        reason=None if entry.reason is None else escape(entry.reason),
    )
