"""./dev starts this checkout's clsecure from anywhere, and nothing of where it is started."""

from __future__ import annotations

import subprocess
import sys

import pytest

from clsecure import __version__
from tests.support.person import CHECKOUT

_NAMES = ("json", "sitecustomize", "usercustomize", "argparse", "clsecure", "os", "invoke", "tasks")
_PROGRAMS = (
    "git",
    "sudo",
    "python3",
    "sha256sum",
    "dirname",
    "readlink",
    "cat",
    "cut",
    "id",
    "stat",
    "env",
    "sh",
    "uname",
)


@pytest.fixture
def dev(tmp_path):
    """Run ./dev with the virtual environment that runs these tests."""

    def run(*args, program=CHECKOUT / "dev", cwd="/", **env):
        environment = {"CLSECURE_DEV_VENV": sys.prefix, "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **env}
        return subprocess.run(
            [str(program), *args],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def hostile(tmp_path):
    """A directory whose every module and program would leave a mark."""
    directory = tmp_path / "hostile"
    directory.mkdir()
    marker = tmp_path / "marker"
    for name in _NAMES:
        (directory / f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write('{name}.py\\n')\n")
    for name in _PROGRAMS:
        (directory / name).write_text(f"#!/bin/sh\necho {name} >>{marker}\n")
        (directory / name).chmod(0o755)
    return directory


def test_clsecure_runs_from_any_directory(dev, tmp_path):
    done = dev("clsecure", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"clsecure {__version__}\n"), done.stderr


def test_a_link_to_it_is_as_good(dev, tmp_path):
    (tmp_path / "dev").symlink_to(CHECKOUT / "dev")
    done = dev("clsecure", "--version", program=tmp_path / "dev", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"clsecure {__version__}\n"), done.stderr


def test_the_exit_status_is_that_of_clsecure(dev):
    assert dev("clsecure", "--no-such-flag").returncode == 125


@pytest.mark.parametrize("argv", [("clsecure", "--version"), ("clsecure", "doctor"), ("invoke", "--list")])
def test_nothing_of_the_current_directory_or_a_relative_path_runs(dev, hostile, tmp_path, argv):
    dev(*argv, cwd=hostile, PATH=".::/usr/bin:/bin", PYTHONPATH=".", PYTHONSTARTUP="json.py")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("argv", [(), ("no-such-thing",)])
def test_anything_else_explains_itself(dev, argv):
    done = dev(*argv)
    assert done.returncode == 125
    assert "./dev test [--yes]" in done.stderr
