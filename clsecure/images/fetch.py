"""The files that a lock names, from the cache or from where they come from; checked each time."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from clsecure.errors import ImageError
from clsecure.images import npm
from clsecure.images.apt import Apt, file_name, missing_error
from clsecure.images.lock import Lock, LockedNpm, LockedPackage
from clsecure.images.mirror import choose_mirror

Progress = Callable[[str], None]
"""Told what happens, a line each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where inputs come from.

    :param cache: a directory of this user's, for what was fetched before; files in it are checked each time.
    :param mirror: of Debian, as the user named it; None for the machine's own.
    """

    cache: Path
    mirror: str | None = None


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Return where built images and fetched packages lie."""
    configured = environ.get("XDG_CACHE_HOME", "")
    base = (
        Path(configured)
        if configured.startswith("/")
        else Path(environ.get("HOME", "/nonexistent"), ".cache")
    )
    return base / "clsecure" / "images"


def fetch_packages(
    lock: Lock, sources: Sources, *, suite: str, progress: Progress
) -> dict[LockedPackage, Path]:
    """Return each package with its .deb.

    :raises ImageError: the mirror lacks one of them, or has another under its name.
    """
    store = sources.cache / "packages"
    store.mkdir(parents=True, exist_ok=True)
    files = {package: store / f"{package.sha256}.deb" for package in lock.inputs.packages}
    wanted = [package for package, file in files.items() if not _is(file, package.sha256)]
    if not wanted:
        return files
    mirror = choose_mirror(sources.mirror)
    size = sum(package.size for package in wanted) / 1e6
    progress(f"fetching {len(wanted)} packages ({size:.0f} MB) from {mirror.main}")
    with _beside(store) as scratch:
        apt = Apt(directory=scratch / "apt", mirror=mirror, suite=suite, architecture=lock.architecture)
        apt.prepare()
        apt.fetch(wanted, scratch / "fetched", image=lock.image)
        for package in wanted:
            fetched = scratch / "fetched" / file_name(package)
            if not fetched.exists():
                raise missing_error([package.pin], image=lock.image, mirror=mirror.main)
            if not _is(fetched, package.sha256):
                raise ImageError(
                    f"the mirror's {package.pin} is not the file that the lock names",
                    details=f"mirror: {mirror.main}\nlocked sha256: {package.sha256}",
                    resolution="if that package was rebuilt, lock anew, in a checkout: "
                    f"./dev invoke lock-images --image {lock.image}",
                )
            fetched.replace(files[package])
    return files


def fetch_npm(package: LockedNpm, sources: Sources, *, progress: Progress) -> Path:
    """Return the archive of an npm package.

    :raises ImageError: npm can't fetch it, or what it fetched has another hash.
    """
    store = sources.cache / "npm"
    store.mkdir(parents=True, exist_ok=True)
    file = store / f"{hashlib.sha256(package.integrity.encode()).hexdigest()}.tgz"
    if file.exists() and npm.matches(file, package.integrity):
        return file
    progress(f"fetching {package.package} {package.version}")
    with _beside(store) as scratch:
        fetched = npm.fetch(package, scratch)
        if not npm.matches(fetched, package.integrity):
            raise ImageError(
                f"what npm has as {package.package}@{package.version} is not what the lock names",
                details=f"locked: {package.integrity}",
            )
        fetched.replace(file)
    return file


def keep_package(file: Path, digest: str, sources: Sources) -> None:
    """Put a .deb into the cache."""
    store = sources.cache / "packages"
    store.mkdir(parents=True, exist_ok=True)
    file.replace(store / f"{digest}.deb")


class _Scratch(tempfile.TemporaryDirectory[str]):
    def __enter__(self) -> Path:  # type: ignore[override]  # a path, not its name
        return Path(super().__enter__())


def _beside(store: Path) -> AbstractContextManager[Path]:
    """Make a directory from which a file goes into the store by one rename."""
    return _Scratch(prefix=".fetch-", dir=store)


def sha256(file: Path) -> str:
    """Return the hash of a file, hexadecimal."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _is(file: Path, digest: str) -> bool:
    try:
        return sha256(file) == digest
    except OSError:
        return False
