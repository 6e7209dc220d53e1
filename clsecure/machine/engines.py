"""Probes of what containers are made with: engines, runtimes, what they need of the kernel, known holes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clsecure.errors import ClsecureError
from clsecure.machine import containers, docker
from clsecure.machine.advisories import open_advisories
from clsecure.machine.containers import find_engine_program
from clsecure.machine.docker import DockerFacts
from clsecure.machine.probe import (
    CONTAINER,
    GIVE_RANGES,
    Probe,
    ProbeStatus,
    build_lacking,
    find_program,
    has_user_namespaces,
    install_command,
    own_ranges,
    parse_version,
    read_small,
    user_namespaces_closed,
    words,
)
from clsecure.model import Engine

_SECONDS = 5.0
_PLUGINS = tuple(
    Path(place, "docker/cli-plugins/docker-compose")
    for place in ("/usr/libexec", "/usr/lib", "/usr/local/lib", "/usr/local/libexec")
)


def probes() -> tuple[Probe, ...]:
    """Look at everything that concerns containers; the programs are asked at the same time."""
    with ThreadPoolExecutor(4) as pool:
        return tuple(pool.map(_look, _PROBES))


def _look(probe: Callable[[], Probe]) -> Probe:
    try:
        return probe()
    except (OSError, ValueError, ClsecureError) as error:
        name = probe.__name__.removeprefix("probe_").replace("_", " ")
        return Probe(name=name, status=ProbeStatus.WARNING, observed=f"could not be looked at: {error}")


def probe_container_engine() -> Probe:
    """Which engines container mode could take; without any there is no container mode."""
    name = "container engine"
    usable = [engine for engine in Engine if next(_unusable(engine), None) is None]
    if not usable:
        lacks = ", ".join(_unusable(Engine.PODMAN))
        return Probe(
            name=name,
            status=ProbeStatus.MISSING,
            observed=f"podman lacks {lacks}; no docker that could be used",
            needed_by=CONTAINER,
            fix=containers.engine_fix(Engine.PODMAN),
        )
    if Engine.PODMAN not in usable:
        return Probe(
            name=name,
            status=ProbeStatus.WARNING,
            observed=f"docker alone (--engine docker); podman lacks {', '.join(_unusable(Engine.PODMAN))}",
            fix=containers.engine_fix(Engine.PODMAN),
        )
    return Probe(name=name, status=ProbeStatus.OK, observed=", ".join(usable))


def _unusable(engine: Engine) -> Iterator[str]:
    yield from containers.unusable(engine)
    if engine is not Engine.DOCKER:
        return
    if (socket := containers.docker_socket()) is not None and containers.docker_socket_usable():
        try:
            facts = docker.ask(socket)
        except (OSError, ValueError):
            yield "an answer"
        else:
            if facts.other_uids:
                yield "uids of this machine"


def probe_podman() -> Probe:
    """The default engine."""
    return _program("podman", "the engine of container mode and of --allow-docker")


def probe_crun() -> Probe:
    """What podman starts containers with."""
    return _program("crun", "podman starts containers with it")


def probe_conmon() -> Probe:
    """What watches podman's containers."""
    return _program("conmon", "podman needs it", package="conmon")


def probe_runc() -> Probe:
    """What docker starts containers with."""
    path = find_engine_program("runc")
    if path is None:
        return Probe(name="runc", status=ProbeStatus.INFO, observed="not installed; only docker needs it")
    return _program("runc", "")


def probe_runsc() -> Probe:
    """gVisor's runtime."""
    path = find_engine_program("runsc")
    if path is None:
        return Probe(name="runsc", status=ProbeStatus.INFO, observed="not installed; for --runtime runsc")
    return Probe(name="runsc", status=ProbeStatus.OK, observed=_version(path).splitlines()[0][:80])


def _program(name: str, purpose: str, *, package: str | None = None) -> Probe:
    path = find_engine_program(name)
    if path is None:
        fix = install_command(package or name)
        return Probe(name=name, status=ProbeStatus.INFO, observed=f"not installed; {purpose}", fix=fix)
    return _judged(name, _version(path), path)


def _version(path: Path) -> str:
    return words(str(path), "--version", timeout=_SECONDS)


def _judged(name: str, answer: str, path: Path | None) -> Probe:
    """Hold a program against the known holes."""
    version = ".".join(map(str, parse_version(answer))) or "unknown version"
    holes = open_advisories(name, answer, path=path)
    if not holes:
        return Probe(name=name, status=ProbeStatus.OK, observed=version)
    by_what = itertools.groupby(holes, key=lambda each: each.what)
    told = "; ".join(f"{', '.join(each.cve for each in those)} ({what})" for what, those in by_what)
    return Probe(
        name=name,
        status=ProbeStatus.WARNING,
        observed=f"{version}, older than the fix of {told}; no changelog of its package names them, but the "
        "distribution may have fixed them",
        fix=f"bring {name} up to date, or look the numbers up at your distribution's security tracker",
    )


def probe_docker() -> Probe:
    """The docker that listens here, as far as this user may ask it."""
    name = "docker"
    socket = containers.docker_socket()
    if socket is None:
        observed = "DOCKER_HOST names another machine's; clsecure takes none but this machine's"
        return Probe(name=name, status=ProbeStatus.INFO, observed=observed, fix="unset DOCKER_HOST")
    if not socket.exists():
        observed = f"not running ({socket} is not there); only --engine docker needs it"
        rootless = Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent"), "docker.sock")
        if rootless.exists():
            observed = f"only a rootless one of yours: {_OTHER_UIDS}"
        return Probe(name=name, status=ProbeStatus.INFO, observed=observed)
    if not containers.docker_socket_usable():
        return Probe(
            name=name,
            status=ProbeStatus.INFO,
            observed="runs; you may not use it (who may is as good as root); podman needs no such permission",
        )
    try:
        facts = docker.ask(socket)
    except (OSError, ValueError) as error:
        return Probe(name=name, status=ProbeStatus.WARNING, observed=f"does not answer: {error}")
    return _of_docker(facts)


def _of_docker(facts: DockerFacts) -> Probe:
    if facts.other_uids:
        return Probe(
            name="docker",
            status=ProbeStatus.WARNING,
            observed=f"{facts.version}, rootless or with userns-remap: {_OTHER_UIDS}",
            fix="use podman: --engine podman",
        )
    found = _judged("docker", facts.version, find_program("dockerd"))
    runtime = facts.components.get("runc", "")
    holes = open_advisories("runc", runtime, path=find_program("runc")) if runtime else ()
    extra = f"; its runc is {runtime}" if runtime else ""
    # The line "runc" has what is to say of it; docker may have brought another one.
    if holes and found.status is ProbeStatus.OK:
        told = ", ".join(each.cve for each in holes)
        return Probe(
            name="docker",
            status=ProbeStatus.WARNING,
            observed=f"{found.observed}{extra}, older than the fix of {told}",
            fix="bring docker and runc up to date",
        )
    return Probe(name="docker", status=found.status, observed=f"{found.observed}{extra}", fix=found.fix)


_OTHER_UIDS = (
    "a session's uid would be another one there, so container mode does not take it (podman it does)"
)


def probe_own_engine() -> Probe:
    """What ``--allow-docker`` needs, in every mode."""
    name = "own engine"
    lacks = list(containers.own_engine_lacking())
    if lacks:
        return Probe(
            name=name,
            status=ProbeStatus.INFO,
            observed=f"--allow-docker lacks {', '.join(lacks)}",
            fix=install_command(*lacks),
        )
    observed = "all that --allow-docker needs is there"
    if (version := containers.own_engine_misreports()) is not None:
        observed += f"; with podman {version} docker run --rm always ends with status 0"
    return Probe(name=name, status=ProbeStatus.OK, observed=observed)


def probe_docker_client() -> Probe:
    """What the agent speaks to an engine with, where the mode shows it this machine's programs."""
    name = "docker client"
    if find_program("docker") is None:
        return Probe(
            name=name,
            status=ProbeStatus.INFO,
            observed="not installed; with --allow-docker the agent has the engine's API alone",
            fix=install_command("docker"),
        )
    compose = any(each.exists() for each in _PLUGINS)
    if not compose:
        return Probe(
            name=name,
            status=ProbeStatus.INFO,
            observed="docker, without the plugin compose",
            fix="install docker-compose (Debian 13, Fedora), docker-compose-v2 (Ubuntu), or docker.com's "
            "docker-compose-plugin",
        )
    return Probe(name=name, status=ProbeStatus.OK, observed="docker, docker compose")


def probe_user_namespaces() -> Probe:
    """A container's user namespace is made by the root helper: what plain users may not matters little."""
    name = "user namespaces"
    if not has_user_namespaces():
        return Probe(
            name=name,
            status=ProbeStatus.MISSING,
            observed="not available (user.max_user_namespaces is 0, or the kernel has none)",
            needed_by=CONTAINER,
            fix="sudo sysctl user.max_user_namespaces=10000",
        )
    closed = user_namespaces_closed()
    if closed is None:
        return Probe(name=name, status=ProbeStatus.OK, observed="available")
    return Probe(
        name=name,
        status=ProbeStatus.OK,
        observed=f"not for plain users ({closed[0]}); the root helper makes a container's, so that is fine",
    )


def probe_subordinate_uids() -> Probe:
    """Ranges of ``/etc/subuid``, which other tools ask for."""
    name = "subordinate uids"
    observed = ", ".join(f"{count} from {first} on" for first, count in own_ranges()) or "none of yours"
    return Probe(
        name=name, status=ProbeStatus.INFO, observed=f"{observed}; only building an image as you needs them"
    )


def probe_image_building() -> Probe:
    """What building a worker image takes; where none is built nothing of it is needed."""
    name = "image building"
    programs, ranges = build_lacking()
    missing = ", ".join((*programs, *(() if ranges else ("ranges of yours in /etc/subuid and /etc/subgid",))))
    if not missing:
        return Probe(
            name=name, status=ProbeStatus.OK, observed="all that clsecure images build needs is there"
        )
    return Probe(
        name=name,
        status=ProbeStatus.INFO,
        observed=f"clsecure images build lacks {missing}",
        fix=install_command(*programs) if programs else GIVE_RANGES,
    )


def probe_delegation() -> Probe:
    """Whether control groups are handed to this user; the root helper makes a session's itself."""
    name = "cgroup delegation"
    uid = os.geteuid()
    path = f"/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers"
    controllers = read_small(path)
    observed = "none" if controllers is None else controllers or "no controllers"
    return Probe(name=name, status=ProbeStatus.INFO, observed=f"{observed}; clsecure needs none")


_PROBES: tuple[Callable[[], Probe], ...] = (
    probe_container_engine,
    probe_podman,
    probe_crun,
    probe_conmon,
    probe_runc,
    probe_runsc,
    probe_docker,
    probe_own_engine,
    probe_docker_client,
    probe_user_namespaces,
    probe_image_building,
    probe_subordinate_uids,
    probe_delegation,
)
