"""D: one session per mode leaves every trap at once; then each command that touches its work is run.

The agent commits first and plants afterwards; it shows that the traps are armed by setting them off inside.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.homecoming import (
    Files,
    Marker,
    branch_of,
    files_in,
    files_of,
    fsck,
    session_key,
    workspace,
)
from tests.support.hostile import Target, canary
from tests.support.person import Outcome
from tests.support.repostate import assert_only_new_branch, snapshot

pytestmark = pytest.mark.root

# Files that something executes or obeys without being told, by the kind of the finding.
ACTING = {
    ".husky/pre-commit": "git_hook", ".githooks/post-checkout": "git_hook",
    ".pre-commit-config.yaml": "git_hook", "sub/.gitattributes": "git_config",
    ".github/workflows/ci.yml": "ci", ".gitlab-ci.yml": "ci", ".vscode/tasks.json": "editor",
    ".claude/settings.json": "agent", ".mcp.json": "agent", "CLAUDE.md": "agent", ".mise.toml": "shell",
    ".devcontainer/devcontainer.json": "container", "Dockerfile": "container", ".npmrc": "package_manager",
    "Makefile": "build", "conftest.py": "build", "package.json": "package_scripts", "x.desktop": "desktop",
}  # fmt: skip

NAMES = (
    b"new\nline", b"tab\there", b"-rf", b"--upload-pack=x", b":(glob)**", b"esc\x1b[31m",
    b"\x1b]52;c;eA==\x07",
    b"c1\x9b31m", "bidi\u202egnp.exe".encode(), b"invalid\xff\xfe", b"n" * 255, b" leading", b"trailing ",
    b"quote\"'`$(id)", b"back\\slash", b"*", b"#hash", b"!bang", "\u00e9".encode(), "e\u0301".encode(),
)  # fmt: skip

CONFIG = {
    "core.fsmonitor": 0, "core.sshCommand": 0, "core.pager": 0, "core.editor": 0, "core.gitProxy": 0,
    "core.askPass": 0, "core.alternateRefsCommand": 0, "diff.external": 0, "diff.evil.command": 0,
    "diff.evil.textconv": 0, "filter.evil.clean": 0, "filter.evil.smudge": 0, "filter.evil.process": 0,
    "filter.lfs.clean": 0, "filter.lfs.process": 0, "filter.lfs.smudge": 0, "gpg.program": 0,
    "gpg.ssh.program": 0, "merge.evil.driver": 0, "alias.status": 0, "alias.log": 0, "credential.helper": 0,
    "sequence.editor": 0, "uploadpack.packObjectsHook": 0, "interactive.diffFilter": 0,
    "trailer.x.command": 0, "remote.origin.uploadpack": 0, "remote.origin.receivepack": 0,
    "commit.gpgSign": "true", "core.hooksPath": ".husky", "extensions.worktreeConfig": "true",
    "extensions.partialClone": "origin", "remote.origin.promisor": "true", "protocol.ext.allow": "always",
    "submodule.recurse": "true", "status.showUntrackedFiles": "no", "core.excludesFile": ".all",
    "core.ignoreCase": "true", "core.fileMode": "false", "core.symlinks": "false", "core.autocrlf": "true",
    "core.quotePath": "false", "core.checkStat": "minimal", "core.trustctime": "false",
}  # fmt: skip

# Run by python3 inside, in the work tree.
AMBUSH = r"""
import base64, json, os, pathlib, socket, subprocess, sys
told = json.loads(sys.argv[1])
P = pathlib.Path
def git(*args, **more):
    env = {**os.environ, **more.pop("env", {})}
    done = subprocess.run(["git", *args], env=env, capture_output=True, **more)
    assert done.returncode == 0, (args, done.stderr)
    return done.stdout.decode().strip()
def write(path, data, mode=0o644):
    P(path).parent.mkdir(parents=True, exist_ok=True)
    P(path).write_bytes(data if isinstance(data, bytes) else data.encode())
    P(path).chmod(mode)
start = git("rev-parse", "HEAD")
git("checkout", "-q", "--detach")

# ---- commits: forged, then honest
for path in told["acting"]:
    hook = "hook" in path or "husky" in path
    script = json.dumps({"scripts": {"postinstall": told["trap"]}})
    write(path, told["hook"] if hook else script if path == "package.json" else told["trap"] + "\n",
          0o755 if hook else 0o644)
write(".mailmap", "Test Person <person@localhost> <mallory@example.org>\n")
write(".gitattributes", "* filter=evil diff=evil merge=evil -diff linguist-generated\n*.bin filter=lfs\n")
write("late.txt", "committed\n")
git("add", "-A")
forged = {"GIT_AUTHOR_NAME": "Mallory", "GIT_AUTHOR_EMAIL": "mallory@example.org",
          "GIT_COMMITTER_NAME": "Test Person", "GIT_COMMITTER_EMAIL": "torvalds@example.org",
          "GIT_AUTHOR_DATE": "1000000000 +0000", "GIT_COMMITTER_DATE": "4000000000 +0000"}
git("commit", "-q", "--no-verify", "--no-gpg-sign", "-m", "evil \x1b[31m\u202e", env=forged)
evil = git("rev-parse", "HEAD")
write("late.txt", "evil line\n")
git("commit", "-q", "--no-verify", "--no-gpg-sign", "-am", "second")
second = git("rev-parse", "HEAD")

# ---- references that mislead
innocent = git("commit-tree", "-m", "innocent", "-p", start, start + "^{tree}")
git("replace", second, innocent)
git("replace", evil, innocent)
git("notes", "add", "-m", "note " + told["canary"], second)
git("tag", "-a", "-f", "-m", "tag", "v1", second)
git("tag", "-f", "main", second)
git("tag", told["branch"], start)
stray = git("commit-tree", "-m", "stray", "-p", second, second + "^{tree}")
for ref in ("refs/heads/main", "refs/heads/v1", "refs/heads/HEAD", "refs/heads/refs/heads/main",
            "refs/remotes/origin/main", "refs/stash"):
    git("update-ref", ref, stray)
for name in (b"$(id)", "a\u009b31m".encode(), "b\u202egnp".encode(), b"-x", b"'; id"):
    os.makedirs(b".git/refs/heads", exist_ok=True)
    with open(b".git/refs/heads/" + name, "wb") as file:
        file.write(stray.encode() + b"\n")

# ---- not committed: hidden, odd, special
write("README.md", "skipped by the index\n")
write("src/main.py", "assumed unchanged by the index\n")
git("update-index", "--skip-worktree", "README.md")
git("update-index", "--assume-unchanged", "src/main.py")
write("hidden.txt", "excluded\n")
write(".git/info/exclude", "*\n")
write("x.bin", "large\n")
write(".envrc", told["trap"])
for name in told["names"]:
    with open(base64.b64decode(name), "wb") as file:
        file.write(b"odd\n")
deep = os.open(".", os.O_RDONLY)
for _ in range(25):
    os.mkdir("d" * 200, dir_fd=deep)
    below = os.open("d" * 200, os.O_RDONLY, dir_fd=deep)
    os.close(deep)
    deep = below
os.close(os.open("too-deep", os.O_CREAT | os.O_WRONLY, dir_fd=deep))
write("executable", "#!/bin/sh\n", 0o755)
write("setuid", "#!/bin/sh\n")
P("setuid").chmod(0o6755)
os.link("late.txt", "hard-link")
try:
    os.setxattr("executable", "user.evil", b"x")
except OSError:
    pass
os.mkfifo("pipe\x1b[31m")
with socket.socket(socket.AF_UNIX) as end:
    end.bind("socket")
try:
    os.mknod("device", 0o020666, os.makedev(1, 3))
    print("made a device")
except OSError:
    pass
os.symlink(told["outside"], "outside")
os.symlink("../../../../../../.." + told["outside"] + "/file", "outside-file")
os.symlink(".git/hooks/post-checkout", "into-git")
write("bare/HEAD", "ref: refs/heads/main\n")
write("bare/config", "[core]\n\tfsmonitor = " + json.dumps(told["trap"]) + "\n\tbare = true\n")
write("bare/objects/keep", "")
write("bare/refs/keep", "")
git("init", "-q", "nested")
write("nested/file", told["canary"])

# ---- hooks and configuration, last: whoever runs git in here from now on sets them off
hooks = ("pre-commit", "post-commit", "post-checkout", "post-merge", "post-index-change", "pre-push",
         "reference-transaction", "fsmonitor-watchman", "post-rewrite", "pre-auto-gc", "update",
         "pre-receive", "post-receive", "sendemail-validate", "prepare-commit-msg")
for place in (".git/hooks", ".husky", "nested/.git/hooks", ".git/modules/x/hooks"):
    for name in hooks:
        if place != ".husky":
            write(place + "/" + name, told["hook"] + "# " + told["canary"], 0o755)
write(".git/modules/x/config", "[core]\n\tfsmonitor = " + json.dumps(told["trap"]) + "\n")
for key, value in told["config"].items():
    git("--git-dir=.git", "config", "--file", ".git/config", key, value or told["trap"] + " " + key)
included = P(".git/included")
write(included, "[core]\n\tfsmonitor = " + json.dumps(told["trap"]) + "\n")
git("config", "--file", ".git/config", "include.path", "included")
git("config", "--file", ".git/config", "remote.origin.url", "ext::" + told["trap"])
write(".git/config.worktree", included.read_bytes())
write(".git/info/attributes", "* filter=evil diff=evil merge=evil\n")
write(".git/info/grafts", second + "\n")
for path in (P.home() / ".gitconfig", P.home() / ".config/git/config"):
    write(path, included.read_bytes() + b"[safe]\n\tdirectory = *\n")

# ---- armed? Then take the proof away.
for command in ("status", "diff", "log -p", "add -A -n ."):
    subprocess.run(["sh", "-c", "git " + command], capture_output=True, stdin=subprocess.DEVNULL)
marks = (P.home() / "M").read_text().split() if (P.home() / "M").exists() else []
(P.home() / "M").unlink(missing_ok=True)
print(json.dumps({"second": second, "evil": evil, "stray": stray, "innocent": innocent, "marks": marks}))
"""

STEPS = ("session", "list", "diff", "import", "resume", "discard", "cleanup")


@dataclass(slots=True, kw_only=True)
class World:
    """What was done, what was seen of the person's side after each step."""

    target: Target
    marker: Marker
    canary: str
    outside: Path
    remote: Path
    told: dict[str, Any]
    worker_home: str = ""
    agents: Files = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    sprung: dict[str, list[str]] = field(default_factory=dict)
    states: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    objects: bytes = b""
    armed_on_the_host: list[str] = field(default_factory=list)

    @property
    def branch(self) -> str:
        """The branch that came home."""
        branch = branch_of(self.outcomes["import"])
        assert branch is not None
        return branch

    @property
    def result(self) -> Any:
        """What the import says of itself."""
        return self.outcomes["import"].json()["import"]

    @property
    def shown(self) -> Any:
        """The JSON document of the diff."""
        return self.outcomes["diff"].json()

    def findings(self, kind: str) -> list[str]:
        """The paths of the findings of a kind."""
        return [f["path"] for f in self.result["findings"] if f["kind"] == kind]

    def note(self, step: str, outcome: Outcome) -> None:
        """Remember a step and what it left."""
        self.outcomes[step] = outcome
        self.sprung[step] = self.marker.sprung(self.worker_home)
        self.states.append((step, snapshot(self.target.repository)))


def _prepare(target: Target, world: World) -> None:
    """The person's own repository: drivers, a signing program, hooks, a remote, a tag, a stash, a secret."""
    person, top = target.person, target.repository
    script = f"""
    set -eu
    mkdir {world.outside} && echo mine >{world.outside}/file
    git init -q --bare {world.remote} && git remote add origin {world.remote} && git push -q origin main
    git tag v1 && printf '.envrc\\nignored/\\n' >.gitignore && git add .gitignore
    git commit -qm 'ignored files' && echo 'export MINE=1' >.envrc
    echo stashed >>README.md && git stash -q
    """
    person.run(["/bin/sh", "-c", script], cwd=top).check()
    for name in ("reference-transaction", "post-checkout", "post-merge", "pre-push", "pre-auto-gc",
                 "post-index-change", "post-commit"):  # fmt: skip
        hook = f"#!/bin/sh\necho users-{name} >>{world.marker.host}\nexit 0\n"
        person.write(top / ".git/hooks" / name, hook.encode(), mode=0o755)
    trap = world.marker.command("users-driver")
    drivers = {
        "filter.evil.clean": trap, "filter.evil.smudge": trap, "filter.evil.required": "true",
        "filter.lfs.clean": trap, "filter.lfs.smudge": trap, "filter.lfs.process": trap,
        "diff.evil.command": trap, "diff.evil.textconv": trap, "merge.evil.driver": trap,
        "gpg.program": trap, "commit.gpgSign": "true", "tag.gpgSign": "true", "user.signingKey": "ABCDEF",
        "diff.external": trap, "push.autoSetupRemote": "true", "log.showSignature": "true",
    }  # fmt: skip
    lines = "".join(f"git config {key} \"$(cat <<'X'\n{value}\nX\n)\"\n" for key, value in drivers.items())
    person.run(["/bin/sh", "-euc", lines], cwd=top).check()
    world.marker.host.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def world(person, mode):
    """One session, then every command that looks at what it left."""
    target = Target(
        person=person, mode=mode, repository=person.repository(f"ambush-{mode}"), session="ambush"
    )
    marker = Marker.of(person)
    made = World(
        target=target, marker=marker, canary=canary(), outside=person.home / f"outside-{mode}",
        remote=person.home / f"remote-{mode}.git", told={},
    )  # fmt: skip
    _prepare(target, made)
    request = {
        "acting": list(ACTING), "trap": marker.command("agents"), "hook": marker.hook("agents-hook"),
        "config": CONFIG, "names": [base64.b64encode(name).decode() for name in NAMES],
        "canary": made.canary, "outside": str(made.outside), "branch": f"claude/ambush-{mode}",
    }  # fmt: skip
    made.states.append(("before", snapshot(target.repository)))
    attack = target.python(AMBUSH, json.dumps(request), finish="keep")
    made.told, made.worker_home = attack.evidence, str(target.account()["home"])
    made.note("session", attack.outcome)
    key = session_key(target)
    # A plain locale, as in cron jobs and containers.
    plain = {"LANG": "C", "LC_ALL": "C"}
    made.note("list", person.clsecure("list"))
    made.note("diff", person.clsecure("diff", key, "--output", "json", env=plain))
    made.note("import", person.clsecure("import", key, "--output", "json", env=plain))
    made.agents = files_of(workspace(target), "nested", "d" * 200, ".envrc")
    made.objects = person.run(
        ["git", "cat-file", "--batch-all-objects", "--batch"], cwd=target.repository
    ).stdout
    made.armed_on_the_host = _set_off(made)
    nothing = ["/bin/sh", "-c", ":"]
    made.note("resume", person.run(target.argv(nothing, "--resume", finish="keep"), cwd=target.repository))
    made.note("discard", person.run(target.argv(nothing, "--resume"), cwd=target.repository))
    made.note("cleanup", person.clsecure("cleanup", key, "--yes"))
    return made


def _set_off(world: World) -> list[str]:
    """What happens to somebody who runs git in the agent's work tree: the traps are real."""
    person = world.target.person
    copy = person.home / f"copy-{world.target.mode}"
    copy.mkdir()
    some = [
        workspace(world.target) / name for name in (".git", ".husky", ".gitattributes", "late.txt", "src")
    ]
    try:
        subprocess.run(["cp", "-a", "--", *map(str, some), str(copy)], check=True, timeout=60)
        subprocess.run(["chown", "-Rh", f"{person.uid}:{person.gid}", str(copy)], check=True, timeout=60)
        for command in ("status", "diff"):
            person.run(["git", "--no-pager", command], cwd=copy)
        return world.marker.sprung()
    finally:
        shutil.rmtree(copy)
        world.marker.host.unlink(missing_ok=True)


def assert_nothing_ran(world: World, *steps: str) -> None:
    """None of the commands set off a trap, and all of them did their work."""
    assert world.told["marks"], "the traps were not armed inside"
    assert world.armed_on_the_host, "the traps were not armed on the host"
    assert {step: world.sprung[step] for step in steps} == {step: [] for step in steps}
    for step in steps:
        world.outcomes[step].check()


def test_d1_hooks_in_the_tracked_tree(world):
    """Hooks among the tracked files (.husky, .githooks) with core.hooksPath wait for the next git command."""
    assert_nothing_ran(world, "import", "diff", "discard")
    assert {".husky/pre-commit", ".githooks/post-checkout"} <= set(world.findings("git_hook"))
    assert world.agents[b".husky/pre-commit"][0] == 0o100755


def test_d2_hooks_below_git_directories(world):
    """The agent's .git/hooks, a nested repository and .git/modules hold programs for the host to run."""
    assert_nothing_ran(world, *STEPS)
    assert b"late.txt" in world.agents
    assert world.canary.encode() not in world.objects
    assert not (world.target.repository / ".git/modules").exists()
    refused = world.result["refused"]
    assert any(line.startswith("nested: ") for line in refused), refused


def test_d3_configuration_that_executes(world):
    """fsmonitor, filters, drivers, textconv, programs for signing and paging, includes, worktree config."""
    assert_nothing_ran(world, *STEPS)


def test_d6_no_safe_directory_is_needed_or_written(world):
    """A repository of another account needs safe.directory, which would hold for everything after."""
    world.outcomes["import"].check()
    home = world.target.person.home
    assert "safe" not in (home / ".gitconfig").read_text()
    assert not (home / ".config/git").exists()


def test_d9_tags_and_branches_that_shadow(world):
    """Tags follow along, move, or are called like branches; branches like tags and like HEAD."""
    assert_generic_rule(world)
    tags = world.target.person.git(world.target.repository, "tag", "--list")
    assert tags == "v1"


def test_d10_exactly_one_reference(world):
    """Replacements, notes, a stash, and branches called $(id), with C1 and bidi characters."""
    assert_generic_rule(world)
    assert_nothing_ran(world, *STEPS)
    top = world.target.repository
    assert not (top / ".git/FETCH_HEAD").exists()
    assert world.branch.startswith("claude/")
    said = "\n".join(world.outcomes["import"].json()["warnings"])
    assert "refs/heads/$(id)" in said
    assert "a\\x9b31m" in said
    assert "b\\u202egnp" in said


def assert_generic_rule(world: World) -> None:
    """Nothing but one branch is new, and it came with the import."""
    for (_, before), (step, after) in zip(world.states, world.states[1:], strict=False):
        assert_only_new_branch(before, after, world.branch if step == "import" else None)
    fsck(world.target.person, world.target.repository)


def test_d12_replacements_falsify_nothing(world):
    """Replace refs put an innocent commit and tree in front of the evil ones."""
    unit = world.shown["units"][0]
    assert [c["id"] for c in unit["commits"]] == [world.told["second"], world.told["evil"]]
    assert unit["commit_count"] == world.result["commits"] == 2
    assert "+evil line" in world.shown["diff"]
    assert "innocent" not in json.dumps(unit)


def test_d15_embedded_bare_repository(world):
    """A directory of plain files that git takes for a repository, with a configuration that executes."""
    assert "bare" in world.findings("embedded_repository")
    assert_nothing_ran(world, *STEPS)


def test_d16_nothing_is_written_through_links(world):
    """Links to directories and files outside, in the work tree and in place of directories of git."""
    assert [p.name for p in world.outside.iterdir()] == ["file"]
    assert (world.outside / "file").read_text() == "mine\n"
    assert {"outside", "outside-file", "into-git"} <= set(world.findings("symlink"))
    files = files_in(world.target.person, world.target.repository, world.branch)
    assert files[b"outside"] == (0o120000, str(world.outside).encode())
    # Checked out, the links are links, and nothing was written through them.
    place = world.target.person.home / f"checkout-{world.target.mode}"
    branch = ("--branch", world.branch)
    world.target.person.git(world.target.repository, "clone", "-q", *branch, ".", str(place))
    assert (place / "outside").is_symlink()
    assert (place / "late.txt").read_text() == "evil line\n"
    assert [p.name for p in world.outside.iterdir()] == ["file"]


def test_d17_special_files_and_modes(world):
    """FIFO, socket, device, set-user-id bits, hard links, extended attributes."""
    refused = world.result["refused"]
    why = "neither a file nor a directory nor a symbolic link"
    assert f"pipe\\x1b[31m: {why}" in refused
    assert f"socket: {why}" in refused
    assert world.outcomes["import"].json()["kept"], "what could not come home is lost"
    files = files_in(world.target.person, world.target.repository, world.branch)
    assert {mode for mode, _ in files.values()} <= {0o100644, 0o100755, 0o120000}
    assert files[b"setuid"][0] == 0o100755
    assert files[b"hard-link"] == files[b"late.txt"]
    assert b"socket" not in files


def test_d19_ignored_files_stay_inside(world):
    """The agent writes an .envrc, which is ignored, and which the person has too."""
    files = files_in(world.target.person, world.target.repository, world.branch)
    assert b".envrc" not in files
    assert (world.target.repository / ".envrc").read_text() == "export MINE=1\n"


def test_d20_nothing_hides(world):
    """skip-worktree, assume-unchanged, info/exclude, moved refs, status.showUntrackedFiles=no."""
    shown = {change["path"] for change in world.shown["units"][0]["changes"]}
    assert {"README.md", "src/main.py", "hidden.txt", "late.txt"} <= shown
    files = files_in(world.target.person, world.target.repository, world.branch)
    assert files[b"README.md"][1] == b"skipped by the index\n"
    assert files[b"src/main.py"][1] == b"assumed unchanged by the index\n"
    # Where the branches point does not matter: the work is where HEAD is, and the rest is named.
    parent = world.target.person.git(world.target.repository, "rev-parse", f"{world.branch}^")
    assert parent == world.told["second"]
    assert any("refs/heads/main" in line for line in world.outcomes["import"].json()["warnings"])


def test_d22_names_are_exact_or_refused(world):
    """Newlines, options, pathspecs, escapes, invalid UTF-8, 255 bytes, 5000 bytes; under LANG=C."""
    files = files_in(world.target.person, world.target.repository, world.branch)
    assert {name: files.get(name) for name in NAMES} == dict.fromkeys(NAMES, (0o100644, b"odd\n"))
    expected = dict(world.agents)
    pointer = expected.pop(b"x.bin")
    assert files.pop(b"x.bin") != pointer, "a file of git-lfs comes home as its pointer"
    assert files == expected
    assert any(line.startswith("d" * 200 + "/") for line in world.result["refused"])
    for step in STEPS:
        outcome = world.outcomes[step]
        said = (outcome.stdout + outcome.stderr).decode("utf-8", "surrogateescape")
        shown = [
            c for c in said if (ord(c) < 32 and c not in "\n\t\r") or 0x7F <= ord(c) < 0xA0 or c == "\u202e"
        ]
        assert shown == [], step
    assert set(world.findings("odd_name")) >= {"new\\nline", "esc\\x1b[31m", "bidi\\u202egnp.exe"}


def test_d23_files_that_execute_by_themselves(world):
    """Hooks, workflows, editor tasks, agents' settings, package scripts: flagged for people and in JSON."""
    found = {(f["kind"], f["path"]) for f in world.result["findings"]}
    assert found >= {(kind, path) for path, kind in ACTING.items()}
    said = world.outcomes["session"].errors
    for path in ACTING:
        assert f"{path}: " in said, f"{path} is not shown to people"


def test_d24_the_users_own_drivers(world):
    """The agent's attributes name drivers that the person has configured: filters, LFS, diff, merge."""
    assert_nothing_ran(world, *STEPS)
    attributes = world.target.person.run(
        ["git", "config", "--get", "filter.evil.clean"], cwd=world.target.repository
    )
    assert "users-driver" in attributes.check().text
    assert world.agents[b".gitattributes"][1].startswith(b"* filter=evil")


def test_d24_filters_that_did_not_run_are_named(world):
    """Content that a filter would have encrypted comes home as it is: that has to be said."""
    messages = [f["message"] for f in world.result["findings"] if f["kind"] == "unfiltered"]
    assert messages
    assert any("evil" in message for message in messages)


def test_d27_forged_identities(world):
    """Another author, another committer, dates from elsewhere, a .mailmap that hides them."""
    evil = next(c for c in world.shown["units"][0]["commits"] if c["id"] == world.told["evil"])
    assert evil["author"] == "Mallory <mallory@example.org>"
    assert evil["committer"] == "Test Person <torvalds@example.org>"
    assert (evil["author_time"], evil["commit_time"]) == (1000000000, 4000000000)
    told = [f["message"] for f in world.result["findings"] if f["kind"] in ("identity", "date")]
    short = world.told["evil"][:12]
    assert any(short in m and "mallory@example.org" in m for m in told)
    assert any(short in m and "torvalds@example.org" in m for m in told)
    assert any(short in m and "dated outside" in m for m in told)
    raw = world.target.person.run(["git", "cat-file", "commit", world.branch], cwd=world.target.repository)
    assert "gpgsig" not in raw.check().text
    assert_nothing_ran(world, *STEPS)


def test_d33_no_push_signature_merge_or_switch(world):
    """Remotes, a signing key and automatic upstreams are configured; only the branch may be made."""
    person, top = world.target.person, world.target.repository
    assert_generic_rule(world)
    assert person.git(world.remote, "for-each-ref", "--format=%(refname)") == "refs/heads/main"
    first = person.git(top, "rev-list", "--max-parents=0", "main")
    assert person.git(world.remote, "rev-parse", "main") == first
    assert person.git(top, "branch", "--show-current") == "main"
    upstream = person.run(["git", "config", f"branch.{world.branch}.remote"], cwd=top)
    assert upstream.returncode == 1
    assert os.path.lexists(top / ".envrc")
