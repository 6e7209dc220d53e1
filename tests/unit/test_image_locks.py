"""Recipes and locks: what is committed is whole, and what does not fit is named."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from clsecure.errors import ImageError, UsageError
from clsecure.images.apt import file_name, from_file_name, missing_error
from clsecure.images.build import check_outcome
from clsecure.images.lock import (
    LockedPackage,
    Outcome,
    check_recipe,
    lock_path,
    read_lock,
    write_lock,
)
from clsecure.images.mirror import Mirror, choose_mirror
from clsecure.images.npm import matches
from clsecure.images.prune import prune_cache
from clsecure.images.recipe import DATA, image_names, load_recipe
from clsecure.images.reference import image_reference
from clsecure.images.sbom import bill_of_materials
from tests.support.person import CHECKOUT

ARCHITECTURE = "amd64"
NAMES = image_names()


def test_there_are_the_two_images_and_the_checkout_shows_them() -> None:
    assert NAMES == ("worker", "worker-minimal")
    assert (CHECKOUT / "images").resolve() == DATA


@pytest.mark.parametrize("name", NAMES)
def test_each_lock_belongs_to_its_recipe_and_names_an_image(name: str) -> None:
    lock = read_lock(name, ARCHITECTURE)
    check_recipe(load_recipe(name), lock)
    assert lock.outcome is not None
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", lock.outcome.image)
    assert image_reference(name, ARCHITECTURE).image == lock.outcome.image


@pytest.mark.parametrize("name", NAMES)
def test_everything_in_a_lock_has_a_hash(name: str) -> None:
    inputs = read_lock(name, ARCHITECTURE).inputs
    assert {"tini", "python3", "git", "libc6"} <= {package.name for package in inputs.packages}
    assert all(re.fullmatch(r"[0-9a-f]{64}", package.sha256) for package in inputs.packages)
    assert all(re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", package.integrity) for package in inputs.npm)


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_says_nothing_of_where_it_was_made(name: str) -> None:
    text = lock_path(name, ARCHITECTURE).read_text()
    assert "://" not in text
    assert "/home" not in text


def test_the_worker_holds_the_agent_and_the_minimal_one_does_not() -> None:
    assert image_reference("worker", ARCHITECTURE).agents == ("claude",)
    assert image_reference("worker-minimal", ARCHITECTURE).agents == ()


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    lock = read_lock(name, ARCHITECTURE)
    (tmp_path / name).mkdir()
    written = write_lock(lock, tmp_path)
    assert written.read_bytes() == lock_path(name, ARCHITECTURE).read_bytes()
    assert read_lock(name, ARCHITECTURE, tmp_path) == lock


def test_the_hash_of_a_lock_does_not_depend_on_what_came_out() -> None:
    lock = read_lock("worker-minimal", ARCHITECTURE)
    first = lock.inputs.packages[0]
    other = dataclasses.replace(
        lock.inputs, packages=(dataclasses.replace(first, version="0"), *lock.inputs.packages[1:])
    )
    assert dataclasses.replace(lock, outcome=None).inputs.sha256() == lock.inputs.sha256()
    assert other.sha256() != lock.inputs.sha256()


def test_a_changed_recipe_asks_for_a_new_lock() -> None:
    recipe, lock = load_recipe("worker-minimal"), read_lock("worker-minimal", ARCHITECTURE)
    with pytest.raises(ImageError, match="does not belong to its recipe") as raised:
        check_recipe(dataclasses.replace(recipe, packages=(*recipe.packages, "vim")), lock)
    assert "lock-images --image worker-minimal" in (raised.value.resolution or "")


def test_an_image_that_is_not_locked_for_a_machine_is_named() -> None:
    with pytest.raises(ImageError, match="worker is not locked for riscv64"):
        read_lock("worker", "riscv64")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"image": 1, "architecture": 2, "inputs": []}'])
def test_a_malformed_lock_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "worker").mkdir()
    lock_path("worker", ARCHITECTURE, tmp_path).write_text(text)
    with pytest.raises(ImageError, match="malformed"):
        read_lock("worker", ARCHITECTURE, tmp_path)


@pytest.mark.parametrize("name", ["nothing", "../worker", "agents", ""])
def test_an_unknown_image_is_named_with_those_that_there_are(name: str) -> None:
    with pytest.raises(UsageError) as raised:
        load_recipe(name)
    assert "worker-minimal" in (raised.value.resolution or "")


def test_an_image_that_came_out_otherwise_is_refused_with_the_layer() -> None:
    lock = read_lock("worker", ARCHITECTURE)
    assert lock.outcome is not None
    check_outcome(lock, lock.outcome)
    layers = tuple(
        dataclasses.replace(layer, diff_id="sha256:0") if layer.name == "claude" else layer
        for layer in lock.outcome.layers
    )
    with pytest.raises(ImageError, match="the layer claude differs"):
        check_outcome(lock, Outcome(image="sha256:1", layers=layers))
    with pytest.raises(ImageError, match="labels differ"):
        check_outcome(lock, Outcome(image="sha256:1", layers=lock.outcome.layers))
    with pytest.raises(ImageError, match="names other programs"):
        check_outcome(lock, dataclasses.replace(lock.outcome, agents={"claude": "0" * 64}))


@pytest.mark.parametrize("name", ["worker", "worker-minimal"])
def test_a_lock_names_the_program_of_each_agent(name: str) -> None:
    lock = read_lock(name, ARCHITECTURE)
    assert lock.outcome is not None
    assert set(lock.outcome.agents) == {each.name for each in load_recipe(name).agents}
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in lock.outcome.agents.values())


def test_a_missing_version_names_the_package_the_task_and_the_setting() -> None:
    error = missing_error(["git=1:2.47.3-0+deb13u1"], image="worker", mirror="http://m")
    assert "git=1:2.47.3-0+deb13u1" in error.brief
    for word in ("image_mirror", "CLSECURE_IMAGE_MIRROR", "lock-images --image worker", "snapshot"):
        assert word in (error.resolution or ""), word


@pytest.mark.parametrize("version", ["1:2.47.3-0+deb13u1", "3.0~rc1-1", "20250419+deb13u1"])
def test_names_of_files_are_those_that_apt_gives(version: str) -> None:
    package = LockedPackage(name="a-b", version=version, architecture="all", sha256="", size=0)
    assert from_file_name(Path(file_name(package))) == ("a-b", version, "all")


@pytest.mark.parametrize(
    ("named", "security"),
    [
        ("https://deb.debian.org/debian", "https://deb.debian.org/debian-security"),
        (
            "https://snapshot.debian.org/archive/debian/20260101T000000Z",
            "https://snapshot.debian.org/archive/debian-security/20260101T000000Z",
        ),
        ("https://mirror.example/mirrors/debian-copy", None),
        ("https://mirror.example/linux", None),
    ],
)
def test_security_updates_lie_beside_the_mirror_where_its_name_says_so(
    named: str, security: str | None
) -> None:
    mirror = choose_mirror(named)
    assert mirror == Mirror(main=named, security=security)
    assert ("trixie-security" in mirror.sources("trixie")) == (security is not None)


def test_the_machines_own_mirror_is_used_where_none_is_named() -> None:
    mirror = choose_mirror(None)
    assert mirror.main.endswith("/debian")


def test_a_file_has_the_integrity_that_npm_writes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    right = "sha512-3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05ohkpkqJ0/BqDa6PCOj/uu9RU1EI2Q86A4qmslPpUyknw=="
    assert matches(tmp_path / "x", right)
    assert not matches(tmp_path / "x", right.replace("3a81", "3a82"))
    with pytest.raises(ImageError, match="no hash"):
        matches(tmp_path / "x", "sha1-qZk+NkcGgWq6PiVxeFDCbJzQ2J0=")


@pytest.mark.parametrize("name", NAMES)
def test_the_bill_of_materials_names_everything_and_is_the_same_each_time(name: str) -> None:
    lock = read_lock(name, ARCHITECTURE)
    first = bill_of_materials(lock, suite="trixie")
    assert first == bill_of_materials(lock, suite="trixie")
    document = json.loads(first)
    assert document["bomFormat"] == "CycloneDX"
    found = {(each["name"], each["version"]) for each in document["components"]}
    assert found >= {(package.name, package.version) for package in lock.inputs.packages}
    assert len(found) == len(lock.inputs.packages) + len(lock.inputs.npm)
    assert all(each["hashes"] and each["purl"].startswith("pkg:") for each in document["components"])


def test_pruning_leaves_what_a_lock_names_and_what_is_being_made(tmp_path: Path) -> None:
    reference = image_reference("worker-minimal", ARCHITECTURE)
    package = read_lock("worker-minimal", ARCHITECTURE).inputs.packages[0]
    keep = [reference.archive(tmp_path), tmp_path / "packages" / f"{package.sha256}.deb"]
    keep += [tmp_path / "archives/.build-x", tmp_path / "other/file"]
    drop = [
        tmp_path / "archives/worker-000000000000.tar",
        tmp_path / "packages/0.deb",
        tmp_path / "npm/1.tgz",
    ]
    for file in (*keep, *drop):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert sorted(prune_cache(tmp_path)) == sorted(drop)
    assert all(file.exists() for file in keep)
    shutil.rmtree(tmp_path / "archives")
    assert prune_cache(tmp_path) == []
