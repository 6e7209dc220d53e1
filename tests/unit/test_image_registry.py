"""An image from a registry: the locked bytes and no others, asked for in nobody's name."""

from __future__ import annotations

import filecmp
import gzip
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from clsecure.errors import ImageError
from clsecure.images.archive import configuration, image_id, write_archive
from clsecure.images.layers import Layer, files_layer
from clsecure.images.lock import Inputs, Lock, LockedLayer, Outcome
from clsecure.images.registry import fetch_image


@dataclass
class Registry:
    """A registry with one image, and what it was asked."""

    address: str = ""
    answers: dict[str, bytes] = field(default_factory=dict)
    heard: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Made:
    """An image, its lock, and the archive that a build would write."""

    lock: Lock
    archive: Path
    config: bytes
    layers: tuple[Layer, ...]

    @property
    def tag(self) -> str:
        return image_id(self.config)[7:19]


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.heard.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
            body = made.answers.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        made.address = f"http://127.0.0.1:{server.server_address[1]}/our/images"
        yield made
        server.shutdown()
        thread.join()


@pytest.fixture
def made(tmp_path: Path) -> Made:
    layers = tuple(
        files_layer(name, {f"usr/{name}": name.encode() * 100_000}, tmp_path / name, epoch=0)
        for name in ("base", "sbom")
    )
    config = configuration(layers, architecture="amd64", epoch=0, environment={}, labels={})
    write_archive(tmp_path / "built.tar", name="worker", config=config, layers=layers)
    outcome = Outcome(
        image=image_id(config),
        layers=tuple(LockedLayer(name=e.name, diff_id=e.diff_id, size=e.size) for e in layers),
    )
    inputs = Inputs(source_date_epoch=0, writer=1, recipe="", packages=(), npm=())
    lock = Lock(image="worker", architecture="amd64", inputs=inputs, outcome=outcome)
    return Made(lock=lock, archive=tmp_path / "built.tar", config=config, layers=layers)


def push(registry: Registry, made: Made, *, packed: bool = True) -> list[str]:
    """Put the image into the registry; return where its layers are."""
    base, places = "/v2/our/images/worker", []
    named = []
    for layer in made.layers:
        blob = layer.path.read_bytes()
        blob = gzip.compress(blob) if packed else blob
        digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
        named.append({"digest": digest, "size": len(blob)})
        registry.answers[f"{base}/blobs/{digest}"] = blob
        places.append(f"{base}/blobs/{digest}")
    image = image_id(made.config)
    registry.answers[f"{base}/blobs/{image}"] = made.config
    manifest = {"schemaVersion": 2, "config": {"digest": image}, "layers": named}
    registry.answers[f"{base}/manifests/{made.tag}"] = json.dumps(manifest).encode()
    return places


def quiet(_: str) -> None:
    pass


@pytest.mark.parametrize("packed", [True, False])
def test_what_comes_is_the_archive_that_a_build_writes(
    registry: Registry, made: Made, tmp_path: Path, packed: bool
) -> None:
    push(registry, made, packed=packed)
    target = tmp_path / "cache/archives/worker.tar"
    fetch_image(made.lock, registry.address, target, quiet)
    assert filecmp.cmp(target, made.archive, shallow=False)
    assert [each.name for each in target.parent.iterdir()] == ["worker.tar"]


def test_nobodys_name_or_password_is_sent(
    registry: Registry, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password hunter2\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    push(registry, made)
    fetch_image(made.lock, registry.address, tmp_path / "worker.tar", quiet)
    assert len(registry.heard) == 4
    assert not [asked for asked in registry.heard if "authorization" in asked]


def refused(registry: Registry, made: Made, tmp_path: Path, told: str) -> None:
    target = tmp_path / "cache/worker.tar"
    with pytest.raises(ImageError, match=told):
        fetch_image(made.lock, registry.address, target, quiet)
    assert list(target.parent.iterdir()) == []


def test_what_is_not_there_is_said(registry: Registry, made: Made, tmp_path: Path) -> None:
    refused(registry, made, tmp_path, "can't be had from 127.0.0.1:[0-9]+/our/images/worker")


def test_an_image_of_another_id_is_refused(registry: Registry, made: Made, tmp_path: Path) -> None:
    push(registry, made)
    place = f"/v2/our/images/worker/manifests/{made.tag}"
    manifest = json.loads(registry.answers[place])
    manifest["config"]["digest"] = f"sha256:{'1' * 64}"
    registry.answers[place] = json.dumps(manifest).encode()
    refused(registry, made, tmp_path, "not the image that the lock names")


def test_a_configuration_that_is_not_what_it_is_called_is_refused(
    registry: Registry, made: Made, tmp_path: Path
) -> None:
    push(registry, made)
    registry.answers[f"/v2/our/images/worker/blobs/{image_id(made.config)}"] = made.config + b" "
    refused(registry, made, tmp_path, "another configuration than it names")


@pytest.mark.parametrize("change", ["other", "longer", "shorter", "bomb", "broken"])
def test_a_layer_that_is_not_the_locked_one_is_refused_and_bounded(
    registry: Registry, made: Made, tmp_path: Path, change: str
) -> None:
    place = push(registry, made)[0]
    data = made.layers[0].path.read_bytes()
    registry.answers[place] = {
        "other": gzip.compress(b"x" + data[1:]),
        "longer": gzip.compress(data + b"x"),
        "shorter": gzip.compress(data[:-1]),
        # A quarter of a gigabyte in a quarter of a megabyte: no more than the locked size is written.
        "bomb": gzip.compress(bytes(1 << 28), 1),
        "broken": gzip.compress(data)[:50] + b"broken" * 100,
    }[change]
    refused(registry, made, tmp_path, "the layer base is not the one|not packed as it says")


@pytest.mark.parametrize("answer", [b"no json", b"[]", b'{"config": 1}', b"[" * 100_000, bytes(2 << 20)])
def test_a_manifest_that_is_none_is_refused(
    registry: Registry, made: Made, tmp_path: Path, answer: bytes
) -> None:
    push(registry, made)
    registry.answers[f"/v2/our/images/worker/manifests/{made.tag}"] = answer
    refused(registry, made, tmp_path, "no JSON|is no image|more than an image's description")
