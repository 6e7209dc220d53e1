"""What must not come along, and what must not happen to the user's repository."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from clsecure.workspace import clone
from clsecure.workspace.repository import discover
from tests.support.clone_in import all_objects, bring_in, commit, digest, git, inside

CANARY = "CANARY-7d1f"


pytestmark = pytest.mark.usefixtures("home")


def plant(top: Path) -> None:
    """A6: the same word in every place of a repository that HEAD does not reach."""
    git(top, "checkout", "-q", "-b", "other")
    (top / "other").write_text(f"{CANARY} branch\n")
    commit(top, f"{CANARY} on another branch")
    git(top, "tag", "-a", "-m", f"{CANARY} tag", "v1")
    git(top, "checkout", "-q", "main")
    (top / "README").write_text(f"{CANARY} stash\n")
    git(top, "stash", "push", "-q", "-m", f"{CANARY} stash")
    (top / "lost").write_text(f"{CANARY} reflog\n")
    commit(top, f"{CANARY} reset away")
    git(top, "reset", "-q", "--hard", "HEAD~1")
    dangling = git(top, "hash-object", "-w", "--stdin", data=f"{CANARY} dangling\n".encode())
    git(top, "notes", "add", "-m", f"{CANARY} note")
    git(top, "replace", "HEAD:README", dangling.decode().strip())


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_only_what_head_reaches_comes_along(top: Path, tmp_path: Path, *, full: bool, packed: bool) -> None:
    plant(top)
    if packed:
        git(top, "gc", "-q")
        git(top, "repack", "-qadb")
    (top / "README").write_text("dirty\n")
    (top / "new").write_text("new\n")
    git(top, "add", "README")
    before = digest(top)
    session = bring_in(top, tmp_path / "room", full=full)
    assert digest(top) == before
    assert CANARY.encode() not in session.sent
    assert CANARY.encode() not in all_objects(session)
    assert CANARY.encode() not in session.base.out("cat-file", "--batch-all-objects", "--batch")
    assert inside(session, "for-each-ref", "--format=%(refname)") == b"refs/heads/main\n"
    found = subprocess.run(["grep", "-r", CANARY, session.workspace], capture_output=True, check=False)
    assert found.returncode == 1
    assert git(top, "rev-parse", "HEAD") == inside(session, "rev-parse", "HEAD")


def test_objects_inside_are_those_of_the_start_state_and_no_others(top: Path, tmp_path: Path) -> None:
    plant(top)
    (top / "staged").write_text("staged\n")
    git(top, "add", "staged")
    (top / "staged").write_text("unstaged\n")
    session = bring_in(top, tmp_path / "room")
    everything = set(
        inside(session, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)").decode().split()
    )
    index_tree = session.state.top.index_tree
    reached = (
        inside(session, "rev-list", "--objects", "--no-object-names", "HEAD", index_tree).decode().split()
    )
    assert everything == set(reached)


def test_history_ends_after_fifty_generations(top: Path, tmp_path: Path) -> None:
    for number in range(70):
        commit(top, f"c{number}")
    session = bring_in(top, tmp_path / "room")
    assert inside(session, "rev-list", "--count", "HEAD") == b"50\n"
    assert inside(session, "rev-parse", "--is-shallow-repository") == b"true\n"
    inside(session, "fsck", "--strict")
    whole = bring_in(top, tmp_path / "whole", full=True)
    assert inside(whole, "rev-list", "--count", "HEAD") == b"71\n"
    assert not (whole.workspace / ".git" / "shallow").exists()


def test_the_boundary_is_what_git_would_choose(top: Path, tmp_path: Path) -> None:
    """Merges, an octopus and a second root, against ``git clone --depth``."""
    for number in range(30):
        commit(top, f"c{number}")
        git(top, "checkout", "-q", "-b", f"side{number}", "HEAD~1" if number else "HEAD")
        for step in range(3):
            commit(top, f"s{number}.{step}")
        git(top, "checkout", "-q", "main")
        git(top, "merge", "-q", "--no-ff", "-m", f"m{number}", f"side{number}")
    git(top, "checkout", "-q", "--orphan", "root")
    commit(top, "another root")
    git(top, "checkout", "-q", "main")
    git(top, "merge", "-q", "-m", "join", "--allow-unrelated-histories", "root", "side3")
    session = bring_in(top, tmp_path / "room")
    git(tmp_path, "clone", "-q", "--no-local", "--depth=50", "--branch=main", str(top), "reference")
    expected = (tmp_path / "reference" / ".git" / "shallow").read_text().split()
    assert sorted((session.workspace / ".git" / "shallow").read_text().split()) == sorted(expected)
    inside(session, "fsck", "--strict")


@pytest.mark.parametrize("full", [True, False])
def test_a_shallow_repository_stays_as_shallow(top: Path, tmp_path: Path, *, full: bool) -> None:
    for number in range(10):
        commit(top, f"c{number}")
    git(tmp_path, "clone", "-q", "--no-local", "--depth=4", str(top), "shallow")
    session = bring_in(tmp_path / "shallow", tmp_path / "room", full=full)
    assert inside(session, "rev-list", "--count", "HEAD") == b"4\n"
    inside(session, "fsck", "--strict")


def test_alternates_of_the_user_are_read_and_not_needed_inside(top: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--shared", str(top), "borrower")
    session = bring_in(tmp_path / "borrower", tmp_path / "room")
    assert not (session.workspace / ".git/objects/info/alternates").exists()
    assert not (session.state.top.base / "objects/info/alternates").exists()
    inside(session, "fsck", "--strict")


def test_tokens_of_the_configuration_stay_home(top: Path, tmp_path: Path, home: Path) -> None:
    """A7."""
    for key, value in {
        "remote.origin.url": f"https://user:{CANARY}@example.org/a.git",
        "remote.origin.pushurl": f"https://{CANARY}@example.org/a.git",
        "remote.helper.url": f"ext::sh -c {CANARY}",
        "remote.query.url": f"https://example.org/a.git?token={CANARY}",
        "http.extraheader": f"Authorization: {CANARY}",
        f"url.https://{CANARY}@example.org/.insteadOf": "https://example.org/",
        "credential.helper": f"!echo {CANARY}",
        "user.signingKey": CANARY,
        "submodule.lib.url": f"https://{CANARY}@example.org/lib.git",
        "branch.main.description": CANARY,
        "core.sshCommand": f"ssh -i {CANARY}",
    }.items():
        git(top, "config", key, value)
    (home / ".gitconfig").write_text(f"[github]\n\ttoken = {CANARY}\n[alias]\n\tx = !echo {CANARY}\n")
    session = bring_in(top, tmp_path / "room")
    assert CANARY.encode() not in session.sent
    assert inside(session, "remote", "get-url", "origin") == b"https://example.org/a.git\n"
    assert inside(session, "remote").split() == [b"origin", b"query"]
    assert inside(session, "config", "user.email") == b"ada@example.org\n"


def test_odd_identities_and_branches_survive_quoting(top: Path, tmp_path: Path) -> None:
    git(top, "config", "user.name", 'Ada "the" \\ Ünal; # x')
    git(top, "checkout", "-q", "-b", "feature/ünal-#1;x")
    session = bring_in(top, tmp_path / "room")
    assert inside(session, "config", "user.name").decode() == 'Ada "the" \\ Ünal; # x\n'
    assert inside(session, "symbolic-ref", "--short", "HEAD").decode() == "feature/ünal-#1;x\n"


def test_a_hostile_home_configures_nothing(top: Path, tmp_path: Path) -> None:
    """E3: bring_in plants a .gitconfig with autocrlf, hooks and a name in the worker's home."""
    (top / "a").write_text("one\n")
    commit(top, "a")
    session = bring_in(top, tmp_path / "room")
    assert (session.workspace / "a").read_bytes() == b"one\n"


def test_the_users_hooks_fire_for_the_agent_only(top: Path, tmp_path: Path) -> None:
    outside = tmp_path / "marker"
    hooks = top / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("pre-commit", "post-checkout", "reference-transaction", "post-index-change"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {outside}\n")
        (hooks / name).chmod(0o755)
    (hooks / "commit-msg").write_text("not executable")
    (hooks / "pre-push.sample").write_text("#!/bin/sh\n")
    (hooks / "pre-push.sample").chmod(0o755)
    (hooks / "post-merge").symlink_to("/bin/true")
    (hooks / "pre-rebase").symlink_to("../../tool")
    (top / "tool").write_text("#!/bin/sh\nexit 0\n")
    (top / "tool").chmod(0o755)
    os.mkfifo(hooks / "post-commit")
    session = bring_in(top, tmp_path / "room")
    assert not outside.exists()
    names = {path.name for path in (session.workspace / ".git" / "hooks").iterdir()}
    assert names == {
        "pre-commit",
        "post-checkout",
        "reference-transaction",
        "post-index-change",
        "pre-rebase",
    }
    assert any("post-merge" in warning for warning in session.warnings)
    inside(session, "commit", "-q", "--allow-empty", "-m", "agent")
    assert outside.exists()


def test_hooks_of_the_work_tree_are_used_where_they_are(top: Path, tmp_path: Path) -> None:
    (top / ".githooks").mkdir()
    (top / ".githooks" / "pre-commit").write_text("#!/bin/sh\nexit 7\n")
    (top / ".githooks" / "pre-commit").chmod(0o755)
    commit(top, "hooks")
    git(top, "config", "core.hooksPath", ".githooks")
    session = bring_in(top, tmp_path / "room")
    inside(session, "commit", "-q", "--allow-empty", "-m", "agent", status=1)


def test_the_base_is_private_and_complete_by_itself(top: Path, tmp_path: Path) -> None:
    (top / "new").write_text("new\n")
    state = clone.prepare(discover(top), tmp_path / "start", full=False)
    assert (tmp_path / "start").stat().st_mode & 0o777 == 0o700
    top.rename(tmp_path / "elsewhere")
    base = discover_base(state.top.base)
    base("fsck", "--strict", "--no-dangling")
    base("ls-tree", "-r", state.top.base_tree)
    base("cat-file", "-e", f"{state.top.base_tree}:new")


def discover_base(path: Path):
    return lambda *args: git(path, *args, env={"GIT_DIR": str(path)})
