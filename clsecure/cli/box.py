"""What a sandbox started here would be: of ``info`` and ``verify``, which try one."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clsecure.cli.options import Invocation
from clsecure.installation import require_installation
from clsecure.model import IsolationMode, NetworkPolicy

if TYPE_CHECKING:
    from clsecure.session.info import Wanted
    from clsecure.session.ui import Ui


def wanted_box(invocation: Invocation, ui: Ui) -> Wanted:
    """Settle what a session started here would be."""
    from clsecure.cli.containment import contain
    from clsecure.errors import RepositoryError
    from clsecure.session.info import Wanted
    from clsecure.session.store import state_directory
    from clsecure.session.toolchains import toolchain_mounts
    from clsecure.settings.enforce import within
    from clsecure.settings.model import load
    from clsecure.settings.project import with_project
    from clsecure.workspace.repository import discover

    layers = invocation.layers
    # What holds an agent is the same everywhere: outside, only a repository's own word is missing.
    with contextlib.suppress(RepositoryError):
        layers = with_project(layers, discover(Path.cwd()).top)
    settings = load(layers)
    for warning in settings.warnings:
        ui.warn(warning)
    for note in settings.notes:
        ui.note(note)
    mode = contain(settings, ui)
    container, image_lost = None, None
    if mode is IsolationMode.CONTAINER:
        from clsecure.session.images import WantedContainer, container_for, load_again

        installation, state = require_installation(), state_directory()
        container = container_for(
            WantedContainer(
                engine=settings.engine,
                image=settings.image,
                runtime=settings.runtime,
                mirror=settings.image_mirror,
                registry=settings.image_registry,
            ),
            installation=installation,
            state=state,
            environ=os.environ,
            ui=ui,
        )
        image_lost = partial(
            load_again, container, installation=installation, state=state, environ=os.environ, ui=ui
        )
    full = settings.network is NetworkPolicy.FULL
    shared = toolchain_mounts(settings.mounts) if settings.toolchains else ()
    return Wanted(
        mode=mode,
        container=container,
        image_lost=image_lost,
        network=settings.network,
        allow_private=settings.allow_private and full,
        limits=settings.limits,
        mounts=(*settings.mounts, *within(shared, settings.ceilings)),
    )
