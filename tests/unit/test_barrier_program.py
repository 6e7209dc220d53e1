"""C11: what stands in the place of the agent's program, and which of it stops the start."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from pathlib import Path

import pytest

from clsecure.backends.api import FileIdentity, ProcessFacts, ProgramFacts
from clsecure.model import CheckResult, CheckStatus, IsolationMode, KeptProgram, SandboxSpec, WorkerAccount
from clsecure.privileged.root import facts as root_facts
from clsecure.privileged.root.places import places_of
from clsecure.verify.host import check_barrier

CONTENT = b"#!/bin/sh\n"
SPEC = SandboxSpec(
    mode=IsolationMode.USER,
    account=WorkerAccount(name="claude-worker-x", uid=1_900_000_000, gid=1_900_000_000, home=Path("/home/x")),
    program=KeptProgram(name="claude", sha256=hashlib.sha256(CONTENT).hexdigest(), version="1.0.0"),
)
ROOTS = FileIdentity(device=1, inode=2, uid=0, mode=stat.S_IFREG | 0o555)


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root's copy, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "agent"
    path.write_bytes(CONTENT)
    return path


def judged(program: ProgramFacts | None, spec: SandboxSpec = SPEC) -> list[CheckResult]:
    facts = ProcessFacts(
        pid=1, status={}, namespaces={}, host_namespaces={}, mountinfo=(), descriptors={}, executable="",
        landlock_abi=0, seccomp_filter=False, program=program,
    )  # fmt: skip
    return [each for each in check_barrier(facts, spec) if each.check_id == "agent-program"]


def status(path: Path, inside: FileIdentity | None) -> CheckStatus:
    (found,) = judged(ProgramFacts(path=path, kept=ROOTS, inside=inside))
    return found.status


def test_roots_copy_of_the_planned_program_passes(kept: Path) -> None:
    assert status(kept, ROOTS) is CheckStatus.PASS
    assert status(kept, ROOTS) is CheckStatus.PASS, "by what is remembered"


@pytest.mark.parametrize(
    "inside",
    [
        None,
        dataclasses.replace(ROOTS, inode=3),
        dataclasses.replace(ROOTS, device=3),
        dataclasses.replace(ROOTS, uid=1_900_000_000),
        dataclasses.replace(ROOTS, mode=stat.S_IFREG | 0o757),
        dataclasses.replace(ROOTS, mode=stat.S_IFLNK | 0o555),
    ],
)
def test_another_file_or_one_that_can_be_written_fails(kept: Path, inside: FileIdentity | None) -> None:
    assert status(kept, inside) is CheckStatus.FAIL


def test_a_copy_that_was_changed_fails_though_it_was_right_before(kept: Path) -> None:
    assert status(kept, ROOTS) is CheckStatus.PASS
    times = kept.stat()
    kept.write_bytes(CONTENT.replace(b"s", b"z"))
    os.utime(kept, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert status(kept, ROOTS) is CheckStatus.FAIL
    kept.unlink()
    assert status(kept, ROOTS) is CheckStatus.FAIL


def test_what_was_not_looked_at_fails_and_without_a_program_there_is_no_check() -> None:
    (found,) = judged(None)
    assert found.status is CheckStatus.FAIL
    assert judged(None, dataclasses.replace(SPEC, program=None)) == []


def test_the_host_finds_what_is_in_the_place_and_follows_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Path
) -> None:
    """With places of this process's own, as its root is the machine's."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setattr(root_facts, "PROGRAMS", str(place))
    (place / "claude").hardlink_to(kept)
    found = root_facts.program_of(os.getpid(), (str(tmp_path), "claude"))
    assert found is not None
    assert found["inside"] == found["kept"] == root_facts.identity(kept.stat())
    (place / "claude").unlink()
    (place / "claude").symlink_to(kept)
    found = root_facts.program_of(os.getpid(), (str(tmp_path), "claude"))
    assert found is not None
    assert stat.S_ISLNK(found["inside"]["mode"])
    found = root_facts.program_of(os.getpid(), (str(tmp_path), "other"))
    assert found is not None
    assert found["inside"] is None
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    found = root_facts.program_of(os.getpid(), (str(tmp_path), "claude"))
    assert found is not None
    assert found["inside"] is None
    assert root_facts.program_of(os.getpid(), None) is None


def test_places_are_looked_at_beside_what_belongs_there(tmp_path: Path) -> None:
    """With a descriptor, a path, what was seen before, and nothing."""
    directory = tmp_path / "there"
    directory.mkdir()
    link = tmp_path / "link"
    link.symlink_to(directory)
    found = places_of(
        os.getpid(),
        [
            (str(directory), str(directory)),
            (str(tmp_path), (fd := os.open(tmp_path, os.O_PATH))),
            (f"{tmp_path}/gone", root_facts.identity(tmp_path.stat())),
            (f"{link}/x", f"{tmp_path}/gone"),
            (str(link), str(link)),
        ],
    )
    os.close(fd)
    same = root_facts.identity(directory.stat())
    assert found[str(directory)] == {"inside": same, "outside": same}
    same = root_facts.identity(tmp_path.stat())
    assert found[str(tmp_path)] == {"inside": same, "outside": same}
    assert found[f"{tmp_path}/gone"] == {"inside": None, "outside": same}
    assert found[f"{link}/x"] == {"inside": None, "outside": None}
    assert stat.S_ISLNK(found[str(link)]["inside"]["mode"])
    assert found[str(link)]["inside"] == found[str(link)]["outside"]
