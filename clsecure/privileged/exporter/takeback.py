"""Portable files: they come home as they are outside, with the agent's changes."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile

from clsecure.privileged.exporter.files import kind_of, parents, read_regular
from clsecure.privileged.exporter.scratch import nul

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.exporter.request import Json
    from clsecure.privileged.exporter.scratch import Entries, Scratch
    from clsecure.privileged.exporter.worktree import WorkTree


def take_back(
    git: Scratch, work: WorkTree, paths: set[bytes], at_tip: Entries, rules: dict[bytes, list[Json]]
) -> dict[bytes, bytes]:
    """Put those of the files that were made portable into the index as they are outside.

    Returned is where each of them lies as it is outside.
    """
    if paths.isdisjoint(rules):
        return {}
    from clsecure.privileged import portable  # few repositories need it

    place = os.fsencode(tempfile.mkdtemp(dir=git.temp))
    found: dict[bytes, bytes] = {}
    for path in sorted(paths.intersection(rules)):
        full = work.at(path)
        info = os.lstat(full)
        if not stat.S_ISREG(info.st_mode) or info.st_size > portable.LIMIT:
            continue
        data = read_regular(full, portable.LIMIT)
        mode, blob = at_tip.get(path, (b"", b""))
        committed = git.blob(blob, portable.LIMIT) if mode.startswith(b"100") else b""
        ours = portable.taken_back(data, rules[path], committed)
        if ours == data:
            continue
        made = os.path.join(place, path)
        os.makedirs(os.path.dirname(made), exist_ok=True)
        with open(made, "wb") as file:
            file.write(ours)
        os.chmod(made, info.st_mode & 0o777 | 0o400)
        found[path] = made
    if not found:
        return {}
    # The attributes of the work tree say what becomes of line ends there, too.
    for path in found:
        for part in (b"", *parents(path)):
            rule = os.path.join(part, b".gitattributes")
            if rule in work.files and stat.S_ISREG(kind_of(work.at(rule))):
                shutil.copyfile(work.at(rule), os.path.join(place, rule))
    git.run(
        "update-index", "--add", "--replace", "-z", "--stdin", data=nul(found),
        env={"GIT_WORK_TREE": os.fsdecode(place)},
    )  # fmt: skip
    return found
