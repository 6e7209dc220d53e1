"""The rows of ``clsecure info``: what counts as held, and that every residual has its place."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from clsecure.model import (
    CheckResult,
    CheckStatus,
    IsolationMode,
    Mount,
    NetworkPolicy,
    Phase,
    SandboxSpec,
    Vantage,
    WorkerAccount,
)
from clsecure.verify.bait import OWN_ADDRESS, put_out
from clsecure.verify.checks import Area
from clsecure.verify.host import BARRIER_CHECKS
from clsecure.verify.protection import (
    RESIDUALS,
    Limit,
    Protection,
    Tried,
    barrier_rows,
    in_order,
    tried_rows,
    unnamed_residuals,
)
from tests.support.person import CHECKOUT

_SOCKETS = ("127.0.0.1", "::1", "an abstract socket", "a socket in /tmp", OWN_ADDRESS)
_LIMITS = {"NPROC": 4000, "NOFILE": 1024, "AS": None, "FSIZE": None, "CPU": None, "CORE": None}
_FILES = {"home": "/home/u", "state": "/home/u/.local/state/clsecure/x/bait", "temporary": "/var/x/bait",
          "root's home": "/root", "passwords": "/etc/shadow"}  # fmt: skip
_OUTSIDE = {
    "files": {"home": None, "state": None, "temporary": None, "root's home": "EACCES", "passwords": "EACCES"},
    "home": ["u", "v"], "root": ["etc"], "written": dict.fromkeys(("/", "/usr", "/etc"), "EACCES"),
    "connected": dict.fromkeys(_SOCKETS), "routes": {"IPv4": None, "IPv6": None},
    "resolvers": ["192.0.2.53"], "interfaces": ["eth0", "lo"], "listening": [22], "processes": 90,
    "marker": True, "status": {"NoNewPrivs": "0", "Uid": "1000 1000"}, "root_uid": "EPERM",
    "calls": {"bpf": "EINVAL", "mount": "EFAULT", "TIOCSTI": "EBADF", "TIOCLINUX": "EBADF"},
    "devices": ["sda", "null"], "limits": _LIMITS, "cgroups": [],
}  # fmt: skip
_INSIDE = {
    "files": {"home": "ENOENT", "state": "ENOENT", "temporary": "ENOENT", "root's home": "empty",
              "passwords": "EACCES"},
    "home": ["claude-worker-x"], "root": ["etc"], "written": dict.fromkeys(("/", "/usr", "/etc"), "EROFS"),
    "connected": dict.fromkeys(_SOCKETS, "ECONNREFUSED"),
    "routes": {"IPv4": "ENETUNREACH", "IPv6": "ENETUNREACH"},
    "resolvers": [], "interfaces": ["lo"], "listening": [4242], "processes": 2, "marker": False,
    "status": {"NoNewPrivs": "1", "Uid": "1900000000 1900000000"}, "root_uid": "EPERM",
    "calls": dict.fromkeys(("bpf", "mount", "TIOCSTI", "TIOCLINUX"), "EPERM"),
    "devices": ["null", "pts"], "limits": {**_LIMITS, "CORE": 0}, "cgroups": [],
}  # fmt: skip
_ACCOUNT = WorkerAccount(name="claude-worker-x", uid=1, gid=1, home=Path("/home/claude-worker-x"))


def tried(changes: dict[str, object] | None = None, **options) -> Tried:
    inside = {**copy.deepcopy(_INSIDE), **(changes or {})}
    spec = options.pop("spec", SandboxSpec(mode=IsolationMode.USER, account=_ACCOUNT))
    limits = {name: Limit(value="1", by="cgroup") for name in ("memory", "pids", "disk")}
    unheld = {"cpus": Limit(value="2", by=None), "open_files": Limit(value=None, by=None)}
    options = {"limits": {**limits, **unheld}} | options
    given = {"heard_outside": frozenset(_SOCKETS), "heard_inside": frozenset(), "port": 4242, "files": _FILES}
    return Tried(spec=spec, inside=inside, outside=_OUTSIDE, **{**given, **options})


def broken(subject: Tried) -> list[str]:
    return [row.property for row in tried_rows(subject) if row.status is Protection.NOT_HELD]


def open_(subject: Tried) -> list[str]:
    return [row.property for row in tried_rows(subject) if row.status is Protection.NOT_ENFORCED]


def barrier(status: CheckStatus) -> list[CheckResult]:
    return [
        CheckResult(
            check_id=check.check_id,
            status=status,
            vantage=Vantage.HOST,
            phase=Phase.START,
            expected="x",
            observed="y",
        )
        for check in BARRIER_CHECKS
    ]


def test_every_residual_of_the_threat_model_is_known_and_no_other() -> None:
    text = (CHECKOUT / "docs" / "threat-model.md").read_text()
    assert set(RESIDUALS) == set(re.findall(r"^\| \*\*(R[0-9]+)\*\* \|", text, re.MULTILINE))


def test_every_residual_is_named_by_a_row_or_listed_below() -> None:
    rows = [*barrier_rows(barrier(CheckStatus.PASS)), *tried_rows(tried())]
    named = {number for row in rows for number in row.residuals}
    assert named <= set(RESIDUALS)
    assert named | set(unnamed_residuals(rows)) == set(RESIDUALS)
    assert {"R1", "R2", "R6", "R7", "R10"} <= named


def test_what_holds_is_held() -> None:
    assert broken(tried()) == []
    assert open_(tried()) == ["processor time is bounded", "the number of open files is bounded"]


def test_every_check_of_the_barrier_has_a_row_with_its_outcome() -> None:
    for status, protection in (
        (CheckStatus.PASS, Protection.HELD),
        (CheckStatus.FAIL, Protection.NOT_HELD),
        (CheckStatus.SKIP, Protection.NOT_ENFORCED),
    ):
        rows = list(barrier_rows(barrier(status)))
        assert len(rows) == len(BARRIER_CHECKS)
        assert {row.status for row in rows} == {protection}


def test_every_area_has_rows_in_the_order_of_the_table() -> None:
    rows = in_order([*tried_rows(tried()), *barrier_rows(barrier(CheckStatus.PASS))])
    assert list(dict.fromkeys(row.area for row in rows)) == [
        area for area in Area if area is not Area.LEFTOVERS
    ]


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({"files": {**_INSIDE["files"], "home": None}}, "your home is out of reach"),
        ({"files": {**_INSIDE["files"], "temporary": None}}, "the temporary directory is the session's own"),
        ({"files": {**_INSIDE["files"], "root's home": None}}, "root's files are out of reach"),
        ({"home": ["claude-worker-x", "u"]}, "no home of another account is seen"),
        ({"written": {"/": "EROFS", "/usr": None, "/etc": "EROFS"}},
         "the system's files can be read, not written"),
        ({"routes": {"IPv4": "ENETUNREACH", "IPv6": None}}, "no packet leaves by itself"),
        ({"interfaces": ["lo", "eth0"]}, "no packet leaves by itself"),
        ({"resolvers": ["192.0.2.53"]}, "no resolver answers"),
        ({"listening": [22, 4242]}, "the gateway's port is the only one"),
        ({"marker": True}, "no process of this machine is seen"),
        ({"root_uid": None}, "root is not to be had"),
        ({"status": {"NoNewPrivs": "0"}}, "root is not to be had"),
        ({"calls": {**_INSIDE["calls"], "mount": "EFAULT"}}, "system calls that no agent needs are refused"),
        ({"calls": {**_INSIDE["calls"], "TIOCSTI": "EBADF"}}, "nothing can be typed into your terminal"),
        ({"devices": ["null", "sda"]}, "no device of this machine's but the plain ones"),
        ({"limits": {**_LIMITS, "CORE": None}}, "no core dumps are written"),
    ],
)  # fmt: skip
def test_what_the_probe_could_do_is_not_held(changes, row) -> None:
    assert broken(tried(changes)) == [row]


def test_the_root_of_a_container_is_the_worker_unless_it_has_a_capability() -> None:
    spec = SandboxSpec(mode=IsolationMode.CONTAINER, account=_ACCOUNT)
    status = {"NoNewPrivs": "1", "Uid": "0 0 0 0", "CapEff": "0" * 16, "CapBnd": "0" * 16}
    assert broken(tried({"root_uid": None, "status": status}, spec=spec)) == []
    for worse in ({"CapBnd": "0" * 15 + "1"}, {"CapEff": "0" * 15 + "1"}, {"NoNewPrivs": "0"}):
        subject = tried({"root_uid": None, "status": {**status, **worse}}, spec=spec)
        assert broken(subject) == ["root is not to be had"]
    # docker's have the worker's own number: there becoming root is what it is anywhere else.
    status["Uid"] = "1 1 1 1"
    assert broken(tried({"root_uid": None, "status": status}, spec=spec)) == ["root is not to be had"]


@pytest.mark.parametrize("label", _SOCKETS)
def test_the_hosts_ear_decides_whatever_the_probe_says(label) -> None:
    assert len(broken(tried(heard_inside=frozenset({label})))) == 1
    # A connection that the host never heard went to somebody else: to the session's own loopback.
    assert broken(tried({"connected": {**_INSIDE["connected"], label: None}})) == []


def test_what_could_not_be_tried_is_never_held() -> None:
    rows = tried_rows(tried(heard_outside=frozenset()))
    assert sum("could not be tried" in r.evidence and r.status is Protection.NOT_ENFORCED for r in rows) == 3


def test_what_the_user_mounted_is_said_to_be_open() -> None:
    mount = Mount(source=Path("/home/u"), target=PurePosixPath("/home/u"))
    spec = SandboxSpec(mode=IsolationMode.USER, account=_ACCOUNT, mounts=(mount,))
    files = {**_INSIDE["files"], "home": None, "state": None}
    subject = tried({"files": files, "home": ["claude-worker-x", "u"]}, spec=spec)
    assert broken(subject) == []
    assert "your home is out of reach" in open_(subject)


def test_a_full_network_is_said_to_be_open_and_the_machine_itself_is_still_tried() -> None:
    spec = replace(tried().spec, network=NetworkPolicy.FULL)
    inside = {"routes": {"IPv4": None, "IPv6": None}, "interfaces": ["lo", "eth0"], "listening": []}
    subject = tried(inside, spec=spec, port=None)
    assert "the internet is open, as you said" in open_(subject)
    assert len(broken(tried(inside, spec=spec, port=None, heard_inside=frozenset({OWN_ADDRESS})))) == 1


def test_bait_is_really_there_and_is_taken_away(tmp_path) -> None:
    with put_out(tmp_path, tmp_path) as bait:
        assert Path(bait.files["state"]).read_text() == Path(bait.files["temporary"]).read_text() == "bait\n"
        assert {"127.0.0.1", "an abstract socket", "a socket in /tmp"} <= set(bait.sockets)
        assert bait.heard() == frozenset()
        places = [Path(bait.files[label]).parent for label in ("state", "temporary")]
    assert not any(place.exists() for place in places)
