"""Containers by podman's API: the root helper starts the engine as the worker, for this one sandbox."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clsecure import libraries
from clsecure.backends.api import ContainerFacts
from clsecure.backends.container.spec import MEMORY_SIZE, RUN, ContainerPlan, common_arguments, plan_container
from clsecure.backends.local import LocalBackend
from clsecure.errors import BackendUnavailableError, ImageLostError
from clsecure.model import IsolationMode, SandboxSpec
from clsecure.privileged.client import HelperConnection

_API_SECONDS = 60
_LOOK_SECONDS = 1.0


class PodmanBackend(LocalBackend):
    """Container mode with podman."""

    def __init__(self, connection: HelperConnection) -> None:
        super().__init__(IsolationMode.CONTAINER, connection)

    @contextmanager
    def _prepared(
        self, spec: SandboxSpec, request: dict[str, Any], fds: list[int]
    ) -> Iterator[Callable[[], None] | None]:
        plan = plan_container(spec, pieces=self._connection.directory, run=RUN, uid=0, sources={})
        with api_socket() as (address, listener):
            fds.insert(0, listener.fileno())
            # The API of podman 4 knows no runtime of one container: the whole engine has it.
            request |= {"engine": "podman", "plain": plan.plain, "runtime": plan.runtime}

            def bring_up() -> None:
                # An engine that died must not leave a socket behind that takes connections.
                listener.close()
                inspected = create_and_start(address, plan, self._heard)
                self._container = ContainerFacts(plan=plan, inspected=inspected)

            yield bring_up

    def _heard(self, seconds: float) -> bool:
        """Wait for the helper's word of the sandbox, so long at most; it is read by who wants to know."""
        return bool(select.select([self._connection], [], [], seconds)[0])


@contextmanager
def api_socket() -> Iterator[tuple[str, socket.socket]]:
    """Make the socket that an engine is to listen on; only the user comes to it."""
    with tempfile.TemporaryDirectory(prefix="clsecure-") as directory:
        path = Path(directory) / "podman.sock"
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
            listener.bind(str(path))
            listener.listen(16)
            yield f"http+unix://{path}", listener


@contextmanager
def image_engine(helper: Path) -> Iterator[str]:
    """Run an engine on the user's image store; yield its address.

    :param helper: the root helper.
    :raises HelperError: it could not be started.
    """
    with contextlib.closing(HelperConnection(helper)) as connection, api_socket() as (address, listener):
        connection.open_images(listener.fileno())
        listener.close()
        try:
            yield address
        finally:
            connection.close_images()


def create_and_start(address: str, plan: ContainerPlan, heard: Callable[[float], bool]) -> dict[str, Any]:
    """Create the container and let its first process, the launcher, run; return what the engine says of it.

    :param heard: waits so many seconds for the launcher's word, and says whether it came.
    :raises ImageLostError: the engine does not have the image.
    :raises BackendUnavailableError: the engine refused, with its words; or what it started ended without any.
    """
    libraries.ready()
    from podman import PodmanClient
    from podman.errors import APIError, ImageNotFound, PodmanError

    try:
        with PodmanClient(base_url=address, timeout=_API_SECONDS) as client:
            container = client.containers.create(plan.image_id.removeprefix("sha256:"), **arguments(plan))
            container.start()
            # As podman-py asked for it after the creation.
            inspected = dict(container.attrs)
            # What the runtime can't do, it may notice after it said that all is well.
            while not heard(_LOOK_SECONDS):
                container.reload()
                if container.status in ("exited", "stopped"):
                    raise BackendUnavailableError(
                        "the container ended at once",
                        details=f"exit status {container.attrs['State'].get('ExitCode')}",
                        resolution="See what this machine lacks with: clsecure doctor",
                    )
            return inspected
    except (APIError, PodmanError, OSError) as error:
        kind = ImageLostError if isinstance(error, ImageNotFound) else BackendUnavailableError
        raise kind(
            "podman did not start the container",
            details=str(error),
            resolution="See what this machine lacks with: clsecure doctor",
        ) from error


def arguments(plan: ContainerPlan) -> dict[str, Any]:
    """Return the container as podman-py takes it."""
    bound = [
        {"type": "bind", "source": str(m.source), "target": str(m.target), "read_only": m.read_only}
        for m in plan.mounts
    ]
    # gVisor takes no share.
    size = str(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4) if plan.plain else MEMORY_SIZE
    memory = [{"type": "tmpfs", "target": path, "mode": "1777", "size": size} for path in plan.memory_mounts]
    found: dict[str, Any] = {
        **common_arguments(plan),
        "mounts": [*bound, *memory],
        "read_write_tmpfs": False,
        "no_new_privileges": True,
        "network_mode": "none" if plan.own_network else "host",
        "pid_mode": "private",
        "uts_mode": "private",
        "log_config": {"Type": "none"},
        "stdin_open": False,
        "tty": False,
    }
    return found
