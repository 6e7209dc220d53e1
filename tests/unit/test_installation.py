"""What is installed is compared with this checkout: any difference is named before a session starts."""

from __future__ import annotations

import os
import time

import pytest

from clsecure.errors import BackendUnavailableError
from clsecure.installation import DIRECTORIES, PIECES, find_installation, require_installation
from tests.support.pieces import put


@pytest.fixture
def installed(tmp_path):
    directory = tmp_path / "lib"
    directory.mkdir(mode=0o755)
    return put(directory)


def found_in(*directories):
    return find_installation(directories, owner=os.geteuid())


def test_same_bytes_match(installed):
    assert found_in(installed).matches
    assert found_in(installed).helper == installed / "helper"


def test_nothing_installed_names_setup(tmp_path):
    with pytest.raises(BackendUnavailableError, match="not installed") as caught:
        found_in(tmp_path / "absent")
    assert "clsecure setup" in caught.value.resolution


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.target)
def test_a_changed_piece_is_named(installed, piece):
    with (installed / piece.target).open("ab") as file:
        file.write(b"#")
    assert found_in(installed).stale == (piece.target,)
    with pytest.raises(BackendUnavailableError, match="differ") as caught:
        require_installation([installed], owner=os.geteuid())
    assert piece.target in caught.value.details


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o4755, 0o644])
def test_another_mode_is_not_accepted(installed, mode):
    (installed / "helper").chmod(mode)
    assert found_in(installed).stale == ("helper",)


def test_a_link_in_the_place_of_a_piece_is_not_accepted(installed):
    (installed / "launcher.py").rename(installed / "other.py")
    (installed / "launcher.py").symlink_to(installed / "other.py")
    assert found_in(installed).stale == ("launcher.py",)


def test_a_fifo_in_the_place_of_a_piece_does_not_hang(installed):
    (installed / "export.py").unlink()
    os.mkfifo(installed / "export.py")
    assert found_in(installed).stale == ("export.py",)


@pytest.mark.parametrize("place", [".", *DIRECTORIES])
def test_a_directory_that_others_can_write_spoils_everything(installed, place):
    (installed / place).chmod(0o777)
    assert len(found_in(installed).stale) == len(PIECES)


@pytest.mark.parametrize("place", DIRECTORIES)
def test_a_link_in_the_place_of_a_directory_spoils_everything(installed, tmp_path, place):
    (installed / place).rename(tmp_path / "elsewhere")
    (installed / place).symlink_to(tmp_path / "elsewhere")
    assert len(found_in(installed).stale) >= len(PIECES)


@pytest.mark.skipif(os.geteuid() != 0, reason="left out: needs root (it gives a directory away)")
def test_a_directory_of_another_owner_spoils_everything(installed):
    os.chown(installed / "clsecure" / "privileged", 65534, 65534)
    assert len(found_in(installed).stale) == len(PIECES)


@pytest.mark.parametrize("place", DIRECTORIES)
@pytest.mark.parametrize(
    "name", ["kernel/__init__.py", "kernel.abi3.so", "__pycache__/kernel.cpython-311.pyc"]
)
def test_what_python_could_take_for_a_module_of_a_program_is_named(installed, place, name):
    stranger = installed / place / name
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_bytes(b"")
    assert found_in(installed).stale == (f"{place}/{name.partition('/')[0]}",)


@pytest.mark.skipif(os.geteuid() != 0, reason="left out: needs root (it gives a file away)")
def test_a_piece_of_another_owner_is_not_accepted(installed):
    os.chown(installed / "helper", 65534, 65534)
    assert found_in(installed).stale == ("helper",)


def test_a_matching_installation_wins_over_an_earlier_stale_one(installed, tmp_path):
    stale = tmp_path / "stale"
    stale.mkdir(mode=0o755)
    (stale / "helper").write_text("old")
    assert found_in(stale, installed).directory == installed
    assert found_in(stale).directory == stale


def test_looking_is_cheap(installed):
    durations = []
    for _ in range(5):
        start = time.perf_counter()
        found_in(installed)
        durations.append(time.perf_counter() - start)
    assert min(durations) < 0.005
