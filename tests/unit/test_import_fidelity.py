"""What the agent leaves is what comes home, byte for byte; of the user's nothing changes but one branch."""

from __future__ import annotations

import os
import shutil

import pytest

from clsecure.importer import api
from tests.support.imports import Session, git, make_repo, tree_files, work_tree_files, write
from tests.support.repostate import assert_only_new_branch, snapshot


@pytest.fixture
def session(tmp_path):
    return Session.of(tmp_path, make_repo(tmp_path / "repo"))


def test_a_session_that_changed_nothing_imports_nothing(session):
    before = snapshot(session.repo)
    assert session.bring_home() is None
    assert_only_new_branch(before, snapshot(session.repo), None)


def test_a_dirty_start_that_was_left_alone_imports_nothing(tmp_path):
    repo = make_repo(tmp_path / "repo")
    write(repo / "a.txt", b"dirty\n")
    write(repo / "new.txt", b"untracked\n")
    (repo / "dir" / "b.txt").unlink()
    session = Session.of(tmp_path, repo)
    before = snapshot(repo)
    assert session.bring_home() is None
    assert_only_new_branch(before, snapshot(repo), None)


def test_reverting_the_dirty_start_is_a_change_that_comes_home(tmp_path):
    repo = make_repo(tmp_path / "repo")
    write(repo / "a.txt", b"dirty\n")
    session = Session.of(tmp_path, repo)
    git(session.workspace, "checkout", "-q", "a.txt")
    result = session.bring_home()
    assert result is not None
    assert (result.commits, result.files_changed, result.tip) == (0, 1, session.start.top.head)


def test_commits_and_uncommitted_work_come_home_as_one_branch(session):
    before = snapshot(session.repo)
    work = session.workspace
    write(work / "a.txt", b"changed\n")
    git(work, "commit", "-qam", "first")
    write(work / "new" / "file.txt", b"new\n")
    (work / "dir" / "b.txt").unlink()
    (work / "run.sh").chmod(0o644)
    (work / "link").symlink_to("a.txt")
    result = session.bring_home()
    assert result is not None
    assert result.commits == 1
    assert result.uncommitted_commit == result.tip
    assert result.files_changed == 5
    assert result.refused == ()
    assert tree_files(session.repo, result.tip) == work_tree_files(work)
    assert_only_new_branch(before, snapshot(session.repo), "claude/work")
    assert git(session.repo, "rev-parse", "claude/work~2") == session.start.top.head
    assert git(session.repo, "log", "-1", "--format=%an <%ae> %s", "claude/work") == (
        "Agent <agent@example.org> Uncommitted work"
    )
    git(session.repo, "fsck", "--strict")


NAMES = [
    b"new\nline", b"tab\there", b"-rf", b":(glob)*", b"esc\x1b[31m", b"\xff\xfe", b"x" * 255, b"sp ace ",
    b"*", b'quo"te', b"back\\slash", b"$(id)", b"caf\xc3\xa9", b"cafe\xcc\x81", b"rtl\xe2\x80\xae", b"#hash",
    b"!bang", b"d" * 200 + b"/" + b"e" * 200 + b"/" + b"f" * 200,
]  # fmt: skip


def test_odd_names_and_contents_are_exact_also_in_a_plain_locale(session):
    for name in NAMES:
        write(session.workspace / os.fsdecode(name), b"content of " + name)
    write(session.workspace / "empty", b"")
    write(session.workspace / "crlf", b"a\r\nb\r\n")
    write(session.workspace / "binary", bytes(range(256)) * 50)
    status, stream, stderr = session.export(env={"PATH": "/usr/bin:/bin", "LANG": "C", "LC_ALL": "C"})
    assert status == 0, stderr
    result = session.bring_home(stream=stream)
    assert result is not None
    assert result.refused == ()
    assert tree_files(session.repo, result.tip) == work_tree_files(session.workspace)


def test_files_become_links_and_directories_and_back(tmp_path):
    repo = make_repo(tmp_path / "repo", {"f": b"1", "d/x": b"2", "l-target": b"3"})
    (repo / "l").symlink_to("l-target")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "link")
    session = Session.of(tmp_path, repo)
    work = session.workspace
    (work / "f").unlink()
    write(work / "f" / "inner", b"now a directory")
    (work / "d" / "x").unlink()
    (work / "d").rmdir()
    (work / "d").symlink_to("f")
    (work / "l").unlink()
    write(work / "l", b"now a file")
    result = session.bring_home()
    assert result is not None
    assert tree_files(repo, result.tip) == work_tree_files(work)


def test_tracked_files_below_a_directory_that_became_a_link_are_deleted_not_followed(tmp_path):
    repo = make_repo(tmp_path / "repo", {"d/x": b"2", "keep": b"3"})
    session = Session.of(tmp_path, repo)
    outside = tmp_path / "outside"
    write(outside / "x", b"CANARY")
    (session.workspace / "d" / "x").unlink()
    (session.workspace / "d").rmdir()
    (session.workspace / "d").symlink_to(outside)
    result = session.bring_home()
    assert result is not None
    assert tree_files(repo, result.tip) == {
        b"d": (0o120000, os.fsencode(outside)), b"keep": (0o100644, b"3"),
    }  # fmt: skip


def test_ignored_files_stay_out_and_forced_ones_come(session):
    work = session.workspace
    write(work / ".gitignore", b"dist/\n.envrc\n")
    write(work / "dist" / "made", b"x")
    write(work / "dist" / "forced", b"y")
    write(work / ".envrc", b"secret")
    git(work, "add", "-f", "dist/forced")
    result = session.bring_home()
    assert result is not None
    names = set(tree_files(session.repo, result.tip))
    assert b"dist/forced" in names
    assert not names & {b"dist/made", b".envrc"}
    assert not (session.repo / ".envrc").exists()


def test_files_that_the_agent_untracked_and_ignores_stay_out(session):
    work = session.workspace
    write(work / ".gitignore", b"a.txt\n")
    git(work, "rm", "-q", "--cached", "a.txt")
    git(work, "add", ".gitignore")
    git(work, "commit", "-qm", "untrack")
    result = session.bring_home()
    assert result is not None
    assert result.uncommitted_commit is None
    assert b"a.txt" not in tree_files(session.repo, result.tip)


@pytest.mark.parametrize("how", ["split index", "version 4", "sparse index", "damaged"])
def test_the_form_of_the_agents_index_does_not_matter(session, how):
    work = session.workspace
    write(work / ".gitignore", b"forced\n")
    write(work / "forced", b"1")
    git(work, "add", "-f", "forced")
    match how:
        case "split index":
            git(work, "update-index", "--split-index")
        case "version 4":
            git(work, "update-index", "--index-version=4")
        case "sparse index":
            git(work, "commit", "-qm", "x")
            git(work, "sparse-checkout", "set", "--sparse-index", "other")
            git(work, "checkout", "-q", "main")
            write(work / "dir" / "b.txt", b"two\n")
        case "damaged":
            (work / ".git" / "index").write_bytes(b"DIRC" + b"\xff" * 100)
    admitted = session.admit()
    assert [line.split(":")[0] for line in admitted.refused] == ([".git/index"] if how == "damaged" else [])
    result = session.bring_home()
    assert result is not None
    files = tree_files(session.repo, result.tip)
    assert (b"forced" in files) == (how != "damaged")
    assert files[b"dir/b.txt"] == (0o100644, b"two\n")


def test_a_merge_that_was_not_finished_comes_home_as_it_lies_there(session):
    work = session.workspace
    git(work, "checkout", "-qb", "other")
    write(work / "a.txt", b"1\n")
    git(work, "commit", "-qam", "1")
    git(work, "checkout", "-q", "main")
    write(work / "a.txt", b"2\n")
    git(work, "commit", "-qam", "2")
    with pytest.raises(AssertionError):
        git(work, "merge", "other")
    assert session.admit().top.other_refs == ("MERGE_HEAD", "refs/heads/other")
    result = session.bring_home()
    assert result is not None
    assert tree_files(session.repo, result.tip) == work_tree_files(work)


def test_nothing_hides_from_the_export(session):
    work = session.workspace
    git(work, "update-index", "--skip-worktree", "a.txt")
    git(work, "update-index", "--assume-unchanged", "dir/b.txt")
    write(work / ".git" / "info" / "exclude", b"*\n")
    git(work, "config", "status.showUntrackedFiles", "no")
    git(work, "config", "core.fileMode", "false")
    git(work, "config", "core.excludesFile", str(work / ".git" / "info" / "exclude"))
    write(work / "a.txt", b"hidden 1\n")
    write(work / "dir" / "b.txt", b"hidden 2\n")
    write(work / "new.txt", b"hidden 3\n")
    (work / "run.sh").chmod(0o644)
    result = session.bring_home()
    assert result is not None
    assert tree_files(session.repo, result.tip) == work_tree_files(work)
    assert result.files_changed == 4


def test_a_same_sized_change_with_the_old_timestamp_is_seen(session):
    path = session.workspace / "a.txt"
    info = path.stat()
    path.write_bytes(b"eno\n")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    result = session.bring_home()
    assert result is not None
    assert result.files_changed == 1


@pytest.mark.parametrize("state", ["detached", "other branch", "unborn", "no repository", "new repository"])
def test_the_work_comes_home_wherever_head_is(session, state):
    work = session.workspace
    write(work / "a.txt", b"changed\n")
    match state:
        case "detached":
            git(work, "commit", "-qam", "x")
            git(work, "checkout", "-q", "--detach")
        case "other branch":
            git(work, "checkout", "-qb", "else/where")
            git(work, "commit", "-qam", "x")
            git(work, "pack-refs", "--all")
        case "unborn":
            git(work, "checkout", "-q", "--orphan", "nothing")
        case "no repository":
            shutil.rmtree(work / ".git")
        case "new repository":
            shutil.rmtree(work / ".git")
            git(work, "init", "-q")
            git(work, "add", "-A")
            git(work, "commit", "-qm", "again from nothing")
    admitted = session.admit()
    assert admitted.top.rewritten == (state == "new repository")
    result = session.bring_home()
    assert result is not None
    assert tree_files(session.repo, result.tip) == work_tree_files(work)
    git(session.repo, "fsck", "--strict")


def test_commits_on_other_branches_are_named(session):
    work = session.workspace
    git(work, "checkout", "-qb", "side\u202e")
    write(work / "a.txt", b"on the side\n")
    git(work, "commit", "-qam", "side")
    git(work, "checkout", "-q", "main")
    git(work, "branch", "held")
    write(work / "a.txt", b"stashed\n")
    git(work, "stash", "-q")
    admitted = session.admit()
    assert admitted.top.other_refs == ("refs/heads/side\\u202e", "refs/stash")
    assert not admitted.changed
    assert session.review(admitted).units[0].other_refs == admitted.top.other_refs


def test_text_attributes_give_the_tree_that_a_clean_git_would_make(tmp_path):
    repo = make_repo(
        tmp_path / "repo",
        {".gitattributes": b"* text=auto\n*.bin -text\n", "x.txt": b"a\r\nb\r\n", "y.bin": b"a\r\nb\r\n"},
    )
    session = Session.of(tmp_path, repo)
    assert session.bring_home() is None
    write(session.workspace / "z.txt", b"c\r\nd\r\n")
    result = session.bring_home()
    assert result is not None
    files = tree_files(repo, result.tip)
    assert files[b"z.txt"] == (0o100644, b"c\nd\n")
    assert files[b"y.bin"] == (0o100644, b"a\r\nb\r\n")


def test_files_that_were_never_normalised_stay_as_they_are(tmp_path):
    repo = make_repo(tmp_path / "repo", {"x.txt": b"a\r\nb\r\n"})
    write(repo / ".gitattributes", b"*.txt text eol=lf\n")
    git(repo, "add", ".gitattributes")
    git(repo, "commit", "-qm", "attributes")
    session = Session.of(tmp_path, repo)
    write(session.workspace / "x.txt", b"a\r\nb\r\n")
    write(session.workspace / "other", b"1")
    result = session.bring_home()
    assert result is not None
    assert tree_files(repo, result.tip)[b"x.txt"] == (0o100644, b"a\r\nb\r\n")


def test_a_shallow_copy_comes_home_complete(tmp_path):
    repo = make_repo(tmp_path / "repo")
    for number in range(5):
        write(repo / "a.txt", b"%d\n" % number)
        git(repo, "commit", "-qam", str(number))
    session = Session.of(tmp_path, repo, depth=2)
    before = snapshot(repo)
    write(session.workspace / "a.txt", b"more\n")
    git(session.workspace, "commit", "-qam", "more")
    result = session.bring_home()
    assert result is not None
    assert result.commits == 1
    assert not (repo / ".git" / "shallow").exists()
    assert_only_new_branch(before, snapshot(repo), "claude/work")
    assert git(repo, "rev-list", "--count", "claude/work") == "7"
    git(repo, "fsck", "--strict")


def test_a_sha256_repository_comes_home(tmp_path):
    repo = tmp_path / "repo"
    repo.mkdir()
    git(repo, "init", "-q", "--object-format=sha256")
    write(repo / "a.txt", b"1\n")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "start")
    session = Session.of(tmp_path, repo)
    write(session.workspace / "a.txt", b"2\n")
    result = session.bring_home()
    assert result is not None
    assert len(result.tip) == 64
    assert tree_files(repo, result.tip) == work_tree_files(session.workspace)


def test_the_identical_id_is_shown_and_imported(session):
    write(session.workspace / "a.txt", b"changed\n")
    admitted = session.admit()
    shown = b"".join(session.review(admitted).diff())
    assert b"-one\n+changed\n" in shown
    write(session.workspace / "a.txt", b"changed again\n")
    result = api.promote(admitted, session.review(admitted), "late")
    assert result is not None
    assert tree_files(session.repo, result.tip)[b"a.txt"] == (0o100644, b"changed\n")
