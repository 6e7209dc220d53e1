"""Packages, built once, and machines that they are installed on."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.clean_machine import PLACE, Machine, add_person, end_all, make_debian
from tests.support.packages import Packages, add_source, build_packages

_numbers = itertools.count()


@pytest.fixture(scope="session")
def package_place() -> Iterator[Path]:
    """A directory that is gone afterwards. Only one process of a run has it (xdist group ``packages``)."""
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(mode=0o755)
    yield PLACE
    shutil.rmtree(PLACE)


@pytest.fixture(scope="session")
def packages(package_place: Path) -> Packages:
    """The packages of this checkout, in a signed repository."""
    return build_packages(package_place / "packages")


@pytest.fixture(scope="session")
def debian(package_place: Path) -> tuple[Path, ...]:
    """A minimal Debian 12 that never saw clsecure."""
    return make_debian(package_place / "debian")


@pytest.fixture(scope="session")
def new_machine(package_place: Path, packages: Packages, debian: tuple[Path, ...]) -> Callable[..., Machine]:
    """Return what makes a machine: by default a clean one that knows the repository."""

    def make(layers: tuple[Path, ...] | None = None) -> Machine:
        place = package_place / f"machine-{next(_numbers)}"
        place.mkdir()
        machine = Machine(place=place, layers=layers or debian, repository=packages.repository).prepare()
        if layers is None:
            add_source(machine)
        return machine

    return make


@pytest.fixture(scope="session")
def fresh(new_machine: Callable[..., Machine]) -> tuple[Path, ...]:
    """The layers of a machine where ``apt install clsecure`` was the only thing that happened."""
    machine = new_machine()
    machine.sh("apt-get -q update").check()
    # Without what firejail recommends itself: X servers, which no session here needs.
    machine.sh("apt-get -q install -y --no-install-recommends clsecure firejail").check()
    return machine.as_layers


@pytest.fixture
def installed(new_machine: Callable[..., Machine], fresh: tuple[Path, ...]) -> Iterator[Machine]:
    """A machine of the test's own with clsecure, and a plain person in its group who has a repository."""
    machine = new_machine(fresh)
    add_person(machine)
    yield machine
    end_all()
