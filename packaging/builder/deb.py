"""The Debian package, by dpkg-deb from a staged tree."""

from __future__ import annotations

import hashlib
import re
import shutil
import textwrap
from pathlib import Path

from builder.documents import DESCRIPTION, MAINTAINER, SUMMARY
from builder.project import PACKAGING, PYTHONS, Release, Say, run
from builder.tree import LIBRARY, SUDOERS, Family, files, normalise, stage

_SCRIPTS = ("postinst", "prerm", "postrm")
_CONFIGURATION = (SUDOERS,)
_RECOMMENDS = "firejail (>= 0.9.72), nftables, podman, uidmap, passt"
_SUGGESTS = "docker.io | docker-ce, git-lfs, npm, mmdebstrap"
# One thread: with several, xz writes other bytes.
_DPKG = ("dpkg-deb", "--root-owner-group", "--uniform-compression", "-Zxz", "--threads-max=1")


def build_deb(release: Release, output: Path, work: Path, say: Say, *, level: int = 6) -> Path:
    """Stage and build the package.

    :param work: an empty directory; it is taken away by who made it.
    :param level: of the compression; 0 to 9.
    :raises ToolError: a tool of the build failed.
    """
    tree = work / "tree"
    stage(tree, release, Family.DEB, say)
    return pack(tree, release, output, level=level)


def pack(tree: Path, release: Release, output: Path, *, level: int) -> Path:
    """Build the package of a staged tree."""
    control = tree / "DEBIAN"
    shutil.rmtree(control, ignore_errors=True)
    overrides = tree / "usr/share/lintian/overrides/clsecure"
    overrides.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(PACKAGING / "deb" / "lintian-overrides", overrides)
    normalise(tree, release.epoch)
    installed = [path for path in files(tree) if not (tree / path).is_symlink()]
    size = sum(-(-(tree / path).stat().st_size // 1024) for path in installed)
    sums = "".join(
        f"{hashlib.md5((tree / path).read_bytes(), usedforsecurity=False).hexdigest()}  {path}\n"
        for path in installed
        if path not in _CONFIGURATION
    )
    depends = _libraries(tree)
    control.mkdir()
    (control / "control").write_text(_control(release, size, depends))
    (control / "md5sums").write_text(sums)
    (control / "conffiles").write_text("".join(f"/{path}\n" for path in _CONFIGURATION))
    (control / "triggers").write_text("interest-noawait /usr/bin/python3\n")
    for name in _SCRIPTS:
        shutil.copyfile(PACKAGING / "deb" / name, control / name)
    normalise(control, release.epoch)
    for name in _SCRIPTS:
        (control / name).chmod(0o755)
    output.mkdir(parents=True, exist_ok=True)
    package = release.deb(output)
    package.unlink(missing_ok=True)
    epoch = {"SOURCE_DATE_EPOCH": str(release.epoch)}
    run(*_DPKG, f"-z{level}", "--build", str(tree), str(package), env=epoch)
    return package


def _control(release: Release, size: int, libraries: str) -> str:
    fields = {
        "Package": "clsecure",
        "Version": release.package_version,
        "Architecture": release.architecture.debian,
        "Maintainer": MAINTAINER,
        "Installed-Size": str(size),
        "Depends": f"git (>= 1:2.34), sudo, passwd, python3 (>= {PYTHONS[0]}), "
        f"python3 (<< {release.next_python}), {libraries}",
        "Recommends": _RECOMMENDS,
        "Suggests": _SUGGESTS,
        "Section": "devel",
        "Priority": "optional",
    }
    description = textwrap.indent(textwrap.fill(DESCRIPTION, 78), " ")
    lines = [f"{key}: {value}\n" for key, value in fields.items()]
    return "".join((*lines, f"Description: {SUMMARY}\n{description}\n"))


def _libraries(tree: Path) -> str:
    """Return the packages of the shared libraries that compiled wheels need, as dpkg knows them."""
    compiled = sorted(str(path) for path in (tree / LIBRARY).rglob("*.so*") if path.is_file())
    place = tree.parent / "shlibdeps"
    (place / "debian").mkdir(parents=True, exist_ok=True)
    (place / "debian" / "control").write_text("Source: clsecure\n\nPackage: clsecure\nArchitecture: any\n")
    # Libraries that a wheel brings along lie beside it, and are no package's.
    own = {str(Path(path).parent) for path in compiled}
    asked = run(
        "dpkg-shlibdeps", "-O", "--ignore-missing-info", "--warnings=0",
        *(f"-l{each}" for each in sorted(own)), *compiled, cwd=place,
    )  # fmt: skip
    found = re.search(rb"shlibs:Depends=(.*)", asked)
    return found[1].decode() if found is not None else "libc6"
