"""What the checks on the user's side say: work that goes on is told, new programs are a failure."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from clsecure.model import (
    CheckResult,
    CheckStatus,
    IsolationMode,
    KeptProgram,
    Mount,
    SandboxSpec,
    WorkerAccount,
)
from clsecure.session.store import SessionDirectory, SessionRecord, SessionStatus
from clsecure.verify.userside import UserSide, check_user_side, look
from clsecure.verify.userstate import AclEntry, ProgramState, UserState, user_state
from clsecure.workspace.repository import Repository, discover

UID = 1_900_000_000
SPEC = SandboxSpec(
    mode=IsolationMode.USER,
    account=WorkerAccount(name="claude-worker-x", uid=UID, gid=UID, home=Path("/home/claude-worker-x")),
)


def git(place: Path, *args: str) -> None:
    subprocess.run(["git", *args], cwd=place, check=True, capture_output=True, timeout=60)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "home"
    place.mkdir(mode=0o750)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (place / ".gitconfig").write_text("[user]\n\tname = P\n\temail = p@localhost\n")
    return place


@pytest.fixture
def repository(home: Path) -> Repository:
    place = home / "project"
    place.mkdir()
    git(place, "init", "-q", "-b", "main")
    (place / "file").write_text("one\n")
    git(place, "add", ".")
    git(place, "commit", "-qm", "A beginning")
    return discover(place)


def noted(repository: Repository, home: Path) -> UserState:
    """Return the state as it comes back out of a session's record."""
    found = user_state(repository, home)
    assert found is not None
    return UserState.parse(json.loads(json.dumps(asdict(found))))


def judged(facts: UserSide, spec: SandboxSpec = SPEC) -> dict[str, CheckResult]:
    return {result.check_id: result for result in check_user_side(facts, spec)}


def again(
    repository: Repository, home: Path, before: UserState | None, spec: SandboxSpec = SPEC
) -> dict[str, CheckResult]:
    return judged(look(repository, home, spec, before), spec)


def test_what_is_noted_comes_back_and_is_small(repository: Repository, home: Path) -> None:
    found = user_state(repository, home)
    assert noted(repository, home) == found
    assert len(json.dumps(asdict(noted(repository, home)))) < 4096


def test_it_is_kept_in_the_sessions_record(repository: Repository, home: Path, tmp_path: Path) -> None:
    """Many hooks and settings, with odd names: the record can be read again, and none is forgotten."""
    for number in range(60):
        hook = repository.common_dir / "hooks" / f"{'ü' * 100}{number}"
        hook.parent.mkdir(exist_ok=True)
        hook.touch(0o755)
        git(repository.top, "config", f"filter.{'ü' * 300}{number}.clean", "x")
    found = user_state(repository, home)
    place = SessionDirectory(tmp_path)
    record = SessionRecord(
        session_id="x", project=str(repository.top), session="default", mode="user", network="none",
        agent="demo", worker_user="w", status=SessionStatus.KEPT, created=1.0, updated=1.0, user_state=found,
    )  # fmt: skip
    place.write(record)
    assert place.read() == record
    for change in (
        lambda: git(repository.top, "config", f"filter.{'ü' * 300}59.clean", "y"),
        lambda: hook.write_text("x"),
    ):
        before = noted(repository, home)
        change()
        assert again(repository, home, before)["repository-untouched"].status is CheckStatus.FAIL
    loaded = json.loads((tmp_path / "session.json").read_text())
    (tmp_path / "session.json").write_text(json.dumps({**loaded, "user_state": {"home_mode": "x"}}))
    assert place.read() == replace(record, user_state=None)


def test_nothing_changed(repository: Repository, home: Path) -> None:
    found = again(repository, home, noted(repository, home))
    assert {r.status for r in found.values()} == {CheckStatus.PASS}
    assert found["repository-untouched"].observed == "as it was"


def test_work_that_goes_on_is_told_and_is_no_failure(repository: Repository, home: Path) -> None:
    """Commits, branches, remotes, upstreams, ignored files, a hook that is not executable or goes away."""
    hook = repository.common_dir / "hooks" / "pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    before, top = noted(repository, home), repository.top
    git(home, "init", "-q", "--bare", "remote.git")
    (top / "file").write_text("two\n")
    for command in (
        "commit -qam Two", "switch -qc topic", "tag v1", "remote add origin ../remote.git",
        "push -qu --no-verify origin topic", "config user.name Other", "config branch.topic.description x",
        "stash list", "config submodule.x.update checkout", "config alias.st status", "gc -q",
        "config pager.log false",
    ):  # fmt: skip
        git(top, *command.split())
    (repository.common_dir / "info" / "exclude").write_text("*.log\n")
    hook.with_name("post-commit").write_text("#!/bin/sh\n")
    hook.with_name("pre-commit.sample").touch(0o755)
    hook.unlink()
    found = again(repository, home, before)["repository-untouched"]
    assert found.status is CheckStatus.PASS
    assert found.observed == "changed meanwhile: HEAD, config, info/exclude, refs, hooks taken away"


@pytest.mark.parametrize(
    "key",
    [
        "core.hooksPath", "core.fsmonitor", "core.sshCommand", "core.pager", "core.editor", "core.askPass",
        "core.gitProxy", "core.attributesFile", "diff.external", "diff.evil.command", "diff.evil.textconv",
        "filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "gpg.program", "gpg.ssh.program",
        "merge.evil.driver", "credential.helper", "credential.https://x.example.helper",
        "sequence.editor", "include.path", "includeIf.gitdir:/.path", "remote.origin.uploadpack",
        "mergetool.x.cmd", "pager.log", "interactive.diffFilter", "protocol.ext.allow", "hook.x.command",
        "trailer.sign.command", "lfs.customtransfer.x.path", "uploadpack.packObjectsHook",
    ],
)  # fmt: skip
def test_d3_a_new_setting_that_runs_a_program_fails(repository: Repository, home: Path, key: str) -> None:
    before = noted(repository, home)
    git(repository.top, "config", key, "/tmp/secret-program")
    found = again(repository, home, before)["repository-untouched"]
    assert found.status is CheckStatus.FAIL
    assert found.observed.lower() == f"setting {key}".lower()
    # Kept, it is nothing new; another value is.
    there = noted(repository, home)
    assert again(repository, home, there)["repository-untouched"].status is CheckStatus.PASS
    assert "secret-program" not in json.dumps(asdict(there))
    git(repository.top, "config", key, "/tmp/other")
    assert again(repository, home, there)["repository-untouched"].status is CheckStatus.FAIL
    git(repository.top, "config", "--unset", key)
    assert again(repository, home, there)["repository-untouched"].status is CheckStatus.PASS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("remote.x.url", "ext::sh -c true"),
        ("submodule.x.url", "ext::sh -c true"),
        ("url.ext::sh -c .insteadOf", "https://"),
        ("submodule.x.update", "!true"),
        ("alias.x", "!true"),
    ],
)
def test_d3_a_plain_setting_that_names_a_program_fails(
    repository: Repository, home: Path, key: str, value: str
) -> None:
    before = noted(repository, home)
    git(repository.top, "config", key, value)
    assert again(repository, home, before)["repository-untouched"].status is CheckStatus.FAIL


def test_d2_a_new_or_changed_hook_fails(repository: Repository, home: Path) -> None:
    before = noted(repository, home)
    hook = repository.common_dir / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    found = again(repository, home, before)["repository-untouched"]
    assert (found.status, found.observed) == (CheckStatus.FAIL, f"hook {hook}")
    there = noted(repository, home)
    assert again(repository, home, there)["repository-untouched"].status is CheckStatus.PASS
    hook.write_text("#!/bin/sh\nfalse\n")
    assert again(repository, home, there)["repository-untouched"].status is CheckStatus.FAIL
    hook.unlink()
    hook.symlink_to("/bin/true")
    assert again(repository, home, there)["repository-untouched"].status is CheckStatus.FAIL


def test_d2_submodules_are_looked_at_and_theirs_too(repository: Repository, home: Path) -> None:
    inner, other = home / "inner", home / "other"
    for place in (inner, other):
        subprocess.run(["cp", "-r", repository.top, place], check=True, timeout=60)
    allowed = ("-c", "protocol.file.allow=always", "submodule", "--quiet")
    git(other, *allowed, "add", str(inner), "deep")
    git(other, "commit", "-qm", "With a submodule")
    git(repository.top, *allowed, "add", "--name", "libs/other", str(other), "other")
    git(repository.top, *allowed, "update", "--init", "--recursive")
    before = noted(repository, home)
    git(repository.top / "other", "commit", "-q", "--allow-empty", "-m", "Work goes on")
    assert again(repository, home, before)["repository-untouched"].status is CheckStatus.PASS

    deep = repository.git_dir / "modules/libs/other/modules/deep"
    for directory in (deep.parents[1], deep):
        hook = directory / "hooks/post-checkout"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text("#!/bin/sh\n")
        hook.chmod(0o755)
        found = again(repository, home, before)["repository-untouched"]
        assert found.status is CheckStatus.FAIL
        assert str(hook) in found.observed
        hook.unlink()
        git(directory, "config", "--file", "config", "core.fsmonitor", "/tmp/x")
        found = again(repository, home, before)["repository-untouched"]
        assert found.status is CheckStatus.FAIL
        assert f"setting {directory.relative_to(repository.git_dir)}: core.fsmonitor" in found.observed
        git(directory, "config", "--file", "config", "--unset", "core.fsmonitor")
    assert again(repository, home, before)["repository-untouched"].status is CheckStatus.PASS


def test_a_submodule_that_is_closed_to_the_user_is_told_and_ends_nothing(
    repository: Repository, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """root's in a container of the user's made it, say."""
    before = noted(repository, home)
    closed = repository.git_dir / "modules"

    def scandir(place: Path, /) -> object:
        if place == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scanned(place)

    scanned = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    found = again(repository, home, before)["repository-untouched"]
    assert found.status is CheckStatus.SKIP
    assert "can't be read" in found.observed


def test_hooks_of_the_work_tree_change_with_its_branches(repository: Repository, home: Path) -> None:
    git(repository.top, "config", "core.hooksPath", ".husky")
    (repository.top / ".husky").mkdir()
    mine = discover(repository.top)
    before = noted(mine, home)
    (repository.top / ".husky" / "pre-commit").touch(0o755)
    assert again(mine, home, before)["repository-untouched"].status is CheckStatus.PASS


def test_hooks_elsewhere_are_looked_at(repository: Repository, home: Path) -> None:
    (home / "hooks").mkdir()
    git(repository.top, "config", "core.hooksPath", str(home / "hooks"))
    mine = discover(repository.top)
    before = noted(mine, home)
    (home / "hooks" / "pre-commit").touch(0o755)
    assert again(mine, home, before)["repository-untouched"].status is CheckStatus.FAIL


@pytest.mark.parametrize("place", ["file", ".git/objects/file", ".git/refs/heads/file", ".git/file"])
def test_files_of_the_worker_in_the_repository_fail(repository: Repository, home: Path, place: str) -> None:
    """Whose files these are: this process is the worker for once."""
    spec = replace(SPEC, account=replace(SPEC.account, uid=os.getuid() + 1, gid=os.getgid() + 1))
    before = noted(repository, home)
    assert again(repository, home, before, spec)["repository-untouched"].status is CheckStatus.PASS
    (repository.top / place).touch()
    own = replace(SPEC, account=replace(SPEC.account, uid=os.getuid()))
    found = again(repository, home, before, own)["repository-untouched"]
    assert found.status is CheckStatus.FAIL
    assert "of the worker: " in found.observed


def test_what_the_user_gave_to_write_to_is_no_failure_and_no_pass(repository: Repository, home: Path) -> None:
    before = noted(repository, home)
    git(repository.top, "config", "core.pager", "x")
    for source in (repository.top, home, repository.top / ".git" / "hooks"):
        spec = replace(SPEC, mounts=(Mount(source=source, target=Path("/x"), read_only=False),))
        assert again(repository, home, before, spec)["repository-untouched"].status is CheckStatus.SKIP
    for mount in (
        Mount(source=repository.top, target=Path("/x")),
        Mount(source=Path("/srv"), target=Path("/x"), read_only=False),
    ):
        spec = replace(SPEC, mounts=(mount,))
        assert again(repository, home, before, spec)["repository-untouched"].status is CheckStatus.FAIL


def test_a_linked_work_tree_is_noted_by_all_of_its_places(repository: Repository, home: Path) -> None:
    git(repository.top, "worktree", "add", "-q", str(home / "linked"))
    git(repository.top, "config", "extensions.worktreeConfig", "true")
    linked = discover(home / "linked")
    before = noted(linked, home)
    assert len(before.places) == 3
    git(home / "linked", "config", "--worktree", "core.fsmonitor", "/tmp/x")
    found = again(linked, home, before)["repository-untouched"]
    assert (found.status, found.observed) == (CheckStatus.FAIL, "setting core.fsmonitor")


# ---------------------------------------------------------------- the home


def test_a_home_that_was_opened_fails_and_a_closed_one_does_not(repository: Repository, home: Path) -> None:
    before = noted(repository, home)
    home.chmod(0o700)
    assert again(repository, home, before)["user-home-closed"].status is CheckStatus.PASS
    home.chmod(0o755)
    found = again(repository, home, before)["user-home-closed"]
    assert (found.status, found.observed) == (CheckStatus.FAIL, "mode 0750 became 0755 (+005)")


def give(home: Path, uid: int, permissions: int) -> None:
    """Give somebody permissions by an access control list, as setfacl(1) does."""
    none = 0xFFFFFFFF
    entries = ((1, 7, none), (2, permissions, uid), (4, 5, none), (0x10, 7, none), (0x20, 0, none))
    data = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(home, "system.posix_acl_access", data)
    except OSError as error:
        pytest.skip(f"no access control lists in {home}: {error}")


def test_an_access_control_list_for_the_worker_or_anybody_new_fails(
    repository: Repository, home: Path
) -> None:
    before = noted(repository, home)
    give(home, UID, 5)
    home.chmod(0o750)
    found = again(repository, home, before)["user-home-closed"]
    assert (found.status, found.observed) == (CheckStatus.FAIL, f"open to the worker by user:{UID}:r-x")
    # Also where it was so before.
    assert again(repository, home, noted(repository, home))["user-home-closed"].status is CheckStatus.FAIL
    give(home, 12345, 1)
    home.chmod(0o750)
    assert again(repository, home, before)["user-home-closed"].observed == "open by user:12345:--x"
    there = noted(repository, home)
    assert again(repository, home, there)["user-home-closed"].status is CheckStatus.PASS
    home.chmod(0o700)
    # The mask takes it away.
    assert again(repository, home, before)["user-home-closed"].status is CheckStatus.PASS


# ---------------------------------------------------------------- what is not known


def test_what_was_not_noted_is_no_pass(repository: Repository, home: Path) -> None:
    found = again(repository, home, None)
    assert {r.status for r in found.values()} == {CheckStatus.SKIP}


def test_a_repository_that_is_gone_is_no_pass(repository: Repository, home: Path) -> None:
    before = noted(repository, home)
    repository.top.rename(home / "moved")
    found = again(repository, home, before)
    assert {r.status for r in found.values()} == {CheckStatus.SKIP}


@pytest.mark.parametrize(
    "change",
    [
        {"home_mode": "448"}, {"home_mode": -1}, {"home_mode": True}, {"parts": []}, {"parts": {"HEAD": 1}},
        {"hooks": {"x": "short"}}, {"programs": None}, {"home_acl": [1]}, {"home_acl": [{"who": "x"}]},
        {"places": None},
    ],
)  # fmt: skip
def test_a_record_of_another_form_is_refused(
    repository: Repository, home: Path, change: dict[str, object]
) -> None:
    loaded = {**asdict(noted(repository, home)), **change}
    with pytest.raises(ValueError, match="not a state"):
        UserState.parse(loaded)
    with pytest.raises(ValueError, match="not a state"):
        UserState.parse([loaded])


def test_odd_files_are_read_without_waiting(repository: Repository, home: Path) -> None:
    hooks = repository.common_dir / "hooks"
    hooks.mkdir(exist_ok=True)
    os.mkfifo(hooks / "pre-commit", 0o755)
    (hooks / "post-commit").write_bytes(b"x" * (5 << 20))
    (hooks / "post-commit").chmod(0o755)
    (hooks / os.fsdecode(b"\xff\n")).touch(0o755)
    begun = time.monotonic()
    before = noted(repository, home)
    assert time.monotonic() - begun < 60
    assert again(repository, home, before)["repository-untouched"].status is CheckStatus.PASS


# ---------------------------------------------------------------- the agent's program


def test_i6_the_kept_program_is_the_one_of_the_plan() -> None:
    spec = replace(SPEC, program=KeptProgram(name="claude", sha256="a" * 64, version="1"))
    good = ProgramState(sha256="a" * 64, owner="root's", mode=0o555)
    facts = UserSide(before=None, after=None, program=good)
    check = "agent-program-unchanged"
    assert judged(facts, spec)[check].status is CheckStatus.PASS
    for wrong in (
        None,
        replace(good, sha256="b" * 64),
        replace(good, owner="of uid 1000"),
        replace(good, mode=0o755),
    ):
        assert judged(replace(facts, program=wrong), spec)[check].status is CheckStatus.FAIL
    assert check not in judged(facts)


def test_an_entry_that_gives_nothing_names_nobody() -> None:
    assert not AclEntry(who=f"user:{UID}", permissions=0).names(uid=UID, gid=UID)
    assert AclEntry(who=f"group:{UID}", permissions=1).names(uid=UID, gid=UID)
