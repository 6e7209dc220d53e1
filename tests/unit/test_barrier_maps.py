"""C2: who the numbers of a sandbox's user namespace are, and which maps stop the start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clsecure.backends.api import MapFacts, ProcessFacts
from clsecure.model import (
    CheckStatus,
    ContainerSpec,
    Engine,
    IsolationMode,
    SandboxSpec,
    WorkerAccount,
    WorkerImage,
)
from clsecure.verify.host import check_barrier

UID, IMAGES, TTY = 1_900_000_001, 1_900_000_000, 2_100_000_000
USER = SandboxSpec(
    mode=IsolationMode.USER,
    account=WorkerAccount(name="claude-worker-x", uid=UID, gid=UID, home=Path("/home/claude-worker-x")),
)
PODMAN = replace(
    USER,
    mode=IsolationMode.CONTAINER,
    container=ContainerSpec(
        engine=Engine.PODMAN, image=WorkerImage(name="worker", image_id=f"sha256:{'0' * 64}")
    ),
)
assert PODMAN.container is not None
DOCKER = replace(PODMAN, container=replace(PODMAN.container, engine=Engine.DOCKER))
NAMESPACE = replace(USER, mode=IsolationMode.NAMESPACE)
ALL = ((0, 0, 4294967295),)
HOST = MapFacts(uids=ALL, gids=ALL, host_uids=ALL, host_gids=ALL)
# What was really seen.
SEEN = {
    "user": (USER, HOST),
    "docker": (DOCKER, HOST),
    "namespace": (NAMESPACE, replace(HOST, uids=((UID, UID, 1),), gids=((UID, UID, 1),))),
    "podman": (
        PODMAN,
        replace(
            HOST,
            uids=((0, UID, 1), (65534, IMAGES, 1)),
            gids=((0, UID, 1), (5, TTY, 1), (65534, IMAGES, 1)),
            images=IMAGES,
            tty=TTY,
        ),
    ),
}


def holds(spec: SandboxSpec, maps: MapFacts | None) -> bool:
    facts = ProcessFacts(
        pid=1, status={}, namespaces={}, host_namespaces={}, mountinfo=(), descriptors={}, executable="",
        landlock_abi=0, seccomp_filter=False, maps=maps,
    )  # fmt: skip
    (found,) = [each for each in check_barrier(facts, spec) if each.check_id == "id-maps"]
    assert found.status in (CheckStatus.PASS, CheckStatus.FAIL)
    return found.status is CheckStatus.PASS


@pytest.mark.parametrize("case", SEEN)
def test_what_each_mode_maps_is_as_planned(case: str) -> None:
    assert holds(*SEEN[case])


@pytest.mark.parametrize("case", SEEN)
def test_c2_nobody_else_is_mapped_and_nobody_is_missing(case: str) -> None:
    spec, maps = SEEN[case]
    for further in ((1, 0, 1), (7, 1000, 1), (0, UID, 2)):
        assert not holds(spec, replace(maps, uids=(*maps.uids, further)))
        assert not holds(spec, replace(maps, gids=(*maps.gids, further)))
    assert not holds(spec, replace(maps, uids=maps.uids[1:]))
    assert not holds(spec, replace(maps, gids=maps.gids[1:]))
    assert not holds(spec, None)


@pytest.mark.parametrize("case", SEEN)
def test_c2_the_maps_of_another_mode_are_not_this_ones(case: str) -> None:
    spec, _ = SEEN[case]
    others = [
        maps for other, (_, maps) in SEEN.items() if {case, other} != {"user", "docker"} and other != case
    ]
    assert not any(holds(spec, maps) for maps in others)


def test_a_machine_whose_own_numbers_are_mapped_has_them_in_its_sandboxes() -> None:
    inner = ((0, 100000, 65536),)
    assert holds(USER, MapFacts(uids=inner, gids=inner, host_uids=inner, host_gids=inner))
    assert not holds(USER, MapFacts(uids=ALL, gids=inner, host_uids=inner, host_gids=inner))


def test_the_group_of_terminals_may_stay_itself_under_firejail_alone() -> None:
    for case, (spec, maps) in SEEN.items():
        gids = (*maps.gids, (5, 5, 1))
        assert holds(spec, replace(maps, gids=gids)) is (case == "namespace")
