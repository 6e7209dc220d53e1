"""What a test run leaves for people to look at: screenshots, tables. Kept by CI, else where one is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.support.person import CHECKOUT


def place() -> Path | None:
    """Return the directory, made; None where nobody wants them: a checkout may belong to somebody else."""
    named = os.environ.get("CLSECURE_TEST_ARTEFACTS")
    if named is None and not os.environ.get("CI"):
        return None
    directory = Path(named) if named else CHECKOUT / "build" / "artefacts"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def keep(file: Path) -> None:
    """Keep a file under its own name."""
    directory = place()
    if directory is not None:
        shutil.copyfile(file, directory / file.name)
