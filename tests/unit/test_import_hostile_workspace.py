"""A workspace made to hang, lead elsewhere or execute: an error in time, or the work and nothing else."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from clsecure.errors import ImportRejectedError
from tests.support.imports import Session, git, make_repo, tree_files, work_tree_files, write
from tests.support.repostate import assert_only_new_branch, snapshot


@pytest.fixture
def session(tmp_path):
    return Session.of(tmp_path, make_repo(tmp_path / "repo"))


@pytest.mark.parametrize(
    "name",
    [
        ".git", ".git/HEAD", ".git/index", ".git/packed-refs", ".git/config", ".git/shallow", ".git/objects",
        ".git/refs", ".git/refs/heads", ".git/refs/heads/main", ".git/refs/heads/other",
        ".git/objects/pack/x.idx",
        ".git/objects/info/alternates", ".git/objects/info/commit-graph", ".git/objects/aa", ".gitignore",
        ".gitattributes", "dir/.gitignore", "dir/.gitattributes", ".gitmodules", "dir/.git/HEAD", "dir/.git",
        ".git/MERGE_HEAD", ".git/worktrees/w/HEAD",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_what_git_would_wait_for_is_an_error_in_time(session, name, kind):
    path = session.workspace / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        path.rename(session.root / "moved")
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    else:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket has room for about a hundred bytes
        try:
            with socket.socket(socket.AF_UNIX) as end:
                end.bind(path.name)
        finally:
            os.chdir(here)
    before = snapshot(session.repo)
    began = time.monotonic()
    status, stream, stderr = session.export(timeout=30)
    assert time.monotonic() - began < 20
    if name == ".git/worktrees/w/HEAD":  # merely a place where other work might be
        assert status == 0
        return
    assert status == 1
    assert stderr.startswith(b"export: ")
    with pytest.raises(ImportRejectedError):
        session.admit(stream)
    assert_only_new_branch(before, snapshot(session.repo), None)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        (".git/HEAD", "/dev/zero"), (".git/index", "/dev/zero"), (".git/objects/info/alternates",
        "/dev/zero"),
        (".git/packed-refs", "/etc/passwd"), (".git/refs/heads/x", "/etc/passwd"), ("dir/.git", "/"),
        (".git/objects/zz", "/"),
    ],
)  # fmt: skip
def test_links_where_git_reads_are_an_error(session, name, target):
    path = session.workspace / name
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    status, _, stderr = session.export(timeout=30)
    assert (status, stderr[:8]) == (1, b"export: ")


def test_links_as_rule_files_are_taken_as_links(session):
    (session.workspace / ".gitignore").symlink_to("/dev/zero")
    (session.workspace / ".gitattributes").symlink_to("/dev/zero")
    result = session.bring_home()
    assert result is not None
    assert tree_files(session.repo, result.tip) == work_tree_files(session.workspace)


@pytest.mark.parametrize("how", ["gitfile", "link", "alternates"])
def test_other_repositories_of_the_user_are_not_reached(session, tmp_path, how):
    other = make_repo(tmp_path / "other", {"CANARY": b"CANARY"})
    place = session.workspace / ".git"
    if how == "alternates":
        write(place / "objects" / "info" / "alternates", os.fsencode(other / ".git" / "objects") + b"\n")
    else:
        place.rename(session.root / "moved")
        if how == "link":
            place.symlink_to(other / ".git")
        else:
            place.write_text(f"gitdir: {other / '.git'}\n")
    status, stream, _ = session.export()
    assert status == 1
    assert b"CANARY" not in stream


def test_special_files_are_refused_by_name_and_the_rest_comes_home(session):
    work = session.workspace
    write(work / "good", b"1")
    os.mkfifo(work / "dir" / "pipe\x1b")
    write(work / ".gitignore", b"ignored/\n")
    (work / "ignored").mkdir()
    os.mkfifo(work / "ignored" / "pipe")
    (work / "run.sh").chmod(0o4755)
    os.link(work / "good", work / "hard link")
    admitted = session.admit()
    assert admitted.refused == ("dir/pipe\\x1b: neither a file nor a directory nor a symbolic link",)
    result = session.bring_home()
    assert result is not None
    files = tree_files(session.repo, result.tip)
    assert files[b"hard link"] == files[b"good"] == (0o100644, b"1")
    assert files[b"run.sh"][0] == 0o100755


def test_names_that_git_cannot_take_are_refused_by_name(session):
    work = session.workspace
    for name in ("git~1", ".GIT/config", ".git ", "dir/.g\u200cit/hooks/x"):
        write(work / name, b"x")
    admitted = session.admit()
    assert sorted(line.split(":")[0] for line in admitted.refused) == [
        ".GIT/config", ".git ", "dir/.g\\u200cit/hooks/x", "git~1",
    ]  # fmt: skip
    assert not admitted.changed


def test_paths_longer_than_git_takes_are_refused_by_name(session):
    descriptor = os.open(session.workspace, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("n" * 200, dir_fd=descriptor)
        deeper = os.open("n" * 200, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = deeper
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)
    write(session.workspace / "short", b"1")
    admitted = session.admit()
    assert len(admitted.refused) == 1
    assert admitted.refused[0].startswith("n" * 200 + "/")
    result = session.bring_home()
    assert result is not None
    assert tree_files(session.repo, result.tip)[b"short"] == (0o100644, b"1")


def test_embedded_repositories_are_refused_by_name(session):
    work = session.workspace
    make_repo(work / "embedded")
    git(work / "dir", "init", "-q")
    write(work / "ignored" / ".gitignore", b"*\n")
    make_repo(work / "ignored" / "cache")
    admitted = session.admit()
    why = "a repository of its own that was not cloned in"
    assert admitted.refused == (f"dir: {why}", f"embedded: {why}")


def test_nothing_that_the_agent_configured_is_executed(session, tmp_path):
    work, marker = session.workspace, tmp_path / "M"
    run = f"sh -c 'echo $0 >> {marker}; cat'"
    hook = f"#!/bin/sh\necho hook >> {marker}\n".encode()
    keys = [
        "core.fsmonitor", "core.sshCommand", "core.pager", "core.editor", "core.gitProxy", "core.askPass",
        "diff.external", "diff.evil.command", "diff.evil.textconv", "filter.evil.clean", "filter.evil.smudge",
        "filter.evil.process", "filter.lfs.clean", "filter.lfs.process", "filter.lfs.smudge", "gpg.program",
        "gpg.ssh.program", "merge.evil.driver", "alias.status", "credential.helper", "sequence.editor",
        "uploadpack.packObjectsHook", "core.alternateRefsCommand", "interactive.diffFilter",
        "trailer.x.command",
    ]  # fmt: skip
    for key in keys:
        git(work, "config", key, run)
    for key, value in {
        "filter.evil.required": "true", "commit.gpgSign": "true", "include.path": str(tmp_path / "included"),
        "core.hooksPath": str(work / "hooks"), "extensions.worktreeConfig": "true", "core.worktree": "/etc",
        "extensions.partialClone": "origin", "remote.origin.promisor": "true",
        "remote.origin.url": f"ext::sh -c 'echo promisor >> {marker}'", "protocol.ext.allow": "always",
        "submodule.recurse": "true", "core.bare": "true",
    }.items():  # fmt: skip
        git(work, "--git-dir=.git", "--work-tree=.", "config", key, value)
    write(tmp_path / "included", f'[core]\n\tfsmonitor = "{run}"\n'.encode())
    write(work / ".git" / "config.worktree", f'[core]\n\tfsmonitor = "{run}"\n'.encode())
    write(work / ".git" / "info" / "attributes", b"* filter=evil diff=evil merge=evil\n")
    write(work / ".gitattributes", b"*.txt filter=evil diff=evil merge=evil -text\n*.bin filter=lfs\n")
    write(work / "x.bin", b"large\n")
    write(work / "a.txt", b"changed\n")
    for name in (
        "pre-commit",
        "post-commit",
        "reference-transaction",
        "post-index-change",
        "fsmonitor-watchman",
    ):
        for place in (work / ".git" / "hooks", work / "hooks"):
            write(place / name, hook)
            (place / name).chmod(0o755)
    before = snapshot(session.repo)
    admitted = session.admit()
    review = session.review(admitted)
    assert b"+changed" in b"".join(review.diff())
    result = session.bring_home()
    assert result is not None
    assert not marker.exists()
    assert tree_files(session.repo, result.tip)[b"a.txt"] == (0o100644, b"changed\n")
    after = snapshot(session.repo)
    after["common"] = [name for name in after["common"] if name != "lfs"]
    assert_only_new_branch(before, after, "claude/work")
    found = {finding.kind for finding in review.findings}
    assert {"git_config", "git_hook", "executable"} <= found


def test_replacements_grafts_and_notes_do_not_come_along(session):
    work = session.workspace
    write(work / "a.txt", b"evil\n")
    git(work, "commit", "-qam", "evil")
    evil = git(work, "rev-parse", "HEAD")
    innocent = git(work, "commit-tree", "-m", "innocent", "-p", "HEAD~1", "HEAD~1^{tree}")
    git(work, "replace", evil, innocent)
    git(work, "notes", "add", "-m", "note")
    git(work, "tag", "-a", "v1", "-m", "tag")
    git(work, "update-ref", "refs/heads/$(id)", "HEAD")
    write(work / ".git" / "info" / "grafts", f"{evil}\n".encode())
    before = snapshot(session.repo)
    admitted = session.admit()
    review = session.review(admitted)
    assert [commit.subject for commit in review.units[0].commits] == ["evil"]
    assert b"+evil" in b"".join(review.diff())
    result = session.bring_home()
    assert result is not None
    assert (result.tip, result.commits) == (evil, 1)
    assert_only_new_branch(before, snapshot(session.repo), "claude/work")


def test_a_history_cut_by_the_agent_is_refused(session):
    work = session.workspace
    for number in range(3):
        write(work / "a.txt", b"%d" % number)
        git(work, "commit", "-qam", str(number))
    write(work / ".git" / "shallow", git(work, "rev-parse", "HEAD").encode() + b"\n")
    status, stream, _ = session.export()
    if status == 0:
        with pytest.raises(ImportRejectedError):
            session.admit(stream)
    assert not (session.repo / ".git" / "shallow").exists()


def test_rewritten_history_is_reported(session):
    work = session.workspace
    write(work / "a.txt", b"other\n")
    git(work, "commit", "-qa", "--amend", "-m", "amended")
    admitted = session.admit()
    assert admitted.top.rewritten
    assert "rewritten_history" in {finding.kind for finding in session.review(admitted).findings}


def test_many_references_are_no_burden(session):
    work = session.workspace
    write(work / "a.txt", b"1")
    git(work, "commit", "-qam", "x")
    tip = git(work, "rev-parse", "HEAD")
    lines = "".join(f"{tip} refs/heads/branch-{number:07}\n" for number in range(300_000))
    write(work / ".git" / "packed-refs", lines.encode())
    began = time.monotonic()
    assert session.bring_home() is not None
    assert time.monotonic() - began < 20


def test_unreadable_files_are_refused_by_name(session):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (session.workspace / "a.txt").chmod(0)
    (session.workspace / "dir").chmod(0)
    try:
        admitted = session.admit()
    finally:
        (session.workspace / "dir").chmod(0o755)
    assert [line.split(":")[0] for line in admitted.refused] == ["a.txt", "dir/"]


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_INDEX_FILE", "GIT_EXTERNAL_DIFF", "GIT_CONFIG_COUNT"])
def test_ambient_git_variables_do_not_lead_elsewhere(session, tmp_path, monkeypatch, name):
    marker = tmp_path / "M"
    other = make_repo(tmp_path / "other")
    values = {
        "GIT_DIR": str(other / ".git"), "GIT_INDEX_FILE": str(other / ".git" / "index"),
        "GIT_EXTERNAL_DIFF": f"sh -c 'echo > {marker}'", "GIT_CONFIG_COUNT": "1",
    }  # fmt: skip
    monkeypatch.setenv(name, values[name])
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", f"sh -c 'echo > {marker}'")
    before, elsewhere = snapshot(session.repo), snapshot(other)
    write(session.workspace / "a.txt", b"changed\n")
    assert session.bring_home() is not None
    assert_only_new_branch(before, snapshot(session.repo), "claude/work")
    assert_only_new_branch(elsewhere, snapshot(other), None)
    assert not marker.exists()
