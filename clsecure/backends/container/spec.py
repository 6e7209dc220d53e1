"""What a container of ours is: one value, of which each engine's request is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsecure.model import DockerAccess, Mount, SandboxSpec

RUN = Path("/run/clsecure")
"""Where the inside meets the root helper; the helper's ``RUN``."""

DOCKER_SOCKET = RUN / "docker.sock"
"""Where the inside finds the engine that the session has."""

WORKER_LABEL = "clsecure.worker"
"""On every container, with the worker's name."""

BIN = Path("/opt/clsecure/bin")
MEMORY = ("/tmp", "/var/tmp", "/run")  # noqa: S108  # paths of the inside
MEMORY_SIZE = "25%"
"""Of the machine's memory, for each: together they leave some, also where nothing limits the session."""
HOSTNAME = "clsecure"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPlan:
    """A container as it is promised (docs/threat-model.md, "Container mode").

    :param name: of the container, unique on this machine.
    :param user: ``uid:gid`` inside.
    :param argv: the launcher.
    :param mounts: what is bound, in the engine's view of the machine.
    :param memory_mounts: empty memory file systems.
    :param own_network: a network namespace with loopback alone; otherwise that of the engine's own sandbox.
    """

    name: str
    image_id: str
    user: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    mounts: tuple[Mount, ...]
    memory_mounts: tuple[str, ...]
    own_network: bool
    labels: Mapping[str, str]
    runtime: str | None = None
    plain: bool = False


def plan_container(
    spec: SandboxSpec, *, pieces: Path, run: Path, uid: int, sources: Mapping[Path, Path]
) -> ContainerPlan:
    """Return the container that a sandbox is made as.

    :param pieces: the installation directory of the root-owned pieces.
    :param run: the session's directory of sockets, in the engine's view.
    :param uid: the worker's uid inside.
    :param sources: targets of the spec's mounts to where the engine finds them, when not at the same place.
    """
    assert spec.container is not None  # noqa: S101  # exactly in this mode
    account = spec.account
    ours = [
        Mount(source=pieces, target=pieces),
        Mount(source=run / "control", target=RUN / "control", read_only=False),
        Mount(source=run / "passwd", target=Path("/etc/passwd")),
        Mount(source=run / "group", target=Path("/etc/group")),
        Mount(source=account.home, target=account.home, read_only=False),
    ]
    if spec.is_gvisor:
        ours += [
            Mount(source=run / name, target=RUN / name, read_only=False) for name in ("streams", "gateway")
        ]
    if spec.program is not None:
        place = BIN / spec.program.name
        ours.append(Mount(source=sources.get(place, place), target=place))
    if spec.docker is not DockerAccess.NONE:
        ours.append(Mount(source=run / DOCKER_SOCKET.name, target=DOCKER_SOCKET, read_only=False))
    theirs = [
        Mount(source=sources.get(m.target, m.target), target=m.target, read_only=m.read_only)
        for m in spec.mounts
    ]
    return ContainerPlan(
        name=account.name,
        image_id=spec.container.image.image_id,
        user=f"{uid}:{uid}",
        argv=("/usr/bin/python3", "-I", "-S", str(pieces / "launcher.py")),
        env={"PATH": "/usr/bin:/bin", "HOME": str(account.home), "LC_ALL": "C.UTF-8"},
        mounts=(*ours, *theirs),
        memory_mounts=MEMORY,
        own_network=spec.network_namespace is None and spec.docker is not DockerAccess.OWN,
        labels={WORKER_LABEL: account.name, "clsecure.image": spec.container.image.name},
        runtime=spec.container.runtime,
        plain=spec.is_gvisor,
    )


def common_arguments(plan: ContainerPlan) -> dict[str, Any]:
    """Return what podman-py and docker-py take by the same names."""
    return {
        "name": plan.name,
        "command": list(plan.argv),
        "entrypoint": [],
        "environment": dict(plan.env),
        "user": plan.user,
        "hostname": HOSTNAME,
        "labels": dict(plan.labels),
        "read_only": True,
        "cap_drop": ["ALL"],
        "ipc_mode": "private",
        "working_dir": "/",
    }
