"""What the host asks for: one JSON line. It is trusted; what it names in the workspace is not."""

from __future__ import annotations

import base64
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]


class UnitRequest:
    """One repository that was cloned in.

    :ivar path: of its work tree, below the workspace; b"" for the top.
    :ivar head: the commit that was cloned in.
    :ivar base_tree: the files as they were cloned in; b"" when it is not known.
    :ivar children: the units below it, relative to it.
    :ivar rules: of its portable files, by path.
    """

    def __init__(self, spec: Json, paths: list[bytes], rules: dict[str, list[Json]]) -> None:
        self.path = base64.b64decode(spec["path"])
        self.head: bytes = spec["head"].encode("ascii")
        self.base_tree: bytes = (spec.get("base_tree") or "").encode("ascii")
        self.format: str = spec["object_format"]
        self.children = {p[len(self.prefix) :] for p in paths if p != self.path and p.startswith(self.prefix)}
        self.rules = {} if self.path else {os.fsencode(path): wanted for path, wanted in rules.items()}

    @property
    def prefix(self) -> bytes:
        """What the paths of its files begin with, below the workspace."""
        return self.path + b"/" if self.path else b""


class Request:
    """One export.

    :ivar message: of the commit for uncommitted work, like ``author``.
    :ivar most_refused: of what can't come home, so much is named.
    :ivar temp: a directory with room for what is new.
    :ivar seconds: it may take.
    """

    def __init__(self, line: Json) -> None:
        self.workspace = os.fsencode(line["workspace"])
        paths = [base64.b64decode(spec["path"]) for spec in line["units"]]
        rules = line.get("portable", {})
        self.units = [UnitRequest(spec, paths, rules) for spec in line["units"]]
        self.message: str = line["message"]
        self.author = b"%s <%s>" % (ident(line, "author_name"), ident(line, "author_email"))
        self.most_refused: int = line.get("max_refused", 1000)
        self.temp: str | None = line.get("temp")
        self.seconds = float(line.get("deadline_s", 600))


def ident(line: Json, key: str) -> bytes:
    """A name or address that can't break a commit's header."""
    kept = "".join(c for c in str(line.get(key) or "") if c not in "<>\0\r\n").strip()
    return kept.encode("utf-8", "replace") or b"clsecure"
