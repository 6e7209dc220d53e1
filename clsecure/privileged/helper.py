#!/usr/bin/python3 -IS
"""The one part of clsecure that runs as root.

Started by sudo without arguments (the sudoers rule says ``""``), as ``/usr/bin/python3 -I -S``: standard
library only, nothing of the user's environment. Standard input is a SOCK_SEQPACKET socket; every message is
one JSON object, descriptors come with it as SCM_RIGHTS. The caller is who SUDO_UID says.

One connection holds at most one account (``lease``) and one sandbox at a time (``run``). When the other end
goes away, for whatever reason, everything of the session is killed.

What makes the verbs harmless in the hands of every member of the group:

* names, uids and paths are derived here; the caller gives a project path and a session name as *text*;
* accounts are found in this file's own registry only, and only the caller's own;
* no argument vector is taken for root: ``start`` and ``probe`` are passed on unread to the launcher, which is
  the worker;
* files of the caller come as descriptors that the caller could open; nothing is opened by the caller's path;
* what the worker can do itself (unpacking, deleting its files) is done after setresuid().

The parts of it (``clsecure.privileged.root``) lie beside it in root's own directory. It looks nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import re
import resource
import select
import signal
import socket
import stat
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
if __name__ == "__main__":
    sys.dont_write_bytecode = True
    # Behind the standard library, for which nothing in there can stand in. All of it is loaded now: a later
    # ``clsecure setup`` must not mix two versions.
    sys.path.append(HERE)

from clsecure.privileged.root.accounts import ensure_account, remove_account, require_own, wipe_home
from clsecure.privileged.root.agents import SHA256, keep_agent
from clsecure.privileged.root.disk import Disk
from clsecure.privileged.root.engine import PODMAN, given_listener
from clsecure.privileged.root.kernel import own_keyring
from clsecure.privileged.root.killing import quiesce
from clsecure.privileged.root.listing import Listing, forget
from clsecure.privileged.root.messages import MESSAGE_LIMIT, Busy, Refused, close_all, receive, send, text
from clsecure.privileged.root.processes import INHERITED_SIGNALS
from clsecure.privileged.root.registry import Registry, known
from clsecure.privileged.root.remains import remains
from clsecure.privileged.root.sandbox import TICK_SECONDS, Sandbox
from clsecure.privileged.root.sidecar import ImageStore
from clsecure.privileged.root.state import (
    LOCK_SECONDS,
    RUN,
    configuration,
    locked,
    remove_directory,
    require_root_owned,
)
from clsecure.privileged.root.stores import image_store, wipe_storage

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing takes longer to import than this program to run
    from clsecure.privileged.root.messages import Entry, Message

PROTOCOL = 1
SESSION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}\Z")


class Service:
    """One caller's connection."""

    def __init__(self, conn: socket.socket, caller: int) -> None:
        self.conn, self.caller = conn, caller
        self.registry = Registry(configuration())
        self.entry: Entry | None = None
        self.held = contextlib.ExitStack()
        self.agent_in_use = contextlib.ExitStack()

    def serve(self) -> None:
        """Answer until the caller goes away."""
        while True:
            fds: list[int] = []
            try:
                message, fds = receive(self.conn)
                if message is None:
                    return
                verb = message.get("verb")
                if not isinstance(verb, str) or verb not in self.VERBS:
                    raise Refused("there is no such verb")
                self.VERBS[verb](self, message, fds)
            except Refused as refused:
                send(self.conn, {"error": str(refused)})
            except (BrokenPipeError, ConnectionResetError):
                return
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                send(self.conn, {"error": f"the message is malformed ({type(error).__name__})"})
            except OSError as error:
                name = errno.errorcode.get(error.errno or 0, "")
                send(self.conn, {"error": f"{error} ({name})", "errno": error.errno})
            finally:
                close_all(fds)

    def hello(self, _message: Message, _fds: list[int]) -> None:
        """Say which protocol this is."""
        send(self.conn, {"protocol": PROTOCOL, "directory": HERE})

    def accounts(self, _message: Message, _fds: list[int]) -> None:
        """List the caller's own accounts."""
        entries = [e for e in self.registry.entries() if e["owner"] == self.caller]
        mine = [{**entry, "busy": self._busy(entry)} for entry in entries]
        send(self.conn, {"accounts": mine})

    def _busy(self, entry: Entry) -> bool:
        if self.entry is not None and self.entry["name"] == entry["name"]:
            return False
        try:
            with locked(f"{self.registry.locks}/{entry['name']}", wait=0):
                return False
        except Busy:
            return True

    def lease(self, message: Message, _fds: list[int]) -> None:
        """Hold the caller's account for a project and session, made when it isn't there yet."""
        if self.entry is not None:
            raise Refused("this connection holds an account already")
        project, session = text(message, "project"), text(message, "session", 32)
        if not project.startswith("/") or not SESSION_NAME.match(session):
            raise Refused("the project must be an absolute path, and the session a plain name")
        with self.registry.lock():
            entry = self.registry.find(self.caller, project, session)
            created = entry is None
            if entry is None:
                if message.get("create") is not True:
                    raise Refused("there is no such worker")
                entry = self.registry.add(self.caller, project, session)
            try:
                self.held.enter_context(locked(f"{self.registry.locks}/{entry['name']}", wait=0))
            except Busy:
                send(self.conn, {"error": f"{entry['name']} is running", "busy": True})
                return
        try:
            require_own(entry)
            reaped = quiesce(entry)
            # Of a session whose helper was killed.
            remove_directory(f"{RUN}/{entry['name']}")
            wipe_storage(entry)
            with self.registry.lock():
                ensure_account(entry)
        except BaseException:
            self.held.close()
            raise
        self.entry = entry
        # With an empty home it is as good as new: whoever made it was ended before it was of use.
        created = created or not os.listdir(entry["home"])
        send(self.conn, {"account": entry, "created": created, "reaped": reaped})

    def _leased(self) -> Entry:
        if self.entry is None:
            raise Refused("no account is held; lease one first")
        return self.entry

    def agent(self, message: Message, fds: list[int]) -> None:
        """Keep an agent's executable, root-owned and read-only."""
        digest = text(message, "sha256", 64)
        if not SHA256.match(digest) or len(fds) != 1:
            raise Refused("an agent is one descriptor and its sha256")
        self.agent_in_use.close()
        send(self.conn, {"path": keep_agent(self.caller, digest, fds[0], self.agent_in_use)})

    def run(self, message: Message, fds: list[int]) -> None:
        """Build a sandbox, wait for ``start``, report its end."""
        sandbox = Sandbox(self._leased(), message, fds, pieces=HERE)
        try:
            sandbox.prepare(self.registry)
            sandbox.launch()
            if sandbox.request.container == "docker":
                # It is the caller's daemon that makes the container; what it binds into it is there now.
                send(self.conn, {"event": "awaiting"})
            if sandbox.barrier(self.conn):
                sandbox.serve(self.conn)
        finally:
            result = sandbox.end()
        send(self.conn, result)

    def images(self, _message: Message, fds: list[int]) -> None:
        """Run an engine on the caller's image store, offline, until the caller says enough."""
        require_root_owned(PODMAN)
        if len(fds) != 1:
            raise Refused("the store's engine is one listening socket")
        entry = image_store(self.registry, self.caller)
        store = ImageStore(entry, given_listener(fds), tty=self.registry.config["range_first"])
        with contextlib.closing(store):
            with locked(f"{self.registry.locks}/{entry['name']}", wait=LOCK_SECONDS):
                forget(self.caller)
                self._fill(store)
                with contextlib.closing(Listing(self.caller)) as listing:
                    listing.noted()
            send(self.conn, {"event": "exit", "log": store.said()})

    def _fill(self, store: ImageStore) -> None:
        quiesce(store.entry)
        try:
            # What lies there counts to no quota of the caller's.
            disk = Disk(store.entry, 0)
            store.launch()
            send(self.conn, {"event": "ready"})
            while not select.select([self.conn], [], [], TICK_SECONDS)[0]:
                if disk.low():
                    raise Refused("there is too little room on the disk of the images: free some")
        except Refused as refused:
            raise Refused(f"{refused}: {store.said() or 'no word from it'}") from None
        finally:
            store.end()

    def inspect(self, message: Message, _fds: list[int]) -> None:
        """Say what is left of the held account's session on the machine, and how the account stands."""
        workspace = text(message, "workspace", 255)
        if "/" in workspace:
            raise Refused("the workspace must be a plain name")
        rules, images = (message.get(name) is True for name in ("rules", "images"))
        send(self.conn, remains(self._leased(), rules=rules, images=images, workspace=workspace))

    def late(self, _message: Message, _fds: list[int]) -> None:
        """Take no notice of what was meant for a sandbox that has ended meanwhile."""

    def reset(self, _message: Message, _fds: list[int]) -> None:
        """Empty the held account's home."""
        entry = self._leased()
        quiesce(entry)
        wipe_home(entry)
        send(self.conn, {"done": True})

    def remove(self, _message: Message, _fds: list[int]) -> None:
        """Remove the held account and everything of it."""
        remove_account(self.registry, self._leased())
        self.held.close()
        self.entry = None
        send(self.conn, {"done": True})

    VERBS = {  # noqa: RUF012  # a constant of this class
        "hello": hello,
        "accounts": accounts,
        "lease": lease,
        "agent": agent,
        "run": run,
        "images": images,
        "inspect": inspect,
        "start": late,
        "probe": late,
        "kill": late,
        "enough": late,
        "reset": reset,
        "remove": remove,
    }


def on_its_own() -> None:
    """Shed what the caller could have set up to stop or cut this process in the middle.

    A key on the caller's terminal (Ctrl-Z while the shared lock is held), a timer that survives exec, a limit
    on the size of files while useradd writes /etc/passwd. The caller's keys go, too: sandboxes come of this
    process, and have none of them even before they take a keyring of their own.
    """
    # Where keys can't be had at all, accounts can be removed all the same: what starts takes one itself.
    with contextlib.suppress(OSError, KeyError):
        own_keyring()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in INHERITED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.setitimer(signal.ITIMER_REAL, 0)
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
        try:
            resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (OSError, ValueError):
            sys.exit("clsecure helper: a limit (ulimit -f, ulimit -t) is set and can't be lifted here")


def main() -> None:
    """Check who calls, and serve."""
    caller = os.environ.get("SUDO_UID", "")
    os.environ.clear()
    if os.geteuid() != 0 or not caller.isdigit() or int(caller) == 0 or not known(pwd.getpwuid, int(caller)):
        sys.exit("clsecure helper: run by sudo for a plain user only")
    if len(sys.argv) != 1 or not stat.S_ISSOCK(os.fstat(0).st_mode):
        sys.exit("clsecure helper: takes no arguments, and a socket as standard input")
    os.umask(0o022)
    os.chdir("/")
    on_its_own()
    conn = socket.socket(fileno=os.dup(0))
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_LIMIT)
    try:
        service = Service(conn, int(caller))
    except Refused as refused:
        sys.exit(f"clsecure helper: {refused}")
    with service.held:
        service.serve()


if __name__ == "__main__":
    main()
