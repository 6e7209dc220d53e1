"""Fixtures for all tests: a plain person with clsecure set up, and the real agent where there is one."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.built_images import Image
from tests.support.person import Person
from tests.support.shared_setup import person_with_clsecure

pytest_plugins = ["tests.support.matrix_plugin"]

# A shell ignores Ctrl-C for what it starts in the background, and so would all that the tests start and end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_RUN = os.environ.get("CLSECURE_TEST_RUN") or f"cst{os.getppid():06d}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root, name what is left out instead of failing in the middle."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="left out: needs root (it makes accounts)"))


@pytest.fixture(scope="session")
def person(worker_id: str) -> Iterator[Person]:
    """A plain Unix account per test process, allowed to use clsecure; removed with all of its workers."""
    if os.geteuid() != 0:
        pytest.skip("left out: needs root (it makes accounts)")
    with person_with_clsecure(f"{_RUN}-{worker_id}") as made:
        yield made


@pytest.fixture(scope="session")
def worker_image(person: Person) -> Iterator[Image]:
    """The image that container sessions run in: built once, and where the person's sessions find it."""
    from tests.support.built_images import given_to

    with given_to(person, "worker") as image:
        yield image


@pytest.fixture(scope="session")
def podman_image(person: Person, worker_image: Image) -> Image:
    """The worker image in the person's store, where sessions with podman run it."""
    person.clsecure("images", "load", worker_image.name, timeout=240).check()
    return worker_image


@pytest.fixture(scope="session")
def docker_host(worker_image: Image) -> Iterator[str]:
    """A docker engine of the tests' own that has the worker image, and that the person may use.

    Who asks for it belongs to the group ``containers``: one process starts it and loads the image once.
    """
    from clsecure.images.docker_store import DockerStore
    from clsecure.images.store import load_checked
    from tests.support.engines import docker_engine

    with docker_engine() as address:
        socket = Path(address.removeprefix("unix://"))
        socket.chmod(0o666)
        socket.parent.chmod(0o711)
        load_checked(DockerStore(address), worker_image.archive, lambda _: None)
        yield address


@pytest.fixture(scope="session")
def claude_binary() -> Path:
    """The real Claude Code, named by CLSECURE_TEST_CLAUDE (``./dev test`` fetches it)."""
    named = os.environ.get("CLSECURE_TEST_CLAUDE", "")
    if not named:
        pytest.skip("CLSECURE_TEST_CLAUDE names no claude binary; ./dev test fetches one")
    path = Path(named)
    if not os.access(path, os.X_OK) or shutil.which(path) is None:
        pytest.skip(f"CLSECURE_TEST_CLAUDE names {path}, which can't be executed")
    return path
