"""C8: what engines say of a container, and which of it is not what was planned."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from clsecure.backends.api import ContainerFacts, ProcessFacts
from clsecure.backends.container.spec import RUN, plan_container
from clsecure.model import (
    CheckResult,
    CheckStatus,
    ContainerSpec,
    Engine,
    IsolationMode,
    Mount,
    ResourceLimits,
    SandboxSpec,
    WorkerAccount,
    WorkerImage,
)
from clsecure.verify.host import check_barrier
from clsecure.verify.mountinfo import MountLine

DIGEST = "eb2bf1da2db0210d749bc551b0a288d49854fb7c1908f9854e69b84d6f216bc1"
UID = 1_900_000_000
PIECES = Path("/usr/local/lib/clsecure")
PODMAN = SandboxSpec(
    mode=IsolationMode.CONTAINER,
    account=WorkerAccount(name="claude-worker-x", uid=UID, gid=UID, home=Path("/home/claude-worker-x")),
    mounts=(Mount(source=Path("/srv/in"), target=Path("/mnt/in")),),
    container=ContainerSpec(
        engine=Engine.PODMAN, image=WorkerImage(name="worker", image_id=f"sha256:{DIGEST}")
    ),
    limits=ResourceLimits(memory=1 << 30, pids=4096, cpus=1.5),
)
assert PODMAN.container is not None
DOCKER = dataclasses.replace(PODMAN, container=dataclasses.replace(PODMAN.container, engine=Engine.DOCKER))
ARGV = ["/usr/bin/python3", "-I", "-S", f"{PIECES}/launcher.py"]
LABELS = {"clsecure.worker": "claude-worker-x", "clsecure.image": "worker", "clsecure.agents": "claude@2"}


def bound(run: str, given: str) -> list[dict[str, Any]]:
    home = "/home/claude-worker-x"
    places = [
        (str(PIECES), str(PIECES), False), (f"{run}/control", "/run/clsecure/control", True),
        (f"{run}/passwd", "/etc/passwd", False), (f"{run}/group", "/etc/group", False), (home, home, True),
        (given, "/mnt/in", False),
    ]  # fmt: skip
    return [{"Type": "bind", "Source": s, "Destination": d, "RW": rw} for s, d, rw in places]


# What podman 4.3 and docker 20.10 said of real ones, without what is not looked at.
BY_PODMAN: dict[str, Any] = {
    "Image": DIGEST, "OCIRuntime": "crun", "EffectiveCaps": None, "BoundingCaps": None,
    "Mounts": bound("/run/clsecure", "/mnt/in"),
    "Config": {"User": "0:0", "Entrypoint": "", "Cmd": ARGV, "Labels": LABELS},
    "HostConfig": {
        "NetworkMode": "none", "PortBindings": {}, "VolumesFrom": None, "CapAdd": [], "GroupAdd": [],
        "CapDrop": ["CAP_AUDIT_WRITE", "CAP_CHOWN"], "IpcMode": "shareable", "PidMode": "private",
        "Privileged": False, "PublishAllPorts": False, "ReadonlyRootfs": True,
        "SecurityOpt": ["no-new-privileges"], "UTSMode": "private", "UsernsMode": "", "Devices": [],
        "Tmpfs": {"/run": "mode=1777,rw", "/tmp": "mode=1777,rw", "/var/tmp": "mode=1777,rw"},
        "Memory": 0, "PidsLimit": 0, "NanoCpus": 0, "Runtime": "oci",
    },
}  # fmt: skip
BY_DOCKER: dict[str, Any] = {
    "Image": f"sha256:{DIGEST}",
    "Mounts": bound("/run/clsecure/claude-worker-x", "/srv/in"),
    "Config": {"User": f"{UID}:{UID}", "Entrypoint": [], "Cmd": ARGV, "Labels": LABELS},
    "HostConfig": {
        "NetworkMode": "none", "PortBindings": None, "VolumesFrom": None, "CapAdd": None, "GroupAdd": None,
        "CapDrop": ["ALL"], "IpcMode": "private", "PidMode": "", "Privileged": False,
        "PublishAllPorts": False, "ReadonlyRootfs": True, "SecurityOpt": ["no-new-privileges:true"],
        "UTSMode": "", "UsernsMode": "", "Devices": None, "DeviceRequests": None,
        "Tmpfs": {"/run": "mode=1777", "/tmp": "mode=1777", "/var/tmp": "mode=1777"},
        "Memory": 1 << 30, "PidsLimit": 4096, "NanoCpus": 1_500_000_000, "Runtime": "runc",
    },
}  # fmt: skip
ENGINES = {"podman": (PODMAN, BY_PODMAN), "docker": (DOCKER, BY_DOCKER)}


def judged(
    spec: SandboxSpec,
    inspected: dict[str, Any] | None,
    check: str = "engine-plan",
    mountinfo: tuple[str, ...] = (),
) -> CheckResult:
    docker = spec.container is not None and spec.container.engine is Engine.DOCKER
    run, uid = (RUN / spec.account.name, UID) if docker else (RUN, 0)
    # podman's engine has them mounted where they will be.
    sources = {mount.target: mount.source for mount in spec.mounts} if docker else {}
    plan = plan_container(spec, pieces=PIECES, run=run, uid=uid, sources=sources)
    facts = ProcessFacts(
        pid=1, status={}, namespaces={}, host_namespaces={}, mountinfo=mountinfo, descriptors={},
        executable="",
        landlock_abi=0, seccomp_filter=False,
        container=None if inspected is None else ContainerFacts(plan=plan, inspected=inspected),
    )  # fmt: skip
    (found,) = [each for each in check_barrier(facts, spec) if each.check_id == check]
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_what_engines_make_of_the_plan_passes(engine: str) -> None:
    spec, said = ENGINES[engine]
    assert judged(spec, said).observed == "as planned"
    assert judged(spec, said, "image").status is CheckStatus.PASS


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("HostConfig", "Privileged", True),
        ("HostConfig", "ReadonlyRootfs", False),
        ("HostConfig", "NetworkMode", "bridge"),
        ("HostConfig", "CapAdd", ["CAP_SYS_ADMIN"]),
        ("HostConfig", "GroupAdd", ["998"]),
        ("HostConfig", "Devices", [{"PathOnHost": "/dev/kvm"}]),
        ("HostConfig", "PortBindings", {"80/tcp": [{"HostPort": "80"}]}),
        ("HostConfig", "PublishAllPorts", True),
        ("HostConfig", "VolumesFrom", ["other"]),
        ("HostConfig", "PidMode", "host"),
        ("HostConfig", "IpcMode", "container:0123"),
        ("HostConfig", "UTSMode", "host"),
        ("HostConfig", "UsernsMode", "host"),
        ("HostConfig", "SecurityOpt", []),
        ("HostConfig", "SecurityOpt", ["no-new-privileges:false"]),
        ("HostConfig", "SecurityOpt", ["no-new-privileges", "seccomp=unconfined"]),
        ("HostConfig", "Tmpfs", {"/tmp": "mode=1777"}),
        ("Config", "User", "1:1"),
        ("Config", "Entrypoint", ["/bin/sh"]),
        ("Config", "Cmd", ["/bin/sh"]),
        ("Config", "Labels", {}),
    ],
)
def test_what_differs_is_named(engine: str, place: str, name: str, value: object) -> None:
    spec, said = ENGINES[engine]
    other = copy.deepcopy(said)
    other[place][name] = value
    assert judged(spec, other).status is CheckStatus.FAIL


@pytest.mark.parametrize("engine", ENGINES)
def test_mounts_are_exactly_the_planned_ones(engine: str) -> None:
    spec, said = ENGINES[engine]
    volume = {"Type": "volume", "Destination": "/data", "Source": "/var/lib/x", "RW": True}
    memory = {"Type": "tmpfs", "Destination": "/run", "Source": "", "RW": True}
    assert judged(spec, {**said, "Mounts": [*said["Mounts"], memory]}).status is CheckStatus.PASS
    docker = {"Type": "bind", "Source": "/run/docker.sock", "Destination": "/run/docker.sock", "RW": True}
    for mounts in (
        said["Mounts"][1:],
        [*said["Mounts"], volume],
        [*said["Mounts"], docker],
        [*said["Mounts"][:-1], {**said["Mounts"][-1], "RW": True}],
        [*said["Mounts"][:-1], {**said["Mounts"][-1], "Source": "/root"}],
        [*said["Mounts"], {**memory, "Destination": "/home"}],
    ):
        assert judged(spec, {**said, "Mounts": mounts}).status is CheckStatus.FAIL


def test_capabilities_are_read_in_each_engines_words() -> None:
    left = judged(PODMAN, {**BY_PODMAN, "EffectiveCaps": ["CAP_CHOWN"]})
    assert "CAP_CHOWN" in left.observed
    assert judged(PODMAN, {**BY_PODMAN, "BoundingCaps": ["CAP_CHOWN"]}).status is CheckStatus.FAIL
    other = {**BY_DOCKER, "HostConfig": {**BY_DOCKER["HostConfig"], "CapDrop": None}}
    assert judged(DOCKER, other).observed == "CapDrop is None"


@pytest.mark.parametrize("name", ["Memory", "PidsLimit", "NanoCpus"])
def test_limits_are_dockers_to_hold_where_the_kernel_can(name: str) -> None:
    host = BY_DOCKER["HostConfig"]
    other = {**BY_DOCKER, "HostConfig": {**host, name: host[name] * 2}}
    assert judged(DOCKER, other).observed == f"{name} is {host[name] * 2}"
    assert judged(DOCKER, {**BY_DOCKER, "HostConfig": {**host, name: 0}}).status is CheckStatus.PASS


def test_the_runtime_is_the_one_that_was_asked_for() -> None:
    assert PODMAN.container is not None
    gvisor = dataclasses.replace(
        PODMAN, container=dataclasses.replace(PODMAN.container, runtime="/usr/local/bin/runsc")
    )
    said = copy.deepcopy(BY_PODMAN)
    said["Mounts"] += [
        {
            "Type": "bind",
            "Source": f"/run/clsecure/{name}",
            "Destination": f"/run/clsecure/{name}",
            "RW": True,
        }
        for name in ("streams", "gateway")
    ]
    assert judged(gvisor, {**said, "OCIRuntime": "runsc"}).observed == "as planned"
    assert judged(gvisor, said).observed == "the runtime is crun"


def test_another_image_and_silence_fail() -> None:
    other = judged(PODMAN, {**BY_PODMAN, "Image": "0" * 64}, "image")
    assert (other.status, other.observed) == (CheckStatus.FAIL, f"sha256:{'0' * 64}")
    for check in ("image", "engine-plan"):
        assert judged(DOCKER, None, check).status is CheckStatus.FAIL
    assert judged(PODMAN, {}, "engine-plan").status is CheckStatus.FAIL


@pytest.mark.parametrize(
    ("outside", "told"),
    [
        ("/var/lib/docker/overlay2/x/merged", False),  # where docker's daemon has it, as it says
        (f"/run/docker/rootfs/overlayfs/{DIGEST}", False),  # and with another store
        ("/srv/mine", True),
    ],
)
def test_a_root_is_mounted_outside_where_dockers_daemon_has_it_alone(
    monkeypatch: pytest.MonkeyPatch, outside: str, told: bool
) -> None:
    table = (
        MountLine.parse("1 0 254:0 / / rw - ext4 - rw"),
        MountLine.parse(f"2 1 0:70 / {outside} rw - overlay - rw"),
    )
    for module in ("container_mounts", "mounts", "mountinfo"):
        monkeypatch.setattr(f"clsecure.verify.{module}.machine_table", lambda: table)
    said = {
        **BY_DOCKER,
        "Id": DIGEST,
        "GraphDriver": {"Data": {"MergedDir": "/var/lib/docker/overlay2/x/merged"}},
    }
    root = "10 9 0:70 / / ro - overlay - rw"
    found = judged(DOCKER, said, "container-mounts", mountinfo=(root,))
    assert ("/ is overlay" in found.observed) is told
