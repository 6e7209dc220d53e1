"""F: exhaustion. The host stays responsive, a reserve of the disk is kept, everything ends in time."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clsecure.machine.limits import enforceable
from tests.support.hostile import Target
from tests.support.leftovers import descendants, groups_of
from tests.support.person import Outcome, Person
from tests.support.private_mounts import run_with_mounts, small_homes

pytestmark = pytest.mark.root

BY_GROUP = enforceable()["memory"]
"""What holds memory on this machine: groups that the helper makes, or systemd's."""

_FORK_BOMB = r"""
import os, time
most = 0
while True:
    try:
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
    except OSError:
        break
    most += 1
    if most > 2000:
        break
print(most)
"""
_EAT = r"""
import sys
where, size = sys.argv[1], int(sys.argv[2]) << 20
if where == "heap":
    held = [bytearray(1 << 20) for _ in range(size >> 20)]
else:
    with open(f"{where}/eaten", "wb") as file:
        for _ in range(size >> 20):
            file.write(b"x" * (1 << 20))
print("eaten")
"""


def limited(*limits: str) -> tuple[str, ...]:
    return tuple(word for limit in limits for word in ("--limit", limit))


def test_f1_a_fork_bomb_reaches_its_bound_and_nothing_survives(target: Target) -> None:
    began = time.monotonic()
    attack = target.attack(["/usr/bin/python3", "-I", "-c", _FORK_BOMB], *limited("pids=100"))
    assert 20 < int(attack.said.split()[-1]) < 100
    assert time.monotonic() - began < 60
    limits = attack.result["limits"]
    assert limits["pids"] == {"value": 100, "enforced_by": BY_GROUP}
    assert any("limit of 100 processes was reached" in warning for warning in attack.result["warnings"])
    assert groups_of(attack.result["worker_user"]) == []


def test_f1_without_a_controller_the_number_of_processes_is_bounded_all_the_same(target: Target) -> None:
    bomb = f"/usr/bin/python3 -I -c {shlex.quote(_FORK_BOMB)}"
    outcome = without(
        "/sys/fs/cgroup/pids", target, f"{bomb} >forked; echo forked $(cat forked)", "--limit", "pids=100"
    )
    [forked] = re.findall(r"forked (\d+)", outcome.errors)
    assert 20 < int(forked) < 100
    assert outcome.json()["limits"]["pids"] == {"value": 100, "enforced_by": "rlimit"}


@pytest.mark.parametrize("where", ["heap", "/dev/shm", "/tmp"])
def test_f2_memory_ends_at_the_limit_also_in_memory_file_systems(target: Target, where: str) -> None:
    argv = target.argv(["/usr/bin/python3", "-I", "-c", _EAT, where, "400"], *limited("memory=128M"))
    outcome = target.person.run(argv, cwd=target.repository)
    assert outcome.returncode not in (0, 123, 124, 125)
    assert "eaten" not in outcome.errors
    result = outcome.json()
    assert result["limits"]["memory"] == {"value": 128 << 20, "enforced_by": BY_GROUP}
    # A memory file system may be full before the group is.
    assert where != "heap" or any("memory ran out" in warning for warning in result["warnings"])


def test_f2_what_stays_below_the_limit_is_not_disturbed(target: Target) -> None:
    argv = ["/usr/bin/python3", "-I", "-c", _EAT, "heap", "60"]
    attack = target.attack(argv, *limited("memory=256M,cpus=0.5,open_files=100"))
    assert "eaten" in attack.said
    names = {name: limit["enforced_by"] for name, limit in attack.result["limits"].items()}
    assert names == {"memory": BY_GROUP, "cpus": BY_GROUP, "pids": BY_GROUP, "open_files": "rlimit"}


def test_f2_descriptors_of_a_process_are_bounded(target: Target) -> None:
    attack = target.attack("ulimit -n; ulimit -Hn", *limited("open_files=100"))
    assert attack.said.split() == ["100", "100"]


def test_defaults_hold_where_nobody_says_anything(target: Target) -> None:
    limits = target.attack("true").result["limits"]
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert limits["memory"] == {"value": int(total * 0.8), "enforced_by": BY_GROUP}
    assert limits["pids"] == {"value": 4096, "enforced_by": BY_GROUP}
    assert target.attack("true", *limited("none")).result["limits"] == {}


def without(place: str, target: Target, command: str, *options: str) -> Outcome:
    """Run an agent where a control group hierarchy is not there, for this session alone."""
    if not Path(place).is_dir():
        pytest.skip(f"left out: there is no {place} to take away (control groups of version 1)")
    argv = target.argv(["/bin/sh", "-c", command], *options)
    return run_with_mounts(target.person, f"mount -t tmpfs -o ro tmpfs {place}", argv, cwd=target.repository)


@pytest.fixture
def fill(request: pytest.FixtureRequest, person: Person, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Run an agent whose home is on a small disk, and bring its work home; return the session's result."""
    repository = person.repository(f"fill-{secrets.token_hex(3)}")
    with small_homes(person, tmp_path) as run:

        def session(mode: str, size: str, script: str, *options: str) -> Any:
            if mode == "container":
                request.getfixturevalue("podman_image")
            words = ("--mode", mode, "--agent", "demo", "--no-network", "--output", "json")
            argv = (*words, "--on-finish", "import", *options, "--", "/bin/sh", "-c", script)
            result = run(repository, size, *argv).json()
            assert result["import"] is not None, result
            assert person.git(repository, "show", f"{result['import']['branch']}:work") == "work"
            return result

        yield session
        for worker in person.worker_accounts():
            if worker["project"] == str(repository):
                person.clsecure("cleanup", str(worker["name"]), "--yes").check()


small_disks = pytest.mark.parametrize(
    "mode",
    [
        pytest.param(mode, marks=pytest.mark.xdist_group(group))
        for mode, group in (
            ("user", "disk_full"), ("namespace", "disk_full"), ("container", "hostile-container"),
        )
    ],
)  # fmt: skip
_RESERVE = "the disk is nearly full, and a reserve of it stays free"


@small_disks
def test_f3_the_disk_keeps_its_reserve_and_the_work_comes_home(fill: Callable[..., Any], mode: str) -> None:
    result = fill(mode, "60m", 'echo work >work; cat /dev/zero >"$HOME/filler"; sleep 60')
    assert any(_RESERVE in warning for warning in result["warnings"])


@small_disks
def test_f3_a_limit_of_the_disk_ends_the_session_and_the_work_comes_home(
    fill: Callable[..., Any], mode: str
) -> None:
    script = 'echo work >work; head -c 30M /dev/zero >"$HOME/filler"; sleep 60'
    result = fill(mode, "60m", script, "--limit", "disk=10M")
    assert result["limits"]["disk"] == {"value": 10 << 20, "enforced_by": "measured"}
    assert any("took more than 10M" in warning for warning in result["warnings"])


@small_disks
def test_f5_inodes_keep_a_reserve_too(fill: Callable[..., Any], mode: str) -> None:
    script = 'echo work >work; mkdir "$HOME/many"; cd "$HOME/many"; seq 200000 | xargs touch; sleep 60'
    result = fill(mode, "60m,nr_inodes=4000", script)
    assert any(_RESERVE in warning for warning in result["warnings"])


def test_f4_a_sparse_file_of_a_terabyte_costs_nothing_and_is_named(target: Target) -> None:
    apart = replace(target, session="sparse")  # what can't come home keeps the session
    result = apart.attack("truncate -s 1T sparse; echo small >small", finish="import").result
    assert result["import"]["files_changed"] == 1
    assert any("sparse" in refused for refused in result["import"]["refused"])
    target.person.clsecure("cleanup", result["worker_user"], "--yes").check()


def test_f6_output_without_end_is_passed_on_and_ended_in_time(target: Target) -> None:
    began = time.monotonic()
    argv = target.argv(["/bin/sh", "-c", "yes out & yes err >&2"], "--time-limit", "3")
    process = target.person.spawn(argv, cwd=target.repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # Nobody reads: what can't be passed on must not pile up in memory either.
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        size = sum(rss(pid) for pid in (process.pid, *descendants(process.pid)))
        assert size < 300 << 20, size
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 124
    assert json.loads(out)["exit_code"] == 124
    assert time.monotonic() - began < 60


def rss(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS")), 0)


def test_f2_what_a_setup_eats_is_limited_and_told(target: Target) -> None:
    person, script = target.person, target.person.home / f"eat-{secrets.token_hex(4)}.py"
    person.write(
        script,
        f"#!/usr/bin/python3 -I\n{_EAT}".replace("sys.argv[1], int(sys.argv[2])", "'heap', 400").encode(),
    )
    setup = replace(target, session="setup")
    env = {"CLSECURE_SETUP_SCRIPT": str(script)}
    result = setup.attack("true", *limited("memory=128M"), env=env).result
    [step] = result["setup"]
    assert (step["status"], step["exit_code"] != 0) == ("failed", True)
    assert any("memory ran out" in warning for warning in result["warnings"])
    person.clsecure("cleanup", result["worker_user"], "--yes").check()


def test_f8_a_limit_that_can_not_be_enforced_is_named_before_the_start(target: Target) -> None:
    marker = f"marker-{secrets.token_hex(6)}"
    memory = "/sys/fs/cgroup/memory"
    refused = without(memory, target, f"echo {marker}", "--limit", "memory=1G")
    default = without(memory, target, f"echo {marker}")
    assert refused.returncode == 125
    error = refused.json()["error"]
    assert "limit of memory" in error["brief"]
    assert "--limit memory=none" in error["resolution"]
    assert marker not in refused.errors
    # What nobody asked for is a residual, said before the agent runs, and in the result.
    said, result = default.errors, default.json()
    assert "not enforced here: the limit of memory" in said
    assert said.index("not enforced here: the limit of memory") < said.index(marker)
    assert result["limits"]["memory"]["enforced_by"] is None
    assert any(w.startswith("not enforced here: the limit of memory") for w in result["warnings"])
