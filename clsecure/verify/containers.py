"""The checks on a container: what the host sees of it, and what its engine says that it is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from clsecure.backends.api import ContainerFacts, ProcessFacts
from clsecure.model import GVISOR, Engine, ResourceLimits, SandboxSpec, Vantage
from clsecure.verify.checks import CONTAINER, Area, Check, Observation
from clsecure.verify.container_mounts import CONTAINER_MOUNT_CHECKS

OWN_KERNEL = "own-kernel"
_PRIVATE = frozenset({"", "private", "shareable"})
"""What engines call a namespace that nobody was given. podman's others could ask for a shareable one."""


def _own_kernel(facts: ProcessFacts, _spec: SandboxSpec) -> Observation:
    host = " ".join(os.uname()[2:4])
    sees = "the host's kernel" if facts.kernel == host else "another kernel"
    name = PurePosixPath(facts.executable).name
    return Observation.equal(f"{GVISOR}, another kernel", f"{name}, {sees}")


def _image(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    assert spec.container is not None  # noqa: S101  # exactly in this mode
    said = facts.container.inspected.get("Image") if facts.container else None
    observed = f"sha256:{str(said).removeprefix('sha256:')}" if said else "the engine said nothing of it"
    return Observation.equal(spec.container.image.image_id, observed)


def _plan(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    wrong = ["the engine said nothing of it"]
    if facts.container is not None:
        wrong = [*_other_host(facts.container, spec), *_other_config(facts.container)]
    return Observation.equal("as planned", "; ".join(wrong) or "as planned")


def _other_host(container: ContainerFacts, spec: SandboxSpec) -> Iterator[str]:
    """Say in what a container differs from the plan towards the machine; both engines use the same words."""
    plan, host = container.plan, container.inspected.get("HostConfig") or {}
    mode = "none" if plan.own_network else "host"
    for name, wanted in (("Privileged", False), ("ReadonlyRootfs", True), ("NetworkMode", mode)):
        if host.get(name) != wanted:
            yield f"{name} is {host.get(name)}"
    for name in ("CapAdd", "GroupAdd", "Devices", "DeviceRequests", "PortBindings", "VolumesFrom"):
        if host.get(name):
            yield f"{name} is {host[name]}"
    if host.get("PublishAllPorts"):
        yield "ports are published"
    for name in ("PidMode", "IpcMode", "UTSMode", "UsernsMode"):
        said = str(host.get(name) or "")
        if said not in _PRIVATE:
            yield f"{name} is {said}"
    options = [str(option) for option in host.get("SecurityOpt") or []]
    if not any(option.startswith("no-new-privileges") and not option.endswith("false") for option in options):
        yield "no-new-privileges is not set"
    yield from (option for option in options if "unconfined" in option)
    yield from _other_capabilities(container, host)
    yield from _other_mounts(container, host)
    if spec.container is not None and spec.container.engine is Engine.DOCKER:
        yield from _other_limits(host, spec.limits)


def _other_capabilities(container: ContainerFacts, host: Mapping[str, Any]) -> Iterator[str]:
    """podman says what is left; docker, what was dropped."""
    if "EffectiveCaps" in container.inspected:
        left = [container.inspected.get(name) for name in ("EffectiveCaps", "BoundingCaps")]
        if any(left):
            yield f"capabilities are left: {left}"
    elif [str(name).upper() for name in host.get("CapDrop") or []] != ["ALL"]:
        yield f"CapDrop is {host.get('CapDrop')}"


def _other_mounts(container: ContainerFacts, host: Mapping[str, Any]) -> Iterator[str]:
    planned = {str(m.target): (str(m.source), not m.read_only) for m in container.plan.mounts}
    made: dict[str, tuple[str, bool]] = {}
    for mount in container.inspected.get("Mounts") or []:
        place = str(mount.get("Destination"))
        if mount.get("Type") == "bind":
            made[place] = (str(mount.get("Source")), mount.get("RW") is not False)
        elif place not in container.plan.memory_mounts or mount.get("Type") != "tmpfs":
            yield f"{place} is a {mount.get('Type')}"
    for place in sorted(planned.keys() | made.keys()):
        if planned.get(place) != made.get(place):
            source, writable = made.get(place, ("not there", True))
            yield f"{place} is {source}{'' if writable else ', read-only'}"
    memory = sorted(host.get("Tmpfs") or {})
    if memory != sorted(container.plan.memory_mounts):
        yield f"Tmpfs is {memory}"


def _other_limits(host: Mapping[str, Any], limits: ResourceLimits) -> Iterator[str]:
    """docker's daemon bounds the container itself; podman's is in the helper's groups.

    What the kernel has no controller for, docker leaves out: which limits hold is another matter, and said.
    """
    cpus = int(limits.cpus * 1_000_000_000) if limits.cpus else 0
    for name, wanted in (("Memory", limits.memory), ("PidsLimit", limits.pids), ("NanoCpus", cpus)):
        if host.get(name) not in (wanted, None, 0, -1):
            yield f"{name} is {host.get(name)}"


def _other_config(container: ContainerFacts) -> Iterator[str]:
    """Say in what a container differs from the plan by itself."""
    plan, config = container.plan, container.inspected.get("Config") or {}
    if config.get("User") != plan.user:
        yield f"User is {config.get('User')}"
    if config.get("Entrypoint") or tuple(config.get("Cmd") or ()) != plan.argv:
        yield f"it runs {config.get('Entrypoint') or ''} {config.get('Cmd')}"
    labels = config.get("Labels") or {}
    yield from (f"the label {name} is {labels.get(name)}" for name, value in plan.labels.items()
                if labels.get(name) != value)  # fmt: skip
    runtime = container.inspected.get("OCIRuntime") or (container.inspected.get("HostConfig") or {}).get(
        "Runtime"
    )
    if plan.runtime is not None and PurePosixPath(str(runtime)).name != PurePosixPath(plan.runtime).name:
        yield f"the runtime is {runtime}"


CONTAINER_CHECKS: tuple[Check[ProcessFacts], ...] = (
    *CONTAINER_MOUNT_CHECKS,
    Check(
        check_id=OWN_KERNEL,
        property="the kernel inside is gVisor's",
        modes=CONTAINER,
        vantage=Vantage.HOST,
        area=Area.PROCESSES,
        threats=("C14",),
        residuals=("R1", "R39"),
        observe=_own_kernel,
    ),
    Check(
        check_id="image",
        property="the container is made from the planned image",
        modes=CONTAINER,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("C8", "I2"),
        residuals=("R35", "R36", "R37"),
        observe=_image,
    ),
    Check(
        check_id="engine-plan",
        property="the container is to its engine what was planned",
        modes=CONTAINER,
        vantage=Vantage.HOST,
        area=Area.PRIVILEGES,
        threats=("C8",),
        residuals=("R35", "R36"),
        observe=_plan,
    ),
)
