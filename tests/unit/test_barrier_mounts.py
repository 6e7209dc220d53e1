"""A1, A11: what the host sees of a local sandbox's mounts, and which of them stop the start."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from clsecure.backends.api import Asked, FileIdentity, Given, PlaceFacts, ProcessFacts
from clsecure.model import CheckStatus, DockerAccess, IsolationMode, Mount, SandboxSpec, WorkerAccount
from clsecure.verify.host import check_barrier
from clsecure.verify.mountinfo import MountLine, Table
from tests.support.mountlines import machines

HOME = "/home/claude-worker-x"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
USER = SandboxSpec(
    mode=IsolationMode.USER,
    account=WorkerAccount(name="claude-worker-x", uid=1_900_000_000, gid=1_900_000_000, home=Path(HOME)),
    mounts=(Mount(source=Path("/home/me/link"), target=Path("/opt/m"), read_only=False),),
)
NAMESPACE = replace(USER, mode=IsolationMode.NAMESPACE)
# What was really seen, shortened: 254:0 is the machine's disk, 0:6 its /dev; what the user gave, and /usr,
# have a file system below them. Devices above 8000 are mounted nowhere outside.
BY_HELPER = """
85 190 254:0 /home/me/m /opt/m rw,nosuid,nodev - ext4 - rw
126 85 0:8001 / /opt/m/sub rw,nosuid,nodev - tmpfs - rw
187 127 0:9002 / / ro,nosuid,nodev - tmpfs - rw
188 187 0:9002 /run /run rw,nosuid,nodev - tmpfs - rw
189 187 0:9002 /var /var rw,nosuid,nodev - tmpfs - rw
190 187 0:9002 /opt /opt rw,nosuid,nodev - tmpfs - rw
191 187 0:9002 /tmp /tmp rw,nosuid,nodev - tmpfs - rw
192 187 254:0 /usr /usr ro,nosuid,nodev - ext4 - rw
193 192 0:8002 / /usr/local ro,nosuid,nodev - overlay - rw
196 187 0:9004 / /etc ro,nosuid,nodev - overlay - lowerdir=/var/lib/clsecure/view/opt/clsecure/etc:/etc
197 187 0:9002 /dev/shm /dev/shm rw,nosuid,nodev - tmpfs - rw
198 187 0:6 /null /dev/null rw - devtmpfs - rw
221 187 0:6 /zero /dev/zero rw - devtmpfs - rw
222 187 0:6 /full /dev/full rw - devtmpfs - rw
223 187 0:6 /random /dev/random rw - devtmpfs - rw
224 187 0:6 /urandom /dev/urandom rw - devtmpfs - rw
225 187 0:6 /tty /dev/tty rw - devtmpfs - rw
226 187 0:9005 / /dev/pts rw,nosuid,noexec - devpts - rw
227 187 254:0 /home/claude-worker-x /home/claude-worker-x rw,nosuid,nodev - ext4 - rw
228 187 0:9006 / /sys ro,nosuid,nodev,noexec - sysfs - rw
128 187 0:9007 / /proc rw,nosuid,nodev,noexec - proc - rw
""".strip().splitlines()
BY_FIREJAIL = """
131 130 0:9001 / / ro,nosuid,nodev - tmpfs - rw
132 131 0:9001 /run /run rw,nosuid,nodev - tmpfs - rw
133 132 0:9001 /run/firejail/dbus /run/firejail/dbus rw,nosuid,nodev,noexec - tmpfs - rw
134 132 0:9001 /run/firejail/firejail.ro.dir /run/firejail/firejail.ro.dir ro,nosuid,nodev - tmpfs - rw
135 132 0:9001 /run/firejail/firejail.ro.file /run/firejail/firejail.ro.file ro,nosuid,nodev - tmpfs - rw
136 131 0:9001 /var /var rw,nosuid,nodev - tmpfs - rw
137 131 0:9001 /opt /opt rw,nosuid,nodev - tmpfs - rw
138 137 254:0 /home/me/m /opt/m rw,nosuid,nodev - ext4 - rw
139 138 0:8001 / /opt/m/sub rw,nosuid,nodev - tmpfs - rw
140 131 0:9001 /tmp /tmp rw,nosuid,nodev - tmpfs - rw
141 131 254:0 /usr /usr ro,nodev - ext4 - rw
142 141 0:8002 / /usr/local ro,nodev - overlay - rw
143 131 0:9004 / /etc ro,nodev - overlay - lowerdir=/var/lib/clsecure/view/opt/clsecure/etc:/etc
144 131 0:9001 /dev/shm /dev/shm rw,nosuid,nodev - tmpfs - rw
145 131 0:6 /null /dev/null rw - devtmpfs - rw
151 131 0:9005 / /dev/pts rw,nosuid,noexec - devpts - rw
152 131 254:0 /home/claude-worker-x /home/claude-worker-x rw,nosuid,nodev - ext4 - rw
153 131 0:21 / /proc rw - proc - rw
155 132 0:9006 / /run/firejail/mnt rw,nosuid - tmpfs - rw
223 132 254:0 /usr/lib/x86/firejail /run/firejail/lib ro,nosuid,nodev - ext4 - rw
224 153 0:9007 / /proc rw,nosuid,nodev,noexec - proc - rw
225 143 0:9004 / /etc ro,nosuid,nodev,noexec - overlay - lowerdir=/var/lib/clsecure/view/opt/clsecure/etc:/etc
226 136 0:9001 /var /var ro,nosuid,nodev - tmpfs - rw
227 226 0:9001 /var /var ro,nosuid,nodev,noexec - tmpfs - rw
228 227 0:9008 / /var/tmp rw,nosuid,nodev,noexec - tmpfs - rw
229 227 0:9009 / /var/log rw,nosuid,nodev,noexec - tmpfs - rw
230 132 0:9001 /run/firejail/firejail.ro.dir /run/firejail/sandbox ro,nosuid,nodev - tmpfs - rw
236 155 0:9001 /dev /run/firejail/mnt/dev ro,nosuid,nodev - tmpfs - rw
237 236 0:9001 /dev/shm /run/firejail/mnt/dev/shm rw,nosuid,nodev - tmpfs - rw
238 236 0:6 /null /run/firejail/mnt/dev/null rw - devtmpfs - rw
244 236 0:9005 / /run/firejail/mnt/dev/pts rw,nosuid,noexec - devpts - rw
245 131 0:9010 / /dev rw,nosuid - tmpfs - rw
246 236 0:9001 /run/firejail/firejail.ro.dir /run/firejail/mnt/dev ro,nosuid,nodev - tmpfs - rw
247 245 0:9011 / /dev/pts rw - devpts - rw
248 133 0:9001 /run/firejail/firejail.ro.dir /run/firejail/dbus ro,nosuid,nodev - tmpfs - rw
249 224 0:9007 /sys /proc/sys ro,nosuid,nodev,noexec - proc - rw
154 131 0:9012 / /sys ro,nosuid,nodev,noexec - sysfs - rw
156 154 0:9001 /run/firejail/firejail.ro.dir /sys/firmware ro,nosuid,nodev - tmpfs - rw
160 249 0:9001 /run/firejail/firejail.ro.dir /proc/sys/fs/binfmt_misc ro,nosuid,nodev - tmpfs - rw
251 132 0:9001 /run/firejail/firejail.ro.dir /run/user/1900000000/systemd ro,nosuid,nodev - tmpfs - rw
252 224 0:9001 /run/firejail/firejail.ro.file /proc/kmsg ro,nosuid,nodev - tmpfs - rw
253 154 0:9001 /run/firejail/firejail.ro.dir /sys/fs ro,nosuid,nodev - tmpfs - rw
254 154 0:9001 /run/firejail/firejail.ro.dir /sys/module ro,nosuid,nodev - tmpfs - rw
255 155 0:9006 /seccomp /run/firejail/mnt/seccomp ro,nosuid - tmpfs - rw
""".strip().splitlines()
OUTSIDE = """
1 0 254:0 / / rw - ext4 - rw
2 1 0:8001 / /home/me/m/sub rw - tmpfs - rw
3 1 0:8002 / /usr/local rw - overlay - rw
4 1 0:21 / /proc rw - proc - rw
""".strip().splitlines()
SEEN = {IsolationMode.USER: BY_HELPER, IsolationMode.NAMESPACE: BY_FIREJAIL}
SPECS = {"user": USER, "namespace": NAMESPACE}


def place(number: int, kind: int = stat.S_IFDIR) -> FileIdentity:
    return FileIdentity(device=1, inode=number, uid=0, mode=kind | 0o755)


def same(number: int, kind: int = stat.S_IFDIR) -> PlaceFacts:
    return PlaceFacts(inside=place(number, kind), outside=place(number, kind))


PLACES = {
    HOME: same(1),
    "/opt/m": same(2),
    "/usr": same(3),
    # Made anew inside.
    "/bin": PlaceFacts(inside=place(4, stat.S_IFLNK), outside=place(5, stat.S_IFLNK)),
    **{
        f"/dev/{name}": same(10, stat.S_IFCHR)
        for name in ("null", "zero", "full", "random", "urandom", "tty")
    },
}
FACTS = ProcessFacts(
    pid=1, status={}, namespaces={}, host_namespaces={}, mountinfo=(), descriptors={}, executable="",
    landlock_abi=0, seccomp_filter=False, places=PLACES,
    asked=Asked(given={"/opt/m": Given(path="/home/me/m", identity=place(2))}, mountinfo=tuple(OUTSIDE)),
)  # fmt: skip


def observed(spec: SandboxSpec, *more: str, facts: ProcessFacts = FACTS) -> str:
    """Return what the check of the mounts says, with further lines that are mounted on the root."""
    seen = SEEN[spec.mode]
    root = next(line.split()[0] for line in seen if " / / " in line)
    lines = (*seen, *(f"{900 + n} {root} {line}" for n, line in enumerate(more)))
    return judged(replace(facts, mountinfo=lines), spec)


def judged(facts: ProcessFacts, spec: SandboxSpec) -> str:
    (found,) = [each for each in check_barrier(facts, spec) if each.check_id == "mounts"]
    assert (found.status is CheckStatus.PASS) == (found.observed == "as planned")
    return found.observed


@pytest.mark.parametrize("mode", SPECS)
def test_what_is_made_of_the_plan_is_as_planned(mode: str) -> None:
    assert observed(SPECS[mode]) == "as planned"


def test_the_names_that_a_newer_firejail_makes_are_its_own() -> None:
    made = "0:9006 /hosts /etc/hosts ro,nosuid - tmpfs - rw"
    assert observed(SPECS["namespace"], made) == "as planned"
    for line, said in (
        (made.replace("/hosts /etc", "/passwd /etc"), "/etc/hosts is tmpfs /passwd"),
        (made.replace("/etc/hosts", "/etc/passwd"), "/etc/passwd is tmpfs /hosts"),
        (made.replace(" - tmpfs", " - ext4"), "/etc/hosts is ext4 /hosts"),
    ):
        assert said in observed(SPECS["namespace"], line)
    assert "/etc/hosts is tmpfs /hosts" in observed(SPECS["user"], made)


@pytest.mark.parametrize("mode", SPECS)
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("254:0 /home/me /opt/clsecure/x ro,nosuid,nodev - ext4 - rw", "/opt/clsecure/x is ext4 /home/me"),
        ("254:0 / /opt/clsecure/x ro,nosuid,nodev - ext4 - rw", "/opt/clsecure/x is ext4 /"),
        ("254:0 /home/me /run/firejail/x rw,nosuid,nodev - ext4 - rw", "/run/firejail/x is ext4 /home/me"),
        (
            "254:0 /home /run/firejail/lib ro,nosuid,nodev - ext4 - rw",
            "/run/firejail/lib is ext4 /home",
        ),
        (
            "254:0 /run/s /opt/clsecure/s ro,nosuid,nodev - ext4 - rw",
            "/opt/clsecure/s is ext4 /run/s",
        ),
        ("254:0 /home/me /proc/x ro,nosuid,nodev - ext4 - rw", "/proc/x is ext4 /home/me"),
        ("254:0 /home/me /dev/x ro,nosuid,nodev - ext4 - rw", "/dev/x is ext4 /home/me"),
        ("0:6 /vda /dev/vda rw - devtmpfs - rw", "/dev/vda is devtmpfs /vda"),
        ("0:6 /null /srv/null rw - devtmpfs - rw", "/srv/null is devtmpfs /null"),
        ("0:8001 / /opt/m/other rw,nosuid,nodev - tmpfs - rw", "/opt/m/other is tmpfs /"),
        (f"254:0 /home/me {HOME}/x rw,nosuid,nodev - ext4 - rw", f"{HOME}/x is ext4 /home/me"),
        ("0:9999 / /home rw,nosuid,nodev - tmpfs - rw", "/home is tmpfs /"),
        ("0:9999 / /sys/fs/cgroup ro,nosuid,nodev - cgroup2 - rw", "/sys/fs/cgroup is cgroup2 /"),
    ],
)
def test_a1_what_is_not_planned_stops_the_start(mode: str, line: str, said: str) -> None:
    assert observed(SPECS[mode], line) == said


@pytest.mark.parametrize("mode", SPECS)
@pytest.mark.parametrize("target", [HOME, "/opt/m"])
def test_a1_another_mount_in_a_place_of_the_plan_stops_the_start_also_where_nobody_comes_to_it(
    mode: str, target: str
) -> None:
    line = f"254:0 /home/other {target} rw,nosuid,nodev - ext4 - rw"
    assert f"{target} is mounted twice" in observed(SPECS[mode], line)


@pytest.mark.parametrize("mode", SPECS)
@pytest.mark.parametrize("target", [HOME, "/opt/m", "/usr"])
def test_a1_what_is_in_a_place_of_the_plan_is_what_belongs_there(mode: str, target: str) -> None:
    right = PLACES[target]
    assert right.inside
    for inside, said in (
        (None, "is not there"),
        (replace(right.inside, inode=99), "is another"),
        (replace(right.inside, device=99), "is another"),
        (replace(right.inside, mode=stat.S_IFSOCK), "is another"),
    ):
        facts = replace(FACTS, places={**PLACES, target: replace(right, inside=inside)})
        assert observed(SPECS[mode], facts=facts) == f"{target} {said}"
    facts = replace(FACTS, places={name: each for name, each in PLACES.items() if name != target})
    assert f"{target} was not looked at" in observed(SPECS[mode], facts=facts)


@pytest.mark.parametrize("mode", SPECS)
def test_a1_what_was_given_is_told_by_who_gave_it_too(mode: str) -> None:
    facts = replace(
        FACTS, asked=replace(FACTS.asked, given={"/opt/m": Given(path="/home/me/m", identity=place(99))})
    )
    assert observed(SPECS[mode], facts=facts) == "/opt/m is not what was given"


@pytest.mark.parametrize("mode", SPECS)
def test_a_link_of_the_systems_is_made_anew_and_nothing_else_is_in_its_place(mode: str) -> None:
    assert PLACES["/bin"].inside != PLACES["/bin"].outside
    facts = replace(FACTS, places={**PLACES, "/bin": replace(PLACES["/bin"], inside=place(5))})
    assert observed(SPECS[mode], facts=facts) == "/bin is another"


@pytest.mark.parametrize("mode", SPECS)
def test_the_socket_of_an_engine_is_in_its_place_where_one_is_planned(mode: str) -> None:
    options = "ro,nosuid,nodev" if mode == "user" else "ro,nodev"
    line = f"254:0 /run/clsecure/x/docker.sock /run/clsecure/docker.sock {options} - ext4 - rw"
    spec = replace(SPECS[mode], docker=DockerAccess.OWN)
    facts = replace(FACTS, places={**PLACES, "/run/clsecure/docker.sock": same(7, stat.S_IFSOCK)})
    assert observed(spec, line, facts=facts) == "as planned"
    assert observed(spec, line) == "/run/clsecure/docker.sock was not looked at"
    assert "/run/clsecure/docker.sock is ext4" in observed(SPECS[mode], line)


@pytest.mark.parametrize("mode", SPECS)
def test_what_is_mounted_below_what_was_given_comes_along_and_nothing_else(mode: str) -> None:
    facts = replace(FACTS, asked=replace(FACTS.asked, mountinfo=()))
    assert observed(SPECS[mode], facts=facts) == "/opt/m/sub is tmpfs /; /usr/local is overlay /"


@pytest.mark.parametrize("mode", SPECS)
def test_a11_what_was_given_to_read_is_not_writable_in_memory_either(mode: str) -> None:
    spec = replace(SPECS[mode], mounts=tuple(replace(each, read_only=True) for each in USER.mounts))
    assert observed(spec) == "/opt/m is writable; /opt/m/sub is writable"


@pytest.mark.parametrize("mode", SPECS)
@pytest.mark.parametrize("target", [HOME, "/opt/m"])
def test_c2_set_uid_programs_and_devices_do_not_count(mode: str, target: str) -> None:
    lines = [
        line.replace("rw,nosuid,nodev", "rw") if f" {target} " in line else line
        for line in SEEN[SPECS[mode].mode]
    ]
    said = judged(replace(FACTS, mountinfo=tuple(lines)), SPECS[mode])
    assert said == f"{target} is not nodev; {target} is not nosuid"


def test_c14_the_processes_of_the_machine_are_seen_by_firejail_alone() -> None:
    shared = machines("proc")
    for spec in SPECS.values():
        assert observed(spec, f"{shared} / /proc rw - proc - rw") == "/proc is proc /"
    # That without firejail's over it.
    lines = [line for line in BY_FIREJAIL if not line.startswith(("224 ", "249 ", "160 ", "162 ", "252 "))]
    lines = [line.replace("0:21 ", f"{shared} ") for line in lines]
    assert judged(replace(FACTS, mountinfo=tuple(lines)), NAMESPACE) == "/proc is proc /"


def test_the_settings_are_the_helpers_own_above_the_machines() -> None:
    lines = [line.replace("/var/lib/clsecure/view/opt", "/home/me/opt") for line in BY_HELPER]
    assert judged(replace(FACTS, mountinfo=tuple(lines)), USER) == "/etc is overlay /"


def test_what_firejail_makes_is_in_no_other_mode() -> None:
    for line in BY_FIREJAIL:
        if " /run/firejail/firejail.ro.dir /sys/firmware " in line:
            assert observed(USER, line.split(" ", 2)[2]) == (
                "/sys/firmware is tmpfs /run/firejail/firejail.ro.dir"
            )
    assert observed(USER, "0:9099 / /var/log rw,nosuid,nodev - tmpfs - rw") == "/var/log is tmpfs /"


def test_a_path_is_read_with_its_escapes_and_names_what_is_on_top() -> None:
    line = MountLine.parse(r"1 0 8:1 /a\040b /opt/c\134d rw shared:1 - ext4 /dev/x rw,errors=remount-ro")
    assert (line.root, line.target, line.file_system) == ("/a b", "/opt/c\\d", ("rw", "errors=remount-ro"))
    table = Table.parse(
        [
            "1 0 8:1 / / rw - ext4 - rw",
            "2 1 8:2 / /a rw - ext4 - rw",
            "3 2 8:3 / /a rw - ext4 - rw",
            "4 1 8:4 / /a/b rw - ext4 - rw",
            "5 2 8:5 / /a/c rw - ext4 - rw",
            "6 3 8:6 / /a/d rw - ext4 - rw",
        ]
    )
    assert {line.number for line in table.visible()} == {1, 3, 6}
