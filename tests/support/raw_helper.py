"""Talk to the root helper as a hostile member of the group would: real sudo, any bytes, any descriptors."""

from __future__ import annotations

import array
import contextlib
import json
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.person import Person
from tests.support.shared_setup import DIRECTORY

DEADLINE = 90.0
_BUFFER = 1 << 22
_SO_SNDBUFFORCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What the helper answered until it ended, and how it ended."""

    answers: tuple[dict[str, Any], ...]
    status: int
    errors: str

    @property
    def last(self) -> dict[str, Any]:
        """The last answer."""
        return self.answers[-1]

    def events(self, name: str) -> list[dict[str, Any]]:
        """The answers that are a certain event of a sandbox."""
        return [answer for answer in self.answers if answer.get("event") == name]


class RawHelper:
    """One connection. Whoever leaves it has told the helper that nothing more comes."""

    def __init__(self, person: Person) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(DEADLINE)
        # More than the person could set: what is too large must be refused by the helper, not by the sender.
        self._ours.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
        with theirs:
            self._process = person.spawn(
                ["sudo", "-n", "--", f"{DIRECTORY}/helper"],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )

    def send(self, message: Mapping[str, Any] | bytes, fds: Sequence[int] = ()) -> None:
        """Send one message; a helper that has gone already takes no notice."""
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._ours.sendmsg([data], rights)

    def receive(self) -> dict[str, Any] | None:
        """Return the next answer; None when the helper is gone. Descriptors are dropped."""
        try:
            data = self._ours.recv(1 << 20)
        except ConnectionResetError:
            return None
        return dict(json.loads(data)) if data else None

    def ask(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        """Send one message and return its answer."""
        self.send(message, fds)
        answer = self.receive()
        assert answer is not None, f"the helper went away: {self._last_words()}"
        return answer

    def pid(self) -> int:
        """Return the helper's process: sudo's only child, or what sudo became."""
        pid = self._process.pid
        while f"{DIRECTORY}/helper".encode() != _program(pid):
            (pid,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return pid

    def _last_words(self) -> str:
        """Return how sudo ended and what it and the helper said."""
        _, said = self._process.communicate(timeout=DEADLINE)
        return f"{self._process.returncode} {said.decode('utf-8', 'replace')}"

    def finish(self) -> Conversation:
        """Say that nothing more comes, collect what is left, and wait for the end."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_WR)
        answers = []
        while (answer := self.receive()) is not None:
            answers.append(answer)
        self._ours.close()
        _, errors = self._process.communicate(timeout=DEADLINE)
        return Conversation(
            answers=tuple(answers), status=self._process.returncode, errors=errors.decode(errors="replace")
        )

    def __enter__(self) -> RawHelper:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        try:
            self._process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            # sudo passes nothing on for SIGKILL; the helper ends by its closed socket, sooner or later.
            self._process.kill()
            raise


def _program(pid: int) -> bytes:
    """Return the script that a python runs; nothing for any other process."""
    if not Path(f"/proc/{pid}/exe").readlink().name.startswith("python"):
        return b""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return next((word for word in words[1:] if not word.startswith(b"-")), b"")


def talk(person: Person, messages: Iterable[tuple[Mapping[str, Any] | bytes, Sequence[int]]]) -> Conversation:
    """Send everything at once, then read every answer."""
    with RawHelper(person) as helper:
        for message, fds in messages:
            helper.send(message, fds)
        return helper.finish()


def ask_one(person: Person, *messages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Send messages one by one; return the answers."""
    with RawHelper(person) as helper:
        return [helper.ask(message) for message in messages]
