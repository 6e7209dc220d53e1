"""What settings say of containers: who may say what, and what ``auto`` keeps of the others' words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clsecure.errors import UsageError
from clsecure.model import DockerAccess, Engine, IsolationMode
from clsecure.settings import files
from clsecure.settings.model import Settings, load
from clsecure.settings.project import with_project
from clsecure.settings.sources import Entry, Layer, Source, gather
from clsecure.settings.values.isolation import AutoMode


@pytest.fixture(autouse=True)
def _machine_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the machine's files belong to whoever runs the tests."""
    monkeypatch.setattr(files, "SYSTEM_OWNER", os.geteuid())


def flag(key: str, text: str) -> Entry:
    return Entry(key=key, text=text, source=Source(layer=Layer.FLAG, where=f"--{key}"))


def settings(
    place: Path, *flags: Entry, own: str = "", project: str = "", machine: str = "", **environ: str
) -> Settings:
    """Return what the layers come to; ``machine`` is its config.toml."""
    for name, text in (("home/.clsecurerc", own), ("repo/.clsecure/config", project)):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    system = place / "etc"
    system.mkdir(mode=0o755, exist_ok=True)
    (system / "config.toml").write_text(machine)
    (system / "config.toml").chmod(0o644)
    layers = gather(flags, environ={"HOME": str(place / "home"), **environ}, system=system)
    return load(with_project(layers, place / "repo"))


def test_a_flag_alone_gives_the_machines_docker(tmp_path: Path) -> None:
    assert settings(tmp_path, flag("docker", "host")).docker is DockerAccess.HOST
    for said in ({"own": "docker = host\n"}, {"CLSECURE_DOCKER": "host"}, {"machine": "docker = 'host'\n"}):
        with pytest.raises(UsageError) as caught:
            settings(tmp_path, **said)
        assert "say it each time: --allow-docker=host" in caught.value.brief


def test_the_machines_docker_in_a_file_is_an_error_also_where_a_flag_decides(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="as good as root"):
        settings(tmp_path, flag("docker", "none"), own="docker = host\n")


@pytest.mark.parametrize("word", ["own", "true", "host"])
def test_a_repository_gives_no_docker(tmp_path: Path, word: str) -> None:
    found = settings(tmp_path, project=f"docker = {word}\n")
    assert found.docker is DockerAccess.NONE
    [warning] = found.warnings
    assert "--allow-docker" in warning


def test_a_repository_takes_docker_away_but_not_from_a_flag(tmp_path: Path) -> None:
    found = settings(tmp_path, own="docker = true\n", project="docker = false\n")
    assert (found.docker, found.provenance("docker").layer) == (DockerAccess.NONE, Layer.PROJECT)
    assert len(found.notes) == 1
    assert settings(tmp_path, flag("docker", "own"), project="docker = no\n").docker is DockerAccess.OWN


def test_a_ceiling_of_the_machines_bounds_the_flag(tmp_path: Path) -> None:
    ceiling = "[enforce]\ndocker = 'own'\n"
    assert settings(tmp_path, flag("docker", "own"), machine=ceiling).docker is DockerAccess.OWN
    with pytest.raises(UsageError, match="more than this machine allows"):
        settings(tmp_path, flag("docker", "host"), machine=ceiling)


def test_images_of_all_layers_come_together(tmp_path: Path) -> None:
    found = settings(
        tmp_path, flag("docker_images", "b"), own="docker_images = a:1, b\n", machine="image='x'"
    )
    assert (found.docker_images, found.image) == (("b", "a:1"), "x")


def test_the_first_image_that_the_machine_allows_stands_in_for_the_default(tmp_path: Path) -> None:
    ceiling = "[enforce]\nimages = ['corp', 'other']\nengine = 'docker'\n"
    found = settings(tmp_path, machine=ceiling)
    assert (found.image, found.engine, found.warnings) == ("corp", Engine.DOCKER, ())
    assert settings(tmp_path, flag("image", "other"), machine=ceiling).image == "other"
    with pytest.raises(UsageError, match="more than this machine allows"):
        settings(tmp_path, flag("engine", "podman"), machine=ceiling)


def least(found: Settings) -> IsolationMode:
    assert isinstance(found.mode, AutoMode)
    return found.mode.at_least


def test_auto_keeps_to_what_the_repository_and_the_machine_ask_for_at_least(tmp_path: Path) -> None:
    assert least(settings(tmp_path, own="mode = auto\n")) is IsolationMode.USER
    found = settings(tmp_path, own="mode = auto\n", project="mode = namespace\n")
    assert least(found) is IsolationMode.NAMESPACE
    assert "at least namespace" in found.notes[0]
    found = settings(tmp_path, flag("mode", "auto"), machine="[enforce]\nmode = 'container'\n")
    assert least(found) is IsolationMode.CONTAINER
    found = settings(
        tmp_path, own="mode = auto\n", project="mode = user\n", machine="[enforce]\nmode = 'namespace'\n"
    )
    assert least(found) is IsolationMode.NAMESPACE


def test_a_flag_that_says_auto_stands_against_the_repository(tmp_path: Path) -> None:
    found = settings(tmp_path, flag("mode", "auto"), project="mode = container\n")
    assert least(found) is IsolationMode.USER
    assert "stands against the repository" in found.notes[0]


def test_a_repository_that_says_auto_weakens_nothing(tmp_path: Path) -> None:
    found = settings(tmp_path, project="mode = auto\n")
    assert found.mode is IsolationMode.NAMESPACE
    assert "--mode" in found.warnings[0]
