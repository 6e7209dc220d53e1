"""The contract's backends: each test runs with every one of them, and knows of none."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import pytest

from tests.support.hostile import Target
from tests.support.person import Person

_numbers = itertools.count()


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(name, marks=pytest.mark.xdist_group(group))
        for name, group in (
            ("user", "contract-local"),
            ("namespace", "contract-local"),
            # Both in one process, with others that want the image in both engines.
            ("podman", "containers"),
            ("docker", "containers"),
        )
    ],
)
def backend(request: pytest.FixtureRequest) -> str:
    """What builds the sandbox."""
    return str(request.param)


@pytest.fixture(scope="session")
def contract(request: pytest.FixtureRequest, person: Person, backend: str) -> Target:
    """A repository whose sessions run in the backend, and are discarded."""
    mode = backend if backend in ("user", "namespace") else "container"
    options, environ = ["--agent", "demo", "--no-network"], {}
    if backend == "podman":
        request.getfixturevalue("podman_image")
    if backend == "docker":
        environ = {"DOCKER_HOST": request.getfixturevalue("docker_host")}
        options += ["--engine", "docker"]
    repository = person.repository(f"contract-{backend}")
    return Target(person=person, mode=mode, repository=repository, options=tuple(options), environ=environ)


@pytest.fixture
def own(contract: Target) -> Iterator[Target]:
    """A repository of the test's own, for sessions that are kept, imported or killed."""
    repository = contract.person.repository(f"{contract.repository.name}-{next(_numbers)}")
    yield dataclasses.replace(contract, repository=repository)
    for entry in contract.person.worker_accounts():
        if entry["project"] == str(repository):
            contract.person.clsecure("cleanup", str(entry["name"]), "--yes", env=contract.environ).check()
