"""What several unit tests of clone-in share. A file that wants another home defines its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.clone_in import make

# How long one example takes says something about the machine, not about what it shows.
settings.register_profile("clsecure", deadline=None)
settings.load_profile("clsecure")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, so that nobody's git configuration counts."""
    place = tmp_path / "userhome"
    place.mkdir()
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return place


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A repository with one commit."""
    return make(tmp_path / "p")
