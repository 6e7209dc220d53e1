"""Where an engine keeps images, and what becomes of ours in it."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from clsecure.errors import ImageError
from clsecure.images.archive import REPOSITORY, read_archive

Progress = Callable[[str], None]


class ImageStore(Protocol):
    """The images of one engine."""

    @property
    def engine(self) -> str:
        """Its name: podman, docker."""

    @property
    def key(self) -> str:
        """What :mod:`clsecure.images.known` knows this very engine by."""

    def ids(self) -> Mapping[str, tuple[str, ...]]:
        """Return the id of each image, ``sha256:…``, and its tags."""

    def load(self, path: Path, progress: Progress) -> None:
        """Load an archive."""

    def save(self, image: str, path: Path) -> None:
        """Write an image as an archive, which must not exist yet."""

    def remove(self, image: str) -> None:
        """Remove an image by its id, with all its tags."""


def load_checked(store: ImageStore, path: Path, progress: Progress, *, expected: str | None = None) -> str:
    """Load an archive, see that the engine has the very image, and return its id.

    :param expected: refuse an archive of another image; None for whatever the user named.
    :raises ImageError: it is no archive of one image, or another image came out.
    """
    image = read_archive(path).image
    if expected is not None and image != expected:
        raise ImageError(
            f"{path} holds another image than the lock names",
            details=f"{image}, locked {expected}",
            resolution=f"remove {path} and build it again: clsecure images build",
        )
    if image not in store.ids():
        store.load(path, progress)
        if image not in store.ids():
            raise ImageError(
                f"{store.engine} made another image of {path}", details=f"{image} is not in it after loading"
            )
    return image


def ours(ids: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the images whose every tag is one that we give: nobody else put them there, or uses them."""
    return {
        image: tags
        for image, tags in ids.items()
        if tags and all(each.startswith(f"{REPOSITORY}/") for each in tags)
    }


class Metered(io.FileIO):
    """A file that tells how much of it was read."""

    def __init__(self, path: Path, progress: Progress) -> None:
        super().__init__(path, "rb")
        self._progress = progress
        self._size = max(1, os.fstat(self.fileno()).st_size)
        self._read = 0
        self._said = -1

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, and say the per cent when they change."""
        data = super().read(-1 if size is None else size) or b""
        self._read += len(data)
        per_cent = self._read * 100 // self._size
        if per_cent > self._said:
            self._said = per_cent
            self._progress(f"loading the image: {per_cent} %")
        return data


def write_chunks(chunks: Iterable[bytes], path: Path) -> None:
    """Write what an engine sends; the file is whole or not there.

    :raises ImageError: there is a file already.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".save-", delete=False) as file:
        try:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            Path(file.name).chmod(0o644)
            os.link(file.name, path)
        except FileExistsError as error:
            raise ImageError(f"{path} exists already") from error
        finally:
            Path(file.name).unlink()
