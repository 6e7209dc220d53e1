"""Configuration files of tools: regular, bounded, and never quoted, since they hold passwords."""

from __future__ import annotations

import configparser
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from clsecure.egress.presets.urls import BY_HAND
from clsecure.errors import EgressError

MAX_BYTES = 1 << 20
_MAX_ENTRIES = 1000


def read_text(path: Path) -> str | None:
    """Return a file's text, None when there is none.

    :raises EgressError: it is no regular file of UTF-8 text, too large, or can't be read.
    """
    try:
        # Links are followed, as the tool does (dotfile managers make them); a FIFO does not hold us.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error.strerror or "can't be opened") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise unreadable(path, "it is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error.strerror or "can't be read") from None
    finally:
        os.close(descriptor)
    if len(data) > MAX_BYTES:
        raise unreadable(path, f"it is larger than {MAX_BYTES >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise unreadable(path, "it is not UTF-8") from None
    if "\0" in text:
        raise unreadable(path, "it has a NUL byte")
    return text


def unreadable(path: Path, why: str) -> EgressError:
    """Return the error of a configuration file that can't be used."""
    return EgressError(f"{path} can't be used: {why}", resolution=BY_HAND)


def read_toml(path: Path) -> dict[str, Any] | None:
    """Return a TOML file, None when there is none.

    :raises EgressError: see :func:`read_text`, or it is malformed.
    """
    text = read_text(path)
    if text is None:
        return None
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        raise unreadable(path, "it is malformed") from None


def read_ini(path: Path, *, section: str | None = None) -> configparser.RawConfigParser | None:
    """Return an INI file, None when there is none.

    :param section: what to call the first lines, for npm's kind of file, where they belong to none.
    :raises EgressError: see :func:`read_text`, or it is malformed.
    """
    text = read_text(path)
    if text is None:
        return None
    if section is None:
        parser = configparser.RawConfigParser(strict=False)
    else:
        # As npm has it: no section, repeated keys, and an indented line goes on with nothing.
        parser = configparser.RawConfigParser(
            delimiters=("=",), comment_prefixes=("#", ";"), strict=False, allow_no_value=True
        )
        text = "\n".join([f"[{section}]", *(line.strip() for line in re.split(r"[\r\n]+", text))])
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    try:
        parser.read_string(text)
    except configparser.Error:
        raise unreadable(path, "it is malformed") from None
    return parser


def is_inside(path: Path, repository: Path | None) -> bool:
    """Tell whether a path leads into the repository, by its name or by its links."""
    if repository is None:
        return False
    real = Path(os.path.realpath(repository))
    return path.is_relative_to(repository) or Path(os.path.realpath(path)).is_relative_to(real)


def entries(directory: Path, pattern: str) -> list[Path]:
    """Return the matching entries of a directory, sorted; none when there is no such directory.

    :raises EgressError: there are more than anybody has.
    """
    found: list[Path] = []
    for path in directory.glob(pattern):
        found.append(path)
        if len(found) > _MAX_ENTRIES:
            raise EgressError(f"{directory} holds too many files", resolution=BY_HAND)
    return sorted(found)
