"""What an engine that outlives the session says of its containers, and what is made of that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from clsecure.backends.container import docker
from clsecure.backends.container.docker import DockerBackend
from clsecure.backends.local import LocalBackend
from clsecure.errors import BackendUnavailableError
from clsecure.model import (
    CheckStatus,
    ContainerSpec,
    Engine,
    IsolationMode,
    SandboxSpec,
    WorkerAccount,
    WorkerImage,
)
from clsecure.privileged.client import HelperConnection
from clsecure.privileged.leftovers import Found
from clsecure.verify.engines import check_engine

SPEC = SandboxSpec(
    mode=IsolationMode.CONTAINER,
    account=WorkerAccount(name="claude-worker-x", uid=1, gid=1, home=Path("/home/claude-worker-x")),
    container=ContainerSpec(
        engine=Engine.DOCKER, image=WorkerImage(name="worker", image_id=f"sha256:{'0' * 64}")
    ),
)
NOBODY = cast(HelperConnection, None)


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (Found(), CheckStatus.PASS),
        (Found(count=1, names=("0123 is exited",)), CheckStatus.FAIL),
        (Found(complete=False), CheckStatus.SKIP),
    ],
)
def test_a_container_that_is_there_fails_and_silence_is_no_pass(found: Found, status: CheckStatus) -> None:
    assert [each.status for each in check_engine(found, SPEC)] == [status]


class Api:
    """A daemon that has these; it knows filters as docker does: all labels, and names by expression."""

    def __init__(self, *containers: dict[str, Any]) -> None:
        self.all = containers

    def containers(self, *, all: bool, filters: dict[str, str]) -> list[dict[str, Any]]:  # noqa: A002
        assert all
        return [each for each in self.all if filters.items() <= each["by"].items()]


def asked(monkeypatch: pytest.MonkeyPatch, api: Api | None) -> Found:
    @contextlib.contextmanager
    def daemon() -> Iterator[Any]:
        if api is None:
            raise BackendUnavailableError("docker is not reachable")

        class Client:
            pass

        client = Client()
        client.api = api  # type: ignore[attr-defined]
        yield client

    monkeypatch.setattr(docker, "daemon", daemon)
    return DockerBackend(NOBODY).containers_left(SPEC)


LABEL, NAME = {"label": "clsecure.worker=claude-worker-x"}, {"name": "^/claude-worker-x$"}


def test_it_is_asked_by_label_and_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"Id": "a" * 64, "State": "running", "by": LABEL | NAME}
    named = {"Id": "b" * 64, "State": "created", "by": NAME}
    other = {"Id": "c" * 64, "State": "running", "by": {"name": "^/other$"}}
    assert asked(monkeypatch, Api(other)) == Found()
    found = asked(monkeypatch, Api(both, named, other))
    assert (found.count, found.names) == (2, (f"{'a' * 12} is running", f"{'b' * 12} is created"))


def test_a_daemon_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, None) == Found(complete=False)


def test_where_no_engine_outlives_the_session_none_is_asked() -> None:
    assert LocalBackend(IsolationMode.CONTAINER, NOBODY).containers_left(SPEC) is None
