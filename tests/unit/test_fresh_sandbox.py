"""testinfra through a probe: what its modules see there, and the checks of a fresh sandbox that ask by it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clsecure.model import CheckStatus, IsolationMode, Mount, Phase
from clsecure.verify.fresh import FRESH_CHECKS, check_fresh
from clsecure.verify.probe import Probe, Ran
from clsecure.verify.testinfra_backend import host_over
from tests.support.person import CHECKOUT
from tests.support.tried import ACCOUNT, tried

NAME, HOME = ACCOUNT.name, str(ACCOUNT.home)
HOLDS = {
    "cat /proc/mounts": "tmpfs / tmpfs ro,nosuid,nodev 0 0\n",
    "uname -s": "Linux\n",
    "uname -m": "x86_64\n",
    "cat /etc/os-release": "ID=debian\n",
    "id -nu": f"{NAME}\n",
    f"getent passwd {NAME}": f"{NAME}:x:1:1::{HOME}:/bin/sh\n",
    **{f"ls -1 -q -- {place}": "" for place in ("/tmp", "/var/tmp", "/dev/shm")},
    **{f"stat -Lc %a {place}": "755\n" for place in ("/", "/usr", "/usr/bin", "/etc", "/home")},
    "stat -Lc %a /etc/passwd": "644\n",
}


class Told(Probe):
    """Answers commands from a table, and everything else as a shell that knows no command."""

    def __init__(self, answers: dict[str, str]) -> None:
        self._answers = answers

    def run(self, command, *, seconds: float = 10.0) -> Ran:  # noqa: ARG002
        said = self._answers.get(command)
        status = 127 if said is None else 0
        return Ran(status=status, stdout=(said or "").encode("utf-8", "surrogateescape"), stderr=b"")


def outcomes(changes: dict[str, str] | None = None, **spec: object) -> dict[str, str]:
    results = check_fresh(Told({**HOLDS, **(changes or {})}), replace(tried().spec, **spec))
    assert {result.phase for result in results} == {Phase.END}
    return {result.check_id: result.status.value for result in results}


def failed(changes: dict[str, str], **spec: object) -> list[str]:
    return [name for name, status in outcomes(changes, **spec).items() if status == "fail"]


def test_a_sandbox_that_holds_passes_every_check() -> None:
    assert outcomes() == {check.check_id: "pass" for check in FRESH_CHECKS}


@pytest.mark.parametrize(
    ("check", "command", "says"),
    [
        ("root-options", "cat /proc/mounts", "tmpfs / tmpfs rw,nosuid,nodev 0 0\n"),
        ("root-options", "cat /proc/mounts", "tmpfs / tmpfs ro,nodev 0 0\n"),
        ("root-options", "cat /proc/mounts", "tmpfs /other tmpfs ro,nosuid,nodev 0 0\n"),
        ("root-options", "cat /proc/mounts", "nonsense\n"),
        ("system-modes", "stat -Lc %a /etc", "777\n"),
        ("system-modes", "stat -Lc %a /etc/passwd", "664\n"),
        ("system-modes", "stat -Lc %a /usr", "\x1b[2J\n"),
        ("temporary-empty", "ls -1 -q -- /tmp", "left\n"),
        ("temporary-empty", "ls -1 -q -- /dev/shm", "\udcff\n"),
        ("account-name", "id -nu", "root\n"),
        ("account-name", f"getent passwd {NAME}", f"{NAME}:x:1:1::/root:/bin/sh\n"),
        ("account-name", f"getent passwd {NAME}", ""),
    ],
)
def test_what_is_otherwise_fails_exactly_its_check(check, command, says) -> None:
    assert failed({command: says}) == [check]


def test_what_the_user_mounted_in_a_temporary_directory_is_no_leftover() -> None:
    mount = Mount(source=Path("/srv/x"), target=Path("/tmp/shown/below"))
    assert failed({"ls -1 -q -- /tmp": "shown\n"}, mounts=(mount,)) == []
    assert failed({"ls -1 -q -- /tmp": "shown\nleft\n"}, mounts=(mount,)) == ["temporary-empty"]


def test_the_root_of_a_container_has_set_uid_programs() -> None:
    mounts = {"cat /proc/mounts": "overlay / overlay ro,relatime 0 0\n"}
    assert failed(mounts, mode=IsolationMode.CONTAINER) == []
    assert failed(mounts) == ["root-options"]


@pytest.fixture
def probe() -> Iterator[Probe]:
    argv = ("/usr/bin/python3", "-I", "-S", str(CHECKOUT / "clsecure" / "privileged" / "inside.py"))
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        yield Probe(child.stdin.fileno(), child.stdout.fileno())
        child.kill()


def test_testinfra_sees_what_is_at_the_other_end(probe, tmp_path) -> None:
    host = host_over(probe)
    path = tmp_path / "it's $(here)"
    path.write_bytes(b"\xff\n")
    path.chmod(0o640)
    found = host.file(str(path))
    assert (found.is_file, found.mode, found.size) == (True, 0o640, 2)
    assert found.content == b"\xff\n"
    assert host.run("printf '\\377'; exit 3").stdout == "\udcff"
    assert host.run("exit 3").rc == 3
    assert host.run("echo %s", "a b; exit 1").stdout == "a b; exit 1\n"
    assert host.mount_point("/").exists
    assert host.user().name == subprocess.run(
        ["id", "-nu"], check=True, capture_output=True, text=True
    ).stdout.strip()  # fmt: skip


def test_a_real_machine_is_no_sandbox(probe) -> None:
    """The control: what is asked can fail."""
    found = {each.check_id: each.status for each in check_fresh(probe, tried().spec)}
    assert found["account-name"] is found["root-options"] is CheckStatus.FAIL
