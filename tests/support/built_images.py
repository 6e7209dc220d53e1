"""Worker images for tests: each is built once for all test processes of a run.

The packages come from the cache of whoever runs the tests, or from the mirror. Where the mirror has no
locked version any more, the image is locked afresh in a copy, and the tests say so: ``Image.afresh``. There
is one copy for all images: CLSECURE_IMAGES can name one directory only.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clsecure.errors import ImageError
from clsecure.images.archive import configuration, write_archive
from clsecure.images.build import build
from clsecure.images.fetch import Sources, cache_directory
from clsecure.images.layers import files_layer
from clsecure.images.lock import Lock, read_lock
from clsecure.images.recipe import DATA, load_recipe
from clsecure.images.reference import machine_architecture
from clsecure.images.resolve import lock_image
from tests.support.locks import open_lock
from tests.support.person import Person

RUN = os.environ.get("CLSECURE_TEST_RUN") or f"cst{os.getppid():06d}"
"""Names what belongs to this run of the tests."""

_PREFIX = "/var/tmp/clsecure-test-images-"
_uses = itertools.count()
_SHARED = Path(f"{_PREFIX}{RUN}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A built image.

    :param data: where its recipe and lock are: the checkout's, or a copy with a fresh lock.
    :param afresh: why it was locked afresh; empty when it is the locked image.
    """

    name: str
    image: str
    archive: Path
    data: Path
    afresh: str

    @property
    def lock(self) -> Lock:
        """The lock that it was built from."""
        return read_lock(self.name, machine_architecture(), self.data)


def sources() -> Sources:
    """Return where packages come from, as for the one who runs the tests."""
    return Sources(cache=cache_directory(os.environ), mirror=os.environ.get("CLSECURE_IMAGE_MIRROR"))


@contextlib.contextmanager
def built_image(name: str) -> Iterator[Image]:
    """Yield the image, built by the first who asks; the last who leaves removes it."""
    # One of each use: a process may hold the same image twice.
    holder = _SHARED / f"{name}.holders" / f"{os.getpid()}.{next(_uses)}"
    with open_lock(_SHARED, 0o777):
        holder.parent.mkdir(exist_ok=True)
        holder.touch()
        report = _SHARED / f"{name}.json"
        if not report.exists():
            image, data, afresh = _build(name)
            report.write_text(json.dumps({"image": image, "data": str(data), "afresh": afresh}))
        said = json.loads(report.read_text())
    try:
        yield Image(
            name=name,
            image=said["image"],
            archive=_SHARED / f"{name}.tar",
            data=Path(said["data"]),
            afresh=said["afresh"],
        )
    finally:
        with open_lock(_SHARED, 0o777):
            holder.unlink()
            if not _holders("*"):
                shutil.rmtree(_SHARED)


def give_packages(person: Person, image: Image, cache: str = ".cache") -> None:
    """Put an image's packages into a person's cache."""
    place = person.home / cache / "clsecure/images/packages"
    person.run(["mkdir", "-p", str(place)]).check()
    for package in image.lock.inputs.packages:
        shutil.copy(sources().cache / "packages" / f"{package.sha256}.deb", place)


def small_archive(place: Path) -> Path:
    """Write an archive like ours, of two small layers, into a directory that is made; return where it is."""
    place.mkdir()
    data = random.Random(5).randbytes(1 << 20)
    layers = [files_layer(name, {f"usr/{name}": data}, place / name, epoch=0) for name in ("base", "sbom")]
    config = configuration(layers, architecture="amd64", epoch=0, environment={}, labels={})
    write_archive(place / "tiny.tar", name="tiny", config=config, layers=layers)
    return place / "tiny.tar"


def sweep(run: str) -> None:
    """Remove what a killed run left."""
    shutil.rmtree(f"{_PREFIX}{run}", ignore_errors=True)


def _build(name: str) -> tuple[str, Path, str]:
    target = _SHARED / f"{name}.tar"
    try:
        built = build(
            load_recipe(name),
            read_lock(name, machine_architecture()),
            sources=sources(),
            target=target,
            progress=_quiet,
        )
    except ImageError as error:
        if not error.brief.startswith("the mirror"):
            raise
        copy = _SHARED / "data"
        if not copy.exists():
            shutil.copytree(DATA, copy)
        _, built = lock_image(
            load_recipe(name, copy),
            machine_architecture(),
            sources=sources(),
            target=target,
            progress=_quiet,
            data=copy,
        )
        return built.outcome.image, copy, f"{error.brief} {error.details}"
    return built.outcome.image, DATA, ""


def _quiet(_: str) -> None:
    pass


def _holders(name: str) -> list[Path]:
    """Return who uses an image; a process that is gone does not count."""
    return [each for each in _SHARED.glob(f"{name}.holders/*") if Path("/proc", each.stem).exists()]


@contextlib.contextmanager
def given_to(person: Person, name: str) -> Iterator[Image]:
    """Put a built image into a person's cache, from where the first session that needs it loads it."""
    with built_image(name) as image:
        place = person.home / ".cache/clsecure/images/archives"
        person.run(["mkdir", "-p", str(place)]).check()
        link = place / f"{name}-{image.image.removeprefix('sha256:')[:12]}.tar"
        if not link.is_symlink():
            link.symlink_to(image.archive)
        before = os.environ.get("CLSECURE_IMAGES")
        if image.afresh:
            os.environ["CLSECURE_IMAGES"] = str(image.data)
        try:
            yield image
        finally:
            # The copy goes with the last image of it.
            if before is None:
                os.environ.pop("CLSECURE_IMAGES", None)
            else:
                os.environ["CLSECURE_IMAGES"] = before
