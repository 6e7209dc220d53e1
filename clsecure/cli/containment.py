"""What holds the agent: what ``auto`` comes to, and what does not go together. Nothing is started."""

from __future__ import annotations

from pathlib import PurePosixPath

from clsecure import libraries
from clsecure.cli.worker_image import stored_image
from clsecure.errors import UsageError
from clsecure.machine import choice, containers
from clsecure.model import GVISOR, DockerAccess, Engine, IsolationMode, NetworkPolicy
from clsecure.session.ui import Ui
from clsecure.settings.model import Settings
from clsecure.settings.sources import Layer
from clsecure.settings.values.isolation import AutoMode

_OF_CONTAINERS = ("engine", "runtime", "image")


def contain(settings: Settings, ui: Ui) -> IsolationMode:
    """Return the mode of a session.

    :raises UsageError: settings that exclude each other.
    :raises BackendUnavailableError: the machine lacks what was asked for by name.
    """
    refuse_contradictions(settings)
    mode = settings.mode
    if isinstance(mode, AutoMode) or mode is IsolationMode.CONTAINER:
        from clsecure.images.recipe import load_recipe

        # A slip of the pen would be an image that nobody has locked, or to auto one that is only missing.
        load_recipe(settings.image)
    if isinstance(mode, AutoMode):
        there = stored_image(settings.image, settings.engine) is not None
        found = choice.strongest(
            mode.at_least, engine=settings.engine, image=settings.image, image_is_there=there
        )
        ui.note(str(found))
        mode = found.mode
    if mode is IsolationMode.CONTAINER:
        # Needed at the latest when a container is made; podman is asked for its version meanwhile.
        libraries.begin(settings.engine.value)
        containers.require_engine(settings.engine)
        if settings.runtime is not None:
            containers.require_runtime(settings.runtime, settings.engine)
            _refuse_what_gvisor_cannot(settings)
        _refuse_what_docker_cannot(settings)
    if settings.docker is DockerAccess.OWN:
        containers.require_own_engine()
    elif settings.docker is DockerAccess.HOST:
        containers.require_host_docker()
    return mode


def refuse_contradictions(settings: Settings) -> None:
    """Refuse what can't be on any machine.

    :raises UsageError: it names both, and what can be.
    """
    for key in _OF_CONTAINERS:
        source = settings.provenance(key)
        # In a file it waits for a session in container mode; on the command line it is meant for this one.
        if source.layer is Layer.FLAG and settings.mode in (IsolationMode.USER, IsolationMode.NAMESPACE):
            raise UsageError(
                f"{source} is of container mode, and the mode is {settings.mode}"
                f" ({settings.provenance('mode')})",
                resolution="add --mode container, or leave it out",
            )
    if settings.docker is DockerAccess.OWN and settings.network is NetworkPolicy.FULL:
        raise UsageError(
            f"an engine of the session's own ({settings.provenance('docker')}) does not go with the full "
            f"network ({settings.provenance('network')})",
            details="What its containers send would go past what holds the full network.",
            resolution="let it pull and build through the gateway: --allow-preset docker, --allow-domain "
            "HOST; or leave one of the two out (--no-docker)",
        )
    images = settings.provenance("docker_images")
    if images.layer is Layer.FLAG and settings.docker is not DockerAccess.OWN:
        raise UsageError(
            f"{images} fills the engine of the session's own, and there is none",
            resolution="add --allow-docker",
        )


def _refuse_what_gvisor_cannot(settings: Settings) -> None:
    """Its network is its own loopback alone: a full network or an engine beside it would not be there."""
    if PurePosixPath(str(settings.runtime)).name != GVISOR:
        return
    if settings.network is NetworkPolicy.FULL:
        what, key, instead = "the full network", "network", "name the hosts: --allow-domain HOST"
    elif settings.docker is DockerAccess.OWN:
        what, key, instead = "an engine of the session's own", "docker", "leave it out: --no-docker"
    else:
        return
    raise UsageError(
        f"{what} ({settings.provenance(key)}) does not go with the runtime {settings.runtime} "
        f"({settings.provenance('runtime')}): gVisor has a network of its own",
        resolution=f"crun can: --runtime crun; or another mode: --mode namespace; or {instead}",
    )


def _refuse_what_docker_cannot(settings: Settings) -> None:
    if settings.engine is not Engine.DOCKER:
        return
    if settings.docker is DockerAccess.OWN:
        raise UsageError(
            f"an engine of the session's own ({settings.provenance('docker')}) does not go with the engine "
            f"docker ({settings.provenance('engine')}): its containers can't share a network with it",
            resolution="podman can: --engine podman; or another mode: --mode namespace",
        )
    if settings.network is NetworkPolicy.FULL:
        raise UsageError(
            f"the full network ({settings.provenance('network')}) does not go with the engine docker "
            f"({settings.provenance('engine')})",
            resolution="podman can: --engine podman; or name the hosts: --allow-domain HOST",
        )


def confirm_host_docker(ui: Ui, *, yes: bool) -> None:
    """Ask about the machine's own docker; each time, since it gives everything away.

    :param yes: the command line has answered.
    :raises UsageError: the answer is no, or nobody can be asked.
    """
    if yes:
        return
    resolution = "--allow-docker gives the session an engine of its own instead"
    if not ui.interactive:
        raise UsageError(
            "--allow-docker=host is asked about each time, and nobody can be asked here",
            resolution=f"add --yes if you mean it; {resolution}",
        )
    ui.warn(HOST_DOCKER)
    if not ui.confirm("Give this session the docker of this machine?"):
        raise UsageError("not started: the machine's docker was not given", resolution=resolution)


HOST_DOCKER = (
    "--allow-docker=host gives the agent the docker of this machine, and that is as good as root: "
    "it can read and change every file of yours and of the system, whatever the mode and the network say"
)
"""What is said before the question, and in the result; the session says it again at its start."""
