"""What the user is told of the agent's work, from the imported objects alone.

No replacement, graft or mailmap of anybody counts, and no attribute: the quarantine is a bare repository
whose HEAD names nothing, so a ``-diff`` or ``linguist`` attribute of the agent can hide nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from clsecure.errors import ImportRejectedError
from clsecure.git import Git
from clsecure.importer.bounded import MIB, Bounds, Child, Objects, output
from clsecure.importer.values import AdmittedUnit, CommitSummary, FileChange, UnitSummary
from clsecure.terminal import escape

MAX_COMMITS = 200
MAX_CHANGES = 20_000
MAX_SUBJECT = 200
_DIFF = ("--no-ext-diff", "--no-textconv", "--no-renames", "--no-color", "--ignore-submodules=none")
_IDENTITY = re.compile(rb"\A(.*?)\s*<([^>]*)>\s*(-?\d{1,18})?(?:\s+([-+]\d{4}))?\s*\Z", re.DOTALL)
_RAW = re.compile(rb"\A:(\d{6}) (\d{6}) ([0-9a-f]+) ([0-9a-f]+) ([A-Z])")


def summarise(unit: AdmittedUnit, *, bounds: Bounds) -> UnitSummary:
    """Compute the summary of one unit.

    :raises ImportRejectedError: more than the bounds allow.
    """
    prefix = unit.start.path + b"/" if unit.start.path else b""
    changes: list[FileChange] = []
    number = added = deleted = 0
    for change in changed_files(unit.git, unit.start.base_tree, unit.tree, prefix=prefix, bounds=bounds):
        number += 1
        added += change.status == "A"
        deleted += change.status == "D"
        if len(changes) < MAX_CHANGES:
            changes.append(change)
    insertions = deletions = None
    if 0 < number <= MAX_CHANGES:
        counted = _lines_changed(unit, bounds=bounds.shorter(60))
        if counted is not None:
            insertions, deletions = counted
    return UnitSummary(
        path=escape(unit.start.path),
        commits=tuple(commits(unit, bounds=bounds)),
        commit_count=unit.commits,
        uncommitted=unit.uncommitted is not None,
        rewritten=unit.rewritten,
        changes=tuple(changes),
        files_changed=number,
        added=added,
        deleted=deleted,
        untracked=_untracked(unit, bounds=bounds),
        insertions=0 if number == 0 else insertions,
        deletions=0 if number == 0 else deletions,
        other_refs=unit.other_refs,
    )


def changed_files(
    git: Git, old: str, new: str, *, prefix: bytes = b"", bounds: Bounds
) -> Iterator[FileChange]:
    """Yield what differs between two trees that were measured before."""
    if old == new:
        return
    with Child(
        git, "diff-tree", "-r", "-z", "--raw", "--no-abbrev", *_DIFF, old, new, bounds=bounds
    ) as child:
        meta = None
        for item in child.items(b"\0", 4096 * MIB):
            if meta is None:
                meta = _RAW.match(item)
                if meta is None:
                    raise ImportRejectedError("git diff-tree gave something unexpected")
                continue
            before, after, old_id, new_id, status = (part.decode("ascii") for part in meta.groups())
            meta = None
            yield FileChange(
                path=escape(prefix + item), raw=item, status=status,
                old_mode=before, new_mode=after, old_id=old_id, new_id=new_id,
            )  # fmt: skip


def commits(unit: AdmittedUnit, *, bounds: Bounds, most: int = MAX_COMMITS) -> Iterator[CommitSummary]:
    """Yield the newest of the agent's commits, newest first, as they are written."""
    names = output(
        unit.git, "rev-list", "--topo-order", f"--max-count={most}", unit.tip, f"^{unit.start.head}", "--",
        bounds=bounds, max_bytes=100 * most + 1,
    ).decode("ascii").split()  # fmt: skip
    if not names:
        return
    with Objects(unit.git, bounds=bounds) as objects:
        for name in names:
            yield parse_commit(name, objects.read(name, "commit"))


def parse_commit(name: str, raw: bytes) -> CommitSummary:
    """Read the parts of a commit that are shown."""
    header, _, message = raw.partition(b"\n\n")
    fields: dict[bytes, bytes] = {}
    for line in header.split(b"\n"):
        key, _, value = line.partition(b" ")
        fields.setdefault(key, value)
    author, author_time = _identity(fields.get(b"author", b""))
    committer, commit_time = _identity(fields.get(b"committer", b""))
    subject = message.lstrip(b"\n").split(b"\n", 1)[0][: 4 * MAX_SUBJECT]
    return CommitSummary(
        id=name,
        subject=escape(subject)[:MAX_SUBJECT],
        author=author,
        committer=committer,
        author_time=author_time,
        commit_time=commit_time,
    )


def _identity(raw: bytes) -> tuple[str, int]:
    match = _IDENTITY.match(raw[:2000])
    if match is None:
        return escape(raw[:300]), 0
    return escape(match[1] + b" <" + match[2] + b">")[:300], int(match[3] or 0)


def _lines_changed(unit: AdmittedUnit, *, bounds: Bounds) -> tuple[int, int] | None:
    """Insertions and deletions of text files; None when counting takes too long or too much."""
    insertions = deletions = 0
    try:
        with Child(
            unit.git,
            "diff-tree",
            "-r",
            "-z",
            "--numstat",
            *_DIFF,
            unit.start.base_tree,
            unit.tree,
            bounds=bounds,
        ) as child:
            for item in child.items(b"\0", 256 * MIB):
                plus, minus, _ = item.split(b"\t", 2)
                if plus != b"-":
                    insertions += int(plus)
                    deletions += int(minus)
    except (ImportRejectedError, ValueError):
        return None
    return insertions, deletions


def _untracked(unit: AdmittedUnit, *, bounds: Bounds) -> int:
    """Files that the agent made and did not commit."""
    if unit.uncommitted is None:
        return 0
    names = output(unit.git, "rev-parse", "--verify", f"{unit.tip}^{{tree}}", bounds=bounds).decode("ascii")
    new = (c for c in changed_files(unit.git, names.strip(), unit.tree, bounds=bounds) if c.status == "A")
    mine = {
        c.raw
        for c in changed_files(unit.git, unit.start.base_tree, unit.tree, bounds=bounds)
        if c.status == "A"
    }
    return sum(1 for c in new if c.raw in mine)


def diff(unit: AdmittedUnit, *, bounds: Bounds, max_bytes: int = 32 * MIB) -> Iterator[bytes]:
    """Yield the difference of one unit as escaped UTF-8; it says so where it is cut.

    Binary is what holds a NUL, whatever attributes say; git names such files without their content.
    """
    if unit.tree == unit.start.base_tree:
        return
    if unit.start.path:
        yield f"submodule {escape(unit.start.path)}\n".encode()
    total = 0
    for line in diff_lines(unit, "-U3", bounds=bounds):
        shown = escape(line, keep_newlines=True).encode("utf-8") + b"\n"
        total += len(shown)
        if total > max_bytes:
            yield f"... cut after {max_bytes} bytes\n".encode()
            return
        yield shown


def diff_lines(unit: AdmittedUnit, context: str, *, bounds: Bounds) -> Iterator[bytes]:
    """Yield raw lines of the patch. A line longer than a block comes in pieces."""
    for block in diff_blocks(unit, context, bounds=bounds):
        yield from block.removesuffix(b"\n").split(b"\n")


def diff_blocks(unit: AdmittedUnit, context: str, *, bounds: Bounds, max_block: int = MIB) -> Iterator[bytes]:
    """Yield the raw patch in blocks that end in a line feed, but for those of a line that is longer."""
    with Child(
        unit.git, "diff-tree", "-r", "-p", context, "--full-index", *_DIFF,
        "--src-prefix=a/", "--dst-prefix=b/", unit.start.base_tree, unit.tree, bounds=bounds,
    ) as child:  # fmt: skip
        parts: list[bytes] = []
        size = 0
        for chunk in child.chunks(1 << 40):
            end = chunk.rfind(b"\n") + 1
            if end:
                yield b"".join((*parts, chunk[:end]))
                parts, size, chunk = [], 0, chunk[end:]  # noqa: PLW2901  # what is left of it
            parts.append(chunk)
            size += len(chunk)
            if size > max_block:
                yield b"".join(parts)
                parts, size = [], 0
        if size:
            yield b"".join(parts)
