"""The whole stream: files for the home, then the units."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import stat
import sys

from clsecure.privileged.unpacker.records import OccupiedError, Stream, UnitRecord, UnpackError, shown
from clsecure.privileged.unpacker.tree import Tree
from clsecure.privileged.unpacker.unit import Unit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.unpacker.records import Json

OCCUPIED = 3


class Unpacker:
    """One stream.

    :param portable: the program that git is given as the filter of portable files.
    """

    def __init__(self, workspace: bytes, stream: Stream, portable: str) -> None:
        self.workspace, self.stream, self.portable = workspace, stream, portable
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
        begun = UnitRecord(record)
        unit = Unit(self.workspace, begun, self.portable)
        above = [u for u in self.units if not u.path or unit.path.startswith(u.path + b"/")]
        if above:
            owner = max(above, key=lambda u: len(u.path)).repository
            if begun.url:
                owner.configure([("submodule", begun.name, "url", begun.url)])
            owner.configure([("submodule", begun.name, "active", "true")])
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


def main(portable: str) -> int:
    """Unpack stdin into the directory named."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: unpack.py DIRECTORY\n")
        return 2
    os.umask(0o022)
    stream = Stream(sys.stdin.buffer)
    unpacker = Unpacker(os.path.abspath(os.fsencode(sys.argv[1])), stream, portable)
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
