"""The user's repository, found from where they stand. Reading only; nothing of the repository is executed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from clsecure import process
from clsecure.errors import RepositoryError
from clsecure.git import Git
from clsecure.git import discover as ask_git

_QUESTIONS = (
    "--path-format=absolute",
    "--is-bare-repository",
    "--is-inside-work-tree",
    "--show-object-format",
    "--is-shallow-repository",
    "--git-dir",
    "--git-common-dir",
    "--show-toplevel",
)
_ANSWERS = len(_QUESTIONS) - 1
_MAX_REMOTES = 50
_MAX_URL = 500  # fifty of them fit into one record of the stream
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_REMOTE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """One repository of the user's: the top one, or a submodule that has its files.

    :param top: the work tree, resolved.
    :param git_dir: the git directory of this work tree (of a linked one: ``.git/worktrees/NAME``).
    :param common_dir: where objects and refs are.
    :param head: commit id of HEAD.
    :param branch: its short name, None when detached.
    :param project: the directory's name in ``[a-z0-9-]``, for names of accounts, sessions and branches.
    :param remotes: name to URL without user information.
    :param hooks: the directory of the hooks that git runs here, when there is one.
    :param partial: objects may be missing because a promisor remote is to deliver them.
    """

    top: Path
    git_dir: Path
    common_dir: Path
    head: str
    branch: str | None
    object_format: str
    shallow: bool
    partial: bool
    project: str
    user_name: str | None = None
    user_email: str | None = None
    remotes: Mapping[str, str] = field(default_factory=dict)
    submodule_urls: Mapping[str, str] = field(default_factory=dict)
    hooks: Path | None = None
    lfs_store: Path
    file_mode: bool = True

    @property
    def objects(self) -> Path:
        """The object store."""
        return self.common_dir / "objects"

    @property
    def identity(self) -> tuple[str, str]:
        """The name and address that commits of a session carry: the user's, where git knows them."""
        return self.user_name or "clsecure", self.user_email or "clsecure@localhost"

    def git(self) -> Git:
        """git on this repository as the user knows it, but for what :mod:`clsecure.git` switches off."""
        return _users_git(self.git_dir, self.top)


def discover(cwd: Path) -> Repository:
    """Find the repository that ``cwd`` is in.

    The environment's GIT_* variables do not count; of the configuration, only what names things.

    :raises RepositoryError: there is none, or it can't be used; the resolution says what to do.
    """
    start = _reachable(cwd)
    asked = ask_git(start, *_QUESTIONS)
    answers = asked.stdout.decode("utf-8", "surrogateescape").split("\n")[:-1]
    words = asked.stderr.decode("utf-8", "replace")
    if answers[1:2] != ["true"] and (".git" in start.parts or answers[:1] == ["false"]):
        raise RepositoryError(
            f"{start} is inside a git directory, not in a work tree",
            resolution="Change to the directory that holds your files",
        )
    if "bare repository" in words or answers[:1] == ["true"]:
        raise RepositoryError(
            f"{start} is in a bare repository",
            details="or in a directory that only looks like one, as it may come with a clone",
            resolution="Run clsecure in a work tree: git clone PATH, or git worktree add DIRECTORY",
        )
    if not answers:
        raise _no_repository(start, words)
    if asked.returncode != 0:
        raise _no_repository(start, words)
    if len(answers) != _ANSWERS or any(_CONTROL.search(answer) for answer in answers):
        raise RepositoryError(
            "The path of this repository holds a control character",
            details=repr(os.fsencode(start)),
            resolution="Rename the directory",
        )
    git_dir, common_dir, top = (Path(answer) for answer in answers[4:7])
    git = _users_git(git_dir, top)
    settings = _Settings(git)
    head, branch = _head(git, partial=settings.partial)
    hooks = settings.hooks(top, common_dir)
    return Repository(
        top=top,
        git_dir=git_dir,
        common_dir=common_dir,
        head=head,
        branch=branch,
        object_format=answers[2],
        shallow=answers[3] == "true",
        partial=settings.partial,
        project=project_name(top),
        user_name=settings.last("user.name") or None,
        user_email=settings.last("user.email") or None,
        remotes=settings.remotes(),
        submodule_urls=settings.submodule_urls(),
        hooks=hooks if hooks.is_dir() else None,
        lfs_store=settings.lfs_store(common_dir),
        file_mode=settings.last("core.filemode") not in {"false", "no", "off", "0"},
    )


def project_name(top: Path) -> str:
    """Return the directory's name, reduced to ``[a-z0-9-]``; ``project`` when nothing is left of it."""
    return re.sub(r"[^a-z0-9]+", "-", top.name.lower()).strip("-")[:40].strip("-") or "project"


def public_url(url: str) -> str | None:
    """Return a remote's URL without user information, query and fragment; None when it can't be kept.

    A helper (``ext::sh -c …``) is a command, and a token may be anywhere in its words.
    """
    if not url or len(url) > _MAX_URL or url.startswith("-") or _CONTROL.search(url):
        return None
    if re.match(r"[A-Za-z0-9+.-]+::", url):
        return None
    if "://" in url:
        try:
            parts = urlsplit(url)
        except ValueError:
            return None
        host = parts.netloc.rpartition("@")[2]
        if "@" in parts.path.partition("/")[0] or (not host and parts.scheme != "file"):
            return None
        return urlunsplit((parts.scheme, host, parts.path, "", ""))
    # host:path of ssh; a path with a slash before the first colon is a file's.
    before, colon, after = url.partition(":")
    if colon and "/" not in before:
        if "@" in after:
            return None
        return f"{before.rpartition('@')[2]}:{after}"
    return url


def _users_git(git_dir: Path, top: Path) -> Git:
    # A filter driver of the user's may be anywhere on their PATH, but nothing found in the current directory.
    own = [p for p in os.environ.get("PATH", "").split(":") if p.startswith("/")]
    return Git(
        git_dir=git_dir,
        work_tree=top,
        user_config=True,
        extra_env={"GIT_ALLOW_PROTOCOL": "none", "PATH": ":".join([process.SYSTEM_PATH, *own])},
    )


def _reachable(cwd: Path) -> Path:
    """Return the resolved directory, refusing one that the user can't get at by its own name.

    A directory inherited as a descriptor (``cd /proc/self/fd/8``) may be one that permissions keep from them.
    """
    refused = RepositoryError(
        "The current directory can't be reached by its path", resolution="Change to a directory by its name"
    )
    logical = os.environ.get("PWD", "")
    try:
        here = os.stat(cwd)  # noqa: PTH116  # compared with what the path leads to
        if cwd.is_absolute() and cwd.parts[:2] == ("/", "proc"):
            raise refused
        if logical.startswith("/proc/") and os.path.samestat(here, Path(logical).stat()):
            raise refused
        resolved = cwd.resolve(strict=True)
        named = os.stat(resolved)  # noqa: PTH116
    except OSError as error:
        raise refused from error
    if not os.path.samestat(here, named) or not stat.S_ISDIR(named.st_mode):
        raise refused
    return resolved


def _no_repository(start: Path, words: str) -> RepositoryError:
    if "dubious ownership" in words:
        return RepositoryError(
            f"The repository at {start} belongs to somebody else",
            details="git refuses it, since its configuration could run commands as you",
            resolution=f"If you trust its owner: git config --global --add safe.directory {start}",
        )
    if "not a git repository" in words:
        return RepositoryError(
            f"{start} is not in a git repository",
            resolution="Change to your project, or make it one: git init && git add -A && git commit",
        )
    return RepositoryError(
        f"git can't use the repository at {start}", details=words.strip(), resolution="Try: git status"
    )


def _head(git: Git, *, partial: bool) -> tuple[str, str | None]:
    named = git.run("symbolic-ref", "--quiet", "HEAD")
    ref = named.stdout.decode("utf-8", "surrogateescape").rstrip("\n") if named.returncode == 0 else None
    branch = ref.removeprefix("refs/heads/") if ref is not None and ref.startswith("refs/heads/") else None
    found = git.run("rev-parse", "--quiet", "--verify", "--end-of-options", "HEAD")
    head = found.stdout.decode("ascii", "replace").strip()
    if found.returncode != 0 or not head:
        if ref is not None and git.run("show-ref", "--quiet", "--verify", ref).returncode != 0:
            raise RepositoryError(
                "The repository has no commit yet",
                resolution="Make one: git commit --allow-empty -m start",
            )
        raise RepositoryError("HEAD of the repository is damaged", resolution="Look at: git fsck")
    if git.run("cat-file", "-e", f"{head}^{{commit}}").returncode != 0:
        raise missing_objects(partial=partial)
    return head, branch


def missing_objects(*, partial: bool) -> RepositoryError:
    """Return the error for objects that are not there. They are never fetched."""
    if partial:
        return RepositoryError(
            "The repository is a partial clone, and objects that the session needs are missing",
            details="clsecure never fetches",
            resolution="Fetch them: git fetch --refetch --no-filter",
        )
    return RepositoryError("Objects of the repository are missing", resolution="Look at: git fsck")


class _Settings:
    """The user's effective configuration of a repository, without what clsecure sets itself."""

    def __init__(self, git: Git) -> None:
        self._values: dict[str, list[str]] = {}
        words = (
            git.out("config", "--list", "-z", "--show-scope").decode("utf-8", "surrogateescape").split("\0")
        )
        for scope, entry in zip(words[0::2], words[1::2], strict=False):
            if scope == "command":
                continue
            key, _, value = entry.partition("\n")
            self._values.setdefault(key, []).append(value)

    def last(self, key: str) -> str | None:
        """Return the value that counts: the last one."""
        return self._values[key][-1] if key in self._values else None

    @property
    def partial(self) -> bool:
        return "extensions.partialclone" in self._values or any(
            key.startswith("remote.") and key.endswith((".promisor", ".partialclonefilter"))
            for key in self._values
        )

    def hooks(self, top: Path, common_dir: Path) -> Path:
        """Return where git looks for hooks: core.hooksPath, the repository's own word last, or .git/hooks."""
        value = self.last("core.hookspath")
        if not value:
            return common_dir / "hooks"
        return top / os.path.expanduser(value)  # noqa: PTH111  # git's own rule for ~ and ~user

    def lfs_store(self, common_dir: Path) -> Path:
        """Return the directory that holds LFS objects."""
        return common_dir / (self.last("lfs.storage") or "lfs") / "objects"

    def remotes(self) -> dict[str, str]:
        return self._urls("remote.")

    def submodule_urls(self) -> dict[str, str]:
        return self._urls("submodule.")

    def _urls(self, section: str) -> dict[str, str]:
        kept: dict[str, str] = {}
        for key, values in self._values.items():
            if not (key.startswith(section) and key.endswith(".url")):
                continue
            name = key[len(section) : -len(".url")]
            url = public_url(values[0])
            if url is None:
                continue
            if section == "remote." and (len(kept) >= _MAX_REMOTES or not _REMOTE_NAME.fullmatch(name)):
                continue
            kept[name] = url
        return kept
