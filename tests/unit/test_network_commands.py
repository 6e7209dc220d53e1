"""``clsecure network watch``, ``allow`` and ``learn`` on logs of the test's own: bounded, escaped, exact."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from clsecure.cli.actions import NetworkAction
from clsecure.cli.commands import network, network_allow, network_learn, network_watch
from clsecure.cli.options import Invocation, NetworkOptions
from clsecure.cli.parsing.parse import parse
from clsecure.egress.control import Allowed
from clsecure.egress.journal import Journal, begin_run
from clsecure.egress.wire import MAX_HOSTS
from clsecure.errors import EgressError, SessionNotFoundError, UsageError
from clsecure.session.learn import learn, suggestion, toml_lines
from clsecure.session.store import SessionDirectory, SessionRecord, SessionStatus, Store
from clsecure.session.ui import SilentUi
from clsecure.settings.values.output import OutputFormat
from tests.support import schema
from tests.unit.test_journal import append, line
from tests.unit.test_session_network import HOSTILE, Ui

RECORD = SessionRecord(
    session_id="20260102-030405-aabbccddeeff",
    project="/home/u/app",
    session="default",
    mode="namespace",
    network="allowlist",
    agent="demo",
    worker_user="claude-worker-app-1a2b3c",
    status=SessionStatus.DONE,
    created=1.0,
    updated=2.0,
)


@pytest.fixture
def place(tmp_path: Path) -> SessionDirectory:
    made = SessionDirectory(tmp_path / "app-0123456789ab")
    made.make()
    begin_run(made.egress_log, RECORD.session_id)
    return made


def output(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


# ------------------------------------------------------------ watch


def shown(data: bytes, place: SessionDirectory) -> list[str]:
    append(place.egress_log, data)
    with Journal(place.egress_log) as journal:
        return [network_watch.text(each).split(" ", 1)[1] for each in journal.read()]


def test_a_line_has_all_that_is_to_know(place: SessionDirectory) -> None:
    opened = {
        "event": "opened",
        "time": "2026-01-02T03:04:05.678+00:00",
        "host": "files.example.org",
        "port": 443,
    }
    lines = [
        line(),
        json.dumps({**opened, "method": "CONNECT", "tunnel": 1}).encode() + b"\n",
        line(status=200, decision="allow", rule="r", reason=None, bytes_in=2048, bytes_out=10),
        line(host="::1", port=80, method="GET", path="/x?y", rule="private", reason="a private address"),
        line(host="-", port=0, method="-", rule="malformed", status=None, reason=None),
        b'{"event": "budget", "time": "2026-01-02T03:04:05.678+00:00", "text": "nine tenths are used"}\n',
        b'{"event": "allowed", "time": "2026-01-02T03:04:05.678+00:00", "host": "x.org", "rules": []}\n',
    ]
    assert shown(b"".join(lines), place) == [
        "deny  CONNECT files.example.org:443 403 1 B in, 2 B out (nothing allows it)",
        "open  CONNECT files.example.org:443",
        "allow CONNECT files.example.org:443 200 2.0 KiB in, 10 B out",
        "deny  GET [::1]:80/x?y 403 1 B in, 2 B out (a private address)",
        "deny  - - - 1 B in, 2 B out",
        "----- nine tenths are used",
        "----- the user allowed x.org",
    ]


def test_nothing_that_an_agent_wrote_commands_the_terminal(place: SessionDirectory) -> None:
    long = "x" * 5000
    hostile = line(host=HOSTILE, path=f"/{HOSTILE}\r\n{long}", method=HOSTILE, reason=HOSTILE, rule=HOSTILE)
    remark = json.dumps({"event": "budget", "time": HOSTILE, "text": HOSTILE + long}).encode() + b"\n"
    for text in shown(hostile + remark, place):
        assert text.isprintable()
        assert len(text) < 1500
    document = network_watch.document(place, RECORD)
    (entry,) = document["requests"]
    assert all(value.isprintable() for value in asdict(entry).values() if isinstance(value, str))


def test_the_document_holds_the_last_requests_and_says_what_it_left_out(
    place: SessionDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(network_watch, "MAX_LISTED", 3)
    append(place.egress_log, b"".join(line(host=f"h{number}.example.org") for number in range(10)))
    append(place.egress_log, b'{"event": "log_full"}\n')
    assert network_watch.execute(place, RECORD, SilentUi(), as_json=True) == 0
    document = json.loads(output(capsys))
    schema.check(document, schema.load("network-watch"))
    assert [each["host"] for each in document["requests"]] == [
        f"h{number}.example.org" for number in (7, 8, 9)
    ]
    assert (document["left_out"], document["complete"], document["running"]) == (7, False, False)


def test_watching_goes_on_until_the_session_is_over(
    place: SessionDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = os.open(place.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(held, fcntl.LOCK_EX)
    written: list[str] = []
    first = threading.Event()

    def write(text: str) -> None:
        written.append(text)
        first.set()

    monkeypatch.setattr(network_watch.render, "write", write)
    append(place.egress_log, line(host="first.example.org"))

    def session() -> None:
        assert first.wait(20)
        append(place.egress_log, line(host="last.example.org"))
        os.close(held)

    thread = threading.Thread(target=session)
    thread.start()
    assert network_watch.execute(place, RECORD, SilentUi(), as_json=False) == 0
    thread.join()
    assert [text.split()[3] for text in written] == ["first.example.org:443", "last.example.org:443"]


def test_a_session_without_a_log_shows_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = SessionDirectory(tmp_path / "none")
    empty.make()
    assert network_watch.execute(empty, RECORD, SilentUi(), as_json=False) == 0
    assert output(capsys) == ""
    assert network_watch.document(empty, RECORD)["requests"] == []


# ------------------------------------------------------------ learn


@pytest.mark.parametrize(
    ("host", "port", "allow"),
    [
        ("files.example.org", 443, "files.example.org"),
        ("files.example.org", 80, "files.example.org:80"),
        ("192.0.2.7", 443, "192.0.2.7"),
        ("2001:db8::7", 443, "[2001:db8::7]"),
        ("2001:db8::7", 22, "[2001:db8::7]:22"),
        ("host.clsecure.internal", 4873, "localhost:4873"),
        ("xn--bcher-kva.example", 443, "xn--bcher-kva.example"),
        ("Files.example.org", 443, None),
        ("*.example.org", 443, None),
        ("files.example.org.", 443, None),
        ("b\u00fccher.example", 443, None),
        ("0x7f.1", 443, None),
        ('x"] # ', 443, None),
        ("x\n", 443, None),
        (HOSTILE, 443, None),
        ("", 443, None),
        ("-", 0, None),
        ("files.example.org", 0, None),
        ("files.example.org", 70000, None),
        ("::1%eth0", 443, None),
    ],
)
def test_only_a_target_in_its_one_form_is_proposed(host: str, port: int, allow: str | None) -> None:
    assert suggestion(host, port) == allow


def test_the_list_is_sorted_counted_and_nothing_but_names(
    place: SessionDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = ('evil"]\nallow = ["*', HOSTILE)
    for host, port, count in (
        ("b.example.org", 443, 1),
        ("a.example.org", 8443, 3),
        *((x, 443, 2) for x in bad),
    ):
        append(place.egress_log, line(host=host, port=port) * count)
    append(place.egress_log, line(host="denied.example.org", rule="denied"))
    append(place.egress_log, line(host="open.example.org", rule="r", decision="allow"))
    ui = Ui()
    assert network_learn.execute(place, RECORD, ui, as_json=False) == 0
    text = output(capsys)
    assert text.splitlines() == [
        "[egress]",
        "allow = [",
        '    "a.example.org:8443",  # 3 requests',
        '    "b.example.org",  # 1 request',
        "]",
    ]
    assert tomllib.loads(text) == {"egress": {"allow": ["a.example.org:8443", "b.example.org"]}}
    assert sum("no host name" in said for said in ui.said) == 2
    assert all(said.isprintable() for said in ui.said)

    assert network_learn.execute(place, RECORD, ui, as_json=True) == 0
    document = json.loads(output(capsys))
    schema.check(document, schema.load("network-learn"))
    assert [each["requests"] for each in document["allow"]] == [3, 1]
    assert len(document["left_out"]) == 2


def test_a_tunnel_to_the_models_api_is_left_to_the_person_to_uncomment(place: SessionDirectory) -> None:
    append(place.egress_log, line(host="api.anthropic.com") + line(host="a.example.org"))
    with Journal(place.egress_log) as journal:
        text = "\n".join(toml_lines(learn(network_learn.denials(journal.requests()))))
    assert tomllib.loads(text) == {"egress": {"allow": ["a.example.org"]}}
    assert '# "api.anthropic.com"' in text


def test_nothing_denied_is_nothing_to_learn(
    place: SessionDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    ui = Ui()
    assert network_learn.execute(place, RECORD, ui, as_json=False) == 0
    assert output(capsys) == ""
    assert len(ui.said) == 1


# ------------------------------------------------------------ allow, and which session is meant


@pytest.fixture
def running(place: SessionDirectory) -> Iterator[SessionDirectory]:
    held = os.open(place.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(held, fcntl.LOCK_EX)
    yield place
    os.close(held)


@pytest.mark.parametrize(
    "host", ["*", "*.org", "a b", "x:0", "x:99999", "http://x.org", "$(id)", "", "1.2.3"]
)
def test_what_is_no_host_is_refused_before_anything_is_allowed(
    running: SessionDirectory, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    running.egress_control.touch()
    asked: list[str] = []
    monkeypatch.setattr(network_allow, "allow_live", lambda _, pattern: asked.append(pattern) or Allowed())
    with pytest.raises(UsageError):
        network_allow.execute(running, RECORD, ("good.example.org", host), Ui(), as_json=False)
    assert asked == []


def test_it_says_what_is_allowed_and_how_to_keep_it(
    running: SessionDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.egress_control.touch()
    now = Allowed(rules=tuple(f"h{number}.example.org:443" for number in range(MAX_HOSTS)))
    monkeypatch.setattr(network_allow, "allow_live", lambda _path, _pattern: now)
    ui = Ui()
    network_allow.execute(running, RECORD, ("Files.Example.org", "x.example.org:80"), ui, as_json=False)
    assert "files.example.org, x.example.org:80" in ui.said[0]
    assert ui.said[1].endswith(f"and {MAX_HOSTS - 40} more")
    assert ui.said[2].endswith("allow_domains = files.example.org, x.example.org:80")


def test_a_session_without_its_gateway_is_an_error(running: SessionDirectory) -> None:
    with pytest.raises(UsageError) as caught:
        network_allow.execute(running, RECORD, ("x.example.org",), Ui(), as_json=False)
    assert "no gateway" in caught.value.brief
    # A killed one leaves its socket behind.
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(str(running.egress_control))
    with pytest.raises(EgressError):
        network_allow.execute(running, RECORD, ("x.example.org",), Ui(), as_json=False)


def test_without_a_name_the_projects_own_session_is_meant(
    place: SessionDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("clsecure.cli.commands.diff.project_here", lambda: RECORD.project)
    own = Store().session(RECORD.project, "default")
    with pytest.raises(SessionNotFoundError):
        network.execute(invocation(NetworkAction.LEARN), Ui())
    own.make()
    own.write(RECORD)
    append(own.egress_log, line(host="own.example.org"))
    for words in ((), ("default",), (own.path.name,), (RECORD.session_id,)):
        assert network.execute(invocation(NetworkAction.LEARN, *words), Ui()) == 0
        assert "own.example.org" in output(capsys)
    monkeypatch.setattr("clsecure.cli.commands.diff.project_here", lambda: None)
    with pytest.raises(UsageError):
        network.execute(invocation(NetworkAction.LEARN), Ui())


def test_one_word_of_allow_is_a_host_and_more_begin_with_the_session(
    place: SessionDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("clsecure.cli.commands.diff.project_here", lambda: RECORD.project)
    own = Store().session(RECORD.project, "default")
    own.make()
    own.write(RECORD)
    asked: list[Any] = []
    monkeypatch.setattr(network_allow, "execute", lambda *all_, **_: asked.append(all_) or 0)
    for words in (("x.org",), ("default", "x.org"), ("default", "x.org", "*.y.org")):
        parsed = parse(["network", "allow", *words]).options
        assert isinstance(parsed, NetworkOptions)
        network.execute(invocation(NetworkAction.ALLOW, *parsed.arguments), Ui())
    assert [hosts for _, _, hosts, _ in asked] == [("x.org",), ("x.org",), ("x.org", "*.y.org")]
    assert {made.path for made, *_ in asked} == {own.path}


@pytest.mark.parametrize(
    "words", [("watch", "a", "b"), ("learn", "a", "b"), ("allow",), ("watch", "../x"), ("forget",)]
)
def test_words_that_are_none_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        parse(["network", *words])


def invocation(action: NetworkAction, *words: str) -> Invocation:
    options = NetworkOptions(action=action, arguments=words)
    return Invocation(verb=parse(["network", "learn"]).verb, options=options, output=OutputFormat.HUMAN)
