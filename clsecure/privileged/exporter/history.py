"""Where the agent's HEAD stands, seen from where it began."""

from __future__ import annotations

from clsecure.privileged.exporter.files import ExportError
from clsecure.privileged.exporter.repository import Refs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.exporter.scratch import Scratch

MAX_OTHER_REFS = 100


class History:
    """The commits of one repository; as long as nobody looked, nothing has happened in it.

    :ivar head: the commit that was cloned in; ``has_head`` when the agent's repository still has it.
    :ivar tip: where the agent's HEAD stands.
    :ivar unborn: it stands nowhere.
    :ivar rewritten: ``head`` is not among what ``tip`` came of.
    :ivar others: references to commits that ``head`` and ``tip`` did not come of, as (name, id).
    """

    def __init__(self, head: bytes) -> None:
        self.head = self.tip = head
        self.has_head = self.unborn = self.rewritten = False
        self.others: list[tuple[bytes, bytes]] = []

    def look(self, git: Scratch, git_dir: bytes | None) -> None:
        """Find out everything.

        :raises ExportError: HEAD is damaged.
        """
        self.has_head = git.type_of(self.head) == b"commit"
        if git_dir is None:
            self.unborn = True
            return
        refs = Refs(git_dir)
        tip = refs.value(b"HEAD")
        if tip is None:
            self.unborn = True
        elif not (self.has_head and tip == self.head) and git.type_of(tip) != b"commit":
            raise ExportError("HEAD names no commit of the repository")
        else:
            self.tip = tip
        if self.has_head and self.tip != self.head:
            missing = git.run("rev-list", "--max-count=1", self.head, b"^" + self.tip, "--")
            self.rewritten = bool(missing.strip())
        elif not self.has_head:
            self.rewritten = not self.unborn
        self._look_at_others(git, refs)

    def _look_at_others(self, git: Scratch, refs: Refs) -> None:
        there = {i for i, known in ((self.head, self.has_head), (self.tip, not self.unborn)) if known}
        others = {name: value for name, value in refs.others().items() if value not in there}
        if not others:
            return
        ids = sorted(set(others.values()))
        asked = b"".join(i + b"^{commit}\n" for i in ids)
        answer = git.run("cat-file", "--batch-check=%(objectname) %(objecttype)", data=asked).splitlines()
        commit_of = {i: line[:-7] for i, line in zip(ids, answer, strict=True) if line.endswith(b" commit")}
        lost = _lost(git, set(commit_of.values()), there)
        for name, value in sorted(others.items()):
            if commit_of.get(value) in lost and len(self.others) < MAX_OTHER_REFS and len(name) <= 200:
                self.others.append((name, commit_of[value]))


def _lost(git: Scratch, commits: set[bytes], there: set[bytes]) -> set[bytes]:
    """Those of the commits, and of what they came of, that what is there did not come of."""
    if not commits:
        return set()
    revisions = [*sorted(commits), *(b"^" + i for i in sorted(there))]
    try:
        return set(git.run("rev-list", "--stdin", data=b"\n".join(revisions) + b"\n").split())
    except ExportError:
        return commits
