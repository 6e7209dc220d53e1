"""The lock file of an image: each input by its hash, and the image that comes of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clsecure.errors import ImageError
from clsecure.images.recipe import DATA, Kind, Recipe

WRITER = 1
"""Goes up whenever our own code writes the same inputs in another way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedPackage:
    """One package of Debian.

    :param sha256: of the .deb, hexadecimal.
    :param size: bytes of the .deb.
    """

    name: str
    version: str
    architecture: str
    sha256: str
    size: int

    @property
    def pin(self) -> str:
        """What apt is asked for."""
        return f"{self.name}={self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedNpm:
    """One package of npm.

    :param layer: the agent or tool that it is for.
    :param integrity: as npm writes it: the name of the hash, a dash, base64.
    """

    layer: str
    kind: Kind
    package: str
    version: str
    integrity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that decides over an image.

    :param source_date_epoch: seconds; nothing in the image is younger.
    :param recipe: hash of what the recipe says, so that a change of it is noticed.
    """

    source_date_epoch: int
    writer: int
    recipe: str
    packages: tuple[LockedPackage, ...]
    npm: tuple[LockedNpm, ...]

    def sha256(self) -> str:
        """Return the hash by which image labels name the lock; the outcome is not part of it."""
        return hashlib.sha256(canonical(dataclasses.asdict(self))).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedLayer:
    """A layer as it must come out.

    :param diff_id: ``sha256:`` and the hash of the uncompressed layer.
    :param size: bytes, uncompressed.
    """

    name: str
    diff_id: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The image that comes of the inputs.

    :param image: the image's id: ``sha256:`` and the hash of its configuration.
    :param agents: name of each agent to the sha256 of its program, hexadecimal.
    """

    image: str
    layers: tuple[LockedLayer, ...]
    agents: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """A lock file.

    :param outcome: None until the image was built for the first time.
    """

    image: str
    architecture: str
    inputs: Inputs
    outcome: Outcome | None


def canonical(value: object) -> bytes:
    """Return JSON that is the same bytes for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def recipe_hash(recipe: Recipe) -> str:
    """Return the hash of what a recipe says, words for people left out."""
    table = dataclasses.asdict(recipe)
    del table["description"]
    return hashlib.sha256(canonical(table)).hexdigest()


def lock_path(name: str, architecture: str, data: Path = DATA) -> Path:
    """Return where the lock of an image lies."""
    return data / name / f"lock.{architecture}.json"


def read_lock(name: str, architecture: str, data: Path = DATA) -> Lock:
    """Read a lock file.

    :raises ImageError: there is none for this architecture, or it is malformed.
    """
    file = lock_path(name, architecture, data)
    try:
        table = json.loads(file.read_bytes())
        return Lock(
            image=table["image"],
            architecture=table["architecture"],
            inputs=_inputs(table["inputs"]),
            outcome=table["outcome"] and _outcome(table["outcome"]),
        )
    except FileNotFoundError as error:
        raise ImageError(
            f"the image {name} is not locked for {architecture}",
            details=f"{file} does not exist",
            resolution=f"in a checkout: ./dev invoke lock-images --image {name}",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImageError(f"the lock of the image {name} is malformed", details=f"{file}: {error}") from error


def write_lock(lock: Lock, data: Path = DATA) -> Path:
    """Write a lock file, one package a line, and return where."""
    file = lock_path(lock.image, lock.architecture, data)
    file.write_text(_text(dataclasses.asdict(lock)), encoding="ascii")
    return file


def check_recipe(recipe: Recipe, lock: Lock) -> None:
    """Refuse a lock that was made from another recipe, or by another writer.

    :raises ImageError: it was.
    """
    if lock.inputs.recipe != recipe_hash(recipe) or lock.inputs.writer != WRITER:
        raise ImageError(
            f"the lock of the image {recipe.name} does not belong to its recipe",
            resolution=f"in a checkout: ./dev invoke lock-images --image {recipe.name}",
        )


def _inputs(table: dict[str, Any]) -> Inputs:
    return Inputs(
        source_date_epoch=int(table["source_date_epoch"]),
        writer=int(table["writer"]),
        recipe=table["recipe"],
        packages=tuple(LockedPackage(**each) for each in table["packages"]),
        npm=tuple(LockedNpm(**{**each, "kind": Kind(each["kind"])}) for each in table["npm"]),
    )


def _outcome(table: dict[str, Any]) -> Outcome:
    return Outcome(
        image=table["image"],
        layers=tuple(LockedLayer(**each) for each in table["layers"]),
        agents=dict(table.get("agents", {})),
    )


def _text(value: Any, indent: str = "") -> str:  # noqa: ANN401  # JSON
    """Write lists of flat objects an object a line: a change of one package is a change of one line."""
    inner = indent + "  "
    if isinstance(value, dict) and any(isinstance(each, (dict, list, tuple)) for each in value.values()):
        rows = [f"{inner}{json.dumps(key)}: {_text(each, inner)}" for key, each in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}" + ("" if indent else "\n")
    if isinstance(value, (list, tuple)) and value:
        rows = [inner + _text(each, inner) for each in value]
        return "[\n" + ",\n".join(rows) + f"\n{indent}]"
    return json.dumps(value)
