"""G5, G9: what reaches the person's side of the terminal. And C5: access that somebody gave meanwhile."""

from __future__ import annotations

import itertools
import subprocess

import pytest

from tests.support.hostile import canary, quoted
from tests.support.terminals import Seat

pytestmark = pytest.mark.root
_numbers = itertools.count(1)
_HOOKS = ("pre-session", "post-session", "post-import")
_PROGRAMS = ("PAGER", "GIT_PAGER", "EDITOR", "GIT_EDITOR", "VISUAL", "GIT_SEQUENCE_EDITOR", "MANPAGER",
             "SYSTEMD_PAGER", "LESSOPEN", "BROWSER")  # fmt: skip


@pytest.fixture
def repository(person, mode):
    return person.repository(f"programs-{mode}-{next(_numbers)}")


@pytest.fixture
def marker(person):
    """A file of the person's to which every program that should not run adds a line."""
    path = person.home / f"marker-{next(_numbers)}"
    person.write(path, b"")
    return path


def start(person, mode, *args: str) -> list[str]:
    return person.clsecure_argv("--mode", mode, "--no-network", "--agent", "demo", *args)


def test_g7_what_attributes_and_invisible_characters_would_hide_is_shown(person, repository, mode):
    """Nothing is a difference by the agent's attributes, and a line reads otherwise than it is."""
    script = r"""
    printf '* -diff -text binary linguist-generated\n' >.gitattributes
    printf 'if admin:\342\200\256 # \342\201\246not really\342\200\213\n' >>src/main.py
    git add -A; git commit -qm hidden
    """
    done = person.run(
        start(person, mode, "--on-finish", "keep", "--", "/bin/sh", "-c", script), cwd=repository
    )
    assert "src/main.py" in done.check().errors, "the review names it"
    assert "hides or reorders text" in done.errors, done.errors
    session = next(
        s for s in person.clsecure("list").check().text.splitlines() if str(repository) in s
    ).split()[0]
    diff = person.clsecure("diff", session).check()
    assert rb"+if admin:\u202e # \u2066not really\u200b" in diff.stdout
    with Seat(person, person.clsecure_argv("diff", session), cwd=repository) as at:
        at.expect(r"\+if admin:\\u202e # \\u2066not really\\u200b")
        assert at.end() == 0


def test_g9_no_pager_and_no_editor_of_the_persons_is_started(person, repository, mode, marker):
    """All variables that name one name a trap, at a terminal: review, diff, list, import and cleanup."""
    trap = person.home / f"trap-{marker.name}"
    person.write(trap, f'#!/bin/sh\necho "$0 $*" >>{marker}\ncat\n'.encode(), mode=0o755)
    traps = {name: str(trap) for name in _PROGRAMS} | {"LESSOPEN": f"|{trap} %s"}
    with Seat(person, ["git", "log"], cwd=repository, env=traps) as at:
        at.end()
    assert marker.read_text(), "the control: git starts this pager"
    person.write(marker, b"")
    script = "seq 2000 >many; echo more >>README.md"
    argv = start(person, mode, "--", "/bin/sh", "-c", script)
    with Seat(person, argv, cwd=repository, env=traps) as at:
        at.answer(r"Your choice \[k\] ", "s")
        at.answer(r"Your choice \[k\] ", "k")
        assert at.end() == 0
    listed = person.clsecure("list", env=traps).check().text.splitlines()
    session = next(line for line in listed if str(repository) in line).split()[0]
    with Seat(person, person.clsecure_argv("diff", session), cwd=repository, env=traps) as at:
        at.expect("many")
        assert at.end() == 0
    for command in (("list",), ("import", session), ("cleanup", session, "--yes"), ("info", "--mode", mode)):
        with Seat(person, person.clsecure_argv(*command), cwd=repository, env=traps) as at:
            assert at.end() == 0, command
    assert marker.read_text() == ""
    assert "claude/" in person.git(repository, "branch")


def test_g9_hooks_of_a_repository_are_not_clsecures(person, repository, mode, marker):
    """Session hooks in every place of a repository where one could look for them; then the person's."""
    trap = f'#!/bin/sh\necho "$0" >>{marker}\n'.encode()
    for place in (".clsecure/hooks", "hooks", "clsecure/hooks", ".config/clsecure/hooks", ".git/hooks"):
        person.run(["mkdir", "-p", str(repository / place)]).check()
        for hook in _HOOKS:
            person.write(repository / place / hook, trap, mode=0o755)
    argv = start(person, mode, "--on-finish", "import", "--", "/bin/sh", "-c", "echo more >>README.md")
    # A relative one is to be ignored, by its specification: else it would lead into the repository.
    env = {"XDG_CONFIG_HOME": ".", "CDPATH": "."}
    person.run(argv, cwd=repository, env=env).check()
    assert marker.read_text() == ""
    own = person.home / ".config" / "clsecure" / "hooks"
    person.run(["mkdir", "-p", str(own)]).check()
    try:
        for hook in _HOOKS:
            person.write(own / hook, trap, mode=0o755)
        person.run(
            [*argv[:-3], "/bin/sh", "-c", "echo yet more >>README.md"], cwd=repository, env=env
        ).check()
    finally:
        person.run(["rm", "-r", str(own)]).check()
    assert marker.read_text().split() == [
        str(own / h) for h in ("pre-session", "post-import", "post-session")
    ]


def test_g5_what_is_not_filtered_is_said(person, mode):
    """Clipboard and links pass while the agent runs: the table says so, with the number of the residual."""
    said = person.clsecure("info", "--mode", mode).check().text
    assert "nothing can be typed into your terminal  [R10]" in said
    line = next(line for line in said.splitlines() if line.strip().startswith("R10"))
    assert "OSC 52" in line
    assert "OSC 8" in line


def test_c5_a_group_that_the_worker_was_given_meanwhile_is_not_there(person, target, mode):
    """Somebody puts the worker's account into a group between two sessions; its files stay shut."""
    group, secret = f"{person.name[:20]}-grp", canary()
    shared = person.home / f"shared-{mode}"
    target.attack("true", finish="keep").outcome.check()
    worker = str(target.account()["name"])
    try:
        subprocess.run(["groupadd", group], check=True)
        subprocess.run(["usermod", "--append", "--groups", group, worker], check=True)
        person.run(["mkdir", "-p", str(shared)]).check()
        person.write(shared / "secret", secret.encode(), mode=0o640)
        subprocess.run(["chgrp", "-R", group, str(shared)], check=True)
        read = ["cat", str(shared / "secret")]
        control = ["setpriv", f"--reuid={worker}", f"--regid={worker}", "--init-groups", *read]
        done = subprocess.run(control, capture_output=True, text=True, check=True)
        assert done.stdout == secret, "the control: the account itself may read it now"
        again = f"newgrp {group} -c {quoted(' '.join(read))}; sg {group} {quoted(' '.join(read))}"
        attack = target.attack(
            f"id -G; {quoted(*read)}; {again}",
            "--fresh", "--mount", str(shared),
        )  # fmt: skip
        assert attack.said.splitlines()[0].split() == [target.number_inside]
        assert "Permission denied" in attack.said, "the file is there"
        assert secret not in attack.outcome.errors + attack.outcome.text
        # And it is not passed over: what somebody gave the account is found at the end.
        failed = [c["check_id"] for c in attack.result["verification"]["checks"] if c["status"] == "fail"]
        assert (attack.outcome.returncode, failed) == (123, ["group-membership"])
    finally:
        subprocess.run(["gpasswd", "--delete", worker, group], check=False, capture_output=True)
        subprocess.run(["groupdel", group], check=False, capture_output=True)
        # The next test with this target is to find nothing kept.
        person.clsecure("cleanup", worker, "--yes").check()
