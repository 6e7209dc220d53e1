"""Programs that are run with all that they start: none of it outlives the call."""

from __future__ import annotations

from pathlib import Path

import pytest

from clsecure import process
from clsecure.errors import ToolError
from clsecure.process import Command


def test_a_group_that_takes_too_long_ends_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what does not hear the first word."""
    script = f"trap '' TERM; sleep 1000 & echo $! >{tmp_path}/child; wait"
    monkeypatch.setattr(process, "_PATIENCE_SECONDS", 0.2)
    with pytest.raises(ToolError, match="did not end within 1 s"):
        process.run_group(Command(argv=("sh", "-c", script), timeout=1))
    status = Path("/proc", (tmp_path / "child").read_text().strip(), "status")
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_a_group_gives_what_it_said_and_its_status() -> None:
    done = process.run_group(Command(argv=("sh", "-c", "echo out; echo err >&2; exit 7")))
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    with pytest.raises(ToolError, match="is not installed"):
        process.run_group(Command(argv=("no-such-program",)))
