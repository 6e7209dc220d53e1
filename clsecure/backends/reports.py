"""The root helper's words as values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clsecure.backends.api import (
    ContainerFacts,
    FileIdentity,
    KeyringFacts,
    NetworkFacts,
    Place,
    ProcessFacts,
    ProgramFacts,
    RunningFacts,
    RunningKind,
)
from clsecure.privileged.client import SandboxEnd


def process_facts(
    facts: dict[str, Any], launcher: dict[str, Any], container: ContainerFacts | None, programs: list[int]
) -> ProcessFacts:
    """Return what was seen at the barrier.

    :param launcher: that one's own report.
    :param container: what its engine said.
    :param programs: descriptors of those of the image's that are there, in order.
    """
    there = iter(programs)
    return ProcessFacts(
        pid=facts["pid"],
        status=facts["status"],
        namespaces=facts["namespaces"],
        host_namespaces=facts["host_namespaces"],
        mountinfo=tuple(facts["mountinfo"]),
        descriptors={int(number): target for number, target in facts["descriptors"].items()},
        executable=facts["executable"],
        interpreter=facts["interpreter"],
        kernel=launcher["kernel"],
        landlock_abi=launcher["landlock"],
        seccomp_filter=launcher["seccomp"],
        network=NetworkFacts(**{name: tuple(found) for name, found in facts["network"].items()}),
        port=launcher["port"],
        program=_program(facts["program"]),
        packet_filter=facts["filter"],
        container=container,
        keyring=_keyring(facts["keyrings"]),
        image_programs={name: next(there) if found else None for name, found in facts["programs"].items()},
    )


def _keyring(said: dict[str, Any]) -> KeyringFacts | None:
    if said["own"] is None:
        return None
    serial, name = said["own"]
    return KeyringFacts(serial=serial, name=name, helper=said["helper"])


def _program(said: dict[str, Any] | None) -> ProgramFacts | None:
    if said is None:
        return None
    inside = FileIdentity(**said["inside"]) if said["inside"] else None
    return ProgramFacts(path=Path(said["path"]), kept=FileIdentity(**said["kept"]), inside=inside)


def running_facts(reply: dict[str, Any]) -> RunningFacts:
    """Return what is seen while the command runs."""
    kinds = tuple(
        RunningKind(
            place=Place(kind["place"]),
            first=kind["first"],
            status=kind["status"],
            namespaces=kind["namespaces"],
            program=kind["program"],
            pids=tuple(kind["pids"]),
            count=kind["count"],
        )
        for kind in reply["kinds"]
    )
    first, count = reply["range"] or (0, 0)
    further = (first, count) if count else None
    return RunningFacts(
        kinds=kinds,
        processes=reply["processes"],
        cut=reply["cut"],
        further=further,
        shared=frozenset(reply["shared"]),
    )


def sandbox_end(reply: dict[str, Any]) -> SandboxEnd:
    """Return how it ended."""
    return SandboxEnd(
        status=reply["status"],
        killed=reply["killed"],
        interrupted=reply["interrupted"],
        log=reply["log"],
        passed=reply["passed"],
        struck=reply["struck"],
    )
