"""One unit of the export: from its directory to the pack that goes home."""

from __future__ import annotations

import hashlib
import os
import stat
import time

from clsecure.privileged.exporter import lfs
from clsecure.privileged.exporter.files import kind_of, read_regular
from clsecure.privileged.exporter.history import History
from clsecure.privileged.exporter.index import Counts, Index
from clsecure.privileged.exporter.refusals import Refusals
from clsecure.privileged.exporter.repository import check_git_dir, find_git_dir
from clsecure.privileged.exporter.scratch import Scratch
from clsecure.privileged.exporter.worktree import WorkTree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.exporter.request import Request, UnitRequest


class Unit:
    """One repository: the top, or a submodule that was cloned in.

    :ivar absent: its directory is not there any more, or empty.
    :ivar tree: the work tree as it comes home, None when it is not known.
    :ivar uncommitted: the commit that was made of what was not committed.
    :ivar pack: the file with what is new, None when nothing is.
    """

    def __init__(self, asked: UnitRequest, request: Request) -> None:
        self.asked = asked
        self.request = request
        self.root = os.path.join(request.workspace, asked.path) if asked.path else request.workspace
        self.history = History(asked.head)
        self.refusals = Refusals(request.most_refused)
        self.absent = False
        self.tree = asked.base_tree or None
        self.uncommitted: bytes | None = None
        self.counts = Counts()
        self.pack: str | None = None
        self.lfs: lfs.Objects = {}

    @property
    def final(self) -> bytes:
        """The commit that comes home."""
        return self.uncommitted or self.history.tip

    def collect(self, temp: str, deadline: float, finals: dict[bytes, bytes]) -> None:
        """Find out everything and write the pack to the temporary directory.

        :param finals: path → final commit of the units that are done.
        """
        self.absent = self._is_absent()
        if self.absent:
            return
        asked = self.asked
        git_dir = find_git_dir(self.root, self.request.workspace)
        if git_dir is not None:
            check_git_dir(git_dir)
        objects = None if git_dir is None else os.path.join(git_dir, b"objects")
        name = "unit-" + hashlib.sha256(asked.path).hexdigest()[:16]
        git = Scratch(temp, name, self.root, asked.format, objects, deadline)
        if git_dir is not None:
            shallow = read_regular(os.path.join(git_dir, b"shallow"), 16 << 20)
            if shallow:
                with open(os.path.join(git.dir, "shallow"), "wb") as file:
                    file.write(shallow)
        self.history.look(git, git_dir)
        work = WorkTree(self.root, asked.children)
        index = Index(git, work, self.history, git_dir, self.refusals)
        self.tree = index.build(asked.prefix, finals, asked.rules)
        self.counts, self.lfs = index.counts, index.lfs
        self._commit(git, self.tree)
        if self.final == asked.head:
            return
        known = [b"^" + asked.head] if self.history.has_head else []
        self.pack = self._pack(git, self.tree, known)
        if self.history.tip != asked.head:
            self.lfs |= lfs.committed(git, git_dir, [self.history.tip, *known], self.lfs)

    def _is_absent(self) -> bool:
        if not self.asked.path:
            return False
        parts = self.asked.path.split(b"/")
        for depth in range(len(parts)):
            if not stat.S_ISDIR(kind_of(os.path.join(self.request.workspace, *parts[: depth + 1]))):
                return True
        return not os.listdir(self.root)

    def _commit(self, git: Scratch, tree: bytes) -> None:
        history = self.history
        if history.tip == history.head and tree == self.asked.base_tree:
            return
        known = history.has_head or not history.unborn
        tip_tree = git.run("rev-parse", "--verify", history.tip + b"^{tree}").strip() if known else b""
        if tree == tip_tree:
            return
        who = b"%s %d +0000" % (self.request.author, int(time.time()))
        message = self.request.message.replace("\0", "").encode("utf-8", "replace").strip() + b"\n"
        # Written as an object, not by commit-tree: the parent need not be there when the agent removed .git.
        header = b"tree %s\nparent %s\n" % (tree, history.tip)
        commit = header + b"author %s\ncommitter %s\n\n%s" % (who, who, message)
        self.uncommitted = git.run("hash-object", "-w", "-t", "commit", "--stdin", data=commit).strip()

    def _pack(self, git: Scratch, tree: bytes, known: list[bytes]) -> str:
        history = self.history
        if not history.has_head and history.tip == history.head:
            # The parent is on the host only: what is new is the commit itself and its tree.
            names = git.run("rev-list", "--objects", tree).split(b"\n")
            wants, revs = [self.final, *(n.split(b" ")[0] for n in names if n)], []
        else:
            wants, revs = [self.final, *known], ["--revs", "--thin"]
        name = git.dir + ".pack"
        with open(name, "wb") as file:
            git.run(
                "pack-objects", *revs, "--stdout", "--delta-base-offset", "-q",
                data=b"\n".join(wants) + b"\n", out=file,
            )  # fmt: skip
        return name
