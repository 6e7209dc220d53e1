"""Root's own copies of agents' executables."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat

from clsecure.privileged.root.messages import Busy, Refused
from clsecure.privileged.root.state import DISK_RESERVE, LOCK_SECONDS, STATE, locked, own_directory

AGENT_LIMIT = 1024**3
AGENT_VERSIONS = 3
AGENTS_IN_USE = 16
SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def keep_agent(owner: int, digest: str, source: int, use: contextlib.ExitStack) -> str:
    """Copy an agent's executable into root's own store unless it is there; return its directory.

    :param use: until this is closed it stays there, however many newer ones come.
    """
    info = os.fstat(source)
    if not stat.S_ISREG(info.st_mode) or not 0 < info.st_size <= AGENT_LIMIT:
        raise Refused("the agent is not a regular file of at most 1 GiB")
    own_directory(f"{STATE}/agents", 0o711)
    store = own_directory(f"{STATE}/agents/{owner}", 0o711)
    target = f"{store}/{digest}"
    with locked(f"{store}/.lock", wait=LOCK_SECONDS):
        if os.path.isdir(target):
            os.utime(target)
        else:
            _prune(store)
            _copy(source, info.st_size, digest, store)
        use.enter_context(locked(_in_use(store, digest), wait=0, shared=True))
    return target


def _copy(source: int, size: int, digest: str, store: str) -> None:
    """Have all of it or nothing."""
    room = os.statvfs(store)
    if room.f_bavail * room.f_frsize < size + DISK_RESERVE:
        raise Refused(f"there is too little room in {STATE} for the agent")
    copy, made = f"{store}/.new", f"{store}/{digest}.new"
    try:
        with open(copy, "w+b") as file:
            offset = 0
            while sent := os.sendfile(file.fileno(), source, offset, size - offset):
                offset += sent
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise Refused("the agent's file changed while it was copied")
            os.fchmod(file.fileno(), 0o555)
            os.fsync(file.fileno())
        own_directory(made, 0o755)
        os.rename(copy, f"{made}/agent")
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(copy)
    os.rename(made, f"{store}/{digest}")


def _prune(store: str) -> None:
    """Make room for one more: the oldest go that no session uses."""
    versions = [name for name in os.listdir(store) if SHA256.match(name)]
    versions.sort(key=lambda name: os.stat(f"{store}/{name}").st_mtime)
    kept = len(versions)
    for old in versions[: 1 - AGENT_VERSIONS]:
        with contextlib.suppress(Busy), locked(_in_use(store, old), wait=0):
            os.unlink(f"{store}/{old}/agent")
            os.rmdir(f"{store}/{old}")
            os.unlink(_in_use(store, old))
            kept -= 1
    if kept >= AGENTS_IN_USE:
        raise Refused(f"{kept} versions of agents are in use by your sessions; end one of them first")


def _in_use(store: str, digest: str) -> str:
    """Return the file that sessions lock: of root's own, since a worker could lock the executable itself."""
    return f"{store}/.{digest}"
