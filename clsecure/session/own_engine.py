"""Bringing images of the user's along into the engine of the session's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_never

from clsecure import libraries
from clsecure.backends.container.spec import DOCKER_SOCKET, RUN
from clsecure.errors import BackendUnavailableError
from clsecure.model import DockerAccess, IsolationMode
from clsecure.session.ui import Ui
from clsecure.terminal import escape

_SECONDS = 600
_API = "1.40"
"""What podman's API takes, of all versions."""
_GATEWAY = "169.254.1.2"
_CLIENT_CONF = "/run/clsecure/containers.conf"


def engine_env(access: DockerAccess, mode: IsolationMode) -> dict[str, str]:
    """Return the variables that tell the clients inside where the engine is."""
    match access:
        case DockerAccess.NONE:
            return {}
        case DockerAccess.OWN:
            # podman's API has no BuildKit, which docker's clients would ask for by default.
            env = {
                "DOCKER_HOST": f"unix://{DOCKER_SOCKET}",
                "CONTAINER_HOST": f"unix://{DOCKER_SOCKET}",
                "DOCKER_BUILDKIT": "0",
            }
            # Worker images have docker's client only.
            return env if mode is IsolationMode.CONTAINER else {**env, "CONTAINERS_CONF": _CLIENT_CONF}
        case DockerAccess.HOST:
            return {"DOCKER_HOST": f"unix://{DOCKER_SOCKET}"}
        case _:
            assert_never(access)


def gateway_host(access: DockerAccess) -> str:
    """Return the address under which programs inside have the gateway."""
    return _GATEWAY if access is DockerAccess.OWN else "127.0.0.1"


def bring_along(images: Sequence[str], worker: str, environ: Mapping[str, str], ui: Ui) -> None:
    """Copy images from the user's engine, by the names that the user says.

    :param worker: name of the session's account.
    :raises BackendUnavailableError: no engine of the user's has one of them.
    """
    if not images:
        return
    with contextlib.closing(session_engine(str(RUN / worker / DOCKER_SOCKET.name))) as target:
        for name in images:
            with ui.phase(f"copying the image {escape(name)}"), _found(name, environ) as image:
                target.images.load(_Stream(image.save(named=name if ":" in name else True)))


def session_engine(path: str) -> Any:  # noqa: ANN401  # docker-py has no types
    """Return a client of the session's own engine, in whose memory the agent can look later.

    It is told nothing of the user's: what ~/.netrc has for everybody and ~/.docker/config.json for every
    engine would be sent otherwise.
    """
    libraries.ready()
    import docker

    # With a version nothing is asked before it is told so.
    client = docker.DockerClient(base_url=f"unix://{path}", version=_API, timeout=_SECONDS)
    client.api.trust_env = False
    client.api._general_configs = {}  # its headers; docker-py has no other way
    return client


@contextlib.contextmanager
def _found(name: str, environ: Mapping[str, str]) -> Iterator[Any]:
    """Return the image in the first of the user's engines that has it."""
    libraries.ready()
    import docker
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    asked = []
    for address in _addresses(environ):
        try:
            client = docker.DockerClient(base_url=address, timeout=_SECONDS)
        except DockerException as error:
            asked.append(f"{address}: {error}")
            continue
        with contextlib.closing(client):
            try:
                image = client.images.get(name)
            except (DockerException, RequestException) as error:
                asked.append(f"{address}: {error}")
                continue
            yield image
            return
    raise BackendUnavailableError(
        f"the image {escape(name)} is in no engine of yours",
        details="\n".join(asked) or "neither docker nor podman's service answers here",
        resolution=f"docker pull {escape(name)}; for podman: systemctl --user start podman.socket",
    )


def _addresses(environ: Mapping[str, str]) -> list[str]:
    said = [environ[key] for key in ("DOCKER_HOST", "CONTAINER_HOST") if environ.get(key)]
    runtime = Path(environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    places = [Path("/run/docker.sock"), runtime / "docker.sock", runtime / "podman" / "podman.sock"]
    return [*said, *(f"unix://{place}" for place in places if os.access(place, os.R_OK | os.W_OK))]


class _Stream:
    """Chunks as a file that requests streams."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = iter(chunks)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks
