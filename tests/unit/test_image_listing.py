"""An image store is held against what was noted when it was filled."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from clsecure.privileged.root import listing
from clsecure.privileged.root.listing import Listing, forget

OWNER = 1000


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(listing, "STATE", str(tmp_path))
    place = tmp_path / "images" / str(OWNER) / "store"
    (place / "layer" / "bin").mkdir(parents=True)
    (place / "layer" / "bin" / "program").write_text("true")
    return place


def note() -> None:
    with contextlib.closing(Listing(OWNER)) as look:
        look.noted()


def compared() -> dict[str, Any]:
    with contextlib.closing(Listing(OWNER)) as look:
        return look.compared()


SAME = {"count": 0, "names": [], "complete": True}


def test_a_store_as_it_was_noted_is_the_same(store: Path) -> None:
    note()
    assert compared() == SAME
    # What was opened to everybody, and closed again, holds what it held.
    mode = store.stat().st_mode
    (store / "layer").chmod(0o777)
    assert compared()["count"] == 1
    (store / "layer").chmod(mode & 0o7777)
    assert compared() == SAME


@pytest.mark.parametrize("change", ["bytes", "more", "fewer", "mode", "link"])
def test_whatever_is_changed_is_told(store: Path, change: str) -> None:
    note()
    program = store / "layer" / "bin" / "program"
    before, above = program.stat(), program.parent.stat()
    match change:
        case "bytes":
            program.write_text("evil")
            os.utime(program, ns=(before.st_atime_ns, before.st_mtime_ns))
        case "more":
            (program.parent / "planted").touch()
        case "fewer":
            program.unlink()
        case "mode":
            program.chmod(0o4755)
        case "link":
            program.unlink()
            program.symlink_to("/bin/sh")
    os.utime(program.parent, ns=(above.st_atime_ns, above.st_mtime_ns))
    found = compared()
    assert (found["count"], found["complete"]) == (1, True)
    assert found["names"] == [f"{store}: other files than were loaded"]


def test_a_store_that_nobody_noted_is_not_said_to_be_the_same_but_for_the_next_time(store: Path) -> None:
    assert compared() == {"count": 0, "names": [], "complete": False}
    assert compared() == SAME


def test_a_store_that_is_filled_meanwhile_is_no_failure(store: Path) -> None:
    note()
    with contextlib.closing(Listing(OWNER)) as look:
        forget(OWNER)
        assert look.compared()["complete"] is False
    note()
    with contextlib.closing(Listing(OWNER)) as look:
        # Loaded to its end, and to another listing.
        Path(look.note).write_text(json.dumps("0" * 64))
        found = look.compared()
        assert (found["count"], found["complete"]) == (0, False)


def test_a_look_at_a_store_that_is_filled_does_not_replace_the_note_of_that(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(Listing(OWNER)) as look:
        # Half of it: the rest comes, and is noted, before that look ends.
        seen = look.walk.result()
        monkeypatch.setattr(look.walk, "result", lambda: seen)
        (store / "layer" / "bin" / "other").touch()
        note()
        assert look.compared()["complete"] is False
    assert compared() == SAME
