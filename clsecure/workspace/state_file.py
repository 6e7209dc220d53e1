"""The start state on disk, for sessions that are resumed or imported later."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

from clsecure.errors import StateError
from clsecure.model import Rewrite, StartState, StartUnit

_VERSION = 1
_MAX_BYTES = 4 << 20
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def save(state: StartState, file: Path) -> None:
    """Write the start state (0600), all of it or nothing."""
    content = {
        "version": _VERSION,
        "units": [
            {
                "path": _encode(unit.path),
                "name": _encode(os.fsencode(unit.name)),
                "source": _encode(os.fsencode(unit.source)),
                "source_git_dir": _encode(os.fsencode(unit.source_git_dir)),
                "base": _encode(os.fsencode(unit.base)),
                "head": unit.head,
                "branch": None if unit.branch is None else _encode(os.fsencode(unit.branch)),
                "base_tree": unit.base_tree,
                "index_tree": unit.index_tree,
            }
            for unit in state.units
        ],
        "warnings": list(state.warnings),
        "portable": state.rules,
    }
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".state-")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as out:
            json.dump(content, out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).replace(file)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise StateError("The start state can't be written", details=str(error)) from error


def load(file: Path) -> StartState:
    """Read a start state.

    :raises StateError: it is missing, too large or not what :func:`save` writes.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as source:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("not a regular file")
            data = source.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError("too large")
        return _parse(json.loads(data))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StateError("The start state of the session can't be read", details=str(error)) from error


def _parse(content: Any) -> StartState:  # noqa: ANN401  # JSON
    if content["version"] != _VERSION:
        raise ValueError("of another version")
    units = tuple(_unit(item) for item in content["units"])
    if not units or units[0].path != b"" or any(not unit.path for unit in units[1:]):
        raise ValueError("no top repository")
    return StartState(
        units=units,
        warnings=tuple(str(text) for text in content["warnings"]),
        # Sessions of older versions have none.
        portable={
            str(path): tuple(_rewrite(item) for item in items)
            for path, items in content.get("portable", {}).items()
        },
    )


def _rewrite(item: dict[str, Any]) -> Rewrite:
    place, outside, inside = item["place"], item["outside"], item["inside"]
    if not isinstance(place, list) or not all(isinstance(text, str) for text in (*place, outside, inside)):
        raise ValueError("a rewritten string")
    return Rewrite(place=tuple(place), outside=outside, inside=inside)


def _unit(item: dict[str, Any]) -> StartUnit:
    path = _decode(item["path"])
    if path and any(part in {b"", b".", b".."} for part in path.split(b"/")):
        raise ValueError("path of a unit")
    return StartUnit(
        path=path,
        name=os.fsdecode(_decode(item["name"])),
        source=_path(item["source"]),
        source_git_dir=_path(item["source_git_dir"]),
        base=_path(item["base"]),
        head=_oid(item["head"]),
        branch=None if item["branch"] is None else os.fsdecode(_decode(item["branch"])),
        base_tree=_oid(item["base_tree"]),
        index_tree=_oid(item["index_tree"]),
    )


def _oid(text: Any) -> str:  # noqa: ANN401  # JSON
    if not isinstance(text, str) or not _OID.fullmatch(text):
        raise ValueError("an object id")
    return text


def _path(text: Any) -> Path:  # noqa: ANN401  # JSON
    path = Path(os.fsdecode(_decode(text)))
    if not path.is_absolute() or "\0" in str(path):
        raise ValueError("a path")
    return path


def _encode(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def _decode(text: Any) -> bytes:  # noqa: ANN401  # JSON
    return b64decode(text, validate=True)
