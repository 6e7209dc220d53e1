"""What a test run leaves for people to look at; only where a directory is named for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def place() -> Path | None:
    """Return the directory, made; None where nobody wants them."""
    named = os.environ.get("CLSECURE_TEST_ARTEFACTS")
    if not named:
        return None
    directory = Path(named)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def keep(file: Path) -> None:
    """Keep a file under its own name."""
    directory = place()
    if directory is not None:
        shutil.copyfile(file, directory / file.name)
