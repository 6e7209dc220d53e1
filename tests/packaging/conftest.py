"""Packages, built once, and machines that they are installed on."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.clean_machine import PLACE, Machine, add_person, end_all, make_debian
from tests.support.packages import Packages, add_source, build_debs, build_rpms

_numbers = itertools.count()


@pytest.fixture(scope="session")
def package_place() -> Iterator[Path]:
    """A directory that is gone afterwards. Only one process of a run has it (xdist group ``packages``)."""
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(mode=0o755)
    yield PLACE
    shutil.rmtree(PLACE)


@pytest.fixture(scope="session")
def debs(package_place: Path) -> Packages:
    """The Debian packages of this checkout."""
    return build_debs(package_place / "debs")


@pytest.fixture(scope="session")
def rpms(package_place: Path) -> Packages:
    """The RPM packages of this checkout."""
    return build_rpms(package_place / "rpms")


@pytest.fixture(scope="session")
def debian(package_place: Path) -> tuple[Path, ...]:
    """A minimal Debian 12 that never saw clsecure."""
    return make_debian(package_place / "debian", "bookworm")


@pytest.fixture(scope="session")
def new_machine(package_place: Path) -> Callable[..., Machine]:
    """Return what makes a machine of some layers that sees a repository."""

    def make(layers: tuple[Path, ...], repository: Path) -> Machine:
        place = package_place / f"machine-{next(_numbers)}"
        place.mkdir()
        return Machine(place=place, layers=layers, repository=repository).prepare()

    return make


@pytest.fixture(scope="session")
def after_apt(
    new_machine: Callable[..., Machine], debian: tuple[Path, ...], debs: Packages
) -> tuple[tuple[Path, ...], Path]:
    """What a Debian 12 is after ``apt install clsecure`` and nothing else: layers, and the repository."""
    machine = new_machine(debian, debs.repository)
    add_source(machine)
    machine.sh("apt-get -q update").check()
    # Without what firejail recommends itself: X servers, which no session here needs.
    machine.sh("apt-get -q install -y --no-install-recommends clsecure firejail").check()
    return machine.as_layers, debs.repository


@pytest.fixture
def installed(request: pytest.FixtureRequest, new_machine: Callable[..., Machine]) -> Iterator[Machine]:
    """A machine of the test's own with clsecure, and a plain person in its group who has a repository.

    The module's fixture ``fresh`` says what it starts from: layers, and the repository.
    """
    machine = new_machine(*request.getfixturevalue("fresh"))
    add_person(machine)
    yield machine
    end_all()
