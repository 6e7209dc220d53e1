"""Locking: what a recipe comes to today, written down with hashes."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from clsecure.errors import ImageError
from clsecure.images import npm
from clsecure.images.apt import Apt, from_file_name
from clsecure.images.build import Built, build
from clsecure.images.fetch import Progress, Sources, keep_package, sha256
from clsecure.images.lock import (
    WRITER,
    Inputs,
    Lock,
    LockedNpm,
    LockedPackage,
    recipe_hash,
    write_lock,
)
from clsecure.images.mirror import choose_mirror
from clsecure.images.recipe import DATA, Recipe


def resolve(recipe: Recipe, architecture: str, *, sources: Sources, progress: Progress) -> Inputs:
    """Return the newest that the mirror has; what was fetched is in the cache afterwards.

    apt checks the signature of the lists, and each file by them.
    """
    mirror = choose_mirror(sources.mirror)
    if mirror.security is None:
        progress(f"{mirror.main}: nobody knows where its security updates lie; they are left out")
    progress(f"resolving {recipe.name} with {mirror.main}")
    sources.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".lock-", dir=sources.cache) as name:
        apt = Apt(directory=Path(name, "apt"), mirror=mirror, suite=recipe.suite, architecture=architecture)
        apt.prepare()
        files = apt.resolve(recipe.packages, Path(name, "fetched"))
        packages = tuple(_lock_file(file, sources) for file in files)
        thin = tuple(_lock_npm(recipe, architecture, Path(name)))
    # Midnight: locking twice a day with nothing new gives the same lock.
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return Inputs(
        source_date_epoch=int(today.timestamp()),
        writer=WRITER,
        recipe=recipe_hash(recipe),
        packages=packages,
        npm=thin,
    )


def lock_image(
    recipe: Recipe,
    architecture: str,
    *,
    sources: Sources,
    target: Path,
    progress: Progress,
    data: Path = DATA,
) -> tuple[Lock, Built]:
    """Resolve, build, and write the lock with the image that came out."""
    inputs = resolve(recipe, architecture, sources=sources, progress=progress)
    fresh = Lock(image=recipe.name, architecture=architecture, inputs=inputs, outcome=None)
    built = build(recipe, fresh, sources=sources, target=target, progress=progress)
    lock = Lock(image=recipe.name, architecture=architecture, inputs=inputs, outcome=built.outcome)
    write_lock(lock, data)
    return lock, built


def _lock_file(file: Path, sources: Sources) -> LockedPackage:
    name, version, architecture = from_file_name(file)
    digest, size = sha256(file), file.stat().st_size
    keep_package(file, digest, sources)
    return LockedPackage(name=name, version=version, architecture=architecture, sha256=digest, size=size)


def _lock_npm(recipe: Recipe, architecture: str, scratch: Path) -> list[LockedNpm]:
    found = []
    for layer in recipe.layers:
        package = layer.packages.get(architecture)
        if package is None:
            raise ImageError(f"there is no {layer.name} for {architecture}")
        found.append(
            LockedNpm(
                layer=layer.name,
                kind=layer.kind,
                package=package,
                version=layer.version,
                integrity=npm.look_up_integrity(package, layer.version, directory=scratch),
            )
        )
    return found
