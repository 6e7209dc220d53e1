"""A root file system from Debian's packages, by mmdebstrap, from files alone and without the network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from clsecure import process
from clsecure.errors import ImageError
from clsecure.images.lock import LockedPackage
from clsecure.process import SYSTEM_PATH, Command

_TIMEOUT = 1800.0

# Left out as dpkg unpacks: the layer would not take them anyway.
_EXCLUDED = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*")

# Byte code as it is made at installation depends on the order of things. One process, sorted names, no random
# hashes: the same each time. It is not compared with its source: image files don't change.
_COMPILE = (
    'find "$1/usr/lib" -name __pycache__ -prune -exec rm -rf {} + && '
    'env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 PYTHONHASHSEED=0 chroot "$1" /bin/sh -c '
    # The pattern is the new root's to expand: this machine has another python.
    "'exec python3 -S -m compileall -q -j 1 --invalidation-mode unchecked-hash "
    '-x "/(test|tests|idlelib)/" /usr/lib/python3.* /usr/lib/python3/dist-packages\''
)


def make_root(
    packages: Mapping[LockedPackage, Path],
    directory: Path,
    *,
    suite: str,
    epoch: int,
    progress: Callable[[str], None],
) -> Path:
    """Install packages into an empty root and return it as a tar file, not yet normalised.

    :param packages: each with its .deb, already checked.
    :param directory: empty, and such that other accounts can enter it: mmdebstrap may work as one.
    :raises ImageError: mmdebstrap can't work here.
    """
    repository, target = directory / "repository", directory / "root.tar"
    _write_repository(packages, repository)
    env = {
        "PATH": SYSTEM_PATH,
        "LC_ALL": "C.UTF-8",
        "SOURCE_DATE_EPOCH": str(epoch),
        "TMPDIR": str(directory),
        "DEBIAN_FRONTEND": "noninteractive",
    }
    command = Command(argv=_command(packages, repository, target, suite), env=env, timeout=_TIMEOUT)
    progress(f"installing {len(packages)} packages")
    done = process.run_group(command)
    if done.returncode != 0:
        raise ImageError(
            "mmdebstrap could not make the root file system",
            details=f"{command.display()}\n{done.stderr[-4000:].decode('utf-8', 'replace')}".rstrip(),
            resolution=None
            if os.geteuid() == 0
            else "a plain user needs uidmap, ranges in /etc/subuid and /etc/subgid, and user namespaces",
        )
    return target


def _command(
    packages: Mapping[LockedPackage, Path], repository: Path, target: Path, suite: str
) -> tuple[str, ...]:
    (architecture,) = {each.architecture for each in packages} - {"all"}
    return (
        "mmdebstrap",
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        "--variant=custom",
        "--format=tar",
        f"--architectures={architecture}",
        f"--include={','.join(each.pin for each in sorted(packages, key=lambda each: each.name))}",
        '--aptopt=APT::Sandbox::User "root"',
        "--aptopt=Acquire::Languages \"none\"",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED),
        f"--customize-hook={_COMPILE}",
        suite,
        str(target),
        f"deb [trusted=yes] copy://{repository} ./",
    )  # fmt: skip


def _write_repository(packages: Mapping[LockedPackage, Path], repository: Path) -> None:
    """Make a mirror of these files alone. They are trusted: each has the hash that the lock names."""
    repository.mkdir()
    repository.chmod(0o755)  # whatever the umask: mmdebstrap reads it as another account
    rows = []
    for package in sorted(packages, key=lambda each: (each.name, each.architecture)):
        name = f"{package.sha256}.deb"
        _copy_checked(packages[package], repository / name, package)
        control = process.run(Command(argv=("dpkg-deb", "--field", str(repository / name)))).check().stdout
        rows.append(
            f"{control.decode('utf-8').strip()}\nFilename: ./{name}\n"
            f"Size: {package.size}\nSHA256: {package.sha256}\n"
        )
    (repository / "Packages").write_text("\n".join(rows), encoding="utf-8")
    (repository / "Packages").chmod(0o644)


def _copy_checked(source: Path, target: Path, package: LockedPackage) -> None:
    """Copy and hash in one go: what is used is what was checked."""
    digest = hashlib.sha256()
    with source.open("rb") as reading, target.open("xb") as writing:
        while chunk := reading.read(1 << 20):
            digest.update(chunk)
            writing.write(chunk)
    if digest.hexdigest() != package.sha256:
        raise ImageError(
            f"{package.pin} is not the file that the lock names",
            details=f"sha256 {digest.hexdigest()}, locked {package.sha256}",
        )
    target.chmod(0o644)
