"""The images of a docker engine, through its API."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clsecure import libraries
from clsecure.errors import BackendUnavailableError, ImageError
from clsecure.images.known import docker_key
from clsecure.images.store import Metered, Progress, write_chunks

if TYPE_CHECKING:
    from docker import DockerClient

_TIMEOUT = 600
_SOCKETS = (Path("/run/docker.sock"), Path("/var/run/docker.sock"))


def docker_address(environ: Mapping[str, str]) -> str | None:
    """Return the address of the user's docker engine; None where there is no sign of one."""
    said = environ.get("DOCKER_HOST", "")
    if said:
        return said
    own = Path(environ.get("XDG_RUNTIME_DIR", "/nonexistent"), "docker.sock")
    found = next((path for path in (*_SOCKETS, own) if path.is_socket()), None)
    return f"unix://{found}" if found is not None else None


class DockerStore:
    """An implementation of :class:`clsecure.images.store.ImageStore`.

    :param base_url: of the engine, such as ``unix:///run/docker.sock``.
    """

    engine = "docker"

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self.key = docker_key(base_url)

    def ids(self) -> Mapping[str, tuple[str, ...]]:
        """Return the id of each image, and its tags."""
        with self._client() as client:
            return {image.id: tuple(image.tags) for image in client.images.list()}

    def load(self, path: Path, progress: Progress) -> None:
        """Load an archive."""
        with self._client() as client, Metered(path, progress) as file:
            client.images.load(file)

    def save(self, image: str, path: Path) -> None:
        """Write an image as an archive."""
        with self._client() as client:
            write_chunks(client.images.get(image).save(named=True), path)

    def remove(self, image: str) -> None:
        """Remove an image by its id."""
        with self._client() as client:
            # One by one and without force: an image that a container uses stays, and is an error.
            for tag in client.images.get(image).tags:
                client.images.remove(tag)

    @contextlib.contextmanager
    def _client(self) -> Iterator[DockerClient]:
        libraries.ready()
        import docker
        import requests

        path = self._base_url.removeprefix("unix://")
        if path != self._base_url and not Path(path).is_socket():
            # Asked here: docker-py leaves a descriptor open when nothing is there.
            raise _unreachable(self._base_url, "there is no such socket")
        try:
            client = docker.DockerClient(base_url=self._base_url, timeout=_TIMEOUT)
        except docker.errors.DockerException as error:
            raise _unreachable(self._base_url, str(error)) from error
        try:
            yield client
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise ImageError("docker refused", details=str(error)) from error
        finally:
            client.close()


def _unreachable(address: str, why: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        "docker can't be reached",
        details=f"{address}: {why}",
        resolution="is docker running, and may you use it? docker version",
    )
