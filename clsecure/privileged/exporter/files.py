"""Looks at what the agent left: never through a link, never waiting, never more than so much."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing takes longer to import than some of these modules
    from collections.abc import Iterator


class ExportError(Exception):
    """The work can't be exported; the text says why."""


def text_of(path: bytes) -> str:
    """Bytes as text for messages; the host escapes it again."""
    return path.decode("utf-8", "backslashreplace")[:300]


def kind_of(path: bytes) -> int:
    """The lstat mode of a path, 0 when nothing is there."""
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise ExportError(f"{text_of(path)}: {error.strerror}") from error


def read_regular(path: bytes, limit: int) -> bytes:
    """Content of a regular file, b"" when it is not there. Never follows, never blocks, never more."""
    mode = kind_of(path)
    if mode == 0:
        return b""
    if not stat.S_ISREG(mode):
        raise ExportError(f"{text_of(path)} is not a regular file")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ExportError(f"{text_of(path)} is larger than {limit} bytes")
    return data


def every_entry(top: bytes) -> Iterator[tuple[bytes, os.DirEntry[bytes]]]:
    """(path, DirEntry) of everything below, directories not followed through links."""
    stack = [top]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                found = list(entries)
        except OSError as error:
            raise ExportError(f"{text_of(os.fsencode(error.filename))}: {error.strerror}") from error
        for entry in found:
            yield entry.path, entry
            if entry.is_dir(follow_symlinks=False):
                stack.append(entry.path)


def parents(path: bytes) -> list[bytes]:
    """The directories that hold a path."""
    parts = path.split(b"/")
    return [b"/".join(parts[:i]) for i in range(1, len(parts))]
