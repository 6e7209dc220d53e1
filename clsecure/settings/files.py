"""Reading settings files, bounded and without surprises, and the lines of the flat ones.

Errors name file and line, never what stands there: a file may be a link to a secret.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from clsecure.errors import UsageError
from clsecure.settings import keys

MAX_FILE_BYTES = 64 * 1024
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""Non-blocking, or a FIFO would hold us here for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One value as it was written, and its line."""

    text: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One key of a file.

    :param written: the key as it stands there.
    :param key: the key of the model that is meant, None when there is none.
    :param texts: its value, one for each item where it is a list.
    :param items: each text is one item of a list: commas in it do not part it further.
    :param wrong: why the value can't be one of this key, None when it may be.
    :param ceiling: it stands under ``[enforce]``.
    :param table: what the one table of several with this key says, already read.
    """

    written: str
    key: str | None
    line: int
    texts: tuple[Text, ...] = ()
    items: bool = False
    wrong: str | None = None
    ceiling: bool = False
    table: object = None


def read_own(path: Path) -> bytes:
    """Read a file of the user's.

    :raises UsageError: not a regular file that the user owns, too large, or everybody may write to it.
    """
    try:
        fd = os.open(path, _OPEN)
    except OSError as error:
        raise unusable(path, error.strerror or "can't be opened") from error
    try:
        facts = os.fstat(fd)
        # Dotfile managers make it a link, so links are followed, but never to what somebody else keeps from
        # others (a tool that may run with more rights must not become a way to read it).
        if stat.S_ISREG(facts.st_mode):
            if facts.st_uid != os.geteuid() and not (facts.st_uid == 0 and facts.st_mode & stat.S_IROTH):
                raise unusable(path, "it belongs to somebody else")
            if facts.st_mode & stat.S_IWOTH:
                raise unusable(path, "everybody may write to it", resolution=f"chmod o-w {path}")
        return _read(fd, path)
    finally:
        os.close(fd)


def read_system(path: Path) -> bytes | None:
    """Read a file of the machine's; None when there is none.

    :raises UsageError: something stands there that only root could have meant and that can't be read, or that
        others than root can change: a ceiling must never be passed over.
    """
    directory = path.parent
    try:
        fd = os.open(path, _OPEN | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable(path, error.strerror or "can't be opened", resolution=_ASK_ROOT) from error
    try:
        for what, facts in ((directory, directory.stat()), (path, os.fstat(fd))):
            if facts.st_uid != SYSTEM_OWNER or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise unusable(path, f"others than root can change {what}", resolution=_ASK_ROOT)
        return _read(fd, path)
    finally:
        os.close(fd)


SYSTEM_OWNER = 0
_ASK_ROOT = "an administrator can correct it"


def read_below(top: Path, directory: str, name: str) -> bytes | None:
    """Read a file that came with a repository: nothing below ``top`` is followed; None when there is none.

    :raises UsageError: something stands there that can't be read as a settings file.
    """
    place = top / directory
    path = place / name
    top_fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        place_fd = os.open(
            directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top_fd
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable(place, "it is no directory of the repository's own") from error
    finally:
        os.close(top_fd)
    try:
        fd = os.open(name, _OPEN | os.O_NOFOLLOW, dir_fd=place_fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable(path, "it is a link, or can't be opened") from error
    finally:
        os.close(place_fd)
    try:
        return _read(fd, path)
    finally:
        os.close(fd)


def decode(data: bytes, path: Path) -> str:
    """Return the text of a settings file.

    :raises UsageError: it holds a NUL byte or is not UTF-8.
    """
    if b"\0" in data:
        raise line_error(path, data[: data.index(b"\0")].count(b"\n") + 1, "a NUL byte")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise line_error(path, data[: error.start].count(b"\n") + 1, "not UTF-8") from None


def flat(data: bytes, path: Path) -> list[Assignment]:
    """Return what lines of ``key = value`` say.

    :raises UsageError: see :func:`decode`; a line that is no assignment.
    """
    found = []
    for number, line in enumerate(decode(data, path).split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        written, equals, value = (part.strip() for part in stripped.partition("="))
        if not equals or not keys.FORM.fullmatch(written):
            raise line_error(path, number, "not a line of the form 'key = value'")
        text = Text(text=_unquote(value, path, number), line=number)
        found.append(Assignment(written=written, key=keys.canonical(written), line=number, texts=(text,)))
    return found


def unusable(path: Path, why: str, *, resolution: str | None = None) -> UsageError:
    """Return the error of a file that can't be read at all."""
    return UsageError(
        f"the settings file {path} can't be used: {why}",
        resolution=resolution or "put a plain file of settings there, or remove it",
    )


def line_error(path: Path, line: int, why: str, *, resolution: str | None = None) -> UsageError:
    """Return the error of one line."""
    return UsageError(f"{path}:{line}: {why}", resolution=resolution or f"correct line {line} of {path}")


def _unquote(value: str, path: Path, number: int) -> str:
    if value[:1] in {'"', "'"}:
        end = value.find(value[0], 1)
        rest = value[end + 1 :].strip()
        if end < 0 or (rest and not rest.startswith("#")):
            raise line_error(path, number, "the quotes do not close")
        return value[1:end]
    comment = re.search(r"(?:^|\s)#", value)
    return value[: comment.start()].rstrip() if comment else value


def _read(fd: int, path: Path) -> bytes:
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise unusable(path, "not a regular file")
        if facts.st_size > MAX_FILE_BYTES:
            raise unusable(path, f"larger than {MAX_FILE_BYTES // 1024} KiB")
        data = b""
        while len(data) <= MAX_FILE_BYTES and (chunk := os.read(fd, MAX_FILE_BYTES + 1 - len(data))):
            data += chunk
    except OSError as error:
        raise unusable(path, error.strerror or "can't be read") from error
    if len(data) > MAX_FILE_BYTES:
        raise unusable(path, f"larger than {MAX_FILE_BYTES // 1024} KiB")
    return data
