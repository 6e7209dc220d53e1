"""The system calls that the launcher's filter refuses: what a probe tries of them, and what it means.

All of it comes from the filter's own tables, so none can be forgotten. How it is tried:

- What is to be *not permitted* is never executed, not even where it is allowed: a child of the probe's has a
  filter of its own that hands these calls to a tracer, of which there is none, so the kernel answers ENOSYS.
  A filter that refuses counts for more than one that hands over: any other answer is the sandbox's.
- What is to be *not there* (ENOSYS, too) is called with arguments that are wrong on purpose.

Not tried: the 32-bit interface (int 0x80). The filter kills who uses it, and each time the machine's audit
would write that down; a test of ours does it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from clsecure.privileged import launcher

Call = tuple[int, ...]
"""The number of a system call and its arguments; those that are left out are 0."""

NONSENSE: Mapping[str, Call] = {
    "io_uring_setup": (0, 0), "io_uring_enter": (-1, 0, 0, -1, 0, 0), "io_uring_register": (-1, -1, 0, 0),
    "clone3": (0, 0), "open_tree": (-1, 0, -1), "move_mount": (-1, 0, -1, 0, -1), "fsopen": (0, -1),
    "fsconfig": (-1, -1, 0, 0, -1), "fsmount": (-1, -1, 0), "fspick": (-1, 0, -1),
    "mount_setattr": (-1, 0, -1, 0, 0), "open_tree_attr": (-1, 0, -1, 0, 0),
}  # fmt: skip
"""Arguments with which the kernel does nothing where it has the call: it answers EINVAL, EFAULT or EPERM."""
_FLAGS = {
    0x00020000: "NEWNS", 0x02000000: "NEWCGROUP", 0x04000000: "NEWUTS", 0x08000000: "NEWIPC",
    0x10000000: "NEWUSER", 0x20000000: "NEWPID", 0x40000000: "NEWNET",
}  # fmt: skip
_AF_MAX = 64
"""Linux has 46 families; the others are for those to come."""
_NAMES = {int(value): name for name, value in vars(socket).items() if name.startswith("AF_")}
_NOT_TOLD = "not told"


def refused_calls(machine: str) -> dict[str, Call]:
    """Return what the filter does not permit there; nothing for an architecture without a table."""
    if machine not in launcher.DENIED:
        return {}
    ioctl, clone, one = launcher.IOCTL[machine], launcher.CLONE[machine], launcher.SOCKET[machine]
    flags = [1 << bit for bit in range(32) if launcher.NAMESPACE_FLAGS & 1 << bit]
    families = [(number, _NAMES.get(number, f"AF_{number}")) for number in range(_AF_MAX)]
    return {
        **{name: (number,) for name, number in launcher.DENIED[machine].items()},
        **{f"clone {_FLAGS.get(flag, hex(flag))}": (clone, flag) for flag in flags},
        "TIOCSTI": (ioctl, -1, launcher.TIOCSTI),
        "TIOCLINUX": (ioctl, -1, launcher.TIOCLINUX),
        **{name: (one, number, 1) for number, name in families if number not in launcher.ALLOWED_FAMILIES},
        **{
            f"pair of {name}": (launcher.SOCKETPAIR[machine], number, 1)
            for number, name in families
            if number != launcher.AF_UNIX
        },
    }


def missing_calls(machine: str) -> dict[str, Call]:
    """Return what is not there, by the filter."""
    if machine not in launcher.DENIED:
        return {}
    found = {name: (number, *NONSENSE[name]) for name, number in launcher.MISSING.items()}
    if machine == "x86_64":
        # The same calls once more, which most kernels do without anyway.
        found["getpid of x32"] = (launcher.X32_BIT | 39,)
    return found


MACHINE = os.uname().machine
_REFUSED, _MISSING = refused_calls(MACHINE), missing_calls(MACHINE)
ORDER: Mapping[str, Mapping[str, Call]] = {"handed_over": _REFUSED, "called": _MISSING}
"""What a probe is told to try."""
TERMINAL = ("TIOCSTI", "TIOCLINUX")
KEYS = ("keyctl", "add_key", "request_key")
NAMESPACES = ("unshare", "clone3", *(name for name in _REFUSED if name.startswith("clone ")))
OTHERS = tuple(
    name for name in (*_REFUSED, *_MISSING) if name not in (*TERMINAL, *KEYS, *NAMESPACES)
)  # fmt: skip


def refused(told: Mapping[str, str | None], name: str) -> bool | None:
    """Tell whether a filter refuses a call; None where the probe did not say."""
    answer = told.get(name, _NOT_TOLD)
    if answer == _NOT_TOLD:
        return None
    return answer == "ENOSYS" if name in _MISSING else answer not in (None, "ENOSYS")
