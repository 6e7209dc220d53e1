"""Search the memory of live processes of the host, as root: what is in it, whoever owns it."""

from __future__ import annotations

import base64
import contextlib
import io
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

_PAGE = 4096
_PIECE = 4 << 20
_THERE = 3 << 62
"""In memory or swapped out: runtimes reserve far more than they ever touch."""


def spellings(secret: str) -> tuple[bytes, ...]:
    """Return the forms in which a program may hold a text: bytes, two bytes a character, base64."""
    plain = secret.encode()
    # Base64 of a text in the middle of another one begins anew with every third byte.
    parts = (base64.b64encode(plain[cut:])[:-4] for cut in range(3))
    return plain, secret.encode("utf-16-le"), *parts


def holders(pids: Iterable[int], secret: str) -> set[int]:
    """Return those of the processes that hold a secret in any of its spellings."""
    needles = spellings(secret)
    return {pid for pid in pids if any(needle in piece for piece in pieces(pid) for needle in needles)}


def pieces(pid: int) -> Iterator[bytes]:
    """Yield all that a process has in its memory; nothing of one that is gone."""
    longest = 512
    with contextlib.suppress(OSError), Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end in _mapped(pid):
            for at in range(start, end, _PIECE):
                # Over the edge, so that nothing is cut in two.
                with contextlib.suppress(OSError, OverflowError):
                    memory.seek(at)
                    yield memory.read(min(_PIECE + longest, end - at))


def _mapped(pid: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of pages that are there."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        for line in lines:
            span, access, *_, name = [*line.split(maxsplit=5), ""]
            if access[0] == "r" and not name.startswith("[v"):
                start, end = (int(part, 16) for part in span.split("-"))
                yield from _runs(pagemap, start, end)


def _runs(pagemap: io.FileIO, start: int, end: int) -> Iterator[tuple[int, int]]:
    begun: int | None = None
    for at in range(start, end, _PIECE * 64):
        count = min(_PIECE * 64, end - at) // _PAGE
        pagemap.seek(at // _PAGE * 8)
        entries = array("Q", pagemap.read(count * 8))
        if not any(entries) and begun is None:
            continue
        for index, entry in enumerate(entries):
            address = at + index * _PAGE
            if entry & _THERE and begun is None:
                begun = address
            elif not entry & _THERE and begun is not None:
                yield begun, address
                begun = None
    if begun is not None:
        yield begun, end
