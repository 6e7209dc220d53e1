"""What the user is shown before the branch is made: all of it, raw, and nothing that acts on the terminal."""

from __future__ import annotations

import hashlib
import time

import pytest

from clsecure.importer.trees import is_dot_git
from clsecure.model import Severity
from tests.support.imports import Session, git, make_repo, tree_files, write


@pytest.fixture
def session(tmp_path):
    return Session.of(tmp_path, make_repo(tmp_path / "repo"))


def findings(session: Session) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in session.review(session.admit()).findings:
        found.setdefault(finding.kind, []).append(finding.path)
    return found


FLAGGED = {
    "git_hook": [".husky/pre-commit", ".githooks/post-checkout", "hooks/pre-push", ".pre-commit-config.yaml"],
    "git_config": [".gitattributes", "sub/.gitattributes", ".gitmodules", ".lfsconfig"],
    "ci": [".github/workflows/ci.yml", ".gitlab-ci.yml", ".circleci/config.yml", "Jenkinsfile"],
    "editor": [
        ".vscode/tasks.json",
        ".vscode/settings.json",
        ".vscode/launch.json",
        ".idea/workspace.xml",
        ".exrc",
    ],
    "agent": [
        ".claude/settings.json",
        ".mcp.json",
        "CLAUDE.md",
        "docs/AGENTS.md",
        ".cursor/rules",
        ".clsecure/config",
    ],
    "shell": [".envrc", "app/.env", ".mise.toml"],
    "container": [".devcontainer/devcontainer.json", "Dockerfile", "docker-compose.yml", "compose.yaml"],
    "package_manager": [
        ".npmrc",
        ".yarnrc.yml",
        ".cargo/config.toml",
        ".bazelrc",
        "gradlew",
        ".mvn/jvm.config",
    ],
    "build": [
        "Makefile",
        "justfile",
        "setup.py",
        "pyproject.toml",
        "tests/conftest.py",
        "build.rs",
        "vite.config.ts",
    ],
    "package_scripts": ["package.json", "web/package.json"],
}


def test_each_file_that_acts_by_itself_is_flagged(session):
    for paths in FLAGGED.values():
        for path in paths:
            content = b'{"scripts": {"postinstall": "x"}}' if path.endswith("package.json") else b"x\n"
            write(session.workspace / path, b"" if path == ".gitmodules" else content)
    found = findings(session)
    for kind, paths in FLAGGED.items():
        assert sorted(found[kind]) == sorted(paths), kind


def test_ordinary_files_are_not_flagged(session):
    for name in (
        "src/main.py",
        "README.md",
        "docs/environment.md",
        "package-lock.json",
        "hooks/use-state.ts",
    ):
        write(session.workspace / name, b"import os\n")
    assert findings(session) == {}


def test_package_scripts_are_flagged_only_when_they_change(tmp_path):
    repo = make_repo(tmp_path / "repo", {"package.json": b'{"scripts": {"test": "x"}, "version": "1"}'})
    session = Session.of(tmp_path, repo)
    write(session.workspace / "package.json", b'{"scripts": {"test": "x"}, "version": "2"}')
    assert findings(session) == {}
    write(session.workspace / "package.json", b"[" * 100_000)
    assert findings(session) == {"package_scripts": ["package.json"]}


@pytest.mark.parametrize(
    "target",
    ["/etc/passwd", "../outside", "dir/../../outside", "../../..", ".git/hooks", "dir/../.GIT/config"],
)
def test_links_that_leave_the_tree_are_flagged(session, target):
    (session.workspace / "link").symlink_to(target)
    assert findings(session) == {"symlink": ["link"]}


def test_links_within_the_tree_are_not_flagged(session):
    (session.workspace / "dir" / "link").symlink_to("../a.txt")
    assert findings(session) == {}


def test_a_bare_repository_among_the_files_is_flagged(session):
    for name in ("HEAD", "objects/x", "refs/x", "config"):
        write(session.workspace / "vendor" / name, b"x")
    assert findings(session)["embedded_repository"] == ["vendor"]


def test_names_that_differ_by_case_are_flagged(session):
    write(session.workspace / "A.txt", b"x")
    write(session.workspace / "DIR" / "c", b"x")
    assert sorted(findings(session)["case_collision"]) == ["a.txt", "dir"]


def test_executable_bits_and_odd_names_are_flagged(session):
    (session.workspace / "a.txt").chmod(0o755)
    write(session.workspace / "x\u202etxt.exe", b"x")
    found = findings(session)
    assert found["executable"] == ["a.txt"]
    assert found["odd_name"] == ["x\\u202etxt.exe"]


# Put together here, so that nobody's scanner takes this file for a leak.
SECRETS = [
    "AKIA" + "ABCDEFGHIJKLMNOP", "ghp_" + "a" * 36, "sk-ant-" + "api03-" + "x" * 40, "glpat-" + "x" * 20,
    "-----BEGIN OPENSSH " + "PRIVATE KEY-----", "https://u:hunter2@" + "example.org/", "npm_" + "a" * 36,
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_on_added_lines_are_flagged_and_not_repeated(session, secret):
    write(session.workspace / "dir" / "b.txt", b"two\nkey = " + secret.encode() + b"\n")
    review = session.review(session.admit())
    assert [(f.kind, f.path, f.severity) for f in review.findings] == [("secret", "dir/b.txt", Severity.HIGH)]
    assert all(secret not in finding.message for finding in review.findings)


def test_secrets_are_found_deep_in_large_changes(session):
    secret = SECRETS[0].encode()
    write(session.workspace / "a-long-line", b"x " * (2 << 20) + b" " + secret + b" " + b"x " * (2 << 20))
    write(session.workspace / "b-many-lines", b"line\n" * 600_000 + secret + b"\n" + b"line\n" * 600_000)
    write(session.workspace / "c", b"++ b/elsewhere\n" + secret + b"\n")
    assert findings(session) == {"secret": ["a-long-line", "b-many-lines", "c"]}


def test_text_that_hides_is_flagged_and_shown(session):
    write(
        session.workspace / "a.txt", "access = 'user\u202e \u2066// admin'\nzero\u200bwidth\n\x1b[2J".encode()
    )
    admitted = session.admit()
    review = session.review(admitted)
    assert {finding.kind for finding in review.findings} == {"hidden_text"}
    shown = b"".join(review.diff()).decode()
    assert "user\\u202e \\u2066// admin" in shown
    assert "zero\\u200bwidth" in shown
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown


@pytest.mark.parametrize(
    "attribute", ["-diff", "binary", "diff=evil", "linguist-generated export-ignore -text"]
)
def test_attributes_hide_nothing_in_the_diff(session, attribute):
    write(session.workspace / ".gitattributes", f"* {attribute}\n".encode())
    write(session.workspace / "a.txt", b"shown anyway\n")
    git(session.workspace, "add", "-A")
    git(session.workspace, "commit", "-qm", "hide")
    assert b"+shown anyway" in b"".join(session.review(session.admit()).diff())


def test_forged_identities_and_dates_are_shown_raw_and_flagged(session):
    work = session.workspace
    write(work / ".mailmap", b"Agent <agent@example.org> <evil@example.org>\n")
    write(work / "a.txt", b"x")
    git(work, "add", "-A")
    forged = {
        "GIT_AUTHOR_NAME": "Y\x1b]0;x\x07ou", "GIT_AUTHOR_EMAIL": "evil@example.org",
        "GIT_AUTHOR_DATE": "2001-01-01T00:00:00 +0000", "GIT_COMMITTER_DATE": "2090-01-01T00:00:00 +0000",
    }  # fmt: skip
    git(work, "commit", "-qm", "sub\u202eject\x1b", env=forged)
    review = session.review(session.admit())
    commit = review.units[0].commits[0]
    assert commit.author == "Y\\x1b]0;x\\x07ou <evil@example.org>"
    assert commit.subject == "sub\\u202eject\\x1b"
    kinds = [finding.kind for finding in review.findings]
    assert kinds.count("identity") == 1
    assert kinds.count("date") == 1


def test_the_summary_counts_against_what_was_cloned_in(tmp_path):
    repo = make_repo(tmp_path / "repo")
    write(repo / "a.txt", b"dirty\n")
    session = Session.of(tmp_path, repo)
    work = session.workspace
    write(work / "dir" / "b.txt", b"two\nthree\nfour\n")
    git(work, "commit", "-qm", "only b", "dir/b.txt")
    (work / "run.sh").unlink()
    write(work / "new", b"1\n2\n")
    review = session.review(session.admit())
    unit = review.units[0]
    assert (unit.commit_count, unit.files_changed, unit.added, unit.deleted) == (1, 3, 1, 1)
    assert (unit.insertions, unit.deletions, unit.untracked) == (4, 1, 1)
    assert b"dirty" not in b"".join(review.diff())


def test_findings_are_bounded(session):
    for number in range(300):
        write(session.workspace / f"d{number}" / "Makefile", b"x")
    review = session.review(session.admit())
    assert len(review.findings) == 51
    assert review.findings[-1].message == "250 more of this kind"


def test_the_diff_is_bounded(session):
    write(session.workspace / "large", b"line\n" * 100_000)
    shown = b"".join(session.review(session.admit()).diff(max_bytes=1000))
    assert len(shown) < 1100
    assert shown.endswith(b"... cut after 1000 bytes\n")


def test_a_line_without_end_is_shown_in_bounded_memory(session):
    write(session.workspace / "long", b"x" * (5 << 20))
    began = time.monotonic()
    assert len(b"".join(session.review(session.admit()).diff())) > 5 << 20
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("name", [b".git", b".GiT", b"git~1", b".git...", b".git :x", b".gi\xe2\x80\x8dt"])
def test_spellings_of_dot_git(name):
    assert is_dot_git(name)


@pytest.mark.parametrize("name", [b".gitignore", b".github", b"git", b"git~", b"a.git", b".gitx", b"legit~1"])
def test_names_that_only_look_like_dot_git(name):
    assert not is_dot_git(name)


# ---- LFS ---------------------------------------------------------------------------------------------


def pointer(content: bytes) -> bytes:
    oid = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()


def stored(repo, content: bytes):
    oid = hashlib.sha256(content).hexdigest()
    return repo / ".git" / "lfs" / "objects" / oid[:2] / oid[2:4] / oid


@pytest.fixture
def lfs_session(tmp_path):
    repo = make_repo(
        tmp_path / "repo",
        {
            ".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n",
            "old.bin": pointer(b"old content"),
        },
    )
    write(stored(repo, b"old content"), b"old content")
    session = Session.of(tmp_path, repo)
    write(session.workspace / "old.bin", b"old content")  # as clone-in smudges it
    return session


def test_lfs_files_come_home_as_pointers_with_their_objects(lfs_session):
    session = lfs_session
    assert session.bring_home() is None
    write(session.workspace / "new.bin", b"new content")
    write(session.workspace / "empty.bin", b"")
    (session.workspace / "new.bin").chmod(0o755)
    result = session.bring_home()
    assert result is not None
    files = tree_files(session.repo, result.tip)
    assert files[b"new.bin"] == (0o100755, pointer(b"new content"))
    assert files[b"old.bin"] == (0o100644, pointer(b"old content"))
    assert files[b"empty.bin"] == (0o100644, b"")
    assert stored(session.repo, b"new content").read_bytes() == b"new content"
    objects = [p for p in (session.repo / ".git" / "lfs" / "objects").rglob("*") if p.is_file()]
    assert len(objects) == 2


def test_lfs_files_that_the_agent_committed_whole_are_pointers_again(lfs_session):
    session = lfs_session
    write(session.workspace / "a.txt", b"x")
    git(session.workspace, "add", "-A")
    git(session.workspace, "commit", "-qm", "without git-lfs")
    result = session.bring_home()
    assert result is not None
    assert tree_files(session.repo, result.tip)[b"old.bin"] == (0o100644, pointer(b"old content"))


def test_lfs_objects_that_are_there_are_never_overwritten(lfs_session):
    session = lfs_session
    place = stored(session.repo, b"new content")
    write(place, b"as the user has it")
    write(session.workspace / "new.bin", b"new content")
    assert session.bring_home() is not None
    assert place.read_bytes() == b"as the user has it"


def test_the_users_lfs_driver_is_not_set_off(lfs_session, tmp_path):
    session = lfs_session
    marker = tmp_path / "M"
    for key in ("clean", "smudge", "process"):
        git(session.repo, "config", f"filter.lfs.{key}", f"sh -c 'echo >> {marker}; cat'")
    write(session.workspace / ".gitattributes", b"* filter=lfs\n")
    write(session.workspace / "new.bin", b"new content")
    assert session.bring_home() is not None
    assert not marker.exists()
