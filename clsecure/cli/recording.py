"""How records are made, as the settings say it, for commands that make one without a session's plan."""

from __future__ import annotations

import os

from clsecure.session.keeping import RecordOptions
from clsecure.session.store import state_directory
from clsecure.settings.sources import Layers


def record_options(layers: Layers) -> RecordOptions:
    """Read the user's settings; the repository has no word in it."""
    from clsecure.settings.model import load

    settings = load(layers)
    return RecordOptions(
        state=state_directory(),
        ssh_key=settings.record_ssh_key,
        notes=settings.record_notes,
        environ=dict(os.environ),
    )
