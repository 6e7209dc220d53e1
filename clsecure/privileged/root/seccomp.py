"""The system calls that an engine of a session's own, and all that its containers run, goes without."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from clsecure.privileged.root.kernel import call

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
X32_BIT = 0x40000000
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SOCKET = {"x86_64": 41, "aarch64": 198}
SOCKETPAIR = {"x86_64": 53, "aarch64": 199}
FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK: no vsock, which no network namespace holds, no packets by hand."""
AF_UNIX = 1
"""The only family of pairs, as for the launcher's filter."""
# What engines and containers do without, and exploits of the kernel like. Keys are per user and not per
# sandbox. Source: the kernel's own tables, as for the launcher's filter.
MISSING = {
    "x86_64": {
        "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "keyctl": 250, "add_key": 248,
        "request_key": 249, "init_module": 175, "finit_module": 313, "delete_module": 176, "kexec_load": 246,
        "kexec_file_load": 320, "open_by_handle_at": 304, "iopl": 172, "ioperm": 173, "modify_ldt": 154,
        "lookup_dcookie": 212, "uselib": 134, "syslog": 103, "fanotify_init": 300,
    },
    "aarch64": {
        "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "keyctl": 219, "add_key": 217,
        "request_key": 218, "init_module": 105, "finit_module": 273, "delete_module": 106, "kexec_load": 104,
        "kexec_file_load": 294, "open_by_handle_at": 265, "lookup_dcookie": 18, "syslog": 116,
        "fanotify_init": 262,
    },
}  # fmt: skip
IO_URING = (425, 426, 427)  # the same everywhere; it could make sockets past the filter


def restrict_engine() -> None:
    """Install the filter in this process, for all that it will become.

    Not for the agent's own process, which has the launcher's. On an architecture without a table nothing
    is installed: R33 holds there as it is.
    """
    machine = os.uname().machine
    if machine not in MISSING:
        return
    load, jump_eq, jump_ge, ret = 0x20, 0x15, 0x35, 0x06
    # "Not there" and not "not permitted": crun goes on without a keyring of its own then.
    missing = ERRNO | errno.ENOSYS
    program = [
        (load, 0, 0, 4),
        (jump_eq, 1, 0, AUDIT_ARCH[machine]),
        (ret, 0, 0, KILL_PROCESS),
        (load, 0, 0, 0),
        (jump_ge, 0, 1, X32_BIT),
        (ret, 0, 0, missing),
    ]
    for number in (*MISSING[machine].values(), *IO_URING):
        program += [(jump_eq, 0, 1, number), (ret, 0, 0, missing)]
    other = (ret, 0, 0, ERRNO | errno.EAFNOSUPPORT)
    program += [(jump_eq, 0, 4, SOCKETPAIR[machine]), (load, 0, 0, 16), (jump_eq, 1, 0, AF_UNIX), other]
    program += [(load, 0, 0, 0), (jump_eq, 0, len(FAMILIES) + 2, SOCKET[machine]), (load, 0, 0, 16)]
    program += [(jump_eq, len(FAMILIES) - i, 0, family) for i, family in enumerate(FAMILIES)]
    program += [other, (ret, 0, 0, ALLOW)]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)
