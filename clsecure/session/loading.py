"""Backends whose engine gets an image again that it has lost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from clsecure.backends.choose import backend_for
from clsecure.backends.local import LocalBackend
from clsecure.installation import Installation
from clsecure.model import ContainerSpec, IsolationMode
from clsecure.privileged.client import HelperConnection
from clsecure.session.ui import Ui


def loading_backend(
    mode: IsolationMode,
    connection: HelperConnection,
    container: ContainerSpec | None,
    *,
    installation: Installation,
    state: Path,
    environ: Mapping[str, str],
    ui: Ui,
) -> LocalBackend:
    """Return the backend of a mode; an image that the engine has lost meanwhile is loaded again.

    :param state: the user's state directory for clsecure.
    """
    backend = backend_for(mode, connection, container)
    if container is not None:

        def load() -> None:
            from clsecure.session.images import load_again

            load_again(container, installation=installation, state=state, environ=environ, ui=ui)

        backend.image_lost = load
    return backend
