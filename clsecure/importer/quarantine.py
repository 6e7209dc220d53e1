"""A throw-away repository per unit, in which the agent's objects are examined before anything trusts them.

Its only alternate is the unit's ``base``, a tool-owned copy of what was cloned in: with the user's own object
store there, a pack that merely names the id of something secret in it would bring that into the branch.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from clsecure.errors import ImportRejectedError
from clsecure.git import Git, init_bare
from clsecure.importer.bounded import MIB, Bounds, Child, Objects, output
from clsecure.importer.frames import ExportLimits, UnitRecord
from clsecure.importer.modules import MAX_FILE, check_gitmodules
from clsecure.importer.summary import changed_files
from clsecure.importer.trees import Measure, TreeJudge, gitlinks, measures
from clsecure.importer.values import AdmittedUnit
from clsecure.model import StartUnit
from clsecure.terminal import escape

# git judges a .gitmodules that a new tree names even when the file itself is the user's own old one. That
# one is left alone; new ones are judged by modules.py in any case.
_STRICT_BUT_MODULES = "--strict=" + ",".join(
    f"gitmodules{what}=ignore" for what in ("Name", "Url", "Path", "Update", "Parse", "Blob")
)
_MAX_MODULES = 1000
_MAX_POINTER = 1024
_OID = re.compile(rb"^oid sha256:([0-9a-f]{64})$", re.MULTILINE)
_NO_OBJECTS = 12  # bytes of a pack's header, before its first object


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the examination of one unit found out."""

    tree: str
    commits: int
    changed: bool
    rewritten: bool
    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """The quarantine of one unit.

    :param git: the bare repository, whose HEAD stays unborn: git from 2.43 on reads attributes from it.
    """

    git: Git
    start: StartUnit
    hash_size: int
    limits: ExportLimits

    @classmethod
    def create(cls, start: StartUnit, directory: Path, *, limits: ExportLimits) -> Quarantine:
        """Make an empty one in a directory of the tool's own."""
        git = _make(start, directory)
        return cls(git=git, start=start, hash_size=len(start.head) // 2, limits=limits)

    @property
    def base(self) -> Git:
        """What was cloned in, alone."""
        return Git(git_dir=self.start.base)

    def accept(self, pack: Path, *, bounds: Bounds) -> None:
        """Take a pack in: each new object well formed, each object it names there.

        :raises ImportRejectedError: with git's own words.
        """
        # Unbuffered: git inherits the descriptor, and reads on from where it really is.
        with pack.open("rb", buffering=0) as file:
            header = file.read(_NO_OBJECTS)
            count = int.from_bytes(header[8:12], "big")
            if header[:4] != b"PACK" or len(header) != _NO_OBJECTS:
                raise ImportRejectedError("the agent's pack is malformed")
            if count > self.limits.max_objects:
                raise ImportRejectedError(
                    f"the agent's work holds more than {self.limits.max_objects} objects"
                )
            if count == 0:
                return
            file.seek(0)
            try:
                self._index(self.git, file, "--strict", bounds=bounds)
            except ImportRejectedError as strict:
                # Old objects of the user's may come back with the pack (a revert does that), with whatever
                # defects they have. Only what is new is judged; it is taken out and offered again.
                file.seek(0)
                self._accept_new_only(file, strict, bounds=bounds)

    def _index(self, git: Git, file: IO[bytes], *flags: str, bounds: Bounds) -> None:
        with Child(
            git, "index-pack", "--stdin", "--fix-thin", "--threads=2",
            f"--max-input-size={self.limits.max_pack_bytes}", *flags, bounds=bounds, stdin=file,
        ) as child:  # fmt: skip
            for _ in child.chunks(MIB):
                pass

    def _accept_new_only(self, file: IO[bytes], strict: ImportRejectedError, *, bounds: Bounds) -> None:
        place = self.git.git_dir.with_name(self.git.git_dir.name + "-all")
        for left in (self.git.git_dir, place):
            shutil.rmtree(left, ignore_errors=True)
        everything = _make(self.start, place)
        _make(self.start, self.git.git_dir)
        try:
            self._index(everything, file, bounds=bounds)
            received = self._packed(everything, bounds=bounds)
            new = self._not_in_base(received, bounds=bounds)
            if not new:
                raise strict
            with _lines(new) as names, tempfile.TemporaryFile(dir=place) as pack:
                with Child(everything, "pack-objects", "--stdout", "-q", bounds=bounds, stdin=names) as child:
                    for chunk in child.chunks(self.limits.max_pack_bytes * 2):
                        pack.write(chunk)
                pack.seek(0)
                self._index(self.git, pack, _STRICT_BUT_MODULES, bounds=bounds)
        except ImportRejectedError as error:
            raise strict from error
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def judge(self, record: UnitRecord, finals: dict[bytes, str], *, bounds: Bounds) -> Verdict:
        """Examine what arrived for this unit.

        :param finals: path of a unit → commit that comes home of it.
        :raises ImportRejectedError: it is not complete, or something in it must not come home.
        """
        final = record.uncommitted or record.tip
        if final == self.start.head and record.tree == self.start.base_tree:
            return Verdict(tree=record.tree, commits=0, changed=False, rewritten=False, refused=())
        incoming = self._incoming(bounds=bounds)
        with Objects(self.git, bounds=bounds, max_object=self.limits.max_tree_bytes) as objects:
            tree = self._relations(record, objects)
            self._connected(final, bounds=bounds)
            everything = listing(self.base, self.start.base_tree, bounds=bounds, trees=True)
            base = {path: entry for path, entry in everything.items() if entry[0] != "040000"}
            judge = TreeJudge(
                objects=objects,
                hash_size=self.hash_size,
                incoming=frozenset(incoming["tree"]),
                max_entries=max(self.limits.max_tree_entries, 2 * len(base)),
                max_bytes=16 * self.limits.max_tree_bytes,
            )
            judge.known.update(_empty_tree(self.hash_size))
            judge.known.update(measures((path, *entry) for path, entry in everything.items()))
            for incoming_tree in incoming["tree"]:
                judge.measure(incoming_tree)
            judge.measure(tree)
            self._modules(judge.modules.intersection(incoming["blob"]), objects, bounds=bounds)
        refused = self._gitlinks(tree, base, finals, bounds=bounds)
        # A dirty start that was left as it was: the exporter makes no commit then, and says so by the tree.
        same = record.tip == self.start.head and (
            record.tree == self.start.base_tree
            if record.uncommitted is None
            else tree == self.start.base_tree
        )
        if same:
            tree = self.start.base_tree
        return Verdict(
            tree=tree,
            commits=self._count(record.tip, bounds=bounds),
            changed=record.tip != self.start.head or tree != self.start.base_tree,
            rewritten=bool(self._list(self.start.head, record.tip, most=1, bounds=bounds)),
            refused=refused,
        )

    def _relations(self, record: UnitRecord, objects: Objects) -> str:
        tree = b""
        for name in (record.tip, record.uncommitted):
            if name is None:
                continue
            if len(name) != 2 * self.hash_size:
                raise ImportRejectedError("an id of the export is of the wrong kind")
            header = objects.read(name, "commit").partition(b"\n\n")[0].split(b"\n")
            tree = header[0].removeprefix(b"tree ")
            if name == record.uncommitted and _parents(header) != [record.tip.encode("ascii")]:
                raise ImportRejectedError("the commit for uncommitted work is not on top of HEAD")
        return tree.decode("ascii", "replace")

    def _packed(self, git: Git, *, bounds: Bounds) -> list[str]:
        """Ids of all objects in the packs of a repository, its alternates aside."""
        found: list[str] = []
        for index in sorted((git.git_dir / "objects" / "pack").glob("*.idx")):
            kind = "sha1" if self.hash_size == 20 else "sha256"
            with (
                index.open("rb") as file,
                Child(git, "show-index", f"--object-format={kind}", bounds=bounds, stdin=file) as child,
            ):
                found += [
                    line.split(b" ")[1].decode("ascii")
                    for line in child.items(b"\n", 200 * (self.limits.max_objects + 1000))
                ]
        return found

    def _not_in_base(self, names: Iterable[str], *, bounds: Bounds) -> list[str]:
        most = 200 * (self.limits.max_objects + 1000)
        with (
            _lines(names) as asked,
            Child(self.base, "cat-file", "--batch-check", bounds=bounds, stdin=asked) as child,
        ):
            return [
                line.split(b" ")[0].decode("ascii")
                for line in child.items(b"\n", most)
                if line.endswith(b" missing")
            ]

    def _incoming(self, *, bounds: Bounds) -> dict[str, list[str]]:
        """Ids of the new objects by type; each within the limits of its type."""
        most = {
            "commit": self.limits.max_commit_bytes,
            "tag": self.limits.max_commit_bytes,
            "tree": self.limits.max_tree_bytes,
            "blob": self.limits.max_blob_bytes,
        }
        found: dict[str, list[str]] = {kind: [] for kind in most}
        inflated = 0
        new = self._not_in_base(self._packed(self.git, bounds=bounds), bounds=bounds)
        with (
            _lines(new) as asked,
            Child(self.git, "cat-file", "--batch-check", bounds=bounds, stdin=asked) as child,
        ):
            for line in child.items(b"\n", 200 * (len(new) + 1)):
                name, kind, size = line.decode("ascii").split(" ")
                inflated += int(size)
                if int(size) > most[kind] or inflated > self.limits.max_inflated_bytes:
                    raise ImportRejectedError(
                        f"a {kind} of the agent's work is too large",
                        details=f"{name} has {size} bytes; {most[kind]} are allowed",
                    )
                found[kind].append(name)
        return found

    def _connected(self, final: str, *, bounds: Bounds) -> None:
        """Everything that the branch would reach is there."""
        if final != self.start.head:
            with Child(
                self.git, "rev-list", "--objects", "--quiet", final, "--not", self.start.head, "--",
                bounds=bounds,
            ) as child:  # fmt: skip
                for _ in child.chunks(MIB):
                    pass

    def _list(self, wanted: str, without: str, *, most: int, bounds: Bounds) -> list[str]:
        out = output(self.git, "rev-list", f"--max-count={most}", wanted, f"^{without}", "--", bounds=bounds)
        return out.decode("ascii").split()

    def _count(self, tip: str, *, bounds: Bounds) -> int:
        return int(output(self.git, "rev-list", "--count", tip, f"^{self.start.head}", "--", bounds=bounds))

    def _modules(self, blobs: set[str], objects: Objects, *, bounds: Bounds) -> None:
        if len(blobs) > _MAX_MODULES:
            raise ImportRejectedError(
                f"the agent's work holds more than {_MAX_MODULES} versions of .gitmodules"
            )
        for blob in sorted(blobs):
            found = objects.info(blob)
            if found is None or found[1] > MAX_FILE:
                raise ImportRejectedError("a .gitmodules of the agent's work is no small file")
            check_gitmodules(self.git, objects.read(blob, "blob"), bounds=bounds)

    def pointers(self, tree: str, *, bounds: Bounds) -> set[str]:
        """The sha256 of each LFS object that something new names, in the pack or in the final tree."""
        names = set(self._packed(self.git, bounds=bounds))
        names.update(c.new_id for c in changed_files(self.git, self.start.base_tree, tree, bounds=bounds))
        small: list[str] = []
        with (
            _lines(names) as asked,
            Child(self.git, "cat-file", "--batch-check", bounds=bounds, stdin=asked) as child,
        ):
            for line in child.items(b"\n", 200 * (len(names) + 1)):
                name, kind, *size = line.decode("ascii").split(" ")
                if kind == "blob" and int(size[0]) <= _MAX_POINTER:
                    small.append(name)
        with (
            _lines(small) as asked,
            Child(self.git, "cat-file", "--batch", bounds=bounds, stdin=asked) as child,
        ):
            content = b"".join(child.chunks((_MAX_POINTER + 200) * (len(small) + 1)))
        return {match[1].decode("ascii") for match in _OID.finditer(content)}

    def _gitlinks(
        self,
        tree: str,
        base: dict[bytes, tuple[str, str]],
        finals: dict[bytes, str],
        *,
        bounds: Bounds,
    ) -> tuple[str, ...]:
        """Name the submodules of the final tree that don't come home with it."""
        before = gitlinks(base)
        prefix = self.start.path + b"/" if self.start.path else b""
        refused = []
        for path, commit in sorted(gitlinks(listing(self.git, tree, bounds=bounds)).items()):
            if before.get(path) == commit or finals.get(prefix + path) == commit:
                continue
            known = (
                "names a commit that does not come home" if prefix + path in finals else "was not cloned in"
            )
            refused.append(f"{escape(prefix + path)}: a submodule that {known}")
        return tuple(refused[:1000])


def finish(
    quarantine: Quarantine, record: UnitRecord, verdict: Verdict, lfs: tuple[str, ...]
) -> AdmittedUnit:
    """Put what was found out together."""
    prefix = quarantine.start.path + b"/" if quarantine.start.path else b""
    refused = [f"{escape(prefix + path)}: {escape(why)}" for path, why in record.refused]
    if record.refused_more:
        refused.append(f"{record.refused_more} more")
    # The exporter names an unknown submodule too, as a path that it could not bring.
    named = {prefix + path for path, _ in record.refused}
    refused += [line for line in verdict.refused if not any(line.startswith(escape(n) + ":") for n in named)]
    return AdmittedUnit(
        start=quarantine.start,
        git=quarantine.git,
        tip=record.tip,
        uncommitted=record.uncommitted if verdict.changed else None,
        tree=verdict.tree,
        commits=verdict.commits,
        changed=verdict.changed,
        rewritten=verdict.rewritten,
        absent=record.absent,
        other_refs=tuple(escape(name) for name, _ in record.other_refs),
        refused=tuple(refused),
        untracked=record.untracked,
        deleted=record.deleted,
        ignored=record.ignored,
        lfs=lfs,
    )


def listing(git: Git, tree: str, *, bounds: Bounds, trees: bool = False) -> dict[bytes, tuple[str, str]]:
    """Return path → (mode, id) of all files (and ``trees``) of a tree that was measured before."""
    found = {}
    flags = ("-r", "-t") if trees else ("-r",)
    with Child(git, "ls-tree", *flags, "-z", "--full-tree", tree, bounds=bounds) as child:
        for item in child.items(b"\0", 2048 * MIB):
            meta, _, path = item.partition(b"\t")
            mode, _, name = meta.decode("ascii").split(" ")
            found[path] = (mode, name)
    return found


def _make(start: StartUnit, directory: Path) -> Git:
    kind = "sha1" if len(start.head) == 40 else "sha256"
    git = init_bare(directory, object_format=kind, alternates=start.base / "objects")
    with suppress(FileNotFoundError):
        shutil.copyfile(start.base / "shallow", directory / "shallow")
    return git


def _parents(header: list[bytes]) -> list[bytes]:
    return [line.removeprefix(b"parent ") for line in header if line.startswith(b"parent ")]


def _lines(names: Iterable[str]) -> IO[bytes]:
    """A temporary file with one id a line, at its beginning."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    for name in names:
        file.write(name.encode("ascii") + b"\n")
    file.seek(0)
    return file


def _empty_tree(hash_size: int) -> dict[str, Measure]:
    name = (
        "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
        if hash_size == 20
        else "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321"
    )
    return {name: Measure(entries=0, path=0, depth=0)}
