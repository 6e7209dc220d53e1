"""The end of every process of an account."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from clsecure.privileged.root.limits import cgroup_remove, cgroups, write_small
from clsecure.privileged.root.messages import Refused
from clsecure.privileged.root.processes import become, is_of, processes_of, run_and_exit, uids_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.root.messages import Entry

QUIESCE_SECONDS = 10.0


def quiesce(entry: Entry) -> int:
    """Kill every process of the account until none is left; return how many were seen.

    kill(-1) as the worker first: the kernel does it under one lock, so a fork bomb can't outrun it. Then by
    pid, which also gets set-uid programs (firejail's own processes run with another effective uid).
    """
    seen, deadline = 0, time.monotonic() + QUIESCE_SECONDS
    for place in cgroups(entry):
        write_small(f"{place}/cgroup.kill", "1")
    while pids := processes_of(entry):
        seen = max(seen, len(pids))
        if time.monotonic() > deadline:
            raise Refused(f"processes of {entry['name']} did not die: {pids[:10]}")
        pid = os.fork()
        if pid == 0:
            run_and_exit(lambda: kill_all_as(entry))
        os.waitpid(pid, 0)
        for victim in pids:
            kill_if_of(victim, entry)
        select.select([], [], [], 0.005)
    cgroup_remove(entry)
    return seen


def kill_all_as(entry: Entry) -> None:
    """Become the worker and kill every process that it may kill, this one last."""
    become(entry, empty_bounding_set=True)
    os.kill(-1, signal.SIGKILL)


def kill_if_of(pid: int, entry: Entry) -> None:
    """Kill a process after making sure, on a handle of that very process, that it is the worker's."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            if is_of(entry, uids_of(pid)):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
