"""Disks that are full: one clear error, nothing left behind, nothing lost."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.person import Outcome, Person
from tests.support.private_mounts import small_homes

# One after the other: the mount point of the helper's settings is the machine's.
pytestmark = [pytest.mark.root, pytest.mark.xdist_group("disk_full")]

MODES = ("user", "namespace")


@contextmanager
def small_disk(place: Path, size: str, *, owner: Person | None = None) -> Iterator[Path]:
    """Mount a small file system."""
    place.mkdir(parents=True)
    who = f",uid={owner.uid},gid={owner.gid}" if owner else ""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755{who}", "tmpfs", place], check=True, timeout=30
    )
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True, timeout=30)
        place.rmdir()


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def repository(person: Person, mode: str) -> Path:
    """A repository of one's own with three megabytes that don't compress."""
    path = person.repository(f"full-{mode}-{secrets.token_hex(3)}")
    person.write(path / "large.bin", secrets.token_bytes(3 << 20))
    person.git(path, "add", ".")
    person.git(path, "commit", "-qm", "large")
    return path


def session(mode: str, finish: str, script: str) -> list[str]:
    options = ("--mode", mode, "--agent", "demo", "--no-network", "--output", "json", "--on-finish", finish)
    return [*options, "--", "/bin/sh", "-c", script]


def workers(person: Person, repository: Path) -> list[dict[str, object]]:
    return [entry for entry in person.worker_accounts() if entry["project"] == str(repository)]


def assert_full(outcome: Outcome, words: str = "No space left on device") -> None:
    assert outcome.returncode == 125, outcome
    error = json.loads(outcome.stdout)["error"]
    assert words in json.dumps(error), error
    assert "internal error" not in error["brief"]


def test_a_full_state_directory_at_the_start(person, mode, repository):
    with small_disk(Path(f"/var/tmp/{person.name}-state"), "1m", owner=person) as disk:
        env = {"XDG_STATE_HOME": str(disk)}
        before = Path("/etc/passwd").read_text()
        failed = person.clsecure(*session(mode, "keep", "touch ran"), cwd=repository, env=env)
        assert_full(failed, "the disk is full")
        assert workers(person, repository) == []
        assert repository.name not in Path("/etc/passwd").read_text().removeprefix(before)
        left = [path.name for path in disk.rglob("*") if path.is_file()]
        assert set(left) <= {"lock", "events.jsonl"}, left
        assert person.git(repository, "status", "--porcelain") == ""


def test_a_full_state_directory_at_the_end(person, mode, repository):
    with small_disk(Path(f"/var/tmp/{person.name}-state"), "12m", owner=person) as disk:
        env = {"XDG_STATE_HOME": str(disk)}
        script = "head -c 16m /dev/urandom >new.bin; sha256sum <new.bin >sum; git add . && git commit -qm n"
        failed = person.clsecure(*session(mode, "import", script), cwd=repository, env=env)
        assert_full(failed, "no room for the agent's work")
        assert person.git(repository, "branch", "--list", "claude/*") == ""
        sessions = person.clsecure("list", "--output", "json", env=env).check().json()["sessions"]
        (listed,) = [each for each in sessions if each["project"] == str(repository)]
        assert listed["status"] in ("kept", "interrupted")
        assert not list(disk.rglob("export"))
        subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True, timeout=30)
        done = person.clsecure("import", "default", "--output", "json", cwd=repository, env=env).check()
        branch = done.json()["import"]["branch"]
        said = person.run(["sh", "-c", f"git show {branch}:new.bin | sha256sum"], cwd=repository).check().text
        assert said.strip() == person.git(repository, "show", f"{branch}:sum")
        person.clsecure("cleanup", listed["session_id"], "--yes", env=env).check()


@pytest.fixture
def on_small_homes(person, tmp_path):
    """Run clsecure where the workers' homes are on a small disk; only that process sees the setting."""
    with small_homes(person, tmp_path) as run:
        yield run


def test_a_full_disk_of_homes_at_the_start(person, mode, repository, on_small_homes):
    failed = on_small_homes(repository, "2m", *session(mode, "keep", "touch ran"))
    assert_full(failed)
    assert workers(person, repository) == []
    assert person.git(repository, "status", "--porcelain") == ""
