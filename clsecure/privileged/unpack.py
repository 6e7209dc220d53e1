"""Inside an offline sandbox, as the worker: receive what was cloned in.

``python3 -I -S unpack.py DIRECTORY < stream``. The stream comes from the host and is trusted; what may lie in
the worker's home from a former session is not: git reads no configuration of it, and files for the home are
written without following a symlink. The format is in docs/architecture.md, "In".

Status 0: done. 1: failed, one line on stderr says why, and nothing is left in DIRECTORY. 3: DIRECTORY holds
something already and was not touched.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shlex
import shutil
import stat
import subprocess
import sys
from typing import Any, BinaryIO

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CHUNK = 1 << 20
LINE = 64 * 1024
OCCUPIED = 3
OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
SHA256 = re.compile(r"[0-9a-f]{64}")
PACK = re.compile(r"pack-[0-9a-f]{40,64}\.(pack|idx)")
POINTER = re.compile(
    rb"version https://[a-z.-]+/spec/v1\n(?:ext-[0-9]-[^\n]+\n)*oid sha256:([0-9a-f]{64})\nsize [0-9]+\n"
)
GIT = (
    "git", "--no-pager", "-c", "core.hooksPath=/dev/null", "-c", "core.fsync=none", "-c", "gc.auto=0",
    "-c", "core.fsmonitor=false", "-c", "checkout.workers=0", "-c", "advice.detachedHead=false",
    "-c", "core.safecrlf=false", "-c", "protocol.allow=never", "-c", "core.quotePath=true",
)  # fmt: skip
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Json = dict[str, Any]


class UnpackError(Exception):
    """The stream can't be unpacked; the text says why."""


class OccupiedError(UnpackError):
    """The directory holds something already."""


class Stream:
    """The records, and the bytes of the current one."""

    def __init__(self, source: BinaryIO) -> None:
        self.source = source
        self.left = 0

    @classmethod
    def of(cls, data: bytes) -> Stream:
        """Return a stream that holds the bytes of one record."""
        made = cls(io.BytesIO(data))
        made.left = len(data)
        return made

    def next(self) -> Json:
        """Return the next record; its bytes have to be read before the one after."""
        if self.left:
            self.skip()
        line = self.source.readline(LINE)
        if not line.endswith(b"\n"):
            raise UnpackError("the stream ended early" if len(line) < LINE else "a record is too long")
        record = json.loads(line)
        self.left = int(record["size"])
        if self.left < 0 or not isinstance(record["type"], str):
            raise UnpackError("a record is malformed")
        return dict(record)

    def chunk(self) -> bytes:
        """Return some of the record's bytes, b"" after the last."""
        if not self.left:
            return b""
        data = self.source.read(min(self.left, CHUNK))
        if not data:
            raise UnpackError("the stream ended early")
        self.left -= len(data)
        return data

    def bytes(self) -> bytes:
        """Return all bytes of the record."""
        parts = []
        while data := self.chunk():
            parts.append(data)
        return b"".join(parts)

    def skip(self) -> None:
        """Read past the bytes."""
        while self.chunk():
            pass

    def into(self, descriptor: int) -> str:
        """Write the bytes to a descriptor; return their sha256."""
        digest = hashlib.sha256()
        while data := self.chunk():
            digest.update(data)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        return digest.hexdigest()


class Tree:
    """A directory below which files are made and removed without following a symlink."""

    def __init__(self, path: bytes) -> None:
        self.fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
        self.parts: list[bytes] = []

    def close(self) -> None:
        """Close all descriptors."""
        while self.fds:
            os.close(self.fds.pop())

    def parent(self, path: bytes, *, make: int | None) -> tuple[int, bytes]:
        """Return the directory and the last component of a path; ``make`` is the mode of new directories."""
        *parts, name = path.split(b"/")
        if any(part in (b"", b".", b"..") for part in (*parts, name)) or b"\0" in path:
            raise UnpackError(f"not a path: {shown(path)}")
        while self.parts != parts[: len(self.parts)]:
            self.parts.pop()
            os.close(self.fds.pop())
        for part in parts[len(self.parts) :]:
            if make is not None:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, make, dir_fd=self.fds[-1])
            self.fds.append(os.open(part, DIRECTORY_FLAGS, dir_fd=self.fds[-1]))
            self.parts.append(part)
        return self.fds[-1], name

    def remove(self, path: bytes) -> None:
        """Remove a file, and the directories above that it leaves empty, as git does."""
        try:
            parent, name = self.parent(path, make=None)
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                os.rmdir(name, dir_fd=parent)  # a submodule's, empty
            else:
                os.unlink(name, dir_fd=parent)
            while self.parts:
                name = self.parts.pop()
                os.close(self.fds.pop())
                os.rmdir(name, dir_fd=self.fds[-1])
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.ELOOP):
                raise

    def write(self, path: bytes, mode: int, stream: Stream, *, make: int = 0o777, sha256: str = "") -> bool:
        """Put a file in place of whatever has its name, all of it or nothing.

        :param mode: exactly these permission bits.
        :param sha256: what the content must have; False is returned when it does not.
        """
        parent, name = self.parent(path, make=make)
        temporary = b".clsecure-" + secrets.token_hex(8).encode("ascii")
        descriptor = os.open(temporary, NEW_FILE_FLAGS, 0o600, dir_fd=parent)
        try:
            try:
                digest = stream.into(descriptor)
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)
            if sha256 and digest != sha256:
                os.unlink(temporary, dir_fd=parent)
                return False
            try:
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            except IsADirectoryError:
                os.rmdir(name, dir_fd=parent)  # a submodule's, empty
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise
        return True

    def symlink(self, path: bytes, target: bytes) -> None:
        """Put a symlink in place of a file or nothing."""
        parent, name = self.parent(path, make=0o777)
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            os.rmdir(name, dir_fd=parent)
        os.symlink(target, name, dir_fd=parent)

    def exists(self, path: bytes) -> bool:
        """Tell whether anything has this name; what it is reached through must be directories."""
        try:
            parent, name = self.parent(path, make=None)
            os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True


class Unit:
    """One repository: objects first, then the checkout, then what the user had not committed."""

    def __init__(self, workspace: bytes, record: Json) -> None:
        self.record = record
        self.path = base64.b64decode(record["path"])
        self.top = os.path.join(workspace, self.path) if self.path else workspace
        self.head = oid(record["head"])
        self.index_tree = oid(record["index_tree"])
        self.lfs: set[bytes] = set()
        self.intended: list[bytes] = []
        self.rules: Json = {}
        self.checked_out = False
        if self.path:
            tree = Tree(workspace)
            try:
                tree.parent(self.path + b"/x", make=0o777)
            finally:
                tree.close()
        self.git("init", "--quiet", "--template=", f"--object-format={record['object_format']}", within=False)
        self.tree = Tree(self.top)
        self.configure(
            [("user", None, "name", record["user_name"]), ("user", None, "email", record["user_email"])]
        )
        for name, url in record["remotes"].items():
            fetch = f"+refs/heads/*:refs/remotes/{name}/*"
            self.configure([("remote", name, "url", url), ("remote", name, "fetch", fetch)])
        if record["hooks_path"]:
            self.configure([("core", None, "hooksPath", record["hooks_path"])])

    def git(self, *args: str, data: bytes | None = None, within: bool = True) -> bytes:
        """Run git on this unit, with nobody's configuration but the repository's own."""
        env = {
            "PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": os.environ.get("HOME", "/nonexistent"),
            "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1",
            "GIT_LITERAL_PATHSPECS": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_COMMITTER_NAME": "clsecure", "GIT_COMMITTER_EMAIL": "clsecure@localhost",
        }  # fmt: skip
        if within:
            env["GIT_DIR"] = os.fsdecode(os.path.join(self.top, b".git"))
            env["GIT_WORK_TREE"] = os.fsdecode(self.top)
        done = subprocess.run(
            [*GIT, *args], cwd=self.top, env=env, input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            words = done.stderr.decode("utf-8", "backslashreplace").strip()
            raise UnpackError(f"git {args[0]} failed: {words[-1000:]}")
        return done.stdout

    def configure(self, settings: list[tuple[str, str | None, str, str | None]]) -> None:
        """Append (section, subsection, key, value) to the configuration; None is not written."""
        lines = []
        for section, subsection, key, value in settings:
            if value is None or any("\0" in text or "\n" in text for text in (subsection or "", value)):
                continue
            name = section if subsection is None else f"{section} {quoted(subsection)}"
            lines.append(f"[{name}]\n\t{key} = {quoted(value)}\n")
        with open(os.path.join(self.top, b".git", b"config"), "ab") as file:
            file.write("".join(lines).encode("utf-8", "surrogateescape"))

    def apply(self, record: Json, stream: Stream) -> None:
        """Take one record of this unit."""
        kind = record["type"]
        if kind in ("shallow", "pack", "idx", "hook", "lfs"):
            if self.checked_out:
                raise UnpackError(f"a {kind} record comes too late")
            self._receive(kind, record, stream)
            return
        self.check_out()
        if kind == "portable":
            self.rules = json.loads(stream.bytes())
            return
        path = base64.b64decode(record["path"])
        if path.split(b"/")[0].lower() == b".git":
            raise UnpackError(f"not a path: {shown(path)}")
        if kind == "remove":
            self.tree.remove(path)
        elif kind == "file":
            self.tree.write(path, 0o755 if record["mode"] == "100755" else 0o644, stream)
            if record["intent"]:
                self.intended.append(path)
        elif kind == "symlink":
            self.tree.symlink(path, stream.bytes())
        else:
            raise UnpackError(f"unknown record: {kind[:40]!r}")

    def _receive(self, kind: str, record: Json, stream: Stream) -> None:
        if kind == "shallow":
            self.tree.write(b".git/shallow", 0o644, stream)
        elif kind == "lfs":
            if not SHA256.fullmatch(record["oid"]):
                raise UnpackError("an LFS object's id is malformed")
            name = record["oid"].encode("ascii")
            place = b"/".join((b".git/lfs/objects", name[:2], name[2:4], name))
            if self.tree.write(place, 0o444, stream, sha256=record["oid"]):
                self.lfs.add(name)
        else:
            name = record["name"]
            if kind != "hook" and not PACK.fullmatch(name):
                raise UnpackError("a pack's name is malformed")
            where = "hooks" if kind == "hook" else "objects/pack"
            mode = 0o755 if kind == "hook" else 0o444
            self.tree.write(os.fsencode(f".git/{where}/{name}"), mode, stream)

    def check_out(self) -> None:
        """Name the branch and write index and files, once."""
        if self.checked_out:
            return
        self.checked_out = True
        if self.record["branch"] is None:
            self.git("update-ref", "--no-deref", "HEAD", self.head)
        else:
            self.git("symbolic-ref", "HEAD", f"refs/heads/{self.record['branch']}")
            self.git("update-ref", "-m", "clone: by clsecure", "HEAD", self.head)
        self.git("read-tree", "--reset", "-u", self.index_tree)
        if self.record["lfs"]:
            self._smudge()

    def _smudge(self) -> None:
        """Put the content of LFS objects in place of their pointers.

        Not by git-lfs's own filter, which would ask the network for every object that is not here. Without
        git-lfs in the sandbox the pointers stay, since every file would look modified.
        """
        if shutil.which("git-lfs", path=PATH) is None:
            return
        words = self.git("check-attr", "--cached", "-z", "--stdin", "filter", data=self.git("ls-files", "-z"))
        fields = words.split(b"\0")
        written = []
        for path, value in zip(fields[0::3], fields[2::3], strict=False):
            if value != b"lfs":
                continue
            full = os.path.join(self.top, path)
            found = os.lstat(full)
            if not stat.S_ISREG(found.st_mode) or found.st_size > 1024:
                continue
            with open(full, "rb") as file:
                match = POINTER.fullmatch(file.read())
            if match is None or match[1] not in self.lfs:
                continue
            name = match[1]
            store = os.path.join(self.top, b".git/lfs/objects", name[:2], name[2:4], name)
            os.unlink(full)
            shutil.copyfile(store, full)
            os.chmod(full, found.st_mode & 0o777)
            written.append(path)
        self.configure(
            [
                ("filter", "lfs", "clean", "git-lfs clean -- %f"),
                ("filter", "lfs", "smudge", "git-lfs smudge -- %f"),
                ("filter", "lfs", "process", "git-lfs filter-process"),
                ("filter", "lfs", "required", "true"),
            ]
        )
        # The same blobs again, so that the index knows these files by what they look like now.
        self.git("update-index", "-z", "--stdin", data=b"".join(path + b"\0" for path in written))

    def finish(self) -> None:
        """Leave the repository as the user's looks."""
        self.check_out()
        if self.intended:
            names = b"".join(path + b"\0" for path in self.intended)
            self.git("add", "-N", "--force", "--pathspec-from-file=-", "--pathspec-file-nul", data=names)
        if self.rules:
            self._make_portable()
        self.tree.close()

    def _make_portable(self) -> None:
        """Let agent files name what is there inside, and git take them for what they were."""
        top = os.fsdecode(self.top)
        if "\n" in top:
            return  # the filter's command can't name it
        portable = sibling("portable")
        names = b"".join(os.fsencode(path) + b"\0" for path in self.rules)
        words = self.git("check-attr", "-z", "--stdin", "filter", data=names).split(b"\0")
        # A filter of the repository's own stays: two can't follow each other.
        free = [
            p
            for p, value in zip(words[0::3], words[2::3], strict=False)
            if value in (b"unspecified", b"unset")
        ]
        kept = {os.fsdecode(path): self.rules[os.fsdecode(path)] for path in free}
        kept = {path: rules for path, rules in kept.items() if self._rewrite(path, rules, portable)}
        if not kept:
            return
        lines = "".join(f"/{path} filter={portable.FILTER}\n" for path in kept)
        self.tree.write(b".git/info/attributes", 0o644, Stream.of(lines.encode()))
        self.tree.write(portable.RULES, 0o644, Stream.of(json.dumps(kept).encode()))
        rules = shlex.quote(os.path.join(top, os.fsdecode(portable.RULES)))
        command = f"/usr/bin/python3 -I -S {shlex.quote(portable.__file__)}"
        self.configure(
            [
                ("filter", portable.FILTER, "clean", f"{command} clean {rules} %f"),
                ("filter", portable.FILTER, "smudge", f"{command} smudge {rules} %f"),
            ]
        )
        # git takes another size for a change, whatever a filter makes of the file: let it forget the size.
        known = [os.fsencode(path) for path in kept if os.fsencode(path) not in self.intended]
        staged = self.git("ls-files", "--stage", "-z", "--", *map(os.fsdecode, known)) if known else b""
        self.git("update-index", "-z", "--index-info", data=staged)
        self.git("update-index", "-q", "--refresh")

    def _rewrite(self, path: str, rules: list[Json], portable: Any) -> bool:
        """Rewrite one file; False when it is none or says nothing of it."""
        try:
            parent, name = self.tree.parent(os.fsencode(path), make=None)
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except OSError:
            return False
        with open(fd, "rb") as file:
            mode = os.fstat(fd).st_mode
            data = file.read(portable.LIMIT + 1) if stat.S_ISREG(mode) else b""
        inside = portable.replaced(data, rules)
        if len(data) > portable.LIMIT or inside == data:
            return False
        return self.tree.write(os.fsencode(path), mode & 0o777, Stream.of(inside))


class Unpacker:
    """The whole stream: files for the home, then the units."""

    def __init__(self, workspace: bytes, stream: Stream) -> None:
        self.workspace = workspace
        self.stream = stream
        self.units: list[Unit] = []
        self.made = False

    def run(self) -> None:
        """Unpack to the ``end`` record."""
        while True:
            record = self.stream.next()
            kind = record["type"]
            if kind == "end":
                break
            if kind == "home" and not self.units:
                self._home(record)
            elif kind == "unit":
                self._begin(record)
            elif self.units:
                self.units[-1].apply(record, self.stream)
            else:
                raise UnpackError(f"unexpected record: {kind[:40]!r}")
        if self.units:
            self.units[-1].finish()

    def _home(self, record: Json) -> None:
        home = Tree(os.fsencode(os.environ["HOME"]))
        path = base64.b64decode(record["path"])
        try:
            if record["keep"] and home.exists(path):
                return
            home.write(path, int(record["mode"], 8) & 0o777, self.stream, make=0o700)
        except OSError as error:
            raise UnpackError(f"{shown(path)} in the home can't be written: {error.strerror}") from error
        finally:
            home.close()

    def _begin(self, record: Json) -> None:
        if self.units:
            self.units[-1].finish()
        else:
            self._claim()
        unit = Unit(self.workspace, record)
        above = [u for u in self.units if not u.path or unit.path.startswith(u.path + b"/")]
        if above:
            owner = max(above, key=lambda u: len(u.path))
            if record["url"]:
                owner.configure([("submodule", record["name"], "url", record["url"])])
            owner.configure([("submodule", record["name"], "active", "true")])
        self.units.append(unit)

    def _claim(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.workspace, 0o755)
        if not stat.S_ISDIR(os.lstat(self.workspace).st_mode) or os.listdir(self.workspace):
            raise OccupiedError("the workspace is not empty")
        self.made = True

    def undo(self) -> None:
        """Empty the directory that was filled halfway."""
        if self.made:
            for name in os.listdir(self.workspace):
                path = os.path.join(self.workspace, name)
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    os.unlink(path)


def sibling(name: str) -> Any:
    """Import another of the root-owned pieces; isolated, python looks for none."""
    import importlib.util  # takes its time, and few repositories need it

    place = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".py")
    spec: Any = importlib.util.spec_from_file_location(name, place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def oid(text: str) -> str:
    """Return an object id, or raise."""
    if not OID.fullmatch(text):
        raise UnpackError("an object id is malformed")
    return text


def quoted(text: str) -> str:
    """Return a value as git's configuration quotes it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def shown(path: bytes) -> str:
    """Return a path for a message, in printable ASCII."""
    return ascii(path)[2:-1][:300]


def main() -> int:
    """Unpack stdin into the directory named."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: unpack.py DIRECTORY\n")
        return 2
    os.umask(0o022)
    unpacker = Unpacker(os.path.abspath(os.fsencode(sys.argv[1])), Stream(sys.stdin.buffer))
    try:
        unpacker.run()
    except (UnpackError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, (KeyError, TypeError, AttributeError)):
            words = f"a record is malformed ({words})"
        sys.stderr.write("unpack: " + words.encode("ascii", "backslashreplace").decode("ascii") + "\n")
        with contextlib.suppress(OSError):
            unpacker.undo()
        return OCCUPIED if isinstance(error, OccupiedError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
