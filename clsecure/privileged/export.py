"""Inside a fresh offline sandbox, as the worker: the agent's work, written to stdout as one stream.

Nobody believes this output, and nothing in the workspace is believed here: no configuration, hook, filter,
index flag, exclude list, graft or replacement of the agent's repository counts, because its git directory is
never used as one. Objects are read through alternates of a git directory of our own; references are parsed
here; everything that git will open is looked at with lstat first, since a FIFO would hang it. Nothing else of
the session is alive, so what was looked at stays as it is. The workspace is only read.

Protocol: docs/architecture.md, "Out". Failure is one ``error`` record, a line on stderr and status 1.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GIT = (
    "git", "--no-pager", "--no-replace-objects", "-c", "core.bare=false", "-c", "core.hooksPath=/dev/null",
    "-c", "core.fsmonitor=false", "-c", "core.untrackedCache=false", "-c", "core.fileMode=true",
    "-c", "core.symlinks=true", "-c", "core.ignoreCase=false", "-c", "core.autocrlf=false",
    "-c", "core.eol=native", "-c", "core.safecrlf=false", "-c", "core.protectHFS=true",
    "-c", "core.protectNTFS=true", "-c", "core.attributesFile=/dev/null", "-c", "core.excludesFile=/dev/null",
    "-c", "gc.auto=0", "-c", "core.commitGraph=false", "-c", "core.multiPackIndex=false",
    "-c", "pack.threads=2", "-c", "core.bigFileThreshold=64m", "-c", "core.looseCompression=1",
)  # fmt: skip
HEX = re.compile(rb"^(?:[0-9a-f]{40}|[0-9a-f]{64})$")
LFS = re.compile(
    rb"\Aversion https?://(?:git-lfs\.github\.com|hawser\.github\.com)/spec/v\d\n"
    rb"(?:ext-\d-[^\n]*\n)*oid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n?\Z"
)
MAX_LFS_POINTER = 1024
MAX_ENTRIES = 3_000_000
MAX_GIT_FILES = 3_000_000
MAX_REFS = 20_000
MAX_OTHER_REFS = 100
MAX_PATH = 4000  # git refuses 4096; a little less, so that no file below is out of its reach
MAX_RULES_FILE = 16 << 20
MAX_SIZE = 1 << 40  # the reader refuses larger counts
SIZE_SECONDS = 1.0
MAX_FILE = 2047 << 20  # as max_blob_bytes and max_lfs_bytes of the import
MAX_LFS = 16384 << 20
TEMPORARY = ".clsecure-export-"
LINE_BUDGET = 40_000  # of the 64 KiB that a line may have
WORK_TREE_RULES = (b".gitignore", b".gitattributes", b".gitmodules")


Json = dict[str, Any]
Argument = str | bytes
Entries = dict[bytes, tuple[bytes, bytes]]  # path → (mode, id)


class ExportError(Exception):
    """The work can't be exported; the text says why."""


def text_of(path: bytes) -> str:
    """Bytes as text for messages; the host escapes it again."""
    return path.decode("utf-8", "backslashreplace")[:300]


def b64(data: bytes) -> str:
    """Bytes for JSON."""
    return base64.b64encode(data).decode("ascii")


def kind_of(path: bytes) -> int:
    """The lstat mode of a path, 0 when nothing is there."""
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise ExportError(f"{text_of(path)}: {error.strerror}") from error


def read_regular(path: bytes, limit: int) -> bytes:
    """Content of a regular file, b"" when it is not there. Never follows, never blocks, never more."""
    mode = kind_of(path)
    if mode == 0:
        return b""
    if not stat.S_ISREG(mode):
        raise ExportError(f"{text_of(path)} is not a regular file")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ExportError(f"{text_of(path)} is larger than {limit} bytes")
    return data


class Scratch:
    """A git directory of our own that reads objects of the agent's store."""

    def __init__(
        self,
        root: str,
        name: str,
        work_tree: bytes,
        object_format: str,
        objects: bytes | None,
        deadline: float,
    ) -> None:
        self.work_tree = work_tree
        self.deadline = deadline
        self.dir = os.path.join(root, name)
        self.env = {
            "PATH": PATH, "LC_ALL": "C", "HOME": self.dir, "TMPDIR": root, "GIT_DIR": self.dir,
            "GIT_WORK_TREE": os.fsdecode(work_tree), "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_ATTR_NOSYSTEM": "1", "GIT_OPTIONAL_LOCKS": "0",
            "GIT_NO_REPLACE_OBJECTS": "1", "GIT_LITERAL_PATHSPECS": "1", "GIT_TERMINAL_PROMPT": "0",
            "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "", "GIT_CEILING_DIRECTORIES": "/",
        }  # fmt: skip
        init = {key: value for key, value in self.env.items() if key not in ("GIT_DIR", "GIT_WORK_TREE")}
        how = ("--quiet", "--bare", "--template=", f"--object-format={object_format}")
        subprocess.run(
            [*GIT[:2], "init", *how, self.dir],
            env=init, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        os.makedirs(os.path.join(self.dir, "objects", "info"), exist_ok=True)
        if objects is not None:
            with open(os.path.join(self.dir, "objects", "info", "alternates"), "wb") as file:
                # Quoted, since a path may begin with "#" or hold anything but a line feed.
                file.write(b'"' + objects.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"\n')

    def run(
        self,
        *args: Argument,
        data: bytes | None = None,
        ok: tuple[int, ...] = (0,),
        env: dict[str, str] | None = None,
        out: BinaryIO | None = None,
    ) -> bytes:
        """Run git on the scratch directory; its stdout, or an error with its words."""
        try:
            done = subprocess.run(
                [*GIT, *args], env={**self.env, **(env or {})}, cwd=self.work_tree, input=data,
                stdin=subprocess.DEVNULL if data is None else None,
                stdout=out or subprocess.PIPE, stderr=subprocess.PIPE,
                timeout=max(1.0, self.deadline - time.monotonic()), check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ExportError(f"git {args[0]!s} did not end in time") from error
        if done.returncode not in ok:
            words = done.stderr[-2000:].decode("utf-8", "backslashreplace").strip()
            raise ExportError(f"git {args[0]!s} failed: {words}")
        return done.stdout or b""

    def stream(self, *args: Argument) -> Iterator[bytes]:
        """NUL-separated output item by item: what is too much need not be held to be refused."""
        command = [*GIT, *args]
        with subprocess.Popen(
            command, env=self.env, cwd=self.work_tree, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            assert process.stdout is not None  # noqa: S101  # asked for above
            try:
                rest = b""
                while block := process.stdout.read(1 << 16):
                    *whole, rest = (rest + block).split(b"\0")
                    yield from whole
                    if time.monotonic() > self.deadline:
                        raise ExportError(f"git {args[0]!s} did not end in time")
            finally:
                process.kill()
        if process.returncode != 0:
            raise ExportError(f"git {args[0]!s} failed")

    def items(
        self,
        *args: Argument,
        data: bytes | None = None,
        ok: tuple[int, ...] = (0,),
        env: dict[str, str] | None = None,
    ) -> list[bytes]:
        """NUL-separated output as a list."""
        return [item for item in self.run(*args, data=data, ok=ok, env=env).split(b"\0") if item]

    def type_of(self, name: bytes) -> bytes:
        """The type of an object, or b"" when it is not there."""
        line = self.run("cat-file", "--batch-check=%(objecttype)", data=name + b"\n").strip()
        return b"" if b" " in line else line

    def blob(self, name: bytes, limit: int) -> bytes:
        """The content of a blob, b"" for one that is larger than that."""
        size = self.run("cat-file", "--batch-check=%(objectsize)", data=name + b"\n").strip()
        return self.run("cat-file", "blob", name) if size.isdigit() and int(size) <= limit else b""

    def ignored(self, paths: Iterable[bytes], *flags: str) -> set[bytes]:
        """Those of the paths that the tree's own rules leave out."""
        # check-ignore knows no literal pathspecs; behind "./" no name is taken for a pattern.
        data = nul(b"./" + path for path in paths)
        env = {"GIT_LITERAL_PATHSPECS": "0"}
        return {
            p[2:] for p in self.items("check-ignore", *flags, "-z", "--stdin", data=data, ok=(0, 1), env=env)
        }

    def pointers(self, names: list[bytes]) -> dict[bytes, str]:
        """id → oid for those of the objects that are LFS pointers."""
        if not names:
            return {}
        ask = b"".join(name + b"\n" for name in dict.fromkeys(names))
        sizes = self.run(
            "cat-file", "--batch-check=%(objectname) %(objecttype) %(objectsize)", data=ask
        ).splitlines()
        small = [
            f[0] for f in map(bytes.split, sizes) if f[1:2] == [b"blob"] and int(f[2]) <= MAX_LFS_POINTER
        ]
        found = {}
        data = self.run("cat-file", "--batch", data=b"".join(name + b"\n" for name in small))
        start = 0
        for name in small:
            begin = data.index(b"\n", start) + 1
            size = int(data[start : begin - 1].split(b" ")[2])
            match = LFS.match(data[begin : begin + size])
            if match is not None:
                found[name] = match.group(1).decode("ascii")
            start = begin + size + 1
        return found


# ---- the agent's git directory, read by ourselves ----------------------------------------------------


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


def every_entry(top: bytes) -> Iterator[tuple[bytes, os.DirEntry[bytes]]]:
    """(path, DirEntry) of everything below, directories not followed through links."""
    stack = [top]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                found = list(entries)
        except OSError as error:
            raise ExportError(f"{text_of(os.fsencode(error.filename))}: {error.strerror}") from error
        for entry in found:
            yield entry.path, entry
            if entry.is_dir(follow_symlinks=False):
                stack.append(entry.path)


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


# ---- the work tree -----------------------------------------------------------------------------------


class WorkTree:
    """What lies in one unit's directory, found without following or opening anything."""

    def __init__(self, root: bytes, children: set[bytes]) -> None:
        self.root = root
        self.files: set[bytes] = set()  # regular files and symlinks
        self.unreadable: list[tuple[bytes, str]] = []
        self.special: list[bytes] = []
        self.embedded: list[bytes] = []
        self.attributes = False
        self.count = 0
        self._walk(children)

    def _walk(self, children: set[bytes]) -> None:
        stack = [b""]
        while stack:
            prefix = stack.pop()
            try:
                with os.scandir(os.path.join(self.root, prefix) if prefix else self.root) as entries:
                    found = list(entries)
            except OSError as error:
                if not prefix:
                    raise ExportError(f"the work tree can't be read: {error.strerror}") from error
                self.unreadable.append((prefix, str(error.strerror)))
                continue
            self.count += len(found)
            if self.count > MAX_ENTRIES:
                raise ExportError(f"more than {MAX_ENTRIES} files in the work tree")
            for entry in found:
                deeper = self._see(entry, prefix, children)
                if deeper is not None:
                    stack.append(deeper)

    def _see(self, entry: os.DirEntry[bytes], prefix: bytes, children: set[bytes]) -> bytes | None:
        """Note one entry; return the prefix of a directory to go into."""
        path = prefix + entry.name
        if entry.name == b".git":
            if prefix:
                self._embedded(entry, prefix)
        elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
            if entry.name in WORK_TREE_RULES:
                self._rules(entry, path)
            self.files.add(path)
        elif not entry.is_dir(follow_symlinks=False):
            if entry.name in WORK_TREE_RULES:
                raise ExportError(f"{text_of(path)} is not a regular file")
            self.special.append(path)
        elif len(path) > MAX_PATH:
            self.unreadable.append((path + b"/", "the path is too long for git"))
        elif path not in children:
            return path + b"/"
        return None

    def _rules(self, entry: os.DirEntry[bytes], path: bytes) -> None:
        self.attributes = self.attributes or entry.name == b".gitattributes"
        if not entry.is_symlink() and entry.stat(follow_symlinks=False).st_size > MAX_RULES_FILE:
            raise ExportError(f"{text_of(path)} is larger than {MAX_RULES_FILE} bytes")

    def _embedded(self, entry: os.DirEntry[bytes], prefix: bytes) -> None:
        # git looks at HEAD behind a ".git" to tell a repository from a directory, and would wait for a FIFO.
        if entry.is_symlink():
            raise ExportError(f"{text_of(prefix)}.git is a symbolic link")
        if entry.is_dir(follow_symlinks=False):
            mode = kind_of(os.path.join(entry.path, b"HEAD"))
            if mode and not stat.S_ISREG(mode):
                raise ExportError(f"{text_of(prefix)}.git/HEAD is not a regular file")
        elif not entry.is_file(follow_symlinks=False):
            raise ExportError(f"{text_of(prefix)}.git is not a regular file")
        self.embedded.append(prefix)

    def beneath_unreadable(self, path: bytes) -> bool:
        """Tell whether a path can't be looked at."""
        return any(path.startswith(prefix) for prefix, _ in self.unreadable)

    def readable(self, path: bytes) -> bool:
        """Tell whether the content of a regular file can be read."""
        return os.access(os.path.join(self.root, path), os.R_OK) or os.path.islink(
            os.path.join(self.root, path)
        )


def lfs_pointer(root: bytes, path: bytes) -> tuple[bytes, str, int] | None:
    """(pointer, oid, size) of a work tree file that git-lfs manages; None when it stays as it is."""
    full = os.path.join(root, path)
    info = os.lstat(full)
    if not stat.S_ISREG(info.st_mode) or info.st_size == 0:
        return None
    digest = hashlib.sha256()
    with open(full, "rb") as file:
        block = file.read(1 << 20)
        if len(block) <= MAX_LFS_POINTER and LFS.match(block):
            return None
        size = 0
        while block:
            digest.update(block)
            size += len(block)
            block = file.read(1 << 20)
    oid = digest.hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode("ascii")
    return pointer, oid, size


def blob_id(data: bytes, object_format: str) -> bytes:
    """The id of a blob with these bytes."""
    return hashlib.new(object_format, b"blob %d\0" % len(data) + data).hexdigest().encode("ascii")


def file_blob_id(path: bytes, object_format: str) -> bytes:
    """The id of a work tree entry's bytes as they lie there."""
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode):
        return blob_id(os.readlink(path), object_format)
    digest = hashlib.new(object_format, b"blob %d\0" % info.st_size)
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest().encode("ascii")


def tree_entries(scratch: Scratch, tree: bytes) -> Entries:
    """path → (mode, id) of a tree; a few objects can stand for more files than there are atoms."""
    found: Entries = {}
    for item in scratch.stream("ls-tree", "-r", "-z", "--full-tree", tree):
        if len(found) >= MAX_ENTRIES:
            raise ExportError(f"a commit holds more than {MAX_ENTRIES} files")
        meta, path = item.split(b"\t", 1)
        mode, _, object_id = meta.split(b" ")
        found[path] = (mode, object_id)
    return found


# ---- one unit ----------------------------------------------------------------------------------------


class Unit:
    """One repository: the top, or a submodule that was cloned in."""

    def __init__(self, request: Json, spec: Json, paths: list[bytes], temp: str, deadline: float) -> None:
        self.request = request
        self.path = base64.b64decode(spec["path"])
        self.head = spec["head"].encode("ascii")
        self.base_tree = (spec.get("base_tree") or "").encode("ascii")
        self.format = spec["object_format"]
        workspace = os.fsencode(request["workspace"])
        self.root = os.path.join(workspace, self.path) if self.path else workspace
        inside = self.path + b"/" if self.path else b""
        self.children = {p[len(inside) :] for p in paths if p != self.path and p.startswith(inside)}
        self.refused: list[Json] = []
        self.refused_count = 0
        self.budget = LINE_BUDGET
        self.lfs: dict[str, tuple[bytes, int]] = {}  # oid → (path, size)
        self.temp = temp
        self.name = "unit-" + hashlib.sha256(self.path).hexdigest()[:16]
        self.absent = self.unborn = self.rewritten = False
        self.uncommitted: bytes | None = None
        self.others: list[Json] = []
        self.taken_back: dict[bytes, bytes] = {}  # path → the file as it is outside
        self.counts = {"untracked": 0, "deleted": 0, "ignored": 0}
        self.pack: str | None = None
        self.workspace, self.deadline = workspace, deadline

    @property
    def final(self) -> bytes:
        """The commit that comes home."""
        return self.uncommitted or self.tip

    def refuse(self, path: bytes, why: str) -> None:
        """Note something that can't come home."""
        self.refused_count += 1
        cost = len(path) * 4 // 3 + len(why) + 40
        if len(self.refused) < self.request.get("max_refused", 1000) and cost <= self.budget:
            self.budget -= cost
            self.refused.append({"path": b64(path), "why": why})

    def collect(self, ready: dict[bytes, Unit]) -> None:
        """Find out everything and write the pack to the temporary directory."""
        self.tip: bytes = self.head
        self.tree: bytes | None = self.base_tree or None
        if self.path:
            for depth in range(len(self.path.split(b"/"))):
                part = b"/".join(self.path.split(b"/")[: depth + 1])
                if not stat.S_ISDIR(kind_of(os.path.join(self.workspace, part))):
                    self.absent = True
                    return
            if not os.listdir(self.root):
                self.absent = True
                return
        git_dir = find_git_dir(self.root, self.workspace)
        if git_dir is not None:
            check_git_dir(git_dir)
        objects = None if git_dir is None else os.path.join(git_dir, b"objects")
        self.git_dir = git_dir
        self.git = Scratch(self.temp, self.name, self.root, self.format, objects, self.deadline)
        if git_dir is not None:
            shallow = read_regular(os.path.join(git_dir, b"shallow"), 16 << 20)
            if shallow:
                with open(os.path.join(self.git.dir, "shallow"), "wb") as file:
                    file.write(shallow)
        self.has_head = self.git.type_of(self.head) == b"commit"
        self._find_tip()
        self.work = WorkTree(self.root, self.children)
        self._build_tree(ready)
        self._commit()
        self._pack()

    def _find_tip(self) -> None:
        if self.git_dir is None:
            self.unborn = True
            return
        refs = Refs(self.git_dir)
        tip = refs.value(b"HEAD")
        if tip is None:
            self.unborn = True
        elif not (self.has_head and tip == self.head) and self.git.type_of(tip) != b"commit":
            raise ExportError("HEAD names no commit of the repository")
        else:
            self.tip = tip
        if self.has_head and self.tip != self.head:
            self.rewritten = bool(
                self.git.run("rev-list", "--max-count=1", self.head, b"^" + self.tip, "--").strip()
            )
        elif not self.has_head:
            self.rewritten = not self.unborn
        self._other_refs(refs)

    def _other_refs(self, refs: Refs) -> None:
        there = {i for i, known in ((self.head, self.has_head), (self.tip, not self.unborn)) if known}
        others = {name: value for name, value in refs.others().items() if value not in there}
        if not others:
            return
        ids = sorted(set(others.values()))
        answer = self.git.run(
            "cat-file",
            "--batch-check=%(objectname) %(objecttype)",
            data=b"".join(i + b"^{commit}\n" for i in ids),
        ).splitlines()
        commit_of = {i: line[:-7] for i, line in zip(ids, answer, strict=True) if line.endswith(b" commit")}
        known = [b"^" + i for i in sorted(there)]
        try:
            lost = (
                set(
                    self.git.run(
                        "rev-list",
                        "--stdin",
                        data=b"\n".join([*sorted(set(commit_of.values())), *known]) + b"\n",
                    ).split()
                )
                if commit_of
                else set()
            )
        except ExportError:
            lost = set(commit_of.values())
        for name, value in sorted(others.items()):
            if commit_of.get(value) in lost and len(self.others) < MAX_OTHER_REFS and len(name) <= 200:
                self.others.append({"name": b64(name), "id": commit_of[value].decode("ascii")})

    def _agent_index(self) -> dict[bytes, bytes]:
        """What the agent's index lists: it adds paths (``git add --force``), it never hides any."""
        if self.git_dir is None:
            return {}
        data = read_regular(os.path.join(self.git_dir, b"index"), 1 << 30)
        if not data:
            return {}
        # A split index names a second file, which git looks for in the directory of the repository.
        for name in sorted(n for n in os.listdir(self.git_dir) if n.startswith(b"sharedindex."))[:4]:
            with open(os.path.join(os.fsencode(self.git.dir), name), "wb") as file:
                file.write(read_regular(os.path.join(self.git_dir, name), 1 << 30))
        copy = os.path.join(self.git.dir, "agent-index")
        with open(copy, "wb") as file:
            file.write(data)
        try:
            found = {}
            for item in self.git.items("ls-files", "-z", "--stage", env={"GIT_INDEX_FILE": copy}):
                meta, path = item.split(b"\t", 1)
                found[path] = meta.split(b" ")[0]
            return found
        except ExportError:
            self.refuse(b".git/index", "the index can't be read: files added by force may be missing")
            return {}

    def _build_tree(self, ready: dict[bytes, Unit]) -> None:
        git, work = self.git, self.work
        start = tree_entries(git, self.head) if self.has_head else {}
        at_tip = start if self.tip == self.head else tree_entries(git, self.tip)
        if self.has_head:
            git.run("read-tree", self.head)
        staged = self._agent_index()
        # Paths with links or files where directories were are not in work.files: they count as deleted.
        known = set(start) | set(at_tip) | set(staged)
        links = {
            p for p in known if b"160000" in (start.get(p, b"x")[0], at_tip.get(p, b"x")[0], staged.get(p))
        }
        others = git.items("ls-files", "-z", "--others", "--exclude-standard")
        self.counts["ignored"] = len(
            git.items("ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory")
        )
        repositories = {p[:-1] for p in others if p.endswith(b"/")}
        loose = {p for p in others if not p.endswith(b"/")}
        dropped = [p for p in start if p not in at_tip and p not in staged and p in work.files]
        if dropped:  # untracked by the agent: out when it is ignored now, in as an untracked file otherwise
            known -= git.ignored(dropped, "--no-index")
        wanted = {p for p in known | loose if p in work.files}
        self.counts["untracked"] = len(wanted - set(at_tip) - set(staged))
        kept = {p for p in links if self._link_stays(p, at_tip, staged)}
        gone = {p for p in start if p not in wanted and p not in kept and not work.beneath_unreadable(p)}
        self.counts["deleted"] = len([p for p in at_tip if p not in wanted and p not in kept])
        for path in sorted(wanted):
            if not work.readable(path):
                self.refuse(path, "it can't be read")
                wanted.discard(path)
        if gone:
            git.run("update-index", "--force-remove", "-z", "--stdin", data=nul(gone))
        pointers = self._lfs(wanted, start, at_tip)
        self._leave_out_large(wanted - set(pointers), MAX_FILE, wanted)
        plain = wanted - set(pointers)
        if plain:
            git.run("update-index", "--add", "--replace", "-z", "--stdin", data=nul(plain))
        self._take_back(plain, at_tip)
        info = [b"%s %s\t%s" % (mode, i, p) for p, (mode, i) in pointers.items()]
        info += [b"160000 %s\t%s" % (self._link_id(p, ready, start, at_tip), p) for p in sorted(kept)]
        if info:
            git.run("update-index", "--add", "--replace", "-z", "--index-info", data=nul(info))
        self._keep_identical(wanted, start)
        self._refusals(wanted, kept, repositories)
        self.tree = git.run("write-tree").strip()

    def _take_back(self, plain: set[bytes], at_tip: Entries) -> None:
        """Put files that were made portable into the index as they are outside, with the agent's changes."""
        rules = {} if self.path else {os.fsencode(p): r for p, r in self.request.get("portable", {}).items()}
        if plain.isdisjoint(rules):
            return
        portable = sibling("portable")
        place = os.fsencode(tempfile.mkdtemp(dir=self.temp))
        for path in sorted(plain.intersection(rules)):
            full = os.path.join(self.root, path)
            info = os.lstat(full)
            if not stat.S_ISREG(info.st_mode) or info.st_size > portable.LIMIT:
                continue
            data = read_regular(full, portable.LIMIT)
            mode, blob = at_tip.get(path, (b"", b""))
            committed = self.git.blob(blob, portable.LIMIT) if mode.startswith(b"100") else b""
            ours = portable.taken_back(data, rules[path], committed)
            if ours == data:
                continue
            made = os.path.join(place, path)
            os.makedirs(os.path.dirname(made), exist_ok=True)
            with open(made, "wb") as file:
                file.write(ours)
            os.chmod(made, info.st_mode & 0o777 | 0o400)
            self.taken_back[path] = made
        if not self.taken_back:
            return
        # The attributes of the work tree say what becomes of line ends there, too.
        for path in self.taken_back:
            for part in (b"", *parents(path)):
                rule = os.path.join(part, b".gitattributes")
                if rule in self.work.files and stat.S_ISREG(kind_of(os.path.join(self.root, rule))):
                    shutil.copyfile(os.path.join(self.root, rule), os.path.join(place, rule))
        self.git.run(
            "update-index", "--add", "--replace", "-z", "--stdin", data=nul(self.taken_back),
            env={"GIT_WORK_TREE": os.fsdecode(place)},
        )  # fmt: skip

    def _leave_out_large(self, paths: Iterable[bytes], most: int, wanted: set[bytes]) -> None:
        """Name what the host refuses anyway: a sparse file costs the agent nothing, and hashing it hours."""
        for path in sorted(paths):
            if os.lstat(os.path.join(self.root, path)).st_size > most:
                self.refuse(path, f"it is larger than {most >> 20} MiB")
                wanted.discard(path)

    def _link_stays(self, path: bytes, at_tip: Entries, staged: dict[bytes, bytes]) -> bool:
        if path in self.work.files or any(f in self.work.files for f in parents(path)):
            return False
        mode = kind_of(os.path.join(self.root, path))
        if path not in at_tip and path not in staged:
            return False  # the agent removed it, whatever still lies there
        if path in self.children:
            return stat.S_ISDIR(mode)
        return stat.S_ISDIR(mode) or path in staged

    def _link_id(self, path: bytes, ready: dict[bytes, Unit], start: Entries, at_tip: Entries) -> bytes:
        unit = ready.get((self.path + b"/" if self.path else b"") + path)
        if unit is not None and not unit.absent:
            return unit.final
        for entries in (at_tip, start):
            if entries.get(path, (b"",))[0] == b"160000":
                return entries[path][1]
        listed = self.git.run(
            "ls-files",
            "-z",
            "--stage",
            "--",
            path,
            env={"GIT_INDEX_FILE": os.path.join(self.git.dir, "agent-index")},
        )
        return listed.split(b" ")[1]

    def _lfs(self, wanted: set[bytes], start: Entries, at_tip: Entries) -> Entries:
        """path → (mode, blob) for files that git-lfs manages; notes the objects that have to travel."""
        if not self.work.attributes and not any(
            p.split(b"/")[-1] == b".gitattributes" for p in {*start, *at_tip}
        ):
            return {}
        answer = self.git.run("check-attr", "-z", "--stdin", "filter", data=nul(wanted)).split(b"\0")
        managed = sorted(p for p, value in zip(answer[0::3], answer[2::3], strict=False) if value == b"lfs")
        self._leave_out_large(managed, MAX_LFS, wanted)
        managed = [path for path in managed if path in wanted]
        found: Entries = {}
        cloned = {i for _, i in start.values()}
        before = [e[p][1] for e in (start, at_tip) for p in managed if p in e]
        points = self.git.pointers(before)
        fresh: dict[bytes, bytes] = {}  # id → pointer text
        for path in managed:
            made = lfs_pointer(self.root, path)
            if made is None:
                continue
            pointer, oid, size = made
            full = os.path.join(self.root, path)
            if path in start and file_blob_id(full, self.format) == start[path][1]:
                continue  # stored whole from the beginning: it stays so
            mode = b"100755" if os.lstat(full).st_mode & 0o100 else b"100644"
            old = [e[path][1] for e in (start, at_tip) if path in e and points.get(e[path][1]) == oid]
            blob = old[0] if old else blob_id(pointer, self.format)
            if not old:
                fresh[blob] = pointer
            if blob not in cloned:
                self.lfs[oid] = (full, size)
            found[path] = (mode, blob)
        self._write_blobs(fresh)
        return found

    def _write_blobs(self, blobs: dict[bytes, bytes]) -> None:
        if not blobs:
            return
        place = tempfile.mkdtemp(dir=self.temp)
        names = []
        for number, content in enumerate(blobs.values()):
            names.append(os.path.join(place, str(number)).encode())
            with open(names[-1], "wb") as file:
                file.write(content)
        self.git.run("hash-object", "-w", "--no-filters", "--stdin-paths", data=b"\n".join(names) + b"\n")
        shutil.rmtree(place)

    def _keep_identical(self, wanted: set[bytes], start: Entries) -> None:
        """A file whose bytes are the blob of the start keeps it, whatever the attributes would make of it."""
        if not self.has_head:
            return
        changed = self.git.items(
            "diff-index", "--cached", "-z", "--no-renames", "--name-only", self.head, "--"
        )
        info = []
        for path in changed:
            mode, blob = start.get(path, (b"", b""))
            full = self.taken_back.get(path) or os.path.join(self.root, path)
            if not mode.startswith(b"100") or path not in wanted or os.path.islink(full):
                continue
            if os.access(full, os.R_OK) and file_blob_id(full, self.format) == blob:
                now = b"100755" if os.lstat(full).st_mode & 0o100 else b"100644"
                info.append(b"%s %s\t%s" % (now, blob, path))
        if info:
            self.git.run("update-index", "-z", "--index-info", data=nul(info))

    def _refusals(self, wanted: set[bytes], kept: set[bytes], repositories: set[bytes]) -> None:
        taken = set(self.git.items("ls-files", "-z"))
        for path in sorted(wanted - taken):
            self.refuse(path, "git takes no file of this name")
        for prefix, why in self.work.unreadable:
            self.refuse(prefix, f"the directory can't be read: {why}")
        embedded = {p[:-1] for p in self.work.embedded} - kept
        odd = [p for p in (*self.work.special, *embedded) if not kept.intersection(parents(p))]
        ignored = self.git.ignored(odd) if odd else set()
        for path in sorted((set(odd) - ignored) | repositories - kept):
            if path in embedded or path in repositories:
                self.refuse(path, "a repository of its own that was not cloned in")
            else:
                self.refuse(path, "neither a file nor a directory nor a symbolic link")
        for path in sorted(kept - self.children):
            if path in {p[:-1] for p in self.work.embedded}:
                self.refuse(path, "a repository of its own that was not cloned in")

    def _commit(self) -> None:
        if self.tip == self.head and self.tree == self.base_tree:
            return
        tip_tree = (
            b""
            if self.unborn and not self.has_head
            else self.git.run("rev-parse", "--verify", self.tip + b"^{tree}").strip()
        )
        if self.tree == tip_tree:
            return
        now = b"%d +0000" % int(time.time())
        who = b"%s <%s> %s" % (ident(self.request, "author_name"), ident(self.request, "author_email"), now)
        message = self.request["message"].replace("\0", "").encode("utf-8", "replace").strip() + b"\n"
        # Written as an object, not by commit-tree: the parent need not be there when the agent removed .git.
        header = b"tree %s\nparent %s\n" % (self.tree, self.tip)
        commit = header + b"author %s\ncommitter %s\n\n%s" % (who, who, message)
        self.uncommitted = self.git.run("hash-object", "-w", "-t", "commit", "--stdin", data=commit).strip()

    def _pack(self) -> None:
        if self.final == self.head:
            return
        exclude = [b"^" + self.head] if self.has_head else []
        name = os.path.join(self.temp, self.name + ".pack")
        if not self.has_head and self.tip == self.head:
            # The parent is on the host only: what is new is the commit itself and its tree.
            names = self.git.run("rev-list", "--objects", self.tree or b"").split(b"\n")
            wants, revs = [self.final, *(n.split(b" ")[0] for n in names if n)], []
        else:
            wants, revs = [self.final, *exclude], ["--revs", "--thin"]
        with open(name, "wb") as file:
            self.git.run(
                "pack-objects", *revs, "--stdout", "--delta-base-offset", "-q",
                data=b"\n".join(wants) + b"\n", out=file,
            )  # fmt: skip
        self.pack = name
        self._committed_lfs(exclude)

    def _committed_lfs(self, exclude: list[bytes]) -> None:
        """Objects of pointers that the agent committed on the way (git-lfs keeps them in its store)."""
        store = None if self.git_dir is None else os.path.join(self.git_dir, b"lfs", b"objects")
        if store is None or not stat.S_ISDIR(kind_of(store)) or self.tip == self.head:
            return
        names = self.git.run("rev-list", "--objects", "--filter=blob:limit=1025", self.tip, *exclude)
        for oid in self.git.pointers([n.split(b" ")[0] for n in names.splitlines()]).values():
            steps = (oid[:2], os.path.join(oid[:2], oid[2:4]))
            full = os.path.join(store, *(part.encode() for part in (oid[:2], oid[2:4], oid)))
            if oid in self.lfs or not all(
                stat.S_ISDIR(kind_of(os.path.join(store, s.encode()))) for s in steps
            ):
                continue
            if stat.S_ISREG(kind_of(full)):
                self.lfs[oid] = (full, os.lstat(full).st_size)

    def write(self, out: BinaryIO) -> None:
        """Write the records of this unit."""

        def text(value: bytes | None) -> str | None:
            return None if value is None else value.decode("ascii")

        record(out, {
            "type": "unit", "size": 0, "path": b64(self.path), "tip": text(self.tip), "tree": text(self.tree),
            "uncommitted": text(self.uncommitted), "rewritten": self.rewritten, "unborn": self.unborn,
            "absent": self.absent, "other_refs": self.others, "refused": self.refused,
            "refused_more": self.refused_count - len(self.refused), **self.counts,
        })  # fmt: skip
        if self.pack is not None:
            with open(self.pack, "rb") as file:
                record(out, {"type": "pack", "size": os.fstat(file.fileno()).st_size})
                shutil.copyfileobj(file, out, 1 << 20)
        for oid, (path, size) in sorted(self.lfs.items() if self.pack is not None else ()):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                record(out, {"type": "lfs", "size": size, "oid": oid})
                shutil.copyfileobj(file, out, 1 << 20)


def sibling(name: str) -> Any:
    """Import another of the root-owned pieces; isolated, python looks for none."""
    import importlib.util  # takes its time, and few repositories need it

    place = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".py")
    spec: Any = importlib.util.spec_from_file_location(name, place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nul(items: Iterable[bytes]) -> bytes:
    """Items as git's -z input."""
    return b"".join(item + b"\0" for item in items)


def parents(path: bytes) -> list[bytes]:
    """The directories that hold a path."""
    parts = path.split(b"/")
    return [b"/".join(parts[:i]) for i in range(1, len(parts))]


def ident(request: Json, key: str) -> bytes:
    """A name or address that can't break a commit's header."""
    kept = "".join(c for c in str(request.get(key) or "") if c not in "<>\0\r\n").strip()
    return kept.encode("utf-8", "replace") or b"clsecure"


def record(out: BinaryIO, fields: Json) -> None:
    """Write one line; its bytes follow."""
    line = json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"
    if len(line) > 65536:
        raise ExportError("a record is too long")
    out.write(line)


class HomeSize(threading.Thread):
    """Adds up what the home takes on the disk, while git works; our own directory in it is not its."""

    def __init__(self, home: str, ours: str) -> None:
        super().__init__(daemon=True)
        self.home, self.ours = os.fsencode(home), os.fsencode(ours)
        self.found: int | None = None
        self.start()

    def run(self) -> None:
        """Count every file once, however many names it has; what can't be looked at counts nothing."""
        total, seen, stack, linked = 0, 0, [self.home], set()
        while stack:
            with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if entry.path == self.ours:
                        continue
                    info = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(info.st_mode):
                        stack.append(entry.path)
                    elif info.st_nlink > 1:
                        if info.st_ino in linked:
                            continue
                        linked.add(info.st_ino)
                    total += info.st_blocks * 512
            if seen > MAX_ENTRIES:
                return
        self.found = min(total, MAX_SIZE)

    def value(self) -> int | None:
        """Return the bytes, None when it takes much longer than the export itself."""
        self.join(SIZE_SECONDS)
        return self.found


def export(request: Json, temp: str, out: BinaryIO) -> None:
    """Compute all units, inner ones first (a gitlink names what comes home of them), then write them."""
    deadline = time.monotonic() + float(request.get("deadline_s", 600))
    size = HomeSize(os.environ.get("HOME") or "/nonexistent", temp)
    paths = [base64.b64decode(spec["path"]) for spec in request["units"]]
    units = [Unit(request, spec, paths, temp, deadline) for spec in request["units"]]
    ready: dict[bytes, Unit] = {}
    for unit in sorted(units, key=lambda u: (-len(u.path.split(b"/")) if u.path else 0, u.path)):
        try:
            unit.collect(ready)
        except ExportError as error:
            where = f"submodule {text_of(unit.path)}: " if unit.path else ""
            raise ExportError(where + str(error)) from error
        ready[unit.path] = unit
    for unit in units:
        unit.write(out)
    record(out, {"type": "end", "size": 0, "units": len(units), "home_size": size.value()})


def free(directory: str) -> int:
    """Return the bytes that can still be written there: the agent may have filled its home."""
    room = os.statvfs(directory)
    return room.f_bavail * room.f_frsize


def place_for_work(request: Json) -> str:
    """A directory of our own; what a killed export left beside it is taken away."""
    wanted, workspace = request.get("temp"), request["workspace"]
    if wanted is not None:
        try:
            for name in os.listdir(wanted):
                path = os.path.join(wanted, name)
                if name.startswith(TEMPORARY) and not (workspace + "/").startswith(path + "/"):
                    shutil.rmtree(path, ignore_errors=True)
            if free(wanted) >= free(tempfile.gettempdir()):
                return tempfile.mkdtemp(prefix=TEMPORARY, dir=wanted)
        except OSError:
            pass  # the agent may have made its home read-only: there is memory
    return tempfile.mkdtemp(prefix=TEMPORARY)


def main() -> int:
    """Read the request, write the stream."""
    os.umask(0o077)
    out = sys.stdout.buffer
    request = json.loads(sys.stdin.buffer.readline(1 << 20))
    temp = place_for_work(request)
    try:
        export(request, temp, out)
        out.flush()
    except (ExportError, OSError, subprocess.SubprocessError) as error:
        words = str(error)[:4000].encode("ascii", "backslashreplace").decode("ascii")
        record(out, {"type": "error", "size": 0, "message": words})
        out.flush()
        sys.stderr.write(f"export: {words}\n")
        return 1
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
