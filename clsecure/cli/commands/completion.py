"""``clsecure completion``: the completion of a shell, and the names of sessions that it offers."""

from __future__ import annotations

import os
import re
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from clsecure.cli.options import CompletionOptions, Invocation
from clsecure.cli.verbs import SOURCES

if TYPE_CHECKING:
    from clsecure.session.ui import Ui

FILES = {"bash": "clsecure.bash", "zsh": "_clsecure", "fish": "clsecure.fish"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def execute(invocation: Invocation, ui: Ui) -> int:  # noqa: ARG001  # nothing is asked
    """Print it."""
    options = invocation.options
    assert isinstance(options, CompletionOptions)  # noqa: S101  # the dispatcher's word
    if options.what in SOURCES:
        sys.stdout.writelines(f"{name}\n" for name in _names(options.what))
    else:
        sys.stdout.write(resources.files("clsecure").joinpath("completions", FILES[options.what]).read_text())
    return 0


def _names(what: str) -> list[str]:
    """Return what names a session, fast: without the helper. Nothing that a shell could take for more.

    :param what: ``sessions`` for what commands take; ``names`` for the environments of the project here.
    """
    if os.geteuid() == 0:
        return []
    from clsecure.session.store import Store

    found: dict[str, None] = {}
    for place in Store().all():
        record = place.read()
        if record is None:
            continue
        if what == "sessions":
            found |= dict.fromkeys((place.path.name, Path(record.project).name))
        elif Path.cwd().is_relative_to(record.project):
            found[record.session] = None
    return [name for name in found if _NAME.fullmatch(name)]
