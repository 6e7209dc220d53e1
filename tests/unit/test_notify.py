"""Calling the user: whom, when, with which words."""

from __future__ import annotations

import json
import os
import select
import time
from datetime import timedelta
from pathlib import Path

import pytest

from clsecure.cli.screen import Screen
from clsecure.cli.ui import TerminalUi
from clsecure.errors import UsageError
from clsecure.session import notify
from clsecure.session.notify import Notifier
from clsecure.session.ui import SilentUi
from tests.unit.test_session_hooks import Listening

_HOSTILE = "p\x1b]52;c;cm0K\x07\u202e <b>bold</b> -u critical"


def notifier(tmp_path: Path, *, ui: SilentUi | TerminalUi, after: float = 0, **options) -> Notifier:
    return Notifier(**{"how": (), "command": None} | options, after=timedelta(seconds=after), ui=ui,
                    environ={"HOME": str(tmp_path), "SECRET": "x"}, home=tmp_path)  # fmt: skip


def program(tmp_path: Path, script: str) -> Path:
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_terminal_gets_a_bell_and_a_message_of_ours(tmp_path) -> None:
    master, slave = os.openpty()
    ui = TerminalUi(Screen(input_fd=slave, output_fd=slave, colour=False, animate=False), interactive=True)
    notifier(tmp_path, ui=ui, how=("bell", "osc9")).call(_HOSTILE, {})
    seen = ""
    # The kernel hands it over by and by.
    while not seen.endswith("\x1b\\\a") and select.select([master], [], [], 20)[0]:
        seen += os.read(master, 65536).decode()
    assert seen.startswith("\x1b]9;clsecure: p\\x1b]52;c;cm0K\\x07\\u202e")
    assert seen.endswith("\x1b\\\a")
    assert seen.count("\x1b") == 2, "one control string, and its end"
    os.close(master)
    os.close(slave)


def test_what_is_no_terminal_gets_nothing(tmp_path) -> None:
    read, write = os.pipe()
    ui = TerminalUi(Screen(input_fd=read, output_fd=write, colour=False, animate=False), interactive=False)
    notifier(tmp_path, ui=ui, how=("bell", "osc9")).call("done", {})
    assert not select.select([read], [], [], 0)[0]
    os.close(read)
    os.close(write)


def test_a_desktop_gets_words_that_are_neither_options_nor_markup(tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    sender = program(tmp_path, f'printf "%s\\n" "$@" >{out}; env >>{out}')
    monkeypatch.setattr(notify, "find_program", lambda _: sender)
    made = notifier(tmp_path, ui=Listening(), how=("desktop",))
    made.call(_HOSTILE, {})
    made.finish()
    words = out.read_text().splitlines()
    assert words[:3] == ["--app-name=clsecure", "--", "clsecure"]
    assert words[3] == "p\\x1b]52;c;cm0K\\x07\\u202e &lt;b&gt;bold&lt;/b&gt; -u critical"
    assert not [word for word in words if "SECRET" in word], "the environment is an allow-list"


def test_the_users_program_gets_the_document(tmp_path) -> None:
    out = tmp_path / "out"
    made = notifier(tmp_path, ui=Listening(), command=program(tmp_path, f"cat >{out}"))
    made.check()
    made.call("done", {"session_id": "x", "exit_code": 0})
    made.finish()
    assert json.loads(out.read_text()) == {"session_id": "x", "exit_code": 0}


@pytest.mark.parametrize(("after", "calls"), [(0, 1), (3600, 0)])
def test_a_short_session_calls_nobody_and_a_long_one_once(tmp_path, after, calls) -> None:
    out = tmp_path / "out"
    made = notifier(tmp_path, ui=Listening(), command=program(tmp_path, f"echo >>{out}"), after=after)
    made.call("waits", {})
    made.call("done", {})
    made.finish()
    assert (out.read_text().count("\n") if out.exists() else 0) == calls


def test_a_program_that_hangs_delays_the_end_by_its_time_only(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(notify, "SECONDS", 0.3)
    ui = Listening()
    made = notifier(tmp_path, ui=ui, command=program(tmp_path, "exec sleep 600"))
    begun = time.monotonic()
    made.call("done", {})
    assert time.monotonic() - begun < 60, "the call itself waits for nothing"
    made.finish()
    assert time.monotonic() - begun < 120
    assert "did not end in time" in ui.warnings[0]


def test_what_will_not_work_is_said_before_the_start(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(notify, "find_program", lambda _: None)
    ui = Listening()
    notifier(tmp_path, ui=ui, how=("desktop",)).check()
    assert "no notify-send" in ui.warnings[0]
    open_to_all = program(tmp_path, "true")
    open_to_all.chmod(0o777)
    with pytest.raises(UsageError, match="notify_command can't be run"):
        notifier(tmp_path, ui=ui, command=open_to_all).check()
