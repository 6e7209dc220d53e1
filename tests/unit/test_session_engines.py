"""What a session says of engines: at its start, in the dry run, in its result and in its record."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from clsecure.cli import render
from clsecure.cli.commands import run
from clsecure.model import (
    ContainerSpec,
    DockerAccess,
    Engine,
    IsolationMode,
    NetworkPolicy,
    OnFinish,
    WorkerImage,
)
from clsecure.session import opening
from clsecure.session.opening import docker_lines, opening_lines
from clsecure.session.own_engine import engine_env, gateway_host, session_engine
from clsecure.session.plan import SessionPlan
from clsecure.session.result import ContainerResult, SessionResult
from clsecure.session.store import SessionRecord, SessionStatus, Store
from clsecure.settings.model import load
from clsecure.settings.sources import Entry, Layer, Layers, Source
from clsecure.verify.protection import RESIDUALS
from tests.support.person import CHECKOUT


def plan(**changes: Any) -> SessionPlan:
    values: dict[str, Any] = {
        "session_id": "20260102-030405-aabbccddeeff",
        "started": datetime(2026, 1, 2, tzinfo=UTC),
        "project": Path("/home/u/app"),
        "project_name": "app",
        "session": "default",
        "mode": IsolationMode.NAMESPACE,
        "network": NetworkPolicy.NONE,
        "agent": "claude",
        "command": None,
        "shell": False,
        "mounts": (),
        "full_clone": False,
        "on_finish": OnFinish.KEEP,
        "branch": None,
        "message": None,
        "resume": None,
        "time_limit": None,
        "base_url": None,
        "stdout_is_ours": False,
    }
    return SessionPlan(**{**values, **changes})


def test_nothing_is_said_of_an_engine_that_is_not_there() -> None:
    assert list(docker_lines(plan())) == []
    assert next(opening_lines(plan(engine=Engine.DOCKER), None, uses_api=True)).startswith("mode namespace,")


def test_a_container_is_named_with_its_engine_image_and_runtime() -> None:
    made = plan(mode=IsolationMode.CONTAINER, runtime="runsc")
    [line] = opening_lines(made, None, uses_api=True)
    assert line == "mode container (podman, image worker, runsc), network: no network"


@pytest.mark.parametrize(
    ("access", "number", "words"),
    [
        (DockerAccess.OWN, "R33", "more of the kernel is within the agent's reach"),
        (DockerAccess.HOST, "R34", "AS GOOD AS ROOT"),
    ],
)
def test_what_docker_opens_is_said_with_its_number(access: DockerAccess, number: str, words: str) -> None:
    *_, residual = docker_lines(plan(docker=access))
    assert residual.startswith(f"residual {number}: ")
    assert words in residual
    assert number in RESIDUALS


def test_images_that_are_copied_are_named() -> None:
    first, *_ = docker_lines(plan(docker=DockerAccess.OWN, docker_images=("postgres:16", "redis")))
    assert "with postgres:16, redis;" in first


# ------------------------------------------------------------ the dry run


def dry(**said: str) -> list[str]:
    source = Source(layer=Layer.FLAG, where="--x")
    entries = tuple(Entry(key=key, text=text, source=source) for key, text in said.items())
    settings = load(Layers(entries=entries, home=Path("/home/u"), directory=Path("/")))
    mode = settings.mode
    assert isinstance(mode, IsolationMode)
    made = plan(
        mode=mode,
        engine=settings.engine,
        runtime=settings.runtime,
        image=settings.image,
        docker=settings.docker,
        docker_images=settings.docker_images,
    )
    return list(run._engines(made, settings))


def test_a_dry_run_says_what_a_container_would_be_made_with() -> None:
    assert dry() == []
    assert dry(mode="container", runtime="runsc") == [
        "engine     podman, runtime runsc (--x)",
        "image      worker",
    ]
    assert dry(docker="own", docker_images="a:1") == [
        "docker     an engine of the session's own (--x)",
        "copies     the image a:1 into it",
    ]
    [line] = dry(docker="host")
    assert "as good as root (--x); you will be asked" in line


def test_a_dry_run_in_json_has_it_all() -> None:
    shown = json.loads(json.dumps(render.plain(plan(docker=DockerAccess.OWN, docker_images=("a",)))))
    assert {key: shown[key] for key in ("mode", "engine", "runtime", "image", "docker", "docker_images")} == {
        "mode": "namespace",
        "engine": "podman",
        "runtime": None,
        "image": "worker",
        "docker": "own",
        "docker_images": ["a"],
    }


# ------------------------------------------------------------ afterwards

SPEC = ContainerSpec(
    engine=Engine.DOCKER, image=WorkerImage(name="worker", image_id=f"sha256:{'0' * 64}"), runtime="runsc"
)


@pytest.mark.parametrize(
    ("changes", "valid"),
    [
        ({}, True),
        ({"docker": "own"}, True),
        ({"docker": "host", "container": ContainerResult.of(SPEC)}, True),
        ({"docker": "true"}, False),
        ({"container": ContainerResult(engine="lxc", image="x", image_id="sha256:0")}, False),
    ],
)
def test_the_result_says_what_ran_as_its_schema_says(changes: dict[str, Any], valid: bool) -> None:
    result = SessionResult(
        session_id="s", project="/p", session="default", mode="container", network="api", worker_user="w",
        agent="claude", exit_code=0, base_commit=None, base_tree=None, duration_s=1.0, **changes,
    )  # fmt: skip
    document = json.loads(json.dumps(render.plain(result)))
    checker = jsonschema.Draft202012Validator(json.loads((CHECKOUT / "docs/result.schema.json").read_text()))
    assert checker.is_valid(document) is valid
    if "container" in changes and valid:
        assert document["container"] == {
            "engine": "docker",
            "image": "worker",
            "image_id": f"sha256:{'0' * 64}",
            "runtime": "runsc",
        }


def test_a_record_of_an_earlier_version_had_no_engine(tmp_path: Path) -> None:
    place = Store(tmp_path).session("/p", "default")
    place.make()
    record = SessionRecord(
        session_id="s", project="/p", session="default", mode="namespace", network="api", agent="claude",
        worker_user="w", status=SessionStatus.KEPT, created=1.0, updated=1.0,
    )  # fmt: skip
    place.write(record)
    old = json.loads((place.path / "session.json").read_text())
    for name in ("docker_access", "engine", "image"):
        del old[name]
    (place.path / "session.json").write_text(json.dumps(old))
    found = place.read()
    assert found is not None
    assert (found.docker_access, found.engine, found.image) == ("none", None, None)


def test_clients_inside_are_told_where_the_engine_is() -> None:
    own = engine_env(DockerAccess.OWN, IsolationMode.NAMESPACE)
    assert own["DOCKER_HOST"] == own["CONTAINER_HOST"] == "unix:///run/clsecure/docker.sock"
    assert own["DOCKER_BUILDKIT"] == "0"
    assert "CONTAINERS_CONF" in own
    assert "CONTAINERS_CONF" not in engine_env(DockerAccess.OWN, IsolationMode.CONTAINER)
    assert set(engine_env(DockerAccess.HOST, IsolationMode.USER)) == {"DOCKER_HOST"}
    assert engine_env(DockerAccess.NONE, IsolationMode.USER) == {}
    assert (gateway_host(DockerAccess.OWN), gateway_host(DockerAccess.NONE)) == ("169.254.1.2", "127.0.0.1")


def test_a_machine_without_a_client_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "find_program", lambda _: None)
    local = docker_lines(plan(docker=DockerAccess.OWN, mode=IsolationMode.NAMESPACE))
    assert any("podman --remote only" in line for line in local)
    container = docker_lines(plan(docker=DockerAccess.OWN, mode=IsolationMode.CONTAINER))
    assert not any("podman --remote only" in line for line in container)


def test_a3_the_sessions_own_engine_hears_nothing_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent can look into that engine's memory later."""
    (tmp_path / ".netrc").write_text("default login somebody password CANARY\n")
    (tmp_path / ".netrc").chmod(0o600)
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text(
        json.dumps({"HttpHeaders": {"X-Token": "CANARY"}, "auths": {"x": {"auth": "YTpDQU5BUlk="}}})
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTP_PROXY", "http://CANARY@localhost:9")
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def answer() -> None:
            conn, _ = listener.accept()
            with conn:
                heard.append(conn.recv(65536))
                conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with contextlib.closing(session_engine(str(tmp_path / "s"))) as client:
            assert client.images.list() == []
        thread.join(10)
    (said,) = heard
    assert said.startswith(b"GET /v1.40/images/json")
    assert not any(secret in said for secret in (b"CANARY", b"uthorization", b"YTpDQU5BUlk="))
