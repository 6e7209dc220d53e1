"""``clsecure images``: what prune leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from clsecure.cli.actions import ImagesAction
from clsecure.cli.commands import images
from clsecure.cli.options import ImagesOptions, Invocation
from clsecure.cli.verbs import Verb
from clsecure.errors import ImageError
from clsecure.images.known import is_known, remember
from clsecure.images.reference import image_reference
from clsecure.session.store import SessionRecord, SessionStatus, Store
from clsecure.session.ui import SilentUi


class Engine:
    """An engine with images; one of them is in use."""

    engine = "podman"
    key = "podman"

    def __init__(self, *images: str, in_use: str) -> None:
        self.images = list(images)
        self._in_use = in_use

    def ids(self) -> Mapping[str, tuple[str, ...]]:
        return {image: (f"localhost/clsecure/worker:{image[7:19]}",) for image in self.images}

    def load(self, path: Path, progress: object) -> None:
        raise NotImplementedError

    def save(self, image: str, path: Path) -> None:
        raise NotImplementedError

    def remove(self, image: str) -> None:
        if image == self._in_use:
            raise ImageError("podman refused", details="image is in use by a container")
        self.images.remove(image)


class Ui(SilentUi):
    def __init__(self) -> None:
        self.warned: list[str] = []

    def warn(self, text: str) -> None:
        self.warned.append(text)


def image(digit: str) -> str:
    return f"sha256:{digit * 64}"


def test_prune_leaves_what_sessions_have_and_goes_on_after_one_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number, status in enumerate((SessionStatus.KEPT, SessionStatus.RUNNING)):
        place = Store().session("/home/u/app", str(number))
        place.make()
        place.write(
            SessionRecord(
                session_id=f"s{number}",
                session=str(number),
                project="/home/u/app",
                mode="container",
                network="none",
                agent="claude",
                worker_user="clsecure-w-x",
                status=status,
                workspace="/home/clsecure-w-x/app",
                created=0.0,
                updated=0.0,
                image="worker",
                image_id=image(str(number)),
            )
        )
    locked = image_reference("worker").image
    engine = Engine(locked, image("0"), image("1"), image("7"), image("8"), image("9"), in_use=image("7"))
    for digit in "089":
        remember(Store().root, "podman", image(digit))
    monkeypatch.setattr(images, "stores", lambda _environ, _ui: (engine,))
    ui = Ui()
    options = ImagesOptions(action=ImagesAction.PRUNE, arguments=())
    assert images.execute(Invocation(verb=Verb.IMAGES, options=options), ui) == 0
    assert engine.images == [locked, image("0"), image("1"), image("7")]
    assert [is_known(Store().root, "podman", image(digit)) for digit in "089"] == [True, False, False]
    (warning,) = ui.warned
    assert "in use by a container" in warning
