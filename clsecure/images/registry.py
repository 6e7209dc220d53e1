"""The locked image from a registry, instead of building it here: every byte is held against the lock.

The registry is believed nothing: the configuration has the locked id, it names each layer by its hash, and
the lock says how large each is. It is asked without anybody's name or password.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clsecure import libraries
from clsecure.errors import ImageError
from clsecure.images.archive import write_archive
from clsecure.images.layers import Layer
from clsecure.images.lock import Lock, LockedLayer, Outcome
from clsecure.images.store import Progress

_SECONDS = 60.0
_SMALL = 1 << 20
_CHUNK = 1 << 16
_MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
)
# zlib's word for gzip, with its own largest window.
_GZIP = 16 + zlib.MAX_WBITS


def fetch_image(lock: Lock, registry: str, target: Path, progress: Progress) -> None:
    """Fetch the locked image from a registry into the archive ``target``: the same bytes as a build's.

    :param registry: ``https://HOST[:PORT][/PATH]``; the image is PATH/NAME there, its tag the beginning of
        the image's id, as engines have it, too.
    :raises ImageError: it is not there, or what is there is another one.
    """
    if lock.outcome is None:
        raise ImageError(f"the lock of the image {lock.image} names no image")
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as name,
        _Registry(registry, lock.image) as asked,
    ):
        config, blobs = _configuration(asked, lock.outcome)
        layers = []
        for number, (locked, blob) in enumerate(zip(lock.outcome.layers, blobs, strict=True), start=1):
            progress(f"layer {number} of {len(blobs)} ({locked.size / 1e6:.0f} MB)")
            layers.append(_layer(asked.blob(blob), locked, Path(name, f"{number}.tar")))
        progress("writing the archive")
        written = Path(name, "image.tar")
        write_archive(written, name=lock.image, config=config, layers=layers)
        written.replace(target)


class _Registry:
    """One repository of a registry, by its API (OCI distribution specification)."""

    def __init__(self, registry: str, name: str) -> None:
        libraries.ready()
        import requests

        parts = urlsplit(registry)
        self.place = f"{parts.netloc}{parts.path}/{name}"
        self._base = f"{parts.scheme}://{parts.netloc}/v2{parts.path}/{name}"
        self._session = requests.Session()
        # Proxies and certificates as everything of the user's has them, but no password out of ~/.netrc.
        self._session.auth = _nobody

    def __enter__(self) -> _Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def manifest(self, tag: str) -> Any:  # noqa: ANN401  # whatever JSON there is
        """Return the manifest of a tag."""
        return _parsed(self._small(f"manifests/{tag}", {"Accept": _MANIFESTS}))

    def small_blob(self, digest: str) -> bytes:
        """Return a blob of which no more than a little is read."""
        return self._small(f"blobs/{digest}", {})

    def blob(self, digest: str) -> Iterator[bytes]:
        """Yield a blob in chunks, as it was stored."""
        return self._chunks(f"blobs/{digest}", {})

    def _small(self, path: str, headers: dict[str, str]) -> bytes:
        data = b""
        for chunk in self._chunks(path, headers):
            data += chunk
            if len(data) > _SMALL:
                raise ImageError(f"{self.place} sends more than an image's description could be")
        return data

    def _chunks(self, path: str, headers: dict[str, str]) -> Iterator[bytes]:
        import requests

        # Not packed a second time on the way: what counts is how it is stored.
        headers = {"Accept-Encoding": "identity", **headers}
        try:
            with self._session.get(
                f"{self._base}/{path}", headers=headers, stream=True, timeout=_SECONDS
            ) as answer:
                answer.raise_for_status()
                yield from answer.iter_content(_CHUNK)
        except requests.RequestException as error:
            raise ImageError(f"the image can't be had from {self.place}", details=str(error)) from error


def _nobody(request: Any) -> Any:  # noqa: ANN401  # requests has no types
    """Say nobody's name: with this requests looks into no file of the user's."""
    return request


def _configuration(asked: _Registry, outcome: Outcome) -> tuple[bytes, list[str]]:
    """Return the locked image's configuration, and how the registry calls each of its layers."""
    manifest = asked.manifest(outcome.image.removeprefix("sha256:")[:12])
    try:
        named, blobs = str(manifest["config"]["digest"]), [str(each["digest"]) for each in manifest["layers"]]
    except (LookupError, TypeError) as error:
        raise ImageError(f"what {asked.place} has is no image") from error
    if named != outcome.image or len(blobs) != len(outcome.layers):
        raise ImageError(
            f"what {asked.place} has is not the image that the lock names",
            details=f"{named[:80]}, locked {outcome.image}",
        )
    config = asked.small_blob(outcome.image)
    if f"sha256:{hashlib.sha256(config).hexdigest()}" != outcome.image:
        raise ImageError(f"{asked.place} sends another configuration than it names")
    if _parsed(config)["rootfs"]["diff_ids"] != [each.diff_id for each in outcome.layers]:
        raise ImageError("the lock names other layers than the image that it names")
    return config, blobs


def _parsed(data: bytes) -> Any:  # noqa: ANN401  # whatever JSON there is
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError("a registry sends what is no JSON", details=str(error)) from error


def _layer(chunks: Iterator[bytes], locked: LockedLayer, target: Path) -> Layer:
    """Write a layer, unpacked; no more of it than the lock says there is."""
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as file:
        for data in _unpacked(chunks):
            size += len(data)
            if size > locked.size:
                break
            digest.update(data)
            file.write(data)
    if size != locked.size or f"sha256:{digest.hexdigest()}" != locked.diff_id:
        raise ImageError(f"the layer {locked.name} is not the one that the lock names")
    return Layer(name=locked.name, path=target, diff_id=locked.diff_id, size=size)


def _unpacked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Undo gzip where it is gzip, a bounded piece at a time."""
    unpack: Any = None
    for number, chunk in enumerate(chunks):
        if number == 0 and chunk[:2] == b"\x1f\x8b":
            unpack = zlib.decompressobj(_GZIP)
        if unpack is None:
            yield chunk
            continue
        try:
            yield unpack.decompress(chunk, _SMALL)
            while unpack.unconsumed_tail:
                yield unpack.decompress(unpack.unconsumed_tail, _SMALL)
        except zlib.error as error:
            raise ImageError("a layer is not packed as it says", details=str(error)) from error
