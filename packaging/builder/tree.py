"""The files of a package, in a directory that stands for the root of a machine: of them come deb and rpm.

Everything of clsecure is below ``/usr/lib/clsecure``: the root-owned pieces as ``clsecure setup`` would put
them, and beside them a private virtual environment (``pyvenv.cfg``, ``bin/python3`` → ``/usr/bin/python3``).
What is the same for every Python lies in ``python/``; what is compiled lies in
``lib/python3.X/site-packages``, of which python itself takes the one that is its own.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

from builder import documents, wheels
from builder.project import PACKAGING, PYTHONS, ROOT, Release, Say, run
from clsecure.installation import GROUP, PACKAGE_DIRECTORY, PACKAGE_SUDOERS_FILE, PIECES
from clsecure.sudoers import COMMON_SETTINGS, OTHER_SETTINGS, setting_line, sudoers_text

LIBRARY = PACKAGE_DIRECTORY.relative_to("/")
DOCUMENTS = Path("usr/share/doc/clsecure")
SUDOERS = PACKAGE_SUDOERS_FILE.relative_to("/")
_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")
_VENV = "home = /usr/bin\ninclude-system-site-packages = false\n"


class Family(StrEnum):
    """The two families of distributions; they differ in where a few files lie."""

    DEB = "deb"
    RPM = "rpm"


def stage(target: Path, release: Release, family: Family, say: Say) -> None:
    """Write all files of a package below an empty directory.

    :raises ToolError: a wheel could not be fetched, or a tool of the build failed.
    """
    library = target / LIBRARY
    library.mkdir(parents=True)
    _pieces(library)
    say("unpacking the locked dependencies")
    found = wheels.fetch(release.architecture, say)
    _private_python(library, found, release, target.parent)
    _machine(target)
    _shells(target, family)
    _documents(target, release, family)
    (target / documents.SBOM).parent.mkdir(parents=True, exist_ok=True)
    (target / documents.SBOM).write_bytes(documents.bill_of_materials(found, release))
    (target / DOCUMENTS / "copyright").write_text(documents.copyright_file(target, library))
    normalise(target, release.epoch)


def normalise(target: Path, epoch: int) -> None:
    """Give everything the permissions and the time that it has in each build, whatever the umask was."""
    for path in [target, *sorted(target.rglob("*"))]:
        if not path.is_symlink():
            path.chmod(_mode(path.relative_to(target), path))
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def files(target: Path) -> Iterator[Path]:
    """Return all files and links of a tree, sorted, relative to it."""
    for path in sorted(target.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(target)


def _mode(relative: Path, path: Path) -> int:
    if path.is_dir():
        # sudo's own; the same as in its package.
        return 0o750 if relative == SUDOERS.parent else 0o755
    if relative == SUDOERS:
        return 0o440
    if any(relative.is_relative_to(LIBRARY / each) for each in ("python", "lib")):
        return 0o644  # modules, whatever a wheel says
    return 0o755 if os.access(path, os.X_OK) else 0o644


def _pieces(library: Path) -> None:
    for piece in PIECES:
        place = library / piece.target
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "clsecure" / piece.source, place)
        place.chmod(piece.mode)
    for name in ("configure", "deconfigure", "purge.py"):
        place = library / "maintainer" / name.removesuffix(".py")
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(PACKAGING / "common" / name, place)
        place.chmod(0o755)


def _private_python(
    library: Path, found: Mapping[str, tuple[wheels.Wheel, ...]], release: Release, scratch: Path
) -> None:
    own = {python: library / "lib" / f"python{python}" / "site-packages" for python in PYTHONS}
    wheels.install(found, release.architecture, {wheels.COMMON: library / "python", **own}, scratch)
    for place in own.values():
        (place / "clsecure.pth").write_text("../../../python\n")
    shutil.copytree(ROOT / "clsecure", library / "python" / "clsecure", ignore=_IGNORED)
    (library / "pyvenv.cfg").write_text(_VENV)
    (library / "bin").mkdir()
    (library / "bin" / "python3").symlink_to("../../../bin/python3")
    shutil.copyfile(ROOT / "bin" / "clsecure", library / "bin" / "clsecure")
    (library / "bin" / "clsecure").chmod(0o755)


def _machine(target: Path) -> None:
    (target / "usr/bin").mkdir(parents=True)
    (target / "usr/bin/clsecure").symlink_to("../lib/clsecure/bin/clsecure")
    (target / SUDOERS).parent.mkdir(parents=True)
    helper = PACKAGE_DIRECTORY / "helper"
    maker = f"Of the package clsecure: members of the group {GROUP} may start the helper."
    text = sudoers_text((f"%{GROUP}",), helper, maker=maker, settings=COMMON_SETTINGS)
    (target / SUDOERS).write_text(text)
    # One line each: on the machine, configure takes those that its sudo knows.
    others = "".join(setting_line(helper, (each,)) for each in OTHER_SETTINGS)
    (target / LIBRARY / "maintainer" / "sudoers-settings").write_text(others)
    run("visudo", "-cqf", str(target / SUDOERS))
    users = target / "usr/lib/sysusers.d/clsecure.conf"
    users.parent.mkdir(parents=True)
    users.write_text(f"g {GROUP} -\n")


def _shells(target: Path, family: Family) -> None:
    zsh = "vendor-completions" if family is Family.DEB else "site-functions"
    places = {
        "clsecure.bash": "bash-completion/completions/clsecure",
        "_clsecure": f"zsh/{zsh}/_clsecure",
        "clsecure.fish": "fish/vendor_completions.d/clsecure.fish",
    }
    for name, place in places.items():
        _copy(ROOT / "clsecure" / "completions" / name, target / "usr/share" / place)
    manual = target / "usr/share/man/man1/clsecure.1.gz"
    manual.parent.mkdir(parents=True)
    compress((ROOT / "docs" / "clsecure.1").read_bytes(), manual)


def _documents(target: Path, release: Release, family: Family) -> None:
    place = target / DOCUMENTS
    read = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.json")]
    for path in sorted([*read, ROOT / "LICENSE"]):
        _copy(path, place / path.relative_to(ROOT))
    shutil.copytree(ROOT / "hooks", place / "examples" / "hooks", ignore=_IGNORED)
    _copy(PACKAGING / "common" / "config.toml", place / "examples" / "config.toml")
    if family is Family.DEB:
        compress(documents.debian_changelog(release).encode(), place / "changelog.gz")
    else:
        _copy(ROOT / "LICENSE", target / "usr/share/licenses/clsecure/LICENSE")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def compress(data: bytes, target: Path) -> None:
    """Write a gzip file that has no name and no time in it."""
    target.write_bytes(gzip.compress(data, compresslevel=9, mtime=0))
