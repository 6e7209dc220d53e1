"""Root's own copies of agents' executables."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat

from clsecure.privileged.root.messages import Refused
from clsecure.privileged.root.state import DISK_RESERVE, LOCK_SECONDS, STATE, locked, own_directory

AGENT_LIMIT = 1024**3
AGENT_VERSIONS = 3
SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def keep_agent(owner: int, digest: str, source: int) -> str:
    """Copy an agent's executable into root's own store unless it is there; return its directory."""
    info = os.fstat(source)
    if not stat.S_ISREG(info.st_mode) or not 0 < info.st_size <= AGENT_LIMIT:
        raise Refused("the agent is not a regular file of at most 1 GiB")
    own_directory(f"{STATE}/agents", 0o711)
    store = own_directory(f"{STATE}/agents/{owner}", 0o711)
    target, copy = f"{store}/{digest}", f"{store}/.new"
    with locked(f"{store}/.lock", wait=LOCK_SECONDS):
        if os.path.isdir(target):
            os.utime(target)
            return target
        room = os.statvfs(store)
        if room.f_bavail * room.f_frsize < info.st_size + DISK_RESERVE:
            raise Refused(f"there is too little room in {STATE} for the agent")
        try:
            with open(copy, "w+b") as file:
                offset = 0
                while sent := os.sendfile(file.fileno(), source, offset, info.st_size - offset):
                    offset += sent
                file.seek(0)
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise Refused("the agent's file changed while it was copied")
                os.fchmod(file.fileno(), 0o555)
                os.fsync(file.fileno())
            own_directory(target + ".new", 0o755)
            os.rename(copy, f"{target}.new/agent")
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(copy)
        os.rename(target + ".new", target)
        versions = [name for name in os.listdir(store) if SHA256.match(name)]
        for old in sorted(versions, key=lambda n: os.stat(f"{store}/{n}").st_mtime)[:-AGENT_VERSIONS]:
            os.unlink(f"{store}/{old}/agent")
            os.rmdir(f"{store}/{old}")
    return target
