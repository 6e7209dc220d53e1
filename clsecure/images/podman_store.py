"""The images of a podman engine, through the API of its service."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from clsecure import libraries
from clsecure.errors import ImageError
from clsecure.images import known
from clsecure.images.store import Metered, Progress, write_chunks

if TYPE_CHECKING:
    from podman import PodmanClient

_TIMEOUT = 600


class PodmanStore:
    """An implementation of :class:`clsecure.images.store.ImageStore`.

    :param open_engine: starts a service for one task; what it yields is the address of its socket, such as
        ``unix:///run/podman.sock``.
    """

    engine = "podman"
    key = known.PODMAN

    def __init__(self, open_engine: Callable[[], AbstractContextManager[str]]) -> None:
        self._open_engine = open_engine

    def ids(self) -> Mapping[str, tuple[str, ...]]:
        """Return the id of each image, and its tags."""
        with self._client() as client:
            return {_full(image.id): tuple(image.tags) for image in client.images.list()}

    def load(self, path: Path, progress: Progress) -> None:
        """Load an archive."""
        with self._client() as client, Metered(path, progress) as file:
            # It hands to requests what it gets: a file is streamed, where bytes would all be in memory.
            for _ in client.images.load(data=cast(Any, file)):
                pass

    def save(self, image: str, path: Path) -> None:
        """Write an image as an archive."""
        with self._client() as client:
            write_chunks(client.images.get(image.removeprefix("sha256:")).save(named=True), path)

    def remove(self, image: str) -> None:
        """Remove an image by its id."""
        with self._client() as client:
            # Without force: an image that a container uses stays, and is an error.
            for tag in client.images.get(image.removeprefix("sha256:")).tags:
                client.images.remove(tag)

    @contextlib.contextmanager
    def _client(self) -> Iterator[PodmanClient]:
        libraries.ready()
        import podman
        import requests

        with (
            self._open_engine() as base_url,
            podman.PodmanClient(base_url=base_url, timeout=_TIMEOUT) as client,
        ):
            try:
                yield client
            except (podman.errors.PodmanError, requests.RequestException) as error:
                raise ImageError("podman refused", details=str(error)) from error


def _full(image: str) -> str:
    return image if image.startswith("sha256:") else f"sha256:{image}"
