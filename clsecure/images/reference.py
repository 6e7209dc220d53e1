"""From the name of an image to the one image that is meant: the id in its lock, never a tag."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from clsecure.errors import ImageError
from clsecure.images.archive import tag
from clsecure.images.lock import read_lock
from clsecure.images.recipe import ARCHITECTURES, DATA


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """An image by its content.

    :param name: of its recipe.
    :param image: its id in every engine: ``sha256:`` and the hash of its configuration.
    :param agents: names of the agents in it.
    """

    name: str
    architecture: str
    image: str
    agents: tuple[str, ...]

    @property
    def tag(self) -> str:
        """How people see it in an engine's list."""
        return tag(self.name, self.image)

    def archive(self, cache: Path) -> Path:
        """Return where the built image lies, or would."""
        return archive_place(cache, self.name, self.image)


def archive_place(cache: Path, name: str, image: str) -> Path:
    """Return where the archive of an image lies, or would; an older one's as well."""
    return cache / "archives" / f"{name}-{image.removeprefix('sha256:')[:12]}.tar"


def machine_architecture() -> str:
    """Return what Debian calls this machine.

    :raises ImageError: there are no images for it.
    """
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise ImageError(f"there are no worker images for {machine}")
    return ARCHITECTURES[machine]


def image_reference(name: str, architecture: str | None = None, data: Path = DATA) -> ImageRef:
    """Return the image that a name stands for.

    :param architecture: this machine's without one.
    :raises ImageError: it is not locked, or was never built.
    """
    lock = read_lock(name, architecture or machine_architecture(), data)
    if lock.outcome is None:
        raise ImageError(
            f"the lock of the image {name} names no image",
            resolution=f"in a checkout: ./dev invoke lock-images --image {name}",
        )
    return ImageRef(
        name=name,
        architecture=lock.architecture,
        image=lock.outcome.image,
        agents=tuple(each.layer for each in lock.inputs.npm if each.kind == "agent"),
    )
