"""The root-owned pieces as they lie where they are installed: what is of several modules only works there."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from clsecure.installation import PIECES, source_directory


def put(directory: Path) -> Path:
    """Write all pieces as setup would; they belong to whoever runs the tests."""
    for piece in PIECES:
        target = directory / piece.target
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        target.write_bytes((source_directory() / piece.source).read_bytes())
        target.chmod(piece.mode)
    return directory


@functools.cache
def installed() -> Path:
    """Return a directory with all pieces that is there as long as the tests run."""
    directory = tempfile.mkdtemp(prefix="clsecure-pieces-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return put(Path(directory))
