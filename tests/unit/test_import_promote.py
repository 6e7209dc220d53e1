"""One new branch in the user's repository, whatever state it is in, and whatever ends the import."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from clsecure.errors import ClsecureError, RepositoryError, ToolError, UsageError
from clsecure.importer import api
from tests.support.imports import Session, git, make_repo, tree_files, work_tree_files, write
from tests.support.repostate import assert_only_new_branch, snapshot


@pytest.fixture
def session(tmp_path):
    made = Session.of(tmp_path, make_repo(tmp_path / "repo"))
    write(made.workspace / "a.txt", b"changed\n")
    git(made.workspace, "commit", "-qam", "work")
    return made


def promote(session: Session, branch: str, *, numbered: bool = False):
    admitted = session.admit()
    return api.promote(admitted, session.review(admitted), branch, numbered=numbered)


@pytest.mark.parametrize(
    "state", ["rebasing", "detached", "dirty index", "sparse", "shared", "worktree", "merge"]
)
def test_whatever_the_user_is_in_the_middle_of_stays_so(tmp_path, state):
    top = repo = make_repo(tmp_path / "repo")
    write(repo / "a.txt", b"second\n")
    git(repo, "commit", "-qam", "second")
    git(repo, "branch", "feature", "HEAD~1")
    match state:
        case "detached":
            git(repo, "checkout", "-q", "--detach")
        case "sparse":
            git(repo, "sparse-checkout", "set", "--no-cone", "/a.txt")
        case "shared":
            git(repo, "config", "core.sharedRepository", "group")
        case "worktree":
            git(repo, "worktree", "add", "-q", str(tmp_path / "linked"), "feature")
            repo = tmp_path / "linked"
    session = Session.of(tmp_path, repo)
    match state:
        case "rebasing" | "merge":
            git(repo, "checkout", "-q", "feature")
            write(repo / "a.txt", b"conflict\n")
            git(repo, "commit", "-qam", "conflict")
            with pytest.raises(AssertionError):
                git(repo, "rebase" if state == "rebasing" else "merge", "main")
        case "dirty index":
            write(repo / "staged", b"1")
            write(repo / "a.txt", b"half\n")
            git(repo, "add", "-A")
            write(repo / "a.txt", b"staged\n")
            git(repo, "stash", "-q")
            git(repo, "stash", "apply", "-q", "--index")
    write(session.workspace / "dir" / "b.txt", b"agent\n")
    before = snapshot(repo)
    result = session.bring_home()
    assert result is not None
    assert_only_new_branch(before, snapshot(repo), "claude/work")
    assert git(top, "rev-parse", "refs/heads/claude/work") == result.tip
    if state == "shared":
        packs = (top / ".git" / "objects" / "pack").glob("*.pack")
        assert all(pack.stat().st_mode & 0o040 for pack in packs)


def test_no_hook_of_the_users_runs_and_nothing_is_signed(session, tmp_path):
    marker = tmp_path / "M"
    for name in ("reference-transaction", "post-checkout", "pre-auto-gc", "post-rewrite", "post-update"):
        hook = session.repo / ".git" / "hooks" / name
        write(hook, f"#!/bin/sh\necho {name} >> {marker}\n".encode())
        hook.chmod(0o755)
    git(session.repo, "config", "commit.gpgSign", "true")
    git(session.repo, "config", "gpg.program", f"sh -c 'echo > {marker}'")
    git(session.repo, "config", "core.fsmonitor", f"sh -c 'echo > {marker}'")
    git(session.repo, "config", "gc.auto", "1")
    before = snapshot(session.repo)
    marker.unlink(missing_ok=True)
    assert session.bring_home() is not None
    assert not marker.exists()
    assert_only_new_branch(before, snapshot(session.repo), "claude/work")


@pytest.mark.parametrize(
    "name",
    ["", "-f", "--all", "HEAD", "a..b", "a b", "a/", "/a", "a.lock", "@{-1}", "@", "a\x1b", "a\u202eb",
     "x" * 300,
     "refs/../x", "a\n"],
)  # fmt: skip
def test_names_that_are_no_branch_are_refused(session, name):
    before = snapshot(session.repo)
    with pytest.raises(UsageError):
        promote(session, name)
    assert_only_new_branch(before, snapshot(session.repo), None)


@pytest.mark.parametrize("there", ["claude/work", "claude", "claude/work/more"])
def test_a_taken_name_is_refused_and_a_default_finds_another(session, there):
    git(session.repo, "branch", there)
    before = snapshot(session.repo)
    with pytest.raises(UsageError, match="is there already"):
        promote(session, "claude/work")
    assert_only_new_branch(before, snapshot(session.repo), None)
    result = promote(session, "claude/work", numbered=True)
    assert result.branch == ("claude-work" if there == "claude" else "claude/work-2")
    assert_only_new_branch(before, snapshot(session.repo), result.branch)


def test_a_commit_of_the_start_that_is_gone_comes_back_with_the_work(session):
    repo = session.repo
    git(repo, "checkout", "-q", "--orphan", "fresh")
    git(repo, "commit", "-qm", "fresh")
    git(repo, "branch", "-D", "main")
    git(repo, "reflog", "expire", "--expire=all", "--all")
    git(repo, "gc", "-q", "--prune=now")
    result = session.bring_home()
    assert result is not None
    git(repo, "fsck", "--strict")
    assert git(repo, "rev-parse", "claude/work~1") == session.start.top.head


def test_a_damaged_repository_gets_no_branch(session):
    repo = session.repo
    blob = git(repo, "rev-parse", "HEAD:dir/b.txt")
    path = repo / ".git" / "objects" / blob[:2] / blob[2:]
    path.unlink()
    git(repo, "update-ref", "-d", "refs/heads/main")
    with pytest.raises(RepositoryError):
        session.bring_home()
    assert git(repo, "for-each-ref") == ""


def test_a_repository_that_is_gone_is_named(session):
    admitted = session.admit()
    session.repo.rename(session.root / "elsewhere")
    with pytest.raises(RepositoryError, match="not there any more"):
        api.promote(admitted, session.review(admitted), "x")


def test_a_full_disk_leaves_no_branch(session):
    before = snapshot(session.repo)
    admitted = session.admit()
    reviewed = session.review(admitted)
    child = os.fork()
    if child == 0:  # the limit stays in the child; a file that is too large is what a full disk looks like
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))
        try:
            api.promote(admitted, reviewed, "claude/work")
        except (ToolError, ClsecureError):
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert_only_new_branch(before, snapshot(session.repo), None)
    assert list((session.repo / ".git" / "objects").rglob("tmp_*")) == []
    assert api.promote(admitted, reviewed, "claude/work") is not None


def with_submodule(root: Path) -> Session:
    inner = make_repo(root / "inner", {"in.txt": b"inner\n"})
    repo = make_repo(root / "repo")
    git(repo, "submodule", "--quiet", "add", str(inner), "sub")
    git(repo, "commit", "-qm", "with submodule")
    return Session.of(root, repo, submodules=("sub",))


def test_work_in_a_submodule_comes_home_as_the_same_branch_there(tmp_path):
    session = with_submodule(tmp_path)
    assert session.bring_home() is None
    sub, before, inner = session.repo / "sub", snapshot(session.repo), snapshot(session.repo / "sub")
    write(session.workspace / "sub" / "in.txt", b"committed\n")
    git(session.workspace / "sub", "commit", "-qam", "in the submodule")
    write(session.workspace / "sub" / "new.txt", b"uncommitted\n")
    result = session.bring_home()
    assert result is not None
    assert [(unit.path, unit.branch, unit.commits) for unit in result.submodules] == [
        ("sub", "claude/work", 1)
    ]
    tip = result.submodules[0].tip
    assert git(sub, "rev-parse", "claude/work") == tip
    assert git(session.repo, "rev-parse", "claude/work:sub") == tip
    assert tree_files(sub, tip) == work_tree_files(session.workspace / "sub")
    assert_only_new_branch(
        before | {"status": None}, snapshot(session.repo) | {"status": None}, "claude/work"
    )
    assert_only_new_branch(inner, snapshot(sub), "claude/work")
    assert result.refused == ()


def test_a_dirty_submodule_that_was_left_alone_imports_nothing(tmp_path):
    inner = make_repo(tmp_path / "inner", {"in.txt": b"inner\n"})
    repo = make_repo(tmp_path / "repo")
    git(repo, "submodule", "--quiet", "add", str(inner), "sub")
    git(repo, "commit", "-qm", "with submodule")
    write(repo / "sub" / "in.txt", b"dirty\n")
    session = Session.of(tmp_path, repo, submodules=("sub",))
    assert session.bring_home() is None
    write(session.workspace / "a.txt", b"x\n")
    result = session.bring_home()
    assert result is not None
    assert result.submodules == ()
    assert git(repo, "rev-parse", "claude/work:sub") == session.start.units[1].head


@pytest.mark.parametrize("how", ["removed", "emptied", "replaced"])
def test_a_submodule_that_the_agent_took_away(tmp_path, how):
    session = with_submodule(tmp_path)
    place = session.workspace / "sub"
    shutil.rmtree(place)
    if how == "emptied":
        place.mkdir()
    elif how == "replaced":
        write(place, b"a file\n")
    result = session.bring_home()
    if how == "emptied":
        assert result is None
        return
    assert result is not None
    files = tree_files(session.repo, result.tip)
    assert files.get(b"sub") == ((0o100644, b"a file\n") if how == "replaced" else None)
    assert git(session.repo / "sub", "for-each-ref", "refs/heads/claude") == ""


RELEVANT = (
    "open",
    "subprocess.Popen",
    "os.rename",
    "os.link",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "shutil.rmtree",
)


def run_and_kill(session: Session, stream: bytes, at: int | None) -> int:
    """Import in a child that kills itself at the given step; the number of steps it made."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, _: object) -> None:
            nonlocal count
            if event in RELEVANT:
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            session.bring_home(stream=stream)
            os.write(writer, str(count).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        return int(pipe.read() or 0)


@pytest.mark.parametrize("fraction", range(20))
def test_an_import_killed_anywhere_leaves_nothing_and_succeeds_again(tmp_path, fraction):
    session = with_submodule(tmp_path)
    write(session.workspace / "sub" / "in.txt", b"changed\n")
    write(session.workspace / "a.txt", b"changed\n")
    status, stream, stderr = session.export()
    assert status == 0, stderr
    ignore = {"status": None}
    before, inner = snapshot(session.repo) | ignore, snapshot(session.repo / "sub")
    steps = run_and_kill(session, stream, None)
    assert steps > 40
    for where in (session.repo, session.repo / "sub"):
        git(where, "update-ref", "-d", "refs/heads/claude/work")
    # The last third is where the user's repositories are written to: look there twice as closely.
    at = steps * (fraction + 1) // 10 // 2 if fraction < 8 else steps - (19 - fraction) * 3
    assert run_and_kill(session, stream, max(1, at)) == 0
    for where in (session.repo, session.repo / "sub"):
        git(where, "fsck", "--strict")
    api.recover(session.root / "quarantine")
    after = snapshot(session.repo) | ignore
    made = "refs/heads/claude/work" in after["refs"]
    assert_only_new_branch(before, after, "claude/work" if made else None)
    assert_only_new_branch(inner, snapshot(session.repo / "sub"), "claude/work" if made else None)
    result = session.bring_home(stream=stream)
    assert result is not None
    assert_only_new_branch(before, snapshot(session.repo) | ignore, "claude/work")
    assert_only_new_branch(inner, snapshot(session.repo / "sub"), "claude/work")


def test_a_lock_left_by_a_killed_git_is_cleared_and_a_foreign_one_is_not(session):
    admitted = session.admit()
    reviewed = session.review(admitted)
    lock = session.repo / ".git" / "refs" / "heads" / "claude" / "work.lock"
    write(lock, b"")
    with pytest.raises(ToolError, match="could not create the branch"):
        api.promote(admitted, reviewed, "claude/work")
    lock.write_bytes(b"")
    journal = admitted.directory / "promote.json"
    unit = session.start.top
    where = str(unit.source_git_dir)
    step = {"git_dir": where, "common": where, "ref": "refs/heads/claude/work", "tip": admitted.top.final}
    journal.write_text(json.dumps({"steps": [step]}))
    assert api.promote(admitted, reviewed, "claude/work") is not None
    assert not lock.exists()
