"""Packages of this checkout, built once for all tests of packages."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from builder import deb, rpm, tree
from builder.project import Release, this_release
from builder.repository import build_repository, new_key
from tests.support.clean_machine import Machine

PREVIOUS = "0.0.1"
FORMER = "clsecure_former"
"""Modules that only the version before has."""
QUICK = 1
"""The compression: that of a release takes half of the time of all these tests."""
_GUIDE = Path(__file__).parents[2] / "docs" / "install.md"
_FILE = re.compile(r"^sudo tee (/etc/\S+) <<'END'\n(.*?)^END$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """What was built: a package, and one of an earlier version.

    :param repository: signed with a key that only this run has.
    """

    release: Release
    built: Path
    previous: Path
    repository: Path


def release() -> Release:
    """Return what this checkout builds; in a copy without .git, where ./dev test may run, of a fixed time."""
    if not (Path(__file__).parents[2] / ".git").exists():
        os.environ.setdefault("SOURCE_DATE_EPOCH", "1700000000")
    return this_release()


def build_debs(place: Path) -> Packages:
    """Build Debian packages, and a repository that has both."""
    output, earlier = place / "output", place / "earlier"
    built = deb.build_deb(release(), output, place / "build", lambda _: None, level=QUICK)
    before = _earlier(place / "build" / "tree", earlier / "tree")
    return _published(place, built, deb.pack(earlier / "tree", before, output, level=QUICK))


def build_rpms(place: Path) -> Packages:
    """Build RPM packages, and a repository that has both."""
    output, earlier = place / "output", place / "earlier"
    built = rpm.build_rpm(release(), output, place / "build", lambda _: None, level=QUICK)
    before = _earlier(place / "build" / "tree", earlier / "tree")
    return _published(place, built, rpm.pack(earlier / "tree", before, output, level=QUICK))


def _earlier(staged: Path, target: Path) -> Release:
    """Make the files of an earlier version: its root-owned pieces differ from this one's."""
    shutil.copytree(staged, target, symlinks=True)
    for where in ("python/clsecure", "clsecure"):
        file = target / tree.LIBRARY / where / "__init__.py"
        file.write_text(re.sub('__version__ = ".*"', f'__version__ = "{PREVIOUS}"', file.read_text()))
    # A directory that a later version does not have.
    former = target / tree.LIBRARY / "python" / FORMER / "inner"
    former.mkdir(parents=True)
    for place in (former.parent, former):
        (place / "__init__.py").write_text("former = True\n")
    return dataclasses.replace(release(), version=PREVIOUS)


def _published(place: Path, built: Path, previous: Path) -> Packages:
    this, repository = release(), place / "repository"
    build_repository([built, previous], new_key(place / "key"), repository, epoch=this.epoch)
    return Packages(release=this, built=built, previous=previous, repository=repository)


def add_dnf_source(machine: Machine) -> None:
    """Do what docs/install.md tells people to do before ``dnf install clsecure``."""
    machine.write(*_documented("/etc/yum.repos.d"))


def _documented(place: str) -> tuple[str, bytes]:
    """Return the file that the guide has for a directory, with the repository of the machine."""
    (found,) = (match for match in _FILE.finditer(_GUIDE.read_text()) if match[1].startswith(place))
    return found[1], found[2].replace("https://packages.example.org", "file:///srv/repository").encode()


def needs(package: Path) -> set[str]:
    """Return what an RPM package requires of others."""
    asked = subprocess.run(["rpm", "-qp", "--requires", package], capture_output=True, text=True, check=True)
    return {line for line in asked.stdout.splitlines() if not line.startswith(("rpmlib(", "config("))}


def stand_in(needed: set[str], python: str, place: Path) -> Path:
    """Make an RPM package that says to be what a distribution has: Debian's rpm knows of no other."""
    plain = sorted(re.sub(r"[<>]=?", "=", each) for each in needed if not each.startswith("("))
    provides = [f"Provides: {each}" for each in (*plain, f"python3 = {python}")]
    place.mkdir()
    spec = place / "stand-in.spec"
    head = f"Name: stand-in\nVersion: {python}\nRelease: 1\nSummary: x\nLicense: MIT\nBuildArch: noarch\n"
    spec.write_text("\n".join([head, *provides, "%description", "x", "%files", ""]))
    defined = ["--define", f"_topdir {place}", "--define", f"_dbpath {place}/database"]
    subprocess.run(
        ["rpmbuild", "-bb", "--quiet", *defined, spec], check=True, capture_output=True, timeout=60
    )
    (built,) = place.rglob("*.rpm")
    return built


def add_source(machine: Machine) -> None:
    """Do what docs/install.md tells people to do before ``apt install clsecure``."""
    machine.write(*_documented("/etc/apt/sources.list.d"))
    machine.sh("cp /srv/repository/clsecure-archive-keyring.gpg /etc/apt/keyrings/").check()
