"""The one further reference that an import may write: a git note on the tip that names the session's record.

As with the branch, no git process writes objects into the user's repository: they are made in a repository of
the tool's own, and come as one complete pack. The one writer is ``git update-ref``, without hooks, and only
where the reference still is what it was.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from clsecure.errors import RepositoryError, ToolError
from clsecure.git import Git, init_bare
from clsecure.importer.promote import copy_in
from clsecure.terminal import escape

REF = "refs/notes/clsecure"
_MESSAGE = "Notes added by clsecure"
_MOST = 64 << 10
_ATTEMPTS = 3


def write_note(git_dir: Path, commit: str, text: bytes) -> None:
    """Add a text to the note of a commit. Notes of others, and what else stands in this one, stay.

    :param git_dir: the user's repository.
    :param text: whole lines; where the note has them already, nothing is done.
    :raises RepositoryError: the reference is something that git notes would not have made.
    :raises ToolError: it could not be written, or somebody else wrote there each time.
    """
    user = Git(git_dir=git_dir, user_config=True)
    common = Path(user.text("rev-parse", "--git-common-dir"))
    common = common if common.is_absolute() else git_dir / common
    for _ in range(_ATTEMPTS):
        old = _current(user)
        with tempfile.TemporaryDirectory(prefix="clsecure-") as place:
            new = _made(Path(place), common, old, commit, text)
        if new is None or _updated(user, new, old):
            return
    raise ToolError(f"somebody else keeps writing {REF}", resolution="The import itself is done")


def _current(user: Git) -> str | None:
    """Return the commit that the reference names; None without one."""
    if user.run("symbolic-ref", "--quiet", REF).returncode == 0:
        raise RepositoryError(
            f"{REF} stands for another reference",
            details="Writing there would change that one.",
            resolution=f"git symbolic-ref --delete {REF}",
        )
    listed = user.text("for-each-ref", "--format=%(refname) %(objecttype) %(objectname)", REF).splitlines()
    for name, kind, found in (line.split(" ") for line in listed):
        if name == REF and kind != "commit":
            raise RepositoryError(f"{REF} names no commit", resolution=f"git update-ref -d {REF}")
        if name == REF:
            return found
    return None


def _made(place: Path, common: Path, old: str | None, commit: str, text: bytes) -> str | None:
    """Make the commit of the notes and bring it into the user's object store; None where all is there."""
    object_format = "sha1" if len(commit) == 40 else "sha256"
    git = replace(
        init_bare(place / "notes.git", object_format=object_format, alternates=common / "objects"),
        extra_env={"GIT_INDEX_FILE": str(place / "index")},
    )
    if old is not None:
        git.out("read-tree", f"{old}^{{tree}}")
    path, before = _note(git, commit)
    if text in before:
        return None
    # What stood there is followed by a blank line, as git notes append does it.
    whole = before.rstrip(b"\n") + b"\n\n" + text if before else text
    blob = git.out("hash-object", "-w", "--stdin", input=whole).decode().strip()
    git.out("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}")
    tree = git.text("write-tree")
    parents = () if old is None else ("-p", old)
    new = git.text("commit-tree", *parents, "-m", _MESSAGE, tree)
    wanted = f"{new}\n" + (f"^{old}\n" if old else "")
    name = git.out(
        "pack-objects", "--revs", "--quiet", "--delta-base-offset", str(place / "pack"), input=wanted.encode()
    ).decode("ascii").strip()  # fmt: skip
    store = common / "objects" / "pack"
    store.mkdir(exist_ok=True)
    for suffix in ("pack", "idx"):
        copy_in(place / f"pack-{name}.{suffix}", store / f"pack-{name}.{suffix}")
    return new


def _note(git: Git, commit: str) -> tuple[str, bytes]:
    """Return where the note of a commit stands, by git's fan-out into directories, and what it says."""
    paths = [
        "/".join([*(commit[2 * n : 2 * n + 2] for n in range(depth)), commit[2 * depth :]])
        for depth in range(len(commit) // 2)
    ]
    found = git.out("ls-files", "--stage", "-z", "--", *paths).split(b"\0")[0]
    if not found:
        return commit, b""
    entry, path = found.split(b"\t", 1)
    mode, blob, _ = entry.decode("ascii").split(" ")
    if mode not in ("100644", "100755") or int(git.text("cat-file", "-s", blob)) > _MOST:
        raise RepositoryError(f"the note of {commit} in {REF} is none that could be added to")
    return path.decode("ascii"), git.out("cat-file", "blob", blob)


def _updated(user: Git, new: str, old: str | None) -> bool:
    """Move the reference; tell whether it was what it had been."""
    step = f"create {REF}\0{new}\0" if old is None else f"update {REF}\0{new}\0{old}\0"
    done = user.run(
        "-c", "core.logAllRefUpdates=false", "update-ref", "-m", "clsecure: note", "--stdin", "-z",
        input=f"option no-deref\0{step}".encode(),
    )  # fmt: skip
    if done.returncode == 0:
        return True
    if _current(user) != old:
        return False
    words = escape(done.stderr[-2000:], keep_newlines=True).strip()
    raise ToolError(f"git could not write {REF}", details=words)
