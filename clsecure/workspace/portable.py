"""Agent files made portable: what names places that are not there inside, and what stands there instead.

Decided here on what was cloned in, by text and a look at whether a program exists; written inside by
``unpack.py``, taken back by the copy's own git and by ``export.py`` (docs/architecture.md, "Portable files").
The files come with the repository: hostile, bounded, and nothing of them is executed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from clsecure.git import Git
from clsecure.model import Rewrite, StartState
from clsecure.privileged.portable import Found, replaced, strings

MCP_FILE = ".mcp.json"
HOOK_FILES = (".claude/settings.json", ".claude/settings.local.json")

_MAX_FILE = 1 << 20
_MAX_RULES = 100_000
_MAX_SERVERS = 100
_MAX_PATH = 4096

_PROGRAM = re.compile(
    r"python(?:3(?:\.\d+)?)?|pip3?|pipx|uvx?|poetry|node|nodejs|np[mx]|pnp[mx]|yarn|corepack|bunx?|deno|tsx"
    r"|ts-node|go|ruby|gem|bundler?|cargo|java|dotnet|php|docker|podman"
)
"""What is the same program wherever it lies."""

_MANAGERS = frozenset(
    {
        ".nvm", ".asdf", ".volta", ".pyenv", ".rbenv", ".nodenv", ".goenv", ".jenv", ".fnm", ".bun", ".deno",
        ".cargo", ".rye", ".pixi", ".proto", ".sdkman", ".linuxbrew", ".n", ".mise", "nvm", "asdf", "volta",
        "pyenv", "mise", "rtx", "fnm", "fnm_multishells", "pnpm", "linuxbrew", "homebrew", "Homebrew",
        "Cellar", "miniconda3", "anaconda3", "miniforge3", "mambaforge",
    }
)  # fmt: skip
"""Directories of what installs programs per user, or for machines that are not this one."""

_PERSONAL = re.compile(r"(?:/home/[^/]+|/Users/[^/]+|/root)/(?:\.local/)?bin/[^/]+")
_ELSEWHERE = frozenset({"/usr/local/bin", "/opt/local/bin"})
"""Where other machines (Homebrew on Intel) have what this one may have in /usr/bin."""

_NEXT_BEST = {"python": "python3", "pip": "pip3"}
_HOMES = ("${HOME}/", "$HOME/", "~/")

_PLAIN = r"[A-Za-z0-9_@%+=:,./-]"
_HOOK = re.compile(
    rf"(?P<before>\s*(?:[A-Za-z_][A-Za-z0-9_]*={_PLAIN}*\s+)*"
    r"(?:(?:exec|(?:ba|da|k|z)?sh|node|bun|python3?|ruby|perl|php)\s+)?)"
    r"(?P<quote>[\"']?)\./(?P<rest>.*)",
    re.DOTALL,
)
"""A command whose program, or an interpreter's script, begins with ``./``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """What the session will find where, as far as the host can tell.

    :param home: the user's, which is not there inside.
    :param project: the user's work tree; below it nothing is taken for a tool of theirs.
    :param workspace: the work tree inside.
    :param places: directories inside, with what of the host is seen there.
    :param path: the PATH inside.
    :param given: programs that are there besides.
    """

    home: Path
    project: Path
    workspace: PurePosixPath
    places: Mapping[PurePosixPath, Path]
    path: tuple[PurePosixPath, ...]
    given: frozenset[str] = frozenset()

    def exists(self, path: PurePosixPath) -> bool:
        """Tell whether a program of the host's is there under this path."""
        # Not path.parents: of a path with 100,000 parts, as a repository may write it, they fill the memory.
        place = max(filter(path.is_relative_to, self.places), key=lambda each: len(each.parts), default=None)
        if place is None or ".." in path.parts:
            return False
        found = self.places[place] / path.relative_to(place)
        # Not Path.is_file(): it raises for names that no file can have.
        return os.path.isfile(found) and os.access(found, os.X_OK)  # noqa: PTH113

    def has(self, name: str) -> bool:
        """Tell whether a program of this name is on the PATH."""
        return name in self.given or any(self.exists(directory / name) for directory in self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """An MCP server that the repository configures, started by a command; hostile text."""

    name: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Portable:
    """What came of looking through the agent files.

    :param rewrites: per path; only files in which something is rewritten.
    :param servers: as they are configured inside.
    """

    rewrites: Mapping[str, tuple[Rewrite, ...]] = field(default_factory=dict)
    servers: tuple[Server, ...] = ()


def look(state: StartState, inside: Inside) -> Portable:
    """Look through the agent files of what was cloned in."""
    top = state.top
    names = [name for name in (MCP_FILE, *HOOK_FILES) if os.path.lexists(top.source / name)]
    files = _read(Git(git_dir=top.base), top.base_tree, names) if names else {}
    rewrites: dict[str, tuple[Rewrite, ...]] = {}
    servers: tuple[Server, ...] = ()
    for name, data in files.items():
        found = mcp_rewrites(data, inside) if name == MCP_FILE else hook_rewrites(data, inside.workspace)
        if found:
            rewrites[name] = found
        if name == MCP_FILE:
            servers = _servers(replaced(data, [each.rule for each in found]))
    return Portable(rewrites=rewrites, servers=servers)


def mcp_rewrites(data: bytes, inside: Inside) -> tuple[Rewrite, ...]:
    """Return what is rewritten in a ``.mcp.json``: programs that lie in somebody's own tool directories."""
    return _rewrites(data, "mcpServers", lambda value: portable_program(value, inside))


def hook_rewrites(data: bytes, workspace: PurePosixPath) -> tuple[Rewrite, ...]:
    """Return what is rewritten in Claude's settings: hooks that start a script of the work tree by ``./``."""
    return _rewrites(data, "hooks", lambda value: absolute_hook(value, workspace))


def portable_program(command: str, inside: Inside) -> str | None:
    """Return the command that is the same program inside, None where there is nothing to change."""
    if len(command) > _MAX_PATH:
        return None
    start = next((home for home in _HOMES if command.startswith(home)), None)
    path = PurePosixPath(inside.home, command[len(start) :]) if start else PurePosixPath(command)
    if not path.is_absolute() or ".." in path.parts or not _PROGRAM.fullmatch(path.name):
        return None
    if path.is_relative_to(inside.project) or (start is None and inside.exists(path)):
        return None
    personal = _PERSONAL.fullmatch(str(path)) or path.parent in (
        PurePosixPath(inside.home, "bin"),
        PurePosixPath(inside.home, ".local/bin"),
    )
    if not personal and str(path.parent) not in _ELSEWHERE and _MANAGERS.isdisjoint(path.parts):
        return None
    names = (path.name, _NEXT_BEST.get(path.name, path.name))
    return next((name for name in names if inside.has(name)), path.name)


def absolute_hook(command: str, workspace: PurePosixPath) -> str | None:
    """Return a hook's command that works from every directory, None where there is nothing to change."""
    match = _HOOK.fullmatch(command)
    if match is None:
        return None
    place = shlex.quote(str(workspace))
    if match["quote"] and place != str(workspace):
        return None
    return f"{match['before']}{match['quote']}{place}/{match['rest']}"


def _rewrites(data: bytes, what: str, change: Callable[[str], str | None]) -> tuple[Rewrite, ...]:
    """Return the rewrites of one file: none at all unless the file is found again, byte for byte."""
    try:
        before = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique)
        found = [each for each in strings(data) if each.place[0] == what]
    except (ValueError, RecursionError):
        return ()
    there = {(each.place, each.value) for each in found}
    made: dict[tuple[tuple[str | None, ...], str], Rewrite] = {}
    for each in found:
        value = change(each.value)
        # Who says the same beside it would be taken back with it.
        if value is None or value == each.value or (each.place, value) in there:
            continue
        token = data[each.start : each.end].decode()
        new = json.dumps(value, ensure_ascii=not _is_text(value))
        made.setdefault((each.place, value), Rewrite(place=_place(each), outside=token, inside=new))
    rewrites = tuple(made.values())
    rules = [each.rule for each in rewrites]
    after = replaced(data, rules)
    if len(json.dumps(rules)) > _MAX_RULES or replaced(after, rules, back=True) != data:
        return ()
    values = {(each.place, json.loads(each.outside)): json.loads(each.inside) for each in rewrites}
    if json.loads(after.decode("utf-8-sig")) != _changed(before, (), values):
        return ()
    return rewrites


def _place(found: Found) -> tuple[str, ...]:
    return tuple(part for part in found.place if part is not None)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key is there twice")
    return content


def _changed(value: Any, path: tuple[str | None, ...], values: Mapping[Any, str]) -> Any:  # noqa: ANN401  # JSON
    """Return a document with the values changed: what the file must say, found without its text."""
    from clsecure.privileged.portable import place_of

    if isinstance(value, dict):
        return {key: _changed(item, (*path, key), values) for key, item in value.items()}
    if isinstance(value, list):
        return [_changed(item, (*path, None), values) for item in value]
    if isinstance(value, str):
        return values.get((place_of(path), value), value)
    return value


def _read(git: Git, tree: str, names: list[str]) -> dict[str, bytes]:
    """Return those of the files that the tree has as files, of a size to read."""
    wanted = []
    for line in git.out("ls-tree", "-l", "-z", tree, "--", *names).split(b"\0")[:-1]:
        meta, _, name = line.partition(b"\t")
        mode, _, oid, size = meta.split()
        if mode.startswith(b"100") and int(size) <= _MAX_FILE:
            wanted.append((name.decode("ascii"), oid.decode("ascii")))
    return {name: git.out("cat-file", "blob", oid) for name, oid in wanted}


def _servers(data: bytes) -> tuple[Server, ...]:
    try:
        servers = json.loads(data.decode("utf-8-sig")).get("mcpServers", {})
        return tuple(
            Server(name=name, command=server["command"])
            for name, server in list(servers.items())[:_MAX_SERVERS]
            if isinstance(server, dict) and isinstance(server.get("command"), str)
        )
    except (ValueError, AttributeError, RecursionError):
        return ()
