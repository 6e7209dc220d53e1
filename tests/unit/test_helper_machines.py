"""What the root helper does on machines that are not this one: systemd's scopes, settings of the machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from clsecure.privileged.root import disk as disks
from clsecure.privileged.root import limits as bounds
from clsecure.privileged.root import state
from clsecure.privileged.root.messages import Refused
from clsecure.privileged.root.request import parse_proxy

NAME = "claude-worker-sample-0a1b2c"


def test_on_systemd_a_transient_scope_with_delegation_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape is that of StartTransientUnit(s name, s mode, a(sv) properties, a(sa(sv)) aux)."""
    asked: list[tuple[str, ...]] = []
    real = os.path.isdir
    # There is no systemd on the machine that tests this; what would be run is looked at instead.
    monkeypatch.setattr(os.path, "isdir", lambda path: path == "/run/systemd/system" or real(path))
    monkeypatch.setattr(bounds, "tool", lambda *words, **_: asked.append(words))
    unit = f"/system.slice/clsecure-{NAME}-4711.scope"
    monkeypatch.setattr(bounds, "cgroup_paths", lambda _: {"": f"/sys/fs/cgroup{unit}"})
    values = {"memory.max": "1073741824", "pids.max": "512", "cpu.max": "150000 100000"}
    monkeypatch.setattr(bounds, "read_small", lambda path: values.get(path.rpartition("/")[2]))
    limits = {"memory": 1 << 30, "pids": 512, "cpus": 1.5}
    held = bounds.cgroup_enter({"name": NAME, "uid": 1}, 4711, limits)
    assert held == dict.fromkeys(("memory", "pids", "cpus"), "systemd")
    (words,) = (list(each) for each in asked)
    assert words[:3] == ["/usr/bin/busctl", "--quiet", "call"]
    call = words[words.index("StartTransientUnit") :]
    assert call[1] == "ssa(sv)a(sa(sv))"
    assert call[2].endswith(".scope")
    assert NAME in call[2]
    assert call[3] == "fail"
    count, rest = int(call[4]), call[5:]
    properties = {}
    for _ in range(count):
        name, kind, *rest = rest
        if kind == "au":
            number, *rest = rest
            properties[name] = rest[: int(number)]
            rest = rest[int(number) :]
        else:
            properties[name], *rest = rest
    assert properties["PIDs"] == ["4711"]
    assert properties["Delegate"] == "true"
    assert (properties["MemoryMax"], properties["MemorySwapMax"]) == (str(1 << 30), "0")
    assert (properties["TasksMax"], properties["CPUQuotaPerSecUSec"]) == ("512", "1500000")
    assert rest == ["0"]


@pytest.mark.parametrize(
    ("values", "held"),
    [
        ({"memory.max": "max", "pids.max": "max", "cpu.max": "max 100000"}, {}),
        ({"memory.max": "1073741825", "pids.max": "513", "cpu.max": "150001 100000"}, {}),
        ({}, {}),
        ({"memory.max": "0"}, {}),
        ({"memory.limit_in_bytes": "1073741824"}, {"memory"}),
        ({"cpu.cfs_quota_us": "150000"}, {"cpus"}),
        ({"cpu.cfs_quota_us": "-1"}, {}),
    ],
)
def test_a_limit_counts_only_when_the_kernel_says_so(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], held: set[str]
) -> None:
    monkeypatch.setattr(bounds, "cgroup_paths", lambda _: dict.fromkeys(("memory", "cpu", ""), "/g"))
    monkeypatch.setattr(bounds, "read_small", lambda path: values.get(path.rpartition("/")[2]))
    assert set(bounds.confirmed(1, {"memory": 1 << 30, "pids": 512, "cpus": 1.5})) == set(held)


def test_a_pure_unified_hierarchy_gets_its_controllers_and_limits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The files are made beforehand, as the kernel makes them."""
    group = tmp_path / "clsecure" / NAME
    group.mkdir(parents=True)
    for place in (tmp_path, tmp_path / "clsecure"):
        (place / "cgroup.subtree_control").write_text("")
    for file in ("memory.max", "memory.swap.max", "pids.max", "cpu.max", "cgroup.procs"):
        (group / file).write_text("")
    monkeypatch.setattr(bounds, "cgroup_root", lambda: str(tmp_path))
    monkeypatch.setattr(bounds, "cgroup_paths", lambda pid: {"": str(group)} if pid == 4711 else {})
    held = bounds.cgroup_enter({"name": NAME}, 4711, {"memory": 1 << 30, "cpus": 0.5})
    assert held == {"memory": "cgroup", "cpus": "cgroup"}
    assert (group / "memory.max").read_text() == str(1 << 30)
    assert (group / "memory.swap.max").read_text() == "0"
    assert (group / "cpu.max").read_text() == "50000 100000"
    assert (group / "pids.max").read_text() == ""
    assert (group / "cgroup.procs").read_text() == "4711"
    assert (tmp_path / "cgroup.subtree_control").read_text().startswith("+cpu")


@pytest.mark.parametrize(
    "limits",
    [
        {"memory": 1}, {"memory": 1e9}, {"memory": True}, {"memory": "1G"}, {"memory": -1},
        {"memory": 1 << 70},
        {"cpus": 1}, {"cpus": float("nan")}, {"cpus": float("inf")}, {"cpus": 0.0}, {"pids": 0},
        {"pids": None},
        {"open_files": 1}, {"disk": 0}, {"swap": 5}, {"memory.max": 1 << 30}, {"../x": 1}, {"": 1},
    ],
)  # fmt: skip
def test_odd_limits_are_refused(limits: dict[str, object]) -> None:
    with pytest.raises(Refused):
        bounds.parse_limits({"limits": limits})


def test_another_sessions_end_costs_no_session_its_groups(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The last one takes the directory that all groups lie in along, between two steps of another's start."""
    above, real, taken = tmp_path / "clsecure", os.mkdir, []

    def mkdir(path: str, mode: int) -> None:
        if Path(path).parent == above and not taken:
            above.rmdir()
            taken.append(path)
        real(path, mode)

    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(bounds, "cgroups", lambda _: [str(above / NAME)])
    monkeypatch.setattr(bounds, "cgroup_paths", lambda _: {"": str(above / NAME)})
    bounds.cgroup_enter({"name": NAME, "uid": 1}, 4711, {})
    assert taken == [str(above / NAME)]
    assert (above / NAME).is_dir()


def test_a_count_that_can_not_begin_ends_the_session_and_kills_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The agent may have used up the processes of the container that all of this runs in."""
    disk = disks.Disk({"home": str(tmp_path)}, 1 << 30)
    killed: list[int] = []

    def fail() -> int:
        raise BlockingIOError

    monkeypatch.setattr(disks.os, "fork", fail)
    monkeypatch.setattr(disks.os, "kill", lambda pid, _: killed.append(pid))
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    assert disk.look([]) == "disk"
    disk.close()
    assert killed == []
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


@pytest.mark.parametrize(("total", "passed"), [(1000, None), (2 << 30, "disk")])
def test_a_count_is_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, total: int, passed: str | None
) -> None:
    """du writes its lines one by one, and on a busy machine the last one comes later."""
    disk = disks.Disk({"home": str(tmp_path)}, 1 << 30)
    ends: list[int] = []

    def start(_self: disks.Disk, words: int) -> int:
        ends.append(os.dup(words))
        return os.spawnv(os.P_NOWAIT, "/bin/true", ["true"])

    monkeypatch.setattr(disks.Disk, "_start", start)
    assert disk.look([]) is None
    for line in (f"{total}\t{tmp_path}\n", f"{total}\ttotal\n"):
        os.write(ends[0], line.encode())
        assert disk.look([disk.pipe]) is None
    os.close(ends[0])
    assert disk.look([disk.pipe]) == passed
    assert disk.pipe == -1


def test_room_that_was_given_back_hides_no_growth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk = disks.Disk({"home": str(tmp_path)}, 1 << 30)
    counts: list[int] = []
    monkeypatch.setattr(disks.Disk, "_count", lambda self: counts.append(self.counted))
    for free in (50 << 30, 55 << 30, 50 << 30):
        monkeypatch.setattr(disks.Disk, "free", lambda _, free=free: free)
        assert disk.look([]) is None
    assert counts == [50 << 30, 50 << 30]


def test_an_engines_storage_on_another_disk_is_watched_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home, engines = tmp_path / "home", tmp_path / "engines"
    home.mkdir()
    engines.mkdir()
    full: set[str] = set()
    real = os.statvfs

    def room(path: str) -> os.statvfs_result:
        values = list(real(path))
        values[2:5] = [1 << 30, 0, 0] if path in full else [1 << 30, 1 << 29, 1 << 29]
        return os.statvfs_result(values)

    monkeypatch.setattr(disks.os, "statvfs", room)
    disk = disks.Disk({"home": str(home)}, 0, storage=str(engines / "claude-worker-x"))
    assert disk.look([]) is None
    full.add(str(engines))
    assert disk.look([]) == "reserve"
    with pytest.raises(Refused, match=str(engines)):
        disks.Disk({"home": str(home)}, 0, storage=str(engines / "claude-worker-x"))


def test_what_a_session_starts_beside_has_the_same_groups_on_systemd(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The session's own engine and the agent: with a scope each, they would have twice the limit."""
    real = os.path.isdir
    monkeypatch.setattr(os.path, "isdir", lambda path: path == "/run/systemd/system" or real(path))
    monkeypatch.setattr(bounds, "tool", lambda *_, **__: pytest.fail("a scope of its own"))
    monkeypatch.setattr(bounds, "cgroup_paths", lambda _: {"": str(tmp_path)})
    (tmp_path / "cgroup.procs").write_text("")
    bounds.cgroup_enter({"name": NAME, "uid": 1}, 4711, {}, beside={"": str(tmp_path)})
    assert (tmp_path / "cgroup.procs").read_text() == "4711"


@pytest.mark.parametrize("token", ["", "x", "0" * 200, "a" * 20 + "\n", "a@b:" + "0" * 30, 7, ["0" * 32]])
def test_a_gateways_token_is_digits_and_nothing_else(token: object) -> None:
    with pytest.raises(Refused):
        parse_proxy({"gateway_token": token})
    assert parse_proxy({"gateway_token": "0a" * 32}) == f"http://clsecure:{'0a' * 32}@169.254.1.2:3128"
    assert parse_proxy({}) is None


@pytest.mark.root
@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"home_base": "/tmp/homes"}, "home_base"),
        ({"home_base": "/var/homes"}, "home_base"),
        ({"home_base": "homes"}, "home_base"),
        ({"home_base": ""}, "home_base"),
        ({"home_base": "/home/../etc"}, "home_base"),
        ({"home_base": 7}, "home_base"),
        ({"uid_first": "many"}, "uid_first"),
        ({"shell": "/bin/sh"}, "shell"),
    ],
)
def test_a_setting_of_the_machine_that_can_not_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], complaint: str
) -> None:
    file = tmp_path / "helper.json"
    file.write_text(json.dumps(settings))
    monkeypatch.setattr(state, "CONFIG", str(file))
    with pytest.raises(Refused, match=complaint):
        state.configuration()


@pytest.mark.root
@pytest.mark.parametrize("content", ['{"uid_first": ', "", "[]", "\xff"])
def test_settings_that_are_no_json_object_are_refused_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    file = tmp_path / "helper.json"
    file.write_bytes(content.encode("latin-1"))
    monkeypatch.setattr(state, "CONFIG", str(file))
    with pytest.raises(Refused, match="is no JSON"):
        state.configuration()


@pytest.mark.root
def test_settings_of_the_machine_count_only_from_a_file_of_roots_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "helper.json"
    file.write_text(json.dumps({"uid_first": 1_950_000_000}))
    monkeypatch.setattr(state, "CONFIG", str(file))
    assert state.configuration()["uid_first"] == 1_950_000_000
    os.chown(file, 65534, 65534)
    with pytest.raises(Refused, match="root's own"):
        state.configuration()
