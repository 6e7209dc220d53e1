"""What container mode needs of the machine, seen without starting an engine."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from clsecure.errors import BackendUnavailableError, UsageError
from clsecure.machine.probe import find_program, install_command, parse_version, words
from clsecure.model import Engine

DOCKER_SOCKET = Path("/run/docker.sock")
"""Where docker listens unless ``DOCKER_HOST`` says another place; ``/var/run`` is a link to ``/run``."""

MINIMUM_PODMAN = (4, 3)
PODMAN_PROGRAMS = ("podman", "conmon", "crun")
"""What a container needs with podman."""
OWN_ENGINE_PROGRAMS = ("podman", "crun", "netavark", "aardvark-dns")
"""What a session's own engine needs, in every mode; besides, one of :data:`FIREWALLS`."""
MINIMUM_KERNEL = (5, 11)
"""The first with overlay file systems in user namespaces."""
RIGHT_STATUS = (4, 6)
"""The first podman whose API tells docker's client how a container ended that is removed at once."""
FIREWALLS = ("nft", "iptables")
"""netavark makes the networks between containers with one of these."""

_USR = Path("/usr")

# Debian and Fedora put programs that nobody calls by hand beside each other in different places.
_PATH = "/usr/local/bin:/usr/bin:/usr/sbin:/usr/libexec/podman:/usr/lib/podman"


def find_engine_program(name: str) -> Path | None:
    """Return where a program of podman's is, None when it is not installed."""
    return find_program(name, _PATH)


def lacking(engine: Engine) -> Iterator[str]:
    """Give what the engine lacks, as words that fit after "lacks"."""
    if engine is Engine.PODMAN:
        yield from (name for name in PODMAN_PROGRAMS if find_engine_program(name) is None)
        if parse_version(os.uname().release) < MINIMUM_KERNEL:
            yield f"overlay in user namespaces (Linux {'.'.join(map(str, MINIMUM_KERNEL))})"
    else:
        yield from _docker_lacking()


def unusable(engine: Engine) -> Iterator[str]:
    """Give what :func:`lacking` does; podman is asked for its version, which takes a moment."""
    yield from lacking(engine)
    path = find_engine_program("podman") if engine is Engine.PODMAN else None
    # One that others could change is not run, not even for this: the helper refuses it, with words.
    if path is None or not _is_roots(path):
        return
    if () < parse_version(words(str(path), "--version")) < MINIMUM_PODMAN:
        yield f"a podman from {'.'.join(map(str, MINIMUM_PODMAN))} on"


def _docker_lacking() -> Iterator[str]:
    path = docker_socket()
    if path is None:
        yield "a docker of this machine (DOCKER_HOST names another one)"
    elif not path.exists():
        yield f"a docker that runs ({path} is not there)"
    elif not docker_socket_usable():
        yield f"permission to use {path}"


def docker_socket() -> Path | None:
    """Return where this user's docker listens, None where that is another machine's."""
    said = os.environ.get("DOCKER_HOST", "")
    if said and not said.startswith("unix:///"):
        return None
    return Path(said.removeprefix("unix://")) if said else DOCKER_SOCKET


def own_engine_lacking() -> Iterator[str]:
    """Give what a session's own engine lacks."""
    yield from (name for name in OWN_ENGINE_PROGRAMS if find_engine_program(name) is None)
    if not any(find_program(name) for name in FIREWALLS):
        yield FIREWALLS[0]


def own_engine_misreports() -> str | None:
    """Return the version of a podman whose API calls every end of ``docker run --rm`` a success, else None.

    Source: https://github.com/containers/podman/issues/18889.
    """
    path = find_engine_program("podman")
    version = parse_version(words(str(path), "--version")) if path is not None else ()
    return ".".join(map(str, version)) if () < version < RIGHT_STATUS else None


def docker_socket_usable() -> bool:
    """Tell whether this user may talk to docker; it is not talked to."""
    path = docker_socket()
    return path is not None and path.is_socket() and os.access(path, os.R_OK | os.W_OK)


def engine_fix(engine: Engine) -> str:
    """Return what gives this machine and user the engine."""
    if engine is Engine.PODMAN:
        missing = [name for name in PODMAN_PROGRAMS if find_engine_program(name) is None]
        return install_command(*missing or ["podman"])
    path = docker_socket()
    if path is None:
        return "unset DOCKER_HOST"
    if not path.exists():
        return f"{install_command('docker')}, and start it: sudo systemctl start docker"
    return "sudo usermod -aG docker $USER (as good as root), and log in again; or --engine podman"


def require_engine(engine: Engine) -> None:
    """Refuse a container mode that has no engine.

    :raises BackendUnavailableError: with the command that installs it.
    """
    lacks = list(unusable(engine))
    if lacks:
        raise BackendUnavailableError(
            f"container mode needs {engine}: this machine lacks {', '.join(lacks)}",
            resolution=f"{engine_fix(engine)}; or --mode auto, the strongest mode that works here",
        )


def require_docker_socket() -> Path:
    """Return where the docker listens that this user may use.

    :raises BackendUnavailableError: there is none, with what helps.
    """
    path, lacks = docker_socket(), list(_docker_lacking())
    if path is None or lacks:
        raise BackendUnavailableError(
            f"docker can't be used: you lack {lacks[0]}", resolution=engine_fix(Engine.DOCKER)
        )
    return path


def require_host_docker() -> None:
    """Refuse ``--allow-docker=host`` where there is no docker to give.

    :raises BackendUnavailableError: with what helps.
    """
    lacks = list(_docker_lacking())
    if lacks:
        raise BackendUnavailableError(
            f"--allow-docker=host gives the agent the docker that you use: you lack {lacks[0]}",
            resolution=f"{engine_fix(Engine.DOCKER)}; or --allow-docker, an engine of the session's own",
        )


def require_own_engine() -> None:
    """Refuse ``--allow-docker`` where the session's own engine can't be.

    :raises BackendUnavailableError: with the command that installs what is missing.
    """
    lacks = list(own_engine_lacking())
    if lacks:
        raise BackendUnavailableError(
            f"--allow-docker gives the session a podman of its own: this machine lacks {', '.join(lacks)}",
            resolution=f"{install_command(*lacks)}; or --no-docker",
        )


def require_runtime(runtime: str, engine: Engine) -> None:
    """Refuse an OCI runtime that is not there, or that the root helper would not start.

    What docker calls a runtime is known to its daemon alone, which refuses what it does not know.

    :raises BackendUnavailableError: it is not there.
    :raises UsageError: a path, where docker takes names.
    """
    if engine is Engine.DOCKER:
        if "/" in runtime:
            raise UsageError(
                "docker takes the name of a runtime, not a path",
                resolution="give it a name in /etc/docker/daemon.json (runtimes), or use --engine podman",
            )
        return
    path = Path(runtime) if "/" in runtime else find_engine_program(runtime)
    if path is None or not _is_program(path):
        raise BackendUnavailableError(
            f"the OCI runtime {runtime} is not there",
            resolution="install it, or leave runtime to the engine (crun)",
        )
    if not _is_roots(path):
        raise BackendUnavailableError(
            f"the OCI runtime {path} is not a program of root's own below {_USR}",
            details="It makes the sandbox: whoever could change it could make another one.",
            resolution=f"sudo install {path} /usr/local/bin/, or leave runtime to the engine (crun)",
        )


def _is_program(path: Path) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and bool(found.st_mode & stat.S_IXOTH)


def _is_roots(path: Path) -> bool:
    """Tell what the helper will (``privileged/root/request.py``), which is the one that decides."""
    found = path.stat()
    return path.is_relative_to(_USR) and found.st_uid == 0 and not found.st_mode & 0o022
