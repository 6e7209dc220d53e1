"""Files that git-lfs manages: their content in the place of the pointers."""

from __future__ import annotations

import os
import re
import shutil
import stat

from clsecure.privileged.unpacker.repository import PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.unpacker.repository import Repository

POINTER = re.compile(
    rb"version https://[a-z.-]+/spec/v1\n(?:ext-[0-9]-[^\n]+\n)*oid sha256:([0-9a-f]{64})\nsize [0-9]+\n"
)


def place_of(oid: bytes) -> bytes:
    """Return where git-lfs keeps an object, below the work tree."""
    return b"/".join((b".git/lfs/objects", oid[:2], oid[2:4], oid))


def smudge(repository: Repository, objects: set[bytes]) -> None:
    """Put the content of these objects in place of their pointers.

    Not by git-lfs's own filter, which would ask the network for every object that is not here. Without
    git-lfs in the sandbox the pointers stay, since every file would look modified.
    """
    if shutil.which("git-lfs", path=PATH) is None:
        return
    written = []
    for path, value in repository.filters(repository.git("ls-files", "-z"), "--cached"):
        if value != b"lfs":
            continue
        full = os.path.join(repository.top, path)
        found = os.lstat(full)
        if not stat.S_ISREG(found.st_mode) or found.st_size > 1024:
            continue
        with open(full, "rb") as file:
            match = POINTER.fullmatch(file.read())
        if match is None or match[1] not in objects:
            continue
        os.unlink(full)
        shutil.copyfile(os.path.join(repository.top, place_of(match[1])), full)
        os.chmod(full, found.st_mode & 0o777)
        written.append(path)
    repository.configure(
        [
            ("filter", "lfs", "clean", "git-lfs clean -- %f"),
            ("filter", "lfs", "smudge", "git-lfs smudge -- %f"),
            ("filter", "lfs", "process", "git-lfs filter-process"),
            ("filter", "lfs", "required", "true"),
        ]
    )
    # The same blobs again, so that the index knows these files by what they look like now.
    repository.git("update-index", "-z", "--stdin", data=b"".join(path + b"\0" for path in written))
