"""Events: nothing secret, nothing lost before there is a place for them, nothing that ends a session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clsecure import logs
from clsecure.errors import StateError
from tests.support.cli import ROOT

CANARY = "sk-ant-CANARY"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logs, "_pending", deque(maxlen=1000))
    monkeypatch.setattr(logs, "_secrets", set())
    yield
    logs.close()


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_one_event_is_one_line_of_json(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    logs.record(file)
    logs.get("importer").info("unit_admitted", path=Path("/x"), commits=3, parts=("a", b"\xff"), none=None)
    [line] = lines(file)
    assert line.pop("timestamp").endswith("+00:00")
    assert line.pop("prev") == "0" * 64
    assert line == {
        "level": "info", "logger": "importer", "event": "unit_admitted", "path": "/x", "commits": 3,
        "parts": ["a", "\\xff"], "none": None,
    }  # fmt: skip


def test_what_was_logged_before_there_was_a_file_is_in_it(tmp_path: Path) -> None:
    logs.get("x").warning("early")
    logs.record(tmp_path / "log")
    logs.get("x").error("late")
    assert [(line["event"], line["level"]) for line in lines(tmp_path / "log")] == [
        ("early", "warning"), ("late", "error"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"detail": f"x{CANARY}y"},
        {"detail": CANARY.encode()},
        {"detail": ["a", {"b": (CANARY,)}]},
        {"detail": {CANARY: 1}},
        {"detail": ValueError(CANARY)},
        {"detail": Path(f"/{CANARY}")},
        {"detail": {CANARY}},
    ],
)
def test_a4_a_registered_secret_is_never_written(tmp_path: Path, fields: dict[str, object]) -> None:
    shown: list[bytes] = []
    logs.get("x").info("early", **fields)
    logs.register_secret(CANARY)
    logs.show(shown.append)
    logs.record(tmp_path / "log")
    logs.get("x").info("late", **fields)
    text = (tmp_path / "log").read_text()
    assert len(shown) == len(text.splitlines()) == 2
    assert CANARY not in text
    assert CANARY.encode() not in b"".join(shown)
    assert text.count("***") == 2


@pytest.mark.parametrize(
    "name",
    ["api_key", "key", "ANTHROPIC_API_KEY", "auth_token", "Token", "secret", "client_secret", "authorization",
     "password", "credential", "cookie"],
)  # fmt: skip
def test_a_field_with_the_name_of_a_secret_is_never_written(tmp_path: Path, name: str) -> None:
    logs.record(tmp_path / "log")
    logs.get("x").info("e", **{name: CANARY, "nested": {name: [CANARY]}})
    [line] = lines(tmp_path / "log")
    assert line[name] == line["nested"][name] == "***"


def test_other_names_are_written(tmp_path: Path) -> None:
    logs.register_secret("")
    logs.register_secret("abc")
    logs.record(tmp_path / "log")
    logs.get("x").info("e", tokens=5, keyboard="abc", monkey="abcd")
    assert lines(tmp_path / "log")[0].items() >= {"tokens": 5, "keyboard": "abc", "monkey": "abcd"}.items()


def test_a_field_cannot_pose_as_the_event(tmp_path: Path) -> None:
    logs.record(tmp_path / "log")
    logs.get("x").info("real", level="error", logger="y", at=0)
    assert lines(tmp_path / "log")[0].items() >= {"event": "real", "level": "info", "logger": "x"}.items()


def test_g1_hostile_text_commands_nothing(tmp_path: Path) -> None:
    shown: list[bytes] = []
    logs.show(shown.append)
    logs.record(tmp_path / "log")
    logs.get("x").info("e", text="\x1b[2J\x9b\u202e\r\nfake", nested=["\x1b\u202e"], odd="\udcff")
    text = b"".join(shown).decode()
    assert not set(text) & set("\x1b\x9b\u202e\r")
    assert text.count("\n") == 1
    raw = (tmp_path / "log").read_text()
    assert raw.isascii()
    assert not set(raw) & set("\x1b\r")


def test_the_file_is_private_even_when_it_was_not(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.touch(mode=0o644)
    os.umask(os.umask(0))
    logs.record(file)
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "missing directory"])
def test_what_is_no_file_of_ours_is_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "log"
    match kind:
        case "link":
            file.symlink_to(tmp_path / "elsewhere")
        case "fifo":
            os.mkfifo(file)
        case "directory":
            file.mkdir()
        case "missing directory":
            file = file / "x"
    with pytest.raises(StateError, match="log"):
        logs.record(file)
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_ends_nothing() -> None:
    def full(line: bytes) -> None:
        raise OSError(28, "No space left on device")

    logs.show(full)
    logs.get("x").info("e")


def test_structlog_is_imported_only_when_there_is_somewhere_to_write() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from clsecure import logs;"
        "logs.get('x').info('e', a=1); assert 'structlog' not in sys.modules;"
        "logs.show(sys.stderr.buffer.write); assert 'structlog' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr.count(b"\n")) == (0, 1)
