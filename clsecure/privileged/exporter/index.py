"""What of a work tree comes home, put together in an index of our own."""

from __future__ import annotations

import os
import stat

from clsecure.privileged.exporter import lfs
from clsecure.privileged.exporter.files import ExportError, kind_of, parents, read_regular
from clsecure.privileged.exporter.scratch import nul
from clsecure.privileged.exporter.takeback import take_back
from clsecure.privileged.exporter.worktree import file_blob_id, mode_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from clsecure.privileged.exporter.history import History
    from clsecure.privileged.exporter.refusals import Refusals
    from clsecure.privileged.exporter.request import Json
    from clsecure.privileged.exporter.scratch import Entries, Scratch
    from clsecure.privileged.exporter.worktree import WorkTree

MAX_FILE = 2047 << 20  # as max_blob_bytes and max_lfs_bytes of the import
MAX_LFS = 16384 << 20
NOTHING = (b"", b"")


class Counts:
    """How much of the work git did not know of.

    :ivar untracked: files that come home though they were not added.
    :ivar deleted: files that went.
    :ivar ignored: what stays there; a directory of them counts once.
    """

    untracked = deleted = ignored = 0


class Index:
    """The index, which begins as the commit that was cloned in.

    :ivar lfs: objects of git-lfs that have to travel.
    """

    def __init__(
        self, git: Scratch, work: WorkTree, history: History, git_dir: bytes | None, refusals: Refusals
    ) -> None:
        self.git, self.work, self.history, self.refuse = git, work, history, refusals.add
        self.start: Entries = git.entries(history.head) if history.has_head else {}
        self.at_tip = self.start if history.tip == history.head else git.entries(history.tip)
        if history.has_head:
            git.run("read-tree", history.head)
        self.staged = self._agents(git_dir)
        self.lfs: lfs.Objects = {}
        self.counts = Counts()

    def _agents(self, git_dir: bytes | None) -> dict[bytes, bytes]:
        """What the agent's index lists: it adds paths (``git add --force``), it never hides any."""
        if git_dir is None:
            return {}
        data = read_regular(os.path.join(git_dir, b"index"), 1 << 30)
        if not data:
            return {}
        # A split index names a second file, which git looks for in the directory of the repository.
        for name in sorted(n for n in os.listdir(git_dir) if n.startswith(b"sharedindex."))[:4]:
            with open(os.path.join(os.fsencode(self.git.dir), name), "wb") as file:
                file.write(read_regular(os.path.join(git_dir, name), 1 << 30))
        with open(self.git.agent_index, "wb") as file:
            file.write(data)
        env = {"GIT_INDEX_FILE": self.git.agent_index}
        try:
            found = {}
            for item in self.git.items("ls-files", "-z", "--stage", env=env):
                meta, path = item.split(b"\t", 1)
                found[path] = meta.split(b" ")[0]
            return found
        except ExportError:
            self.refuse(b".git/index", "the index can't be read: files added by force may be missing")
            return {}

    def build(self, prefix: bytes, finals: dict[bytes, bytes], rules: dict[bytes, list[Json]]) -> bytes:
        """Put in what comes home; return the tree.

        :param finals: what the gitlinks of units that are done name, by the path below the workspace, which
            is ``prefix`` and the path in here.
        :param rules: of portable files.
        """
        git, work, start, at_tip, staged = self.git, self.work, self.start, self.at_tip, self.staged
        # Paths with links or files where directories were are not in work.files: they count as deleted.
        known = set(start) | set(at_tip) | set(staged)
        links = {
            p
            for p in known
            if b"160000" in (start.get(p, NOTHING)[0], at_tip.get(p, NOTHING)[0], staged.get(p))
        }
        others = git.items("ls-files", "-z", "--others", "--exclude-standard")
        self.counts.ignored = len(
            git.items("ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory")
        )
        repositories = {p[:-1] for p in others if p.endswith(b"/")}
        loose = {p for p in others if not p.endswith(b"/")}
        dropped = [p for p in start if p not in at_tip and p not in staged and p in work.files]
        if dropped:  # untracked by the agent: out when it is ignored now, in as an untracked file otherwise
            known -= git.ignored(dropped, "--no-index")
        wanted = {p for p in known | loose if p in work.files}
        self.counts.untracked = len(wanted - set(at_tip) - set(staged))
        kept = {p for p in links if self._link_stays(p)}
        gone = {p for p in start if p not in wanted and p not in kept and not work.beneath_unreadable(p)}
        self.counts.deleted = len([p for p in at_tip if p not in wanted and p not in kept])
        for path in sorted(wanted):
            if not work.readable(path):
                self.refuse(path, "it can't be read")
                wanted.discard(path)
        if gone:
            git.run("update-index", "--force-remove", "-z", "--stdin", data=nul(gone))
        self._put_in(wanted, rules, [(p, self._link_id(p, prefix, finals)) for p in sorted(kept)])
        self._name_refusals(wanted, kept, repositories)
        return git.run("write-tree").strip()

    def _put_in(
        self, wanted: set[bytes], rules: dict[bytes, list[Json]], links: list[tuple[bytes, bytes]]
    ) -> None:
        """Put in files and gitlinks; what is too large leaves ``wanted``."""
        git, work, start, at_tip = self.git, self.work, self.start, self.at_tip
        managed = lfs.managed(git, work, wanted, (start, at_tip))
        self._leave_out_large(managed, MAX_LFS, wanted)
        managed = [path for path in managed if path in wanted]
        pointers, self.lfs = lfs.as_pointers(git, work, managed, start, at_tip)
        self._leave_out_large(wanted - set(pointers), MAX_FILE, wanted)
        plain = wanted - set(pointers)
        if plain:
            git.run("update-index", "--add", "--replace", "-z", "--stdin", data=nul(plain))
        taken_back = take_back(git, work, plain, at_tip, rules)
        info = [b"%s %s\t%s" % (mode, i, p) for p, (mode, i) in pointers.items()]
        info += [b"160000 %s\t%s" % (i, p) for p, i in links]
        if info:
            git.run("update-index", "--add", "--replace", "-z", "--index-info", data=nul(info))
        self._keep_identical(wanted, taken_back)

    def _leave_out_large(self, paths: Iterable[bytes], most: int, wanted: set[bytes]) -> None:
        """Name what the host refuses anyway: a sparse file costs the agent nothing, and hashing it hours."""
        for path in sorted(paths):
            if os.lstat(self.work.at(path)).st_size > most:
                self.refuse(path, f"it is larger than {most >> 20} MiB")
                wanted.discard(path)

    def _link_stays(self, path: bytes) -> bool:
        if path in self.work.files or any(f in self.work.files for f in parents(path)):
            return False
        mode = kind_of(self.work.at(path))
        if path not in self.at_tip and path not in self.staged:
            return False  # the agent removed it, whatever still lies there
        if path in self.work.children:
            return stat.S_ISDIR(mode)
        return stat.S_ISDIR(mode) or path in self.staged

    def _link_id(self, path: bytes, prefix: bytes, finals: dict[bytes, bytes]) -> bytes:
        if prefix + path in finals:
            return finals[prefix + path]
        for entries in (self.at_tip, self.start):
            if entries.get(path, NOTHING)[0] == b"160000":
                return entries[path][1]
        env = {"GIT_INDEX_FILE": self.git.agent_index}
        return self.git.run("ls-files", "-z", "--stage", "--", path, env=env).split(b" ")[1]

    def _keep_identical(self, wanted: set[bytes], taken_back: dict[bytes, bytes]) -> None:
        """A file whose bytes are the blob of the start keeps it, whatever the attributes would make of it."""
        if not self.history.has_head:
            return
        how = ("--cached", "-z", "--no-renames", "--name-only")
        info = []
        for path in self.git.items("diff-index", *how, self.history.head, "--"):
            mode, blob = self.start.get(path, NOTHING)
            full = taken_back.get(path) or self.work.at(path)
            if not mode.startswith(b"100") or path not in wanted or os.path.islink(full):
                continue
            if os.access(full, os.R_OK) and file_blob_id(full, self.git.format) == blob:
                info.append(b"%s %s\t%s" % (mode_of(full), blob, path))
        if info:
            self.git.run("update-index", "-z", "--index-info", data=nul(info))

    def _name_refusals(self, wanted: set[bytes], kept: set[bytes], repositories: set[bytes]) -> None:
        work = self.work
        taken = set(self.git.items("ls-files", "-z"))
        for path in sorted(wanted - taken):
            self.refuse(path, "git takes no file of this name")
        for prefix, why in work.unreadable:
            self.refuse(prefix, f"the directory can't be read: {why}")
        found = {p[:-1] for p in work.embedded}
        embedded = found - kept
        odd = [p for p in (*work.special, *embedded) if not kept.intersection(parents(p))]
        ignored = self.git.ignored(odd) if odd else set()
        for path in sorted((set(odd) - ignored) | repositories - kept):
            if path in embedded or path in repositories:
                self.refuse(path, "a repository of its own that was not cloned in")
            else:
                self.refuse(path, "neither a file nor a directory nor a symbolic link")
        for path in sorted((kept - work.children) & found):
            self.refuse(path, "a repository of its own that was not cloned in")
