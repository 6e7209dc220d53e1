"""What a .gitmodules of the agent may say. ``git submodule update`` runs commands and leaves directories."""

from __future__ import annotations

import re
import tempfile

from clsecure.errors import ImportRejectedError
from clsecure.git import Git
from clsecure.importer.bounded import Bounds, output
from clsecure.terminal import escape

MAX_FILE = 1 << 20
_TRANSPORT = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9+.-]*::")


def refuse_module(key: str, value: str) -> str | None:
    """Say why one setting can't come home, None when it can. ``key`` is lower-cased but for its middle."""
    section, _, rest = key.partition(".")
    name, _, variable = rest.rpartition(".")
    if section != "submodule" or not name:
        return None
    if ".." in re.split(r"[/\\]", name):
        return "a name that leaves the directory of submodules"
    if _control(name) or _control(value):
        return "a control character"
    match variable:
        case "path":
            if value.startswith(("-", "/")) or ".." in re.split(r"[/\\]", value):
                return "a path that leaves the work tree"
        case "url":
            if value.startswith("-") or _TRANSPORT.match(value):
                return "a URL that runs a program"
        case "update":
            if value.lower() not in ("checkout", "rebase", "merge", "none"):
                return "an update command"
        case _:
            return None
    return None


def check_gitmodules(git: Git, content: bytes, *, bounds: Bounds) -> None:
    """Judge one file.

    :raises ImportRejectedError: a setting would run something or lead out of the work tree, or the file is
        too large. A file that git can't parse has no effect and passes.
    """
    if len(content) > MAX_FILE:
        raise ImportRejectedError("a .gitmodules of the agent's work is larger than 1 MiB")
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        try:
            listing = output(
                git, "config", "--file", "-", "--no-includes", "--list", "-z",
                bounds=bounds, max_bytes=4 * MAX_FILE, stdin=file,
            )  # fmt: skip
        except ImportRejectedError as error:
            raise ImportRejectedError(
                "a .gitmodules of the agent's work can't be read", details=error.details
            ) from error
    for item in listing.split(b"\0"):
        key, _, value = item.decode("utf-8", "surrogateescape").partition("\n")
        why = refuse_module(key, value)
        if why is not None:
            raise ImportRejectedError(
                "a .gitmodules of the agent's work is refused",
                details=f"{escape(key)} = {escape(value)}: {why}",
                resolution="Let the agent correct it (in every commit), then import again",
            )


def _control(text: str) -> bool:
    return any(ord(c) < 0x20 or ord(c) == 0x7F for c in text)
