"""The accounts that the helper made, and who owns them."""

from __future__ import annotations

import contextlib
import grp
import hashlib
import json
import os
import pwd
import re
import time

from clsecure.privileged.root.messages import Refused
from clsecure.privileged.root.state import (
    CONFIG,
    LOCK_SECONDS,
    STATE,
    locked,
    own_directory,
    read_bounded,
    write_file,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from clsecure.privileged.root.messages import Entry, Message

RANGE = 65536
ENTRY_LIMIT = 64 * 1024
ACCOUNT_NAME = re.compile(r"claude-worker-[a-z0-9-]{1,18}\Z")


class Registry:
    """The accounts that this helper made, one file each, and who owns them."""

    def __init__(self, config: Message) -> None:
        self.config = config
        own_directory(STATE, 0o711)
        self.directory = own_directory(f"{STATE}/registry", 0o700)
        self.locks = own_directory(f"{STATE}/locks", 0o700)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the registry while names and uids are given out."""
        return locked(f"{self.locks}/registry", wait=LOCK_SECONDS)

    def names(self) -> list[str]:
        """Return the name of every account."""
        return sorted(name for name in os.listdir(self.directory) if ACCOUNT_NAME.match(name))

    def read(self, name: str) -> Entry:
        """Return an account as a dict; refuse one that this helper did not write so."""
        place = f"{self.directory}/{name}"
        try:
            entry: Entry = json.loads(read_bounded(place, ENTRY_LIMIT))
            sound = (
                entry["name"] == os.path.basename(entry["home"]) == name
                and type(entry["uid"]) is type(entry["owner"]) is int
                and type(entry["project"]) is type(entry["session"]) is str
                and entry.get("range", RANGE) >= RANGE
            )
        except (ValueError, TypeError, KeyError):
            sound = False
        if not sound:
            raise Refused(f"{place} is damaged: mend it, or delete it if {name} is no worker of clsecure's")
        return entry

    def entries(self) -> list[Entry]:
        """Return every account as a dict."""
        return [self.read(name) for name in self.names()]

    def find(self, owner: int, project: str, session: str) -> Entry | None:
        """Return the account of exactly this user, path and session, or None."""
        wanted = (owner, project, session)
        return next((e for e in self.entries() if (e["owner"], e["project"], e["session"]) == wanted), None)

    def add(self, owner: int, project: str, session: str) -> Entry:
        """Give out a name and a uid that were never used before, and write them down first of all."""
        entries = self.entries()
        if sum(e["owner"] == owner for e in entries) >= self.config["accounts_per_user"]:
            limit = self.config["accounts_per_user"]
            raise Refused(f"you have {limit} workers already; remove some with: clsecure cleanup")
        name = self._free_name(owner, project, session, {e["name"] for e in entries})
        entry = {
            "name": name, "uid": self.free_uid(), "owner": owner, "project": project, "session": session,
            "home": f"{self.config['home_base']}/{name}", "created": int(time.time()),
        }  # fmt: skip
        write_file(f"{self.directory}/{name}", json.dumps(entry).encode())
        return entry

    def give_range(self, entry: Entry) -> None:
        """Give an account further uids that nobody else has, for the containers of an engine of its own.

        Of those that are free, the one that was given back the longest ago: with a worker's accomplice who
        keeps a set-uid file of such a uid, whoever has it next could be disturbed.
        """
        if "range" in entry:
            return
        taken, others = {e.get("range") for e in self.entries()}, subordinate_ranges()
        first = self.config["range_first"]
        starts = range(first + RANGE, first + (1 + self.config["range_count"]) * RANGE, RANGE)
        last = self._counter(".last-range", first)
        for start in (*(s for s in starts if s > last), *(s for s in starts if s <= last)):
            if start not in taken and not any(a < start + RANGE and start < b for a, b in others):
                entry["range"] = start
                write_file(f"{self.directory}/.last-range", str(start).encode())
                write_file(f"{self.directory}/{entry['name']}", json.dumps(entry).encode())
                return
        raise Refused(f"all ranges of uids are in use; remove workers, or set others in {CONFIG}")

    def forget(self, entry: Entry) -> None:
        """Take an account out, last of all."""
        os.unlink(f"{self.directory}/{entry['name']}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.locks}/{entry['name']}")

    def _free_name(self, owner: int, project: str, session: str, taken: set[str]) -> str:
        base = os.path.basename(project.rstrip("/")).lower()
        slug = re.sub(r"[^a-z0-9]+", "-", base)[:10].strip("-") or "project"
        for attempt in range(1000):
            seed = "\0".join((str(owner), project, session, str(attempt))).encode("utf-8", "surrogateescape")
            name = f"claude-worker-{slug}-{hashlib.sha256(seed).hexdigest()[:6]}"
            home = f"{self.config['home_base']}/{name}"
            known_name = known(pwd.getpwnam, name) or known(grp.getgrnam, name)
            if name not in taken and not known_name and not os.path.lexists(home):
                return name
        raise Refused("no free account name was found")

    def free_uid(self) -> int:
        """Return the next uid of the range. The counter only rises: a uid is never used twice.

        Where it begins is drawn from the first half of the range: on a machine that clsecure was purged from,
        a file of an earlier worker's that survived somewhere is not the next worker's.
        """
        first, count = self.config["uid_first"], self.config["uid_count"]
        end = first + count
        begin = first + int.from_bytes(os.urandom(8), "big") % max(1, count // 2)
        uid: int = max(first, self._counter(".next-uid", begin))
        ranges = subordinate_ranges()
        while known(pwd.getpwuid, uid) or known(grp.getgrgid, uid) or any(a <= uid < b for a, b in ranges):
            uid += 1
        if uid >= end:
            raise Refused(f"the range of worker uids is used up; set another in {CONFIG}")
        write_file(f"{self.directory}/.next-uid", str(uid + 1).encode())
        return uid

    def _counter(self, name: str, first: int) -> int:
        """Return a number that outlives the accounts."""
        try:
            with open(f"{self.directory}/{name}", encoding="ascii") as file:
                return int(file.read())
        except FileNotFoundError:
            return first


def known(lookup: Callable[[Any], object], key: object) -> bool:
    """Tell whether the machine's user database has it (passwd, NSS)."""
    try:
        lookup(key)
    except KeyError:
        return False
    return True


def shadow_of(name: str) -> list[str]:
    """Return the fields of an account in /etc/shadow; nine empty ones where there is none."""
    lines = (line.split(":") for line in read_bounded("/etc/shadow").split("\n"))
    return next((fields for fields in lines if fields[0] == name), [""] * 9)


def is_expired(name: str) -> bool:
    """Tell whether an account was over before today: PAM lets nobody in then, by no key either."""
    day = shadow_of(name)[7:8]
    return bool(day) and day[0].isdigit() and int(day[0]) < time.time() // 86_400


def subordinate_ranges() -> list[tuple[int, int]]:
    """Return all (first, end) of /etc/subuid and /etc/subgid."""
    ranges = []
    for path in ("/etc/subuid", "/etc/subgid"):
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            found = re.findall(rb"^[^:\n]*:(\d+):(\d+)\s*$", file.read(), re.MULTILINE)
            ranges += [(int(start), int(start) + int(count)) for start, count in found]
    return ranges
