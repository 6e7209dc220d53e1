"""Run hostile agents for real and look at them from the host.

``Target`` is a repository of a person's and the mode in which its agents run; ``attack`` runs one to its
end, ``live`` holds one while the test looks at it. What an attack says counts only between two marks that the
agent itself printed, so a session that never started can't pass for one that held.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import selectors
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import sweep
from tests.support.person import Outcome, Person

DEADLINE = 60.0
REFUSED = (123, 125)
"""Exit statuses of a session that did not start: the sandbox is not what was promised; anything else."""
# One stream for both outputs: two pipes would put the agent's errors before or after the marks by chance.
_FRAME = (
    'begin=$1 end=$2; shift 2; echo "$begin"; "$@" 2>&1; status=$?; printf "\\n%s %s\\n" "$end" "$status"'
)


_SAMPLER = r"""
import os, select, sys
needles, hits, sessions = [word.encode()[::-1] for word in sys.argv[1:]], set(), 0
print("sampling", flush=True)
while not select.select([0], [], [], 0.005)[0]:
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    line = file.read()
            except OSError:
                continue
            sessions += b"clsecure" in line
            if any(needle in line for needle in needles):
                hits.add(line)
print(sessions, *hits, sep="\n")
"""


def canary() -> str:
    """Return a string that is nowhere on this machine."""
    return f"CANARY-{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What an attack left: the tool's outcome, and what the agent itself said and returned."""

    outcome: Outcome
    said: str
    status: int

    @property
    def result(self) -> Any:
        """The session's JSON document."""
        return self.outcome.json()

    @property
    def evidence(self) -> Any:
        """The JSON document that the attack printed as its last line."""
        return json.loads(self.said.strip().splitlines()[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A repository in which hostile agents run, in one mode. ``options`` go with every start."""

    person: Person
    mode: str
    repository: Path
    session: str = "default"
    options: tuple[str, ...] = ("--agent", "demo", "--no-network")
    environ: Mapping[str, str] = field(default_factory=dict)
    """What the person's environment holds at every start."""

    def argv(self, program: list[str], *options: str, finish: str = "discard") -> list[str]:
        """Return the command line that runs a program as the session's agent."""
        mine = ("--mode", self.mode, "--session", self.session, "--output", "json", "--on-finish", finish)
        return self.person.clsecure_argv(*mine, *self.options, *options, "--", *program)

    def attack(
        self,
        program: str | list[str],
        *options: str,
        finish: str = "discard",
        env: Mapping[str, str] | None = None,
        input: bytes | None = None,  # noqa: A002
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> Attack:
        """Run a shell script, or a program with arguments, as the agent; fail unless it ran to its end."""
        begin, end = f"begin-{secrets.token_hex(6)}", f"end-{secrets.token_hex(6)}"
        inner = ["/bin/sh", "-c", program] if isinstance(program, str) else program
        argv = self.argv(["/bin/sh", "-c", _FRAME, "sh", begin, end, *inner], *options, finish=finish)
        env = {**self.environ, **(env or {})}
        outcome = self.person.run(argv, cwd=cwd or self.repository, env=env, input=input, timeout=timeout)
        found = re.search(rf"^{begin}\r?\n(.*?)^{end} (\d+)\r?$", outcome.errors, re.DOTALL | re.MULTILINE)
        assert found, (
            f"the attack did not run to its end ({outcome.returncode}):\n{outcome.text}\n{outcome.errors}"
        )
        return Attack(outcome=outcome, said=found[1], status=int(found[2]))

    @property
    def number_inside(self) -> str:
        """What the worker's uid and gid are called inside: podman's containers call them 0."""
        podman = self.mode == "container" and "docker" not in self.options
        return "0" if podman else str(self.account()["uid"])

    @property
    def own_sockets(self) -> list[str]:
        """Sockets that an agent sees of its own sandbox; nothing listens at them any more."""
        return ["/run/clsecure/control"] if self.mode == "container" else []

    def python(self, source: str, *arguments: str, **options: Any) -> Attack:
        """Run Python source as the agent, by the system's python3 inside."""
        return self.attack(["/usr/bin/python3", "-I", "-c", source, *arguments], **options)

    def refused(
        self, *options: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Outcome:
        """Start a session that must be refused; fail when its agent ran all the same."""
        mark = f"ran-{secrets.token_hex(6)}"
        # The words that the agent would say are not in its argument vector: an error may quote that.
        argv = self.argv(["/bin/sh", "-c", f"printf %s%s {mark[:5]} {mark[5:]}"], *options)
        outcome = self.person.run(argv, cwd=cwd or self.repository, env={**self.environ, **(env or {})})
        assert mark not in outcome.errors + outcome.text, "the agent ran"
        assert outcome.returncode in REFUSED, outcome
        return outcome

    @contextlib.contextmanager
    def live(
        self,
        program: str | list[str],
        *options: str,
        finish: str = "discard",
        env: Mapping[str, str] | None = None,
    ) -> Iterator[LiveAgent]:
        """Run a script, or a program, as the agent; it goes on while the test looks.

        Leaving ends its standard input.

        A script waits for the test with ``read _``.
        """
        inner = ["/bin/sh", "-c", program] if isinstance(program, str) else program
        process = self.person.spawn(
            self.argv(inner, *options, finish=finish),
            cwd=self.repository,
            env={**self.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        agent = LiveAgent(self, process)
        with process:
            try:
                yield agent
                ended = agent.finish()
                # A check that failed keeps the session, and the next test would be asked about it.
                assert ended.returncode != 123, ended
            except BaseException:
                process.kill()
                process.wait(timeout=DEADLINE)
                # The next test with this target is to find nothing kept.
                self.person.clsecure("cleanup", "--yes", str(self.account()["name"]))
                raise
            finally:
                process.kill()

    def account(self) -> dict[str, Any]:
        """Return the registry's entry of this target's worker."""
        wanted = (str(self.repository), self.session)
        entries = [e for e in self.person.worker_accounts() if (e["project"], e["session"]) == wanted]
        assert len(entries) == 1, entries
        return entries[0]


class LiveAgent:
    """An agent that is running now."""

    def __init__(self, target: Target, process: subprocess.Popen[bytes]) -> None:
        self.target, self.process = target, process
        self.said = b""

    def wait_for(self, word: str, timeout: float = DEADLINE) -> None:
        """Wait until the agent has said a word."""
        assert self.process.stderr is not None
        end = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stderr, selectors.EVENT_READ)
            while word.encode() not in self.said:
                assert selector.select(max(0.0, end - time.monotonic())), f"no {word!r} in {self.said!r}"
                data = os.read(self.process.stderr.fileno(), 65536)
                assert data, f"ended without {word!r}: {self.said!r} {self.process.communicate()[0]!r}"
                self.said += data

    def say(self, line: str) -> None:
        """Give the agent a line on its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def processes(self) -> list[int]:
        """Return the pids, on the host, of everything that runs under the worker's uid."""
        return sweep.processes_of(int(self.target.account()["uid"]))

    def inside(self) -> list[int]:
        """Return the pids, on the host, of the agent and what it started, without what holds it."""
        return sweep.innermost(self.processes())

    def finish(self) -> Outcome:
        """End the agent's standard input and return what the session left."""
        stdout, stderr = self.process.communicate(timeout=DEADLINE)
        self.said += stderr
        return Outcome(
            argv=tuple(self.process.args),  # type: ignore[arg-type]
            returncode=self.process.returncode,
            stdout=stdout,
            stderr=self.said,
        )


class Ear:
    """A listener on the host that notes whoever connects (or sends, for datagrams)."""

    def __init__(self, address: Any, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> None:
        self.heard: list[bytes] = []
        self._socket = socket.socket(family, kind)
        if family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self._socket.bind(address)
        if kind == socket.SOCK_STREAM:
            self._socket.listen(64)
        self.address = self._socket.getsockname()
        self.family, self.kind = family, kind
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._changed = threading.Condition()

    def __enter__(self) -> Ear:
        self._thread.start()
        self.control()
        return self

    def __exit__(self, *_: object) -> None:
        # close() does not wake a thread in accept(); shutdown() does, except for datagrams.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    @property
    def port(self) -> int:
        """The port of an internet address."""
        return int(self.address[1])

    def control(self) -> None:
        """Show that it hears: connect from the host, and forget that again."""
        before = len(self.heard)
        with socket.socket(self.family, self.kind) as probe:
            probe.settimeout(DEADLINE)
            probe.connect(self.address)
            if self.kind == socket.SOCK_DGRAM:
                probe.send(b"control")
            with self._changed:
                assert self._changed.wait_for(lambda: len(self.heard) > before, DEADLINE), "a deaf listener"
        del self.heard[before:]

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                if self.kind == socket.SOCK_STREAM:
                    connection, peer = self._socket.accept()
                    connection.close()
                    note = repr(peer).encode()
                else:
                    note, _ = self._socket.recvfrom(65536)
                with self._changed:
                    self.heard.append(note)
                    self._changed.notify_all()


@contextlib.contextmanager
def sampling(*needles: str) -> Iterator[list[str]]:
    """Read everybody's argument vectors all the time, as somebody else; the lines come at the end."""
    argv = ["/usr/bin/python3", "-I", "-c", _SAMPLER, *(needle[::-1] for needle in needles)]
    sampled: list[str] = []
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=65534,
        group=65534,
        extra_groups=[],
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sampling\n"
        control = f"control-{needles[0]}"
        with subprocess.Popen(["/bin/sh", "-c", "read _", control], stdin=subprocess.PIPE) as seen:
            yield sampled
            seen.communicate()
        said, _ = process.communicate()
        sampled += said.splitlines()
        assert int(sampled.pop(0)) > 0, "the sampler saw no clsecure"
        hits = [line for line in sampled if control not in line]
        assert len(hits) < len(sampled), "the sampler does not see argument vectors"
        sampled[:] = hits


def files_containing(top: Path, needle: str) -> list[Path]:
    """Return the regular files below a directory of the host that hold a string."""
    wanted, found = needle.encode(), []
    for place, _, names in os.walk(top):
        for path in (Path(place, name) for name in names):
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink() and wanted in path.read_bytes():
                    found.append(path)
    return found


def processes_with(word: str) -> list[int]:
    """Return the pids of all processes of the machine that have a word in their argument vector."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if word.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def quoted(*words: object) -> str:
    """Return words for a shell script."""
    return shlex.join(str(word) for word in words)
