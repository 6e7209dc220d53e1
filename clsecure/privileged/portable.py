"""Inside, as the worker: strings of agent files that read differently in the private copy, and back again.

``portable.py clean|smudge RULES PATH < file`` is the filter of the copy's own git: in the work tree a command
is one that works inside, in every object it is the user's. ``unpack.py`` and ``export.py`` import this file
for the same thing, and the host does to decide on the rules. It only ever replaces whole JSON strings, so
that everything else of a file stays as it is, byte for byte; what is no JSON stays as it is altogether.

A rule is ``{"place": [...], "outside": TOKEN, "inside": TOKEN}``; tokens are JSON strings as they are
written, quotes and all. Places: docs/architecture.md, "Portable files".
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

LIMIT = 4 << 20  # of a file; a larger one stays as it is
DEPTH = 200
FILTER = "clsecure-portable"
RULES = b".git/clsecure-portable.json"
# Comments, too: some who write such files have them, and a quote in one must not lead astray.
TOKENS = re.compile(
    rb'"[^"\\\n]*(?:\\.[^"\\\n]*)*"|[{}\[\]:,]|//[^\n]*|/\*.*?(?:\*/|\Z)|[^\s{}\[\]:,"/]+|/|\s+', re.DOTALL
)
PUNCTUATION = (b"{", b"}", b"[", b"]", b":", b",")

Rule = dict[str, Any]
Place = tuple[str | None, ...]


class Found(NamedTuple):
    """A string of a file: where it stands, what it says, and which bytes it is."""

    place: Place
    value: str
    start: int
    end: int


def place_of(path: Place) -> Place | None:
    """Return the place of a value that may be rewritten; None for every other one.

    :param path: the keys down to the value; None stands for an element of a list.
    """
    if path[:1] == ("mcpServers",) and path[1:2] != (None,) and path[2:] in (("command",), ("args", None)):
        return path[:3]
    if path[:1] == ("hooks",) and path[2:] == (None, "hooks", None, "command"):
        return path[:1]
    return None


class Walk:
    """Where in a JSON text one is; fed token by token."""

    def __init__(self) -> None:
        self.path: list[str | None] = []
        self.key: str | None = None
        self.awaited = False  # a value comes next, not a key

    def punctuation(self, token: bytes) -> None:
        """Take a bracket, a comma or a colon."""
        if token in b"{[":
            self.path.append(None)
            self.awaited = token == b"["
            if len(self.path) > DEPTH:
                raise ValueError("nested too deep")
            return
        if not self.path:
            raise ValueError("not JSON")
        if token in b"}]":
            self.path.pop()
            self.awaited = False
        elif token == b",":
            # In an object a key comes next; a list never had one.
            self.awaited = self.path[-1] is None
        else:
            self.path[-1], self.awaited = self.key, True

    def string(self, token: bytes) -> tuple[Place, str] | None:
        """Take a string; return its place and value when it stands in one."""
        if not self.awaited:
            self.key = json.loads(token)
            return None
        self.awaited = False
        place = place_of(tuple(self.path))
        return None if place is None else (place, json.loads(token))


def strings(data: bytes) -> Iterator[Found]:
    """Find the strings of a JSON text that stand in a place.

    :raises ValueError: it is no such text, as far as that matters here.
    """
    walk, at = Walk(), 0
    while at < len(data):
        match = TOKENS.match(data, at)
        if match is None:
            raise ValueError("not JSON")
        token, start, at = match[0], at, match.end()
        if token[:1] == b'"':
            found = walk.string(token)
            if found is not None:
                yield Found(*found, start, at)
        elif token in PUNCTUATION:
            walk.punctuation(token)


def replaced(data: bytes, rules: Iterable[Rule], *, back: bool = False) -> bytes:
    """Return a file as it reads inside, or with ``back`` as it reads outside; itself when it is no JSON."""
    old, new = ("inside", "outside") if back else ("outside", "inside")
    try:
        wanted = {(tuple(r["place"]), json.loads(r[old])): r[new].encode() for r in rules}
        parts, done = [], 0
        for found in strings(data):
            token = wanted.get((found.place, found.value))
            if token is not None:
                parts += [data[done : found.start], token]
                done = found.end
    except ValueError:
        return data
    return b"".join((*parts, data[done:]))


def taken_back(data: bytes, rules: list[Rule], committed: bytes) -> bytes:
    """Return a file of the work tree without our rewriting.

    :param committed: the file as git has it: what says the same there already is nobody's rewriting.
    """
    try:
        said = {(found.place, found.value) for found in strings(committed)}
    except ValueError:
        said = set()
    return replaced(
        data, [r for r in rules if (tuple(r["place"]), json.loads(r["inside"])) not in said], back=True
    )


def main() -> int:
    """Filter standard input; what can't be done leaves it as it is."""
    direction, file, path = sys.argv[1:]
    data = sys.stdin.buffer.read(LIMIT + 1)
    if len(data) <= LIMIT:
        try:
            with open(file, "rb") as source:
                rules = json.load(source).get(path, [])
            if direction == "smudge":
                inside = replaced(data, rules)
                data = inside if replaced(inside, rules, back=True) == data else data
            elif rules:
                argv = ("git", "--literal-pathspecs", "cat-file", "blob", f":{path}")
                known = subprocess.run(
                    argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
                )
                data = taken_back(data, rules, known.stdout)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            subprocess.SubprocessError,
        ) as error:
            sys.stderr.write(f"clsecure: {file}: {type(error).__name__}\n")
    sys.stdout.buffer.write(data)
    while block := sys.stdin.buffer.read(1 << 20):
        sys.stdout.buffer.write(block)
    return 0


if __name__ == "__main__":
    sys.exit(main())
