"""The git note that an import may leave: one reference, nobody's code, and nothing of anybody's lost."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clsecure.errors import ClsecureError, RepositoryError
from clsecure.importer.notes import REF, write_note
from tests.support.cli import ROOT
from tests.support.imports import ENV, git, make_repo, write
from tests.support.repostate import snapshot

TEXT = b"clsecure-session: 20260101-000000-0123456789ab\n"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return make_repo(tmp_path / "repo")


def note_of(repo: Path, commit: str = "HEAD") -> str:
    return git(repo, "notes", f"--ref={REF}", "show", commit)


def without_notes(state: dict[str, object]) -> dict[str, object]:
    refs = state["refs"]
    assert isinstance(refs, dict)
    return {**state, "refs": {name: value for name, value in refs.items() if name != REF}}


@pytest.mark.parametrize("kind", ["plain", "linked worktree", "sha256", "packed", "shared"])
def test_the_note_is_the_one_thing_that_is_new(tmp_path: Path, kind: str) -> None:
    repo = tmp_path / "repo"
    if kind == "sha256":
        repo.mkdir()
        git(repo, "init", "-q", "--object-format=sha256")
        write(repo / "a", b"1")
        git(repo, "add", "a")
        git(repo, "commit", "-qm", "one")
    else:
        make_repo(repo)
    if kind == "linked worktree":
        git(repo, "worktree", "add", "-q", str(tmp_path / "linked"))
        repo = tmp_path / "linked"
    if kind == "packed":
        git(repo, "-c", "core.logAllRefUpdates=false", "notes", f"--ref={REF}", "add", "-m", "old", "HEAD:")
        git(repo, "pack-refs", "--all")
    if kind == "shared":
        git(repo, "config", "core.sharedRepository", "group")
    before = without_notes(snapshot(repo))
    tip = git(repo, "rev-parse", "HEAD")
    git_dir = Path(git(repo, "rev-parse", "--absolute-git-dir"))
    write_note(git_dir, tip, TEXT)
    after = without_notes(snapshot(repo))
    assert before == after
    assert note_of(repo) == TEXT.decode().strip()
    assert "error" not in git(repo, "fsck", "--strict")
    write_note(git_dir, tip, TEXT)
    assert git(repo, "rev-list", "--count", REF) == ("2" if kind == "packed" else "1")


def test_d10_no_hook_and_nothing_of_the_configuration_runs(repo: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    hook = f"#!/bin/sh\ntouch {trap}\n".encode()
    for name in ("reference-transaction", "post-commit", "pre-commit", "post-rewrite", "pre-auto-gc",
                 "prepare-commit-msg", "commit-msg", "post-update"):  # fmt: skip
        write(repo / ".git" / "hooks" / name, hook)
        (repo / ".git" / "hooks" / name).chmod(0o755)
    write(repo / ".gitattributes", b"* filter=evil\n")
    for key in ("core.fsmonitor", "core.editor", "gpg.program", "filter.evil.clean", "filter.evil.smudge",
                "core.pager", "core.sshCommand", "credential.helper", "sequence.editor"):  # fmt: skip
        git(repo, "config", key, f"touch {trap}")
    git(repo, "config", "commit.gpgSign", "true")
    git(repo, "config", "notes.rewriteRef", "refs/notes/*")
    git(repo, "config", "gc.auto", "1")
    write_note(repo / ".git", git(repo, "rev-parse", "HEAD"), TEXT)
    assert not trap.exists()
    assert note_of(repo) == TEXT.decode().strip()


def test_notes_of_others_stay_in_any_fan_out(repo: Path) -> None:
    names = [hashlib.sha1(b"%d" % number).hexdigest() for number in range(300)]
    lines = [f"M 100644 inline {name[:2]}/{name[2:]}\ndata 4\nnote\n" for name in names]
    made = f"commit {REF}\ncommitter A <a@b> 0 +0000\ndata 1\nx\n{''.join(lines)}"
    git(repo, "fast-import", "--quiet", data=made.encode())
    head = git(repo, "rev-parse", "HEAD")
    git(repo, "notes", f"--ref={REF}", "add", "-m", "somebody's own words", head)
    write_note(repo / ".git", head, TEXT)
    assert note_of(repo) == f"somebody's own words\n\n{TEXT.decode().strip()}"
    assert len(git(repo, "notes", f"--ref={REF}", "list").splitlines()) == 301
    assert git(repo, "notes", f"--ref={REF}", "list", names[7])


@pytest.mark.parametrize("kind", ["symbolic", "dangling symbolic", "blob", "directory"])
def test_h11_a_reference_that_is_something_else_is_refused(repo: Path, kind: str) -> None:
    main = git(repo, "rev-parse", "main")
    match kind:
        case "symbolic":
            git(repo, "symbolic-ref", REF, "refs/heads/main")
        case "dangling symbolic":
            git(repo, "symbolic-ref", REF, "refs/heads/new")
        case "blob":
            git(repo, "update-ref", REF, git(repo, "rev-parse", "HEAD:a.txt"))
        case "directory":
            git(repo, "update-ref", f"{REF}/below", "HEAD")
    before = snapshot(repo)
    with pytest.raises(ClsecureError) as caught:
        write_note(repo / ".git", main, TEXT)
    assert REF in caught.value.brief
    assert snapshot(repo) == before
    assert isinstance(caught.value, RepositoryError) or kind == "directory"


def test_who_writes_at_the_same_time_loses_nothing(repo: Path) -> None:
    commits = []
    for number in range(6):
        write(repo / "a.txt", b"%d" % number)
        git(repo, "commit", "-qam", "c")
        commits.append(git(repo, "rev-parse", "HEAD"))
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from clsecure.errors import ToolError
from clsecure.importer.notes import write_note
while True:
    try:
        write_note(Path({str(repo / ".git")!r}), sys.argv[1], {TEXT!r})
        break
    except ToolError:  # after three times it says so, and nothing is lost
        pass
"""
    env = {**ENV, "PATH": os.environ["PATH"]}
    children = [subprocess.Popen([sys.executable, "-I", "-c", code, commit], env=env) for commit in commits]
    assert [child.wait(timeout=120) for child in children] == [0] * 6
    assert all(note_of(repo, commit) == TEXT.decode().strip() for commit in commits)
    assert git(repo, "rev-list", "--count", REF) == "6"


def test_a_full_disk_leaves_no_reference(repo: Path) -> None:
    objects = repo / ".git" / "objects" / "pack"
    objects.rmdir()
    objects.symlink_to("/dev/full")
    with pytest.raises((ClsecureError, OSError)):
        write_note(repo / ".git", git(repo, "rev-parse", "HEAD"), TEXT)
    objects.unlink()
    assert git(repo, "for-each-ref", REF) == ""
