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
import sys

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if __name__ == "__main__":
    sys.dont_write_bytecode = True
    sys.path.append(HERE)

from clsecure.privileged.root.accounts import remove_account
from clsecure.privileged.root.killing import quiesce
from clsecure.privileged.root.messages import Busy, Refused
from clsecure.privileged.root.processes import tool
from clsecure.privileged.root.registry import Registry, known
from clsecure.privileged.root.state import LOCK_SECONDS, RUN, STATE, configuration, locked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.root.messages import Entry

GROUP = "clsecure"
OTHER_HELPERS = ("/usr/lib/clsecure/helper", "/usr/local/lib/clsecure/helper")
DELETE_SECONDS = 600


def remove_held(registry: Registry, entry: Entry) -> None:
    """Remove an account; a session that still runs is ended."""
    place = f"{registry.locks}/{entry['name']}"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(place, wait=0))
        except Busy:
            # With its processes dead, the helper of that session gives the account back.
            quiesce(entry)
            held.enter_context(locked(place, wait=LOCK_SECONDS))
        remove_account(registry, entry)


def remove_all(registry: Registry) -> list[str]:
    """Remove every account of the registry; return what went wrong."""
    wrong = []
    for entry in registry.entries():
        try:
            remove_held(registry, entry)
        except (Refused, OSError) as error:
            wrong.append(f"{entry['name']}: {error}")
    return wrong


def end_image_stores() -> None:
    """End what still runs on the images of somebody; these accounts are in no registry."""
    with contextlib.suppress(FileNotFoundError):
        for owner in os.listdir(f"{STATE}/images"):
            with (
                contextlib.suppress(FileNotFoundError),
                open(f"{STATE}/images/{owner}/account.json", encoding="ascii") as file,
            ):
                quiesce(json.load(file))


def main() -> int:
    """Take everything away; what could not be is said, and left for another try."""
    if os.geteuid() != 0 or len(sys.argv) != 1:
        sys.exit("clsecure purge: for root, and without arguments")
    os.environ.clear()
    os.umask(0o022)
    os.chdir("/")
    used = [
        helper for helper in OTHER_HELPERS if os.path.lexists(helper) and not helper.startswith(f"{HERE}/")
    ]
    if used:
        sys.stderr.write(
            f"clsecure: {used[0]} still uses the worker accounts, {STATE} and the group {GROUP}; they stay. "
            "Remove them with: clsecure cleanup --all; clsecure setup --remove\n"
        )
        return 0
    if os.path.isdir(f"{STATE}/registry"):
        if wrong := remove_all(Registry(configuration())):
            sys.stderr.write("".join(f"clsecure: could not be removed: {each}\n" for each in wrong))
            return 1
        end_image_stores()
    for place in (STATE, RUN):
        tool("/bin/rm", "-rf", "--one-file-system", "--", place, timeout=DELETE_SECONDS)
    if known(grp.getgrnam, GROUP):
        tool("/usr/sbin/groupdel", GROUP)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Refused, OSError) as error:
        sys.exit(f"clsecure purge: {error}")
