"""The image of container mode, and how its engine comes to have it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clsecure.errors import ImageError
from clsecure.images.fetch import Sources, cache_directory
from clsecure.images.known import is_known, remember
from clsecure.images.lock import read_lock
from clsecure.images.recipe import load_recipe
from clsecure.images.reference import ImageRef, image_reference, machine_architecture
from clsecure.images.store import load_checked
from clsecure.installation import Installation
from clsecure.model import ContainerSpec, Engine, WorkerImage
from clsecure.session.ui import Ui

if TYPE_CHECKING:
    from clsecure.images.store import ImageStore


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedContainer:
    """What the user said of containers.

    :param image: by its name.
    :param runtime: name or path of the OCI runtime, None for the engine's own choice.
    :param mirror: of Debian's packages, for an image that has to be built; None for the machine's own.
    """

    engine: Engine
    image: str
    runtime: str | None = None
    mirror: str | None = None


def container_for(
    wanted: WantedContainer, *, installation: Installation, state: Path, environ: Mapping[str, str], ui: Ui
) -> ContainerSpec:
    """Settle what a container is made from, and have the image where its engine finds it.

    The image is the one in the lock, by its id; it is loaded, or built, where it is missing.

    :param state: the user's state directory for clsecure.
    :raises ImageError: it is not there, and nobody said that it may be built.
    """
    reference = image_reference(wanted.image)
    if not is_known(state, wanted.engine.value, reference.image):
        store = image_store(wanted.engine, installation)
        _have(reference, store, wanted, environ, ui)
        remember(state, store.engine, reference.image)
    image = locked_image(wanted.image, reference.image)
    return ContainerSpec(engine=wanted.engine, image=image, runtime=wanted.runtime)


def locked_image(name: str, image_id: str) -> WorkerImage:
    """Return an image with what its lock says of the agents in it: nothing, of one that is not locked."""
    with contextlib.suppress(ImageError):
        lock = read_lock(name, machine_architecture())
        if lock.outcome is not None and lock.outcome.image == image_id:
            return WorkerImage(
                name=name,
                image_id=image_id,
                agents={each.layer: each.version for each in lock.inputs.npm if each.kind == "agent"},
                programs=lock.outcome.agents,
            )
    return WorkerImage(name=name, image_id=image_id)


def image_store(engine: Engine, installation: Installation) -> ImageStore:
    """Return where an engine keeps the images of sessions.

    :raises BackendUnavailableError: docker is not there.
    """
    match engine:
        case Engine.PODMAN:
            from clsecure.backends.container.podman import image_engine
            from clsecure.images.podman_store import PodmanStore

            return PodmanStore(lambda: image_engine(installation.helper))
        case Engine.DOCKER:
            from clsecure.images.docker_store import DockerStore
            from clsecure.machine.containers import require_docker_socket

            return DockerStore(f"unix://{require_docker_socket()}")


def _have(
    reference: ImageRef, store: ImageStore, wanted: WantedContainer, environ: Mapping[str, str], ui: Ui
) -> None:
    name = reference.name
    with ui.phase(f"looking for the image {name}"):
        if reference.image in store.ids():
            return
    cache = cache_directory(environ)
    archive = reference.archive(cache)
    if not archive.is_file():
        _offer_to_build(name, ui)
        build_image(reference, cache, wanted.mirror, ui)
    with ui.progress(f"loading the image into {store.engine}") as tell:
        load_checked(store, archive, tell, expected=reference.image)


def _offer_to_build(name: str, ui: Ui) -> None:
    question = f"The image {name} is not there yet. Build it now? It takes some minutes, once"
    if not (ui.interactive and ui.confirm(question)):
        raise ImageError(
            f"the image {name} is not there",
            details="Container mode runs the agent in an image that is built on this machine.",
            resolution=f"Build it, once: clsecure images build {name}",
        )


def build_image(reference: ImageRef, cache: Path, mirror: str | None, ui: Ui) -> Path:
    """Build an image into the cache; return the archive.

    :param mirror: of Debian's packages, None for the machine's own.
    """
    from clsecure.images.build import build

    archive = reference.archive(cache)
    with ui.progress(f"building the image {reference.name}") as tell:
        build(
            load_recipe(reference.name),
            read_lock(reference.name, reference.architecture),
            sources=Sources(cache=cache, mirror=mirror),
            target=archive,
            progress=tell,
        )
    return archive
