"""What is installed root-owned on this machine, and whether it is what this copy of clsecure expects.

The pieces that root and the worker execute never run from a checkout: they are copied once to a root-owned
directory (by a package, or by ``clsecure setup``). Running different versions on the two sides would be a
protocol that nobody tested, so every start compares digests first; that costs about a millisecond.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clsecure.errors import BackendUnavailableError

PACKAGE_DIRECTORY = Path("/usr/lib/clsecure")
SETUP_DIRECTORY = Path("/usr/local/lib/clsecure")
SUDOERS_FILE = Path("/etc/sudoers.d/clsecure")
PACKAGE_SUDOERS_FILE = Path("/etc/sudoers.d/clsecure-package")
"""A package's own: it and ``clsecure setup`` can be on one machine, each with the helper of its version."""
STATE_DIRECTORY = Path("/var/lib/clsecure")
GROUP = "clsecure"
"""Members may use the helper without a password."""

_MAX_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One file that is installed root-owned.

    :param source: its path in the package ``clsecure``.
    :param target: its path in the installation directory.
    :param mode: permission bits of the installed file.
    """

    source: str
    target: str
    mode: int


_PACKAGES = {
    "root": (
        "__init__", "accounts", "agents", "channel", "disk", "engine", "facts", "kernel", "killing", "limits",
        "listing", "looking", "messages", "modes", "network", "places", "processes", "registry", "remains",
        "request", "sandbox", "seccomp", "sidecar", "state", "stores", "userspace", "view", "walk",
    ),
    "exporter": (
        "__init__", "files", "history", "homesize", "index", "lfs", "outgoing", "refusals", "repository",
        "request", "run", "scratch", "takeback", "unit", "worktree",
    ),
    "unpacker": ("__init__", "lfs", "records", "repository", "rewriting", "run", "tree", "unit"),
}  # fmt: skip
"""What the helper, ``export.py`` and ``unpack.py`` consist of, below ``clsecure/privileged``."""
_LIBRARY = (
    "__init__.py",
    "privileged/__init__.py",
    "privileged/portable.py",  # which is a program of its own as well
    *(f"privileged/{package}/{name}.py" for package, names in _PACKAGES.items() for name in names),
)
_ALONE = (
    "launcher.py", "bridge.py", "unpack.py", "export.py", "portable.py", "prepare.py", "cleanup.py",
    "inside.py",
    "firejail.profile",
)  # fmt: skip
PIECES = (
    Piece(source="privileged/helper.py", target="helper", mode=0o755),
    *(Piece(source=name, target=f"clsecure/{name}", mode=0o644) for name in _LIBRARY),
    *(Piece(source=f"privileged/{name}", target=name, mode=0o644) for name in _ALONE),
)
DIRECTORIES = ("clsecure", "clsecure/privileged", *(f"clsecure/privileged/{name}" for name in _PACKAGES))
"""Where programs look for their modules, below the installation directory: outermost first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """The root-owned pieces that are on this machine.

    :param stale: targets that are missing, differ from this copy of clsecure, or are not safely owned.
    """

    directory: Path
    stale: tuple[str, ...] = ()

    @property
    def helper(self) -> Path:
        """The one program that runs as root."""
        return self.directory / "helper"

    @property
    def launcher(self) -> Path:
        """What every sandbox executes."""
        return self.directory / "launcher.py"

    @property
    def unpack(self) -> Path:
        """Receives the private copy, inside."""
        return self.directory / "unpack.py"

    @property
    def export(self) -> Path:
        """Writes the agent's work to a pipe, inside."""
        return self.directory / "export.py"

    @property
    def prepare(self) -> Path:
        """Runs the setup script and the package managers, inside."""
        return self.directory / "prepare.py"

    @property
    def cleanup(self) -> Path:
        """Runs the repository's cleanup hook, inside."""
        return self.directory / "cleanup.py"

    @property
    def inside(self) -> Path:
        """Tries what can be done from inside, for ``clsecure info``."""
        return self.directory / "inside.py"

    @property
    def profile(self) -> Path:
        """The firejail policy."""
        return self.directory / "firejail.profile"

    @property
    def matches(self) -> bool:
        """True when every piece is byte for byte what this copy of clsecure ships."""
        return not self.stale


def source_directory() -> Path:
    """Return where this copy of clsecure is: the package."""
    return Path(__file__).resolve().parent


def is_packaged() -> bool:
    """Tell whether this copy of clsecure is a package's, which brings its root-owned pieces along."""
    return source_directory().is_relative_to(PACKAGE_DIRECTORY)


def how_to_install() -> str:
    """Return what puts the root-owned pieces of this very copy of clsecure in their place."""
    return "install the package clsecure again" if is_packaged() else "clsecure setup"


def how_to_allow(user: str) -> str:
    """Return what lets somebody use them."""
    if not is_packaged():
        return "clsecure setup"
    return f"sudo usermod --append --groups {GROUP} {shlex.quote(user)}   (and log in again)"


def read_piece(path: Path) -> bytes:
    """Read one piece, once: a regular file, no link, at most 1 MiB.

    :raises OSError: it is missing or something else than that.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is not a regular file")
        if found.st_size > _MAX_PIECE:
            raise OSError(f"{path} is larger than {_MAX_PIECE} bytes")
        data = file.read(found.st_size + 1)
    if len(data) != found.st_size:
        raise OSError(f"{path} changes while it is read")
    return data


def digest(data: bytes) -> str:
    """Return the sha256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def is_safely_owned(path: Path, *, owner: int = 0) -> bool:
    """Tell whether only ``owner`` can change the file or directory; a link does not count."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    kind = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
    return kind and found.st_uid == owner and not found.st_mode & 0o022


def strangers(directory: Path) -> list[Path]:
    """Return what is no piece where programs look for their modules; python could take it for one of them.

    A directory or an extension of a module's name comes before the module, a compiled one in its place.
    """
    known = {directory / piece.target for piece in PIECES} | {directory / name for name in DIRECTORIES}
    found: list[Path] = []
    for name in DIRECTORIES:
        place = directory / name
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            return [*found, place]
        with contextlib.suppress(FileNotFoundError):
            found += (path for path in sorted(place.iterdir()) if path not in known)
    return found


def inspect(directory: Path, *, owner: int = 0) -> Installation | None:
    """Compare one directory with this copy of clsecure; None when nothing is installed there.

    :param owner: who must own what is there; only tests ask for somebody else than root.
    """
    if not os.path.lexists(directory / "helper"):
        return None
    sources = source_directory()
    places = (directory, *(directory / name for name in DIRECTORIES))
    if not all(is_safely_owned(place, owner=owner) for place in places if os.path.lexists(place)):
        return Installation(directory=directory, stale=tuple(piece.target for piece in PIECES))
    stale = []
    for piece in PIECES:
        target = directory / piece.target
        try:
            same = read_piece(target) == read_piece(sources / piece.source)
            mode_is_right = stat.S_IMODE(os.lstat(target).st_mode) == piece.mode
        except OSError:
            same = mode_is_right = False
        if not (same and mode_is_right and is_safely_owned(target, owner=owner)):
            stale.append(piece.target)
    stale += (str(path.relative_to(directory)) for path in strangers(directory))
    return Installation(directory=directory, stale=tuple(stale))


def find_installation(
    directories: Sequence[Path] = (PACKAGE_DIRECTORY, SETUP_DIRECTORY), *, owner: int = 0
) -> Installation:
    """Return the installation that matches this copy of clsecure, else the first one there is.

    :raises BackendUnavailableError: nothing is installed.
    """
    found = [one for one in (inspect(each, owner=owner) for each in directories) if one is not None]
    if not found:
        raise BackendUnavailableError(
            "clsecure's root-owned pieces are not installed",
            details="Sessions need a small helper that makes worker accounts; it lives in a directory that "
            f"only root can change ({directories[-1]}).",
            resolution="Install it with: clsecure setup   (it shows what it would do, and asks)"
            if not is_packaged()
            else how_to_install(),
        )
    return next((one for one in found if one.matches), found[0])


def require_installation(
    directories: Sequence[Path] = (PACKAGE_DIRECTORY, SETUP_DIRECTORY), *, owner: int = 0
) -> Installation:
    """Return the installation that sessions may use.

    :raises BackendUnavailableError: nothing is installed, or it is not what this copy of clsecure ships.
    """
    installation = find_installation(directories, owner=owner)
    if not installation.matches:
        raise BackendUnavailableError(
            "clsecure's root-owned pieces differ from this version",
            details=f"In {installation.directory}: {', '.join(installation.stale)}",
            resolution=f"Update them: {how_to_install()}",
        )
    return installation
