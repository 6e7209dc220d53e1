"""G: the terminal."""

from __future__ import annotations

import itertools
import re
import unicodedata
from pathlib import Path

import pytest

from tests.support.hostile import canary
from tests.support.person import Person
from tests.support.terminals import Seat, Tmux

pytestmark = pytest.mark.root
_numbers = itertools.count(1)
# What the tool itself sends: colours, its spinner's line, and the reset after an agent.
_OWN = re.compile(r"\x1b\[(?:0|1|2|31|32|33)m|\r\x1b\[K|\r\n")
_ESCAPES = "\x1b]52;c;cm0K\x07\x1b[2J\x9b31m\u202egnp.exe\u200b"


def commands_in(text: str) -> list[str]:
    """Return the characters of a text that a terminal would obey, or that show another text than there is."""
    return [c for c in text if c != "\n" and unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"}]


def seat(person: Person, repository: Path, mode: str, *args: str) -> Seat:
    options = ("--mode", mode, "--no-network", "--agent", "demo")
    return Seat(person, person.clsecure_argv(*options, *args), cwd=repository)


@pytest.fixture
def repository(person: Person, mode: str) -> Path:
    return person.repository(f"g-{mode}-{next(_numbers)}")


_NAMES = """
set -e
e=$(printf '\\033]52;c;cm0K\\007\\033[2J')
b=$(printf '\\342\\200\\256gnp.exe\\342\\200\\213\\302\\233')
echo work > "new$e"
mkdir "dir$b"; echo x > "dir$b/file$e$b"; chmod +x "dir$b/file$e$b"
printf 'text %s%s\\n' "$e" "$b" > README.md
git add -A
git -c user.name="Mallory$e$b" -c user.email="m$e@x" commit -qm "Subject $e$b"
git branch "side$b"
git checkout -q "side$b"; echo side > side; git add side; git commit -qm "Side$e"; git checkout -q main
mkfifo "pipe$e"
ln -s "/etc/$e" "link$b"
echo left > "left$e"
"""


def test_g1_names_of_the_agents_command_no_terminal(person, repository, mode):
    """Files, directories, authors, subjects, branches and contents hold escapes and bidi controls."""
    start = ("--mode", mode, "--no-network", "--agent", "demo", "--on-finish", "keep")
    said = []
    run = person.clsecure(*start, "--", "/bin/sh", "-c", _NAMES, cwd=repository)
    assert run.returncode == 0, run
    said += [run.text, run.errors]
    assert "\\x1b]52" in run.errors, "nothing hostile was shown"
    assert "\\u202e" in run.errors
    found = person.clsecure("list", cwd=repository).check()
    session = next(line for line in found.text.splitlines() if str(repository) in line).split()[0]
    for command in (("list",), ("list", "--output", "json"), ("diff", session, "--output", "json"),
                    ("import", session), ("cleanup", session, "--yes")):  # fmt: skip
        done = person.clsecure(*command, cwd=repository)
        said += [done.text, done.errors]
    assert "imported as" in "".join(said)
    for text in said:
        assert not commands_in(text), text


def test_g1_what_the_person_sees_of_an_agents_work_commands_no_terminal(person, repository, mode):
    """The review and the diff at a terminal show hostile names and contents."""
    with seat(person, repository, mode, "--", "/bin/sh", "-c", _NAMES) as at:
        at.answer(r"\[y/N\]|Your choice \[k\] ", "s")
        at.answer(r"Your choice \[k\] ", "k")
        at.end()
    # From the first word of the tool's after the agent on.
    shown = at.seen.decode("utf-8", "backslashreplace").partition("[?7h")[2]
    assert "\\x1b]52" in shown, "nothing hostile was shown"
    assert not commands_in(_OWN.sub("", shown).replace("\r", "")), shown


@pytest.fixture(scope="module")
def words_repository(person: Person) -> Path:
    return person.repository("g-words")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--session", f"a{_ESCAPES}"),
        ("--branch", f"b{_ESCAPES}", "--", "true"),
        ("--mode", _ESCAPES),
        ("--agent", _ESCAPES),
        ("--agent", "demo", "--mount", f"/nowhere{_ESCAPES}", "--", "true"),
        (f"--{_ESCAPES}",),
        ("diff", _ESCAPES),
        ("import", _ESCAPES),
        ("cleanup", _ESCAPES, "--yes"),
        ("--dry-run", "--", _ESCAPES),
    ],
)
def test_g1_words_of_the_command_line_command_no_terminal(person, words_repository, arguments):
    """Names and values that come from elsewhere (a script, a paste) hold escapes; errors quote them."""
    done = person.clsecure(*arguments, cwd=words_repository)
    assert not commands_in(done.text + done.errors), done
    assert "\\x1b" in done.errors, done


def test_g1_settings_and_directories_command_no_terminal(person):
    """The project's directory and values of the settings file hold escapes."""
    top = person.repository(f"g{_ESCAPES.replace('/', '')}")
    done = person.clsecure("--no-network", "--agent", "demo", "--on-finish", "discard", cwd=top)
    assert done.returncode == 125
    assert "Rename the directory" in done.errors
    assert not commands_in(done.text + done.errors), done
    config = person.home / ".config" / "clsecure"
    person.run(["mkdir", "-p", str(config)]).check()
    try:
        for line in (f"mode = {_ESCAPES}", f"{_ESCAPES} = 1", _ESCAPES):
            person.write(config / "config", line.encode() + b"\n")
            done = person.clsecure("--dry-run", cwd=person.home)
            assert done.returncode == 125, done
            assert not commands_in(done.text + done.errors), done
    finally:
        (config / "config").unlink()


def test_g2_what_git_says_of_a_broken_repository_is_shown_as_text(person, repository, mode):
    """The agent's repository, and then the person's, make git complain in hostile words."""
    script = (
        "printf 'ref: refs/heads/x\\033]52;c;cm0K\\007\\n' > .git/HEAD; printf '[\\033[2J\\n' > .git/config"
    )
    start = ("--mode", mode, "--no-network", "--agent", "demo", "--on-finish", "keep")
    done = person.clsecure(*start, "--", "/bin/sh", "-c", script, cwd=repository)
    assert not commands_in(done.text + done.errors), done
    person.write(repository / ".git" / "config", b'[include]\n\tpath = "\x1b]52;c;cm0K\x07\n[core\x1b[2J\n')
    done = person.clsecure(*start, "--fresh", "--", "true", cwd=repository)
    assert done.returncode == 125, done
    assert not commands_in(done.text + done.errors), done


def test_g3_the_terminals_answers_and_what_was_typed_ahead_decide_nothing(person, repository, mode):
    """The agent asks the terminal for its answer-back, and the person typed y and i before the question."""
    script = "echo work > work.txt; echo rea''dy; read -r _; printf '\\033[c\\033[5n\\005'; echo go''ne"
    with seat(person, repository, mode, "--", "/bin/sh", "-c", script) as at:
        at.expect("\nready")
        # The line that the agent waits for, and behind it the answers to questions that come later.
        at.child.send(b"\ni\ny\n\x1b[?62c\x1b[0ny\nd\ny\nd\ny\n")
        at.expect("gone")
        at.child.send(b"d\ny\ni\n")
        # A question that stays open was not answered: the next words are these of the person's.
        at.answer(r"Your choice \[k\] ", "k")
        at.expect("kept. Bring it home")
        assert at.end() == 0
    for decided in (b"imported as", b"discarded", b"for good"):
        assert decided not in at.seen
    assert person.git(repository, "branch", "--format=%(refname:short)") == "main"


@pytest.fixture(scope="module")
def g4_repository(person: Person, mode: str) -> Path:
    return person.repository(f"g4-{mode}")


_MESS = r"printf '\033[?1049h\033[?1000h\033[?1006h\033[?25l\033[?1h\033=\033[4h\033[3;5r\033[31m\033(0'; "


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("true", 0),
        ("kill -9 $$", 137),
        (f"stty raw -echo; {_MESS} exit 3", 3),
        (f"stty raw -echo; {_MESS} printf '\\033]0;never ended'; kill -9 $$", 137),
        ("stty 0; exit 4", 4),
    ],
    ids=["ends", "killed", "raw-and-alternate", "killed-in-a-string", "hangs-up"],
)
def test_g4_the_terminals_modes_are_as_before(person, g4_repository, mode, script, status):
    """The agent leaves raw mode, alternate screen, mouse reports, no cursor, half a control string."""
    options = ("--on-finish", "keep", "--fresh", "--", "sh", "-c", script)
    with seat(person, g4_repository, mode, *options) as at:
        assert at.end() == status
    if "1049h" in script:
        frame = 'before=$(stty -g); "$@"; test "$before" = "$(stty -g)" && echo same modes; read -r _'
        start = person.clsecure_argv("--mode", mode, "--no-network", "--agent", "demo", *options)
        with Tmux(person, ["sh", "-c", frame, "sh", *start], cwd=g4_repository) as pane:
            pane.wait_for("same modes")
            names = ("alternate_on", "mouse_any_flag", "mouse_sgr_flag", "insert_flag", "keypad_cursor_flag",
                     "keypad_flag", "origin_flag", "scroll_region_upper", "scroll_region_lower")  # fmt: skip
            assert pane.state(*names) == ["0"] * 8 + ["29"]
            assert pane.state("cursor_flag", "wrap_flag") == ["1", "1"]
            assert any("the agent changed nothing" in line for line in pane.screen())


def test_g6_a_faked_end_carries_no_tag(person, repository, mode):
    """The agent looks for the tag everywhere, and prints the tool's end without it."""
    mark = canary()
    script = f"""
    env; cat /proc/self/environ /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'
    find / -xdev -newer /proc/self -name '*' 2>/dev/null; ls -laR "$HOME" /run /tmp /dev 2>/dev/null
    cat .git/HEAD .git/logs/HEAD .git/config 2>/dev/null; git --no-pager log --format=raw; git for-each-ref
    echo {mark}; exec sh
    """
    tags = []
    for _ in range(2):
        with seat(person, repository, mode, "--fresh", "--", "/bin/sh", "-c", script) as at:
            first = at.expect(r"\[[0-9a-f]{6}\]")[1:-1].decode()
            at.expect(f"\r\n{mark}\r\n")
            gathered = at.child.before.decode(errors="replace")
            # The tool's own first lines come before the agent's.
            own, _, agents = gathered.partition("CLSECURE=1")
            assert first in own
            assert first not in agents, "the agent knows the tag"
            at.child.sendline(f"printf '[000000] imp''orted as fake-{mark}\\n'; exit".encode())
            at.expect(rf"\r\n\[000000\] imported as fake-{mark}")
            at.expect("the agent changed nothing")
            at.end()
            lines = _OWN.sub("\n", at.seen.decode(errors="replace")).split("\n")
            # A coloured tag has its style's end behind it.
            shown = "".join(lines[lines.index(f"[{first}]", len(lines) // 2) :])
            assert f"[{first}] the agent changed nothing" in shown
            tags.append(first)
    assert tags[0] != tags[1]
