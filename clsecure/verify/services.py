"""The sockets in the file system that services of this machine listen on, and that the user can use."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from clsecure.backends.container.spec import RUN

MOST = 48
"""Of those that the kernel tells of; each is tried from inside."""
BAIT = "clsecure-info-"
_TABLE, _TABLE_LIMIT = Path("/proc/net/unix"), 4 << 20
_ACCEPTS, _DATAGRAMS = 1 << 16, "0002"
_FAR = ("autofs", "nfs", "cifs", "smb", "fuse", "9p", "afs", "ceph", "gluster", "lustre")
_REACHED = frozenset({None, "EPROTOTYPE", "EAGAIN"})
"""It was found, it may be written to, and it takes datagrams say, or has enough callers already."""


def services(environ: Mapping[str, str]) -> dict[str, str]:
    """Return them by label: engines, buses, keys and desktops, and whatever else listens here.

    :param environ: the user's, which says where some are.
    """
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    own = ("bus", "podman/podman.sock", "docker.sock", "gnupg/S.gpg-agent", "keyring/ssh", "wayland-0")
    paths = [
        *("/run/docker.sock", "/run/podman/podman.sock", "/run/containerd/containerd.sock"),
        *("/run/dbus/system_bus_socket", "/run/systemd/private", "/run/snapd.socket"),
        *("/tmp/.X11-unix/X0", environ.get("SSH_AUTH_SOCK", "")),  # noqa: S108  # where X11 has it
        *(f"{runtime}/{name}" for name in own),
    ]
    known = [path for path in paths if path.startswith("/") and stat.S_ISSOCK(_mode(path))]
    return {path: path for path in (*known, *_machines())}


def reached(error: str | None) -> bool:
    """Tell by how connecting went whether a service could be spoken to."""
    return error in _REACHED


def _machines() -> list[str]:
    """Return what the user can connect to of all that listens, first what everybody can; bounded."""
    found: dict[str, bool] = {}
    remote = _remote()
    for path in _listening():
        mode = _mode(path) if _is_near(path, remote) else 0
        if stat.S_ISSOCK(mode) and os.access(path, os.W_OK):
            found[path] = not mode & stat.S_IWOTH
    return sorted(found, key=lambda path: (found[path], path))[:MOST]


def _listening() -> Iterator[str]:
    """Give the paths at which something listens by the kernel's table, but for what is clsecure's own."""
    with contextlib.suppress(OSError), _TABLE.open("rb") as file:
        for line in file.read(_TABLE_LIMIT).decode("utf-8", "replace").splitlines():
            fields = line.split(maxsplit=7)
            if len(fields) < 8 or not fields[7].startswith("/"):
                continue
            path, listens = fields[7], fields[4] == _DATAGRAMS
            # A name may hold the end of a line, and whatever its owner wants to be the next one.
            with contextlib.suppress(ValueError):
                listens = listens or bool(int(fields[3], 16) & _ACCEPTS)
            if listens and BAIT not in path and not path.startswith(f"{RUN}/"):
                yield path


def _remote() -> tuple[str, ...]:
    """Return where file systems are mounted that may never answer."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").split("\n")[:-1]:
            head, _, tail = line.partition(" - ")
            if tail.startswith(_FAR):
                # Blanks and the like are escaped there (proc(5)); such a name is compared as far as it goes.
                found.append(head.split(" ")[4].partition("\\")[0])
    return tuple(found)


def _is_near(path: str, remote: tuple[str, ...]) -> bool:
    """Tell whether looking at a path can't take for ever: anybody can have any path in the kernel's table.

    Not through links, but for the one that systems have: they can lead anywhere.
    """
    path = path.replace("/var/run/", "/run/", 1) if path.startswith("/var/run/") else path
    place = Path(path)
    if place.as_posix() != path or ".." in place.parts or path.startswith(remote):
        return False
    return not any(_is_link(parent) for parent in reversed(place.parents))


def _is_link(place: Path) -> bool:
    # Behind what is closed to the user the look itself finds nothing.
    with contextlib.suppress(OSError):
        return place.is_symlink()
    return False


def _mode(path: str) -> int:
    """Return a mode of stat(2), 0 where there is nothing."""
    with contextlib.suppress(OSError):
        return Path(path).stat().st_mode
    return 0
