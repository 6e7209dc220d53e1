"""What several users of this machine share, besides the system's own directories: Homebrew."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Sequence
from pathlib import Path

from clsecure.model import Mount

HOMEBREW = Path("/home/linuxbrew/.linuxbrew")

# Not "var", where services keep data and sockets, and not "etc" as a whole, where they keep passwords.
_PARTS = (
    "bin", "sbin", "Cellar", "opt", "lib", "libexec", "share", "include",
    "etc/ca-certificates", "etc/openssl@3",
)  # fmt: skip
_WORKER = "claude-worker-"


def toolchain_mounts(mounts: Sequence[Mount], *, prefix: Path = HOMEBREW) -> tuple[Mount, ...]:
    """Return read-only mounts of a shared Homebrew; none where it is not there, or not safe.

    Safe is what only root and the owner of the prefix can change, without a link on the way: directories
    that anybody may write to could be exchanged for ones of the user's own.

    :param mounts: the user's, which win where they have to do with the same place.
    """
    if any(m.target.is_relative_to(prefix) or prefix.is_relative_to(m.target) for m in mounts):
        return ()
    try:
        owner = os.lstat(prefix).st_uid
        if _is_worker(owner) or not all(_is_safe(p, owner) for p in (prefix, *prefix.parents)):
            return ()
    except OSError:
        return ()
    found = (prefix / part for part in _PARTS)
    return tuple(
        Mount(source=place, target=place, direct=True)
        for place in found
        if all(_is_safe(p, owner) for p in (place, *place.parents) if p.is_relative_to(prefix))
    )


def _is_safe(path: Path, owner: int) -> bool:
    try:
        info = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid in (0, owner) and not info.st_mode & stat.S_IWOTH


def _is_worker(uid: int) -> bool:
    try:
        return pwd.getpwuid(uid).pw_name.startswith(_WORKER)
    except KeyError:
        return True  # an account that is gone; its number may become anybody's
