"""The cleanup hooks that are shipped to be copied: each does what its first lines say."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from pathlib import Path

import pytest

HOOKS = Path(__file__).resolve().parents[2] / "hooks" / "on-cleanup"
README = HOOKS.parent / "README.md"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A committed project, and beside it a directory with programs for the PATH."""
    top = tmp_path / "project"
    (tmp_path / "bin").mkdir()
    top.mkdir()
    (top / "main.py").write_text("print('hello')\n")
    git(top, "init", "--quiet")
    git(top, "add", ".")
    git(top, "commit", "--quiet", "-m", "A beginning")
    return top


def git(top: Path, *args: str) -> None:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@localhost")
    subprocess.run(["git", *identity, *args], cwd=top, check=True, capture_output=True)


def run(name: str, project: Path, level: str) -> subprocess.CompletedProcess[str]:
    """Run a hook as clsecure does: in the project, with its five variables and little else."""
    env = {
        "PATH": f"{project.parent / 'bin'}:/usr/bin:/bin",
        "HOME": str(project.parent),
        "LANG": "C.UTF-8",
        "CLSECURE_SESSION": "auth",
        "CLSECURE_CLEANUP_LEVEL": level,
        "CLSECURE_PROJECT_DIR": str(project),
        "CLSECURE_WORKER_USER": "worker",
        "CLSECURE_WORKER_HOME": str(project.parent),
    }
    return subprocess.run(
        [HOOKS / name],
        cwd=project,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


def fake_docker(project: Path) -> Path:
    """Put a docker on the PATH that writes down what it is asked for."""
    asked = project.parent / "asked"
    docker = project.parent / "bin" / "docker"
    docker.write_text(f'#!/bin/sh\necho "$*" >>{asked}\n')
    docker.chmod(0o755)
    return asked


def test_every_hook_is_named_in_the_readme_and_executable() -> None:
    names = sorted(path.name for path in HOOKS.iterdir())
    assert names == ["compose", "database-snapshot", "note"]
    for name in names:
        assert f"(on-cleanup/{name})" in README.read_text()
        assert os.access(HOOKS / name, os.X_OK)


@pytest.mark.parametrize("level", ["stop", "purge", "later"])
@pytest.mark.parametrize("name", ["compose", "database-snapshot", "note"])
def test_a_hook_that_has_nothing_to_do_is_content_and_changes_nothing(
    project: Path, name: str, level: str
) -> None:
    done = run(name, project, level)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in project.iterdir()) == [".git", "main.py"]


def test_compose_stops_at_the_end_and_removes_before_the_workspace_goes(project: Path) -> None:
    asked = fake_docker(project)
    (project / "deploy").mkdir()
    (project / "deploy/compose.dev.yaml").write_text("services: {}\n")
    for level in ("stop", "purge", "later"):
        assert run("compose", project, level).returncode == 0
    assert asked.read_text().splitlines() == [
        "compose -f deploy/compose.dev.yaml stop --timeout 5",
        "compose -f deploy/compose.dev.yaml down --volumes --remove-orphans --timeout 5",
    ]


def test_compose_says_when_docker_fails(project: Path) -> None:
    fake_docker(project)
    (project.parent / "bin/docker").write_text("#!/bin/sh\necho no engine >&2\nexit 3\n")
    (project / "deploy").mkdir()
    (project / "deploy/compose.dev.yaml").write_text("services: {}\n")
    done = run("compose", project, "stop")
    assert (done.returncode, done.stderr) == (3, "no engine\n")


def test_a_database_is_written_as_text_that_makes_it_again(project: Path) -> None:
    with sqlite3.connect(project / "db.sqlite3") as database:
        database.execute("create table notes (text)")
        database.execute("insert into notes values ('from the agent; it''s \u00e9')")
    assert run("database-snapshot", project, "purge").returncode == 0
    assert not (project / "db-snapshot.sql").exists()
    assert run("database-snapshot", project, "stop").returncode == 0
    again = sqlite3.connect(":memory:")
    again.executescript((project / "db-snapshot.sql").read_text(encoding="utf-8"))
    assert again.execute("select text from notes").fetchall() == [("from the agent; it's \u00e9",)]


def test_a_database_that_is_none_is_said_and_leaves_the_old_snapshot(project: Path) -> None:
    (project / "db.sqlite3").write_text("no database at all, but long enough to be looked at as one\n" * 20)
    (project / "db-snapshot.sql").write_text("old\n")
    done = run("database-snapshot", project, "stop")
    assert done.returncode != 0
    assert "DatabaseError" in done.stderr
    assert (project / "db-snapshot.sql").read_text() == "old\n"


def test_a_note_says_what_is_unfinished_and_goes_when_nothing_is(project: Path) -> None:
    (project / "new.py").write_text("x = 1  # TODO: more\n")
    assert run("note", project, "stop").returncode == 0
    note = (project / "SESSION-NOTE.md").read_text()
    assert "# Session auth" in note
    assert "?? new.py" in note
    assert "new.py:1:x = 1  # TODO: more" in note
    (project / "new.py").unlink()
    assert run("note", project, "stop").returncode == 0
    assert not (project / "SESSION-NOTE.md").exists()
