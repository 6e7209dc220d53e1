"""Trees of the agent, looked at entry by entry before git expands any of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from clsecure.errors import ImportRejectedError
from clsecure.importer.bounded import Objects
from clsecure.terminal import escape

MODES = frozenset({"100644", "100755", "120000", "40000", "160000"})
MAX_PATH = 4095
MAX_DEPTH = 2048

# Code points that HFS+ ignores when it compares names.
_HFS_IGNORED = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")
_NTFS_GIT = re.compile(r"\A(?:\.git|git~\d{1,6})[. ]*(?::.*)?\Z", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What a checkout of one tree would make: entries in all, and the longest path below."""

    entries: int
    path: int
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a tree."""

    mode: str
    name: bytes
    id: str

    @property
    def is_tree(self) -> bool:
        """Whether it is a directory."""
        return self.mode == "40000"


def parse_tree(data: bytes, hash_size: int) -> Iterator[Entry]:
    """Yield the entries of a raw tree object.

    :raises ImportRejectedError: it is cut off.
    """
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 8)
        end = data.find(b"\0", space + 1)
        if space < 0 or end < 0 or end + 1 + hash_size > len(data):
            raise ImportRejectedError("a tree of the agent's work is damaged")
        yield Entry(
            mode=data[at:space].decode("latin-1"),
            name=data[space + 1 : end],
            id=data[end + 1 : end + 1 + hash_size].hex(),
        )
        at = end + 1 + hash_size


def is_dot_git(name: bytes) -> bool:
    """Tell whether some file system of a user takes this name for ``.git``."""
    for part in re.split(rb"[\\/]", name):
        text = part.decode("utf-8", "surrogateescape")
        folded = unicodedata.normalize("NFKC", _HFS_IGNORED.sub("", text)).casefold()
        if folded == ".git" or _NTFS_GIT.match(text):
            return True
    return False


def refuse_entry(entry: Entry) -> str | None:
    """Say why an entry can't come home, None when it can."""
    if entry.mode not in MODES:
        return f"mode {escape(entry.mode)}"
    if entry.name in (b"", b".", b"..") or b"/" in entry.name:
        return "a name that is no file name"
    if is_dot_git(entry.name):
        return "a name that stands for .git"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    tree: str
    entries: list[Entry]
    below: Iterator[str]

    @classmethod
    def of(cls, tree: str, entries: list[Entry]) -> _Level:
        return cls(tree=tree, entries=entries, below=iter([e.id for e in entries if e.is_tree]))


@dataclass(slots=True)
class TreeJudge:
    """Judges incoming trees and measures what they expand to, each object once.

    :param incoming: ids of the trees that are new; only these are judged. Others are the user's own and are
        merely measured.
    :param known: measures of the user's trees that need not be read again.
    """

    objects: Objects
    hash_size: int
    incoming: frozenset[str]
    max_entries: int
    max_bytes: int
    known: dict[str, Measure] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    """Blobs that an incoming tree names .gitmodules, whatever the spelling."""
    _bytes: int = 0

    def measure(self, tree: str) -> Measure:
        """Return the measure of a tree, judging what is new below it.

        :raises ImportRejectedError: something in it is refused, or it expands beyond the limits.
        """
        if tree in self.known:
            return self.known[tree]
        stack = [_Level.of(tree, self._entries(tree))]
        pending = {tree}
        while stack:
            level = stack[-1]
            missing = next((name for name in level.below if name not in self.known), None)
            if missing is None:
                self.known[level.tree] = self._sum(level.entries)
                pending.discard(level.tree)
                stack.pop()
                continue
            if missing in pending or len(stack) > MAX_DEPTH:
                raise ImportRejectedError("a tree of the agent's work is nested too deeply")
            pending.add(missing)
            stack.append(_Level.of(missing, self._entries(missing)))
        return self.known[tree]

    def _sum(self, entries: list[Entry]) -> Measure:
        total = longest = depth = 0
        for entry in entries:
            below = self.known[entry.id] if entry.is_tree else None
            total += 1 + (below.entries if below else 0)
            longest = max(longest, len(entry.name) + (1 + below.path if below else 0))
            depth = max(depth, 1 + (below.depth if below else 0))
            if total > self.max_entries:
                raise ImportRejectedError(
                    f"a tree of the agent's work holds more than {self.max_entries} files and directories"
                )
        if longest > MAX_PATH:
            raise ImportRejectedError(f"a path of the agent's work is longer than {MAX_PATH} bytes")
        return Measure(entries=total, path=longest, depth=depth)

    def _entries(self, tree: str) -> list[Entry]:
        data = self.objects.read(tree, "tree")
        self._bytes += len(data)
        if self._bytes > self.max_bytes:
            raise ImportRejectedError("the trees of the agent's work are too large")
        entries = list(parse_tree(data, self.hash_size))
        if tree in self.incoming:
            for entry in entries:
                why = refuse_entry(entry)
                if why is not None:
                    raise ImportRejectedError(
                        "the agent's work holds a file that must not be checked out",
                        details=f"{escape(entry.name)}: {why}",
                        resolution="Let the agent rename or remove it (in every commit), then import again",
                    )
                if names_gitmodules(entry.name) and not entry.is_tree:
                    self.modules.add(entry.id)
        return entries


def names_gitmodules(name: bytes) -> bool:
    """Tell whether some file system of a user takes this name for ``.gitmodules``."""
    text = _HFS_IGNORED.sub("", name.decode("utf-8", "surrogateescape")).casefold()
    return text.rstrip(". ").split(":")[0] == ".gitmodules" or text.startswith(("gitmod~", "gi7eba~"))


def gitlinks(listing: Mapping[bytes, tuple[str, str]]) -> dict[bytes, str]:
    """Return path → commit of the submodules in a listing of (mode, id)."""
    return {path: object_id for path, (mode, object_id) in listing.items() if mode == "160000"}


def measures(entries: Iterable[tuple[bytes, str, str]]) -> dict[str, Measure]:
    """Return the measures of all trees in a listing of (path, mode, id) that names trees as well."""
    trees: dict[bytes, str] = {}
    sums: dict[bytes, tuple[int, int, int]] = {}
    for path, mode, object_id in entries:
        if mode == "040000":
            trees[path] = object_id
        parent, _, name = path.rpartition(b"/")
        count, longest, depth = sums.get(parent, (0, 0, 0))
        sums[parent] = (count + 1, max(longest, len(name)), max(depth, 1))
    found = {}
    for path in sorted(trees, key=lambda p: -p.count(b"/")):
        count, longest, depth = sums.get(path, (0, 0, 0))
        found[trees[path]] = Measure(entries=count, path=longest, depth=depth)
        parent, _, name = path.rpartition(b"/")
        above = sums[parent]
        sums[parent] = (above[0] + count, max(above[1], len(name) + 1 + longest), max(above[2], depth + 1))
    return found
