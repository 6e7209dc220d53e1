"""What the checks after the end say of what is left: each of its own kind, and of nothing else."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clsecure.errors import HelperError
from clsecure.model import (
    CheckStatus,
    ContainerSpec,
    DockerAccess,
    Engine,
    IsolationMode,
    Mount,
    NetworkPolicy,
    Phase,
    SandboxSpec,
    WorkerAccount,
    WorkerImage,
)
from clsecure.privileged.leftovers import AccountState, Found, HomeState, Leftovers
from clsecure.privileged.root.walk import NAMES, Walk
from clsecure.verify.leftovers import MACHINE_CHECKS, check_leftovers

UID = 1_900_000_000
HOME = Path("/home/claude-worker-x")
SPEC = SandboxSpec(
    mode=IsolationMode.CONTAINER,
    account=WorkerAccount(name="claude-worker-x", uid=UID, gid=UID, home=HOME),
    network=NetworkPolicy.FULL,
    container=ContainerSpec(
        engine=Engine.PODMAN, image=WorkerImage(name="worker", image_id=f"sha256:{'0' * 64}")
    ),
)
KINDS = {
    "processes": "processes-left",
    "control_groups": "control-groups-left",
    "memory": "ipc-left",
    "mounts": "mounts-left",
    "runtime": "runtime-files-left",
    "storage": "storage-left",
    "rules": "network-rules-left",
    "scheduled": "scheduled-left",
    "outside": "files-outside",
    "special": "special-files",
    "groups": "group-membership",
    "sharers": "account-unshared",
    "images": "image-unchanged",
}
CLEAN = Leftovers(
    **dict.fromkeys(KINDS, Found()),  # type: ignore[arg-type]
    account=AccountState(ours=True, locked=True, expired=True, shell="/usr/sbin/nologin"),
    home=HomeState(directory=True, uid=UID, gid=UID, mode=0o700, fixed=True),
)


def stands(facts: Leftovers, spec: SandboxSpec = SPEC) -> dict[str, CheckStatus]:
    """Return what does not simply hold."""
    results = check_leftovers(facts, spec)
    assert all(result.phase is Phase.END for result in results)
    return {r.check_id: r.status for r in results if r.status is not CheckStatus.PASS}


def test_a_clean_machine_passes_every_check() -> None:
    assert stands(CLEAN) == {}
    assert {r.check_id for r in check_leftovers(CLEAN, SPEC)} == {c.check_id for c in MACHINE_CHECKS}


@pytest.mark.parametrize(("kind", "check"), KINDS.items())
def test_each_kind_fails_its_own_check_and_names_what_it_is(kind: str, check: str) -> None:
    facts = replace(CLEAN, **{kind: Found(count=3, names=("a", "b"), complete=False)})  # type: ignore[arg-type]
    assert stands(facts) == {check: CheckStatus.FAIL}
    (failed,) = [r for r in check_leftovers(facts, SPEC) if r.check_id == check]
    assert (failed.expected, failed.observed) == ("none", "a; b; and 1 more")


@pytest.mark.parametrize(("kind", "check"), KINDS.items())
def test_what_was_not_looked_at_to_the_end_is_no_pass(kind: str, check: str) -> None:
    facts = replace(CLEAN, **{kind: Found(complete=False)})  # type: ignore[arg-type]
    # How much there is to look at in its home is the agent's to say.
    assert stands(facts) == {check: CheckStatus.FAIL if kind == "special" else CheckStatus.SKIP}


@pytest.mark.parametrize(
    "change",
    [{"directory": False}, {"uid": 0}, {"gid": 0}, {"mode": 0o755}, {"mode": 0o4700}, {"fixed": False}],
)
def test_a_home_that_is_not_closed(change: dict[str, Any]) -> None:
    assert stands(replace(CLEAN, home=replace(CLEAN.home, **change))) == {"home-closed": CheckStatus.FAIL}


@pytest.mark.parametrize(
    "change", [{"ours": False}, {"locked": False}, {"expired": False}, {"shell": "/bin/sh"}, {"shell": ""}]
)
def test_an_account_that_somebody_could_use(change: dict[str, Any]) -> None:
    facts = replace(CLEAN, account=replace(CLEAN.account, **change))
    assert stands(facts) == {"account-locked": CheckStatus.FAIL}


def test_files_in_a_writable_mount_are_where_they_should_be() -> None:
    given = (Mount(source=Path("/tmp/in"), target=Path("/in"), read_only=False),)
    spec = replace(SPEC, mounts=(*given, Mount(source=Path("/tmp/ro"), target=Path("/ro"))))
    planned = replace(CLEAN, outside=Found(count=2, names=("/tmp/in", "/tmp/in/file")))
    assert stands(planned, spec) == {}
    assert stands(planned) == {"files-outside": CheckStatus.FAIL}
    for strange in ("/tmp/ro/file", "/tmp/input"):
        facts = replace(CLEAN, outside=Found(count=2, names=("/tmp/in/file", strange)))
        assert stands(facts, spec) == {"files-outside": CheckStatus.FAIL}
    # Where the others lie is not known.
    unnamed = replace(CLEAN, outside=Found(count=9, names=("/tmp/in/file",)))
    assert stands(unnamed, spec) == {"files-outside": CheckStatus.SKIP}


def test_files_that_the_machines_docker_wrote_are_no_failure_but_its_set_id_programs_are() -> None:
    spec = replace(SPEC, docker=DockerAccess.HOST)
    written = replace(CLEAN, special=Found(count=1, names=("of uid 0: /home/x/target",)))
    assert stands(written, spec) == {"special-files": CheckStatus.SKIP}
    assert stands(written) == {"special-files": CheckStatus.FAIL}
    cut = replace(CLEAN, special=Found(complete=False))
    assert stands(cut, spec) == {"special-files": CheckStatus.FAIL}
    program = replace(CLEAN, special=Found(count=2, names=("of uid 0: /home/x/a", "set-id 4755: /home/x/b")))
    assert stands(program, spec) == {"special-files": CheckStatus.FAIL}


def test_checks_of_what_a_session_has_not_are_left_out() -> None:
    facts = replace(CLEAN, images=Found(count=1, names=("x",)), rules=Found(count=1, names=("x",)))
    plain = replace(SPEC, mode=IsolationMode.USER, container=None, network=NetworkPolicy.API)
    assert stands(facts, plain) == {}
    docker = replace(SPEC, container=replace(SPEC.container, engine=Engine.DOCKER))  # type: ignore[type-var]
    assert stands(facts, docker) == {"network-rules-left": CheckStatus.FAIL}


def test_every_check_names_threats_and_says_a_property() -> None:
    for check in MACHINE_CHECKS:
        assert check.threats, check.check_id
        assert not check.property.endswith("."), check.check_id
    assert len({check.check_id for check in MACHINE_CHECKS}) == len(MACHINE_CHECKS)


# ---------------------------------------------------------------- what the helper says


def answer() -> dict[str, Any]:
    kind = {"count": 0, "names": [], "complete": True}
    return {
        "found": {name: dict(kind) for name in KINDS},
        "account": {"ours": True, "locked": True, "expired": True, "shell": "/usr/sbin/nologin"},
        "home": {"directory": True, "uid": UID, "gid": UID, "mode": 0o700, "fixed": True},
    }


def test_an_answer_is_taken_in() -> None:
    assert Leftovers.parse(answer()) == CLEAN


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        (("found",), "special", None),
        (("found",), "special", []),
        (("found", "special"), "count", "0"),
        (("found", "special"), "count", True),
        (("found", "special"), "count", 0.0),
        (("found", "special"), "complete", 1),
        (("found", "special"), "complete", None),
        (("found", "special"), "names", "text"),
        (("found", "special"), "names", {}),
        (("found", "special"), "names", [1]),
        (("account",), "locked", "yes"),
        (("account",), "shell", None),
        (("home",), "mode", "700"),
        (("home",), "fixed", 1),
        ((), "home", 7),
        ((), "account", None),
        ((), "found", []),
    ],
)
def test_an_answer_of_another_form_is_refused(place: tuple[str, ...], key: str, value: object) -> None:
    said = answer()
    inner = said
    for step in place:
        inner = inner[step]
    inner[key] = value
    with pytest.raises(HelperError):
        Leftovers.parse(said)
    del inner[key]
    with pytest.raises(HelperError):
        Leftovers.parse(said)


def test_names_are_bounded_and_can_not_be_more_than_counted() -> None:
    said = answer()
    said["found"]["special"] = {"count": 0, "names": ["x" * 10_000] * 1000, "complete": True}
    found = Leftovers.parse(said).special
    assert found.count == 1000
    assert len(found.names) == 64
    assert len(found.names[0]) == 500


# ---------------------------------------------------------------- the walk


def walk(place: Path, **options: Any) -> dict[str, Any]:
    def judge(name: str, info: os.stat_result, _directory: str) -> str | None:
        return "hit: " if name.startswith("hit") and info else None

    options = {"seconds": 5, **options}
    return Walk((str(place),), judge, **options).result()[str(place)]


def test_a_walk_finds_what_it_looks_for_and_follows_no_link(tmp_path: Path) -> None:
    place, other = tmp_path / "place", tmp_path / "other"
    for directory in (place / "a" / "b", other):
        directory.mkdir(parents=True)
        (directory / "hit").touch()
    (place / "link").symlink_to(other)
    (place / "a" / "hit-link").symlink_to("/nowhere")
    os.mkfifo(place / "hit-fifo")
    found = walk(place)
    assert found["complete"] is True
    wanted = ["a/b/hit", "a/hit-link", "hit-fifo"]
    assert sorted(found["names"]) == sorted(f"hit: {place}/{name}" for name in wanted)
    linked = walk(place / "link")
    assert (linked["count"], linked["complete"]) == (0, False)


def test_a_place_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert walk(tmp_path / "none") == {"count": 0, "names": [], "complete": True}


def test_only_the_first_are_named(tmp_path: Path) -> None:
    for number in range(NAMES + 5):
        (tmp_path / f"hit{number}{'x' * 200}").touch()
    found = walk(tmp_path)
    assert found["count"] == NAMES + 5
    assert len(found["names"]) == NAMES
    assert max(map(len, found["names"])) == 200


def test_names_that_are_no_text_are_told(tmp_path: Path) -> None:
    for number in range(NAMES):
        (tmp_path / os.fsdecode(b"hit\xff\n\x1b" + str(number).encode() + b"\xfe" * 200)).touch()
    found = walk(tmp_path)
    assert found["count"] == NAMES
    assert found["complete"] is True
    Found.parse(found)


def test_a_walk_without_end_is_told_to_be_incomplete(tmp_path: Path) -> None:
    for number in range(600):
        (tmp_path / f"file{number}").touch()
    begun = time.monotonic()
    assert walk(tmp_path, seconds=0)["complete"] is False
    assert time.monotonic() - begun < 60


def test_a_walk_goes_deeper_than_any_path_or_number_of_descriptors(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(os.pathconf("/", "PC_PATH_MAX") // 20):
        os.mkdir("d" * 200, dir_fd=fd)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("hit", os.O_CREAT, dir_fd=fd))
    os.close(fd)
    few = walk(tmp_path, first=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16)))
    assert (few["count"], few["complete"]) == (1, True)
    # pytest removes its directories by their paths, which are too long here.
    subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True, timeout=60)


def test_a_walk_finds_its_way_back_from_everywhere(tmp_path: Path) -> None:
    for name in ("a/a/a", "a/b", "b/a", "b/b/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "hit").touch()
    found = walk(tmp_path)
    assert sorted(found["names"]) == [f"hit: {tmp_path}/{n}/hit" for n in ("a/a/a", "a/b", "b/a", "b/b/b")]
    assert found["complete"] is True


def test_too_many_directories_that_wait_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clsecure.privileged.root.walk.PENDING", 5)
    for number in range(6):
        (tmp_path / str(number)).mkdir()
    assert walk(tmp_path)["complete"] is False


def test_what_is_left_out_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    (tmp_path / "mounted" / "hit").touch()
    found = walk(tmp_path, but=frozenset({f"{tmp_path}/mounted"}))
    assert (found["count"], found["complete"]) == (0, True)


def test_a_child_that_fails_has_not_looked(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("no")

    assert walk(tmp_path, first=fail) == {"count": 0, "names": [], "complete": False}
