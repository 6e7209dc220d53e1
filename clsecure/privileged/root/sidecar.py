"""Engines in a sandbox of their own: the session's, and the one that fills an image store."""

from __future__ import annotations

import os
import socket

from clsecure.privileged.root.engine import Engine
from clsecure.privileged.root.kernel import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    call,
    own_keyring,
)
from clsecure.privileged.root.killing import quiesce
from clsecure.privileged.root.limits import limit_open_files
from clsecure.privileged.root.messages import Refused, close_all
from clsecure.privileged.root.processes import Stage, parent_of
from clsecure.privileged.root.stores import engine_storage
from clsecure.privileged.root.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from clsecure.privileged.root.limits import Limits
    from clsecure.privileged.root.messages import Entry

LOG_LIMIT = 16 * 1024
ENGINE_SECONDS = 10.0
SPACES = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWPID | CLONE_NEWNET


class Sidecar:
    """The session's own engine: podman in a sandbox of its own, with further uids and a network namespace.

    The session's sandbox enters that network namespace; it shares nothing else with it but the workspace.
    """

    def __init__(
        self, entry: Entry, api: socket.socket, *, tty: int, workspace: str, proxy: str | None, limits: Limits
    ) -> None:
        self.entry, self.workspace, self.limits = entry, workspace, limits
        self.engine = Engine(entry, api, tty=tty, wide=True, proxy=proxy)
        self.stage: Stage | None = None
        self.network = self.place = -1

    def launch(self, limited: Callable[[int], None], output: int) -> None:
        """Start it; ``limited`` gets the pid of its first process before that does anything.

        :param output: where its words go.
        """
        self.place = parse_workspace(self.entry, self.workspace)
        self.engine.storage = engine_storage(self.entry)
        self.stage = Stage(self._stage, output)
        limited(self.stage.pid)
        self.stage.go()
        first = self.engine.started(ENGINE_SECONDS, self.stage.pid)
        self.network = os.open(f"/proc/{first}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        # Had its first process died, this could be anybody's: the machine's own, at worst.
        if parent_of(first) != self.stage.pid:
            raise Refused("the session's engine did not come up")
        self.engine.go()

    def _stage(self) -> None:
        limit_open_files(self.limits)
        mounts = [(self.workspace, False, self.place)]
        run_engine(self.engine, View(self.entry, mounts, None, setuid_allowed=False, memory=None), "engine")

    def end(self) -> None:
        """Kill it."""
        if self.stage is not None:
            self.stage.kill()
            self.stage.end()

    def close(self) -> None:
        """Give back what the helper holds of it."""
        self.engine.close()
        close_all(fd for fd in (self.network, self.place) if fd >= 0)


class ImageStore:
    """podman on an image store, as the account that the store's files belong to, without a network."""

    def __init__(self, entry: Entry, api: socket.socket, *, tty: int) -> None:
        self.entry = entry
        self.engine = Engine(entry, api, tty=tty, storage=entry["home"])
        self.stage: Stage | None = None
        self.log = os.memfd_create("words")

    def launch(self) -> None:
        """Start it."""
        self.stage = Stage(self._stage, self.log)
        self.stage.go()
        self.engine.started(ENGINE_SECONDS, self.stage.pid)
        self.engine.go()

    def _stage(self) -> None:
        view = View(self.entry, [], None, setuid_allowed=False, memory=None)
        run_engine(self.engine, view, "images")

    def said(self) -> str:
        """Return what its programs said, bounded."""
        return os.pread(self.log, LOG_LIMIT, 0).decode("utf-8", "replace").strip()

    def end(self) -> None:
        """Kill it, and whatever is left of it."""
        if self.stage is not None:
            self.stage.kill()
            self.stage.end()
        quiesce(self.entry)

    def close(self) -> None:
        """Give back what the helper holds of it."""
        self.engine.close()
        os.close(self.log)


def run_engine(engine: Engine, view: View, host: str) -> NoReturn:
    """In the child, still root: build a sandbox for nothing but an engine, and become that."""
    own_keyring()
    call("unshare", SPACES)
    socket.sethostname(host)
    view.build(home=False)
    engine.furnish(view)
    view.enter(host_proc=False, cgroup=True, open_sys=engine.wide)
    os.umask(0o022)
    engine.run()


def parse_workspace(entry: Entry, path: str) -> int:
    """Open a directory below the worker's home, through no link: the worker could have made one."""
    home = f"{entry['home']}/"
    parts = path.removeprefix(home).split("/")
    if not path.startswith(home) or any(part in ("", ".", "..") for part in parts):
        raise Refused("the workspace must be below the worker's home")
    fd = os.open(entry["home"], os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    for part in parts:
        try:
            inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd
