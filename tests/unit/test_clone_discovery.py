"""Which repository the user stands in, and which ones can't be used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from clsecure.errors import RepositoryError
from clsecure.workspace import changes, clone
from clsecure.workspace.repository import discover, project_name, public_url
from tests.support.clone_in import commit, digest, git, make


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "user home"
    place.mkdir()
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return place


def test_a_subdirectory_belongs_to_its_repository(tmp_path: Path) -> None:
    top = make(tmp_path / "My Project")
    (top / "a" / "b").mkdir(parents=True)
    found = discover(top / "a" / "b")
    assert (found.top, found.git_dir, found.branch) == (top, top / ".git", "main")
    assert found.project == "my-project"
    assert found.head == git(top, "rev-parse", "HEAD").decode().strip()
    assert (found.user_name, found.user_email) == ("Ada", "ada@example.org")


def test_a_linked_worktree_has_its_own_head(tmp_path: Path) -> None:
    top = make(tmp_path / "p")
    git(top, "worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"))
    found = discover(tmp_path / "linked")
    assert (found.top, found.branch) == (tmp_path / "linked", "side")
    assert found.common_dir == top / ".git"
    assert found.git_dir == top / ".git" / "worktrees" / "linked"


def test_a_detached_head_has_no_branch(tmp_path: Path) -> None:
    top = make(tmp_path / "p")
    git(top, "checkout", "-q", "--detach")
    assert discover(top).branch is None


def test_the_environment_does_not_choose_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D32."""
    top, other = make(tmp_path / "mine"), make(tmp_path / "other")
    marker = tmp_path / "marker"
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", f"touch {marker}")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", f"touch {marker}")
    found = discover(top)
    state = clone.prepare(found, tmp_path / "start", full=False)
    assert found.top == top
    assert state.top.source == top
    assert not marker.exists()


def test_discovery_executes_nothing(tmp_path: Path) -> None:
    top = make(tmp_path / "p")
    marker = tmp_path / "marker"
    for key in ("core.fsmonitor", "core.pager", "core.sshCommand", "core.editor", "alias.rev-parse"):
        git(top, "config", key, f"!touch {marker}")
    before = digest(top)
    discover(top)
    assert not marker.exists()
    assert digest(top) == before


def test_a_directory_outside_of_any_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="not in a git repository") as caught:
        discover(tmp_path)
    assert "git init" in str(caught.value.resolution)


def test_a_bare_repository_is_refused(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "b")
    with pytest.raises(RepositoryError, match="bare"):
        discover(tmp_path / "b")


def test_d15_a_directory_of_a_clone_is_not_taken_for_its_git_directory(tmp_path: Path) -> None:
    """Files of a hostile clone look like a git directory whose configuration runs commands."""
    top = make(tmp_path / "p")
    trap, marker = top / "docs" / "build", tmp_path / "marker"
    trap.mkdir(parents=True)
    git(trap, "init", "-q", "--bare", ".")
    for key, value in {
        "core.bare": "false",
        "core.worktree": "..",
        "filter.x.clean": f"sh -c 'echo ran >>{marker}; cat'",
        "core.fsmonitor": f"sh -c 'echo ran >>{marker}'",
    }.items():
        git(trap, "config", "--file", str(trap / "config"), key, value)
    (top / "docs" / ".gitattributes").write_text("* filter=x\n")
    (top / "docs" / "a.txt").write_text("a\n")
    environment = {"GIT_DIR": str(trap), "GIT_WORK_TREE": str(top / "docs")}
    git(top / "docs", "add", "a.txt", env=environment)
    (top / "docs" / "a.txt").write_text("b\n")
    marker.unlink()  # it was there: the trap is armed
    for place in (trap, trap / "refs"):
        with pytest.raises(RepositoryError, match="bare repository"):
            discover(place)
    assert changes.look(discover(top / "docs")).untracked
    assert not marker.exists()


def test_the_git_directory_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="inside a git directory"):
        discover(make(tmp_path / "p") / ".git" / "refs")


def test_an_unborn_head_is_refused(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "p")
    with pytest.raises(RepositoryError, match="no commit yet") as caught:
        discover(tmp_path / "p")
    assert "git commit" in str(caught.value.resolution)


def test_a_missing_head_commit_is_no_unborn_head(tmp_path: Path) -> None:
    top = make(tmp_path / "p")
    head = git(top, "rev-parse", "HEAD").decode().strip()
    (top / ".git" / "objects" / head[:2] / head[2:]).unlink()
    with pytest.raises(RepositoryError, match="missing"):
        discover(top)


@pytest.mark.parametrize("clone_filter", ["blob:none", "tree:0"])
def test_a_partial_clone_with_missing_objects_is_refused_and_never_fetched(
    tmp_path: Path, clone_filter: str
) -> None:
    origin = make(tmp_path / "origin")
    (origin / "README").write_text("two\n")
    commit(origin, "second")
    git(origin, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "-q", "--no-checkout", f"--filter={clone_filter}", f"file://{origin}", "part")
    top = tmp_path / "part"
    before = digest(top / ".git")
    with pytest.raises(RepositoryError, match="partial clone") as caught:
        clone.prepare(discover(top), tmp_path / "start", full=True)
    assert "--refetch" in str(caught.value.resolution)
    assert digest(top / ".git") == before
    assert list((tmp_path / "start").iterdir()) == []


def test_a_repository_of_somebody_else_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a directory away")
    top = make(tmp_path / "p")
    for path in (top, top / ".git"):
        os.chown(path, 12345, 12345)
    with pytest.raises(RepositoryError, match="somebody else") as caught:
        discover(top)
    assert "safe.directory" in str(caught.value.resolution)


def test_a_directory_reached_through_a_descriptor_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A8."""
    top = make(tmp_path / "p")
    descriptor = os.open(top, os.O_RDONLY)
    try:
        way = f"/proc/self/fd/{descriptor}"
        with pytest.raises(RepositoryError, match="can't be reached"):
            discover(Path(way))
        monkeypatch.setenv("PWD", way)
        with pytest.raises(RepositoryError, match="can't be reached"):
            discover(top)
    finally:
        os.close(descriptor)


def test_a_removed_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="can't be reached"):
        discover(tmp_path / "gone")


def test_a_control_character_in_the_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="control character"):
        discover(make(tmp_path / "a\nb"))


@pytest.mark.parametrize(
    "name",
    ["with space", "quote\"d'", "semi;colon", "col:on", "back\\slash", "-dash", "ümlaut", "#x", "$(id)"],
)
def test_odd_directory_names_work(tmp_path: Path, name: str) -> None:
    top = make(tmp_path / name)
    (top / "new").write_text("n")
    state = clone.prepare(discover(top), tmp_path / "start", full=False)
    assert state.top.source == top


def test_a_damaged_object_is_named_and_nothing_is_left_behind(tmp_path: Path) -> None:
    top = make(tmp_path / "p")
    blob = git(top, "rev-parse", "HEAD:README").decode().strip()
    (top / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(RepositoryError, match="missing") as caught:
        clone.prepare(discover(top), tmp_path / "start", full=False)
    assert "fsck" in str(caught.value.resolution)
    assert list((tmp_path / "start").iterdir()) == []


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("https://github.com/a/b.git", "https://github.com/a/b.git"),
        ("https://user:token@github.com/a/b.git", "https://github.com/a/b.git"),
        ("https://token@github.com:8443/a", "https://github.com:8443/a"),
        ("https://a:b@c@host/x", "https://host/x"),
        ("https://host/x?token=abc#frag", "https://host/x"),
        ("ssh://git@host:22/a", "ssh://host:22/a"),
        ("git@github.com:a/b.git", "github.com:a/b.git"),
        ("user:token@host:a", None),
        ("/srv/git/a.git", "/srv/git/a.git"),
        ("../sibling", "../sibling"),
        ("file:///srv/git/a.git", "file:///srv/git/a.git"),
        ("ext::sh -c touch% /tmp/x", None),
        ("fd::17/foo", None),
        ("codecommit::eu://profile@x", None),
        ("-oProxyCommand=x", None),
        ("https:///x", None),
        ("https://ho\nst/x", None),
        ("https://[bad/x", None),
    ],
)
def test_remotes_lose_their_user_information(url: str, public: str | None) -> None:
    assert public_url(url) == public


def test_project_names_are_plain() -> None:
    assert project_name(Path("/x/Ü..__A b")) == "a-b"
    assert project_name(Path("/x/日本")) == "project"


def test_the_last_word_on_hooks_is_the_repositorys(tmp_path: Path, home: Path) -> None:
    top = make(tmp_path / "p")
    shutil.rmtree(top / ".git" / "hooks", ignore_errors=True)
    assert discover(top).hooks is None
    (home / "hooks").mkdir()
    (home / ".gitconfig").write_text("[core]\n\thooksPath = ~/hooks\n")
    assert discover(top).hooks == home / "hooks"
    (top / "own").mkdir()
    git(top, "config", "core.hooksPath", "own")
    assert discover(top).hooks == top / "own"
