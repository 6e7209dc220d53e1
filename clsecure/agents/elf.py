"""What kind of program a file is, read from its first bytes and never by running it."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

_MAGIC = b"\x7fELF"
_CLASS_64 = 2
_LITTLE = 1
_PT_INTERP = 3
_TYPES = (2, 3)  # executable, and position-independent executable
_MACHINES = {62: "x86_64", 183: "aarch64"}
_MAX_HEADERS = 64
_MAX_INTERPRETER = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Elf:
    """A native program.

    :param machine: as ``uname -m`` says it, or ``e_machine N``.
    :param interpreter: the dynamic loader, None when linked statically.
    """

    machine: str
    interpreter: str | None

    @property
    def musl(self) -> bool:
        """Built for the C library of Alpine and the like."""
        return self.interpreter is not None and "ld-musl" in self.interpreter


def read_elf(descriptor: int) -> Elf | None:
    """Return what the headers say, None when this is no 64-bit little-endian ELF program."""
    head = os.pread(descriptor, 64, 0)
    if len(head) < 64 or not head.startswith(_MAGIC) or head[4] != _CLASS_64 or head[5] != _LITTLE:
        return None
    kind, machine = struct.unpack_from("<HH", head, 16)
    (offset,) = struct.unpack_from("<Q", head, 32)
    entry_size, entries = struct.unpack_from("<HH", head, 54)
    if kind not in _TYPES or entry_size < 56 or entries > _MAX_HEADERS or offset > 1 << 40:
        return None
    interpreter = None
    for index in range(entries):
        entry = os.pread(descriptor, 56, offset + index * entry_size)
        if len(entry) < 56:
            return None
        if struct.unpack_from("<I", entry, 0)[0] == _PT_INTERP:
            where, size = struct.unpack_from("<Q", entry, 8)[0], struct.unpack_from("<Q", entry, 32)[0]
            if size > _MAX_INTERPRETER or where > 1 << 40:
                return None
            interpreter = os.pread(descriptor, size, where).rstrip(b"\0").decode("utf-8", "replace")
    return Elf(machine=_MACHINES.get(machine, f"e_machine {machine}"), interpreter=interpreter)
