"""Every check notices what it is there for: broken on purpose, exactly it fails."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clsecure.verify.running import RUNNING_CHECKS
from clsecure.verify.userside import USER_CHECKS
from tests.sabotage.inside import keys
from tests.sabotage.running import with_program
from tests.sabotage.table import SABOTAGE
from tests.support.hostile import DEADLINE, LiveAgent, Target
from tests.support.matrix import as_looked
from tests.support.person import Outcome, Person
from tests.support.sabotage import Sabotage, Scene, nothing

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


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        of_mode(mode, options, name=name)
        for name, options in {
            "as sessions are": ("--limit", "open_files=4096"),
            "no network": ("--no-network",),
            "full network": ("--allow-network",),
        }.items()
        for mode in GROUPS
    ],
)
def test_unbroken_every_check_of_a_mode_holds(
    person: Person,
    ready: str,
    options: tuple[str, ...],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    scene = Scene(person=person, mode=ready, place=tmp_path)
    with keys(scene):
        found = person.clsecure("verify", "--mode", ready, "--output", "json", *options, env=scene.environ)
    assert found.returncode in (0, 123), found
    control(found.json()["checks"], ready, record_property)
    assert found.returncode == 0


@pytest.mark.parametrize("mode", [of_mode(mode, name="a session") for mode in GROUPS])
def test_unbroken_every_check_of_a_session_holds(
    person: Person, ready: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    scene = Scene(person=person, mode=ready, place=tmp_path)
    repository = person.repository(f"whole-{ready}")
    with with_program(scene):
        # The helper first looks at what runs after one second to two, later on a machine that is busy.
        argv = Target(
            person=person, mode=ready, repository=repository, options=("--agent", "claude", "--no-network")
        ).argv(["sleep", "5"])
        found = person.run(argv, cwd=repository, env=scene.environ)
    checks = found.json()["verification"]["checks"]
    control(checks, ready, record_property)
    wanted = {check.check_id for check in (*RUNNING_CHECKS, *USER_CHECKS)}
    # What the image brings along is none of the machine's.
    of_image = {"agent-program-unchanged"} if ready == "container" else set()
    assert wanted - of_image <= {each["check_id"] for each in checks}
    assert found.returncode == 0


def control(checks: list[dict[str, Any]], mode: str, record: Callable[[str, object], None]) -> None:
    """Fail when a check did, and have the isolation matrix know how all of them stood."""
    record("checks", as_looked(checks, mode))
    assert [each for each in checks if each["status"] == "fail"] == []


@pytest.mark.parametrize(
    ("sabotage", "mode"),
    [
        of_mode(mode, row, name=f"{row.check_id} {row.how}")
        for row in SABOTAGE
        if row.session is None
        for mode in row.modes
    ],
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
    judge(sabotage, found)


@pytest.mark.parametrize(
    ("sabotage", "mode"),
    [
        of_mode(mode, row, name=f"{row.check_id} {row.how}")
        for row in SABOTAGE
        if row.session is not None
        for mode in row.modes
    ],
)
def test_a_session_that_is_broken_meanwhile_fails_exactly_its_check(
    person: Person,
    sabotage: Sabotage,
    ready: str,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    assert sabotage.session is not None
    record_property("sabotage", {"check_id": sabotage.check_id, "mode": ready, "how": sabotage.how})
    scene = Scene(person=person, mode=ready, place=tmp_path)
    target = Target(person=person, mode=ready, repository=person.repository(f"broken-{sabotage.check_id}"))
    if sabotage.options:
        target = replace(target, options=(*sabotage.options, "--no-network"))
    argv = target.argv(["/bin/sh", "-c", "echo ready; read _"])
    # A pipe of the test's own: it stays open where the session has to end by itself.
    waits, ends = os.pipe()
    with sabotage.broken(scene) as victim:
        process = victim.spawn(
            argv,
            cwd=target.repository,
            env=scene.environ,
            stdin=waits,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.close(waits)
        try:
            if sabotage.session is not nothing:
                LiveAgent(target, process).wait_for("ready")
            with process, sabotage.session(person, target.repository):
                if sabotage.session is not nothing:
                    os.close(ends)
                stdout, stderr = ended(process)
        finally:
            process.kill()
            # What failed is kept.
            for account in person.worker_accounts():
                if account["project"] == str(target.repository):
                    person.clsecure("cleanup", "--yes", str(account["name"]))
    found = Outcome(argv=tuple(argv), returncode=process.returncode, stdout=stdout, stderr=stderr)
    judge(sabotage, found)


def ended(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Return what a session said when it ended; fail when it goes on."""
    try:
        return process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        said = process.communicate()
        raise AssertionError(f"nobody ended the session: {said}") from None


def judge(sabotage: Sabotage, found: Outcome) -> None:
    """Fail unless exactly those checks failed that had to."""
    failed = failed_of(found.json())
    assert sabotage.explains(set(failed)), failed or found.text + found.errors
    assert found.returncode == 123


def failed_of(document: dict[str, Any]) -> dict[str, str]:
    """Return the checks that failed, with what they saw: of ``verify``, of a session, or of one refused."""
    if "error" in document:
        refused = re.search(r"not what was promised \((.*)\)", document["error"]["brief"])
        return dict.fromkeys(refused[1].split(", ") if refused else (), document["error"]["details"])
    checks = (document.get("verification") or document)["checks"]
    return {each["check_id"]: each["observed"] for each in checks if each["status"] == "fail"}
