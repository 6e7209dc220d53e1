"""What holds the agent: what ``auto`` comes to, what excludes each other, and the question before docker."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from clsecure.cli import containment
from clsecure.cli.containment import confirm_host_docker, contain
from clsecure.cli.worker_image import StoredImage
from clsecure.errors import BackendUnavailableError, UsageError
from clsecure.machine import choice, containers, programs
from clsecure.model import Engine, IsolationMode
from clsecure.session.ui import SilentUi
from clsecure.settings.model import Settings, load
from clsecure.settings.sources import Entry, Layer, Layers, Source


class Heard(SilentUi):
    """A person who answers every question with the same word."""

    def __init__(self, *, interactive: bool = True, answer: bool = False) -> None:
        self.interactive = interactive
        self.answer = answer
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.said.append(text)

    def confirm(self, question: str, *, default: bool = False) -> bool:
        assert not default
        self.said.append(question)
        return self.answer


def settings(layer: Layer = Layer.FLAG, **said: str) -> Settings:
    entries = [
        Entry(key=key, text=text, source=Source(layer=layer, where=f"--{key}")) for key, text in said.items()
    ]
    return load(Layers(entries=tuple(entries), home=Path("/home/u"), directory=Path("/")))


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose programs are those of an empty directory, without docker."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setattr(containers, "_PATH", str(place))
    monkeypatch.setattr(containers, "_USR", tmp_path)
    monkeypatch.setattr(containers, "DOCKER_SOCKET", tmp_path / "docker.sock")
    monkeypatch.setattr(programs, "find_program", lambda _name: None)
    monkeypatch.setattr(containment, "stored_image", lambda _name, _engine: None)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    return place


def install(place: Path, *names: str) -> None:
    for name in names:
        (place / name).write_text("#!/bin/sh\necho version 5.4.0\n")
        (place / name).chmod(0o755)


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "docker.sock"))
        yield


def with_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containment, "stored_image", lambda _name, _engine: StoredImage(age=timedelta(1)))


# ------------------------------------------------------------ auto


def test_auto_is_a_container_where_engine_and_image_are_there(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tools, *containers.PODMAN_PROGRAMS)
    with_image(monkeypatch)
    ui = Heard()
    assert contain(settings(mode="auto"), ui) is IsolationMode.CONTAINER
    assert ui.said == ["mode auto: container"]


@pytest.mark.parametrize("missing", containers.PODMAN_PROGRAMS)
def test_auto_is_no_container_without_a_program_of_it(
    tools: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    install(tools, *(set(containers.PODMAN_PROGRAMS) - {missing}))
    with_image(monkeypatch)
    ui = Heard()
    assert contain(settings(mode="auto"), ui) is IsolationMode.USER
    assert ui.said == [f"mode auto: user (container lacks {missing}; namespace lacks firejail)"]


def test_auto_builds_no_image(tools: Path) -> None:
    install(tools, *containers.PODMAN_PROGRAMS)
    ui = Heard()
    assert contain(settings(mode="auto", image="worker-minimal"), ui) is IsolationMode.USER
    assert "container lacks the image worker-minimal" in ui.said[0]


@pytest.mark.parametrize("mode", ["auto", "container"])
def test_an_image_that_there_is_not_is_an_error_that_names_those_there_are(tools: Path, mode: str) -> None:
    install(tools, *containers.PODMAN_PROGRAMS)
    with pytest.raises(UsageError, match="there is no image 'wroker'") as raised:
        contain(settings(mode=mode, image="wroker"), Heard())
    assert raised.value.resolution == "one of: worker, worker-minimal"


def test_auto_sees_docker_where_that_is_the_engine(
    tools: Path, docker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_image(monkeypatch)
    assert contain(settings(mode="auto", engine="docker"), Heard()) is IsolationMode.CONTAINER
    monkeypatch.setattr(containers.os, "access", lambda *_: False)
    ui = Heard()
    assert contain(settings(mode="auto", engine="docker"), ui) is IsolationMode.USER
    assert "permission to use" in ui.said[0]


def test_auto_takes_firejail_only_where_that_isolates(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "find_program", lambda _name: Path("/bin/false"))
    for isolates, mode in ((True, IsolationMode.NAMESPACE), (False, IsolationMode.USER)):
        status = programs.ProbeStatus.OK if isolates else programs.ProbeStatus.MISSING
        probe = programs.Probe(name="firejail", status=status, observed="tried")
        monkeypatch.setattr(programs, "probe_firejail", lambda found=probe: found)
        monkeypatch.setattr(programs, "probe_firejail_isolates", lambda found=probe: found)
        assert contain(settings(mode="auto"), Heard()) is mode


def test_auto_is_never_weaker_than_the_machine_or_the_repository_allows(tools: Path) -> None:
    for least in (IsolationMode.NAMESPACE, IsolationMode.CONTAINER):
        with pytest.raises(BackendUnavailableError, match=f"at least {least}") as caught:
            choice.strongest(least, engine=Engine.PODMAN, image="worker", image_is_there=True)
        assert "container lacks podman, conmon, crun" in (caught.value.details or "")


def test_a_mode_that_was_named_is_never_another_one(tools: Path) -> None:
    assert contain(settings(mode="user"), Heard()) is IsolationMode.USER
    assert contain(settings(), Heard()) is IsolationMode.NAMESPACE
    with pytest.raises(BackendUnavailableError, match="lacks podman, conmon, crun") as caught:
        contain(settings(mode="container"), Heard())
    assert "install podman" in (caught.value.resolution or "") or "package podman" in caught.value.resolution
    with pytest.raises(BackendUnavailableError, match="a docker that runs") as caught:
        contain(settings(mode="container", engine="docker"), Heard())
    assert "docker" in (caught.value.resolution or "")


# ------------------------------------------------------------ what there is no way to have


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"engine": "docker"}, "--engine is of container mode"),
        ({"image": "worker", "mode": "user"}, "--image is of container mode"),
        ({"runtime": "runsc"}, "--runtime is of container mode"),
        ({"docker": "own", "network": "full"}, "does not go with the full network (--network)"),
        ({"docker_images": "a"}, "fills the engine of the session's own, and there is none"),
        ({"docker_images": "a", "docker": "host"}, "fills the engine of the session's own"),
    ],
)
def test_what_excludes_each_other_is_named_with_what_can_be(said: dict[str, str], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        contain(settings(**said), Heard())
    assert told in caught.value.brief
    assert caught.value.resolution


def test_docker_has_no_full_network_and_podman_is_named(tools: Path, docker: None) -> None:
    with pytest.raises(UsageError, match="does not go with the engine docker") as caught:
        contain(settings(mode="container", engine="docker", network="full"), Heard())
    assert "--engine podman" in (caught.value.resolution or "")


def test_a_file_may_name_engine_and_image_for_the_sessions_that_have_containers() -> None:
    found = settings(Layer.USER_FILE, engine="docker", image="x", runtime="runsc", docker_images="a")
    assert contain(found, Heard()) is IsolationMode.NAMESPACE


def test_an_engine_of_its_own_needs_its_programs_in_every_mode(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "find_program", lambda *_: None)
    with pytest.raises(BackendUnavailableError, match="podman, crun, netavark, aardvark-dns, nft"):
        contain(settings(docker="own"), Heard())
    monkeypatch.setattr(containers, "find_program", lambda name, *_: Path("/bin") / name)
    assert contain(settings(docker="own"), Heard()) is IsolationMode.NAMESPACE


def test_a_runtime_must_be_there(tools: Path, tmp_path: Path) -> None:
    install(tools, *containers.PODMAN_PROGRAMS, "runsc")
    plain = tmp_path / "plain"
    plain.write_text("")
    assert contain(settings(mode="container", runtime="runsc"), Heard()) is IsolationMode.CONTAINER
    path = str(tools / "runsc")
    assert contain(settings(mode="container", runtime=path), Heard()) is IsolationMode.CONTAINER
    for absent in ("kata", "/nonexistent/runsc", str(plain), str(tmp_path)):
        with pytest.raises(BackendUnavailableError, match="is not there"):
            contain(settings(mode="container", runtime=absent), Heard())


def test_a_runtime_that_others_than_root_could_change_is_refused(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tools, *containers.PODMAN_PROGRAMS, "runsc")
    path = tools / "runsc"
    path.chmod(0o775)
    for wanted in ("runsc", str(path)):
        with pytest.raises(BackendUnavailableError, match="not a program of root's own") as raised:
            contain(settings(mode="container", runtime=wanted), Heard())
        assert "/usr/local/bin" in (raised.value.resolution or "")
    path.chmod(0o755)
    monkeypatch.setattr(containers, "_USR", Path("/usr"))
    with pytest.raises(BackendUnavailableError, match="not a program of root's own below /usr"):
        contain(settings(mode="container", runtime=str(path)), Heard())


@pytest.mark.parametrize(
    ("said", "what"), [({"network": "full"}, "the full network"), ({"docker": "own"}, "an engine of")]
)
@pytest.mark.parametrize("name", ["runsc", "path"])
def test_gvisor_is_not_given_a_network_that_would_not_be_there(
    tools: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, str], what: str, name: str
) -> None:
    install(tools, *containers.OWN_ENGINE_PROGRAMS, *containers.PODMAN_PROGRAMS, "runsc")
    monkeypatch.setattr(containers, "own_engine_lacking", lambda: iter(()))
    runtime = name if name == "runsc" else str(tools / "runsc")
    with pytest.raises(UsageError, match=f"{what}.*does not go with the runtime") as raised:
        contain(settings(mode="container", runtime=runtime, **said), Heard())
    assert "--runtime crun" in (raised.value.resolution or "")
    assert "--mode namespace" in (raised.value.resolution or "")
    crun = contain(settings(mode="container", runtime="crun", **said), Heard())
    assert crun is IsolationMode.CONTAINER
    # A file may name it for container mode; in another one it plays no part.
    assert contain(settings(Layer.USER_FILE, runtime=runtime, **said), Heard()) is IsolationMode.NAMESPACE


def test_docker_takes_runtimes_by_name(tools: Path, docker: None) -> None:
    found = contain(settings(mode="container", engine="docker", runtime="runsc"), Heard())
    assert found is IsolationMode.CONTAINER
    with pytest.raises(UsageError, match="not a path"):
        contain(settings(mode="container", engine="docker", runtime="/x"), Heard())


def test_an_engine_of_the_sessions_own_does_not_go_with_docker_as_the_engine(
    tools: Path, docker: None
) -> None:
    with pytest.raises(UsageError, match=r"\(--docker\) does not go with the engine docker \(--engine\)"):
        contain(settings(mode="container", engine="docker", docker="own"), Heard())


# ------------------------------------------------------------ the machine's docker


def test_a_docker_that_is_not_there_or_not_the_users_is_refused_before_anything_is_asked(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendUnavailableError, match="you lack a docker that runs"):
        contain(settings(docker="host"), Heard())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "docker.sock"))
        assert contain(settings(docker="host"), Heard()) is IsolationMode.NAMESPACE
        monkeypatch.setattr(containers.os, "access", lambda *_: False)
        with pytest.raises(BackendUnavailableError, match="you lack permission"):
            contain(settings(docker="host"), Heard())
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    with pytest.raises(BackendUnavailableError, match="DOCKER_HOST names another one"):
        contain(settings(docker="host"), Heard())


def test_the_machines_docker_is_asked_about() -> None:
    ui = Heard(answer=True)
    confirm_host_docker(ui, yes=False)
    assert "as good as root" in ui.said[0]
    assert ui.said[-1].endswith("?")
    with pytest.raises(UsageError, match="not started") as caught:
        confirm_host_docker(Heard(answer=False), yes=False)
    assert "--allow-docker" in (caught.value.resolution or "")


def test_where_nobody_can_be_asked_only_a_flag_answers() -> None:
    with pytest.raises(UsageError, match="nobody can be asked") as caught:
        confirm_host_docker(Heard(interactive=False), yes=False)
    assert "--yes" in (caught.value.resolution or "")
    ui = Heard(interactive=False)
    confirm_host_docker(ui, yes=True)
    assert ui.said == []
