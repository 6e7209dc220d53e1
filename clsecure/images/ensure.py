"""Having an image where it is needed: built once, then loaded."""

from __future__ import annotations

from pathlib import Path

from clsecure.images.fetch import Progress, Sources
from clsecure.images.lock import read_lock
from clsecure.images.recipe import DATA, load_recipe
from clsecure.images.reference import ImageRef
from clsecure.images.store import ImageStore, load_checked


def ensure_built(reference: ImageRef, sources: Sources, progress: Progress, data: Path = DATA) -> Path:
    """Return the archive of an image in the cache, built when there is none.

    :raises ImageError: it can't be built as it is locked.
    """
    archive = reference.archive(sources.cache)
    if not archive.is_file():
        from clsecure.images.build import build

        build(
            load_recipe(reference.name, data),
            read_lock(reference.name, reference.architecture, data),
            sources=sources,
            target=archive,
            progress=progress,
        )
    return archive


def ensure_loaded(reference: ImageRef, store: ImageStore, sources: Sources, progress: Progress) -> None:
    """Have an engine hold an image: what is missing is built and loaded.

    :raises ImageError: it can't be built, or another image came out.
    """
    if reference.image not in store.ids():
        archive = ensure_built(reference, sources, progress)
        load_checked(store, archive, progress, expected=reference.image)
