"""What becomes of a command's result, whatever it raises."""

from __future__ import annotations

import errno
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from clsecure import logs
from clsecure.cli.main import main
from clsecure.cli.options import Invocation
from clsecure.cli.verbs import Verb
from clsecure.errors import ClsecureError, VerificationError
from clsecure.session.ui import Ui
from clsecure.settings.sources import Layer
from clsecure.settings.values.output import OutputFormat
from tests.support.schema import check, load

Execute = Callable[[Invocation, Ui], int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Execute], None]:
    """Put a function in the place of the command ``list``, for a plain user with an empty home."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(logs, "_pending", type(logs._pending)(maxlen=1000))

    def install(execute: Execute) -> None:
        module = types.ModuleType("clsecure.cli.commands.list")
        module.execute = execute  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


def raising(error: BaseException) -> Execute:
    def execute(invocation: Invocation, ui: Ui) -> int:
        raise error

    return execute


def test_a_command_gets_its_invocation_and_decides_the_status(
    command: Callable[[Execute], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Invocation] = []

    def execute(invocation: Invocation, ui: Ui) -> int:
        seen.append(invocation)
        assert not ui.interactive
        return 7

    command(execute)
    monkeypatch.setenv("CLSECURE_OUTPUT", "json")
    monkeypatch.setenv("CLSECURE_MODE", "user")
    assert main(["-v", "list"]) == 7
    assert seen[0].verb is Verb.LIST
    assert seen[0].output is OutputFormat.JSON
    assert seen[0].verbose
    mode = seen[0].layers.strongest("mode")
    assert mode is not None
    assert (mode.text, mode.source.layer) == ("user", Layer.ENVIRONMENT)


@pytest.mark.parametrize(
    ("error", "status", "brief"),
    [
        (ClsecureError("it broke", details="why", resolution="do this"), 125, "it broke"),
        (VerificationError("it does not hold"), 123, "it does not hold"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 125, "No space left on device: /x"),
        (OSError(errno.EPIPE, "Broken pipe"), 125, "the result could not be written"),
        (KeyError("x"), 125, "internal error: KeyError: 'x'"),
        (MemoryError(), 125, "internal error: MemoryError: "),
    ],
)
def test_every_failure_is_one_error(
    command: Callable[[Execute], None],
    capfd: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    brief: str,
) -> None:
    command(raising(error))
    assert main(["list"]) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"clsecure: {brief}\n")
    assert "Traceback" not in err

    assert main(["list", "--output", "json"]) == status
    out, err = capfd.readouterr()
    assert err == ""
    document = json.loads(out)
    check(document, load("error"))
    assert (document["error"]["brief"], document["error"]["exit_code"]) == (brief, status)


def test_why_and_what_next_are_shown(
    command: Callable[[Execute], None], capfd: pytest.CaptureFixture[str]
) -> None:
    command(raising(ClsecureError("it broke", details="one\ntwo", resolution="do this")))
    main(["list"])
    assert capfd.readouterr().err == "clsecure: it broke\n  │ one\n  │ two\n  → do this\n"


def test_the_place_of_a_bug_is_shown_only_when_asked_for(
    command: Callable[[Execute], None], capfd: pytest.CaptureFixture[str]
) -> None:
    command(raising(ZeroDivisionError("x")))
    main(["list"])
    assert "--verbose" in capfd.readouterr().err
    main(["list", "--verbose"])
    assert "Traceback" in capfd.readouterr().err


def test_hostile_words_in_an_error_command_nothing(
    command: Callable[[Execute], None], capfd: pytest.CaptureFixture[str]
) -> None:
    hostile = "a\x1b]52;c;eA==\x07\x9b2J\u202eb\r\nclsecure: fake"
    command(raising(ClsecureError(hostile, details=f"{hostile}\n{hostile}", resolution=hostile)))
    main(["list"])
    err = capfd.readouterr().err
    assert not set(err) & set("\x1b\x07\x9b\u202e\r")
    assert not any(line.startswith("clsecure: fake") for line in err.splitlines())
    main(["list", "--output", "json"])
    out = capfd.readouterr().out
    assert out.isascii()
    assert not set(out) & set("\x1b\x07\r")
    assert json.loads(out)["error"]["brief"] == hostile


def test_a_command_hears_of_what_is_wrong_with_the_layers(
    command: Callable[[Execute], None], tmp_path: Path
) -> None:
    heard: list[str] = []

    def execute(invocation: Invocation, ui: Ui) -> int:
        heard.extend(invocation.layers.warnings)
        return 0

    (tmp_path / ".clsecure.conf").write_text("docker = true\n")
    command(execute)
    assert main(["list"]) == 0
    assert [warning.partition(" is not read")[0] for warning in heard] == [f"{tmp_path}/.clsecure.conf"]
