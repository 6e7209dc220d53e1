"""``clsecure completion``: the completion of a shell, and the names of sessions that it offers."""

from __future__ import annotations

import os
import re
import sys
from importlib import resources
from typing import TYPE_CHECKING

from clsecure.cli.options import CompletionOptions, Invocation

if TYPE_CHECKING:
    from clsecure.session.ui import Ui

FILES = {"bash": "clsecure.bash", "zsh": "_clsecure", "fish": "clsecure.fish"}
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


def execute(invocation: Invocation, ui: Ui) -> int:  # noqa: ARG001  # nothing is asked
    """Print it."""
    options = invocation.options
    assert isinstance(options, CompletionOptions)  # noqa: S101  # the dispatcher's word
    if options.what == "sessions":
        sys.stdout.writelines(f"{name}\n" for name in _sessions())
    else:
        sys.stdout.write(resources.files("clsecure").joinpath("completions", FILES[options.what]).read_text())
    return 0


def _sessions() -> list[str]:
    """Return the names of sessions, fast: without the helper. Nothing that a shell could take for more."""
    if os.geteuid() == 0:
        return []
    from clsecure.session.store import Store

    return [place.path.name for place in Store().all() if _NAME.fullmatch(place.path.name)]
