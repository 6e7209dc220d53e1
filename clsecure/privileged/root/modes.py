"""What becomes of a sandbox's first process, by mode: in the child, still root, up to the worker for good."""

from __future__ import annotations

import json
import os
import signal
import socket

from clsecure.privileged.root.kernel import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    bind,
    call,
    loopback_up,
    mount,
    own_keyring,
    prctl,
    session_keyring,
)
from clsecure.privileged.root.limits import limit_open_files
from clsecure.privileged.root.network import close_network, host_addresses
from clsecure.privileged.root.processes import PYTHON, become, exit_code
from clsecure.privileged.root.request import FIREJAIL
from clsecure.privileged.root.state import RUN, write_file
from clsecure.privileged.root.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from clsecure.privileged.root.engine import Engine
    from clsecure.privileged.root.messages import Entry
    from clsecure.privileged.root.request import Request

# podman's own client asks for what its settings say, and the engine has no control groups to give.
CLIENT_CONF = """[containers]
cgroups = "disabled"
"""


class UserMode:
    """A sandbox of this helper's own making.

    :param pieces: the directory of the launcher.
    :param sockets: the directory where the inside meets the helper and the caller; "" without one.
    :param joined: the network namespace of the session's own engine; -1 without one.
    :param told: a file for what only this process can ask the kernel about itself.
    """

    setuid_allowed = host_proc = groups_shown = False
    own_pids = CLONE_NEWPID

    def __init__(
        self, entry: Entry, request: Request, *, pieces: str, sockets: str, joined: int, told: int
    ) -> None:
        self.entry, self.request = entry, request
        self.pieces, self.sockets, self.joined, self.told = pieces, sockets, joined, told

    def run(self, control: int) -> None:
        """Build the sandbox and become the launcher.

        :param control: its end of the socket to the helper; nothing of the kind for a container.
        """
        limit_open_files(self.request.limits)
        own_keyring()
        # All that comes of this process has it. Later nothing of it may ask: firejail and engines forbid it.
        os.write(self.told, json.dumps(session_keyring()).encode())
        view = View(
            self.entry,
            self.request.mounts,
            self.request.agent,
            setuid_allowed=self.setuid_allowed,
            memory=self.request.limits.get("memory"),
        )
        self._unshare()
        view.build()
        if self.request.network is not None:
            view.resolver()
        self._furnish(view)
        view.enter(host_proc=self.host_proc, cgroup=self.groups_shown)
        os.umask(0o022)
        self._finish(control)

    def _unshare(self) -> None:
        network, own_network = self.request.network, 0
        if network is not None:
            addresses = [*self.request.closed, *host_addresses()]
            close_network(network, self.entry["owner"], addresses)
        elif self.joined >= 0:
            call("setns", self.joined, CLONE_NEWNET)
        else:
            own_network = CLONE_NEWNET
        spaces = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
        call("unshare", spaces | own_network | self.own_pids)
        socket.sethostname("clsecure")
        loopback_up()

    def _furnish(self, view: View) -> None:
        """Add to the view what the mode needs."""
        if self.request.docker:
            made = f"{view.directory(RUN)}/docker.sock"
            write_file(made, b"")
            bind(f"{self.sockets}/docker.sock", made, view.read_only)
        if self.request.docker == "own":
            write_file(f"{view.directory(RUN)}/containers.conf", CLIENT_CONF.encode(), 0o644)

    def _finish(self, control: int) -> None:
        """Give up being root."""
        leave_only(control)
        self._first_process()

    def _first_process(self) -> NoReturn:
        """Fork into the new PID namespace; its first process only waits, and everything dies with it."""
        first = os.fork()
        if first:
            os.closerange(0, 1)
            _, status = os.waitpid(first, 0)
            os._exit(exit_code(status))
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        become(self.entry, empty_bounding_set=True)
        # The change of uid took both: die with the parent, and let nobody of the same uid look into this.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_DUMPABLE, 0)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        main = os.fork()
        if main == 0:
            self._exec(PYTHON)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == main:
                os._exit(exit_code(status))

    def _exec(self, *program: str) -> NoReturn:
        name, home = self.entry["name"], self.entry["home"]
        argv = (*program, "-I", "-S", f"{self.pieces}/launcher.py")
        env = {"PATH": "/usr/bin:/bin", "HOME": home, "USER": name, "LOGNAME": name, "SHELL": "/bin/sh"}
        os.execve(argv[0], argv, env)


class NamespaceMode(UserMode):
    """firejail, set-uid, makes the inner sandbox."""

    setuid_allowed = host_proc = True
    own_pids = 0

    def _finish(self, control: int) -> None:
        leave_only(control)
        become(self.entry, empty_bounding_set=False)
        # Without "--", behind which firejail would run everything through the account's shell.
        self._exec(FIREJAIL, "--quiet", f"--profile={self.pieces}/firejail.profile", PYTHON)


class PodmanMode(UserMode):
    """An engine, from which the caller then wants one container."""

    groups_shown = True

    def __init__(
        self,
        entry: Entry,
        request: Request,
        engine: Engine,
        *,
        pieces: str,
        sockets: str,
        joined: int,
        told: int,
    ) -> None:
        super().__init__(entry, request, pieces=pieces, sockets=sockets, joined=joined, told=told)
        self.engine = engine

    def _furnish(self, view: View) -> None:
        self.engine.furnish(view)
        bind(self.sockets, view.directory(RUN), view.read_only)

    def _finish(self, control: int) -> None:
        del control  # the launcher comes by the socket in that directory
        self.engine.run()


class DockerMode(UserMode):
    """docker's own daemon makes the container: this process only stands for it here."""

    def run(self, control: int) -> None:
        """Become the worker, and wait to be killed."""
        del control
        os.closerange(3, 1024 * 1024)
        own_keyring()
        become(self.entry, empty_bounding_set=True)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        while True:
            signal.pause()


def leave_only(control: int) -> None:
    """Close every descriptor but the launcher's and those of its words."""
    os.dup2(control, 0)
    os.closerange(3, 1024 * 1024)
