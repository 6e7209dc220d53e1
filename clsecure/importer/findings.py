"""What to look at before the branch is checked out, in the files and commits that are new or changed."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from clsecure.errors import ImportRejectedError
from clsecure.importer.attributes import filtered
from clsecure.importer.bounded import MIB, Bounds, Objects
from clsecure.importer.patterns import PACKAGE_JSON, PACKAGE_JSON_KEYS, PATH_RULES, TOKENS
from clsecure.importer.quarantine import listing
from clsecure.importer.summary import changed_files, commits, diff_blocks
from clsecure.importer.values import AdmittedUnit, FileChange
from clsecure.model import ImportFinding, Severity
from clsecure.terminal import escape, has_invisible

MAX_PER_KIND = 50
MAX_SCANNED = 256 * MIB
MAX_COMMITS = 10_000
MAX_BLOB = MIB
_CLOCK_SKEW = 3600
_SIGNS = tuple(sign for rule in TOKENS for sign in rule.signs)
_DOUBTFUL = re.compile(
    "[\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\x1b\x9b\u3164\u115f\u1160\uffa0]"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the session itself would have written into a commit.

    :param author: ``Name <address>`` that was configured for the agent.
    :param started: seconds since 1970 when the session began.
    :param now: seconds since 1970.
    """

    author: str
    started: float
    now: float


@dataclass(slots=True)
class _Collector:
    found: dict[str, list[ImportFinding]] = field(default_factory=dict)
    more: dict[str, int] = field(default_factory=dict)
    worst: dict[str, Severity] = field(default_factory=dict)

    def add(self, kind: str, path: str, severity: Severity, message: str) -> None:
        items = self.found.setdefault(kind, [])
        self.worst[kind] = max(self.worst.get(kind, severity), severity, key=list(Severity).index)
        if len(items) < MAX_PER_KIND:
            items.append(ImportFinding(kind=kind, path=path, severity=severity, message=message))
        else:
            self.more[kind] = self.more.get(kind, 0) + 1

    def result(self) -> tuple[ImportFinding, ...]:
        out = []
        for kind, items in self.found.items():
            out += items
            if kind in self.more:
                message = f"{self.more[kind]} more of this kind"
                out.append(ImportFinding(kind=kind, path="", severity=self.worst[kind], message=message))
        return tuple(sorted(out, key=lambda f: -list(Severity).index(f.severity)))


def find(units: Iterable[AdmittedUnit], expected: Expected, *, bounds: Bounds) -> tuple[ImportFinding, ...]:
    """Return the findings of all units, the gravest first, at most ``MAX_PER_KIND`` of each kind.

    They are advice, computed from what is new: an empty result is no promise that the work is harmless.
    """
    collector = _Collector()
    for unit in units:
        if not unit.changed:
            continue
        prefix = unit.start.path + b"/" if unit.start.path else b""
        changes = changed_files(unit.git, unit.start.base_tree, unit.tree, prefix=prefix, bounds=bounds)
        with Objects(unit.git, bounds=bounds, max_object=64 * MIB) as objects:
            for change in changes:
                _path_findings(collector, change)
                _content_findings(collector, objects, change)
        _whole_tree(collector, unit, prefix, bounds=bounds)
        _unfiltered(collector, unit, prefix, bounds=bounds)
        _text_findings(collector, unit, prefix, bounds=bounds)
        _history(collector, unit, expected, bounds=bounds)
    return collector.result()


def _path_findings(collector: _Collector, change: FileChange) -> None:
    verb = {"A": "added", "D": "deleted"}.get(change.status, "changed")
    lowered = change.raw.decode("utf-8", "surrogateescape").lower()
    for rule in PATH_RULES:
        if rule.pattern.fullmatch(lowered):
            severity = rule.severity if change.status != "D" else Severity.INFO
            collector.add(rule.kind, change.path, severity, f"{verb}: {rule.why}")
    if change.status == "D":
        return
    if (
        has_invisible(change.raw.decode("utf-8", "surrogateescape"))
        or b"\n" in change.raw
        or b"\t" in change.raw
    ):
        collector.add(
            "odd_name", change.path, Severity.WARNING, "the name holds what a terminal does not show"
        )
    if change.new_mode == "100755" and change.old_mode != "100755":
        collector.add("executable", change.path, Severity.WARNING, "is executable now")
    elif change.old_mode == "100755" and change.new_mode == "100644":
        collector.add("executable", change.path, Severity.INFO, "is not executable any more")
    if change.new_mode == "160000" and change.old_mode != "160000":
        collector.add("submodule", change.path, Severity.HIGH, "a submodule that was not there before")


def _content_findings(collector: _Collector, objects: Objects, change: FileChange) -> None:
    if change.status == "D":
        return
    if change.new_mode == "120000":
        _symlink(collector, objects, change)
    elif PACKAGE_JSON.fullmatch(change.raw.decode("utf-8", "surrogateescape")):
        old = _package_keys(objects, change.old_id if change.old_mode.startswith("100") else None)
        new = _package_keys(objects, change.new_id)
        keys = sorted(key for key in PACKAGE_JSON_KEYS if old.get(key) != new.get(key))
        if keys or new.get("?"):
            what = ", ".join(keys) or "not readable as JSON"
            collector.add("package_scripts", change.path, Severity.HIGH, f"npm obeys it at install: {what}")


def _symlink(collector: _Collector, objects: Objects, change: FileChange) -> None:
    info = objects.info(change.new_id)
    if info is None or info[1] > 4096:
        collector.add("symlink", change.path, Severity.HIGH, "a symbolic link with an endless target")
        return
    target = objects.read(change.new_id, "blob").decode("utf-8", "surrogateescape")
    here = posixpath.dirname(change.raw.decode("utf-8", "surrogateescape"))
    resolved = posixpath.normpath(posixpath.join(here, target))
    if target.startswith("/"):
        collector.add("symlink", change.path, Severity.HIGH, f"leads to {escape(target)[:300]}")
    elif resolved == ".." or resolved.startswith("../"):
        collector.add("symlink", change.path, Severity.HIGH, f"leaves the tree: {escape(target)[:300]}")
    elif ".git" in resolved.lower().split("/"):
        collector.add("symlink", change.path, Severity.HIGH, f"leads into .git: {escape(target)[:300]}")


def _package_keys(objects: Objects, blob: str | None) -> dict[str, object]:
    if blob is None:
        return {}
    info = objects.info(blob)
    if info is None or info[1] > MAX_BLOB:
        return {"?": True}
    try:
        document = json.loads(objects.read(blob, "blob"))
    except (ValueError, RecursionError):
        return {"?": True}
    return document if isinstance(document, dict) else {"?": True}


def _whole_tree(collector: _Collector, unit: AdmittedUnit, prefix: bytes, *, bounds: Bounds) -> None:
    """Names that are only harmful together: differing by case alone, or a bare repository among the files."""
    before = listing(unit.git, unit.start.base_tree, bounds=bounds)
    after = listing(unit.git, unit.tree, bounds=bounds)
    if before.keys() == after.keys():
        return
    folded: dict[str, bytes] = {}
    directories = {posixpath.dirname(path) for path in after}
    directories |= {parent for path in directories for parent in _parents(path)}
    old_directories = {posixpath.dirname(path) for path in before}
    for path in sorted((directories | after.keys()) - {b""}):
        key = path.decode("utf-8", "surrogateescape").casefold()
        other = folded.setdefault(key, path)
        if other != path and not (
            _known(other, before, old_directories) and _known(path, before, old_directories)
        ):
            message = f"differs from {escape(prefix + other)} by case only"
            collector.add("case_collision", escape(prefix + path), Severity.WARNING, message)
    for path in after:
        # git takes any directory with these three for a repository, with its configuration and hooks.
        if posixpath.basename(path) == b"HEAD":
            place = posixpath.dirname(path)
            inside = place + b"/" if place else b""
            if {inside + b"objects", inside + b"refs"} <= directories and path not in before:
                message = "looks like a bare repository: git would obey its configuration and hooks"
                collector.add("embedded_repository", escape(prefix + place), Severity.HIGH, message)


def _unfiltered(collector: _Collector, unit: AdmittedUnit, prefix: bytes, *, bounds: Bounds) -> None:
    """Content that a filter (git-crypt, say) would have changed: but for LFS, none runs on the way.

    Known are the attributes of the files in the tree, not those of the user's own configuration.
    """
    for path, name in filtered(unit.git, unit.start.base_tree, unit.tree, bounds=bounds):
        message = f"the filter {escape(name)[:100]} did not run: the content came home as it is"
        collector.add("unfiltered", escape(prefix + path), Severity.WARNING, message)


def _known(path: bytes, files: dict[bytes, tuple[str, str]], directories: set[bytes]) -> bool:
    return path in files or path in directories


def _parents(path: bytes) -> Iterator[bytes]:
    while path:
        path = posixpath.dirname(path)
        yield path


def _text_findings(collector: _Collector, unit: AdmittedUnit, prefix: bytes, *, bounds: Bounds) -> None:
    """Secrets and deceiving characters in added lines.

    Tokens are recognised by the forms that their issuers document, in the final state only: a password in
    prose, an encoded or split token, or one that a later commit removed is not found.
    """
    scan = _Scan(collector=collector, prefix=prefix)
    scanned = 0
    try:
        for block in diff_blocks(unit, "-U0", bounds=bounds.shorter(120)):
            scanned += len(block)
            if scanned > MAX_SCANNED:
                message = "the text from here on was not looked through"
                collector.add("not_scanned", scan.path, Severity.WARNING, message)
                return
            scan.block(block)
    except ImportRejectedError:
        message = "the text from here on could not be looked through"
        collector.add("not_scanned", scan.path, Severity.WARNING, message)


@dataclass(slots=True, kw_only=True)
class _Scan:
    """Where in the patch we are."""

    collector: _Collector
    prefix: bytes
    path: str = ""
    header: bool = True
    unfinished: bytes = b""
    """The first byte of a line whose end has not come yet."""

    def block(self, block: bytes) -> None:
        """Look through a block; most hold nothing of interest, and are not even taken apart."""
        if block.isascii() and b"\x1b" not in block and not any(sign in block for sign in _SIGNS):
            # No line of a file's content begins like that: it has a sign or a space in front.
            begin = block.rfind(b"\ndiff --git ") + 1
            if not begin and not self.header and not block.startswith(b"diff --git "):
                self.unfinished = b"" if block.endswith(b"\n") else self.unfinished or block[:1]
                return
            block = block[begin:]
            if begin:
                self.unfinished = b""
        whole = block.endswith(b"\n")
        lines = (self.unfinished + block).removesuffix(b"\n").split(b"\n")
        for line in lines:
            self._line(line)
        self.unfinished = b"" if whole else lines[-1][:1]

    def _line(self, line: bytes) -> None:
        if line.startswith(b"diff --git "):
            self.header = True
        elif self.header:
            if line.startswith(b"+++ "):
                self.path = _patch_path(line[4:], self.prefix)
            self.header = not line.startswith(b"@@ ")
        elif line.startswith(b"+"):
            _added_line(self.collector, self.path, line[1:])


def _patch_path(name: bytes, prefix: bytes) -> str:
    name = name.rstrip(b"\t")
    if name.startswith(b'"'):
        return escape(prefix) + escape(name.strip(b'"').removeprefix(b"b/"))
    return escape(prefix + name.removeprefix(b"b/"))


def _added_line(collector: _Collector, path: str, line: bytes) -> None:
    for rule in TOKENS:
        if any(sign in line for sign in rule.signs) and rule.pattern.search(line):
            # Never the token itself: this is printed, logged and kept.
            collector.add(
                "secret", path, Severity.HIGH, f"an added line looks like it holds a secret: {rule.name}"
            )
    if not line.isascii() or b"\x1b" in line:
        text = line.decode("utf-8", "replace")
        match = _DOUBTFUL.search(text)
        if match is not None:
            message = f"an added line holds a character that hides or reorders text: {escape(match[0])}"
            collector.add("hidden_text", path, Severity.HIGH, message)


def _history(collector: _Collector, unit: AdmittedUnit, expected: Expected, *, bounds: Bounds) -> None:
    where = escape(unit.start.path)
    if unit.rewritten:
        message = (
            f"the history does not continue from {unit.start.head[:12]}: commits were dropped or rewritten"
        )
        collector.add("rewritten_history", where, Severity.HIGH, message)
    wanted = escape(expected.author)
    for commit in islice(commits(unit, bounds=bounds, most=MAX_COMMITS), MAX_COMMITS):
        for role, who in (("author", commit.author), ("committer", commit.committer)):
            if who != wanted:
                message = f"commit {commit.id[:12]}: {role} is {who}"
                collector.add("identity", where, Severity.WARNING, message)
        early, late = expected.started - _CLOCK_SKEW, expected.now + _CLOCK_SKEW
        if not (early <= commit.author_time <= late and early <= commit.commit_time <= late):
            message = f"commit {commit.id[:12]}: dated outside of the session"
            collector.add("date", where, Severity.WARNING, message)
    if unit.commits > MAX_COMMITS:
        collector.add("not_scanned", where, Severity.WARNING, f"only {MAX_COMMITS} commits were looked at")
