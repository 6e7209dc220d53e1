"""A git directory of our own: the only one in which git ever runs here."""

from __future__ import annotations

import os
import subprocess
import time

from clsecure.privileged.exporter.files import ExportError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

    Argument = str | bytes
    Entries = dict[bytes, tuple[bytes, bytes]]  # path → (mode, id)

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
MAX_ENTRIES = 3_000_000


class Scratch:
    """A git directory of our own that reads objects of the agent's store."""

    def __init__(
        self,
        temp: str,
        name: str,
        work_tree: bytes,
        object_format: str,
        objects: bytes | None,
        deadline: float,
    ) -> None:
        self.temp = temp
        self.work_tree = work_tree
        self.format = object_format
        self.deadline = deadline
        self.dir = os.path.join(temp, name)
        self.agent_index = os.path.join(self.dir, "agent-index")
        self.env = {
            "PATH": PATH, "LC_ALL": "C", "HOME": self.dir, "TMPDIR": temp, "GIT_DIR": self.dir,
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

    def entries(self, tree: bytes) -> Entries:
        """path → (mode, id) of a tree; a few objects can stand for more files than there are atoms."""
        found: Entries = {}
        for item in self.stream("ls-tree", "-r", "-z", "--full-tree", tree):
            if len(found) >= MAX_ENTRIES:
                raise ExportError(f"a commit holds more than {MAX_ENTRIES} files")
            meta, path = item.split(b"\t", 1)
            mode, _, object_id = meta.split(b" ")
            found[path] = (mode, object_id)
        return found

    def ignored(self, paths: Iterable[bytes], *flags: str) -> set[bytes]:
        """Those of the paths that the tree's own rules leave out."""
        # check-ignore knows no literal pathspecs; behind "./" no name is taken for a pattern.
        data = nul(b"./" + path for path in paths)
        env = {"GIT_LITERAL_PATHSPECS": "0"}
        return {
            p[2:] for p in self.items("check-ignore", *flags, "-z", "--stdin", data=data, ok=(0, 1), env=env)
        }


def nul(items: Iterable[bytes]) -> bytes:
    """Items as git's -z input."""
    return b"".join(item + b"\0" for item in items)
