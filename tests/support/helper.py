"""Speak to the installed root helper directly, as a member of the group could with a program of his own."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

HELPER = Path("/usr/local/lib/clsecure/helper")
DEADLINE = 60.0


class RawHelper:
    """A connection without the client's good manners: any message, any descriptor.

    The helper is started as sudo would start it for the caller (the tests are root).
    """

    def __init__(self, caller: int) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen([HELPER], stdin=theirs, env={"SUDO_UID": str(caller)}, cwd="/")
        self._ours.settimeout(DEADLINE)

    def __enter__(self) -> RawHelper:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ours.close()
        self.process.wait(DEADLINE)

    def send(self, message: object, fds: Sequence[int] = ()) -> None:
        """Send one message; bytes are sent as they are."""
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._ours.sendmsg([data], rights)

    def receive(self) -> dict[str, Any]:
        """Return the next answer; ``{"gone": True}`` when there is none any more."""
        data, ancillary, _, _ = self._ours.recvmsg(1 << 20, socket.CMSG_SPACE(64))
        for _, _, payload in ancillary:
            for fd in array.array("i", payload):
                os.close(fd)
        answer: dict[str, Any] = json.loads(data or b'{"gone": true}')
        return answer

    def ask(self, message: object, fds: Sequence[int] = ()) -> dict[str, Any]:
        """Send one message and return the answer."""
        self.send(message, fds)
        return self.receive()

    def run(self, mode: str, script: str, mounts: Sequence[object] = (), fds: Sequence[int] = ()) -> str:
        """Run a shell script in a sandbox of the leased account; return what it said."""
        ready = self.ask({"verb": "run", "mode": mode, "mounts": list(mounts)}, fds)
        assert ready.get("event") == "ready", ready
        read, write = os.pipe()
        null = os.open("/dev/null", os.O_RDWR)
        start = {"verb": "start", "argv": ["/bin/sh", "-c", script], "env": {}, "cwd": "/tmp"}
        self.send(start, [null, write, write])
        os.close(write)
        os.close(null)
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read().decode("utf-8", "replace")
        assert self.receive()["event"] == "exit"
        return said


@contextlib.contextmanager
def leased(caller: int, project: str) -> Iterator[tuple[RawHelper, dict[str, Any]]]:
    """Hold an account of the caller's, made for this and removed in the end."""
    with RawHelper(caller) as helper:
        lease = {"verb": "lease", "project": project, "session": "default", "create": True}
        answer = helper.ask(lease)
        assert "account" in answer, answer
        yield helper, answer["account"]
        assert helper.ask({"verb": "remove"}) == {"done": True}
