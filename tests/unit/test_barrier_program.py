"""C11: what stands in the place of the agent's program, and which of it stops the start."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from clsecure.agents import digests
from clsecure.backends.api import FileIdentity, ProcessFacts, ProgramFacts
from clsecure.images.reference import image_reference
from clsecure.model import (
    CheckResult,
    CheckStatus,
    ContainerSpec,
    Engine,
    IsolationMode,
    KeptProgram,
    SandboxSpec,
    WorkerAccount,
    WorkerImage,
)
from clsecure.privileged.root import facts as root_facts
from clsecure.privileged.root import places
from clsecure.privileged.root.places import places_of
from clsecure.session.images import locked_image
from clsecure.verify.host import check_barrier

CONTENT = b"#!/bin/sh\n"
MINE = {"uid": os.getuid()}
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


@pytest.mark.skipif(os.getuid() != 0, reason="nobody else may become the worker")
def test_the_host_finds_what_is_in_the_place_and_follows_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Path
) -> None:
    """With places of this process's own, as its root is the machine's."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setattr(root_facts, "PROGRAMS", str(place))
    (place / "claude").hardlink_to(kept)
    found = root_facts.program_of(os.getpid(), (str(tmp_path), "claude"), MINE)
    assert found is not None
    assert found["inside"] == found["kept"] == root_facts.identity(kept.stat())
    (place / "claude").unlink()
    (place / "claude").symlink_to(kept)
    found = root_facts.program_of(os.getpid(), (str(tmp_path), "claude"), MINE)
    assert found is not None
    assert stat.S_ISLNK(found["inside"]["mode"])
    found = root_facts.program_of(os.getpid(), (str(tmp_path), "other"), MINE)
    assert found is not None
    assert found["inside"] is None
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    found = root_facts.program_of(os.getpid(), (str(tmp_path), "claude"), MINE)
    assert found is not None
    assert found["inside"] is None
    assert root_facts.program_of(os.getpid(), None, MINE) is None


@pytest.mark.skipif(os.getuid() != 0, reason="nobody else may become the worker")
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
        MINE,
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


@pytest.mark.skipif(os.getuid() != 0, reason="nobody else may become the worker")
def test_h_nothing_is_told_of_what_is_closed_to_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller has somebody's closed directory mounted in its container, and names what may be in there."""
    monkeypatch.setattr(places, "opened_root", lambda _pid: opened_root_at(tmp_path))
    tmp_path.chmod(0o755)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "key").write_text("secret")
    worker = {"uid": 1_900_000_000}
    assert places.seen_as(worker, 1, ("/closed/key", "/closed")) == [
        None,
        root_facts.identity(closed.stat()),
    ]
    closed.chmod(0o755)
    assert places.seen_as(worker, 1, ("/closed/key",)) == [root_facts.identity((closed / "key").stat())]


@pytest.mark.skipif(os.getuid() != 0, reason="nobody else may become the worker")
def test_f_what_never_answers_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "opened_root", lambda _pid: opened_root_at(tmp_path))
    monkeypatch.setattr(places, "seen_from", lambda *_: signal.pause())
    monkeypatch.setattr(places, "SECONDS", 0.1)
    assert places.seen_as(MINE, 1, ("/x", "/y")) == [None, None]


# ---------------------------------------------------------------- of an image

DIGEST = hashlib.sha256(CONTENT).hexdigest()
IN_IMAGE = dataclasses.replace(
    SPEC,
    mode=IsolationMode.CONTAINER,
    program=None,
    container=ContainerSpec(
        engine=Engine.PODMAN,
        image=WorkerImage(name="worker", image_id=f"sha256:{'0' * 64}", programs={"claude": DIGEST}),
    ),
)


def of_image(path: Path | None) -> CheckResult:
    descriptor = None if path is None else os.open(path, os.O_RDONLY)
    facts = ProcessFacts(
        pid=1, status={}, namespaces={}, host_namespaces={}, mountinfo=(), descriptors={}, executable="",
        landlock_abi=0, seccomp_filter=False, image_programs={"claude": descriptor},
    )  # fmt: skip
    try:
        (found,) = [each for each in check_barrier(facts, IN_IMAGE) if each.check_id == "agent-program"]
        return found
    finally:
        if descriptor is not None:
            os.close(descriptor)


def test_the_program_that_the_lock_of_an_image_names_passes(kept: Path) -> None:
    assert of_image(kept).status is CheckStatus.PASS
    assert of_image(kept).status is CheckStatus.PASS, "by what is remembered"


def test_another_program_in_an_image_stops_the_start(kept: Path) -> None:
    assert of_image(kept).status is CheckStatus.PASS
    kept.write_bytes(b"#!/bin/rm\n")
    assert of_image(kept).status is CheckStatus.FAIL
    result = of_image(None)
    assert result.status is CheckStatus.FAIL
    assert "nothing that everybody may read" in result.observed


def test_a_program_that_is_too_large_to_read_stops_the_start(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "MAX_PROGRAM", 3)
    assert of_image(kept).status is CheckStatus.FAIL


def test_a_container_whose_lock_names_no_program_has_no_such_check() -> None:
    assert IN_IMAGE.container is not None
    image = dataclasses.replace(IN_IMAGE.container.image, programs={})
    spec = dataclasses.replace(IN_IMAGE, container=dataclasses.replace(IN_IMAGE.container, image=image))
    assert judged(None, spec) == []


@pytest.mark.parametrize(
    "kind",
    ["there", "closed", "in what is closed", "link", "link on the way", "pipe", "directory", "none"],
)
def test_only_what_everybody_may_read_is_opened_in_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The caller gets a descriptor of root's: it must lead to nothing that is closed to the caller."""
    if os.getuid() != 0:
        # Who is nobody in particular already can become nobody else.
        monkeypatch.setattr(root_facts, "become", lambda *_, **__: None)
        if kind == "in what is closed":
            pytest.skip("a directory of one's own is open to oneself")
    tmp_path.chmod(0o755)
    place = tmp_path / "bin"
    place.mkdir()
    file = place / "claude"
    match kind:
        case "in what is closed":
            # A home, say, of which anybody gets a descriptor (O_PATH) that can be mounted.
            file.write_bytes(CONTENT)
            file.chmod(0o644)
            place.chmod(0o750)
        case "there" | "closed":
            file.write_bytes(CONTENT)
            file.chmod(0o644 if kind == "there" else 0o640)
        case "link" | "link on the way":
            (tmp_path / "other").mkdir()
            (tmp_path / "other" / "claude").write_bytes(CONTENT)
            if kind == "link":
                file.symlink_to(tmp_path / "other" / "claude")
            else:
                place.rmdir()
                place.symlink_to(tmp_path / "other")
        case "pipe":
            os.mkfifo(file)
        case "directory":
            file.mkdir()
    monkeypatch.setattr(root_facts, "PROGRAMS", "/bin")
    monkeypatch.setattr(root_facts, "opened_root", lambda _pid: opened_root_at(tmp_path))
    found = root_facts.image_program(os.getpid(), "claude", {"uid": 1_900_000_000})
    assert (found is not None) == (kind == "there")
    if found is not None:
        assert os.read(found, 100) == CONTENT
        os.close(found)


@pytest.mark.skipif(os.getuid() != 0, reason="nobody else may open it")
def test_what_goes_by_who_opens_it_is_not_opened_by_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_facts, "PROGRAMS", f"/proc/{os.getpid()}")
    assert root_facts.image_program(os.getpid(), "maps", {"uid": 1_900_000_000}) is None


@contextlib.contextmanager
def opened_root_at(place: Path) -> Iterator[int]:
    root = os.open(place, os.O_PATH | os.O_DIRECTORY)
    try:
        yield root
    finally:
        os.close(root)


def test_an_image_is_what_its_lock_says_and_nothing_is_said_of_another() -> None:
    reference = image_reference("worker", "amd64")
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.setattr("clsecure.session.images.machine_architecture", lambda: "amd64")
        image = locked_image("worker", reference.image)
        assert set(image.agents) == set(image.programs) == {"claude"}
        assert locked_image("worker", "sha256:1").programs == {}
        assert locked_image("none", reference.image).programs == {}
