"""The archive of an image: what ``docker save`` writes, which both engines load without changing an id."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clsecure.errors import ImageError
from clsecure.images.layers import Layer
from clsecure.images.lock import canonical

REPOSITORY = "localhost/clsecure"
"""Under which our images are tagged; a tag decides nothing, an image is used by its id."""

_MAX_JSON = 1 << 20
_MAX_PARTS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveContent:
    """What an archive says that it holds.

    :param image: the id that both engines give it.
    """

    image: str
    labels: Mapping[str, str]
    tags: tuple[str, ...]


def configuration(
    layers: Sequence[Layer],
    *,
    architecture: str,
    epoch: int,
    environment: Mapping[str, str],
    labels: Mapping[str, str],
) -> bytes:
    """Return an image's configuration; its hash is the image's id."""
    created = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return canonical(
        {
            "architecture": architecture,
            "config": {
                "Cmd": ["/bin/bash"],
                "Env": [f"{name}={value}" for name, value in sorted(environment.items())],
                "Labels": dict(labels),
                "WorkingDir": "/",
            },
            "created": created,
            "history": [{"created": created, "created_by": f"clsecure: {layer.name}"} for layer in layers],
            "os": "linux",
            "rootfs": {"diff_ids": [layer.diff_id for layer in layers], "type": "layers"},
        }
    )


def image_id(config: bytes) -> str:
    """Return the id that every engine gives the image of a configuration."""
    return f"sha256:{hashlib.sha256(config).hexdigest()}"


def tag(name: str, image: str) -> str:
    """Return the tag for people."""
    return f"{REPOSITORY}/{name}:{image.removeprefix('sha256:')[:12]}"


def write_archive(target: Path, *, name: str, config: bytes, layers: Sequence[Layer]) -> None:
    """Write an archive; the same image is the same bytes."""
    image = image_id(config).removeprefix("sha256:")
    manifest = [
        {
            "Config": f"{image}.json",
            "Layers": [f"{layer.diff_id.removeprefix('sha256:')}.tar" for layer in layers],
            "RepoTags": [tag(name, image)],
        }
    ]
    with tarfile.open(target, "x:", format=tarfile.GNU_FORMAT) as tar:
        # The manifest first: who looks at an archive needs no more than its beginning.
        _add(tar, "manifest.json", canonical(manifest))
        _add(tar, f"{image}.json", config)
        for layer in {layer.diff_id: layer for layer in layers}.values():
            info = _info(f"{layer.diff_id.removeprefix('sha256:')}.tar", layer.size)
            with layer.path.open("rb") as file:
                tar.addfile(info, file)


def read_archive(path: Path) -> ArchiveContent:
    """Read what an archive says it holds: its beginning alone, bounded.

    :raises ImageError: it is no archive of one image.
    """
    try:
        with _Bounded(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            manifest = _json(tar, "manifest.json")
            if not isinstance(manifest, list) or len(manifest) != 1:
                raise ImageError(f"{path} does not hold exactly one image")
            config = _bytes(tar, str(manifest[0]["Config"]))
            labels = json.loads(config).get("config", {}).get("Labels") or {}
            tags = manifest[0].get("RepoTags") or []
            return ArchiveContent(
                image=image_id(config),
                labels={str(key): str(value) for key, value in labels.items()},
                tags=tuple(map(str, tags)),
            )
    except (
        OSError,
        tarfile.TarError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ImageError(f"{path} is no image archive", details=str(error)) from error


class _Bounded(io.FileIO):
    """A file of which nobody reads much at once: tar has headers whose length is what the archive says."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read no more than a part of ours can hold, or refuse."""
        if size is None or not 0 <= size <= _MAX_JSON + tarfile.RECORDSIZE:
            raise ValueError("a header of the archive is too long")
        return super().read(size) or b""


def _json(tar: tarfile.TarFile, name: str) -> Any:  # noqa: ANN401  # JSON
    return json.loads(_bytes(tar, name))


def _bytes(tar: tarfile.TarFile, name: str) -> bytes:
    member = next((each for each in itertools.islice(tar, _MAX_PARTS) if each.name == name), None)
    if member is None:
        raise KeyError(f"there is no {name[:200]!r}")
    file = tar.extractfile(member) if member.isreg() and member.size <= _MAX_JSON else None
    if file is None:
        raise ValueError(f"{name[:200]!r} is not what it should be")
    return file.read()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    tar.addfile(_info(name, len(data)), io.BytesIO(data))


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info
