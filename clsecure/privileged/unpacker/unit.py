"""One unit of the stream: a repository, as the user's looks."""

from __future__ import annotations

import base64
import json
import os
import re

from clsecure.privileged.unpacker import lfs
from clsecure.privileged.unpacker.records import UnpackError, shown
from clsecure.privileged.unpacker.repository import Repository
from clsecure.privileged.unpacker.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.unpacker.records import Json, Stream, UnitRecord

SHA256 = re.compile(r"[0-9a-f]{64}")
PACK = re.compile(r"pack-[0-9a-f]{40,64}\.(pack|idx)")


class Unit:
    """One repository: objects first, then the checkout, then what the user had not committed.

    :param portable: the program that git is given as the filter of portable files.
    """

    def __init__(self, workspace: bytes, record: UnitRecord, portable: str) -> None:
        self.record, self.portable = record, portable
        self.path = record.path
        self.lfs: set[bytes] = set()
        self.intended: list[bytes] = []
        self.rules: dict[str, list[Json]] = {}
        self.checked_out = False
        if self.path:
            tree = Tree(workspace)
            try:
                tree.parent(self.path + b"/x", make=0o777)
            finally:
                tree.close()
        top = os.path.join(workspace, self.path) if self.path else workspace
        self.repository = Repository(top)
        self.git = self.repository.git
        self.git("init", "--quiet", "--template=", f"--object-format={record.object_format}", within=False)
        self.tree = Tree(top)
        who = [("user", None, "name", record.user_name), ("user", None, "email", record.user_email)]
        self.repository.configure(who)
        for name, url in record.remotes.items():
            fetch = f"+refs/heads/*:refs/remotes/{name}/*"
            self.repository.configure([("remote", name, "url", url), ("remote", name, "fetch", fetch)])
        if record.hooks_path:
            self.repository.configure([("core", None, "hooksPath", record.hooks_path)])

    def apply(self, record: Json, stream: Stream) -> None:
        """Take one record of this unit."""
        kind = record["type"]
        if kind in ("shallow", "pack", "idx", "hook", "lfs"):
            if self.checked_out:
                raise UnpackError(f"a {kind} record comes too late")
            self._receive(kind, record, stream)
            return
        self.check_out()
        if kind == "portable":
            self.rules = json.loads(stream.bytes())
            return
        path = base64.b64decode(record["path"])
        if path.split(b"/")[0].lower() == b".git":
            raise UnpackError(f"not a path: {shown(path)}")
        if kind == "remove":
            self.tree.remove(path)
        elif kind == "file":
            self.tree.write(path, 0o755 if record["mode"] == "100755" else 0o644, stream)
            if record["intent"]:
                self.intended.append(path)
        elif kind == "symlink":
            self.tree.symlink(path, stream.bytes())
        else:
            raise UnpackError(f"unknown record: {kind[:40]!r}")

    def _receive(self, kind: str, record: Json, stream: Stream) -> None:
        if kind == "shallow":
            self.tree.write(b".git/shallow", 0o644, stream)
        elif kind == "lfs":
            if not SHA256.fullmatch(record["oid"]):
                raise UnpackError("an LFS object's id is malformed")
            name = record["oid"].encode("ascii")
            if self.tree.write(lfs.place_of(name), 0o444, stream, sha256=record["oid"]):
                self.lfs.add(name)
        else:
            name = record["name"]
            if kind != "hook" and not PACK.fullmatch(name):
                raise UnpackError("a pack's name is malformed")
            where = "hooks" if kind == "hook" else "objects/pack"
            mode = 0o755 if kind == "hook" else 0o444
            self.tree.write(os.fsencode(f".git/{where}/{name}"), mode, stream)

    def check_out(self) -> None:
        """Name the branch and write index and files, once."""
        if self.checked_out:
            return
        self.checked_out = True
        record = self.record
        if record.branch is None:
            self.git("update-ref", "--no-deref", "HEAD", record.head)
        else:
            self.git("symbolic-ref", "HEAD", f"refs/heads/{record.branch}")
            self.git("update-ref", "-m", "clone: by clsecure", "HEAD", record.head)
        self.git("read-tree", "--reset", "-u", record.index_tree)
        if record.lfs:
            lfs.smudge(self.repository, self.lfs)

    def finish(self) -> None:
        """Leave the repository as the user's looks."""
        self.check_out()
        if self.intended:
            names = b"".join(path + b"\0" for path in self.intended)
            self.git("add", "-N", "--force", "--pathspec-from-file=-", "--pathspec-file-nul", data=names)
        if self.rules:
            # Few repositories need it.
            from clsecure.privileged.unpacker.rewriting import make_portable

            make_portable(self.repository, self.tree, self.rules, self.intended, self.portable)
        self.tree.close()
