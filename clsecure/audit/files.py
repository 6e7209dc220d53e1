"""Private files of the user's state directory: read bounded and without following links, written whole."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from clsecure.errors import StateError


def make_directory(path: Path) -> None:
    """Make a directory that only the user enters; one that is there must be a directory of the user's.

    :raises StateError: it is not, or can't be made.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        facts = path.lstat()
    except OSError as error:
        raise StateError(f"{path} can't be made", details=error.strerror) from error
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        raise StateError(f"{path} is not a directory of yours", resolution=f"look at it, then: rm {path}")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file of the user's for reading.

    :raises FileNotFoundError: there is none.
    :raises StateError: it is something else, or somebody else's.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StateError(f"{path} can't be read", details=error.strerror) from error
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
        os.close(fd)
        raise StateError(f"{path} is not a regular file of yours")
    return os.fdopen(fd, "rb")


def read(path: Path, *, most: int) -> bytes:
    """Return what a regular file of the user's holds.

    :raises FileNotFoundError: there is none.
    :raises StateError: it is something else, somebody else's, or larger than ``most`` bytes.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise StateError(f"{path} is larger than {most} bytes")
    return data


def write(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a file whole or not at all, on the disk when this returns; only the user may read it.

    What stands there is replaced as a name, never written through.

    :param replace: False leaves a file alone that is there already.
    :raises StateError: it can't be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.rename(path)
            else:
                with suppress(FileExistsError):
                    os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise StateError(f"{path} can't be written", details=error.strerror) from error


def touch(path: Path) -> None:
    """Make an empty private file where there is none.

    :raises StateError: what is there is no regular file of the user's.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise StateError(f"{path} can't be written", details=error.strerror) from error
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
            raise StateError(f"{path} is not a regular file of yours", resolution=f"rm {path}")
    finally:
        os.close(fd)
