"""A session at a real terminal, from the first word to the answered questions."""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path

import pytest

from tests.support.person import Person
from tests.support.terminals import DEADLINE, Seat, Tmux

pytestmark = pytest.mark.root
_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=["user", "namespace"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def repository(person: Person) -> Path:
    return person.repository(f"terminal-{next(_numbers)}")


def sit(person: Person, repository: Path, *args: str, mode: str = "user") -> Seat:
    """Start clsecure at a terminal. The demo agent needs no network: it is not warned about."""
    options = ("--mode", mode, "--no-network", "--agent", "demo")
    return Seat(person, person.clsecure_argv(*options, *args), cwd=repository)


def sessions(person: Person, repository: Path) -> list[dict[str, object]]:
    listed = person.clsecure("list", "--output", "json").json()["sessions"]
    return [session for session in listed if session["project"] == str(repository)]


def ended(person: Person, repository: Path) -> list[dict[str, object]]:
    """Wait until no session of a repository is running any more; return them."""
    end = time.monotonic() + DEADLINE
    found = sessions(person, repository)
    while any(session["status"] == "running" for session in found):
        assert time.monotonic() < end, found
        found = sessions(person, repository)
    return found


def test_a_shell_session_from_talking_to_the_branch(person, repository, mode):
    with sit(person, repository, "--shell", mode=mode) as seat:
        seat.expect(rf"mode {mode}")
        seat.child.sendline(b"PS1='in> '")
        # A terminal of its own, of the right size, in the modes that a shell expects.
        assert re.fullmatch(r"/dev/pts/\d+\n", seat.inside("tty"))
        assert seat.inside("stty size") == "30 100\n"
        modes = seat.inside("stty -a")
        assert {"isig", "icanon", "echo", "opost", "onlcr"} <= set(modes.replace(";", " ").split())
        assert seat.inside("set -o | grep -c '^monitor.*on$'") == "1\n"
        # A new size reaches the program that is running, and is there afterwards.
        seat.child.sendline(
            b"sh -c 'trap \"echo win''ched; exit\" WINCH; echo rea''dy; while :; do sleep 0.1; done'"
        )
        seat.expect("ready")
        seat.child.setwinsize(40, 120)
        seat.expect("winched")
        assert seat.inside("stty size") == "40 120\n"
        # Ctrl-C ends what runs inside, not the session.
        seat.child.sendline(b"sh -c 'echo rea''dy; exec sleep 1000'")
        seat.expect("ready")
        seat.child.sendintr()
        assert seat.inside("echo $s") == "130\n"
        # Job control.
        seat.child.sendline(b"sh -c 'echo rea''dy; exec sleep 1000'")
        seat.expect("ready")
        seat.child.send(b"\x1a")
        seat.expect("Stopped")
        assert "Running" in seat.inside("bg >/dev/null; jobs")
        seat.child.sendline(b"fg")
        seat.expect("sleep 1000")
        seat.child.send(b"\x1c")
        seat.expect("Quit")
        seat.inside(
            "echo new > new.txt; git add new.txt; git commit -qm 'From inside'; echo more >> README.md"
        )
        seat.child.sendline(b"exit 7")
        # What changed, then the questions.
        seat.expect("1 commit, 2 changed files")
        seat.answer(r"Your choice \[k\] ", "s")
        seat.expect(r"│ \+more")
        seat.answer(r"Your choice \[k\] ", "d")
        seat.answer(r"Discard .* for good\? \[y/N\] ", "n")
        seat.answer(r"Your choice \[k\] ", "i")
        seat.answer(r"Branch \[claude/[^\]]*\] ", "-no good name")
        seat.answer(r"Branch \[claude/[^\]]*\] ", "from/the-terminal")
        seat.answer(r"Message for the uncommitted work \[.*\] ", "My own words")
        seat.expect("imported as from/the-terminal")
        assert seat.end() == 7
        assert b"job control" not in seat.seen
    log = person.git(repository, "log", "--format=%s", "main..from/the-terminal").split("\n")
    assert log == ["My own words", "From inside"]
    assert person.git(repository, "show", "from/the-terminal:README.md").endswith("more")
    assert person.git(repository, "status", "--porcelain") == ""


def test_keep_go_on_start_fresh_and_discard(person, repository, mode):
    with sit(person, repository, mode=mode) as seat:
        seat.expect("Done. Your own files were never in my reach")
        seat.answer(r"Your choice \[k\] ", "")
        seat.expect("kept. Bring it home with: clsecure import")
        assert seat.end() == 0
    with sit(person, repository, mode=mode) as seat:
        seat.answer(r"Go on with it, or start fresh\? .* ", "r")
        seat.answer(r"Your choice \[k\] ", "k")
        assert seat.end() == 0
        assert b"2 commits" in seat.seen
    with sit(person, repository, mode=mode) as seat:
        seat.answer(r"Go on with it, or start fresh\? .* ", "f")
        seat.answer(r"Delete it and start fresh\? \[y/N\] ", "")
        assert seat.end() == 125
    assert [s["unimported"] for s in sessions(person, repository)] == [True]
    with sit(person, repository, mode=mode) as seat:
        seat.answer(r"Go on with it, or start fresh\? .* ", "f")
        seat.answer(r"Delete it and start fresh\? \[y/N\] ", "y")
        seat.answer(r"Your choice \[k\] ", "d")
        seat.answer(r"Discard 1 commit, 3 changed files for good\? \[y/N\] ", "y")
        seat.expect("the work is discarded")
        assert seat.end() == 0
        assert b"2 commits" not in seat.seen
    assert person.git(repository, "branch", "--format=%(refname:short)") == "main"
    assert not [s for s in sessions(person, repository) if s["unimported"]]


def test_ctrl_c_at_the_last_question_keeps_the_work(person, repository):
    with sit(person, repository) as seat:
        seat.interrupt(r"Your choice \[k\] ")
        seat.expect("kept. Bring it home")
        assert seat.end() == 0


def test_ctrl_c_ends_an_agent_that_lets_it_and_the_work_is_asked_about(person, repository):
    script = "echo work > work.txt; echo rea''dy; exec sleep 1000"
    with sit(person, repository, "--", "sh", "-c", script) as seat:
        seat.expect("\nready")
        seat.child.sendintr()
        seat.answer(r"Your choice \[k\] ", "d")
        seat.answer(r"for good\? \[y/N\] ", "y")
        assert seat.end() == 130


def test_an_agent_without_output_leaves_the_screen_as_it_was(person, repository):
    """Nothing of the tool's is written over what was there before, and an unfinished line is left alone."""
    argv = person.clsecure_argv(
        "--mode", "user", "--no-network", "--agent", "demo", "--on-finish", "keep", "--",
        "sh", "-c", "echo first line; printf unfinished",
    )  # fmt: skip
    with Tmux(
        person, ["sh", "-c", 'echo above; "$@"; echo below; read -r _', "sh", *argv], cwd=repository
    ) as pane:
        lines = [line for line in pane.wait_for("below") if line]
    assert lines[0] == "above"
    assert "first line" in lines
    assert lines[lines.index("first line") + 1] == "unfinished"
    assert lines[-2].endswith("the agent changed nothing")
    assert lines[-1] == "below"


def test_a_terminal_that_goes_away_keeps_the_work(person, repository, mode):
    with sit(
        person, repository, "--", "sh", "-c", "echo work > work.txt; echo rea''dy; exec sleep 1000", mode=mode
    ) as seat:
        seat.expect("\nready")
        seat.hang_up()
        seat.child.wait()
    (left,) = ended(person, repository)
    assert left["unimported"] is not False
    person.clsecure("import", str(left["session_id"]), "--branch", "saved").check()
    assert person.git(repository, "show", "saved:work.txt") == "work"


def test_with_json_nothing_is_asked_and_stdout_holds_one_document(person, repository):
    argv = person.clsecure_argv("--mode", "user", "--no-network", "--agent", "demo", "--output", "json")
    wrapped = ["sh", "-c", '"$@" >result.json', "sh", *argv]
    person.write(repository / ".gitignore", b"result.json\n")
    with Seat(person, wrapped, cwd=repository) as seat:
        assert seat.end() == 0
    document = json.loads((repository / "result.json").read_bytes())
    assert document["kept"] is True
