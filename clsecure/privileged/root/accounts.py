"""Accounts of the machine: made, emptied, taken away."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd

from clsecure.privileged.root.killing import quiesce
from clsecure.privileged.root.messages import Refused
from clsecure.privileged.root.processes import tool
from clsecure.privileged.root.registry import is_expired, known
from clsecure.privileged.root.state import RUN, own_directory, remove_directory
from clsecure.privileged.root.stores import wipe_storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.root.messages import Entry
    from clsecure.privileged.root.registry import Registry


def ensure_account(entry: Entry) -> None:
    """Make what is missing of an account; refuse a home that is not what was made."""
    name, uid, home = entry["name"], entry["uid"], entry["home"]
    if not known(grp.getgrnam, name):
        tool("/usr/sbin/groupadd", "--gid", str(uid), name)
    if not known(pwd.getpwnam, name):
        how = f"--no-log-init --system --uid {uid} --gid {uid} --no-create-home --shell /usr/sbin/nologin"
        tool("/usr/sbin/useradd", *how.split(), "--comment", "clsecure worker", "--home-dir", home, name)
    if not is_expired(name):
        # Without a password and a shell there are still keys: an agent can leave some in its home, and sshd
        # forwards ports for who has one of them, from the machine's own network.
        tool("/usr/sbin/usermod", "--expiredate", "1970-01-02", name)
    if pwd.getpwnam(name).pw_uid != uid or grp.getgrnam(name).gr_gid != uid:
        raise Refused(f"the account {name} is not the one that was made here")
    own_directory(os.path.realpath(os.path.dirname(home)), 0o755)
    with contextlib.suppress(FileExistsError):
        os.mkdir(home, 0o700)
    close_home(entry)


def require_own(entry: Entry) -> None:
    """Refuse an account whose name or uid is somebody else's: nothing of theirs is killed or deleted."""
    name, uid = entry["name"], entry["uid"]
    with contextlib.suppress(KeyError):
        if pwd.getpwnam(name).pw_uid != uid:
            raise Refused(f"the account {name} is not the one that was made here")
    with contextlib.suppress(KeyError):
        if grp.getgrnam(name).gr_gid != uid:
            raise Refused(f"the group {name} is not the one that was made here")
    with contextlib.suppress(KeyError):
        if (other := pwd.getpwuid(uid).pw_name) != name:
            raise Refused(f"the uid {uid} of {name} is that of {other}")


def close_home(entry: Entry) -> None:
    """Give the home to the worker alone: an agent can open its own to everybody on the machine."""
    fd = os.open(entry["home"], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_uid not in (entry["uid"], 0):
            raise Refused(f"{entry['home']} belongs to somebody else")
        os.fchown(fd, entry["uid"], entry["uid"])
        os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def wipe_home(entry: Entry) -> None:
    """Delete all that is in the home, as the worker: its links and permissions can hurt only itself.

    The home itself stays: the directory above is root's. That its removal fails is no failure.
    """
    home, delete = entry["home"], ("/bin/rm", "-rf", "--one-file-system", "--", entry["home"])
    if not os.path.isdir(home):
        return
    tool(*delete, timeout=600, worker=entry)
    if os.listdir(home):
        # Directories without permissions: only their owner may open them up, and only now is it worth it.
        tool("/bin/chmod", "-R", "u+rwX", "--", home, timeout=600, worker=entry)
        tool(*delete, timeout=600, worker=entry)
    if left := os.listdir(home):
        raise Refused(f"{len(left)} entries in {home} could not be deleted")


def remove_account(registry: Registry, entry: Entry) -> None:
    """Take everything of an account away; the registry entry goes last, so a failure can be tried again.

    What takes as long as the worker's files want happens before the lock that all members share.
    """
    name = entry["name"]
    require_own(entry)
    quiesce(entry)
    # Where a helper was killed these are there still.
    wipe_storage(entry)
    remove_directory(f"{RUN}/{name}")
    wipe_home(entry)
    with registry.lock():
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(entry["home"])
        for path in ("/var/mail", "/var/spool/mail", "/var/spool/cron/crontabs", "/var/spool/cron"):
            with contextlib.suppress(OSError):
                os.unlink(f"{path}/{name}")
        if known(pwd.getpwnam, name):
            tool("/usr/sbin/userdel", name)
        if known(grp.getgrnam, name):
            tool("/usr/sbin/groupdel", name)
        registry.forget(entry)
