"""The registry of the helper: what it wrote itself, about accounts that are still the ones that it made."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

import pytest

from clsecure.privileged.root import registry as registries
from clsecure.privileged.root.accounts import require_own
from clsecure.privileged.root.messages import Refused
from clsecure.privileged.root.registry import Registry

NAME = "claude-worker-sample-0a1b2c"
NOBODY = 1_899_999_999


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """An empty one in a place of the test's own."""
    monkeypatch.setattr(registries, "STATE", str(tmp_path / "state"))
    return Registry({})


def entry(**changed: object) -> dict[str, object]:
    sound = {
        "name": NAME, "uid": NOBODY, "owner": 1000, "project": "/home/alice/sample", "session": "default",
        "home": f"/home/{NAME}", "created": 1_700_000_000, "range": 2_100_065_536,
    }  # fmt: skip
    return {**sound, **changed}


@pytest.mark.root
def test_what_the_helper_wrote_is_read(registry: Registry) -> None:
    Path(registry.directory, NAME).write_text(json.dumps(entry()))
    assert registry.read(NAME) == entry()
    assert registry.entries() == [entry()]


@pytest.mark.root
@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"uid_first": ',
        "[]",
        '"x"',
        "{}",
        "\xff",
        json.dumps(entry(name="alice")),
        json.dumps(entry(home="/home/alice")),
        json.dumps(entry(home=7)),
        json.dumps(entry(uid="0")),
        json.dumps(entry(uid=True)),
        json.dumps(entry(range=0)),
        json.dumps({key: value for key, value in entry().items() if key != "project"}),
        json.dumps(entry(project="x" * 100_000)),
    ],
)
def test_an_entry_that_is_not_as_the_helper_writes_it_is_refused_and_named(
    registry: Registry, content: str
) -> None:
    Path(registry.directory, NAME).write_bytes(content.encode("latin-1"))
    with pytest.raises(Refused, match=NAME):
        registry.read(NAME)


def test_an_account_of_somebody_elses_name_or_uid_is_not_the_helpers() -> None:
    me = pwd.getpwuid(os.getuid())
    require_own(entry())
    require_own(entry(name=me.pw_name, uid=me.pw_uid))
    for foreign in (entry(uid=me.pw_uid), entry(name=me.pw_name), entry(name="daemon")):
        with pytest.raises(Refused):
            require_own(foreign)
