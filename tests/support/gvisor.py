"""gVisor's runtime from Debian 13, unpacked beside the machine's own programs and taken away again."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from clsecure.errors import ClsecureError
from clsecure.images.apt import Apt
from clsecure.images.mirror import choose_mirror
from clsecure.images.reference import machine_architecture
from tests.support.built_images import RUN

_PREFIX = "clsecure-test-gvisor-"
_BESIDE, _TEMPORARY = Path("/usr/local/lib"), Path("/var/tmp")


@contextlib.contextmanager
def runsc() -> Iterator[str]:
    """Yield the path of the runtime: root's own and below /usr, as clsecure wants it."""
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{RUN}-", dir=_TEMPORARY) as name:
        place = Path(name)
        apt = Apt(
            directory=place / "apt",
            mirror=choose_mirror(None),
            suite="trixie",
            architecture=machine_architecture(),
        )
        (place / "apt").mkdir()
        try:
            apt.prepare()
            (package,) = [
                each for each in apt.resolve(("runsc",), place / "debs") if each.name.startswith("runsc_")
            ]
        except ClsecureError as error:
            pytest.skip(f"left out: gVisor can't be fetched: {error.brief} {error.details or ''}")
        subprocess.run(["dpkg-deb", "-x", str(package), str(place / "root")], check=True, timeout=120)
        program = _BESIDE / f"{_PREFIX}{RUN}-{os.getpid()}" / "runsc"
        program.parent.mkdir()
        try:
            shutil.copy(place / "root/usr/bin/runsc", program)
            program.chmod(0o755)
            yield str(program)
        finally:
            shutil.rmtree(program.parent)


def sweep(run: str) -> None:
    """Remove what a killed run left."""
    for place in (*_BESIDE.glob(f"{_PREFIX}{run}-*"), *_TEMPORARY.glob(f"{_PREFIX}{run}-*")):
        shutil.rmtree(place, ignore_errors=True)
