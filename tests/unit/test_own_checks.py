"""The user's own checks: which files are taken, and what becomes of tests that fail, are broken or hang."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clsecure.errors import UsageError
from clsecure.model import CheckResult, CheckStatus, Phase, Vantage
from clsecure.session.own_checks import NAME, OwnChecks, find_own_checks, run_own_checks
from clsecure.verify.probe import Probe
from tests.support.person import CHECKOUT
from tests.support.tried import tried

GOOD = """
import pytest

def test_kernel(host):
    assert host.file("/proc/version").exists
    assert host.run("echo %s", "it's").stdout == "it's\\n"

def test_facts(session):
    assert (session.mode, session.network, session.name) == ("user", "none", "s")
    assert session.account == "claude-worker-x"

@pytest.mark.parametrize("number", [1, 2])
def test_numbers(number):
    assert number < 2, f"number {number} is too \\x1b[2J high"

def test_left_out():
    pytest.skip("not today")
"""


@pytest.fixture
def probe() -> Iterator[Probe]:
    argv = ("/usr/bin/python3", "-I", "-S", str(CHECKOUT / "clsecure" / "privileged" / "inside.py"))
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        yield Probe(child.stdin.fileno(), child.stdout.fileno())
        child.kill()


@pytest.fixture
def user(tmp_path: Path) -> Path:
    (tmp_path / NAME).mkdir(mode=0o755)
    return tmp_path


def write(user: Path, name: str, text: str, *, mode: int = 0o644) -> Path:
    path = user / NAME / name
    path.write_text(text)
    path.chmod(mode)
    return path


def find(user: Path | None, system: Path | None = None) -> OwnChecks:
    return find_own_checks(user, system=system or Path("/nonexistent"), owner=os.getuid())


def run(user: Path, probe: Probe, **options) -> dict[str, CheckResult]:
    spec = tried().spec
    results = run_own_checks(find(user), probe, spec, session="s", phase=Phase.END, **options)
    assert all((each.vantage, each.phase) == (Vantage.INSIDE, Phase.END) for each in results)
    return {each.check_id: each for each in results}


def statuses(results: dict[str, CheckResult]) -> dict[str, str]:
    return {name: result.status.value for name, result in results.items()}


def test_each_test_is_a_check(user, probe) -> None:
    write(user, "test_good.py", GOOD)
    found = run(user, probe)
    assert statuses(found) == {
        "own:test_good.py::test_kernel": "pass",
        "own:test_good.py::test_facts": "pass",
        "own:test_good.py::test_numbers[1]": "pass",
        "own:test_good.py::test_numbers[2]": "fail",
        "own:test_good.py::test_left_out": "skip",
    }
    assert "number 2 is too" in found["own:test_good.py::test_numbers[2]"].observed
    assert "not today" in found["own:test_good.py::test_left_out"].observed
    assert [path.name for path in (user / NAME).iterdir()] == ["test_good.py"], "nothing is left beside it"


def test_files_that_are_broken_are_failures_that_name_them(user, probe) -> None:
    write(user, "a_syntax.py", "def test_x(:\n")
    write(user, "b_import.py", "import nothing_of_this_name\ndef test_x(): pass\n")
    write(user, "c_empty.py", "x = 1\n")
    write(user, "d_fixture.py", "def test_x(no_such_fixture): pass\n")
    write(user, "e_good.py", "def test_x(host): assert host.run('true').rc == 0\n")
    found = run(user, probe)
    assert statuses(found) == {
        "own:a_syntax.py": "fail",
        "own:b_import.py": "fail",
        "own:c_empty.py": "fail",
        "own:d_fixture.py::test_x": "fail",
        "own:e_good.py::test_x": "pass",
    }
    assert "SyntaxError" in found["own:a_syntax.py"].observed
    assert "nothing_of_this_name" in found["own:b_import.py"].observed
    assert "no test" in found["own:c_empty.py"].observed


def test_tests_that_hang_or_take_pytest_with_them_fail_every_file(user, probe) -> None:
    write(user, "a_good.py", "def test_x(): pass\n")
    write(user, "b_hangs.py", "import time\ndef test_x(): time.sleep(600)\n")
    begun = time.monotonic()
    found = run(user, probe, seconds=3.0)
    assert time.monotonic() - begun < 60
    assert found["own:b_hangs.py"].status is CheckStatus.FAIL
    assert "in time" in found["own:b_hangs.py"].observed
    write(user, "b_hangs.py", "import os\ndef test_x(): os._exit(0)\n")
    assert statuses(run(user, probe))["own:b_hangs.py"] == "fail"


def test_a_probe_that_is_gone_fails_the_tests_that_need_it(user, probe) -> None:
    write(user, "test_it.py", "def test_x(host): host.run('true')\ndef test_y(): pass\n")
    null = os.open("/dev/null", os.O_RDWR)
    found = run(user, Probe(null, null))
    os.close(null)
    assert statuses(found) == {"own:test_it.py::test_x": "fail", "own:test_it.py::test_y": "pass"}


def test_nothing_of_the_environment_or_the_places_around_configures_pytest(user, probe, monkeypatch) -> None:
    """Neither a conftest nor an ini file above or beside the tests, nor variables, nor this directory."""
    mark = user / "mark"
    trap = f"open({str(mark)!r}, 'w').close()\n"
    for place in (user, user / NAME):
        (place / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
        (place / "sitecustomize.py").write_text(trap)
    (user / "conftest.py").write_text(trap)
    (user / NAME / "sitecustomize.py").unlink()
    write(user, "test_it.py", "def test_x(): pass\n")
    monkeypatch.chdir(user)
    monkeypatch.setenv("PYTHONPATH", str(user))
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    monkeypatch.setenv("PYTEST_PLUGINS", "no_such_plugin")
    assert statuses(run(user, probe)) == {"own:test_it.py::test_x": "pass"}
    assert not mark.exists()


def test_nothing_is_started_without_such_files(user, monkeypatch) -> None:
    monkeypatch.setattr("clsecure.process.spawn", lambda *_, **__: pytest.fail("something was started"))
    write(user, "README", "about\n")
    write(user, ".hidden.py", "x\n")
    assert find(user).files == find(None).files == ()
    null = os.open("/dev/null", os.O_RDWR)
    assert run(user, Probe(null, null)) == {}
    os.close(null)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_may_write_is_refused(user, mode) -> None:
    write(user, "test_it.py", "", mode=mode)
    with pytest.raises(UsageError, match=r"test_it\.py") as raised:
        find(user)
    assert "others may write" in str(raised.value.details)


def test_a_directory_that_others_may_write_is_refused(user) -> None:
    (user / NAME).chmod(0o777)
    with pytest.raises(UsageError, match="can't be run"):
        find(user)


@pytest.mark.parametrize("kind", ["fifo", "directory", "dangling"])
def test_what_is_no_file_is_refused(user, kind) -> None:
    path = user / NAME / "test_it.py"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case _:
            path.symlink_to("/nonexistent")
    with pytest.raises(UsageError, match=r"test_it\.py"):
        find(user)


def test_links_are_followed_for_the_user_and_never_for_the_machine(user, tmp_path) -> None:
    (tmp_path / "elsewhere.py").write_text("def test_x(): pass\n")
    (user / NAME / "test_it.py").symlink_to(tmp_path / "elsewhere.py")
    assert [path.name for path in find(user).files] == ["test_it.py"]
    with pytest.raises(UsageError, match=r"test_it\.py"):
        find(None, system=user)


def test_the_machines_files_come_first_and_no_name_twice(user, tmp_path) -> None:
    system = tmp_path / "system"
    (system / NAME).mkdir(parents=True)
    write(system, "test_z.py", "")
    write(user, "test_a.py", "")
    assert [path.name for path in find(user, system=system).files] == ["test_z.py", "test_a.py"]
    write(user, "test_z.py", "")
    with pytest.raises(UsageError, match=r"test_z\.py"):
        find(user, system=system)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another account's file")
def test_a_file_of_somebody_elses_is_refused(user) -> None:
    os.chown(write(user, "test_it.py", ""), 65534, 65534)
    with pytest.raises(UsageError, match=r"test_it\.py") as raised:
        find(user)
    assert "somebody else" in str(raised.value.details)
