"""Submodules and LFS objects come from local copies, never from the network."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from tests.support.clone_in import (
    all_objects,
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

LOCAL = ("-c", "protocol.file.allow=always")
needs_lfs = pytest.mark.skipif(shutil.which("git-lfs") is None, reason="left out: git-lfs is not installed")


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """``p`` has a submodule ``libs/middle``, which has one called ``odd name``."""
    inner, middle, top = make(tmp_path / "inner"), make(tmp_path / "middle"), make(tmp_path / "p")
    git(middle, *LOCAL, "submodule", "add", "-q", str(inner), "odd name")
    commit(middle, "inner")
    git(top, *LOCAL, "submodule", "add", "-q", str(middle), "libs/middle")
    commit(top, "middle")
    git(top, *LOCAL, "submodule", "update", "-q", "--init", "--recursive")
    for place in ("libs/middle", "libs/middle/odd name"):
        git(top / place, "config", "user.name", "Ada")
        git(top / place, "config", "user.email", "ada@example.org")
    shutil.rmtree(inner)
    shutil.rmtree(middle)
    return top


def test_nested_submodules_come_from_the_local_copies(nested: Path, tmp_path: Path) -> None:
    before = digest(nested)
    session = bring_in(nested, tmp_path / "room")
    assert digest(nested) == before
    assert [(u.path, u.name) for u in session.state.units] == [
        (b"", ""),
        (b"libs/middle", "libs/middle"),
        (b"libs/middle/odd name", "odd name"),
    ]
    assert status_inside(session) == set()
    assert (session.workspace / "libs/middle/odd name/README").exists()
    lines = inside(session, "submodule", "status", "--recursive").decode().splitlines()
    assert [line[0] for line in lines] == [" ", " "]
    assert inside(session, "config", "submodule.libs/middle.active") == b"true\n"
    assert_unchanged_is_identical(session)


def test_changes_in_submodules_come_along(nested: Path, tmp_path: Path) -> None:
    middle, inner = nested / "libs/middle", nested / "libs/middle/odd name"
    (inner / "README").write_text("dirty\n")
    (inner / "new").write_text("new\n")
    (middle / "staged").write_text("staged\n")
    git(middle, "add", "staged")
    ahead = commit(inner, "ahead of the superproject")
    (inner / "README").write_text("dirty again\n")
    git(nested, "add", "README")
    expected = {path: status(nested / path) for path in ("", "libs/middle", "libs/middle/odd name")}
    assert expected[""] == {b" M libs/middle"}
    before = digest(nested)
    session = bring_in(nested, tmp_path / "room")
    assert digest(nested) == before
    for path, lines in expected.items():
        assert status_inside(session, path) == lines
    assert inside(session, "rev-parse", "HEAD", path="libs/middle/odd name").decode().strip() == ahead
    assert_unchanged_is_identical(session)


def test_other_branches_of_a_submodule_stay_home(nested: Path, tmp_path: Path) -> None:
    sub = nested / "libs/middle"
    head = git(sub, "rev-parse", "HEAD").decode().strip()
    git(sub, "checkout", "-q", "-b", "other")
    (sub / "x").write_text("CANARY\n")
    commit(sub, "CANARY")
    git(sub, "checkout", "-q", head)
    git(sub, "config", "remote.origin.url", "https://user:CANARY@example.org/m.git")
    git(nested, "config", "submodule.libs/middle.url", "https://user:CANARY@example.org/m.git")
    session = bring_in(nested, tmp_path / "room")
    assert b"CANARY" not in session.sent
    assert b"CANARY" not in all_objects(session, "libs/middle")
    assert inside(session, "config", "submodule.libs/middle.url") == b"https://example.org/m.git\n"


def test_a_submodule_without_its_files_stays_a_link(nested: Path, tmp_path: Path) -> None:
    git(nested, "submodule", "deinit", "-q", "--force", "libs/middle")
    session = bring_in(nested, tmp_path / "room")
    assert len(session.state.units) == 1
    assert status_inside(session) == status(nested)
    assert list((session.workspace / "libs/middle").iterdir()) == []
    assert_unchanged_is_identical(session)


def test_a_removed_submodule_is_removed_inside(nested: Path, tmp_path: Path) -> None:
    shutil.rmtree(nested / "libs/middle")
    assert status(nested) == {b" D libs/middle"}
    session = bring_in(nested, tmp_path / "room")
    assert status_inside(session) == {b" D libs/middle"}
    assert_unchanged_is_identical(session)


def test_a_submodule_replaced_by_a_file(nested: Path, tmp_path: Path) -> None:
    shutil.rmtree(nested / "libs/middle")
    (nested / "libs/middle").write_text("a file now\n")
    session = bring_in(nested, tmp_path / "room")
    assert status_inside(session) == status(nested)
    assert_unchanged_is_identical(session)


def test_a_new_submodule_that_is_only_staged(nested: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other")
    git(nested, *LOCAL, "submodule", "add", "-q", str(other), "vendor/other")
    session = bring_in(nested, tmp_path / "room")
    assert status_inside(session) == status(nested) == {b"A  vendor/other", b"M  .gitmodules"}
    assert session.state.units[-1].name == "vendor/other"
    assert_unchanged_is_identical(session)


@pytest.mark.parametrize("name", ["../../../escape", "a/../../b"])
def test_a_submodules_name_leads_nowhere(tmp_path: Path, name: str) -> None:
    """H5: names from .gitmodules make no path."""
    top, sub = make(tmp_path / "p"), make(tmp_path / "p" / "sub")
    git(sub, "rev-parse", "HEAD")
    (top / ".gitmodules").write_text(f'[submodule "{name}"]\n\tpath = sub\n\turl = ../sub\n')
    git(top, "-c", "advice.addEmbeddedRepo=false", "add", "-A")
    git(top, "commit", "-q", "-m", "sub")
    session = bring_in(top, tmp_path / "room")
    assert (session.workspace / "sub" / ".git").is_dir()
    assert {path.name for path in session.home.iterdir()} == {".gitconfig", "work"}


def pointer(data: bytes) -> bytes:
    oid = hashlib.sha256(data).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()


@pytest.fixture
def large(tmp_path: Path, home: Path) -> Path:
    """A repository with three LFS files, and the user's LFS set up."""
    top = make(tmp_path / "p")
    git(home, "lfs", "install", "--skip-repo")
    (top / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    for name in ("clean", "dirty", "lost"):
        (top / f"{name}.bin").write_bytes(name.encode() * 1000)
    (top / "empty.bin").write_bytes(b"")
    commit(top, "large")
    return top


@needs_lfs
def test_lfs_objects_come_from_the_local_store(large: Path, tmp_path: Path) -> None:
    (large / "dirty.bin").write_bytes(b"changed\r\n" * 1000)
    (large / "new.bin").write_bytes(b"new" * 1000)
    before = digest(large)
    expected = {b" M dirty.bin", b"?? new.bin"}
    session = bring_in(large, tmp_path / "room")
    assert digest(large) == before
    assert session.warnings == ()
    for name in ("clean", "dirty", "new", "lost", "empty"):
        assert (session.workspace / f"{name}.bin").read_bytes() == (large / f"{name}.bin").read_bytes()
    assert status_inside(session) == expected
    base_tree = session.state.top.base_tree
    assert session.base.out("cat-file", "blob", f"{base_tree}:new.bin") == pointer(b"new" * 1000)
    assert_unchanged_is_identical(session)
    (session.workspace / "clean.bin").write_bytes(b"agent\n")
    inside(session, "add", "clean.bin")
    assert inside(session, "cat-file", "blob", ":clean.bin") == pointer(b"agent\n")


@needs_lfs
def test_an_lfs_file_that_was_only_touched_is_clean(large: Path, tmp_path: Path) -> None:
    os.utime(large / "clean.bin", ns=(1, 1))
    session = bring_in(large, tmp_path / "room")
    assert status_inside(session) == set()
    assert session.state.top.base_tree == git(large, "rev-parse", "HEAD^{tree}").decode().strip()
    assert_unchanged_is_identical(session)


@needs_lfs
def test_missing_lfs_objects_are_named_and_stay_pointers(large: Path, tmp_path: Path) -> None:
    data = b"lost" * 1000
    oid = hashlib.sha256(data).hexdigest()
    (large / ".git/lfs/objects" / oid[:2] / oid[2:4] / oid).unlink()
    (large / "lost.bin").write_bytes(pointer(data))
    (large / "secret").write_text("x")
    session = bring_in(large, tmp_path / "room")
    assert [w for w in session.warnings if "LFS" in w and "lost.bin" in w]
    assert (session.workspace / "lost.bin").read_bytes() == pointer(data)
    assert (session.workspace / "clean.bin").read_bytes() == b"clean" * 1000
    assert_unchanged_is_identical(session)


@needs_lfs
def test_lfs_objects_of_other_commits_stay_home(large: Path, tmp_path: Path) -> None:
    git(large, "checkout", "-q", "-b", "other")
    (large / "clean.bin").write_bytes(b"CANARY" * 100)
    commit(large, "other")
    git(large, "checkout", "-q", "main")
    session = bring_in(large, tmp_path / "room")
    assert b"CANARY" not in session.sent
    oid = hashlib.sha256(b"CANARY" * 100).hexdigest()
    assert not list((session.workspace / ".git/lfs").rglob(oid))


def test_lfs_attributes_without_git_lfs_make_pointers_all_the_same(tmp_path: Path) -> None:
    """No filter program is needed on the host."""
    top = make(tmp_path / "p")
    (top / ".gitattributes").write_text("*.bin filter=lfs -text\n")
    commit(top, "attributes")
    (top / "raw.bin").write_bytes(b"raw\r\n" * 10)
    (top / "pointer.bin").write_bytes(pointer(b"elsewhere"))
    session = bring_in(top, tmp_path / "room")
    base_tree = session.state.top.base_tree
    assert session.base.out("cat-file", "blob", f"{base_tree}:raw.bin") == pointer(b"raw\r\n" * 10)
    assert session.base.out("cat-file", "blob", f"{base_tree}:pointer.bin") == pointer(b"elsewhere")
    assert_unchanged_is_identical(session)
