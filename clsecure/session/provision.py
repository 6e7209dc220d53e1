"""What a session is built from: image, program, account, network, gateway. Made ready before the copy."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clsecure import logs
from clsecure.agents.find import AgentBinary, find_agent
from clsecure.backends.local import LocalBackend
from clsecure.egress.client import Gateway, start_gateway
from clsecure.errors import AgentError
from clsecure.model import (
    ContainerSpec,
    DockerAccess,
    IsolationMode,
    KeptProgram,
    NetworkPolicy,
    SandboxSpec,
)
from clsecure.session.context import Context
from clsecure.session.copy import Workspace
from clsecure.session.lease import leased
from clsecure.session.limits import effective, named
from clsecure.session.loading import loading_backend
from clsecure.session.network import Arrangement, arrange
from clsecure.session.relay import terminal_size

if TYPE_CHECKING:
    from clsecure.egress.full import FullNetwork
    from clsecure.session.setup import SetupWork

log = logs.get("session")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provision:
    """What one session is built from; whoever made it ready holds it.

    :param spec: the sandbox of our own tools: offline, without what is the agent's alone.
    :param container: the image of container mode.
    :param full: the network of the sandbox, where it is the whole internet.
    :param setup: what is done in a fresh workspace; None where there is nothing to do.
    """

    spec: SandboxSpec
    backend: LocalBackend
    container: ContainerSpec | None
    network: Arrangement
    gateway: Gateway | None
    full: FullNetwork | None
    setup: SetupWork | None


def provide(context: Context, stack: ExitStack, *, happened: Callable[[], bool]) -> Provision:
    """Make everything ready. What is only looked for comes first: what lacks is said before anything is made.

    :param stack: gives everything back at its end.
    :param happened: see :func:`.lease.leased`.
    :raises ClsecureError: something lacks.
    """
    plan = context.plan
    with context.clock.phase("provision"):
        container = _container(context)
        binary = _binary(context, container)
        setup = _setup_work(context)
        network = arrange(context)
        full = stack.enter_context(full_network()) if plan.network is NetworkPolicy.FULL else None
        context.place.make()
        stack.enter_context(context.place.locked())
        logs.record(context.place.events)
        account = stack.enter_context(leased(context, happened=happened))
        gateway = None
        if network.gateway is not None:
            from clsecure.egress.journal import begin_run

            begin_run(context.place.egress_log, plan.session_id)
            gateway = stack.enter_context(start_gateway(network.gateway))
        return Provision(
            backend=loading_backend(
                plan.mode,
                context.connection,
                container,
                installation=context.around.installation,
                state=context.around.store.root,
                environ=context.around.environ,
                ui=context.ui,
            ),
            spec=SandboxSpec(
                mode=plan.mode,
                account=account,
                mounts=plan.mounts,
                program=_keep(context, binary),
                container=container,
            ),
            container=container,
            network=network,
            gateway=gateway,
            full=full,
            setup=setup,
        )


def agents_spec(context: Context, provision: Provision, workspace: Workspace) -> SandboxSpec:
    """Return the sandbox of the agent, and of what of the repository's runs beside it."""
    plan, gateway, full = context.plan, provision.gateway, provision.full
    return replace(
        provision.spec,
        listener=gateway is not None,
        gateway_token=gateway.token if gateway is not None else None,
        terminal=terminal_size(0) if context.around.terminal else None,
        network=plan.network,
        network_namespace=full.namespace if full else None,
        allow_private=plan.allow_private,
        limits=effective(plan.limits),
        required_limits=named(plan.limits),
        disk_reserve=True,
        docker=plan.docker,
        workspace=str(workspace.directory) if plan.docker is DockerAccess.OWN else None,
    )


def full_network() -> FullNetwork:
    """Return a network namespace that leads to the whole internet; to be closed."""
    from clsecure.egress.full import FullNetwork

    return FullNetwork()


def _container(context: Context) -> ContainerSpec | None:
    """Settle the image of container mode, and have it where its engine finds it."""
    plan, around = context.plan, context.around
    if plan.mode is not IsolationMode.CONTAINER:
        return None
    from clsecure.session.images import WantedContainer, container_for

    return container_for(
        WantedContainer(
            engine=plan.engine,
            image=plan.image,
            runtime=plan.runtime,
            mirror=plan.image_mirror,
            registry=plan.image_registry,
        ),
        installation=around.installation,
        state=around.store.root,
        environ=around.environ,
        ui=context.ui,
    )


def _binary(context: Context, container: ContainerSpec | None) -> AgentBinary | None:
    """Find the agent's program; not needed for a shell or a command of the user's, but given if there.

    What an image brings along is not looked for on the machine.
    """
    in_image = container is not None and context.agent.name in container.image.agents
    if not context.agent.executables or in_image:
        return None
    try:
        exclude = (context.repository.top,)
        return find_agent(context.agent, context.around.environ, context.around.home, exclude=exclude)
    except AgentError:
        if context.runs_agent:
            raise
        return None


def _keep(context: Context, binary: AgentBinary | None) -> KeptProgram | None:
    """Have the program in root's own store; what runs is what was hashed."""
    if binary is None:
        return None
    from clsecure.agents.digests import cache_directory, sha256_of

    cache = cache_directory(context.around.environ, context.around.home)
    with context.ui.phase(f"making {context.agent.title} available"):
        digest = sha256_of(binary.path, cache=cache)
        fd = os.open(binary.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            context.connection.keep_agent(executable=fd, sha256=digest)
        finally:
            os.close(fd)
    log.info("agent_kept", name=context.agent.name, version=binary.version, sha256=digest)
    return KeptProgram(name=context.agent.executables[0], sha256=digest, version=binary.version)


def _setup_work(context: Context) -> SetupWork | None:
    """Read what the setup is made from, before anything is made."""
    if not context.plan.has_setup:
        return None
    from clsecure.session.setup import setup_work

    return setup_work(context)
