"""From the mode of a session to what builds its sandboxes."""

from __future__ import annotations

import importlib
import threading

from clsecure.backends.local import LocalBackend
from clsecure.model import ContainerSpec, Engine, IsolationMode
from clsecure.privileged.client import HelperConnection


def begin(engine: Engine) -> None:
    """Import the engine's library in the background: it takes longer than the container to start."""
    # The whole program may end before it is done; nobody waits for it.
    threading.Thread(target=importlib.import_module, args=(engine.value,), daemon=True).start()


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
