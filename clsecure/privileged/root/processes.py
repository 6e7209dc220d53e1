"""Children of the helper: started, turned into the worker, and looked at."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal

from clsecure.privileged.root.kernel import (
    CAP_DAC_READ_SEARCH,
    CLONE_NEWNET,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    call,
    drop_bounding_set,
    keep_capabilities,
    prctl,
)
from clsecure.privileged.root.messages import Refused, close_all
from clsecure.privileged.root.registry import RANGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn

    from clsecure.privileged.root.messages import Entry

PYTHON = "/usr/bin/python3"
"""What runs the launcher in sandboxes of this machine's own view."""
WORDS_LIMIT = 32 * 1024
INHERITED_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}


def tool(*argv: str, timeout: float = 60, worker: Entry | None = None, network: int = -1) -> str:
    """Run a program of the machine to its end, as root, or as the worker (rm and chmod of its own home).

    A failure of root's is raised with its words; how the worker's ended is seen by what it left.

    :param network: a network namespace to run it in.
    :returns: what root's said, bounded.
    """
    words = os.memfd_create("words") if worker is None else os.open("/dev/null", os.O_WRONLY)
    null = os.open("/dev/null", os.O_RDONLY)
    pid = os.fork()
    if pid == 0:
        for target, fd in ((0, null), (1, words), (2, words)):
            os.dup2(fd, target)

        def execute() -> None:
            if network >= 0:
                call("setns", network, CLONE_NEWNET)
            if worker is not None:
                become(worker, empty_bounding_set=True)
                prctl(PR_SET_NO_NEW_PRIVS, 1)
            os.execve(argv[0], argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"})

        run_and_exit(execute)
    pidfd = os.pidfd_open(pid)
    if not select.select([pidfd], [], [], timeout)[0]:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(pidfd)
    with open(null), open(words, "rb", buffering=0) as output:
        if worker is not None:
            return ""
        output.seek(0)
        said = output.read(WORDS_LIMIT).decode("utf-8", "replace").strip()
        if status != 0:
            raise Refused(f"{os.path.basename(argv[0])} failed: {said[:500] or 'not done in time'}")
        return said


def run_and_exit(action: Callable[[], object]) -> NoReturn:
    """Run in a forked child and never return, whatever happens."""
    status = 126
    try:
        action()
        status = 0
    except BaseException as error:  # noqa: BLE001  # a forked child must not return
        os.write(2, f"{error}\n".encode("utf-8", "replace"))
    finally:
        os._exit(status)


def become(entry: Entry, *, empty_bounding_set: bool) -> None:
    """Turn this process into the worker, for good."""
    if empty_bounding_set:
        drop_bounding_set()
    os.setgroups([])
    os.setresgid(entry["uid"], entry["uid"], entry["uid"])
    os.setresuid(entry["uid"], entry["uid"], entry["uid"])


def become_reader(entry: Entry) -> None:
    """Turn this process into the worker for good, but for one thing: no directory or file is closed to it.

    It writes where the worker may, and executes nothing. A machine that does not let this process keep that
    leaves it what the worker can read.
    """
    prctl(PR_SET_KEEPCAPS, 1)
    become(entry, empty_bounding_set=True)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    try:
        keep_capabilities(CAP_DAC_READ_SEARCH)
    except PermissionError:
        keep_capabilities()


def uids_of(pid: int | str) -> list[bytes]:
    """Return the four uids of a live process as bytes; nothing for one that is gone or a zombie.

    One whose first thread has ended looks like a zombie, and lives as long as others of its threads do.
    """
    wanted = (b"State:", b"Uid:", b"Threads:")
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file if line.startswith(wanted))
    except OSError:
        return []
    dead = fields[b"State"].split()[0] in (b"Z", b"X") and int(fields.get(b"Threads", b"0")) < 2
    return [] if dead else fields[b"Uid"].split()


def parent_of(pid: int) -> int:
    """Return the pid of a process's parent; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(b"PPid:"))
    except OSError:
        return 0


def is_of(entry: Entry, uids: Iterable[bytes | int]) -> bool:
    """Tell whether one of several uids is the account's, or of its range."""
    first = entry.get("range", -RANGE)
    return any(uid == entry["uid"] or first <= uid < first + RANGE for uid in map(int, uids))


def processes_of(entry: Entry) -> list[int]:
    """Return the live processes of the account: by any of their four uids."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and is_of(entry, uids_of(name))]


def exit_code(status: int) -> int:
    """Return a wait status in the shell's way: 128+N for signal N."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def keep_only(*fds: int) -> None:
    """Move descriptors to 3, 4 and so on, and close all others but the standard ones."""
    end = 3 + len(fds)
    aside = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, end) for fd in fds]
    for target, fd in enumerate(aside, 3):
        os.dup2(fd, target, inheritable=False)
    os.closerange(end, 1024 * 1024)


class Stage:
    """A child that is root still and waits until it may go on. It dies with this process.

    :param action: what it does then; its return, or its failure, is the child's end.
    :param output: where its words go. It has no standard input.
    """

    def __init__(self, action: Callable[[], object], output: int) -> None:
        go, self._gate = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                os.close(self._gate)
                run_and_exit(lambda: self._begin(action, output, go))
        except OSError:
            os.close(self._gate)
            raise
        finally:
            os.close(go)
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            os.close(self._gate)  # and with it the child ends
            os.waitpid(self.pid, 0)
            raise

    @staticmethod
    def _begin(action: Callable[[], object], output: int, go: int) -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        null = os.open("/dev/null", os.O_RDWR)
        for target, fd in ((0, null), (1, output), (2, output)):
            os.dup2(fd, target)
        if os.read(go, 1) != b"1":
            raise Refused("the helper is gone")
        os.setsid()
        for number in INHERITED_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        action()

    def go(self) -> None:
        """Let it go on. That it is dead already is seen, and told, where its end is."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._gate, b"1")

    def kill(self) -> bool:
        """Kill it; tell whether it was alive."""
        if select.select([self.pidfd], [], [], 0)[0]:
            return False
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        return True

    def end(self) -> int:
        """Wait for the end of what was killed, or has ended; return its exit code."""
        _, status = os.waitpid(self.pid, 0)
        close_all((self.pidfd, self._gate))
        return exit_code(status)
