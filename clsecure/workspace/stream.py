"""The stream in: records for ``unpack.py``. The format is in docs/architecture.md."""

from __future__ import annotations

import errno
import json
import os
import stat
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from clsecure.errors import StateError
from clsecure.git import Git
from clsecure.model import HomeFile, StartState, StartUnit
from clsecure.workspace import lfs
from clsecure.workspace.base import shallow_boundary
from clsecure.workspace.repository import Repository, discover
from clsecure.workspace.snapshot import name_some

_CHUNK = 1 << 20
_MAX_HOOKS = 50
_MAX_HOOK = 1 << 20
_MAX_TEXT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What went through, and what could not.

    :param size: bytes written.
    """

    size: int
    warnings: tuple[str, ...]


def stream_in(
    state: StartState | None,
    repository: Repository | None,
    out: BinaryIO,
    *,
    home_files: Sequence[HomeFile] = (),
) -> Sent:
    """Write everything that ``unpack.py`` needs. The files of the start state must not be forgotten yet.

    :param state: None sends the files for the home only.
    :param repository: the user's, for identity, remotes, hooks and the LFS store.
    :raises StateError: the start state is damaged.
    :raises OSError: the other side is gone.
    """
    writer = _Writer(out)
    for file in home_files:
        path = str(file.path)
        writer.data(
            {"type": "home", "path": _b64(path), "mode": f"{file.mode:o}", "keep": file.keep}, file.data
        )
    if state is not None:
        known: dict[bytes, Repository] = {}
        for unit in state.units:
            own = repository if repository is not None and not known else discover(unit.source)
            rules = {} if unit.path else state.rules
            _Unit(writer, unit, own, url=_submodule_url(unit, own, known), rules=rules).send()
            known[unit.path] = own
    writer.data({"type": "end"}, b"")
    out.flush()
    return Sent(size=writer.size, warnings=tuple(writer.warnings))


class _Writer:
    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.size = 0
        self.warnings: list[str] = []

    def data(self, record: dict[str, Any], data: bytes) -> None:
        line = json.dumps({**record, "size": len(data)}).encode("ascii") + b"\n"
        self._out.write(line)
        self._out.write(data)
        self.size += len(line) + len(data)

    def file(self, record: dict[str, Any], descriptor: int) -> None:
        """Send a whole file and close it; its size now is what counts."""
        with open(descriptor, "rb", buffering=0) as file:
            size = os.fstat(descriptor).st_size
            line = json.dumps({**record, "size": size}).encode("ascii") + b"\n"
            self._out.write(line)
            left = size
            while left:
                chunk = file.read(min(left, _CHUNK))
                if not chunk:
                    raise StateError("A file of the start state became shorter while it was read")
                self._out.write(chunk)
                left -= len(chunk)
            self.size += len(line) + size


def _submodule_url(unit: StartUnit, own: Repository, known: Mapping[bytes, Repository]) -> str | None:
    """Return where the submodule comes from: as its superproject says, or else as it says itself."""
    if not unit.path:
        return None
    path = unit.path
    while path:
        path = path.rpartition(b"/")[0]
        if path in known and unit.name in known[path].submodule_urls:
            return known[path].submodule_urls[unit.name]
    return own.remotes.get("origin")


class _Unit:
    def __init__(
        self,
        writer: _Writer,
        unit: StartUnit,
        repository: Repository,
        *,
        url: str | None,
        rules: Mapping[str, object],
    ) -> None:
        self._writer = writer
        self._unit = unit
        self._repository = repository
        self._url = url
        self._rules = rules
        self._files = unit.base.with_name("files")

    def send(self) -> None:
        try:
            sent = json.loads(self._unit.base.with_name("sent.json").read_bytes())
            removed = [b64decode(path) for path in sent["remove"]]
            links = [b64decode(path) for path in sent["symlinks"]]
            files = [(b64decode(f["path"]), str(f["mode"]), bool(f["intent"])) for f in sent["files"]]
            objects = [
                lfs.LfsObject(oid=str(o["oid"]), size=int(o["size"]), path=b64decode(o["path"]))
                for o in sent["lfs"]
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StateError("The start state of the session is damaged", details=str(error)) from error
        hooks_path = self._tracked_hooks()
        self._header(hooks_path, uses_lfs=bool(objects))
        self._packs()
        if hooks_path is None:
            for name, hook in self._hooks():
                self._writer.file({"type": "hook", "name": name, "mode": "755"}, _open_regular(hook))
        self._lfs(objects)
        for path in removed:
            self._writer.data({"type": "remove", "path": _b64(path)}, b"")
        place: bytes = os.fsencode(self._files)
        try:
            for path, mode, intent in files:
                record = {"type": "file", "path": _b64(path), "mode": mode, "intent": intent}
                self._writer.file(record, _open_regular(place + b"/" + path))
            for path in links:
                target = os.readlink(place + b"/" + path)  # noqa: PTH115  # bytes
                self._writer.data({"type": "symlink", "path": _b64(path)}, target)
        except FileNotFoundError as error:
            raise StateError("The copies of the uncommitted files are gone", details=str(error)) from error
        if self._rules:
            self._writer.data({"type": "portable"}, json.dumps(self._rules).encode("ascii"))

    def _header(self, hooks_path: str | None, *, uses_lfs: bool) -> None:
        unit, repository = self._unit, self._repository
        record = {
            "type": "unit",
            "path": _b64(unit.path),
            "name": unit.name,
            "head": unit.head,
            "branch": unit.branch,
            "object_format": repository.object_format,
            "index_tree": unit.index_tree,
            "remotes": dict(repository.remotes),
            "user_name": (repository.user_name or "")[:_MAX_TEXT] or None,
            "user_email": (repository.user_email or "")[:_MAX_TEXT] or None,
            "url": self._url,
            "hooks_path": hooks_path,
            "lfs": uses_lfs,
        }
        self._writer.data(record, b"")
        shallow = shallow_boundary(unit.base)
        if shallow:
            self._writer.data({"type": "shallow"}, shallow)

    def _packs(self) -> None:
        for pack in sorted((self._unit.base / "objects" / "pack").glob("pack-*.pack")):
            index = pack.with_suffix(".idx")
            self._writer.file({"type": "pack", "name": pack.name}, _open_regular(pack))
            self._writer.file({"type": "idx", "name": index.name}, _open_regular(index))

    def _tracked_hooks(self) -> str | None:
        """Return the hooks directory relative to the work tree when it comes along with the files."""
        hooks = self._repository.hooks
        if hooks is None or not hooks.is_relative_to(self._repository.top):
            return None
        relative = hooks.relative_to(self._repository.top).as_posix()
        if relative.startswith(".git/"):
            return None
        base = Git(git_dir=self._unit.base)
        kind = base.run("cat-file", "-t", f"{self._unit.index_tree}:{relative}")
        return relative if kind.stdout.strip() == b"tree" and len(relative) < _MAX_TEXT else None

    def _hooks(self) -> Iterator[tuple[str, Path]]:
        """Yield the hooks that git would run: regular executable files, or links to such in the work tree."""
        directory = self._repository.hooks
        if directory is None:
            return
        count = 0
        for path in sorted(directory.iterdir()):
            if path.name.endswith(".sample") or not path.name.isascii() or not path.name.isprintable():
                continue
            target = path.resolve()
            if path.is_symlink() and not target.is_relative_to(self._repository.top):
                self._writer.warnings += name_some("hook left out, a symlink", [os.fsencode(path.name)])
                continue
            if not target.is_file() or not os.access(target, os.R_OK | os.X_OK):
                continue
            count += 1
            if count > _MAX_HOOKS or target.stat().st_size > _MAX_HOOK:
                self._writer.warnings += name_some("hook left out, too large", [os.fsencode(path.name)])
                continue
            yield path.name, target

    def _lfs(self, objects: Sequence[lfs.LfsObject]) -> None:
        missing: list[bytes] = []
        for item in objects:
            for place in (
                os.fsencode(lfs.stored(self._repository.lfs_store, item.oid)),
                # What is checked out has the content too; unpack.py compares the digest.
                os.fsencode(self._repository.top) + b"/" + item.path,
            ):
                try:
                    descriptor = _open_regular(place)
                except OSError:
                    continue
                if os.fstat(descriptor).st_size == item.size:
                    self._writer.file({"type": "lfs", "oid": item.oid}, descriptor)
                    break
                os.close(descriptor)
            else:
                missing.append(item.path)
        self._writer.warnings += name_some("the LFS object is not in the local store", missing)


def _open_regular(path: Path | bytes) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "Not a regular file", os.fsdecode(path))
    return descriptor


def _b64(path: bytes | str) -> str:
    return b64encode(os.fsencode(path)).decode("ascii")
