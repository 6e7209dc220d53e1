"""C8, C14: what the host sees of a container's mounts, and which of them stop the start."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from clsecure.backends.api import (
    Asked,
    ContainerFacts,
    FileIdentity,
    Given,
    PlaceFacts,
    ProcessFacts,
)
from clsecure.backends.container.spec import RUN, plan_container
from clsecure.model import (
    CheckStatus,
    ContainerSpec,
    DockerAccess,
    Engine,
    IsolationMode,
    Mount,
    SandboxSpec,
    WorkerAccount,
    WorkerImage,
)
from clsecure.verify.host import check_barrier
from tests.support.mountlines import machines, table

HOME = Path("/home/claude-worker-x")
SPEC = SandboxSpec(
    mode=IsolationMode.CONTAINER,
    account=WorkerAccount(name="claude-worker-x", uid=1_900_000_000, gid=1_900_000_000, home=HOME),
    mounts=(Mount(source=Path("/srv/in"), target=Path("/srv/in")),),
    container=ContainerSpec(
        engine=Engine.PODMAN, image=WorkerImage(name="worker", image_id=f"sha256:{'0' * 64}")
    ),
    docker=DockerAccess.OWN,
)
# What both engines make, as it was seen: device, what of it, where, how, of which kind. Devices above 9000
# are mounted nowhere outside.
ENGINES = """
0:9001 / / ro overlay
0:9002 / /proc rw proc
0:9002 /sys /proc/sys ro proc
0:9003 / /proc/acpi ro tmpfs
0:6 /null /proc/keys ro devtmpfs
0:9004 / /dev rw tmpfs
0:9005 / /dev/pts rw devpts
0:9006 / /dev/mqueue rw mqueue
0:9007 / /dev/shm rw tmpfs
0:6 /null /dev/null rw devtmpfs
0:6 /urandom /dev/urandom rw devtmpfs
0:9008 / /sys ro sysfs
0:9009 / /sys/firmware ro tmpfs
0:9010 / /sys/fs/cgroup rw tmpfs
0:38 / /sys/fs/cgroup ro cgroup2
0:38 /x /sys/fs/cgroup/pids ro cgroup
0:9011 / /run rw tmpfs
0:9012 / /tmp rw tmpfs
0:9013 / /var/tmp rw tmpfs
254:0 /run/clsecure/x/passwd /etc/passwd ro ext4
254:0 /run/clsecure/x/group /etc/group ro ext4
0:9014 /run/0a1b/userdata/hosts /etc/hosts ro tmpfs
254:0 /docker/containers/0a1b/hostname /etc/hostname ro ext4
254:0 /run/clsecure/x/control//deleted /run/clsecure/control rw ext4
254:0 /run/clsecure/x/docker.sock /run/clsecure/docker.sock rw ext4
254:0 /usr/local/lib/clsecure /usr/local/lib/clsecure ro ext4
254:0 /home/claude-worker-x /home/claude-worker-x rw ext4
254:0 /srv/in /srv/in ro ext4
""".strip().splitlines()


PLACES = (
    str(HOME), "/srv/in", "/run/clsecure/docker.sock", "/run/clsecure/control", "/etc/passwd", "/etc/group",
    "/usr/local/lib/clsecure",
)  # fmt: skip


def place(number: int, mode: int = stat.S_IFDIR | 0o755) -> FileIdentity:
    return FileIdentity(device=1, inode=number, uid=0, mode=mode)


FACTS = ProcessFacts(
    pid=1, status={}, namespaces={}, host_namespaces={}, mountinfo=(), descriptors={}, executable="",
    landlock_abi=0, seccomp_filter=False,
    places={at: PlaceFacts(inside=place(n), outside=place(n)) for n, at in enumerate(PLACES)},
    asked=Asked(given={"/srv/in": Given(path="/srv/in", identity=place(PLACES.index("/srv/in")))}),
    container=ContainerFacts(
        plan=plan_container(SPEC, pieces=Path("/usr/local/lib/clsecure"), run=RUN, uid=0, sources={}),
        inspected={"Id": "0a1b"},
    ),
)  # fmt: skip


def seen(*lines: str, facts: ProcessFacts = FACTS) -> str:
    """Return what the check of the mounts says of them."""
    facts = replace(facts, mountinfo=table(*lines))
    (found,) = [each for each in check_barrier(facts, SPEC) if each.check_id == "container-mounts"]
    assert (found.status is CheckStatus.PASS) == (found.observed == "as planned")
    return found.observed


def test_c8_what_engines_mount_is_as_planned() -> None:
    assert seen(*ENGINES) == "as planned"


def test_c8_the_sockets_and_mounts_may_lie_in_memory_of_the_machine() -> None:
    """Its /run does, and what the user gives may."""
    shared = machines("tmpfs")
    lines = [line for line in ENGINES if line.split()[2] not in PLACES]
    assert seen(
        *lines,
        f"{shared} /clsecure/x/control /run/clsecure/control rw tmpfs",
        f"{shared} /clsecure/x/passwd /etc/passwd ro tmpfs",
        f"{shared} /in /srv/in ro tmpfs",
        f"{shared} / /home/claude-worker-x rw tmpfs",
    ) == "as planned"  # fmt: skip


@pytest.mark.parametrize("target", PLACES)
def test_what_is_in_a_place_of_the_plan_is_what_belongs_there(target: str) -> None:
    right = FACTS.places[target]
    assert right.inside
    for inside, said in (
        (None, "is not there"),
        (replace(right.inside, inode=99), "is another"),
        (replace(right.inside, device=99), "is another"),
        (replace(right.inside, mode=stat.S_IFLNK | 0o777), "is another"),
    ):
        places = {**FACTS.places, target: replace(right, inside=inside)}
        assert seen(*ENGINES, facts=replace(FACTS, places=places)) == f"{target} {said}"
    places = {**FACTS.places, target: replace(right, outside=None)}
    assert seen(*ENGINES, facts=replace(FACTS, places=places)) == f"{target} was not looked at"
    assert "was not looked at" in seen(*ENGINES, facts=replace(FACTS, places={}))


def test_what_was_given_is_told_by_who_gave_it_too() -> None:
    given = Given(path="/srv/in", identity=place(99))
    facts = replace(FACTS, asked=Asked(given={"/srv/in": given}))
    assert seen(*ENGINES, facts=facts) == "/srv/in is not what was given"


def test_what_is_mounted_outside_in_the_directory_of_the_pieces_comes_along() -> None:
    line = "254:0 /tmp/0 /usr/local/lib/clsecure/launcher.py ro ext4"
    assert seen(*ENGINES, line) == "/usr/local/lib/clsecure/launcher.py is ext4 /tmp/0"
    outside = replace(FACTS.asked, mountinfo=table(line))
    assert seen(*ENGINES, line, facts=replace(FACTS, asked=outside)) == "as planned"


def test_without_what_engines_mount_nothing_is_as_planned() -> None:
    assert seen() == "; ".join(
        f"{target} is not mounted" for target in ("/", "/dev", "/proc", "/run", "/sys", "/tmp", "/var/tmp")
    )


@pytest.mark.parametrize("target", ["/tmp", "/run", "/run/user/1000", "/dev/shm", "/dev", "/var/tmp/x"])
def test_c14_memory_of_the_machine_is_not_taken_for_the_containers_own(target: str) -> None:
    assert seen(*ENGINES, f"{machines('tmpfs')} / {target} rw tmpfs") == f"{target} is tmpfs /"


def test_c14_a_device_of_the_machine_is_not_a_plain_one() -> None:
    shared = machines("tmpfs")
    assert seen(*ENGINES, f"{shared} /null /dev/null rw tmpfs") == "as planned"
    assert seen(*ENGINES, f"{shared} /vda /dev/vda rw tmpfs") == "/dev/vda is tmpfs /vda"
    assert seen(*ENGINES, "0:6 /vda /dev/vda rw devtmpfs") == "/dev/vda is devtmpfs /vda"


@pytest.mark.parametrize("target", ["/proc", "/proc/sys"])
def test_c14_the_processes_of_the_machine_are_not_shown(target: str) -> None:
    assert seen(*ENGINES, f"{machines('proc')} / {target} rw proc") == f"{target} is proc /"


def test_c14_a_file_of_the_engines_is_this_containers() -> None:
    other = [line.replace("0a1b", "ffff") for line in ENGINES]
    assert seen(*other) == (
        "/etc/hostname is ext4 /docker/containers/ffff/hostname; /etc/hosts is tmpfs /run/ffff/userdata/hosts"
    )
    silent = replace(FACTS, container=None)
    assert "/etc/hosts is tmpfs" in seen(*[line.replace("0a1b", "") for line in ENGINES], facts=silent)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0:39 / /sys/fs/cgroup rw cgroup2", "/sys/fs/cgroup"),
        ("0:39 / /sys/fs/cgroup/memory rw cgroup", "/sys/fs/cgroup/memory"),
        ("0:38 / /mnt ro cgroup2", "/mnt"),
        ("0:9050 / /home ro tmpfs", "/home"),
        ("254:0 / /mnt ro ext4", "/mnt"),
        ("254:0 /run/docker.sock /run/docker.sock rw ext4", "/run/docker.sock"),
        ("254:0 /x /proc/sys/x ro ext4", "/proc/sys/x"),
        ("254:0 /sda /dev/sda rw ext4", "/dev/sda"),
        ("254:0 /home /home/claude-worker-x/x ro ext4", "/home/claude-worker-x/x is ext4 /home"),
        ("254:0 /home /srv/in/x ro ext4", "/srv/in/x is ext4 /home"),
        ("254:0 /home /srv/in ro ext4", "/srv/in is mounted twice"),
        ("254:0 /usr/local/lib/clsecure /usr/local/lib/clsecure rw ext4", "clsecure is writable"),
        ("254:0 /srv/in /srv/in rw ext4", "/srv/in is writable"),
        ("0:9051 / / rw overlay", "/ is writable"),
    ],
)  # fmt: skip
def test_c14_what_is_not_planned_stops_the_start(line: str, said: str) -> None:
    assert said in seen(*ENGINES, line)
