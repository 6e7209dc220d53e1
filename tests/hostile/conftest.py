"""What the hostile tests share: the three modes, and a repository of the person's for each of them.

All tests of one mode run in one process (``--dist loadgroup``): accounts and prepared worlds are made once.
"""

from __future__ import annotations

import pytest

from tests.support.built_images import Image
from tests.support.hostile import Target
from tests.support.person import Person


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(mode, marks=pytest.mark.xdist_group(f"hostile-{mode}"))
        for mode in ("user", "namespace", "container")
    ],
)
def mode(request: pytest.FixtureRequest) -> str:
    """The isolation mode."""
    if request.param == "container":
        request.getfixturevalue("podman_image")
    return str(request.param)


@pytest.fixture(scope="session")
def target(person: Person, mode: str) -> Target:
    """A sample repository whose sessions are discarded; its worker account lives as long as the tests."""
    return Target(person=person, mode=mode, repository=person.repository(f"hostile-{mode}"))


@pytest.fixture(scope="session")
def contained(person: Person, podman_image: Image) -> Target:
    """A target in container mode, for tests of what only that mode has (group ``hostile-container``)."""
    del podman_image
    return Target(person=person, mode="container", repository=person.repository("hostile-contained"))
