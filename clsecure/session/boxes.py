"""The sandbox of a session that was recorded: the same mode, and in container mode the same image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from clsecure.errors import StateError
from clsecure.model import (
    ContainerSpec,
    Engine,
    IsolationMode,
    NetworkPolicy,
    SandboxSpec,
    WorkerAccount,
)
from clsecure.session.images import locked_image
from clsecure.session.store import SessionRecord
from clsecure.settings.limits import defaults


def recorded_spec(record: SessionRecord, account: WorkerAccount) -> SandboxSpec:
    """Return an offline sandbox as the session had it.

    :raises StateError: the record names a mode or an engine that there is not.
    """
    try:
        mode = IsolationMode(record.mode)
        container = None
        if mode is IsolationMode.CONTAINER:
            container = ContainerSpec(
                engine=Engine(record.engine or ""),
                image=locked_image(record.image or "", record.image_id or ""),
                runtime=record.runtime,
            )
    except ValueError as error:
        raise StateError("the session's mode is not known", details=str(error)) from error
    return SandboxSpec(mode=mode, account=account, container=container)


@contextmanager
def verifiable(record: SessionRecord, spec: SandboxSpec) -> Iterator[SandboxSpec]:
    """Give the sandbox with the network that the session had, for its checks; what was mounted is not known.

    :raises StateError: the record names a network that there is not.
    """
    try:
        network = NetworkPolicy(record.network)
    except ValueError as error:
        raise StateError("the session's network is not known", details=str(error)) from error
    with ExitStack() as stack:
        namespace = None
        if network is NetworkPolicy.FULL:
            from clsecure.egress.full import FullNetwork

            namespace = stack.enter_context(FullNetwork()).namespace
        yield replace(
            spec,
            network=network,
            network_namespace=namespace,
            listener=network in (NetworkPolicy.API, NetworkPolicy.ALLOWLIST),
            limits=defaults(),
        )


def recorded(container: ContainerSpec | None) -> dict[str, Any]:
    """Return what a record keeps of the container; nothing in the other modes."""
    return {
        "engine": container.engine.value if container else None,
        "runtime": container.runtime if container else None,
        "image": container.image.name if container else None,
        "image_id": container.image.image_id if container else None,
    }
