"""Which images an engine was seen to have, so that a session need not ask it first.

Only a shortcut: an engine that has lost an image refuses the container, and :func:`forget` follows
(``LocalBackend.image_lost``).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

PODMAN = "podman"
"""The key of the user's store, of which there is one."""


def docker_key(base_url: str) -> str:
    """Return what a docker is known by: where it listens, since a user may have several."""
    path = base_url.removeprefix("unix://")
    place = base_url if path == base_url else os.path.realpath(path)
    return f"docker-{hashlib.sha256(place.encode()).hexdigest()[:12]}"


def remember(state: Path, key: str, image: str) -> None:
    """Note that an engine has an image.

    :param state: the user's state directory for clsecure.
    :param key: of the engine.
    :param image: its id.
    """
    place = _place(state, key, image)
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    place.touch()


def forget(state: Path, key: str, image: str) -> None:
    """Note that it has it no more."""
    _place(state, key, image).unlink(missing_ok=True)


def is_known(state: Path, key: str, image: str) -> bool:
    """Tell whether an engine was seen to have an image."""
    return _place(state, key, image).exists()


def _place(state: Path, key: str, image: str) -> Path:
    return state / "images" / key / image.removeprefix("sha256:")
