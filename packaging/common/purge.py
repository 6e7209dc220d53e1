#!/usr/bin/python3 -IS
"""Take away all that the helper's registry owns on this machine, and the group clsecure. Asks nothing.

For root alone: no rule of sudo's names it. The accounts go by the helper's own code, which knows the accounts
that it made and no others. When a package is removed this file and that code are copied to
/var/lib/clsecure/removal, where a purge finds them.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import signal
import sys

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if __name__ == "__main__":
    sys.dont_write_bytecode = True
    sys.path.append(HERE)

from clsecure.privileged.root.accounts import remove_account, require_own
from clsecure.privileged.root.killing import quiesce
from clsecure.privileged.root.messages import Busy, Refused
from clsecure.privileged.root.processes import tool, uids_of
from clsecure.privileged.root.registry import Registry, known
from clsecure.privileged.root.state import DEFAULTS, LOCK_SECONDS, RUN, STATE, locked, read_bounded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.root.messages import Entry

GROUP = "clsecure"
HELPERS = ("/usr/lib/clsecure/helper", "/usr/local/lib/clsecure/helper")
REMOVAL = f"{STATE}/removal"
DELETE_SECONDS = 600
GRACE_SECONDS = 2.0
"""For a session whose processes were killed to come to its own end."""


def remove_held(registry: Registry, entry: Entry) -> None:
    """Remove an account; a session that still runs, or waits for its user's answer, is ended."""
    require_own(entry)
    place = f"{registry.locks}/{entry['name']}"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(place, wait=0))
        except Busy:
            quiesce(entry)
            try:
                held.enter_context(locked(place, wait=GRACE_SECONDS))
            except Busy:
                # At the question what is to become of the work there is nothing left to kill but the helper.
                end_helpers(place)
                held.enter_context(locked(place, wait=LOCK_SECONDS))
        remove_account(registry, entry)


def end_helpers(place: str) -> None:
    """Kill the helpers that have the lock open, each on a handle of that very process."""
    lock = os.stat(place)
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(int(name))
            try:
                if is_helper(name) and has_open(name, lock):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)


def is_helper(pid: str) -> bool:
    """Tell whether a process is root's alone and runs the helper, as sudo started it: without arguments."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        argv = file.read(4096).split(b"\0")[:-1]
    return set(uids_of(pid)) == {b"0"} and argv[1:] in [[b"-IS", each.encode()] for each in HELPERS]


def has_open(pid: str, wanted: os.stat_result) -> bool:
    """Tell whether a process has a file open."""
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{descriptor}"), wanted):
                return True
    return False


def remove_all(registry: Registry) -> list[str]:
    """Remove every account of the registry; return what went wrong."""
    wrong = []
    for name in registry.names():
        try:
            remove_held(registry, registry.read(name))
        except (Refused, OSError) as error:
            wrong.append(f"{name}: {error}")
    return wrong


def end_image_stores() -> list[str]:
    """End what still runs on the images of somebody, by accounts in no registry; return what went wrong."""
    wrong = []
    with contextlib.suppress(FileNotFoundError):
        for owner in os.listdir(f"{STATE}/images"):
            place = f"{STATE}/images/{owner}/account.json"
            try:
                entry = json.loads(read_bounded(place))
                require_own(entry)
                quiesce(entry)
            except FileNotFoundError:
                continue
            except (ValueError, TypeError, KeyError, Refused, OSError) as error:
                wrong.append(f"{place}: {error}")
    return wrong


def delete(*places: str) -> None:
    """Delete directories of root's own."""
    tool("/bin/rm", "-rf", "--one-file-system", "--", *places, timeout=DELETE_SECONDS)


def main() -> int:
    """Take everything away; what could not be is said, and left for another try."""
    if os.geteuid() != 0 or len(sys.argv) != 1:
        sys.exit("clsecure purge: for root, and without arguments")
    os.environ.clear()
    os.umask(0o022)
    os.chdir("/")
    used = [helper for helper in HELPERS if os.path.lexists(helper) and not helper.startswith(f"{HERE}/")]
    if used:
        sys.stderr.write(
            f"clsecure: {used[0]} still uses the worker accounts, {STATE} and the group {GROUP}; they stay. "
            "Remove them with: clsecure cleanup --all; clsecure setup --remove\n"
        )
        delete(REMOVAL)
        return 0
    wrong = end_image_stores()
    if os.path.isdir(f"{STATE}/registry"):
        # The machine's settings are for what is made, not for what is taken away.
        wrong += remove_all(Registry(dict(DEFAULTS)))
    if wrong:
        sys.stderr.write("".join(f"clsecure: could not be removed: {each}\n" for each in wrong))
        return 1
    delete(STATE, RUN)
    if known(grp.getgrnam, GROUP):
        try:
            tool("/usr/sbin/groupdel", GROUP)
        except Refused as refused:
            # Somebody's primary group, which an administrator made it.
            sys.stderr.write(f"clsecure: the group {GROUP} stays: {refused}\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Refused, OSError) as error:
        sys.exit(f"clsecure purge: {error}")
