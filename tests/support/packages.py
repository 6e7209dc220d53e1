"""Packages of this checkout, built once for all tests of packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from builder import deb, tree
from builder.project import Release, this_release
from builder.repository import build_repository
from tests.support.clean_machine import Machine

PREVIOUS = "0.0.1"
_SOURCE = b"""Types: deb
URIs: file:///srv/repository/deb
Suites: stable
Components: main
Signed-By: /usr/share/keyrings/clsecure-archive-keyring.gpg
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """What was built.

    :param tree: the staged files of the Debian package.
    :param repository: signed with a key that only this run has.
    """

    release: Release
    tree: Path
    deb: Path
    previous: Path
    repository: Path


def release() -> Release:
    """Return what this checkout builds; in a copy without .git, where ./dev test may run, of a fixed time."""
    if not (Path(__file__).parents[2] / ".git").exists():
        os.environ.setdefault("SOURCE_DATE_EPOCH", "1700000000")
    return this_release()


def build_packages(place: Path) -> Packages:
    """Build the package, one of an earlier version, and a repository that has both."""
    this, output, staged = release(), place / "output", place / "build" / "tree"
    built = deb.build_deb(this, output, staged.parent, lambda _: None)
    earlier = place / "earlier" / "tree"
    shutil.copytree(staged, earlier, symlinks=True)
    for where in ("python/clsecure", "clsecure"):
        file = earlier / tree.LIBRARY / where / "__init__.py"
        file.write_text(re.sub('__version__ = ".*"', f'__version__ = "{PREVIOUS}"', file.read_text()))
    before = Release(version=PREVIOUS, epoch=this.epoch, architecture=this.architecture)
    previous = deb.pack(earlier, before, output)
    build_repository([built, previous], new_key(place / "key"), place / "repository", epoch=this.epoch)
    return Packages(release=this, tree=staged, deb=built, previous=previous, repository=place / "repository")


def new_key(file: Path) -> Path:
    """Make a key that signs, and write its secret part to a file."""
    home = file.with_name(f"{file.name}.gnupg")
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--batch", "--quiet", "--homedir", home]
    make = [
        *gpg,
        "--passphrase",
        "",
        "--quick-generate-key",
        "Tests <tests@packages.invalid>",
        "ed25519",
        "sign",
    ]
    subprocess.run([*make, "never"], check=True, capture_output=True, timeout=60)
    exported = subprocess.run([*gpg, "--export-secret-keys"], check=True, capture_output=True, timeout=60)
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True, timeout=60)
    shutil.rmtree(home)
    file.write_bytes(exported.stdout)
    file.chmod(0o600)
    return file


def add_source(machine: Machine) -> None:
    """Do what docs/install.md tells people to do before ``apt install clsecure``."""
    machine.write("/etc/apt/sources.list.d/clsecure.sources", _SOURCE)
    machine.sh("cp /srv/repository/clsecure-archive-keyring.gpg /usr/share/keyrings/").check()
