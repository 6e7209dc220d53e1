"""The repository's own settings: ``.clsecure/config`` and ``.clsecure/config.toml`` of its work tree.

They come with a clone, from whoever wrote it, so they may only take something away from a session: a stricter
network or mode, more denied hosts, smaller limits. Whatever else they say is named in a warning and does
nothing. Nothing on the way is followed, and what does nothing or is refused is never shown.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from clsecure.settings import files, keys, narrowing
from clsecure.settings.files import Assignment
from clsecure.settings.keys import FLAGS
from clsecure.settings.sources import (
    TOML_NAME,
    Entry,
    Layer,
    Layers,
    Once,
    assignments,
    misplaced,
    to_entries,
)

DIRECTORY = ".clsecure"
NARROWING = frozenset({"network", "mode", "deny_domains", *narrowing.KEYS})
"""The keys that may take something away."""


def with_project(layers: Layers, top: Path) -> Layers:
    """Return the layers with what the repository at ``top`` says.

    :param top: its work tree.
    :raises UsageError: a file of it that can't be accepted: it may have been meant to shut something.
    """
    entries: list[Entry] = []
    warnings = misplaced(top, top / DIRECTORY / "config")
    once = Once()
    for name in ("config", TOML_NAME):
        data = files.read_below(top, DIRECTORY, name)
        if data is None:
            continue
        path = top / DIRECTORY / name
        for assignment in assignments(path, data):
            if assignment.key in NARROWING and not assignment.ceiling:
                once.add(path, assignment)
                entries += to_entries(path, assignment, Layer.PROJECT)
            else:
                warnings.append(_does_nothing(path, assignment))
    if len(warnings) > _MAX_WARNINGS:
        warnings[_MAX_WARNINGS:] = [f"{top / DIRECTORY}: {len(warnings) - _MAX_WARNINGS} more such keys"]
    ranked = sorted((*layers.entries, *entries), key=lambda entry: entry.source.layer.rank)
    return dataclasses.replace(layers, entries=tuple(ranked), warnings=(*layers.warnings, *warnings))


_MAX_WARNINGS = 10


def _does_nothing(path: Path, assignment: Assignment) -> str:
    where = f"{path}:{assignment.line}: {assignment.written[:64]}"
    flag = FLAGS.get(assignment.key or "")
    if flag is not None:
        return f"{where} is not taken from a repository, which may only narrow; you can say {flag}"
    if assignment.key in keys.KEYS or assignment.key in keys.STRUCTURED:
        return f"{where} is not taken from a repository; you can say it in your own settings file"
    return f"{where} is no key that a repository can set; it does nothing"
