"""What a probe tells of a sandbox that holds, and outside of it: for tests that change one thing of it."""

from __future__ import annotations

import copy
from pathlib import Path

from clsecure.model import IsolationMode, SandboxSpec, WorkerAccount
from clsecure.verify.bait import METADATA, PRIVATE
from clsecure.verify.calls import ORDER
from clsecure.verify.ears import ABSTRACT, LOOPBACK, NAMED
from clsecure.verify.tried import Limit, Report, Tried

OWN = tuple(f"{address}{how}" for address in ("192.0.2.7", "2001:db8::7") for how in ("", " by UDP"))
SOCKETS = (*LOOPBACK, ABSTRACT, NAMED, *OWN)
SERVICE = "/run/docker.sock"
_LIMITS = {"NPROC": 4000, "NOFILE": 1024, "AS": None, "FSIZE": None, "CPU": None, "CORE": None}
_FILES = {"home": "/home/u", "state": "/home/u/.local/state/clsecure/x/bait", "temporary": "/var/x/bait",
          "root's home": "/root", "passwords": "/etc/shadow"}  # fmt: skip
OPEN_CALLS = {**dict.fromkeys(ORDER["handed_over"], "ENOSYS"), **dict.fromkeys(ORDER["called"], "EINVAL")}
REFUSED_CALLS = {**dict.fromkeys(ORDER["handed_over"], "EPERM"), **dict.fromkeys(ORDER["called"], "ENOSYS")}
"""What a probe tells of system calls: outside, and below the launcher's filter."""
OUTSIDE = {
    "files": {"home": None, "state": None, "temporary": None, "root's home": "EACCES", "passwords": "EACCES"},
    "home": ["u", "v"], "root": ["etc"], "written": dict.fromkeys(("/", "/usr", "/etc"), "EACCES"),
    "own": None, "sent": {}, "connected": dict.fromkeys((*SOCKETS, SERVICE)),
    "routes": dict.fromkeys(("IPv4", "IPv6", *METADATA, *PRIVATE)),
    "resolvers": ["192.0.2.53"], "interfaces": ["eth0", "lo"], "addresses6": ["0" * 31 + "1", "fe80"],
    "listening": [22],
    "processes": 90, "marker": True, "foreign": [], "status": {"NoNewPrivs": "0", "Uid": "1000 1000"},
    "root_uid": "EPERM", "raised": ["/usr/bin/su", 0], "user_namespace": None,
    "calls": OPEN_CALLS, "landlock": 7, "reopened": dict.fromkeys(("read", "written")),
    "signalled": {}, "confined": "",
    "escapes": {"/proc/sys/kernel/core_pattern": "EACCES", "/dev/mem": "ENOENT"},
    "devices": ["sda", "null"], "limits": _LIMITS, "descriptors": ["9 -> /var/x/words (deleted)"],
}  # fmt: skip
INSIDE = {
    "files": {"home": "ENOENT", "state": "ENOENT", "temporary": "ENOENT", "root's home": "empty",
              "passwords": "EACCES"},
    "home": ["claude-worker-x"], "root": ["etc"], "written": dict.fromkeys(("/", "/usr", "/etc"), "EROFS"),
    "own": "ENOENT", "connected": dict.fromkeys((*SOCKETS, SERVICE), "ENETUNREACH"),
    "sent": dict.fromkeys((*METADATA, *PRIVATE), "EPERM"),
    "routes": dict.fromkeys(("IPv4", "IPv6", *METADATA, *PRIVATE), "ENETUNREACH"),
    "resolvers": [], "interfaces": ["lo"], "addresses6": ["0" * 31 + "1"], "listening": [4242],
    "processes": 2, "marker": False, "foreign": [],
    "status": {"NoNewPrivs": "1", "Uid": "1900000000 1900000000", "CapBnd": "0"},
    "root_uid": "EPERM", "raised": ["/usr/bin/su", 1900000000], "user_namespace": "EPERM",
    "calls": REFUSED_CALLS, "landlock": 7, "reopened": dict.fromkeys(("read", "written"), "EACCES"),
    "signalled": {"first process": "EPERM"}, "confined": "",
    "escapes": {"/proc/sys/kernel/core_pattern": "EACCES", "/dev/mem": "ENOENT"},
    "devices": ["null", "pts"], "limits": {**_LIMITS, "CORE": 0}, "descriptors": [],
}  # fmt: skip
ACCOUNT = WorkerAccount(name="claude-worker-x", uid=1, gid=1, home=Path("/home/claude-worker-x"))


def tried(
    changes: dict[str, object] | None = None, *, outside: dict[str, object] | None = None, **options
) -> Tried:
    """Return what was tried, with changes of what the probe inside tells, and of what it tells outside."""
    inside = {**copy.deepcopy(INSIDE), **(changes or {})}
    spec = options.pop("spec", SandboxSpec(mode=IsolationMode.USER, account=ACCOUNT, listener=True))
    limits = {name: Limit(most=1, value="1", by="cgroup") for name in ("memory", "disk")}
    limits["pids"] = Limit(most=4000, value="4000", by="rlimit")
    unheld = {"cpus": Limit(most=2, value="2", by=None), "open_files": Limit(most=None, value=None, by=None)}
    options = {"limits": {**limits, **unheld}} | options
    given = {"heard_outside": frozenset(SOCKETS), "heard_inside": frozenset(), "port": 4242, "files": _FILES,
             "services": {SERVICE: SERVICE}, "addresses": OWN, "landlock": 7,
             "words": "/var/x/words"}  # fmt: skip
    return Tried(
        spec=spec,
        inside=Report.parse(inside),
        outside=Report.parse({**copy.deepcopy(OUTSIDE), **(outside or {})}),
        **{**given, **options},
    )
