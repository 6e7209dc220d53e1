"""The sandbox of a session that was recorded: the same mode, and in container mode the same image."""

from __future__ import annotations

from typing import Any

from clsecure.errors import StateError
from clsecure.model import ContainerSpec, Engine, IsolationMode, SandboxSpec, WorkerAccount, WorkerImage
from clsecure.session.store import SessionRecord


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
                image=WorkerImage(name=record.image or "", image_id=record.image_id or ""),
                runtime=record.runtime,
            )
    except ValueError as error:
        raise StateError("the session's mode is not known", details=str(error)) from error
    return SandboxSpec(mode=mode, account=account, container=container)


def recorded(container: ContainerSpec | None) -> dict[str, Any]:
    """Return what a record keeps of the container; nothing in the other modes."""
    return {
        "engine": container.engine.value if container else None,
        "runtime": container.runtime if container else None,
        "image": container.image.name if container else None,
        "image_id": container.image.image_id if container else None,
    }
