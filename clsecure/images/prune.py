"""What of the cache no lock names any more, and no session was started with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from clsecure.errors import ImageError
from clsecure.images.lock import read_lock
from clsecure.images.recipe import DATA, image_names
from clsecure.images.reference import archive_place, image_reference, machine_architecture


def prune_cache(cache: Path, data: Path = DATA, *, kept: Mapping[str, str]) -> list[Path]:
    """Remove archives of older images, and packages that no lock needs; return what went.

    :param kept: ids of further images, each with its name: what sessions of the user's were started with.
    """
    architecture = machine_architecture()
    archives = {archive_place(cache, name, image) for image, name in kept.items()}
    wanted = archives | {each.with_suffix(".cdx.json") for each in archives}
    for name in image_names(data):
        try:
            lock = read_lock(name, architecture, data)
            archive = image_reference(name, architecture, data).archive(cache)
        except ImageError:
            continue  # not locked for this machine: nothing of it is here
        wanted |= {archive, archive.with_suffix(".cdx.json")}
        wanted |= {cache / "packages" / f"{package.sha256}.deb" for package in lock.inputs.packages}
        wanted |= {
            cache / "npm" / f"{hashlib.sha256(package.integrity.encode()).hexdigest()}.tgz"
            for package in lock.inputs.npm
        }
    gone = []
    for place in ("archives", "packages", "npm"):
        if not (cache / place).is_dir():
            continue
        for file in sorted((cache / place).iterdir()):
            # What begins with a dot is being made by somebody.
            if file not in wanted and not file.name.startswith(".") and file.is_file():
                file.unlink()
                gone.append(file)
    return gone
