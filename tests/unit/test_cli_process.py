"""The command line as a process: exit statuses, closed descriptors, what is imported and from where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import ROOT, START, give_away, plain_user, run_cli
from tests.support.schema import check, load


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that the plain user of these tests reaches; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="clsecure-cli-") as name:
        give_away(Path(name))
        yield Path(name)


def test_version_and_help_answer() -> None:
    assert run_cli("--version").stdout.startswith(b"clsecure 0.")
    done = run_cli("--help")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"usage: clsecure")


@pytest.mark.parametrize(
    ("args", "brief"),
    [
        (["--bogus"], "unknown option '--bogus'"),
        (["--session", "../x"], "--session must be"),
        (["lst"], "'lst' is not a command"),
        (["--allow-docker", "host"], "'host' is not a command"),
    ],
)
def test_a_bad_command_line_is_one_error_and_125(args: list[str], brief: str) -> None:
    done = run_cli(*args)
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.decode().startswith(f"clsecure: {brief}")
    assert b"Traceback" not in done.stderr

    done = run_cli(*args, "--output", "json")
    document = json.loads(done.stdout)
    check(document, load("error"))
    assert document["error"]["brief"].startswith(brief)
    assert (done.returncode, document["error"]["exit_code"], done.stderr) == (125, 125, b"")


@pytest.mark.parametrize(
    "args", [[], ["list"], ["cleanup", "--all"], ["import", "x"], ["agent", "install", "claude"]]
)
@pytest.mark.skipif(os.geteuid() != 0, reason="left out: needs root")
def test_root_is_refused_with_the_way_out(args: list[str]) -> None:
    done = run_cli(*args, as_root=True)
    assert done.returncode == 125
    assert b"does not run as root" in done.stderr
    assert b"normal user" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="left out: needs root")
def test_root_may_ask_for_help() -> None:
    assert run_cli("--help", as_root=True).returncode == 0
    assert run_cli("setup", "--help", as_root=True).returncode == 0


@pytest.mark.parametrize("content", [b"moed = user\n", b"mode = user\0\n", b"output = xml\n"])
def test_a_bad_settings_file_is_named_and_help_works_all_the_same(home: Path, content: bytes) -> None:
    file = home / ".clsecurerc"
    file.write_bytes(content)
    give_away(file)
    done = run_cli("list", env={"HOME": str(home)})
    assert done.returncode == 125
    assert f"{file}:1: ".encode() in done.stderr
    assert run_cli("--help", env={"HOME": str(home)}).returncode == 0


def test_a_fifo_as_settings_file_does_not_hang(home: Path) -> None:
    os.mkfifo(home / ".clsecurerc")
    give_away(home / ".clsecurerc")
    done = run_cli("list", env={"HOME": str(home)}, timeout=60)
    assert done.returncode == 125
    assert b"not a regular file" in done.stderr


def test_output_can_be_chosen_in_the_settings_file(home: Path) -> None:
    (home / ".clsecurerc").write_text("output = json\n")
    give_away(home / ".clsecurerc")
    done = run_cli("import", "no-such-session", env={"HOME": str(home)})
    check(json.loads(done.stdout), load("error"))


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_a_closed_descriptor_is_refused_without_a_traceback(fd: int) -> None:
    script = f'exec "$@" {fd}{"<" if fd == 0 else ">"}&-'
    argv = ["/bin/sh", "-c", script, "sh", sys.executable, "-I", "-c", START, "--version"]
    done = subprocess.run(argv, capture_output=True, timeout=60, **plain_user())  # type: ignore[call-overload]
    assert done.returncode == 125
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    if fd != 2:
        assert b"is closed" in done.stderr


def test_a_reader_that_went_away_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = run_cli("--help", stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert done.returncode == 125
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_a_full_disk_under_standard_output_is_125() -> None:
    with Path("/dev/full").open("wb") as full:
        done = run_cli("--help", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 125
    assert b"Traceback" not in done.stderr


def test_both_outputs_dead_is_still_125() -> None:
    with Path("/dev/full").open("wb") as full:
        assert run_cli("--bogus", "--output=json", stdout=full, stderr=full).returncode == 125


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from clsecure.__main__ import main; main();"
        "print(*sys.modules, file=sys.stderr)"
    )
    for args in (["--help"], ["--version"], ["--bogus"]):
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, str(ROOT), *args], capture_output=True, timeout=60
        )
        loaded = {name.partition(".")[0] for name in done.stderr.decode().split("\n")[-2].split()}
        assert "clsecure" in loaded
        assert loaded.isdisjoint(
            {"pydantic", "pydantic_settings", "structlog", "rich", "h11", "ssl", "asyncio", "subprocess"}
        )


@pytest.mark.parametrize("how", ["cwd", "PYTHONPATH", "relative PYTHONPATH"])
def test_nothing_is_imported_from_the_current_directory(home: Path, how: str) -> None:
    marker = home / "marker"
    evil = home / "evil"
    evil.mkdir()
    for name in (
        "json",
        "argparse",
        "difflib",
        "secrets",
        "sitecustomize",
        "usercustomize",
        "rich",
        "clsecure",
    ):
        (evil / f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write({name!r})\nraise SystemExit(1)\n")
    give_away(evil)
    env = {"HOME": str(home)}
    if how != "cwd":
        env["PYTHONPATH"] = str(evil) if how == "PYTHONPATH" else "."
    done = run_cli("lst", "--output", "json", env=env, cwd=evil)
    assert done.returncode == 125
    assert json.loads(done.stdout)["error"]["resolution"].startswith("did you mean")
    assert not marker.exists()


def test_without_isolation_what_we_import_still_comes_from_elsewhere(home: Path) -> None:
    marker = home / "marker"
    for name in ("json", "argparse", "difflib"):
        (home / f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write({name!r})\n")
    done = run_cli("lst", "--output", "json", env={"PYTHONPATH": str(home)}, cwd=home, isolated=False)
    assert done.returncode == 125
    assert json.loads(done.stdout)["error"]["brief"].startswith("'lst'")
    assert not marker.exists()
