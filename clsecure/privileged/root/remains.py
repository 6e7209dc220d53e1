"""What is left of a session on the machine, and how its account stands: facts only, the caller decides."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat

from clsecure.privileged.root.limits import cgroups, read_small
from clsecure.privileged.root.listing import Listing
from clsecure.privileged.root.messages import Refused
from clsecure.privileged.root.network import NFT
from clsecure.privileged.root.processes import become_reader, is_of, processes_of, tool
from clsecure.privileged.root.registry import is_expired, shadow_of
from clsecure.privileged.root.state import RUN, STATE, read_bounded, require_root_owned
from clsecure.privileged.root.walk import NAMES, Findings, Walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from clsecure.privileged.root.messages import Entry, Message

MEMORY = ("/dev/shm", "/dev/mqueue")
# Where anybody may write. Spools of jobs are not among them: they are looked at by themselves. Nor is mail:
# others can send it.
WRITABLE = ("/tmp", "/var/tmp", "/run/lock", "/run/screen", "/var/crash", "/var/spool/samba")
CRON = ("/var/spool/cron/crontabs", "/var/spool/cron/tabs", "/var/spool/cron")
AT = ("/var/spool/cron/atjobs", "/var/spool/cron/atspool", "/var/spool/at", "/var/spool/at/spool")
LINGER = "/var/lib/systemd/linger"
SLICES = tuple(f"/sys/fs/cgroup{top}/system.slice" for top in ("", "/unified", "/systemd"))
SPOOL_LIMIT = 10_000
CAPABILITIES = "security.capability"
EXECUTABLE = 0o111
# Of a file's mode: one bit of it at least says that it is no plain file that nobody executes.
DOUBTFUL = stat.S_ISUID | stat.S_ISGID | EXECUTABLE | 0o070000
HOME_SECONDS, OUTSIDE_SECONDS = 60.0, 0.25
"""A home is the agent's to fill: what of it is not looked at fails. It has room for millions of files."""
# How far directories are gone into that not everybody may write to: trees of others can be large.
CLOSED_LEVELS = 2


def remains(entry: Entry, *, rules: bool, images: bool, workspace: str) -> Message:
    """Return what there is of a held account whose sandbox has ended.

    :param workspace: the name of a directory of the home: set-id files of the worker's own in there are the
        business of whoever brings the work home.
    :param images: hold the owner's image store against what was noted when it was filled, too.
    :param rules: look for rules of a full network, too, in the machine's own.
    """
    mounts = list(_mounts(entry))
    # Before there is a child that is the worker.
    processes = Findings.of(_processes(entry))
    # Some machines have links there, of root's own making.
    memory, writable = ({os.path.realpath(place) for place in places} for places in (MEMORY, WRITABLE))
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(contextlib.closing(_walk_home(entry, frozenset(mounts), workspace)))
        outside = stack.enter_context(contextlib.closing(_walk_outside(entry, memory | writable)))
        listing = stack.enter_context(contextlib.closing(Listing(entry["owner"]))) if images else None
        found = {
            "processes": processes,
            "mounts": Findings.of(iter(mounts)),
            "runtime": _there(f"{RUN}/{entry['name']}"),
            "storage": _there(f"{STATE}/engines/{entry['name']}"),
            "control_groups": Findings.of(_control_groups(entry)),
            "scheduled": Findings.of(_scheduled(entry)),
            "memory": Findings.of(_system_v(entry)),
            "images": Findings.of(_images(entry)),
            "rules": _rules() if rules else Findings(),
            **_accounts(entry),
        }
        message = {name: each.message() for name, each in found.items()}
        places = outside.result()
        message["special"] = home.result()[entry["home"]]
        if listing is not None and os.path.lexists(listing.place):
            message["images"] = _joined([message["images"], listing.compared()])
    message["memory"] = _joined([message["memory"], *(places[place] for place in sorted(memory))])
    message["outside"] = _joined([places[place] for place in sorted(writable - memory)])
    return {"found": message, "account": _account(entry), "home": _home(entry)}


def _there(path: str) -> Findings:
    return Findings.of(each for each in (path,) if os.path.lexists(each))


def _joined(parts: list[Message]) -> Message:
    names = [name for part in parts for name in part["names"]]
    return {
        "count": sum(part["count"] for part in parts),
        "names": names[: 2 * NAMES],
        "complete": all(part["complete"] for part in parts),
    }


# ---------------------------------------------------------------- what runs, or is held by the kernel


def _processes(entry: Entry) -> Iterator[str]:
    for pid in processes_of(entry):
        yield f"{pid} {(read_small(f'/proc/{pid}/comm') or '?').strip()}"


def _system_v(entry: Entry) -> Iterator[str]:
    """Give the System V objects of the account's uids in the machine's own IPC namespace."""
    for kind in ("shm", "msg", "sem"):
        try:
            lines = read_bounded(f"/proc/sysvipc/{kind}").splitlines()
        except FileNotFoundError:
            continue
        title = lines[0].split()
        owner, maker, number = title.index("uid"), title.index("cuid"), 1
        for fields in map(str.split, lines[1:]):
            if is_of(entry, (int(fields[owner]), int(fields[maker]))):
                yield f"{kind} {fields[number]}"


def _mounts(entry: Entry) -> Iterator[str]:
    """Give the machine's own mount points that are the session's: in its places, or of its home elsewhere."""
    places = (entry["home"], f"{RUN}/{entry['name']}", f"{STATE}/engines/{entry['name']}", f"{STATE}/view")
    text = read_bounded("/proc/self/mountinfo").rstrip("\n")
    lines = [[_plain(part) for part in line.split(" ")[2:5]] for line in text.split("\n")]
    # What the home lies on: the longest way to it, and of several the last, which hides the others.
    ways = (line for line in reversed(lines) if _below(entry["home"], line[2]))
    device, root, target = max(ways, key=lambda line: len(line[2]), default=("", "/", "/"))
    home = root.rstrip("/") + entry["home"][len(target.rstrip("/")) :]
    for of, what, where in lines:
        copied = of == device and _below(what, home)
        if copied or any(_below(where, place) for place in places):
            yield where


def _below(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place.rstrip('/')}/")


def _plain(path: str) -> str:
    """Undo the octal escapes of mountinfo. Source: proc_pid_mountinfo(5)."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _control_groups(entry: Entry) -> Iterator[str]:
    yield from (place for place in cgroups(entry) if os.path.isdir(place))
    scope = re.compile(rf"clsecure-{re.escape(entry['name'])}-[0-9]+\.scope\Z")
    for top in SLICES:
        with contextlib.suppress(OSError):
            for name in os.listdir(top):
                # One that nothing is in any more is systemd's to take away, which it does when it gets to it.
                if scope.match(name) and read_small(f"{top}/{name}/cgroup.procs"):
                    yield f"{top}/{name}"


def _rules() -> Findings:
    """Return the table of a full network, where it came into the machine's own network."""
    found = Findings()
    try:
        require_root_owned(NFT)
        tool(NFT, "list", "table", "inet", "clsecure", timeout=5)
        found.add("table inet clsecure")
    except Refused as refused:
        found.complete = os.strerror(errno.ENOENT) in str(refused)
    return found


# ---------------------------------------------------------------- what lies on the disk


def _scheduled(entry: Entry) -> Iterator[str]:
    """Give what would run later as the account: jobs by name or owner, lingering, a manager of its units."""
    for place in (*CRON, *AT):
        with contextlib.suppress(OSError), os.scandir(place) as names:
            for number, each in enumerate(names):
                if number >= SPOOL_LIMIT:
                    yield f"{place}: too many entries"
                    break
                info = each.stat(follow_symlinks=False)
                if not stat.S_ISDIR(info.st_mode) and (each.name == entry["name"] or _is_its(entry, info)):
                    yield each.path
    yield from (p for p in (f"{LINGER}/{entry['name']}", f"/run/user/{entry['uid']}") if os.path.lexists(p))


def _is_its(entry: Entry, info: os.stat_result) -> bool:
    return is_of(entry, (info.st_uid,))


def _walk_outside(entry: Entry, places: set[str]) -> Walk:
    """Look where everybody may write for what is the worker's, as root: others close some of it."""
    return Walk(
        tuple(sorted(places)),
        lambda _name, info, _path: "" if _is_its(entry, info) else None,
        enters=lambda info, depth: _is_its(entry, info) or _is_open(info, depth),
        seconds=OUTSIDE_SECONDS,
    )


def _is_open(info: os.stat_result, depth: int) -> bool:
    """Tell whether the worker could write to a directory, or come through it to one not far below."""
    return bool(info.st_mode & (stat.S_IWOTH if depth >= CLOSED_LEVELS else stat.S_IXOTH))


def _walk_home(entry: Entry, mounts: frozenset[str], workspace: str) -> Walk:
    """Look, as the worker, for what no home needs: also where the worker closed a directory to itself.

    That can't be opened up for the look: what comes home is to be as the agent left it.
    """
    uid, work = entry["uid"], f"{entry['home']}/{workspace}/"

    def judge(name: str, info: os.stat_result, directory: str) -> str | None:
        mode, what = info.st_mode, None
        if info.st_uid == uid and (stat.S_ISDIR(mode) or not mode & DOUBTFUL):
            # Nearly all: a home can hold hundreds of thousands.
            return None
        if stat.S_ISREG(mode):
            # A directory's hands its group down, and one that can't be executed says something about locks.
            if (mode & stat.S_ISUID and mode & EXECUTABLE) or (mode & stat.S_ISGID and mode & stat.S_IXGRP):
                at_work = info.st_uid == uid and f"{directory}/".startswith(work)
                what = None if at_work else f"set-id {stat.S_IMODE(mode):04o}: "
            elif mode & EXECUTABLE and _has_capabilities(name):
                what = "capabilities: "
        # Anybody may make the device 0:0, by which overlay file systems say that a file is deleted.
        elif stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and info.st_rdev != 0):
            what = "device: "
        return f"of uid {info.st_uid}: " if what is None and info.st_uid != uid else what

    def begin() -> None:
        become_reader(entry)

    return Walk((entry["home"],), judge, but=mounts, seconds=HOME_SECONDS, first=begin)


def _has_capabilities(name: str) -> bool:
    try:
        return bool(os.getxattr(name, CAPABILITIES, follow_symlinks=False))
    except OSError as error:
        return error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.ENOENT)


def _images(entry: Entry) -> Iterator[str]:
    """Give what of the owner's image store is not as it was made: closed, and of an account of its own."""
    store = f"{STATE}/images/{entry['owner']}"
    if not os.path.lexists(f"{store}/store"):
        return
    keeper = json.loads(read_bounded(f"{store}/account.json"))["uid"]
    expected = {f"{STATE}/images": 0, store: 0}
    expected |= dict.fromkeys((f"{store}/store", f"{store}/store/storage"), keeper)
    for kind in ("", "-images", "-layers"):
        top = f"{store}/store/storage/overlay{kind}"
        with contextlib.suppress(FileNotFoundError):
            places = [top, *(f"{top}/{name}" for name in os.listdir(top)[:SPOOL_LIMIT])]
            expected |= dict.fromkeys(places, keeper)
            if not kind:
                # What of a layer is the root of an image.
                expected |= {f"{place}/diff": keeper for place in places[1:]}
    for path, owner in expected.items():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            info = os.lstat(path)
            loose = not stat.S_ISLNK(info.st_mode) and info.st_mode & 0o022
            if info.st_uid != owner or loose:
                yield f"{path}: uid {info.st_uid}, mode {stat.S_IMODE(info.st_mode):04o}"


# ---------------------------------------------------------------- the account


def _lines(path: str) -> list[list[str]]:
    lines = read_bounded(path).split("\n")
    return [line.split(":") for line in lines if line[:1] not in ("", "#", "+", "-")]


def _accounts(entry: Entry) -> dict[str, Findings]:
    """Return who else has the account's numbers, and what groups it is in, by the machine's own files."""
    name, uid = entry["name"], str(entry["uid"])
    people, groups = _lines("/etc/passwd"), _lines("/etc/group")
    shared = [f"account {p[0]}" for p in people if p[0] != name and uid in p[2:4]]
    shared += [f"group {g[0]}" for g in groups if g[0] != name and g[2:3] == [uid]]
    members = {g[0]: g[3].split(",") for g in groups if len(g) > 3 and g[3]}
    shared += [f"{other} is in its group" for other in members.get(name, [])]
    return {
        "sharers": Findings.of(iter(shared)),
        "groups": Findings.of(g for g, those in members.items() if name in those and g != name),
    }


def _account(entry: Entry) -> Message:
    """Return how the account can be used; of its password, only that there is none."""
    mine = next((p for p in _lines("/etc/passwd") if p[0] == entry["name"]), [""] * 7)
    return {
        "ours": [mine[2], mine[3]] == [str(entry["uid"])] * 2 and mine[5] == entry["home"],
        "locked": mine[1] == "x" and shadow_of(entry["name"])[1][:1] in ("!", "*"),
        "expired": is_expired(entry["name"]),
        "shell": mine[6][:100],
    }


def _home(entry: Entry) -> Message:
    above = os.stat(os.path.dirname(entry["home"]))
    try:
        info = os.lstat(entry["home"])
    except FileNotFoundError:
        return {"directory": False, "uid": 0, "gid": 0, "mode": 0, "fixed": False}
    return {
        "directory": stat.S_ISDIR(info.st_mode),
        "uid": info.st_uid,
        "gid": info.st_gid,
        "mode": stat.S_IMODE(info.st_mode),
        # Who could write to the directory above could put another one into its place.
        "fixed": above.st_uid == 0 and not above.st_mode & 0o022,
    }
