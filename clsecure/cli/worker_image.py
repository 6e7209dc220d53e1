"""What is known of the worker images of this machine, without an engine."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from clsecure.model import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """A worker image that a session could take at once.

    :param age: since its lock was made: the age of what is installed in it.
    """

    age: timedelta


def stored_image(name: str, engine: Engine) -> StoredImage | None:
    """Return what is known of an image, None when it is not there."""
    del name, engine  # nothing stores images yet
    return None
