"""What is known of the worker images of this machine, without asking an engine."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta

from clsecure.errors import ImageError
from clsecure.model import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """A worker image that a session could take at once, or after it was loaded.

    :param age: of the packages in it, since they were locked.
    """

    age: timedelta


def stored_image(name: str, engine: Engine) -> StoredImage | None:
    """Return what is known of an image, None when it would have to be built."""
    from clsecure.images.fetch import cache_directory
    from clsecure.images.known import PODMAN, docker_key, is_known
    from clsecure.images.lock import read_lock
    from clsecure.images.reference import image_reference
    from clsecure.machine.containers import docker_socket
    from clsecure.session.store import state_directory

    try:
        reference = image_reference(name)
        locked = read_lock(name, reference.architecture).inputs.source_date_epoch
    except ImageError:
        return None
    built = reference.archive(cache_directory(os.environ)).is_file()
    key = PODMAN if engine is Engine.PODMAN else docker_key(f"unix://{docker_socket()}")
    if not (built or is_known(state_directory(), key, reference.image)):
        return None
    return StoredImage(age=timedelta(seconds=max(time.time() - locked, 0)))
