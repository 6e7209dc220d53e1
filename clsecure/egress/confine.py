"""What the gateway takes from itself before it is given a secret."""

from __future__ import annotations

import ctypes
import os
import resource
import signal

from clsecure.errors import EgressError

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_ADDRESS_SPACE = 2 << 30
_DESCRIPTORS = 1024


def confine() -> None:
    """Make this process unreadable to others of the same user, unable to gain privileges, and bounded.

    :raises EgressError: the kernel refuses.
    """
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The last line after the limits of the requests themselves: a gateway that dies closes the network.
    _lower(resource.RLIMIT_AS, _ADDRESS_SPACE)
    _lower(resource.RLIMIT_NOFILE, _DESCRIPTORS)


def die_with(parent: int) -> None:
    """End when the parent process does, even when this one hangs.

    :param parent: its process id, since it may be gone already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise EgressError("The session is gone")


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise EgressError("The gateway can't confine itself", details=os.strerror(ctypes.get_errno()))


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (bound, bound))
