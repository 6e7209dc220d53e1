"""``clsecure images ACTION``: the images that container sessions run, and the engines that have them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, assert_never

from clsecure.cli import render
from clsecure.cli.actions import ImagesAction
from clsecure.cli.options import ImagesOptions, Invocation
from clsecure.errors import BackendUnavailableError, HelperError, ImageError, UsageError
from clsecure.images.fetch import cache_directory
from clsecure.images.known import forget, remember
from clsecure.images.recipe import image_names, load_recipe
from clsecure.images.reference import ImageRef, image_reference
from clsecure.images.store import load_checked, ours
from clsecure.model import Engine
from clsecure.session.store import Store
from clsecure.session.words import human_size, number
from clsecure.settings.values.output import OutputFormat

if TYPE_CHECKING:
    from clsecure.images.store import ImageStore
    from clsecure.session.ui import Ui

DEFAULT_IMAGE = "worker"
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """One line of ``images list``, and one object of its JSON (``docs/images.schema.json``).

    :param image: the locked id.
    :param archive: where the built image lies; None when it was not built here.
    :param size: bytes of that file.
    :param loaded: engines that have it.
    """

    name: str
    image: str
    agents: tuple[str, ...]
    archive: Path | None
    size: int | None
    loaded: tuple[str, ...]


def execute(invocation: Invocation, ui: Ui) -> int:
    """Do one of the actions."""
    options = invocation.options
    assert isinstance(options, ImagesOptions)  # noqa: S101  # the dispatcher's word
    as_json = invocation.output is OutputFormat.JSON
    cache = cache_directory(os.environ)
    match options.action:
        case ImagesAction.LIST:
            return _list(cache, ui, as_json=as_json)
        case ImagesAction.BUILD:
            names = options.arguments or (DEFAULT_IMAGE,)
            done = [_build(image_reference(_known(name)), cache, invocation, ui) for name in names]
        case ImagesAction.LOAD:
            done = [_load(options.arguments[0], cache, invocation, ui)]
        case ImagesAction.SAVE:
            name, file = options.arguments
            done = [_save(name, Path(file), cache, ui)]
        case ImagesAction.PRUNE:
            return _prune(cache, ui, as_json=as_json)
        case _:
            assert_never(options.action)
    if as_json:
        render.write_json({"images": done})
    return 0


def stores(environ: Mapping[str, str], ui: Ui) -> tuple[ImageStore, ...]:
    """Return the engines that may hold images; whether one answers is seen when it is asked."""
    from clsecure.images.docker_store import DockerStore, docker_address
    from clsecure.installation import require_installation
    from clsecure.machine.containers import lacking
    from clsecure.session.images import image_store

    found: list[ImageStore] = []
    if not any(lacking(Engine.PODMAN)):
        # Images are built also where nothing is set up, such as for another machine.
        try:
            found.append(image_store(Engine.PODMAN, require_installation()))
        except BackendUnavailableError as error:
            ui.warn(f"podman is left out: {error.brief}")
    address = docker_address(environ)
    if address is not None:
        found.append(DockerStore(address))
    return tuple(found)


def _known(name: str) -> str:
    load_recipe(name)
    return name


def _list(cache: Path, ui: Ui, *, as_json: bool) -> int:
    held = _ask_all(lambda store: store.ids(), ui)
    rows = []
    for name in image_names():
        try:
            reference = image_reference(name)
        except ImageError as error:
            ui.warn(error.brief)
            continue
        archive = reference.archive(cache)
        there = archive.is_file()
        rows.append(
            ImageRow(
                name=name,
                image=reference.image,
                agents=reference.agents,
                archive=archive if there else None,
                size=archive.stat().st_size if there else None,
                loaded=tuple(engine for engine, ids in held.items() if reference.image in ids),
            )
        )
    if as_json:
        render.write_json({"images": rows, "engines": list(held)})
        return 0
    columns = ("IMAGE", "ID", "AGENTS", "BUILT", "LOADED")
    render.write_table(
        columns,
        [
            (
                row.name,
                row.image.removeprefix("sha256:")[:12],
                ", ".join(row.agents) or "-",
                "no" if row.size is None else human_size(row.size),
                ", ".join(row.loaded) or "no",
            )
            for row in rows
        ],
    )
    return 0


def _build(reference: ImageRef, cache: Path, invocation: Invocation, ui: Ui) -> dict[str, object]:
    from clsecure.session.images import build_image
    from clsecure.settings.model import load

    archive = reference.archive(cache)
    if not archive.is_file():
        build_image(reference, cache, load(invocation.layers).image_mirror, ui)
        ui.note(f"built {reference.name} ({human_size(archive.stat().st_size)}): {archive}")
    loaded = _load_everywhere(archive, ui, expected=reference.image)
    if not loaded:
        ui.note(
            "no engine to load it into: that is done when a session starts, or with: clsecure images load"
        )
    return {"name": reference.name, "image": reference.image, "archive": archive, "loaded": loaded}


def _load(what: str, cache: Path, invocation: Invocation, ui: Ui) -> dict[str, object]:
    from clsecure.session.images import fetch_archive
    from clsecure.settings.model import load

    expected = None
    if what in image_names():
        reference = image_reference(what)
        archive, expected = reference.archive(cache), reference.image
        registry = load(invocation.layers).image_registry
        if not archive.is_file() and registry is not None:
            fetch_archive(reference, archive, registry, ui)
        elif not archive.is_file():
            raise ImageError(f"the image {what} is not built", resolution=f"clsecure images build {what}")
    else:
        archive = Path(what)
        if not archive.is_file():
            raise UsageError(
                f"{what!r} is neither an image nor a file", resolution=f"one of: {', '.join(image_names())}"
            )
    from clsecure.images.archive import read_archive

    content = read_archive(archive)
    loaded = _load_everywhere(archive, ui, expected=expected)
    if not loaded:
        raise BackendUnavailableError(
            "there is no engine to load it into", resolution="apt-get install podman   (or docker.io)"
        )
    return {
        "name": content.labels.get("clsecure.image"),
        "image": content.image,
        "archive": archive,
        "loaded": loaded,
    }


def _load_everywhere(archive: Path, ui: Ui, *, expected: str | None) -> list[str]:
    def load(store: ImageStore) -> str:
        with ui.progress(f"loading the image into {store.engine}") as tell:
            image = load_checked(store, archive, tell, expected=expected)
        remember(Store().root, store.key, image)
        ui.note(f"{store.engine} has {image}")
        return image

    return list(_ask_all(load, ui))


def _save(name: str, target: Path, cache: Path, ui: Ui) -> dict[str, object]:
    """Copy the built archive, or take the image from an engine; either way it is the locked image."""
    from clsecure.images.archive import read_archive
    from clsecure.images.store import write_chunks

    reference = image_reference(_known(name))
    archive = reference.archive(cache)
    with ui.phase(f"saving the image {name}"):
        if archive.is_file():
            with archive.open("rb") as source:
                write_chunks(iter(lambda: source.read(1 << 20), b""), target)
        else:
            held = _ask_all(lambda store: store if reference.image in store.ids() else None, ui)
            store = next((each for each in held.values() if each is not None), None)
            if store is None:
                raise ImageError(
                    f"the image {name} is neither built nor loaded",
                    resolution=f"clsecure images build {name}",
                )
            store.save(reference.image, target)
    found = read_archive(target).image
    if found != reference.image:
        target.unlink()
        raise ImageError(f"what was saved is not the locked image: {found}")
    ui.note(f"saved {reference.image} as {target}")
    return {"name": name, "image": reference.image, "archive": target, "loaded": []}


def _prune(cache: Path, ui: Ui, *, as_json: bool) -> int:
    """Remove what we made and nobody needs: images of older ids, their archives, and fetched packages."""
    from clsecure.images.prune import prune_cache

    kept = _of_sessions()
    wanted = {image_reference(name).image for name in image_names()} | kept.keys()

    def prune(store: ImageStore) -> list[str]:
        gone = []
        for image in (each for each in ours(store.ids()) if each not in wanted):
            try:
                store.remove(image)
            except ImageError as error:
                ui.warn(f"{image[:19]} stays in {store.engine}: {error.details or error.brief}")
                continue
            forget(Store().root, store.key, image)
            gone.append(image)
        return gone

    with ui.phase("looking for old images"):
        removed = _ask_all(prune, ui)
        files = prune_cache(cache, kept=kept)
    if as_json:
        render.write_json({"removed": removed, "files": files})
        return 0
    count = sum(map(len, removed.values()))
    ui.note(f"removed {number(count, 'old image')} and {number(len(files), 'file')} from the cache")
    return 0


def _of_sessions() -> dict[str, str]:
    """Return the images that sessions with a workspace were started with, each with its name.

    Their work comes home, and they are cleaned up, in the image that they had.
    """
    records = [place.read() for place in Store().all()]
    return {
        record.image_id: record.image or ""
        for record in records
        if record is not None and record.image_id and record.workspace is not None
    }


def _ask_all(question: Callable[[ImageStore], _Answer], ui: Ui) -> dict[str, _Answer]:
    """Ask each engine; one that does not answer is named and left out."""
    answers: dict[str, _Answer] = {}
    for store in stores(os.environ, ui):
        try:
            answers[store.engine] = question(store)
        except (BackendUnavailableError, HelperError) as error:
            ui.warn(f"{error.brief}: {error.details}" if error.details else error.brief)
    return answers
