"""D: work that must not come home, or can't: each attack is refused, named, and keeps the session.

One kept session per mode: each attack restores the pristine copy that the first one made, does its worst, and
asks for the import.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import sweep
from tests.support.homecoming import (
    Marker,
    branch_of,
    fsck,
    session_key,
    wait_for_exporter,
    workspace,
)
from tests.support.hostile import DEADLINE, Attack, Target, canary, quoted
from tests.support.repostate import assert_only_new_branch, snapshot

pytestmark = pytest.mark.root

_PRISTINE = """
set -e
find . -mindepth 1 -delete
cp -a ~/pristine/. .
"""

# tree ENTRIES: write a raw tree of "mode name id" triples; commit TREE: commit it on top of HEAD.
_TOOLS = r"""
tree() {
    python3 -c '
import hashlib, os, subprocess, sys
data = b""
for mode, name, oid in zip(*[iter(sys.argv[1:])] * 3):
    name = os.fsencode(name).decode("unicode_escape").encode("latin-1")
    data += mode.encode() + b" " + name + b"\0" + bytes.fromhex(oid)
write = ["git", "hash-object", "-w", "-t", "tree", "--literally", "--stdin"]
sys.stdout.write(subprocess.run(write, input=data, stdout=subprocess.PIPE, check=True).stdout.decode())
' "$@"
}
commit() { git update-ref HEAD "$(git commit-tree -m attack -p HEAD "$1")"; }
blob() { git hash-object -w --stdin; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Siege:
    """A kept session that is attacked from within again and again."""

    target: Target
    marker: Marker
    key: str
    canary: str

    def attack(self, script: str, *options: str) -> Attack:
        """Restore the copy, attack, and ask for the import; the generic rule holds in any case."""
        top = self.target.repository
        before = snapshot(top)
        attack = self.target.attack(_PRISTINE + _TOOLS + script, "--resume", *options, finish="import")
        assert attack.status == 0, attack.said
        branch = branch_of(attack.outcome) if attack.outcome.returncode == 0 else None
        assert_only_new_branch(before, snapshot(top), branch)
        fsck(self.target.person, top)
        assert self.marker.sprung(self.target.account()["home"]) == []
        return attack

    def refused(self, script: str, words: str, *options: str) -> str:
        """Attack; the import is refused in these words, the session kept. Returns all that was said."""
        began = time.monotonic()
        attack = self.attack(script, *options)
        assert attack.outcome.returncode == 125, attack.outcome
        said = attack.outcome.errors + attack.outcome.text
        assert words in said, said
        assert time.monotonic() - began < DEADLINE
        assert (workspace(self.target)).is_dir(), "the work is gone"
        listed = self.target.person.clsecure("list", "--output", "json").check().json()["sessions"]
        (mine,) = [s for s in listed if s["session_id"] == self.key]
        assert mine["status"] == "kept"
        return said


@pytest.fixture(scope="module")
def siege(person, mode) -> Siege:
    """The first session: it only keeps a pristine copy of its work tree."""
    target = Target(person=person, mode=mode, repository=person.repository(f"siege-{mode}"), session="siege")
    secret = canary()
    person.run(["/bin/sh", "-c", f"echo {secret} >>README.md && git stash -q"], cwd=target.repository).check()
    target.attack("cp -a . ~/pristine && echo work >>README.md", finish="keep").outcome.check()
    return Siege(target=target, marker=Marker.of(person), key=session_key(target), canary=secret)


def test_the_siege_itself_lets_honest_work_through(siege):
    """The control: with the same restoring and the same tools, a raw tree comes home."""
    attack = siege.attack('commit "$(tree 100644 fine "$(echo fine | blob)")"; git reset -q --hard')
    made = attack.result["import"]
    assert made["commits"] == 1
    assert siege.target.person.git(siege.target.repository, "show", f"{made['tip']}:fine") == "fine"


def test_d4_promisor_remotes(siege):
    """Missing objects and a promisor remote whose URL is a command: whoever looks for them runs it."""
    # git splits such a URL at spaces, but for those behind a "%".
    trap = f"echo promisor >>{siege.marker.host}; echo promisor >>~/M".replace(" ", "% ")
    siege.refused(
        f"""
        blob=$(echo lost | blob); commit "$(tree 100644 lost "$blob")"; git reset -q --hard
        rm -f .git/objects/$(echo "$blob" | cut -c1-2)/* lost
        git config extensions.partialClone origin; git config remote.origin.promisor true
        git config protocol.ext.allow always
        git config remote.origin.url {quoted("ext::sh -c " + trap)}
        git cat-file blob "$blob" 2>/dev/null && exit 9
        test -s ~/M
        rm ~/M
        """,
        "git pack-objects failed",
    )


@pytest.mark.parametrize("how", ["gitfile", "link", "alternates", "commondir", "worktree-config"])
def test_d7_other_repositories_of_the_user(siege, how):
    """A gitfile, a link, alternates or a common directory name the person's own repository on the host."""
    theirs = siege.target.repository / ".git"
    script = {
        "gitfile": f"mv .git ~/moved; echo 'gitdir: {theirs}' >.git",
        "link": f"mv .git ~/moved; ln -s {theirs} .git",
        "alternates": f"mkdir -p .git/objects/info; echo {theirs}/objects >.git/objects/info/alternates",
        "commondir": f"echo {theirs} >.git/commondir",
        "worktree-config": f"rm -r .git/objects; ln -s {theirs}/objects .git/objects",
    }[how]
    said = siege.refused("rm -rf ~/moved\n" + script, "the agent's work can't be exported")
    assert siege.canary not in said


def test_d7_an_object_that_the_session_was_never_given(siege):
    """A tree names the id of a blob in the person's stash, hoping that the import finds it there."""
    top = siege.target.repository
    theirs = siege.target.person.git(top, "rev-parse", "stash@{0}:README.md")
    assert siege.canary in siege.target.person.git(top, "cat-file", "blob", theirs)
    siege.refused(f'commit "$(tree 100644 gift {theirs})"', "failed")


@pytest.mark.parametrize("name", [".git", "..", "git~1", ".GIT", r".g\342\200\214it", ".git ", "a/b"])
def test_d8_trees_with_names_that_stand_for_git(siege, name):
    """A raw tree has an entry that a checkout would write into .git, on this or another file system."""
    inner = 'inner=$(tree 100644 config "$(echo x | blob)")'
    siege.refused(f'{inner}; commit "$(tree 40000 {quoted(name)} $inner)"', "refuse")


def test_d8_a_link_and_a_directory_of_the_same_name(siege):
    """A raw tree has a link and a directory of one name: a careless checkout writes through the link."""
    outside = siege.target.person.home / "home-of-the-person"
    siege.refused(
        f'link=$(printf %s {outside} | blob); inner=$(tree 100644 x "$link"); '
        'commit "$(tree 120000 a "$link" 40000 a "$inner")"',
        "refuse",
    )
    assert not outside.exists()


def test_d11_a_history_cut_by_the_agent(siege):
    """A shallow file of the agent's cuts the history above its own commits."""
    siege.refused(
        """
        for n in 1 2 3; do echo $n >>README.md; git commit -qam $n; done
        git rev-parse HEAD >.git/shallow
        """,
        "refuses the agent's objects",
    )
    assert not (siege.target.repository / ".git/shallow").exists()


@pytest.mark.parametrize(
    "path", [".git/HEAD", ".git/index", ".git/packed-refs", ".git/config", ".gitignore", ".git/objects/aa"]
)
def test_d18_what_git_would_wait_for(siege, path):
    """A FIFO in the place of a file that git opens: reading it never ends."""
    siege.refused(f"rm -rf {path}; mkfifo {path}", "is not a regular file")


def test_d18_ctrl_c_ends_an_export(siege):
    """The agent leaves work that takes long to bring out, and the person has enough of it."""
    top, account = siege.target.repository, siege.target.account()
    uid = int(account["uid"])
    before = snapshot(top)
    # To be hashed as a file of git-lfs: most of a minute.
    script = _PRISTINE + "echo '*.bin filter=lfs' >.gitattributes; truncate -s 15G endless.bin"
    process = siege.target.person.spawn(
        siege.target.argv(["/bin/sh", "-c", script], "--resume", finish="import"), cwd=top,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        exporter = wait_for_exporter(uid, process)
        os.killpg(process.pid, signal.SIGINT)
        began = time.monotonic()
        _, said = process.communicate(timeout=DEADLINE)
        assert process.returncode == 130, said
        assert time.monotonic() - began < DEADLINE / 2
        assert not Path(f"/proc/{exporter}").exists(), "the exporter goes on"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=DEADLINE)
    assert sweep.processes_of(uid) == []
    assert_only_new_branch(before, snapshot(top), None)
    assert (workspace(siege.target) / "endless.bin").exists(), "the work is gone"


@pytest.mark.parametrize(
    "content",
    [
        r'[submodule "a"]\n\tpath = a\n\turl = ext::sh -c id\n',
        r'[submodule "a"]\n\tpath = a\n\turl = https://example.org/a\n\tupdate = !id\n',
        r'[submodule "a"]\n\tpath = ../a\n\turl = https://example.org/a\n',
        r'[submodule "a"]\n\tpath = "a\r"\n\turl = https://example.org/a\n',
    ],
)
def test_d25_submodules_that_run_or_lead_elsewhere(siege, content):
    """A .gitmodules that makes `git submodule update` run a command or write somewhere else."""
    siege.refused(f"printf {quoted(content)} >.gitmodules; git add .; git commit -qm modules", ".gitmodules")
    assert not (siege.target.repository / ".git/modules").exists()


def test_d28_rewritten_history_is_reported(siege):
    """The agent drops the commit that it was given and starts anew."""
    attack = siege.attack("echo new >>README.md; git commit -qa --amend -m mine")
    findings = attack.result["import"]["findings"]
    assert "rewritten_history" in {finding["kind"] for finding in findings}
    assert "rewrote the history" in attack.outcome.errors


def test_d28_the_base_is_out_of_reach(siege):
    """What the work is compared with lies on the host: the worker account itself tries to change it there."""
    account, home = siege.target.account(), siege.target.person.home
    bases = list(home.glob(".local/state/clsecure/sessions/*/base"))
    assert bases, "there is no base to be attacked"
    as_worker = {"user": account["uid"], "group": account["uid"], "extra_groups": []}
    for base in bases:
        for attempt in (["ls", base], ["touch", base / "x"], ["cat", base.parent / "start.json"]):
            done = subprocess.run(attempt, capture_output=True, check=False, **as_worker)
            assert b"Permission denied" in done.stderr, done
    # The same attempt by the person succeeds: it is the account that is kept out.
    siege.target.person.run(["ls", str(bases[0])]).check()


_BOMB = """
below=$(tree 100644 x "$(echo x | blob)")
for _ in 1 2 3 4 5 6 7 8 9; do
    entries=; for n in 0 1 2 3 4 5 6 7 8 9; do entries="$entries 40000 $n $below"; done
    below=$(tree $entries)
done
"""


@pytest.mark.parametrize("where", ["tip", "between", "tag"])
def test_d29_nested_trees(siege, where):
    """A few trees stand for a thousand million files: at the tip, in a commit below it, under a tag."""
    script = {
        "tip": 'commit "$below"',
        "between": 'commit "$below"; commit HEAD^^{tree}',
        "tag": 'commit "$below"; git update-ref HEAD HEAD^; git tag bomb "$below"',
    }[where]
    if where == "tag":
        # Never part of what comes home: it stays behind without being opened.
        attack = siege.attack(_BOMB + script + "; echo fine >>README.md")
        assert attack.result["import"]["files_changed"] == 1
        return
    siege.refused(_BOMB + script, "more than")


def test_d29_a_message_of_a_hundred_megabytes(siege):
    """A commit whose message is a hundred megabytes."""
    siege.refused(
        "head -c 100000000 /dev/zero | tr '\\0' m >../message; git commit -q --allow-empty -F ../message",
        "a commit of the agent's work is too large",
    )


def test_d29_files_beyond_the_limit(siege):
    """Sparse files that are nothing on the agent's disk and gibibytes on the host's."""
    attack = siege.attack(
        "truncate -s 2G zeros; truncate -s 8T more; echo '*.bin filter=lfs' >.gitattributes; "
        "truncate -s 17G large.bin; echo work >>README.md"
    )
    assert attack.result["import"]["files_changed"] == 2
    refused = {line.partition(":")[0] for line in attack.result["import"]["refused"]}
    assert refused == {"zeros", "more", "large.bin"}
    assert attack.result["kept"]


def test_d29_a_million_references(siege):
    """packed-refs with a million names."""
    attack = siege.attack(
        """
        echo work >>README.md; git commit -qam work
        python3 -c '
import sys
for number in range(10**6): print(sys.argv[1], f"refs/heads/branch-{number:07}")
' "$(git rev-parse HEAD)" >.git/packed-refs
        """
    )
    assert attack.result["import"]["commits"] == 1
