"""The agent's git directory, read by ourselves."""

from __future__ import annotations

import os
import re
import stat

from clsecure.privileged.exporter.files import ExportError, every_entry, kind_of, read_regular, text_of

HEX = re.compile(rb"^(?:[0-9a-f]{40}|[0-9a-f]{64})$")
MAX_GIT_FILES = 3_000_000
MAX_REFS = 20_000


def find_git_dir(root: bytes, workspace: bytes) -> bytes | None:
    """The git directory of a work tree, None when it has none. It can't lie outside of the workspace."""
    path = os.path.join(root, b".git")
    mode = kind_of(path)
    if mode == 0:
        return None
    if stat.S_ISREG(mode):
        line = read_regular(path, 8192).strip()
        if not line.startswith(b"gitdir:"):
            raise ExportError(f"{text_of(path)} is no gitfile")
        path = os.path.realpath(os.path.join(root, line[7:].strip()))
        if not path.startswith(os.path.realpath(workspace) + b"/"):
            raise ExportError(f"the repository of {text_of(root)} lies outside of the workspace")
        mode = kind_of(path)
    if not stat.S_ISDIR(mode):
        raise ExportError(f"{text_of(path)} is not a directory")
    if kind_of(os.path.join(path, b"commondir")):
        raise ExportError(f"{text_of(root)} has become a linked worktree")
    return path


def check_git_dir(git_dir: bytes) -> None:
    """Refuse what would hang git or lead it elsewhere: only plain files and directories where git reads."""
    for name in (b"HEAD", b"index", b"packed-refs", b"shallow", b"config", b"MERGE_HEAD"):
        mode = kind_of(os.path.join(git_dir, name))
        if mode and not stat.S_ISREG(mode):
            raise ExportError(f".git/{text_of(name)} is not a regular file")
    for name in (b"objects", b"refs"):
        mode = kind_of(os.path.join(git_dir, name))
        if not stat.S_ISDIR(mode):
            raise ExportError(f".git/{text_of(name)} is not a directory")
    if read_regular(os.path.join(git_dir, b"objects", b"info", b"alternates"), 65536).strip():
        raise ExportError("the repository borrows objects from another one (objects/info/alternates)")
    for seen, (path, entry) in enumerate(every_entry(os.path.join(git_dir, b"objects"))):
        if seen > MAX_GIT_FILES:
            raise ExportError(f"more than {MAX_GIT_FILES} files in .git/objects")
        if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
            raise ExportError(f"{text_of(path)} is not a regular file")


class Refs:
    """The references of the agent's repository, as files; nothing of its configuration is needed."""

    def __init__(self, git_dir: bytes) -> None:
        self.git_dir = git_dir
        self.packed: dict[bytes, bytes] = {}
        for line in read_regular(os.path.join(git_dir, b"packed-refs"), 128 << 20).split(b"\n"):
            name = line[line.find(b" ") + 1 :]
            if HEX.match(line[: line.find(b" ")]) and name.startswith(b"refs/"):
                self.packed[name] = line[: line.find(b" ")]

    def value(self, name: bytes, depth: int = 0) -> bytes | None:
        """The id that a reference names, None for one that names nothing."""
        data = read_regular(os.path.join(self.git_dir, name), 4096).strip()
        if data.startswith(b"ref:"):
            target = data[4:].strip()
            if depth > 5 or not target.startswith(b"refs/") or b".." in target or b"\0" in target:
                raise ExportError(f"{text_of(name)} names no branch")
            # "refs/heads" and the directories of other branches may be there under that very name.
            if stat.S_ISDIR(kind_of(os.path.join(self.git_dir, target))):
                return self.packed.get(target)
            return self.value(target, depth + 1)
        if HEX.match(data):
            return data
        if data:
            raise ExportError(f"{text_of(name)} is damaged")
        return self.packed.get(name)

    def others(self) -> dict[bytes, bytes]:
        """Every reference but HEAD, and the HEADs of the agent's linked worktrees, as name → id."""
        found = dict(list(self.packed.items())[:MAX_REFS])
        names = [b"MERGE_HEAD"]
        for path, entry in every_entry(os.path.join(self.git_dir, b"refs")):
            if entry.is_dir(follow_symlinks=False):
                continue
            if not entry.is_file(follow_symlinks=False):
                raise ExportError(f"{text_of(path)} is not a regular file")
            names.append(path[len(self.git_dir) + 1 :])
            if len(names) > MAX_REFS:
                break
        trees = os.path.join(self.git_dir, b"worktrees")
        if stat.S_ISDIR(kind_of(trees)):
            names += [b"worktrees/" + name + b"/HEAD" for name in sorted(os.listdir(trees))[:100]]
        for name in names:
            try:
                value = self.value(name)
            except ExportError:
                continue  # a damaged one beside HEAD is not worth the whole work
            if value:
                found[name] = value
        return {name: value for name, value in found.items() if not name.startswith(b"refs/replace/")}
