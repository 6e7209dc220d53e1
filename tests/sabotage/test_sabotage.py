"""Every check notices what it is there for: broken on purpose, exactly it fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sabotage.table import SABOTAGE
from tests.support.person import Person
from tests.support.sabotage import Sabotage, Scene

pytestmark = pytest.mark.root
# Containers beside the hostile tests of containers: there is the image, in the same person's store.
GROUPS = {"user": "sabotage-user", "namespace": "sabotage-namespace", "container": "hostile-container"}


def of_mode(mode: str, *values: object, name: str) -> object:
    name = re.sub(r"[^a-z0-9]+", "-", f"{name} {mode}".lower())
    return pytest.param(*values, mode, id=name, marks=pytest.mark.xdist_group(GROUPS[mode]))


@pytest.fixture
def ready(request: pytest.FixtureRequest, person: Person, mode: str) -> str:
    """The mode, with what it needs."""
    if mode == "container":
        request.getfixturevalue("podman_image")
    return mode


@pytest.mark.parametrize("mode", [of_mode(mode, name="whole") for mode in GROUPS])
def test_unbroken_every_check_of_a_mode_holds(
    person: Person, ready: str, record_property: Callable[[str, object], None]
) -> None:
    found = person.clsecure("verify", "--mode", ready, "--output", "json")
    checks = found.json()["checks"]
    names = ("check_id", "status", "phase", "observed")
    record_property("checks", [{**{name: each[name] for name in names}, "mode": ready} for each in checks])
    assert [each for each in checks if each["status"] == "fail"] == []
    assert found.returncode == 0


@pytest.mark.parametrize(
    ("sabotage", "mode"),
    [of_mode(mode, row, name=f"{row.check_id} {row.how}") for row in SABOTAGE for mode in row.modes],
)
def test_a_broken_sandbox_fails_exactly_its_check(
    person: Person,
    sabotage: Sabotage,
    ready: str,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("sabotage", {"check_id": sabotage.check_id, "mode": ready, "how": sabotage.how})
    scene = Scene(person=person, mode=ready, place=tmp_path)
    with sabotage.broken(scene) as victim:
        found = victim.clsecure(
            "verify", "--mode", ready, "--output", "json", *sabotage.options, env=scene.environ
        )
    assert found.returncode == 123, found.text + found.errors
    checks = found.json()["checks"]
    failed = {each["check_id"]: each["observed"] for each in checks if each["status"] == "fail"}
    assert sabotage.explains(set(failed)), failed
