"""What of the user's ``~/.claude`` a session gets: instructions and preferences, no state, no credentials."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from clsecure.agents.claude_settings import filter_settings, session_settings, session_state
from clsecure.agents.request import AgentHome, HomeRequest
from clsecure.agents.tree import Limits, TreeReader
from clsecure.model import HomeFile

TREES = ("agents", "commands", "output-styles", "rules", "skills", "themes")
"""Directories of ``~/.claude`` that hold what the user wrote for Claude to read."""

_INSTRUCTIONS = "CLAUDE.md"
_SETTINGS = "settings.json"
_KEYS = "keybindings.json"
_STATE = ".claude.json"
_CONFIG = PurePosixPath(".claude")

_MAX_JSON = 16 << 20
_MAX_REWRITTEN = 1 << 20
_MAX_IMPORTS = 50

# An import in CLAUDE.md, as far as it names another text at the top of ~/.claude.
_IMPORT = re.compile(rb"(?:^|\s)@(?:\./|~/\.claude/)?([A-Za-z0-9][A-Za-z0-9._-]{0,100}\.md)\b", re.MULTILINE)


def collect(request: HomeRequest) -> AgentHome:
    """Return the files of the worker's home, and what was left out.

    ``settings.json`` and the user's texts are written at each start: the sandbox decides anew, and what an
    earlier session made of them is gone. ``.claude.json`` is kept where it exists: it holds the state that
    ``claude --continue`` goes on with.
    """
    config, state_file = _places(request)
    left_out: list[str] = []
    settings = filter_settings(_json_below(config, _SETTINGS, left_out))
    left_out += settings.left_out
    state = session_state(
        _json_below(state_file.parent, state_file.name, left_out),
        workspace=request.workspace,
        version=request.version,
    )
    rewrite = _Rewriter(old=request.user_home, new=request.worker_home)
    files = [
        HomeFile(
            path=_CONFIG / _SETTINGS,
            mode=0o600,
            data=rewrite(_dump(session_settings(settings.values))),
        ),
        HomeFile(path=PurePosixPath(_STATE), mode=0o600, data=_dump(state), keep=True),
    ]
    files += _keybindings(config, left_out)
    files += _texts(config, rewrite, left_out)
    return AgentHome(files=tuple(files), left_out=tuple(left_out))


def home_files(
    user_home: Path,
    *,
    worker_home: PurePosixPath,
    workspace: PurePosixPath,
    environ: Mapping[str, str] | None = None,
    version: str | None = None,
) -> list[HomeFile]:
    """Return the files alone; see :func:`collect`."""
    request = HomeRequest(
        user_home=user_home,
        worker_home=worker_home,
        workspace=workspace,
        environ=environ or {},
        version=version,
    )
    return list(collect(request).files)


def _places(request: HomeRequest) -> tuple[Path, Path]:
    """Return the user's settings directory and state file; CLAUDE_CONFIG_DIR moves both."""
    moved = request.environ.get("CLAUDE_CONFIG_DIR", "")
    if moved.startswith("/"):
        return Path(moved), Path(moved) / _STATE
    return request.user_home / _CONFIG, request.user_home / _STATE


def _json_below(directory: Path, name: str, left_out: list[str]) -> dict[str, Any]:
    """Return an object from a file, empty when the file is missing or is none."""
    reader = TreeReader(
        root=directory, allowed=frozenset({name}), limits=Limits(max_file=_MAX_JSON, max_total=_MAX_JSON)
    )
    data = reader.read(name)
    left_out += reader.left_out
    if data is None:
        return {}
    value = _parse(data)
    if not isinstance(value, dict):
        left_out.append(f"{name}: not a JSON object")
        return {}
    return value


def _keybindings(config: Path, left_out: list[str]) -> list[HomeFile]:
    reader = TreeReader(root=config, allowed=frozenset({_KEYS}))
    data = reader.read(_KEYS, max_bytes=64 << 10)
    left_out += reader.left_out
    if data is None or not isinstance(_parse(data), dict):
        return []
    return [HomeFile(path=_CONFIG / _KEYS, mode=0o600, data=data)]


def _texts(config: Path, rewrite: _Rewriter, left_out: list[str]) -> list[HomeFile]:
    names, instructions = _instructions(config, left_out)
    reader = TreeReader(root=config, allowed=frozenset({*TREES, *names}))
    found = [
        HomeFile(
            path=_CONFIG / file.path,
            mode=0o700 if file.executable else 0o600,
            data=rewrite(file.data),
        )
        for tree in TREES
        for file in reader.walk(tree)
        if _plain(file.path)
    ]
    left_out += reader.left_out
    top = [
        HomeFile(path=_CONFIG / name, mode=0o600, data=rewrite(data)) for name, data in instructions.items()
    ]
    return top + found


def _instructions(config: Path, left_out: list[str]) -> tuple[frozenset[str], dict[str, bytes]]:
    """Return CLAUDE.md and the texts beside it that it imports."""
    found: dict[str, bytes] = {}
    waiting = [_INSTRUCTIONS]
    names = {_INSTRUCTIONS}
    while waiting and len(found) < _MAX_IMPORTS:
        name = waiting.pop(0)
        # Judged one by one: an import must not open a way for a link to a text that nobody imported.
        reader = TreeReader(root=config, allowed=frozenset({name, *TREES}))
        data = reader.read(name)
        left_out += reader.left_out
        if data is None:
            continue
        found[name] = data
        for match in _IMPORT.finditer(data[:_MAX_REWRITTEN]):
            imported = match.group(1).decode("ascii")
            if imported not in names:
                names.add(imported)
                waiting.append(imported)
    return frozenset(found), found


def _plain(path: PurePosixPath) -> bool:
    """A name that can be written and printed; surrogates stand for bytes that are no text."""
    return all(part.isprintable() and len(os.fsencode(part)) <= 255 for part in path.parts)


def _parse(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _dump(value: object) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


class _Rewriter:
    """Makes paths below the user's home point into the worker's."""

    def __init__(self, *, old: Path, new: PurePosixPath) -> None:
        self._new = os.fsencode(str(new))
        self._pattern: re.Pattern[bytes] | None = None
        # Not below the root: each absolute path would be rewritten.
        if len(old.parts) > 1:
            # Whole components only: /home/al is no part of /home/alice, nor of /mnt/home/al.
            self._pattern = re.compile(
                rb"(?<![A-Za-z0-9._~-])" + re.escape(os.fsencode(old)) + rb"(?![A-Za-z0-9_~-]|\.[A-Za-z0-9])"
            )

    def __call__(self, data: bytes) -> bytes:
        if self._pattern is None or len(data) > _MAX_REWRITTEN or b"\0" in data:
            return data
        return self._pattern.sub(lambda _: self._new, data)
