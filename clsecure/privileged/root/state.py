"""Files and directories of root's own, and the machine's settings."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import stat
import time

from clsecure.privileged.root.messages import Busy, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from clsecure.privileged.root.messages import Message

STATE = "/var/lib/clsecure"
RUN = "/run/clsecure"
CONFIG = "/etc/clsecure/helper.json"
LOCK_SECONDS = 30.0
DISK_RESERVE = 1024**3
CLOSED_TARGETS = ("usr", "etc", "proc", "sys", "dev", "bin", "sbin", "lib", "run", "tmp", "var", "boot")

DEFAULTS = {
    # systemd's table of uids leaves 1879048192..2147352575 to nobody; subordinate ranges end far below. Wide,
    # because a uid is given out once: who makes and removes workers all day must not use them up for others.
    "uid_first": 1_900_000_000,
    "uid_count": 200_000_000,
    "home_base": "/home",
    "accounts_per_user": 64,
    # Behind the uids. The first number is every engine's tty group, then come ranges of 65,536 for the
    # accounts whose sessions have an engine of their own; a range is free again when its account is deleted.
    "range_first": 2_100_000_000,
    "range_count": 700,
}


def own_directory(path: str, mode: int) -> str:
    """Make a root-owned directory; refuse one that somebody else could have made or can change."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)
        os.chmod(path, mode)
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != 0 or info.st_mode & 0o022:
        raise Refused(f"{path} is not a directory of root's own")
    return path


def remove_directory(path: str) -> None:
    """Take away a directory of root's own, with the files and sockets in it; it may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(path):
            os.unlink(f"{path}/{name}")
        os.rmdir(path)


def require_root_owned(path: str, also: int = 0) -> None:
    """Refuse a program that is missing, or that somebody else than root could have changed."""
    try:
        info = os.stat(path)
    except FileNotFoundError:
        raise Refused(f"{path} is not installed") from None
    if info.st_uid != 0 or info.st_mode & 0o022 or info.st_mode & also != also:
        raise Refused(f"{path} is not root's own{' set-uid' if also else ''} program")


def configuration() -> Message:
    """Return the machine's settings: DEFAULTS, overridden by a root-owned JSON file."""
    try:
        fd = os.open(CONFIG, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return dict(DEFAULTS)
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != 0 or info.st_mode & 0o022:
            raise Refused(f"{CONFIG} is not a file of root's own")
        try:
            loaded = json.loads(file.read(65536))
        except ValueError as error:
            raise Refused(f"{CONFIG} is no JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise Refused(f"{CONFIG} is no JSON object")
    for key, value in loaded.items():
        if key not in DEFAULTS or type(value) is not type(DEFAULTS[key]):
            raise Refused(f"{CONFIG}: {key} is not a setting, or of the wrong kind")
    base = loaded.get("home_base", DEFAULTS["home_base"])
    if not re.match(r"/[^/]", base) or os.path.normpath(base) != base or base.split("/")[1] in CLOSED_TARGETS:
        raise Refused(f"{CONFIG}: {base!r} is no plain absolute path, or hidden in sandboxes (home_base)")
    return {**DEFAULTS, **loaded}


def write_file(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write a file of root's own so that it is whole or not there."""
    fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    os.rename(path + ".new", path)


def read_bounded(path: str, limit: int = 16 << 20) -> str:
    """Return a file of root's own as text."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        text = file.read(limit + 1)
    if len(text) > limit:
        raise Refused(f"{path} is larger than {limit} characters")
    return text


@contextlib.contextmanager
def locked(path: str, *, wait: float, shared: bool = False) -> Iterator[None]:
    """Hold a lock on a file in root's own directory, exclusive or with others who share it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait
    try:
        while True:
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(f"{os.path.basename(path)} is in use; try again") from None
                select.select([], [], [], 0.01)
        yield
    finally:
        os.close(fd)
