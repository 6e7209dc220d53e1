"""Layers: tar files that are the same bytes for the same content, whoever made it, wherever and when."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from clsecure.errors import ImageError
from clsecure.images.recipe import LayerRecipe

MAX_FILE = 1 << 30
"""Bytes of one file in a layer."""

# Directories that stay, empty: what is in them is this build's, or is mounted over.
# fmt: off
_EMPTY = ("boot", "dev", "etc/apt", "proc", "root", "run", "sys", "tmp", "var/cache", "var/lib/apt",
          "var/log", "var/mail", "var/tmp")
# fmt: on
_DROPPED = re.compile(
    # etc/gitconfig: filters of git-lfs for everybody; sessions bring LFS objects in and out themselves.
    r"etc/(g?shadow|passwd|group|subuid|subgid)-|etc/g?shadow|etc/\.pwd\.lock|etc/(fstab|mtab|hostname|hosts)"
    r"|etc/(resolv\.conf|gitconfig|machine-id)|etc/dpkg/dpkg\.cfg\.d/.*"
    r"|var/lib/dbus/machine-id|var/lib/dpkg/(lock.*|.*-old|triggers/Lock)"
    r"|usr/share/(man|info|locale|lintian|doc-base|bug)/.+|usr/share/doc/[^/]+/(?!copyright$).+"
    r"|var/lib/systemd/.+|etc/systemd/.+|.*\.dpkg-(new|tmp|old|dist)"
)
# What engines and our sessions mount over, or expect to be there.
_DIRECTORIES = ("home", "mnt", "srv", "opt", "opt/clsecure", "opt/clsecure/bin", "opt/clsecure/etc",
                "opt/clsecure/lib", "workspace")  # fmt: skip
_FILES = ("etc/hostname", "etc/hosts", "etc/machine-id", "etc/resolv.conf", "run/.containerenv")
_LINKS = {"etc/mtab": "/proc/self/mounts"}
_STICKY = frozenset({"tmp", "var/tmp"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer on the disk.

    :param diff_id: ``sha256:`` and the hash of the file.
    :param size: bytes.
    """

    name: str
    path: Path
    diff_id: str
    size: int


def base_layer(root: Path, target: Path, *, epoch: int) -> Layer:
    """Normalise a root file system: nothing of the build's time, place and account is left.

    Owners are 0, no file is setuid or setgid, everybody may read everything, nobody else may write; no
    devices, sockets, extended attributes, caches, logs, manuals or hashes of passwords.
    """
    with tarfile.open(root, "r:") as source, _Writer(target, epoch) as writer:
        for name in _DIRECTORIES:
            writer.add_directory(name)
        for name in _FILES:
            writer.add_bytes(name, b"")
        for name, leads in _LINKS.items():
            writer.add_link(name, leads)
        firsts: dict[str, str] = {}
        for name, member in sorted(_kept(source), key=lambda pair: _key(pair[0])):
            writer.add_member(name, member, source, firsts)
    return writer.layer("base")


def npm_layer(recipe: LayerRecipe, archive: Path, target: Path, *, epoch: int) -> Layer:
    """Make the thin layer of an agent or tool out of an npm package, already checked."""
    with tarfile.open(archive, "r:gz") as source, _Writer(target, epoch) as writer:
        members = {_clean(member.name): member for member in source if member.isreg()}
        for file in recipe.files:
            if file.target.endswith("/"):
                found = {n: m for n, m in members.items() if n.startswith(file.source)}
                pairs = [(file.target + n.removeprefix(file.source), m) for n, m in found.items()]
            else:
                pairs = [(file.target, members[file.source])] if file.source in members else []
            if not pairs:
                raise ImageError(f"there is no {file.source} in the package of {recipe.name}")
            for name, member in pairs:
                mode = 0o555 if file.executable or member.mode & 0o111 else 0o444
                data = source.extractfile(member)
                assert data is not None  # noqa: S101  # regular files alone were taken
                writer.add_file(name, data, member.size, mode)
        for name, leads in recipe.links.items():
            writer.add_link(name, leads)
    return writer.layer(recipe.name)


def files_layer(name: str, files: Mapping[str, bytes], target: Path, *, epoch: int) -> Layer:
    """Make a layer of a few small files."""
    with _Writer(target, epoch) as writer:
        for path, data in files.items():
            writer.add_bytes(path, data)
    return writer.layer(name)


def _kept(source: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    for member in source:
        name = _clean(member.name)
        if not name or _DROPPED.fullmatch(name) or any(name.startswith(f"{each}/") for each in _EMPTY):
            continue
        if member.isreg() or member.islnk() or member.issym() or member.isdir():
            yield name, member


def _clean(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ImageError(f"{name[:200]!r} leads out of its layer")
    return "/".join(parts)


def _key(name: str) -> list[str]:
    return name.split("/")


class _Writer:
    """Writes entries in sorted order, whatever the order in which they were added."""

    def __init__(self, target: Path, epoch: int) -> None:
        self._target = target
        self._epoch = epoch
        self._spool = target.with_name(f"{target.name}.data")
        self._entries: dict[str, tuple[tarfile.TarInfo, int]] = {}

    def __enter__(self) -> _Writer:
        self._data = self._spool.open("x+b")
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        try:
            if failed is None:
                self._write()
        finally:
            self._data.close()
            self._spool.unlink()

    def add_directory(self, name: str) -> None:
        self._add(self._info(name, tarfile.DIRTYPE, 0o1777 if name in _STICKY else 0o755))

    def add_link(self, name: str, leads: str) -> None:
        info = self._info(name, tarfile.SYMTYPE, 0o777)
        info.linkname = leads
        self._add(info)

    def add_bytes(self, name: str, data: bytes) -> None:
        self.add_file(name, io.BytesIO(data), len(data), 0o444)

    def add_file(self, name: str, data: IO[bytes], size: int, mode: int, *, mtime: int | None = None) -> None:
        if size > MAX_FILE:
            raise ImageError(f"{name[:200]!r} is too large for a layer")
        info = self._info(name, tarfile.REGTYPE, mode, mtime=mtime)
        info.size = size
        offset = self._data.tell()
        left = size
        while left:
            chunk = data.read(min(left, 1 << 20))
            if not chunk:
                raise ImageError(f"{name[:200]!r} is cut short")
            self._data.write(chunk)
            left -= len(chunk)
        self._add(info, offset)

    def add_member(
        self, name: str, member: tarfile.TarInfo, source: tarfile.TarFile, firsts: dict[str, str]
    ) -> None:
        """Take an entry of a root file system.

        :param firsts: which name of a file with several names comes first, by its name in the source.
        """
        if member.isdir():
            self.add_directory(name)
        elif member.issym():
            info = self._info(name, tarfile.SYMTYPE, 0o777, mtime=int(member.mtime))
            info.linkname = member.linkname
            self._add(info)
        else:
            first_in_source = _clean(member.linkname) if member.islnk() else name
            if first_in_source in firsts:
                info = self._info(name, tarfile.LNKTYPE, 0o644)
                info.linkname = firsts[first_in_source]
                self._add(info)
                return
            firsts[first_in_source] = name
            # The other names of a file say nothing of it: its first one does, also where that was left out.
            about = source.getmember(member.linkname) if member.islnk() else member
            data = source.extractfile(about)
            if data is None:
                raise ImageError(f"{name[:200]!r} is no file")
            mode = 0o755 if about.mode & 0o111 else 0o644
            self.add_file(name, data, about.size, mode, mtime=int(about.mtime))

    def layer(self, name: str) -> Layer:
        with self._target.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Layer(
            name=name, path=self._target, diff_id=f"sha256:{digest}", size=self._target.stat().st_size
        )

    def _info(self, name: str, kind: bytes, mode: int, *, mtime: int | None = None) -> tarfile.TarInfo:
        info = tarfile.TarInfo(_clean(name))
        info.type, info.mode = kind, mode
        info.mtime = self._epoch if mtime is None else max(0, min(mtime, self._epoch))
        return info

    def _add(self, info: tarfile.TarInfo, offset: int = 0) -> None:
        """Add an entry; the first of a name counts, so that our own stand in place of the build's."""
        self._entries.setdefault(info.name, (info, offset))

    def _write(self) -> None:
        for name in list(self._entries):
            parents = name.split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                self._entries.setdefault(
                    "/".join(parents[:depth]),
                    (self._info("/".join(parents[:depth]), tarfile.DIRTYPE, 0o755), 0),
                )
        with tarfile.open(self._target, "x:", format=tarfile.GNU_FORMAT) as tar:
            for name in sorted(self._entries, key=_key):
                info, offset = self._entries[name]
                if info.isreg():
                    self._data.seek(offset)
                    tar.addfile(info, self._data)
                else:
                    tar.addfile(info)
