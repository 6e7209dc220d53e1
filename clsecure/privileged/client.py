"""The user's end of the connection to the root helper: typed verbs, nothing decided here."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from clsecure import process
from clsecure.errors import HelperError, SessionBusyError
from clsecure.model import WorkerAccount
from clsecure.privileged.leftovers import Leftovers

_MESSAGE_LIMIT = 256 * 1024
_DESCRIPTORS = 8
_HELPER_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredAccount:
    """One worker of the caller's, as the helper's registry has it.

    :param created: when the account was made.
    :param busy: a session holds it right now.
    """

    name: str
    uid: int
    project: str
    session: str
    home: Path
    created: datetime
    busy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxEnd:
    """How a sandbox ended.

    :param status: exit status of the command, 128+N for signal N.
    :param killed: processes that were still there and were killed.
    :param interrupted: the command itself was killed from outside.
    :param log: what the sandbox's own programs said; hostile once the command ran.
    :param passed: the bound for which the sandbox was ended: ``disk`` or ``reserve``.
    :param struck: how often a limit struck: processes killed for ``memory``, forks refused for ``pids``.
    """

    status: int
    killed: int
    interrupted: bool
    log: str
    passed: str | None = None
    struck: Mapping[str, int] = field(default_factory=dict)


class HelperConnection:
    """One connection: at most one account and one sandbox at a time.

    When it is closed, or this process dies, the helper kills what is left of the session.
    """

    def __init__(self, helper: Path) -> None:
        """Start the helper through sudo, in a session of its own (the terminal's signals don't reach it)."""
        self.directory = helper.parent
        self._conn, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            for end in (self._conn, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MESSAGE_LIMIT)
            self._stderr_read, stderr = os.pipe()
            try:
                self._sudo = process.spawn(
                    process.Command(argv=("sudo", "-n", "--", str(helper))),
                    stdin=theirs.fileno(),
                    stderr=stderr,
                    new_session=True,
                )
            finally:
                os.close(stderr)
        os.set_blocking(self._stderr_read, False)

    def fileno(self) -> int:
        """Return the descriptor to wait on for events of a running sandbox."""
        return self._conn.fileno()

    def close(self) -> None:
        """End the connection and wait until the helper has cleaned up and is gone."""
        self._conn.close()
        with contextlib.suppress(process.TimeoutExpired):
            self._sudo.wait(timeout=_HELPER_SECONDS)
        if self._stderr_read >= 0:
            os.close(self._stderr_read)
            self._stderr_read = -1

    def accounts(self) -> tuple[RegisteredAccount, ...]:
        """List the caller's workers."""
        reply = self._call({"verb": "accounts"})
        return tuple(
            RegisteredAccount(
                name=a["name"],
                uid=a["uid"],
                project=a["project"],
                session=a["session"],
                home=Path(a["home"]),
                created=datetime.fromtimestamp(a["created"], tz=timezone.utc),  # noqa: UP017
                busy=a["busy"],
            )
            for a in reply["accounts"]
        )

    def lease(self, *, project: str, session: str, create: bool) -> WorkerAccount:
        """Hold the account of a project and session until the connection ends.

        :param create: make it when there is none.
        :raises SessionBusyError: another process holds it.
        """
        reply = self._call({"verb": "lease", "project": project, "session": session, "create": create})
        account = reply["account"]
        return WorkerAccount(
            name=account["name"],
            uid=account["uid"],
            gid=account["uid"],
            home=Path(account["home"]),
            created=reply["created"],
        )

    def keep_agent(self, *, executable: int, sha256: str) -> None:
        """Have an agent's executable copied into root's store, unless it is there."""
        self._call({"verb": "agent", "sha256": sha256}, [executable])

    def inspect(self, workspace: str, *, rules: bool = False, images: bool = False) -> Leftovers:
        """Return what is left of the held account's session on the machine, after its sandbox has ended.

        :param workspace: name of the directory in the home that the work comes home from.
        :param images: hold the user's image store against what was noted when it was filled.
        :param rules: look, too, for a full network's rules in the machine's own network.
        """
        return Leftovers.parse(
            self._call({"verb": "inspect", "rules": rules, "images": images, "workspace": workspace})
        )

    def reset(self) -> None:
        """Empty the held account's home."""
        self._call({"verb": "reset"})

    def remove(self) -> None:
        """Remove the held account with everything of it."""
        self._call({"verb": "remove"})

    def open_images(self, listener: int) -> None:
        """Have an engine started on the user's image store; it answers on the listening socket."""
        self._call({"verb": "images"}, [listener])

    def close_images(self) -> str:
        """End that engine; return what it said."""
        return str(self._call({"verb": "enough"}).get("log", ""))

    def run(self, request: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Have a sandbox built up to the barrier; the launcher's report is the next message."""
        self.send({"verb": "run", **request}, fds)

    def send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one message with descriptors."""
        data = json.dumps(message).encode()
        if len(data) > _MESSAGE_LIMIT:
            raise HelperError("the command and its environment are too long", details=f"{len(data)} bytes")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._conn.sendmsg([data], rights)
        except OSError as error:
            raise self._gone() from error

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """Return the next message and its descriptors; an error of the helper's is raised."""
        fds = array.array("i")
        try:
            data, ancillary, _, _ = self._conn.recvmsg(
                _MESSAGE_LIMIT, socket.CMSG_SPACE(_DESCRIPTORS * fds.itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise self._gone() from error
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload)
        if not data:
            raise self._gone()
        reply: dict[str, Any] = json.loads(data)
        if reply.get("busy") is True:
            raise SessionBusyError(
                "this session is running already",
                details=reply["error"],
                resolution="Start another environment of the same project with: clsecure --session NAME",
            )
        if "error" in reply and "event" not in reply:
            raise HelperError("the helper refused", details=reply["error"])
        return reply, list(fds)

    def _call(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        self.send(message, fds)
        reply, _ = self.receive()
        return reply

    def _gone(self) -> HelperError:
        """Say why there is no helper: mostly sudo's own words."""
        with contextlib.suppress(process.TimeoutExpired):
            self._sudo.wait(timeout=2)
        words = ""
        with contextlib.suppress(OSError):
            words = os.read(self._stderr_read, 4000).decode("utf-8", "replace").strip()
        return HelperError(
            "the root helper did not answer",
            details=words or "sudo ended without a word",
            resolution="Check the installation with: clsecure doctor",
        )
