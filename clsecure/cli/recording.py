"""How records are made, as the settings say it, for commands that make one without a session's plan."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from clsecure.session.keeping import RecordOptions
from clsecure.session.store import state_directory
from clsecure.settings.sources import Layers

if TYPE_CHECKING:
    from clsecure.model import Verification
    from clsecure.session.kept import KeptSession
    from clsecure.session.ui import Ui


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


def record_later_checks(kept: KeptSession, verification: Verification | None, layers: Layers, ui: Ui) -> None:
    """Have the record of a session say what failed when it was looked at after its run.

    :param verification: the checks that the run itself did not come to; None where it did.
    """
    from clsecure.session.record import record_late

    record_late(
        kept.finish.place,
        kept.record,
        record_options(layers),
        finished=None,
        verification=verification,
        warn=ui.warn,
    )
