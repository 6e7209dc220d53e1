"""``pip install`` of this checkout: everything is in it, and nothing of where it is started is imported."""

from __future__ import annotations

import hashlib
import json
import shutil
import site
import subprocess
from pathlib import Path

import pytest

from clsecure import __version__
from clsecure.installation import PIECES, SETUP_DIRECTORY
from tests.support.person import CHECKOUT

# Python's own start, the script's and the package's imports, and what a shell script might call.
_MODULES = ("sitecustomize", "usercustomize", "runpy", "clsecure", "argparse", "json", "site")
_PROGRAMS = ("readlink", "python3", "python", "dirname", "sh", "git", "sudo")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return ``bin`` of a virtual environment with clsecure in it; the dependencies are borrowed."""
    place = tmp_path_factory.mktemp("install")
    source = place / "source"
    source.mkdir()
    # pip builds in the source directory, and the checkout may belong to somebody else.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    for name in ("clsecure", "bin"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["/usr/bin/python3", "-I", "-m", "venv", place / "venv"], check=True, timeout=120)
    binaries = place / "venv" / "bin"
    pip = [binaries / "python3", "-I", "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "--no-deps", source], check=True, timeout=240, cwd="/")
    packages = next((place / "venv" / "lib").glob("python3*/site-packages"))
    (packages / "borrowed.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
    return binaries


@pytest.fixture
def hostile(tmp_path):
    """A directory whose every module and program leaves a mark."""
    directory = tmp_path / "hostile"
    directory.mkdir()
    for name in _MODULES:
        mark = f"import posix; posix.close(posix.open({str(tmp_path / 'marker')!r}, 65, 420))\n"
        (directory / f"{name}.py").write_text(mark)
    for name in _PROGRAMS:
        (directory / name).write_text(f"#!/bin/sh\n: >{tmp_path / 'marker'}\n")
        (directory / name).chmod(0o755)
    return directory


def run(*argv, cwd="/", **env):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "LANG": "C.UTF-8", **env}
    return subprocess.run(
        argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )


def test_every_file_of_the_package_is_installed(installed):
    done = run(installed / "python3", "-I", "-c", "import clsecure; print(clsecure.__path__[0])")
    package = Path(done.stdout.strip())
    assert package.is_relative_to(installed.parent)

    def files(root):
        return {p.relative_to(root) for p in root.rglob("*") if p.is_file() and p.suffix != ".pyc"}

    assert files(package) == files(CHECKOUT / "clsecure")


def test_setup_has_the_root_owned_pieces_as_they_are_in_the_checkout(installed):
    done = run(installed / "clsecure", "setup", "--dry-run", "--user", "daemon", "--output", "json")
    found = {file["target"]: file["sha256"] for file in json.loads(done.stdout)["files"]}
    for piece in PIECES:
        data = (CHECKOUT / "clsecure" / piece.source).read_bytes()
        assert found[str(SETUP_DIRECTORY / piece.target)] == hashlib.sha256(data).hexdigest()


def test_the_recipes_and_locks_of_images_come_along(installed):
    asked = "from clsecure.images.recipe import DATA; print(DATA)"
    data = Path(run(installed / "python3", "-I", "-c", asked).stdout.strip())
    assert data.is_relative_to(installed.parent)
    ours = CHECKOUT / "clsecure" / "images" / "data"
    expected = {path.relative_to(ours): path.read_bytes() for path in ours.rglob("*") if path.is_file()}
    assert {
        path.relative_to(data): path.read_bytes() for path in data.rglob("*.*") if path.is_file()
    } == expected
    assert len(expected) >= 6


def test_h9_a_hostile_directory_and_pythonpath(installed, hostile, tmp_path):
    """A repository brings sitecustomize.py, modules and programs with well-known names."""
    variables = {"PYTHONPATH": str(hostile), "PYTHONSTARTUP": "json.py", "PYTHONUSERBASE": str(hostile)}
    marker = tmp_path / "marker"
    run(installed / "python3", "-c", "pass", cwd=hostile, **variables)
    assert marker.exists(), "the trap does not work"
    marker.unlink()
    for argv in (("--version",), ("doctor",), ("setup", "--dry-run", "--user", "daemon"), ("list",)):
        done = run(installed / "clsecure", *argv, cwd=hostile, PATH=".::/usr/bin:/bin", **variables)
        assert "Traceback" not in done.stderr
        assert not marker.exists(), argv


@pytest.mark.parametrize("how", ["link", "chain", "path", "relative"])
def test_the_command_finds_its_python_however_it_is_called(installed, tmp_path, how):
    link = tmp_path / "clsecure"
    link.symlink_to(installed / "clsecure")
    match how:
        case "link":
            done = run(link, "--version")
        case "chain":
            (tmp_path / "again").symlink_to("clsecure")
            done = run(tmp_path / "again", "--version")
        case "path":
            done = run("/usr/bin/env", "clsecure", "--version", PATH=f"{tmp_path}:/usr/bin:/bin")
        case _:
            done = run("/bin/sh", "-c", f"../{installed.name}/clsecure --version", cwd=installed)
    assert (done.returncode, done.stdout) == (0, f"clsecure {__version__}\n"), done.stderr


def test_the_exit_status_is_that_of_clsecure(installed):
    assert run(installed / "clsecure", "--no-such-flag").returncode == 125
