# ruff: noqa: PTH103, PTH108, PTH115, PTH118, PTH120, PTH123
# Byte paths, which pathlib does not have.
"""What the user had not committed is inside exactly as it is outside, and hashes to the same tree."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from clsecure.errors import RepositoryError
from tests.support.clone_in import (
    Session,
    assert_unchanged_is_identical,
    bring_in,
    commit,
    digest,
    git,
    inside,
    make,
    status,
    status_inside,
)

ODD_NAMES = (
    b"new\nline",
    b"tab\there",
    b"-dash",
    b"--",
    b":(glob)*",
    b"esc\x1b[31m",
    b"invalid\xff\xfeutf8",
    b'quo"te',
    b"back\\slash",
    b" space ",
    b"*",
    b"x" * 255,
    "bidi\u202e".encode(),
    b"deep/" * 60 + b"file",
)


pytestmark = pytest.mark.usefixtures("home")


def put(top: Path, name: bytes, data: bytes = b"data\n") -> bytes:
    path = os.path.join(os.fsencode(top), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    return path


def same(top: Path, tmp_path: Path, name: str = "room") -> Session:
    """Bring in, and compare everything that can be compared."""
    before = digest(top)
    expected = status(top)
    session = bring_in(top, tmp_path / name)
    assert status_inside(session) == expected
    assert files(session.workspace) == files(top)
    assert_unchanged_is_identical(session)
    assert digest(top) == before
    inside(session, "fsck", "--strict", "--no-dangling")
    return session


def files(top: Path) -> dict[bytes, tuple[object, ...]]:
    """All files but those of .git, with what git keeps of them."""
    found: dict[bytes, tuple[object, ...]] = {}
    root = os.fsencode(top)
    for place, directories, names in os.walk(root):
        if b".git" in directories:
            directories.remove(b".git")
        for name in (*names, *directories):
            path = os.path.join(place, name)
            if path == os.path.join(root, b".git"):
                continue
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                found[path[len(root) :]] = ("link", os.readlink(path))
            elif stat.S_ISREG(mode):
                with open(path, "rb") as file:
                    found[path[len(root) :]] = ("file", bool(mode & 0o100), file.read())
    return found


def test_a_clean_repository(top: Path, tmp_path: Path) -> None:
    session = same(top, tmp_path)
    assert session.warnings == ()
    assert session.state.top.base_tree == git(top, "rev-parse", "HEAD^{tree}").decode().strip()
    assert session.state.top.index_tree == session.state.top.base_tree


def test_staged_unstaged_deleted_and_untracked_files(top: Path, tmp_path: Path) -> None:
    for name in (b"staged", b"both", b"unstaged", b"gone", b"staged-gone", b"renamed", b"cached"):
        put(top, name, name)
    commit(top, "files")
    put(top, b"staged", b"s2")
    put(top, b"both", b"b2")
    git(top, "add", "staged", "both")
    put(top, b"both", b"b3")
    put(top, b"unstaged", b"u2")
    (top / "gone").unlink()
    git(top, "rm", "-q", "staged-gone")
    git(top, "mv", "renamed", "moved")
    git(top, "rm", "-q", "--cached", "cached")
    put(top, b"added", b"a")
    git(top, "add", "added")
    put(top, b"added-gone", b"a")
    git(top, "add", "added-gone")
    (top / "added-gone").unlink()
    put(top, b"dir/untracked", b"u")
    same(top, tmp_path)


@pytest.mark.parametrize("committed", [True, False])
def test_odd_names(top: Path, tmp_path: Path, *, committed: bool) -> None:
    """D22."""
    for name in ODD_NAMES:
        put(top, name)
    if committed:
        commit(top, "odd")
        for name in ODD_NAMES[::2]:
            put(top, name, b"changed\n")
        for name in ODD_NAMES[1::2]:
            os.unlink(os.path.join(os.fsencode(top), name))
    session = same(top, tmp_path)
    assert session.warnings == ()


def test_modes_symlinks_and_empty_files(top: Path, tmp_path: Path) -> None:
    for name in (b"tool", b"plain", b"staged-mode"):
        put(top, name)
    (top / "tool").chmod(0o755)
    (top / "link").symlink_to("plain")
    put(top, b"was-full", b"x")
    commit(top, "modes")
    (top / "tool").chmod(0o644)
    (top / "plain").chmod(0o755)
    (top / "staged-mode").chmod(0o755)
    git(top, "add", "staged-mode")
    (top / "link").unlink()
    (top / "link").symlink_to("/etc/passwd")
    (top / "dangling").symlink_to("nowhere\n\xff")
    put(top, b"was-full", b"")
    put(top, b"empty", b"")
    put(top, b"binary", bytes(range(256)) * 300)
    same(top, tmp_path)


def test_a_file_becomes_a_symlink_and_back(top: Path, tmp_path: Path) -> None:
    put(top, b"file")
    (top / "link").symlink_to("file")
    commit(top, "types")
    (top / "file").unlink()
    (top / "file").symlink_to("README")
    (top / "link").unlink()
    put(top, b"link", b"now a file\n")
    same(top, tmp_path)


@pytest.mark.parametrize("staged", [True, False])
def test_a_file_becomes_a_directory_and_back(top: Path, tmp_path: Path, *, staged: bool) -> None:
    put(top, b"a")
    put(top, b"d/x")
    put(top, b"d/e/y")
    put(top, b"l/z")
    commit(top, "types")
    (top / "a").unlink()
    put(top, b"a/b/c")
    shutil.rmtree(top / "d")
    put(top, b"d")
    shutil.rmtree(top / "l")
    (top / "l").symlink_to("a")
    if staged:
        git(top, "add", "-A")
        put(top, b"d", b"again\n")
    same(top, tmp_path)


def test_intent_to_add(top: Path, tmp_path: Path) -> None:
    put(top, b"soon", b"content\n")
    put(top, b".gitignore", b"ignored\n")
    put(top, b"ignored", b"on purpose\n")
    git(top, "add", "-N", "--force", "soon", "ignored")
    assert status(top) >= {b" A soon", b" A ignored"}
    same(top, tmp_path)


def test_a_staged_file_that_is_ignored(top: Path, tmp_path: Path) -> None:
    put(top, b".gitignore", b"*.log\n")
    commit(top, "ignore")
    put(top, b"a.log")
    git(top, "add", "--force", "a.log")
    same(top, tmp_path)


def test_ignored_files_stay_home(top: Path, tmp_path: Path, home: Path) -> None:
    """A5: by .gitignore, .git/info/exclude and the user's own excludes."""
    (home / ".gitconfig").write_text("[core]\n\texcludesFile = ~/excludes\n")
    (home / "excludes").write_text("*.pem\n")
    (top / ".git" / "info").mkdir(exist_ok=True)
    (top / ".git" / "info" / "exclude").write_text("notes\n")
    put(top, b".gitignore", b".env\nbuild/\n")
    for name in (b".env", b"build/x", b"key.pem", b"notes", b"sub/.env"):
        put(top, name, b"CANARY\n")
    put(top, b"fine")
    session = bring_in(top, tmp_path / "room")
    assert b"CANARY" not in session.sent
    assert status_inside(session) == status(top)
    assert not (session.workspace / ".env").exists()
    assert_unchanged_is_identical(session)


def test_skip_worktree_and_assume_unchanged_hide_what_they_hide(top: Path, tmp_path: Path) -> None:
    put(top, b"local.conf", b"shared\n")
    put(top, b"assumed", b"shared\n")
    commit(top, "config")
    git(top, "update-index", "--skip-worktree", "local.conf")
    git(top, "update-index", "--assume-unchanged", "assumed")
    put(top, b"local.conf", b"CANARY password\n")
    put(top, b"assumed", b"CANARY password\n")
    session = bring_in(top, tmp_path / "room")
    assert b"CANARY" not in session.sent
    assert (session.workspace / "local.conf").read_text() == "shared\n"
    assert_unchanged_is_identical(session)


@pytest.mark.parametrize("sparse_index", [True, False])
def test_a_sparse_checkout_is_whole_inside(top: Path, tmp_path: Path, *, sparse_index: bool) -> None:
    for name in (b"in/a", b"out/b", b"out/deep/c"):
        put(top, name)
    commit(top, "files")
    git(top, "sparse-checkout", "set", "--cone", f"--{'' if sparse_index else 'no-'}sparse-index", "in")
    put(top, b"in/a", b"changed\n")
    before = digest(top)
    session = bring_in(top, tmp_path / "room")
    assert digest(top) == before
    assert status_inside(session) == status(top)
    assert (session.workspace / "out/deep/c").exists()
    assert_unchanged_is_identical(session)


def test_a_split_index(top: Path, tmp_path: Path) -> None:
    put(top, b"a")
    commit(top, "a")
    git(top, "update-index", "--split-index")
    put(top, b"a", b"staged\n")
    git(top, "add", "a")
    session = bring_in(top, tmp_path / "room")
    assert status_inside(session) == status(top)
    assert_unchanged_is_identical(session)


def test_a_racy_index(top: Path, tmp_path: Path) -> None:
    """Same size, same time stamp: only the content tells."""
    put(top, b"racy", b"aaaa")
    commit(top, "racy")
    info = (top / "racy").stat()
    put(top, b"racy", b"bbbb")
    os.utime(top / "racy", ns=(info.st_atime_ns, info.st_mtime_ns))
    session = bring_in(top, tmp_path / "room")
    if b" M racy" in status(top):
        assert (session.workspace / "racy").read_bytes() == b"bbbb"
    assert_unchanged_is_identical(session)


def test_mid_merge_the_work_tree_counts(top: Path, tmp_path: Path) -> None:
    put(top, b"f", b"base\n")
    put(top, b"deleted-by-us", b"base\n")
    commit(top, "base")
    git(top, "checkout", "-q", "-b", "side")
    put(top, b"f", b"side\n")
    put(top, b"deleted-by-us", b"side\n")
    put(top, b"theirs", b"side\n")
    commit(top, "side")
    git(top, "checkout", "-q", "main")
    put(top, b"f", b"main\n")
    (top / "deleted-by-us").unlink()
    commit(top, "main")
    git(top, "merge", "-q", "side", status=1)
    (top / "deleted-by-us").unlink()
    before = digest(top)
    session = bring_in(top, tmp_path / "room")
    assert digest(top) == before
    assert files(session.workspace) == files(top)
    assert any("in conflict" in warning and warning.endswith(" f") for warning in session.warnings)
    assert b"M  f" in status_inside(session)
    assert b"A  theirs" in status_inside(session)
    assert_unchanged_is_identical(session)


def test_mid_rebase_is_a_detached_head(top: Path, tmp_path: Path) -> None:
    put(top, b"f", b"one\n")
    commit(top, "one")
    put(top, b"f", b"two\n")
    commit(top, "two")
    git(top, "rebase", "-q", "HEAD~1", "--exec", "false", status=1)
    session = same(top, tmp_path)
    assert session.state.top.branch is None
    inside(session, "symbolic-ref", "-q", "HEAD", status=1)


def test_special_files_stay_home(top: Path, tmp_path: Path) -> None:
    put(top, b"was-file")
    commit(top, "file")
    (top / "was-file").unlink()
    os.mkfifo(top / "was-file")
    os.mkfifo(top / "fifo")
    session = bring_in(top, tmp_path / "room")
    assert status_inside(session) == {b" D was-file"}
    assert any("was-file" in warning for warning in session.warnings)
    assert_unchanged_is_identical(session)


def test_an_embedded_repository_stays_home(top: Path, tmp_path: Path) -> None:
    make(top / "embedded")
    session = bring_in(top, tmp_path / "room")
    assert not (session.workspace / "embedded").exists()
    assert any("embedded" in warning for warning in session.warnings)
    assert_unchanged_is_identical(session)


@pytest.mark.parametrize("attributes", [b"", b"* text=auto\n", b"*.txt text eol=crlf\n", b"*.txt -text\n"])
@pytest.mark.parametrize("autocrlf", ["false", "input", "true"])
def test_line_ends(top: Path, tmp_path: Path, home: Path, attributes: bytes, autocrlf: str) -> None:
    (home / ".gitconfig").write_text(f"[core]\n\tautocrlf = {autocrlf}\n\tsafecrlf = false\n")
    if attributes:
        put(top, b".gitattributes", attributes)
    for name in (b"lf.txt", b"crlf.txt", b"mixed.txt", b"staged.txt", b"clean-crlf.txt"):
        put(top, name, b"one\r\ntwo\r\n" if b"crlf" in name else b"one\ntwo\n")
    commit(top, "files")
    put(top, b"lf.txt", b"one\nchanged\n")
    put(top, b"crlf.txt", b"one\r\nchanged\r\n")
    put(top, b"mixed.txt", b"one\r\nchanged\n")
    put(top, b"staged.txt", b"one\r\nchanged\r\n")
    git(top, "add", "staged.txt")
    put(top, b"new.txt", b"one\r\n")
    before = digest(top)
    session = bring_in(top, tmp_path / "room")
    assert digest(top) == before
    assert status_inside(session) == status(top)
    for name in ("lf.txt", "crlf.txt", "mixed.txt", "new.txt"):
        assert (session.workspace / name).read_bytes() == (top / name).read_bytes()
    assert_unchanged_is_identical(session)


def test_files_that_were_never_normalised_do_not_become_work(top: Path, tmp_path: Path) -> None:
    """Committed before the attribute came: git calls them clean, hashing them anew would change them."""
    put(top, b"old.txt", b"one\r\n")
    put(top, b"other.txt", b"one\r\n")
    commit(top, "crlf")
    put(top, b".gitattributes", b"*.txt text\n")
    git(top, "add", ".gitattributes")
    git(top, "commit", "-q", "-m", "attributes")
    tree = git(top, "rev-parse", "HEAD^{tree}").decode().strip()
    session = bring_in(top, tmp_path / "room")
    assert session.state.top.base_tree == tree
    assert_unchanged_is_identical(session)
    put(top, b"other.txt", b"changed\r\n")
    assert_unchanged_is_identical(bring_in(top, tmp_path / "again"))


def test_attributes_that_are_not_committed_count(top: Path, tmp_path: Path) -> None:
    put(top, b".gitattributes", b"*.txt -text\n")
    put(top, b"sub/.gitattributes", b"*.txt text\n")
    put(top, b"sub/a.txt", b"one\n")
    commit(top, "files")
    put(top, b".gitattributes", b"*.txt text\n")
    (top / "sub" / ".gitattributes").unlink()
    put(top, b"new.txt", b"one\r\n")
    put(top, b"sub/new.txt", b"one\r\n")
    put(top, b"sub/.gitattributes2", b"x")
    same(top, tmp_path)


def test_a_users_filter_is_not_run_for_what_goes_in(top: Path, tmp_path: Path, home: Path) -> None:
    """Clean files go as git stores them; the filter is unknown inside."""
    (home / ".gitconfig").write_text('[filter "upper"]\n\tclean = tr a-z A-Z\n\tsmudge = tr A-Z a-z\n')
    put(top, b".gitattributes", b"*.up filter=upper\n")
    put(top, b"clean.up", b"text\n")
    put(top, b"dirty.up", b"text\n")
    commit(top, "filtered")
    put(top, b"dirty.up", b"changed text\n")
    session = bring_in(top, tmp_path / "room")
    assert (session.workspace / "clean.up").read_bytes() == b"TEXT\n"
    assert (session.workspace / "dirty.up").read_bytes() == b"changed text\n"
    assert status_inside(session) == status(top)
    assert any("filter" in warning and "dirty.up" in warning for warning in session.warnings)
    assert_unchanged_is_identical(session)


def test_a_file_mode_that_the_user_ignores(top: Path, tmp_path: Path) -> None:
    put(top, b"tool")
    (top / "tool").chmod(0o755)
    put(top, b"plain")
    commit(top, "tool")
    git(top, "config", "core.fileMode", "false")
    (top / "tool").chmod(0o644)
    (top / "plain").chmod(0o755)
    put(top, b"tool", b"changed\n")
    session = bring_in(top, tmp_path / "room")
    assert status_inside(session) == status(top)
    assert os.access(session.workspace / "tool", os.X_OK)
    assert_unchanged_is_identical(session)


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_object_formats(tmp_path: Path, object_format: str) -> None:
    top = make(tmp_path / object_format, f"--object-format={object_format}")
    put(top, b"gone")
    commit(top, "gone")
    (top / "gone").unlink()
    git(top, "rm", "-q", "--cached", "README")
    put(top, b"new")
    git(top, "add", "new")
    same(top, tmp_path)


def test_a_linked_worktree_brings_its_own_changes(top: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    git(top, "worktree", "add", "-q", "-b", "side", str(linked))
    put(top, b"main-only")
    put(linked, b"new")
    git(linked, "add", "new")
    before = digest(top)
    session = same(linked, tmp_path)
    assert digest(top) == before
    assert session.state.top.branch == "side"
    assert inside(session, "branch", "--format=%(refname)") == b"refs/heads/side\n"


def test_a_checked_out_file_that_was_edited_while_copying_is_hashed_as_copied(
    top: Path, tmp_path: Path
) -> None:
    """D14: what is hashed is what is sent; the user goes on editing."""
    put(top, b"busy", b"version 1")
    session = bring_in(top, tmp_path / "room")
    put(top, b"busy", b"version 2 ")
    assert (session.workspace / "busy").read_bytes() == b"version 1"
    assert_unchanged_is_identical(session)


def test_an_unreadable_file_stays_home(top: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    put(top, b"secret")
    (top / "secret").chmod(0)
    session = bring_in(top, tmp_path / "room")
    assert any("secret" in warning for warning in session.warnings)


def test_nothing_is_left_of_a_start_that_failed(top: Path, tmp_path: Path) -> None:
    put(top, b"staged")
    git(top, "add", "staged")
    blob = git(top, "rev-parse", ":staged").decode().strip()
    (top / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(RepositoryError, match="missing"):
        bring_in(top, tmp_path / "room")
    assert list((tmp_path / "room" / "start").iterdir()) == []
