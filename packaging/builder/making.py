"""What the tasks of ``tasks.py`` do."""

from __future__ import annotations

import filecmp
import tempfile
from collections.abc import Callable
from pathlib import Path

from builder.deb import build_deb
from builder.project import OUTPUT, Release, Say, this_release
from builder.repository import build_repository
from builder.rpm import build_rpm
from clsecure.errors import StateError

Build = Callable[[Release, Path, Path, Say], Path]


def make_deb(output: Path, *, twice: bool, say: Say) -> Path:
    """Build the Debian package.

    :param twice: build it a second time from the start; other bytes are an error.
    """
    return make(build_deb, output, twice=twice, say=say)


def make_rpm(output: Path, *, twice: bool, say: Say) -> Path:
    """Build the RPM package, as :func:`make_deb` builds Debian's."""
    return make(build_rpm, output, twice=twice, say=say)


def make_repository(key: Path, output: Path, *, say: Say) -> None:
    """Write signed repositories of all that was built."""
    packages = sorted(path for path in OUTPUT.glob("clsecure*") if path.suffix in (".deb", ".rpm"))
    build_repository(packages, key, output, epoch=this_release().epoch, say=say)
    say(f"the repositories are in {output}")


def make(build: Build, output: Path, *, twice: bool, say: Say) -> Path:
    """Build something once or twice.

    :raises StateError: two builds, two results.
    """
    release = this_release()
    package = _once(build, release, output, say)
    say(f"{package}")
    if twice:
        with tempfile.TemporaryDirectory(prefix="clsecure-again-") as again:
            if not filecmp.cmp(package, _once(build, release, Path(again), say), shallow=False):
                raise StateError(f"{package.name}: two builds, two results")
        say("built twice, byte for byte the same")
    return package


def _once(build: Build, release: Release, output: Path, say: Say) -> Path:
    # Another path each time: none may get into a package.
    with tempfile.TemporaryDirectory(prefix="clsecure-package-") as work:
        return build(release, output, Path(work), say)
