"""The sha256 and the version of an agent's program, remembered by what identifies the file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clsecure.errors import AgentError

_FILE = "agents.json"
_MAX_BYTES = 64 << 10
_MAX_ENTRIES = 32
MAX_PROGRAM = 2 << 30
_SHA256 = re.compile(r"[0-9a-f]{64}")
VERSION = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6}){1,3}(?:[-+][0-9A-Za-z.+-]{1,40})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What was found out about a file; None is not known yet."""

    sha256: str | None = None
    version: str | None = None


def cache_directory(environ: Mapping[str, str], home: Path) -> Path:
    """Return where the user's cache of clsecure lies."""
    base = environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else home / ".cache") / "clsecure"


def identity(status: os.stat_result, *, moves: bool = False) -> str:
    """Return the key of one state of one file. The change time can't be set back by who writes to it.

    :param moves: the file system is mounted anew each time, as another device.
    """
    device = "overlay" if moves else status.st_dev
    return ":".join(
        str(part) for part in (device, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    )


def sha256_of(path: Path, *, cache: Path) -> str:
    """Return the sha256 of a regular file, from the cache where the file is still the same.

    :param cache: the directory, see :func:`cache_directory`.
    :raises AgentError: the file can't be read, or changes while it is.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise AgentError(f"{path} is not a regular file")
            known = recall(before, cache=cache)
            if known.sha256 is not None:
                return known.sha256
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if identity(os.fstat(file.fileno())) != identity(before):
                raise AgentError(f"{path} changed while it was read", resolution="Try again")
    except OSError as error:
        raise AgentError(f"{path} can't be read", details=str(error)) from error
    remember(before, Known(sha256=digest, version=known.version), cache=cache)
    return digest


def sha256_of_image(descriptor: int, *, cache: Path) -> str:
    """Return the sha256 of a program of an image, which is open to be read and stays so.

    :raises AgentError: it can't be read, is too large, or changes while it is read.
    """
    before = os.fstat(descriptor)
    key = identity(before, moves=True)
    if (known := _load(cache).get(key, Known()).sha256) is not None:
        return known
    if before.st_size > MAX_PROGRAM:
        raise AgentError("the program in the image is too large", details=f"{before.st_size} bytes")
    try:
        # Of its own offset: somebody may look twice.
        with open(f"/proc/self/fd/{descriptor}", "rb") as file:  # noqa: PTH123
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AgentError("the program in the image can't be read", details=str(error)) from error
    if identity(os.fstat(descriptor), moves=True) != key:
        raise AgentError("the program in the image changed while it was read")
    _write(key, Known(sha256=digest), cache)
    return digest


def recall(status: os.stat_result, *, cache: Path) -> Known:
    """Return what is known of the file in this state."""
    return _load(cache).get(identity(status), Known())


def remember(status: os.stat_result, known: Known, *, cache: Path) -> None:
    """Write down what was found out. A cache that can't be written is no failure."""
    _write(identity(status), known, cache)


def _write(key: str, known: Known, cache: Path) -> None:
    entries = _load(cache)
    entries.pop(key, None)
    entries[key] = known
    latest = list(entries.items())[-_MAX_ENTRIES:]
    document = {key: {"sha256": entry.sha256, "version": entry.version} for key, entry in latest}
    with suppress(OSError):
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp makes it 0600, and the name changes hands at once: a reader never sees half of it.
        descriptor, name = tempfile.mkstemp(prefix=f".{_FILE}.", dir=cache)
        try:
            with open(descriptor, "w", encoding="ascii") as file:  # noqa: PTH123
                json.dump(document, file)
            Path(name).replace(cache / _FILE)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def _load(cache: Path) -> dict[str, Known]:
    """Return the entries that are well-formed, of a file that only this user could have written."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(cache / _FILE, flags), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return {}
            data = file.read(_MAX_BYTES + 1)
        document = json.loads(data) if len(data) <= _MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(document, dict):
        return {}
    return {
        key: Known(sha256=_field(entry, "sha256", _SHA256), version=_field(entry, "version", VERSION))
        for key, entry in document.items()
        if isinstance(entry, dict)
    }


def _field(entry: Mapping[str, object], name: str, form: re.Pattern[str]) -> str | None:
    value = entry.get(name)
    return value if isinstance(value, str) and form.fullmatch(value) else None
