"""Clone in: make the start state of a session from the user's repository, which is only read.

In the directory, per unit: ``N/base.git`` (what was cloned in), ``N/files`` (a copy of every uncommitted
file) and ``N/sent.json`` (what :mod:`clsecure.workspace.stream` sends besides the packs).
"""

from __future__ import annotations

import json
import shutil
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path

from clsecure.errors import RepositoryError, ToolError
from clsecure.git import Git
from clsecure.model import StartState, StartUnit
from clsecure.workspace import changes, snapshot, trees
from clsecure.workspace.base import DEFAULT_DEPTH, lend, make_base, pack
from clsecure.workspace.lfs import LfsObject
from clsecure.workspace.repository import Repository, discover
from clsecure.workspace.snapshot import SYMLINK, Snapshot, name_some

_MAX_UNITS = 500
Progress = Callable[[str], None]


def prepare(
    repository: Repository, directory: Path, *, full: bool, progress: Progress | None = None
) -> StartState:
    """Copy what the session may see into ``directory``, which is made (0700) or must be empty.

    :param full: the whole history of HEAD instead of the last 50 generations.
    :param progress: told what is going on.
    :raises RepositoryError: objects are missing, or there are too many submodules.
    :raises ToolError: git failed or there is no room; ``directory`` is left empty.
    """
    tell = progress or (lambda _: None)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        if any(directory.iterdir()):
            raise ToolError(f"{directory} is not empty")
    except OSError as error:
        raise ToolError(f"{directory} can't be made", details=str(error)) from error
    clone = _Clone(directory, depth=None if full else DEFAULT_DEPTH, tell=tell)
    try:
        clone.add(repository, path=b"", name="")
    except BaseException as error:
        for left in directory.iterdir():
            shutil.rmtree(left, ignore_errors=True)
        if isinstance(error, OSError):
            raise ToolError("The repository can't be copied", details=str(error)) from error
        raise
    return StartState(units=tuple(clone.units), warnings=tuple(clone.warnings))


def forget_files(state: StartState) -> None:
    """Remove the copies of uncommitted files, once they are inside. The start state stays."""
    for unit in state.units:
        shutil.rmtree(unit.base.with_name("files"), ignore_errors=True)


class _Clone:
    def __init__(self, directory: Path, *, depth: int | None, tell: Progress) -> None:
        self._directory = directory
        self._depth = depth
        self._tell = tell
        self.units: list[StartUnit] = []
        self.warnings: list[str] = []

    def add(self, repository: Repository, *, path: bytes, name: str) -> None:
        """Make a unit, and after it those of its submodules."""
        if len(self.units) >= _MAX_UNITS:
            raise RepositoryError(f"The repository has more than {_MAX_UNITS} submodules")
        where = path.decode("utf-8", "backslashreplace")
        room = self._directory / str(len(self.units))
        (room / "files").mkdir(parents=True)
        self._tell(f"copying the history of {where or repository.project}")
        base = make_base(repository, room / "base.git", depth=self._depth)
        self._tell(f"copying the changes of {where or repository.project}")
        changed = changes.look(repository)
        found = snapshot.take(repository, changed, room / "files")
        staged = trees.StagedIndex(base, room, object_format=repository.object_format)
        staged.fill(repository.head, changed.staged)
        borrowed = _borrow(base, repository, changed)
        submodules = self._submodules(repository, staged, path)
        made = trees.work_tree(
            staged, changed, found, {p: sub.head for p, sub in submodules.items()}, room / "files"
        )
        if changed.unmerged:
            staged.put(trees.entries_of(base, made.base, changed.unmerged))
        index_tree = staged.git.text("write-tree")
        _pack_staged(base, repository, index_tree, borrowed)
        _write_list(room / "sent.json", changed, found, made.clean, trees.lfs_objects(staged))
        for file in (staged.file, staged.file.with_name("index.work")):
            file.unlink()
        self.units.append(
            StartUnit(
                path=path,
                name=name,
                source=repository.top,
                source_git_dir=repository.git_dir,
                base=base.git_dir,
                head=repository.head,
                branch=repository.branch,
                base_tree=made.base,
                index_tree=index_tree,
            )
        )
        unmerged = name_some("in conflict, goes as it is in the work tree", sorted(changed.unmerged))
        prefix = f"{where}: " if where else ""
        self.warnings += [prefix + text for text in (*found.warnings, *made.warnings, *unmerged)]
        names = _submodule_names(repository) if submodules else {}
        for relative, sub in submodules.items():
            named = names.get(relative, relative.decode("utf-8", "backslashreplace"))
            self.add(sub, path=path + b"/" + relative if path else relative, name=named)

    def _submodules(
        self, repository: Repository, staged: trees.StagedIndex, path: bytes
    ) -> dict[bytes, Repository]:
        """Return the submodules that have a repository of their own in the work tree."""
        found: dict[bytes, Repository] = {}
        for relative in staged.gitlinks():
            top = repository.top / relative.decode("utf-8", "surrogateescape")
            if top.is_symlink() or not (top / ".git").exists():
                continue
            try:
                sub = discover(top)
                if sub.top != top:
                    raise RepositoryError("its repository is damaged")
            except RepositoryError as error:
                inside = path + b"/" + relative if path else relative
                self.warnings += name_some(f"submodule left out, {error.brief}", [inside])
            else:
                found[relative] = sub
        return found


def _borrow(base: Git, repository: Repository, changed: changes.Changes) -> Path | None:
    """Pack the staged blobs out of the user's store; the base is complete without it afterwards."""
    blobs = {e.oid for e in changed.staged.values() if e is not None and e.mode != changes.GITLINK}
    return pack(lend(base, repository), repository, sorted(blobs), revisions=False) if blobs else None


def _pack_staged(base: Git, repository: Repository, index_tree: str, borrowed: Path | None) -> None:
    """Replace the borrowed pack by one of all that the index needs besides HEAD."""
    committed = base.text("rev-parse", "HEAD^{tree}")
    made = None
    if index_tree != committed:
        made = pack(base, repository, [index_tree, f"^{committed}"], revisions=True)
    if borrowed is not None and borrowed != made:
        for suffix in (".pack", ".idx", ".rev"):
            borrowed.with_suffix(suffix).unlink(missing_ok=True)


def _submodule_names(repository: Repository) -> dict[bytes, str]:
    """Return path to name, from .gitmodules."""
    file = repository.top / ".gitmodules"
    if file.is_symlink() or not file.is_file():
        return {}
    listed = repository.git().run(
        "config", "--no-includes", f"--file={file}", "-z", "--get-regexp", r"^submodule\..*\.path$"
    )
    names = {}
    for entry in listed.stdout.split(b"\0")[:-1]:
        key, _, path = entry.partition(b"\n")
        name = key[len(b"submodule.") : -len(b".path")].decode("utf-8", "surrogateescape")
        names[path.rstrip(b"/")] = name
    return names


def _write_list(
    file: Path,
    changed: changes.Changes,
    found: Snapshot,
    clean: frozenset[bytes],
    objects: Sequence[LfsObject],
) -> None:
    def text(path: bytes) -> str:
        return b64encode(path).decode("ascii")

    kept = {path: entry for path, entry in found.files.items() if path not in clean}
    removed = {*found.gone, *changed.unlinked, *(p for p in changed.unmerged if p not in kept)}
    content = {
        "remove": [text(p) for p in sorted(removed) if p not in kept],
        "files": [
            {"path": text(p), "mode": e.mode, "intent": p in changed.intended}
            for p, e in kept.items()
            if e.mode != SYMLINK
        ],
        "symlinks": [text(p) for p, e in kept.items() if e.mode == SYMLINK],
        "lfs": [{"oid": o.oid, "size": o.size, "path": text(o.path)} for o in objects],
    }
    file.write_text(json.dumps(content), "ascii")
