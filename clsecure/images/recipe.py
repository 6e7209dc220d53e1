"""What an image is made of, as people write it: ``recipe.toml``, and a file for each agent and tool."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from clsecure.errors import ImageError, UsageError

DATA = Path(os.environ.get("CLSECURE_IMAGES") or Path(__file__).resolve().parent / "data")
"""The recipes and locks: part of the package, so that an installed copy has them too; or the user's own."""

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""What ``uname`` calls a machine, and what Debian and container engines call it."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


class Kind(StrEnum):
    """What a layer from npm is for."""

    AGENT = "agent"
    TOOL = "tool"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFile:
    """One file of an npm package, or a directory where both names end in a slash, and where it goes."""

    source: str
    target: str
    executable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecipe:
    """A thin layer: files of one npm package.

    :param packages: architecture to the package's name.
    :param links: symbolic links, path to target.
    """

    name: str
    kind: Kind
    version: str
    packages: Mapping[str, str]
    files: tuple[LayerFile, ...]
    links: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """An image.

    :param suite: of Debian.
    :param packages: by name; their dependencies and the essential packages come along.
    :param environment: what a container starts with.
    """

    name: str
    description: str
    suite: str
    packages: tuple[str, ...]
    layers: tuple[LayerRecipe, ...]
    environment: Mapping[str, str]

    @property
    def agents(self) -> tuple[LayerRecipe, ...]:
        """The layers that are agents."""
        return tuple(layer for layer in self.layers if layer.kind is Kind.AGENT)


def image_names(data: Path = DATA) -> tuple[str, ...]:
    """Return the names of all images there are recipes for."""
    return tuple(sorted(file.parent.name for file in data.glob("*/recipe.toml")))


def load_recipe(name: str, data: Path = DATA) -> Recipe:
    """Read the recipe of an image.

    :raises UsageError: there is no such image.
    :raises ImageError: the recipe is malformed.
    """
    if name not in image_names(data):
        raise UsageError(
            f"there is no image {name[:64]!r}", resolution=f"one of: {', '.join(image_names(data))}"
        )
    file = data / name / "recipe.toml"
    table = _read(file)
    try:
        return Recipe(
            name=name,
            description=str(table["description"]),
            suite=str(table["suite"]),
            packages=tuple(map(str, table["packages"])),
            layers=(
                *(_layer(tool, Kind.TOOL, data) for tool in table["tools"]),
                *(_layer(agent, Kind.AGENT, data) for agent in table["agents"]),
            ),
            environment=dict(table["environment"]),
        )
    except (KeyError, TypeError) as error:
        raise ImageError(f"the recipe of {name} is malformed", details=f"{file}: {error}") from error


def _layer(name: str, kind: Kind, data: Path) -> LayerRecipe:
    if not _NAME.fullmatch(name):
        raise ImageError(f"{name[:64]!r} is no name of an {kind}")
    table = _read(data / f"{kind}s" / f"{name}.toml")
    return LayerRecipe(
        name=name,
        kind=kind,
        version=str(table["version"]),
        packages=dict(table["package"]),
        files=tuple(LayerFile(**each) for each in table["files"]),
        links=dict(table.get("links", {})),
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ImageError(f"{file} can't be read", details=str(error)) from error
