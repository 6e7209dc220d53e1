"""From the mode of a session to what builds its sandboxes."""

from __future__ import annotations

from clsecure.backends.local import LocalBackend
from clsecure.model import ContainerSpec, Engine, IsolationMode
from clsecure.privileged.client import HelperConnection


def backend_for(
    mode: IsolationMode, connection: HelperConnection, container: ContainerSpec | None
) -> LocalBackend:
    """Return the backend of a mode.

    :param container: given exactly in container mode.
    """
    if container is None:
        return LocalBackend(mode, connection)
    match container.engine:
        case Engine.PODMAN:
            from clsecure.backends.container.podman import PodmanBackend

            return PodmanBackend(connection)
        case Engine.DOCKER:
            from clsecure.backends.container.docker import DockerBackend

            return DockerBackend(connection)
