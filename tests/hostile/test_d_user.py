"""D: what the person is in the middle of. Nothing of the mode is in it: namespace mode only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.homecoming import Marker, branch_of, files_in, generic_rule, session_key
from tests.support.hostile import Target
from tests.support.person import Person

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("hostile-namespace")]

MODE = "namespace"


def shell(person: Person, top: Path, script: str) -> None:
    """Run a script of the person's in a repository."""
    person.run(["/bin/sh", "-euc", script], cwd=top).check()


STATES = {
    "rebasing": """
        git branch feature && echo main >README.md && git commit -qam main && git checkout -q feature
        echo feature >README.md && git commit -qam feature && ! git rebase -q main 2>/dev/null
        test -d .git/rebase-merge
        """,
    "merging": """
        git branch feature && echo main >README.md && git commit -qam main && git checkout -q feature
        echo feature >README.md && git commit -qam feature && ! git merge -q main >/dev/null
        test -f .git/MERGE_HEAD
        """,
    "detached": "echo x >README.md && git commit -qam x && git checkout -q --detach HEAD^",
    "dirty index": """
        echo stashed >README.md && git stash -q
        echo staged >README.md && echo new >staged && git add . && git rm -q --cached src/main.py
        echo both >README.md && echo loose >untracked && git add -N untracked && git mv src/run.sh run.sh
        """,
    "sparse": "git sparse-checkout set --no-cone /README.md && test ! -e src",
    "linked worktree": "git worktree add -q ../linked -b linked && echo x >../linked/untracked",
}


@pytest.mark.parametrize("state", STATES)
def test_d13_whatever_the_person_is_in_the_middle_of(person, state):
    """Rebase, merge, detached HEAD, half-staged changes, sparse checkout, linked worktree: all preserved."""
    top = person.repository("middle-" + state.replace(" ", "-"))
    shell(person, top, STATES[state].replace("../linked", f"../linked-{top.name}"))
    if state == "linked worktree":
        top = person.home / f"linked-{top.name}"
    target = Target(person=person, mode=MODE, repository=top)
    with generic_rule(top) as branches:
        attack = target.attack("echo agent >by-the-agent", finish="import")
        branches.append(branch_of(attack.outcome.check()))
    made = attack.result["import"]
    assert made["files_changed"] == 1
    assert files_in(person, top, made["tip"])[b"by-the-agent"] == (0o100644, b"agent\n")
    person.clsecure("cleanup", session_key(target), "--yes").check()


def test_d14_the_person_works_on_while_the_session_runs(person):
    """Edits, commits, a stash, another branch and another index come while the agent works."""
    top = person.repository("meanwhile")
    target = Target(person=person, mode=MODE, repository=top)
    with target.live("echo agent >>README.md; echo ready; read _; echo more >late", finish="import") as agent:
        agent.wait_for("ready")
        shell(
            person,
            top,
            """
            echo stashed >src/main.py && git stash -q
            echo person >README.md && git commit -qam person && git checkout -q -b elsewhere
            echo staged >staged && git add staged && echo loose >loose && echo edited >README.md
            """,
        )
        with generic_rule(top) as branches:
            outcome = agent.finish()
            branches.append(branch_of(outcome.check()))
    made = outcome.json()["import"]
    files = files_in(person, top, made["tip"])
    assert files[b"README.md"] == (0o100644, b"# Sample\nagent\n")
    assert files[b"late"] == (0o100644, b"more\n")
    assert made["files_changed"] == 2
    assert (top / "README.md").read_text() == "edited\n"
    person.clsecure("cleanup", session_key(target), "--yes").check()


def test_d32_ambient_variables_of_git(person):
    """GIT_DIR, GIT_INDEX_FILE, GIT_CONFIG_* and the like name other places and commands."""
    top, other = person.repository("ambient"), person.repository("ambient-other")
    target, marker = Target(person=person, mode=MODE, repository=top), Marker.of(person)
    trap = marker.command("ambient")
    hostile = {
        "GIT_DIR": str(other / ".git"), "GIT_WORK_TREE": str(other),
        "GIT_INDEX_FILE": str(other / ".git/index"), "GIT_OBJECT_DIRECTORY": str(other / ".git/objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(other / ".git/objects"), "GIT_NAMESPACE": "elsewhere",
        "GIT_COMMON_DIR": str(other / ".git"), "GIT_CEILING_DIRECTORIES": str(top),
        "GIT_EXTERNAL_DIFF": trap, "GIT_PAGER": trap, "PAGER": trap, "GIT_EDITOR": trap, "EDITOR": trap,
        "GIT_SSH_COMMAND": trap, "GIT_ASKPASS": trap, "GIT_PROXY_COMMAND": trap,
        "GIT_TRACE": str(marker.host),
        "GIT_TRACE2_EVENT": str(marker.host), "GIT_CONFIG_GLOBAL": str(person.home / "evil.config"),
        "GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_0": "core.fsmonitor", "GIT_CONFIG_VALUE_0": trap,
        "GIT_CONFIG_KEY_1": "diff.external", "GIT_CONFIG_VALUE_1": trap,
        "GIT_CONFIG_PARAMETERS": "'core.fsmonitor'='" + trap.replace("'", "'\\''") + "'",
        "GIT_EXEC_PATH": str(person.home / "evil-programs"), "GIT_TEMPLATE_DIR": str(person.home / "evil"),
    }  # fmt: skip
    evil = f'[core]\n\tfsmonitor = "{trap}"\n\thooksPath = {person.home}/evil-programs\n'
    person.write(person.home / "evil.config", evil.encode())
    person.run(["mkdir", "-p", str(person.home / "evil-programs")]).check()
    for name in ("git", "git-status", "reference-transaction", "post-checkout"):
        person.write(person.home / "evil-programs" / name, marker.hook(name).encode(), mode=0o755)
    # The control: to a plain git these variables are commands.
    person.run(["git", "status"], cwd=top, env=hostile)
    assert marker.sprung(), "the traps are not armed"
    marker.host.unlink()
    with generic_rule(other), generic_rule(top) as branches:
        attack = target.attack("echo agent >>README.md", finish="keep", env=hostile)
        attack.outcome.check()
        key = session_key(target)
        person.clsecure("diff", key, env=hostile).check()
        imported = person.clsecure("import", key, "--output", "json", env=hostile, cwd=top).check()
        branches.append(branch_of(imported))
    assert files_in(person, top, imported.json()["import"]["tip"])[b"README.md"][1] == b"# Sample\nagent\n"
    assert marker.sprung(str(target.account()["home"])) == []
    person.clsecure("cleanup", key, "--yes", env=hostile).check()
    assert marker.sprung() == []
