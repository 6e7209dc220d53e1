"""What the user changed and did not commit, as their own git sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from clsecure.workspace.repository import Repository

GITLINK = "160000"
_NOTHING = "000000"

_STATUS = (
    # git-lfs would put what it cleans into the user's store; clsecure compares pointers by itself.
    *("-c", "filter.lfs.clean=", "-c", "filter.lfs.process=", "-c", "filter.lfs.required=false"),
    *("status", "--porcelain=v2", "-z", "--untracked-files=all", "--no-renames", "--ignore-submodules=dirty"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A mode and an object, as in an index; octal mode as git prints it."""

    mode: str
    oid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Differences between HEAD, index and work tree, by path.

    :param committed: what HEAD has at each path below.
    :param staged: what the index has instead of HEAD's; None where it has nothing.
    :param deleted: in the index, but not in the work tree.
    :param unlinked: submodules of the index whose directory is gone; they stay in the tree nevertheless.
    :param modified: in the work tree other than in the index; with the mode seen in the work tree.
    :param indexed: what the index has at the modified paths.
    :param intended: of the modified, those that the index knows by ``git add --intent-to-add`` only.
    :param untracked: not in the index and not ignored.
    :param unmerged: in conflict; the work tree's state counts.
    :param embedded: repositories in the work tree that are no submodule.
    """

    committed: Mapping[bytes, Entry] = field(default_factory=dict)
    staged: Mapping[bytes, Entry | None] = field(default_factory=dict)
    deleted: frozenset[bytes] = frozenset()
    unlinked: frozenset[bytes] = frozenset()
    modified: Mapping[bytes, str] = field(default_factory=dict)
    indexed: Mapping[bytes, Entry] = field(default_factory=dict)
    intended: frozenset[bytes] = frozenset()
    untracked: frozenset[bytes] = frozenset()
    unmerged: frozenset[bytes] = frozenset()
    embedded: tuple[bytes, ...] = ()


def look(repository: Repository) -> Changes:
    """Ask the user's git, with their configuration: what is clean or ignored for them is so here."""
    return parse(repository.git().out(*_STATUS, timeout=1800.0))


def parse(status: bytes) -> Changes:
    """Read the output of ``git status --porcelain=v2 -z``."""
    committed: dict[bytes, Entry] = {}
    staged: dict[bytes, Entry | None] = {}
    modified: dict[bytes, str] = {}
    indexed: dict[bytes, Entry] = {}
    deleted: set[bytes] = set()
    unlinked: set[bytes] = set()
    intended: set[bytes] = set()
    untracked: set[bytes] = set()
    unmerged: set[bytes] = set()
    embedded: list[bytes] = []
    for line in status.split(b"\0"):
        kind = line[:2]
        if kind == b"? ":
            path = line[2:]
            if path.endswith(b"/"):
                embedded.append(path[:-1])
            else:
                untracked.add(path)
        elif kind == b"u ":
            unmerged.add(line.split(b" ", 10)[10])
        elif kind == b"1 ":
            fields = line.split(b" ", 8)
            path = fields[8]
            mode_head, mode_index, mode_work, head, index = (f.decode("ascii") for f in fields[3:8])
            in_index, in_work = fields[1][:1], fields[1][1:]
            if mode_head != _NOTHING:
                committed[path] = Entry(mode=mode_head, oid=head)
            if in_index == b"D":
                staged[path] = None
            elif in_index != b".":
                staged[path] = Entry(mode=mode_index, oid=index)
            if in_work == b"D":
                (unlinked if mode_index == GITLINK else deleted).add(path)
            elif in_work != b".":
                modified[path] = mode_work
                indexed[path] = Entry(mode=mode_index, oid=index)
                if in_work == b"A":
                    intended.add(path)
    return Changes(
        committed=committed,
        staged=staged,
        deleted=frozenset(deleted),
        unlinked=frozenset(unlinked),
        modified=modified,
        indexed=indexed,
        intended=frozenset(intended),
        untracked=frozenset(untracked),
        unmerged=frozenset(unmerged),
        embedded=tuple(embedded),
    )
