"""Containers by docker's API, as the worker's uid; the root helper looks at them and ends them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from clsecure import libraries
from clsecure.backends.api import ContainerFacts
from clsecure.backends.container.spec import (
    MEMORY_SIZE,
    RUN,
    WORKER_LABEL,
    ContainerPlan,
    common_arguments,
    plan_container,
)
from clsecure.backends.local import LocalBackend, LocalSandbox
from clsecure.errors import BackendUnavailableError, ImageLostError, UsageError
from clsecure.installation import STATE_DIRECTORY
from clsecure.machine.containers import require_docker_socket
from clsecure.model import DockerAccess, IsolationMode, Mount, ResourceLimits, SandboxSpec
from clsecure.privileged.client import HelperConnection
from clsecure.privileged.leftovers import Found

_API_SECONDS = 60
_SHOWN = 3
_PODMAN = "podman can: leave out --engine docker"


class DockerBackend(LocalBackend):
    """Container mode with the machine's docker."""

    def __init__(self, connection: HelperConnection) -> None:
        super().__init__(IsolationMode.CONTAINER, connection)
        self._client: Any = None

    @contextmanager
    def open(
        self, spec: SandboxSpec, *, meanwhile: Callable[[], None] | None = None
    ) -> Iterator[LocalSandbox]:
        """Build the sandbox up to the barrier; leaving kills and releases all of it."""
        if spec.network_namespace is not None or spec.docker is DockerAccess.OWN:
            what = "an engine of its own" if spec.docker is DockerAccess.OWN else "a full network"
            raise UsageError(f"docker can't give a session {what}", resolution=_PODMAN)
        with daemon() as self._client:
            try:
                with super().open(spec, meanwhile=meanwhile) as sandbox:
                    yield sandbox
            finally:
                remove(self._client, spec.account.name)

    def containers_left(self, spec: SandboxSpec) -> Found:
        """Ask the daemon for the session's containers: by their label, and by the name that they get."""
        name = spec.account.name
        kinds = ({"label": f"{WORKER_LABEL}={name}"}, {"name": f"^/{name}$"})
        try:
            with daemon() as client, _explained("docker is not reachable"):
                told = [each for kind in kinds for each in client.api.containers(all=True, filters=kind)]
        except BackendUnavailableError:
            return Found(complete=False)
        found = {str(each["Id"]): f"{str(each['Id'])[:12]} is {each.get('State')}" for each in told}
        return Found(count=len(found), names=tuple(found.values())[:_SHOWN])

    @contextmanager
    def _prepared(
        self, spec: SandboxSpec, request: dict[str, Any], fds: list[int]
    ) -> Iterator[Callable[[], None] | None]:
        del fds
        plan = plan_container(
            spec,
            pieces=self._connection.directory,
            run=RUN / spec.account.name,
            uid=spec.account.uid,
            sources=_sources(spec),
        )
        request |= {"engine": "docker", "plain": plan.plain}

        def bring_up() -> None:
            with _explained("docker did not start the container"):
                container = _created(self._client, plan, arguments(plan, spec.limits))
                container.start()
            # As docker-py asked for it after the creation.
            self._container = ContainerFacts(plan=plan, inspected=dict(container.attrs))

        yield bring_up

    def _sent(self) -> None:
        """Wait until the helper has made what is to be bound into the container."""
        reply, _ = self._connection.receive()
        if reply.get("event") != "awaiting":
            raise BackendUnavailableError("the helper did not get ready for a container")


def _sources(spec: SandboxSpec) -> dict[Path, Path]:
    """Return where docker's daemon finds what is mounted: it looks at the machine itself."""
    found = {mount.target: mount.source for mount in spec.mounts}
    if spec.program is not None:
        import os

        kept = STATE_DIRECTORY / "agents" / str(os.getuid()) / spec.program.sha256 / "agent"
        found[Path("/opt/clsecure/bin") / spec.program.name] = kept
    return found


@contextmanager
def daemon() -> Iterator[Any]:
    """Connect to the user's docker.

    :raises BackendUnavailableError: it is not reachable, or one whose uids are not the machine's.
    """
    libraries.ready()
    import docker

    address = f"unix://{require_docker_socket()}"
    with _explained("docker is not reachable"):
        client = docker.DockerClient(base_url=address, timeout=_API_SECONDS)
    with contextlib.closing(client):
        with _explained("docker is not reachable"):
            options = client.info().get("SecurityOptions") or []
        for option in options:
            if option in ("name=rootless", "name=userns"):
                kind = "rootless" if option.endswith("rootless") else "one with userns-remap"
                raise BackendUnavailableError(
                    f"this docker is {kind}",
                    details="In its containers the worker's uid would be somebody else's.",
                    resolution=_PODMAN,
                )
        yield client


@contextmanager
def _explained(brief: str) -> Iterator[None]:
    failures: tuple[type[Exception], ...] = (*_failures(), OSError)
    try:
        yield
    except failures as error:
        raise (ImageLostError if _is_lost_image(error) else BackendUnavailableError)(
            brief, details=str(error), resolution="See what this machine lacks with: clsecure doctor"
        ) from error


def _is_lost_image(error: Exception) -> bool:
    from docker.errors import ImageNotFound

    return isinstance(error, ImageNotFound)


def _created(client: Any, plan: ContainerPlan, options: dict[str, Any]) -> Any:  # noqa: ANN401  # no types
    """Return the container, made; one of that name that nobody took away goes first.

    Of a session that was killed: dead, or between its making and its start, with no process that could be.
    """
    from docker.errors import APIError

    try:
        return client.containers.create(plan.image_id, **options)
    except APIError as error:
        if error.status_code != HTTPStatus.CONFLICT:
            raise
    remove(client, plan.name)
    return client.containers.create(plan.image_id, **options)


def remove(client: Any, name: str) -> None:  # noqa: ANN401  # docker-py has no types
    """Take a container away; it is dead. Returns when its name is free."""
    # That docker is at it already, or was, is an error, too.
    with contextlib.suppress(*_failures()):
        client.api.remove_container(name, v=True, force=True)
    with contextlib.suppress(*_failures()):
        client.api.wait(name, timeout=_API_SECONDS, condition="removed")


def _failures() -> tuple[type[Exception], ...]:
    """Return what docker-py raises."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    return DockerException, RequestException


def arguments(plan: ContainerPlan, limits: ResourceLimits) -> dict[str, Any]:
    """Return the container as docker-py takes it."""
    from docker.types import LogConfig, Ulimit
    from docker.types import Mount as DockerMount

    def bound(mount: Mount) -> Any:  # noqa: ANN401  # docker-py has no types
        source, target = str(mount.source), str(mount.target)
        return DockerMount(target, source, type="bind", read_only=mount.read_only, propagation="rprivate")

    found: dict[str, Any] = {
        **common_arguments(plan),
        "mounts": [bound(mount) for mount in plan.mounts],
        "tmpfs": dict.fromkeys(plan.memory_mounts, f"mode=1777,size={MEMORY_SIZE},nosuid,nodev,exec"),
        "security_opt": ["no-new-privileges:true"],
        "network_mode": "none",
        "cgroupns": "private",
        "log_config": LogConfig(type=LogConfig.types.NONE),
        "auto_remove": True,
        "restart_policy": {"Name": "no"},
        # Of ~/.docker/config.json: proxies with their passwords would become variables of the container.
        "use_config_proxy": False,
    }
    if limits.memory:
        found |= {"mem_limit": limits.memory, "memswap_limit": limits.memory}
    if limits.cpus:
        found["nano_cpus"] = int(limits.cpus * 1_000_000_000)
    if limits.pids:
        found["pids_limit"] = limits.pids
    if limits.open_files:
        found["ulimits"] = [Ulimit(name="nofile", soft=limits.open_files, hard=limits.open_files)]
    if plan.runtime is not None:
        found["runtime"] = plan.runtime
    return found
