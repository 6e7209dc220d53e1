"""What engines keep on disk: an owner's images, and a session's own storage."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal

from clsecure.privileged.root.messages import Refused
from clsecure.privileged.root.state import STATE, own_directory, write_file
from clsecure.privileged.root.userspace import start_as_root_of_range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.root.messages import Entry
    from clsecure.privileged.root.registry import Registry

WIPE_SECONDS = 600


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


def storage_of(entry: Entry) -> str:
    """Return where the session's own engine stores what it does, in a directory that is there."""
    # Nobody but root comes through: root of an engine can open its own storage to everybody, with set-uid
    # programs of its uids in it.
    os.chmod(own_directory(f"{STATE}/engines", 0o700), 0o700)
    return f"{STATE}/engines/{entry['name']}"


def engine_storage(entry: Entry) -> str:
    """Return an empty directory for what the session's own engine stores."""
    place = storage_of(entry)
    wipe_storage(entry)
    os.mkdir(place, 0o700)
    os.chown(place, entry["uid"], entry["uid"], follow_symlinks=False)
    return place


def wipe_storage(entry: Entry) -> None:
    """Undo what a session's own engine did to the disk, as root of its user namespace: it hurts only itself.

    What its containers left in the workspace under other uids becomes the worker's, who is to bring it home
    and to delete it; what they stored is deleted, last: while it is there, both are still to be done.
    """
    place = storage_of(entry)
    if "range" not in entry or not os.path.lexists(place):
        return
    if os.path.isdir(entry["home"]):
        others = ("(", "!", "-uid", "0", "-o", "!", "-gid", "0", ")")
        give = ("-exec", "/bin/chown", "--no-dereference", "0:0", "--", "{}", "+")
        _as_root_of_range(entry, "/", "/usr/bin/find", entry["home"], "-xdev", *others, *give)
    _as_root_of_range(entry, place, "/usr/bin/find", ".", "-xdev", "-mindepth", "1", "-delete")
    # It could empty the directory; the one above is root's.
    try:
        os.rmdir(place)
    except OSError as error:
        raise Refused(f"{place} could not be deleted: {error.strerror}") from error


def _as_root_of_range(entry: Entry, directory: str, *argv: str) -> None:
    """Run a program to its end in a directory, as long as it may take."""
    pid = start_as_root_of_range(entry, *argv, first=lambda: os.chdir(directory))
    pidfd, ended = os.pidfd_open(pid), False
    try:
        ended = bool(select.select([pidfd], [], [], WIPE_SECONDS)[0])
    finally:
        if not ended:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)
