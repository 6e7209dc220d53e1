"""The engine's image of container sessions: one that is lost comes again; save and prune with podman."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from clsecure.images.archive import read_archive
from clsecure.images.docker_store import DockerStore
from tests.support.built_images import Image, give_packages, given_to, small_archive
from tests.support.engines import docker_engine
from tests.support.hostile import Target
from tests.support.person import SYSTEM_PATH, Person
from tests.support.terminals import answer, at_terminal, ended

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("gvisor")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Losing:
    """Sessions whose engine can be made to lose the image."""

    target: Target
    image: Image
    lose: Callable[[], None]

    @property
    def cached(self) -> Path:
        """The archive in the person's cache."""
        (found,) = (self.target.person.home / ".cache/clsecure/images/archives").glob("worker-minimal-*.tar")
        return found


@pytest.fixture(scope="module")
def minimal(person: Person) -> Iterator[Image]:
    with given_to(person, "worker-minimal") as image:
        yield image


@pytest.fixture(scope="module")
def docker(minimal: Image) -> Iterator[str]:
    del minimal
    with docker_engine() as address:
        socket = Path(address.removeprefix("unix://"))
        socket.chmod(0o666)
        socket.parent.chmod(0o711)
        yield address


@pytest.fixture(scope="module", params=["podman", "docker"])
def losing(request: pytest.FixtureRequest, person: Person, minimal: Image) -> Losing:
    engine, environ = request.param, {}
    if engine == "docker":
        environ["DOCKER_HOST"] = request.getfixturevalue("docker")

    def lose() -> None:
        if engine == "docker":
            DockerStore(environ["DOCKER_HOST"]).remove(minimal.image)
        else:
            # As clsecure setup --remove leaves it.
            shutil.rmtree(f"/var/lib/clsecure/images/{person.uid}")

    options = ("--agent", "demo", "--no-network", "--image", "worker-minimal", "--engine", engine)
    target = Target(
        person=person,
        mode="container",
        repository=person.repository(f"lost-{engine}"),
        options=options,
        environ=environ,
    )
    return Losing(target=target, image=minimal, lose=lose)


def test_a_new_session_and_a_kept_ones_import_get_the_image_again(losing: Losing) -> None:
    target = losing.target
    target.attack("echo made >made", finish="keep")
    losing.lose()
    (kept,) = (
        each["session_id"]
        for each in target.person.clsecure("list", "--output", "json").check().json()["sessions"]
        if each["project"] == str(target.repository)
    )
    done = target.person.clsecure("import", kept, cwd=target.repository, env=target.environ).check()
    assert "has lost the image worker-minimal" in done.errors
    branches = target.person.git(target.repository, "branch", "--list", "--format=%(refname:short)").split()
    (branch,) = (each for each in branches if each != "main")
    assert target.person.git(target.repository, "show", f"{branch}:made") == "made"
    losing.lose()
    done = target.attack("echo again")
    assert done.said == "again\n\n"
    assert "has lost the image worker-minimal" in done.outcome.errors


def test_an_image_without_an_archive_is_named_with_what_builds_it(losing: Losing) -> None:
    target = losing.target
    target.attack("true")
    link = losing.cached
    archive = link.readlink()
    losing.lose()
    link.unlink()
    try:
        refused = target.person.run(target.argv(["true"]), cwd=target.repository, env=target.environ)
        assert refused.returncode == 125
        error = refused.json()["error"]
        assert "has lost the image worker-minimal" in error["brief"]
        assert "clsecure images build worker-minimal" in error["resolution"]
    finally:
        target.person.run(["ln", "-s", str(archive), str(link)]).check()
    target.attack("true")


def test_what_one_docker_was_seen_to_have_is_not_believed_of_another(losing: Losing) -> None:
    if "DOCKER_HOST" not in losing.target.environ:
        pytest.skip("podman's store is one for each user")
    losing.target.attack("true")
    with docker_engine() as other:
        Path(other.removeprefix("unix://")).chmod(0o666)
        Path(other.removeprefix("unix://")).parent.chmod(0o711)
        person = losing.target.person
        done = person.run(
            losing.target.argv(["true"]), cwd=losing.target.repository, env={"DOCKER_HOST": other}
        ).check()
        assert "has lost" not in done.errors


def test_podmans_store_is_saved_from_and_pruned_by_the_command(losing: Losing, tmp_path: Path) -> None:
    target, image = losing.target, losing.image
    if losing.target.environ:
        pytest.skip("docker's: test_images.py")
    person = target.person
    target.attack("true")
    link = losing.cached
    archive = link.readlink()
    link.unlink()
    try:
        person.clsecure("images", "save", "worker-minimal", "saved.tar").check()
        assert read_archive(person.home / "saved.tar").image == image.image
    finally:
        person.run(["ln", "-s", str(archive), str(link)]).check()
    old = small_archive(tmp_path / "tiny")
    shutil.copy(old, person.home / "old.tar")
    (person.home / "old.tar").chmod(0o644)
    person.clsecure("images", "load", "old.tar").check()
    pruned = person.clsecure("images", "prune", "--output", "json").check().json()
    assert pruned["removed"]["podman"] == [read_archive(old).image]
    listed = person.clsecure("images", "list", "--output", "json").check().json()["images"]
    assert [each["loaded"] for each in listed if each["name"] == "worker-minimal"] == [["podman"]]


def test_an_image_that_is_missing_is_built_when_the_person_says_so(losing: Losing) -> None:
    target = losing.target
    if target.environ:
        pytest.skip("the question does not depend on the engine")
    if shutil.which("newuidmap", path=SYSTEM_PATH) is None:
        pytest.skip("left out: not installed: newuidmap")
    person = target.person
    target.attack("true")
    give_packages(person, losing.image)
    link = losing.cached
    archive = link.readlink()
    losing.lose()
    link.unlink()
    shutil.rmtree(person.home / ".local/state/clsecure/images")
    argv = person.clsecure_argv(
        *("--mode", "container", *target.options, "--on-finish", "discard", "--", "true")
    )
    try:
        with at_terminal(person, argv, cwd=target.repository) as child:
            answer(child, "Build it now", "n", then="the image worker-minimal is not there")
            assert ended(child) == 125
        assert not list(link.parent.glob("worker-minimal-*.tar"))
        with at_terminal(person, argv, cwd=target.repository) as child:
            answer(child, "Build it now", "y", then="building the image worker-minimal")
            child.expect(pexpect.EOF, timeout=280)
            assert ended(child) == 0
        assert not link.is_symlink()
        assert read_archive(link).image == losing.image.image
    finally:
        link.unlink(missing_ok=True)
        person.run(["ln", "-s", str(archive), str(link)]).check()
