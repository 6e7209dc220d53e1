"""The limits that hold where nobody says anything."""

from __future__ import annotations

import os

from clsecure.model import ResourceLimits

DEFAULT_PIDS = 4096
MEMORY_SHARE = 0.8


def machine_memory() -> int:
    """Return the bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def defaults() -> ResourceLimits:
    """Return what holds where nobody says anything: the machine must go on when an agent goes wild."""
    return ResourceLimits(memory=int(machine_memory() * MEMORY_SHARE), pids=DEFAULT_PIDS)
