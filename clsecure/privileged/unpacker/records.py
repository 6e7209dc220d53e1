"""The stream from the host: records of one line of JSON each, with their bytes behind them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing takes longer to import than some of these modules
    from typing import Any, BinaryIO

    Json = dict[str, Any]

CHUNK = 1 << 20
LINE = 64 * 1024
OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


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


class UnitRecord:
    """What a unit begins with.

    :ivar path: of its work tree, below the workspace; b"" for the top.
    :ivar head: what HEAD names, by way of ``branch`` where there is one.
    :ivar index_tree: what is checked out.
    :ivar lfs: whether objects of git-lfs come along.
    :ivar name: of the submodule; ``url``: where it comes from, as its superproject says.
    """

    def __init__(self, record: Json) -> None:
        self.path = base64.b64decode(record["path"])
        self.head = oid(record["head"])
        self.index_tree = oid(record["index_tree"])
        self.object_format: str = record["object_format"]
        self.branch: str | None = record["branch"]
        self.user_name: str | None = record["user_name"]
        self.user_email: str | None = record["user_email"]
        self.remotes: dict[str, str] = record["remotes"]
        self.hooks_path: str | None = record["hooks_path"]
        self.lfs: bool = record["lfs"]
        self.name: str = record["name"]
        self.url: str | None = record["url"]


def oid(text: str) -> str:
    """Return an object id, or raise."""
    if not OID.fullmatch(text):
        raise UnpackError("an object id is malformed")
    return text


def shown(path: bytes) -> str:
    """Return a path for a message, in printable ASCII."""
    return ascii(path)[2:-1][:300]
