"""What engines keep on disk: an owner's images, and a session's own storage."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket

from clsecure.privileged.root.kernel import CLONE_NEWNS
from clsecure.privileged.root.processes import run_and_exit
from clsecure.privileged.root.registry import RANGE
from clsecure.privileged.root.state import STATE, own_directory, write_file
from clsecure.privileged.root.userspace import credentials_of, enter_user_namespace, write_maps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.root.messages import Entry
    from clsecure.privileged.root.registry import Registry


def image_store(registry: Registry, owner: int) -> Entry:
    """Return the owner's image store as an account that nothing else runs as; make it when it isn't there.

    Not in passwd. The directory above is closed, so that nobody on the machine comes to a set-uid file in it.
    """
    own_directory(f"{STATE}/images", 0o711)
    place = own_directory(f"{STATE}/images/{owner}", 0o700)
    home, note = f"{place}/store", f"{place}/account.json"
    # All of it under the lock: two sessions of the owner's may come here at once.
    with registry.lock():
        try:
            with open(note, encoding="ascii") as file:
                entry: Entry = json.load(file)
        except FileNotFoundError:
            entry = {"name": f"images-{owner}", "uid": registry.free_uid(), "owner": owner, "home": home}
            write_file(note, json.dumps(entry).encode())
    with contextlib.suppress(FileExistsError):
        os.mkdir(home, 0o755)
    os.chown(home, entry["uid"], entry["uid"], follow_symlinks=False)
    return entry


def engine_storage(entry: Entry) -> str:
    """Return an empty directory for what the session's own engine stores."""
    own_directory(f"{STATE}/engines", 0o711)
    place = f"{STATE}/engines/{entry['name']}"
    wipe_storage(entry)
    os.mkdir(place, 0o700)
    os.chown(place, entry["uid"], entry["uid"], follow_symlinks=False)
    return place


def wipe_storage(entry: Entry) -> None:
    """Delete what a session's own engine stored, as root of its user namespace: it can hurt only itself."""
    place = f"{STATE}/engines/{entry['name']}"
    if "range" not in entry or not os.path.lexists(place):
        return
    pid, words = _as_root_of_range(entry, "/bin/rm", "-rf", "--one-file-system", "--", place)
    pidfd, ended = os.pidfd_open(pid), False
    try:
        with words:
            if credentials_of(words, 5) == pid:
                ids = [(0, entry["uid"], 1), (1, entry["range"], RANGE - 1)]
                write_maps(pid, ids, ids)
                words.send(b"1")
        ended = bool(select.select([pidfd], [], [], 600)[0])
    finally:
        if not ended:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)
    # It could empty the directory; the one above is root's.
    os.rmdir(place)


def _as_root_of_range(entry: Entry, *argv: str) -> tuple[int, socket.socket]:
    """Start a program that waits for the maps of its user namespace; return its pid and the socket to it."""
    words, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with inside:
        pid = os.fork()
        if pid == 0:

            def execute() -> None:
                words.close()
                os.chdir("/")
                null = os.open("/dev/null", os.O_RDWR)
                for fd in (0, 1, 2):
                    os.dup2(null, fd)
                enter_user_namespace(entry, inside, CLONE_NEWNS)
                os.execve(argv[0], argv, {"LC_ALL": "C"})

            run_and_exit(execute)
    return pid, words
