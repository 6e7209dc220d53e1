"""What ends a running session, and what does not: the checks on the worker's processes, one by one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from clsecure.backends.api import OtherMount, Place, RunningFacts, RunningKind
from clsecure.model import (
    CheckStatus,
    ContainerSpec,
    DockerAccess,
    Engine,
    IsolationMode,
    Mount,
    Phase,
    SandboxSpec,
    WorkerAccount,
    WorkerImage,
)
from clsecure.verify.running import RUNNING_CHECKS, check_running

UID = 1_900_000_000
RANGE = (1_950_000_000, 65536)
FULL = "000001ffffffffff"
NONE = "0" * 16
ACCOUNT = WorkerAccount(name="claude-worker-x", uid=UID, gid=UID, home=Path("/home/claude-worker-x"))
PODMAN = ContainerSpec(engine=Engine.PODMAN, image=WorkerImage(name="worker", image_id=f"sha256:{'0' * 64}"))
NAMESPACE = SandboxSpec(mode=IsolationMode.NAMESPACE, account=ACCOUNT)
USER = dataclasses.replace(NAMESPACE, mode=IsolationMode.USER)
CONTAINER = SandboxSpec(mode=IsolationMode.CONTAINER, account=ACCOUNT, container=PODMAN)
GVISOR = dataclasses.replace(CONTAINER, container=dataclasses.replace(PODMAN, runtime="/usr/bin/runsc"))

OWN = dict.fromkeys(("user", "mnt", "pid", "net", "ipc", "uts"), "own")
OTHER = dict.fromkeys(OWN, "other")


def kind(place: Place = Place.INSIDE, *, first: bool = False, **changed: Any) -> RunningKind:
    """Return the agent's processes as they should be, but for what is named."""
    sets = changed.pop("caps", NONE)
    status = {
        "Uid": "\t".join([str(UID)] * 4), "Gid": "\t".join([str(UID)] * 4), "Groups": " ",
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), sets),
        "NoNewPrivs": "1", "Seccomp": "2",
    }  # fmt: skip
    spaces = changed.pop("spaces", OWN if place is Place.INSIDE else OTHER)
    return RunningKind(
        place=place, first=first, status={**status, **changed}, namespaces=spaces,
        program="/usr/bin/sleep", pids=(7, 8), count=2,
    )  # fmt: skip


# What was seen of real sandboxes of each kind (firejail's processes, the engines', helper's own).
HEALTHY: dict[str, tuple[SandboxSpec, list[RunningKind], frozenset[str]]] = {
    "user": (USER, [kind(), kind(first=True, Seccomp="0")], frozenset({"user"})),
    "namespace": (
        NAMESPACE,
        [
            kind(),
            kind(first=True, Seccomp="0", CapPrm=FULL, CapEff=FULL),
            kind(
                Place.HELD,
                Uid=f"{UID}\t{UID}\t0\t{UID}",
                caps=FULL,
                NoNewPrivs="0",
                Seccomp="0",
                spaces={**OTHER, "pid": "host", "user": "host"},
            ),
            kind(Place.MOVING, NoNewPrivs="0"),
        ],
        frozenset(),
    ),
    "sidecar": (
        USER,
        [
            kind(),
            kind(Place.SIDECAR, first=True, caps=FULL, spaces={**OTHER, "net": "own"}),
            kind(Place.SIDECAR, caps=FULL, Uid="\t".join([str(RANGE[0] + 32)] * 4), Groups=f"{RANGE[0] + 4}"),
        ],
        frozenset({"user"}),
    ),
    "podman": (
        CONTAINER,
        [
            kind(first=True),
            kind(),
            kind(Place.ENGINE, caps=FULL, Seccomp="0", spaces={**OTHER, "uts": "own"}),
        ],
        frozenset(),
    ),
    "gvisor": (GVISOR, [kind(Place.ENGINE, caps=FULL), kind(caps=FULL, Seccomp="0")], frozenset()),
}


def failed(spec: SandboxSpec, *kinds: RunningKind, shared: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return the checks that fail, without their prefix, and what they saw."""
    facts = RunningFacts(kinds=kinds, processes=len(kinds), further=RANGE, shared=shared)
    results = check_running(facts, spec)
    assert {result.phase for result in results} == {Phase.RUNNING}
    return {
        result.check_id.removeprefix("running-"): result.observed
        for result in results
        if result.status is CheckStatus.FAIL
    }


@pytest.mark.parametrize("case", HEALTHY)
def test_a_healthy_sandbox_raises_no_alarm(case: str) -> None:
    spec, kinds, shared = HEALTHY[case]
    assert failed(spec, *kinds, shared=shared) == {}


@pytest.mark.parametrize("spec", [USER, NAMESPACE, CONTAINER], ids=lambda spec: spec.mode.value)
@pytest.mark.parametrize(
    ("broken", "changed"),
    [
        ("account", {"Uid": f"{UID}\t0\t{UID}\t{UID}"}),
        ("account", {"Gid": f"{UID}\t{UID}\t{UID}\t27"}),
        ("account", {"Uid": ""}),
        ("groups", {"Groups": f"{UID} 998 "}),
        ("capabilities", {"CapEff": "0000000000000400"}),
        ("capabilities", {"CapBnd": FULL}),
        ("no-new-privileges", {"NoNewPrivs": "0"}),
        ("seccomp", {"Seccomp": "0"}),
        ("namespaces", {"spaces": {**OWN, "net": "host"}}),
        ("namespaces", {"spaces": {**OWN, "mnt": "other"}}),
        ("outside", {"place": Place.OUTSIDE}),
    ],
)
def test_one_wrong_fact_fails_exactly_its_check(
    spec: SandboxSpec, broken: str, changed: dict[str, Any]
) -> None:
    seen = failed(spec, kind(), kind(**changed))
    assert seen.keys() == {broken}
    assert "pid 7, 8, /usr/bin/sleep" in seen[broken]


@pytest.mark.parametrize(
    ("broken", "wrong"),
    [
        ("account", kind(Place.SIDECAR, Uid="\t".join(["1000"] * 4))),
        ("groups", kind(Place.SIDECAR, Groups="998")),
        ("capabilities", kind(first=True, caps=FULL)),
        ("no-new-privileges", kind(Place.ENGINE, NoNewPrivs="0")),
        ("seccomp", kind(Place.SIDECAR, Seccomp="0")),
        ("namespaces", kind(Place.SIDECAR, spaces={**OTHER, "net": "host"})),
    ],
)
def test_what_others_may_have_has_its_bounds(broken: str, wrong: RunningKind) -> None:
    assert failed(CONTAINER, kind(), wrong).keys() == {broken}


def test_capabilities_over_the_hosts_user_namespace_are_nobodys() -> None:
    engine = kind(Place.ENGINE, caps=FULL, spaces={**OTHER, "user": "host"})
    assert failed(CONTAINER, kind(), engine).keys() == {"capabilities", "namespaces"}
    # In a sandbox that has the host's, "own" says no more.
    sidecar = kind(Place.SIDECAR, caps=FULL, spaces={**OTHER, "user": "own"})
    assert failed(USER, kind(), sidecar, shared=frozenset({"user"})).keys() == {"capabilities", "namespaces"}
    firejail = kind(first=True, Seccomp="0", CapPrm=FULL, CapEff=FULL)
    assert failed(NAMESPACE, firejail, shared=frozenset({"user"})).keys() == {"capabilities"}


@pytest.mark.parametrize(
    ("target", "on", "new", "gone"),
    [
        ("/opt/m", "tmpfs", "was mounted", "is gone"),
        ("/opt/m", "nfs4", "was mounted", "is gone"),
        ("/opt/m/x", "ext4", "was mounted", ""),
        # An export within one, mounted when somebody looked.
        ("/opt/m/x", "nfs4", "", ""),
        ("/usr/local", "ext4", "was mounted", ""),
        ("/usr", "tmpfs", "was mounted", "is gone"),
        ("/proc/kcore", "proc", "was mounted", "is gone"),
        (str(ACCOUNT.home / "x"), "nfs4", "was mounted", "is gone"),
    ],
)
def test_what_is_mounted_later_or_gone_ends_a_session_but_for_what_comes_and_goes_with_the_machines(
    target: str, on: str, new: str, gone: str
) -> None:
    spec = dataclasses.replace(USER, mounts=(Mount(source=Path("/home/me/m"), target=Path("/opt/m")),))
    other = (OtherMount(target=target, kind="ext4", on=on),)
    for added, lost, said in ((other, (), new), ((), other, gone)):
        facts = RunningFacts(kinds=(kind(),), processes=1, new_mounts=added, gone_mounts=lost)
        (found,) = [each for each in check_running(facts, spec) if each.check_id == "running-mounts"]
        assert found.status is (CheckStatus.FAIL if said else CheckStatus.PASS)
        assert found.observed == (f"{target} {said}" if said else found.expected)


def test_of_gvisors_own_processes_only_what_holds_for_them_is_judged() -> None:
    facts = RunningFacts(kinds=(), processes=0)
    assert [result.check_id for result in check_running(facts, GVISOR)] == [
        "running-no-new-privileges", "running-outside",
    ]  # fmt: skip
    results = check_running(facts, USER)
    assert len(results) == len(RUNNING_CHECKS)
    assert {result.status for result in results} == {CheckStatus.SKIP}, "nothing seen is nothing shown"
    assert failed(GVISOR, kind(Place.ENGINE, NoNewPrivs="0")).keys() == {"no-new-privileges"}


def test_a_container_of_the_lent_docker_may_run_as_the_worker() -> None:
    """``docker run --user`` with the worker's number: it has a PID namespace of its own."""
    stray = kind(Place.OUTSIDE)
    lent = dataclasses.replace(USER, docker=DockerAccess.HOST)
    assert failed(lent, kind(), stray) == {}
    assert set(failed(USER, kind(), stray)) == {"outside"}
    beside = kind(Place.OUTSIDE, spaces={**OTHER, "pid": "host"})
    assert set(failed(lent, kind(), beside)) == {"outside"}
