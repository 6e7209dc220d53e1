"""E1 and what it asks of recovery: however a session ends, its processes end and its work stays."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clsecure.session.store import session_key
from tests.support import sweep
from tests.support.hostile import DEADLINE, Target, processes_with
from tests.support.leftovers import traces, wait_until
from tests.support.messages_api import MessagesApi, text

pytestmark = pytest.mark.root

# Children in sessions of their own, orphans, and one that replaces another; nothing of it ends by itself.
SURVIVORS = r"""
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    signal.signal(number, signal.SIG_IGN)

def apart(action):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            null = os.open("/dev/null", os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            action()
        os._exit(0)
    os.wait()

def guard(depth=0):
    while True:
        child = os.fork()
        if child == 0:
            parent = os.getppid()
            while os.getppid() == parent:
                time.sleep(0.01)
            os.setsid()
        else:
            os.waitpid(child, 0)

apart(lambda: time.sleep(10000))
apart(guard)
"""

AGENT = f"""
trap '' TERM HUP INT
echo "$1" >>work.txt && git add work.txt && git commit --quiet -m "$1" && echo "$1" >not-committed.txt
python3 -I -c '{SURVIVORS.replace("'", "")}'
echo ready
"""

SIGNALS = {
    signal.SIGINT: 130,
    signal.SIGTERM: 143,
    signal.SIGHUP: 129,
    signal.SIGKILL: -9,
}


@pytest.fixture
def mine(target: Target) -> Iterator[Target]:
    """A session of the test's own; whatever is left of it goes at the end."""
    made = dataclasses.replace(target, session="recovery")
    yield made
    target.person.clsecure("cleanup", "recovery", "--yes")


def state_of(target: Target) -> Path:
    """The place of a session in the person's state directory."""
    key = session_key(str(target.repository), target.session)
    return target.person.home / ".local/state/clsecure/sessions" / key


def events(target: Target) -> list[str]:
    """The events of a session so far, by name."""
    with contextlib.suppress(FileNotFoundError):
        lines = (state_of(target) / "events.jsonl").read_text().splitlines(keepends=True)
        return [json.loads(line)["event"] for line in lines if line.endswith("\n")]
    return []


def tree_of(target: Target, branch: str) -> dict[str, str]:
    """The files of a branch in the person's repository that the agents of this file write."""
    names = target.person.git(target.repository, "ls-tree", "--name-only", branch).splitlines()
    wanted = [name for name in names if name in ("work.txt", "not-committed.txt")]
    return {name: target.person.git(target.repository, "show", f"{branch}:{name}") for name in wanted}


def listed(target: Target) -> dict[str, object]:
    """What ``clsecure list`` says of a session."""
    sessions = target.person.clsecure("list", "--output", "json").check().json()["sessions"]
    wanted = (str(target.repository), target.session)
    (mine,) = [each for each in sessions if (each["project"], each["session"]) == wanted]
    return dict(mine)


def bring_home(target: Target) -> dict[str, str]:
    """Import the kept work by the command for it; return the files of the branch."""
    done = target.person.clsecure("import", target.session, "--output", "json", cwd=target.repository).check()
    return tree_of(target, done.json()["import"]["branch"])


def word() -> str:
    """Something to work on that no session before had."""
    return f"work-{time.monotonic_ns()}"


def offered(target: Target) -> None:
    """Nobody can be asked without a terminal: the next start says what there is, and touches nothing."""
    again = target.refused()
    assert "is kept" in again.text + again.errors
    assert "--resume" in again.text + again.errors


def agent(said: str, rest: str = "read _") -> str:
    return f"set -- {said}\n{AGENT}{rest}"


# ---------------------------------------------------------------- E1


@pytest.mark.parametrize("number", [None, *SIGNALS], ids=lambda n: n.name if n else "exit")
def test_e1_survivors_end_with_the_session(mine, number):
    """The agent leaves daemons, orphans and a pair that respawns each other, deaf to every signal."""
    said = word()
    with mine.live(agent(said), finish="keep") as live:
        live.wait_for("ready")
        account = mine.account()
        # What the agent started need not have come to its own children yet.
        wait_until(lambda: len(live.processes()) >= 5, "the survivors are there")
        seen = traces(live.process.pid, worker=account["name"], uid=account["uid"])
        assert seen.namespaces
        if number is not None:
            live.process.send_signal(number)
        else:
            live.say("")
        live.process.wait(DEADLINE)
        seen.assert_gone()
    assert live.process.returncode == (0 if number is None else SIGNALS[number])
    if number in (signal.SIGKILL, signal.SIGTERM):
        assert listed(mine)["status"] == ("interrupted" if number is signal.SIGKILL else "kept")
        offered(mine)
        assert bring_home(mine) == {"work.txt": said, "not-committed.txt": said}
    resumed = mine.attack("cat work.txt not-committed.txt", "--resume", finish="keep")
    assert resumed.said.split() == [said, said]


def test_e1_the_next_start_reaps(mine):
    """Processes of the worker that outlived their session in spite of all are there at the next start."""
    mine.attack("true", finish="keep")
    account = mine.account()
    uid = account["uid"]
    stray = subprocess.Popen(["sleep", "10000"], user=uid, group=uid, extra_groups=[], start_new_session=True)
    try:
        assert sweep.processes_of(uid) == [stray.pid]
        mine.attack("true", "--fresh")
        assert stray.wait(DEADLINE) == -signal.SIGKILL
    finally:
        stray.kill()
        stray.wait()


# ---------------------------------------------------------------- phases


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
@pytest.mark.parametrize("moment", ["account_leased", "agent_ended", "work_reviewed"])
def test_an_end_in_any_phase_loses_nothing(mine, number, moment):
    """The command line is ended before the agent ran, before its work is looked at, before the import."""
    said = word()
    process = mine.person.spawn(
        mine.argv(["/bin/sh", "-c", f"echo {said} >work.txt"], finish="import"),
        cwd=mine.repository,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_until(lambda: moment in events(mine) or process.poll() is not None, moment)
        account = mine.account()
        seen = traces(process.pid, worker=account["name"], uid=account["uid"])
        process.send_signal(number)
        output, _ = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
        process.wait()
    # It may have come through with all of its work before the signal was there.
    assert process.returncode in (0, -number, 128 + number), output
    seen.assert_gone()
    assert not list(mine.repository.glob(".git/**/*.lock"))
    if moment == "account_leased":
        if number is signal.SIGTERM:
            assert process.returncode == 143
            assert account["name"] not in Path("/etc/passwd").read_text()
            assert not Path(account["home"]).exists()
            assert not (state_of(mine) / "session.json").exists()
        mine.attack("test ! -e work.txt")
    elif process.returncode == 0:
        assert tree_of(mine, json.loads(output[output.rindex(b"\n{") :])["import"]["branch"])
    else:
        assert bring_home(mine) == {"work.txt": said}
    assert "corrupt" not in mine.person.git(mine.repository, "fsck", "--no-progress", "--no-dangling")


# ---------------------------------------------------------------- the gateway


ASK = r"""
import os, socket, sys, urllib.request
try:
    request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/models",
        headers={"authorization": "Bearer " + os.environ["ANTHROPIC_AUTH_TOKEN"]})
    print("answer", urllib.request.urlopen(request, timeout=20).status, flush=True)
except OSError as error:
    print("no answer", getattr(error, "reason", error), flush=True)
"""


def test_the_gateway_dies(mine):
    """kill -9 of the gateway: the network closes, it does not open; the session goes on and says so."""
    mine = dataclasses.replace(mine, options=())
    script = f"ask() {{ python3 -I -c '{ASK}'; }}\nask; read _\nask; echo done >work.txt"
    with MessagesApi([[text("hello")]]) as api:
        env = {"ANTHROPIC_API_KEY": "sk-CANARY-of-the-provider", "ANTHROPIC_BASE_URL": api.url}
        with mine.live(script, finish="keep", env=env) as live:
            live.wait_for("answer 200")
            (gateway,) = set(processes_with("egress/__main__.py")) & set(sweep.processes_of(mine.person.uid))
            account = mine.account()
            seen = traces(live.process.pid, worker=account["name"], uid=account["uid"])
            os.kill(gateway, signal.SIGKILL)
            live.say("")
            live.wait_for("no answer")
            assert len(api.requests) == 1
            outcome = live.finish()
        assert outcome.returncode == 0
        assert any("the gateway ended" in warning for warning in outcome.json()["warnings"])
        seen.assert_gone()
    assert bring_home(mine) == {"work.txt": "done"}


# ---------------------------------------------------------------- a terminal

_WITH_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """The person's side of a terminal on which a command line runs."""

    def __init__(self, target: Target, argv: list[str]) -> None:
        self.master, self.slave = pty.openpty()
        os.fchown(self.slave, target.person.uid, -1)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        self.process = target.person.spawn(
            ["/usr/bin/python3", "-I", "-c", _WITH_TERMINAL, *argv],
            cwd=target.repository,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
        )
        self.said = b""

    def wait_for(self, wanted: bytes) -> None:
        """Read until it was said."""
        end = time.monotonic() + DEADLINE
        while wanted not in self.said:
            left = max(0.0, end - time.monotonic())
            assert select.select([self.master], [], [], left)[0], f"no {wanted!r} in {self.said!r}"
            self.said += os.read(self.master, 65536)

    def read_to_the_end(self) -> None:
        """Read until the command line has ended; a terminal that nobody reads would stop it."""
        end = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it does not end: {self.said!r}"
            if select.select([self.master], [], [], 0.05)[0]:
                self.said += os.read(self.master, 65536)
        while select.select([self.master], [], [], 0)[0]:
            self.said += os.read(self.master, 65536)

    def hang_up(self) -> None:
        """Close the terminal's window."""
        os.close(self.slave)
        os.close(self.master)
        self.master = self.slave = -1


@contextlib.contextmanager
def on_terminal(target: Target, script: str) -> Iterator[Terminal]:
    argv = target.person.clsecure_argv("--mode", target.mode, "--session", target.session, *target.options)
    terminal = Terminal(target, [*argv, "--", "/bin/sh", "-c", script])
    try:
        yield terminal
    finally:
        terminal.process.kill()
        terminal.process.wait()
        if terminal.master >= 0:
            terminal.hang_up()


@pytest.mark.parametrize(
    "end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, None], ids=lambda n: n.name if n else "hang-up"
)
def test_the_end_of_a_session_on_a_terminal(mine, end):
    """The command line gets a signal, or its window is closed, while the agent has the terminal (raw)."""
    said = word()
    with on_terminal(mine, agent(said, "sleep 10000")) as terminal:
        terminal.wait_for(b"ready\r\n")
        account = mine.account()
        seen = traces(terminal.process.pid, worker=account["name"], uid=account["uid"])
        if end is None:
            terminal.hang_up()
            terminal.process.wait(DEADLINE)
            assert terminal.process.returncode in (129, 125, 137)
        else:
            terminal.process.send_signal(end)
            terminal.read_to_the_end()
            assert terminal.process.returncode == SIGNALS[end]
            if end is not signal.SIGKILL:
                assert termios.tcgetattr(terminal.slave) == terminal.before
                assert b"the work is kept" in terminal.said
        seen.assert_gone()
    assert bring_home(mine) == {"work.txt": said, "not-committed.txt": said}
