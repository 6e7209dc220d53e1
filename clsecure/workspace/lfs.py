"""LFS pointers, made and read by clsecure's own code: no filter program runs for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MAX_POINTER = 1024
_POINTER = re.compile(
    rb"version https://(?:git-lfs\.github\.com|hawser\.github\.com)/spec/v1\n(?:ext-[0-9]-[^\n]+\n)*"
    rb"oid sha256:(?P<oid>[0-9a-f]{64})\nsize (?P<size>[0-9]{1,18})\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LfsObject:
    """What a pointer in the start state names.

    :param path: a path of the unit that has the pointer.
    """

    oid: str
    size: int
    path: bytes


def pointer(oid: str, size: int) -> bytes:
    """Return the pointer's text."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode("ascii")


def parse(data: bytes) -> tuple[str, int] | None:
    """Return what a pointer names, None when this is none."""
    match = _POINTER.fullmatch(data) if len(data) <= MAX_POINTER else None
    return (match["oid"].decode("ascii"), int(match["size"])) if match else None


def stored(store: Path, oid: str) -> Path:
    """Return where the local store keeps an object."""
    return store / oid[:2] / oid[2:4] / oid
