"""Inside a fresh sandbox, as the worker: the repository's cleanup hook, or what stands in for it.

``cleanup.py LEVEL SECONDS [docker]`` runs ``.clsecure/on-cleanup`` of the current directory, and without one,
where the session had an engine, ``docker compose down``. One line of JSON on standard output says what came
of it. The work tree is the agent's: nothing of it is followed, and what is executed is the file that was
looked at. Nothing else runs in this sandbox, and when this program ends, all of it does.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

DIRECTORY, HOOK = ".clsecure", "on-cleanup"
COMPOSE = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
GRACE_SECONDS = 5.0
"""Between TERM and KILL; the host waits a little longer than that."""


class Unusable(Exception):  # noqa: N818  # an answer, not an accident
    """There is a hook that can't be run; the text says why."""


def open_hook() -> int | None:
    """Return a descriptor of the hook, None when there is none.

    :raises Unusable: it is a link, or something else than a program.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        directory = os.open(DIRECTORY, flags | os.O_DIRECTORY)
        try:
            fd = os.open(HOOK, flags, dir_fd=directory)
        finally:
            os.close(directory)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise Unusable("it is a link, or lies behind one or in no directory") from error
        raise Unusable(str(error.strerror)) from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        raise Unusable("it is not a regular file")
    if not mode & 0o111:
        raise Unusable("it is not executable")
    return fd


def has_compose_file() -> bool:
    """Tell whether there is a regular file that docker compose reads by itself."""
    for name in COMPOSE:
        try:
            if stat.S_ISREG(os.lstat(name).st_mode):
                return True
        except OSError:
            continue
    return False


def run(argv: Sequence[str], seconds: float, **options: Any) -> dict[str, Any]:
    """Run to the end or to the timeout: first TERM, then KILL, to all of its group."""
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True, **options)
    in_time = True
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        in_time = False
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    code = child.returncode
    return {"exit_code": 128 - code if code < 0 else code, "in_time": in_time}


def run_hook(fd: int, seconds: float) -> dict[str, Any]:
    """Run the opened file by its own first line, or by the shell."""
    path = f"/proc/self/fd/{fd}"
    try:
        return run([path], seconds, pass_fds=(fd,))
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        return run(["/bin/sh", path], seconds, pass_fds=(fd,))


def clean_up(seconds: float, *, docker: bool) -> dict[str, Any]:
    """Return what was done and what came of it."""
    try:
        fd = open_hook()
        if fd is not None:
            return {"what": "hook", **run_hook(fd, seconds)}
        if docker and has_compose_file():
            return {"what": "compose", **run(("docker", "compose", "down"), seconds)}
    except (Unusable, OSError) as error:
        return {"what": "unusable", "why": str(error)[:300]}
    return {"what": "nothing"}


def main() -> None:
    """Clean up and report."""
    seconds, *further = sys.argv[1:]
    report = clean_up(float(seconds), docker="docker" in further)
    os.write(1, json.dumps(report).encode() + b"\n")


if __name__ == "__main__":
    main()
