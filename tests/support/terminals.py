"""A person at a real terminal: programs in a pty driven by pexpect, clsecure in one, or in a pane of tmux."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pexpect

from tests.support.leftovers import descendants
from tests.support.person import Person

DEADLINE = 120
PATIENCE = 3
# The shell stays around: its words before and after show what the tool did to the terminal's modes.
_FRAME = """
trap : INT
stty -g | sed 's/^/before=/'
"$@"
status=$?
stty -g | sed 's/^/after=/'
echo "status=$status"
read -r _
"""


@contextlib.contextmanager
def at_terminal(
    person: Person,
    argv: list[str],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    size: tuple[int, int] = (45, 160),
) -> Iterator[pexpect.spawn[bytes]]:
    """Start a program on a terminal as the person; whatever is left of it afterwards is killed."""

    def become() -> None:
        os.setgroups(person.groups)
        os.setresgid(person.gid, person.gid, person.gid)
        os.setresuid(person.uid, person.uid, person.uid)
        os.umask(0o022)

    child = pexpect.spawn(
        argv[0],
        argv[1:],
        cwd=str(cwd),
        env=person.environment(env),
        dimensions=size,
        timeout=DEADLINE,
        preexec_fn=become,
        maxread=65536,
    )
    child.delaybeforesend = None
    try:
        yield child
    finally:
        if not child.ptyproc.closed:
            child.close(force=True)


def answer(child: pexpect.spawn[bytes], question: str, words: str, *, then: object) -> None:
    """Wait for a question, answer it, and wait for what comes then.

    What is typed before the tool reads is thrown away, so whoever answers faster than a person says it again.
    """
    child.expect(question)
    for _ in range(DEADLINE // PATIENCE):
        child.sendline(words)
        if child.expect([then, pexpect.TIMEOUT], timeout=PATIENCE) == 0:
            return
    raise AssertionError(f"{question!r} was never answered: {child.before!r}")


def until_it_waits(child: pexpect.spawn[Any]) -> None:
    """Wait until nothing on a terminal has anything to do: it reads now.

    Between a question and that, the tool throws away what was typed ahead, an answer or a Ctrl-C that comes
    so quickly among it. On a busy machine it can take its time for that.
    """
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if all(_sleeps(pid) for pid in (child.pid, *descendants(child.pid))):
            return
        time.sleep(0.01)


def _sleeps(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "SIZT"
    return True


def ended(child: pexpect.spawn[bytes]) -> int:
    """Wait for the end and return the exit status, 128+N for signal N."""
    if not child.flag_eof:
        child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus if child.exitstatus is not None else 128 + (child.signalstatus or 0)


class Seat:
    """A terminal with clsecure in it. Leaving takes both away."""

    def __init__(
        self,
        person: Person,
        argv: list[str],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        size: tuple[int, int] = (30, 100),
    ) -> None:
        self._left = contextlib.ExitStack()
        self.child = self._left.enter_context(
            at_terminal(person, ["/bin/sh", "-c", _FRAME, "sh", *argv], cwd=cwd, env=env, size=size)
        )
        # As slow as a person: what comes faster than the tool reads counts as typed ahead and is thrown away.
        self.child.delaybeforesend = 0.05
        self.seen = b""

    def __enter__(self) -> Seat:
        return self

    def __exit__(self, *_: object) -> None:
        self._left.close()

    def expect(self, pattern: str) -> bytes:
        """Wait for a regular expression; return what it matched."""
        try:
            self.child.expect(pattern.encode())
        except (pexpect.TIMEOUT, pexpect.EOF) as error:
            shown = (self.seen + self.child.before).decode(errors="backslashreplace")
            raise AssertionError(f"{pattern!r} was not said:\n{shown}") from error
        self.seen += self.child.before + self.child.after
        matched: bytes = self.child.after
        return matched

    def answer(self, prompt: str, line: str) -> None:
        """Wait for a question of the tool's, and answer it."""
        self.expect(prompt)
        until_it_waits(self.child)
        self.child.sendline(line.encode())

    def interrupt(self, prompt: str) -> None:
        """Wait for a question of the tool's, and press Ctrl-C."""
        self.expect(prompt)
        until_it_waits(self.child)
        self.child.sendintr()

    def inside(self, command: str) -> str:
        """Run a command in the shell inside; return what it said. ``$s`` is the status of the one before."""
        mark = secrets.token_hex(4)
        # The shell echoes the line: the marks appear in it only in halves.
        self.child.sendline(f"s=$?; echo {mark}''-a; {command}; echo {mark}''-z".encode())
        self.expect(f"{mark}-a\r\n")
        self.expect(f"{mark}-z\r\n")
        return self.child.before.decode(errors="backslashreplace").replace("\r\n", "\n")

    def end(self) -> int:
        """Wait for the tool's end; check that the terminal's modes are those of before; return the status."""
        self.expect("after=([0-9a-f:]+)\r\n")
        after = self.child.match.group(1)
        before = re.search(rb"before=([0-9a-f:]+)\r\n", self.seen)
        assert before is not None
        assert after == before[1], "the terminal's modes were changed"
        self.expect("status=([0-9]+)\r\n")
        return int(self.child.match.group(1))

    def hang_up(self) -> None:
        """Take the terminal away, as a closed window does."""
        self.child.ptyproc.fileobj.close()
        self.child.ptyproc.closed = True


class Tmux:
    """A tmux server of the person's own with one pane: what the person really sees."""

    def __init__(self, person: Person, argv: list[str], *, cwd: Path) -> None:
        self.person, self.socket = person, f"clsecure-{secrets.token_hex(4)}"
        self._tmux("new-session", "-d", "-x", "100", "-y", "30", "-c", str(cwd), shlex.join(argv), ";",
                   "set-option", "-g", "remain-on-exit", "on")  # fmt: skip

    def _tmux(self, *args: str) -> str:
        done = self.person.run(["tmux", "-L", self.socket, "-f", "/dev/null", *args])
        return done.check().text.rstrip("\n")

    def __enter__(self) -> Tmux:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(AssertionError):
            self._tmux("kill-server")

    def screen(self) -> list[str]:
        """Return the lines of the screen."""
        return self._tmux("capture-pane", "-p").split("\n")

    def wait_for(self, text: str) -> list[str]:
        """Wait until a text is on the screen; return its lines."""
        end = time.monotonic() + DEADLINE
        while text not in "\n".join(lines := self.screen()):
            assert time.monotonic() < end, "\n".join(lines)
            time.sleep(0.05)
        return lines

    def state(self, *names: str) -> list[str]:
        """Return format variables of the pane (tmux(1), FORMATS)."""
        return self._tmux("display-message", "-p", " ".join(f"#{{{name}}}" for name in names)).split(" ")

    def type(self, *keys: str) -> None:
        """Type keys by tmux's names."""
        self._tmux("send-keys", *keys)
