"""Attributes of files in quarantine. git before 2.40 takes them from an index only, never from a tree."""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from clsecure.git import Git
from clsecure.importer.bounded import MIB, Bounds, Child, output
from clsecure.importer.quarantine import listing
from clsecure.importer.summary import changed_files

_NO_FILTER = frozenset({b"unspecified", b"unset", b"set", b"lfs"})


def filtered(git: Git, old: str, new: str, *, bounds: Bounds) -> Iterator[tuple[bytes, bytes]]:
    """Yield path and filter of the changed files for which ``new`` asks for a filter other than LFS."""
    rules = [p for p in listing(git, new, bounds=bounds) if posixpath.basename(p) == b".gitattributes"]
    if not rules:
        return
    with tempfile.TemporaryDirectory(dir=git.git_dir) as place, tempfile.TemporaryFile() as asked:
        for change in changed_files(git, old, new, bounds=bounds):
            if change.status != "D" and change.new_mode.startswith("100"):
                asked.write(change.raw + b"\0")
        asked.seek(0)
        indexed = replace(git, extra_env={**git.extra_env, "GIT_INDEX_FILE": str(Path(place, "index"))})
        output(indexed, "read-tree", new, bounds=bounds)
        with Child(
            indexed, "check-attr", "--cached", "-z", "--stdin", "filter", bounds=bounds, stdin=asked
        ) as child:
            items = child.items(b"\0", 4096 * MIB)
            for path, _, value in zip(items, items, items, strict=True):
                if value not in _NO_FILTER:
                    yield path, value
