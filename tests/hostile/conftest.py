"""What the hostile tests share: the three modes, and a repository of the person's for each of them.

All tests of one mode run in one process (``--dist loadgroup``): accounts and prepared worlds are made once.
"""

from __future__ import annotations

import pytest

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
    return str(request.param)


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest, person: Person, mode: str) -> Target:
    """A sample repository whose sessions are discarded; its worker account lives as long as the tests."""
    if mode == "container":
        request.getfixturevalue("worker_image")
    return Target(person=person, mode=mode, repository=person.repository(f"hostile-{mode}"))
