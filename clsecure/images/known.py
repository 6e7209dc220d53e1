"""Which images an engine was seen to have, so that a session need not ask it first.

Only a shortcut: an engine that has lost an image refuses the container, and :func:`forget` follows.
"""

from __future__ import annotations

from pathlib import Path


def remember(state: Path, engine: str, image: str) -> None:
    """Note that an engine has an image.

    :param state: the user's state directory for clsecure.
    :param image: its id.
    """
    place = _place(state, engine, image)
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    place.touch()


def forget(state: Path, engine: str, image: str) -> None:
    """Note that it has it no more."""
    _place(state, engine, image).unlink(missing_ok=True)


def is_known(state: Path, engine: str, image: str) -> bool:
    """Tell whether an engine was seen to have an image."""
    return _place(state, engine, image).exists()


def _place(state: Path, engine: str, image: str) -> Path:
    return state / "images" / engine / image.removeprefix("sha256:")
