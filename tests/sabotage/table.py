"""Every check, and how it is made to fail: the one table of all sabotage.

A row breaks one thing, in one sandbox, for one command. What else it cannot but break is said beside it; a
check that fails without being named is a failure of the test, as is one that does not notice.
"""

from __future__ import annotations

import platform

from tests.sabotage.inside import INSIDE
from tests.sabotage.leftovers import LEFT
from tests.support.sabotage import (
    CONTAINER,
    CONTAINERS,
    ENGINE,
    EVERY,
    LAUNCHER,
    LOCAL,
    LYING,
    MODES,
    NAMESPACE,
    PODMAN,
    PROCESSES,
    PROFILE,
    RAISABLE,
    USER,
    USERSPACE,
    VIEW,
    Patch,
    Sabotage,
    replaced,
)

LOADER = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}[
    platform.machine()
]

BARRIER = (
    Sabotage(
        check_id="account",
        modes=USER,
        how="the first process keeps a real gid of somebody else's",
        broken=replaced(
            Patch(
                file=PROCESSES,
                old='os.setresgid(entry["uid"], entry["uid"], entry["uid"])',
                new='os.setresgid(5, entry["uid"], entry["uid"])',
            )
        ),
    ),
    Sabotage(
        check_id="account",
        modes=CONTAINER,
        how="the engine's user namespace has a group of the machine's as the worker's",
        broken=replaced(
            Patch(
                file=ENGINE,
                old="self.gids: Map = [(0, uid, 1), (TTY, tty, 1)]",
                new="self.gids: Map = [(0, tty, 1), (TTY, uid, 1)]",
            )
        ),
        also={"groups": "podman makes the first group a supplementary one, too"},
    ),
    Sabotage(
        check_id="groups",
        modes=USER,  # firejail drops them by itself
        how="a supplementary group is left",
        broken=replaced(Patch(file=PROCESSES, old="os.setgroups([])", new="os.setgroups([5])")),
    ),
    Sabotage(
        check_id="no-new-privileges",
        modes=USER,
        how="set-uid programs raise it, and all else is as it was",
        broken=replaced(*RAISABLE),
    ),
    Sabotage(
        check_id="no-new-privileges",
        modes=CONTAINER,
        how="podman is not asked for it, and does not have it itself",
        broken=replaced(
            *LYING,
            Patch(file=PODMAN, old='"no_new_privileges": True', new='"no_new_privileges": False'),
            Patch(
                file=USERSPACE,
                old="    os.setresuid(0, 0, 0)\n    prctl(PR_SET_NO_NEW_PRIVS, 1)\n",
                new="    os.setresuid(0, 0, 0)\n",
            ),
        ),
    ),
    Sabotage(
        check_id="groups",
        modes=CONTAINER,
        how="podman is asked for a further group",
        broken=replaced(
            Patch(file=PODMAN, old='"pid_mode": "private",', new='"pid_mode": "private", "group_add": ["5"],')
        ),
    ),
    Sabotage(
        check_id="capabilities",
        modes=USER,
        how="the bounding set is left full",
        broken=replaced(
            Patch(
                file=MODES,
                old="become(self.entry, empty_bounding_set=True)\n        # The change",
                new="become(self.entry, empty_bounding_set=False)\n        # The change",
            )
        ),
    ),
    Sabotage(
        check_id="capabilities",
        modes=NAMESPACE,
        how="firejail drops none",
        broken=replaced(Patch(file=PROFILE, old="caps.drop all\n", new="")),
    ),
    Sabotage(
        check_id="capabilities",
        modes=CONTAINER,
        how="the engine leaves what it gives by default",
        broken=replaced(Patch(file=CONTAINERS, old='"cap_drop": ["ALL"],', new="")),
    ),
    Sabotage(
        check_id="seccomp",
        modes=EVERY,
        how="the launcher installs no filter",
        broken=replaced(Patch(file=LAUNCHER, old="filtered = seccomp()", new="filtered = False")),
    ),
    Sabotage(
        check_id="landlock",
        modes=LOCAL,
        how="the launcher applies none, and says that there is none",
        broken=replaced(Patch(file=LAUNCHER, old='abi = landlock(orders["writable"])', new="abi = 0")),
    ),
    Sabotage(
        check_id="namespaces",
        modes=USER,
        how="no IPC namespace is made",
        broken=replaced(Patch(file=MODES, old="CLONE_NEWNS | CLONE_NEWIPC |", new="CLONE_NEWNS |")),
    ),
    Sabotage(
        check_id="namespaces",
        modes=NAMESPACE,
        how="no IPC namespace is made, and firejail makes none",
        broken=replaced(
            Patch(file=MODES, old="CLONE_NEWNS | CLONE_NEWIPC |", new="CLONE_NEWNS |"),
            Patch(file=PROFILE, old="ipc-namespace\n", new=""),
        ),
    ),
    Sabotage(
        check_id="namespaces",
        modes=CONTAINER,
        how="neither engine nor container has a UTS namespace of its own",
        broken=replaced(
            Patch(file=MODES, old="CLONE_NEWIPC | CLONE_NEWUTS |", new="CLONE_NEWIPC |"),
            Patch(file=MODES, old='        socket.sethostname("clsecure")\n', new=""),
            Patch(file=PODMAN, old='"uts_mode": "private"', new='"uts_mode": "host"'),
            Patch(file=CONTAINERS, old='"hostname": HOSTNAME,', new=""),
        ),
    ),
    Sabotage(
        check_id="namespaces",
        modes=CONTAINER,
        how="the container shares the PID namespace of its engine",
        broken=replaced(Patch(file=PODMAN, old='"pid_mode": "private"', new='"pid_mode": "host"')),
    ),
    Sabotage(
        check_id="descriptors",
        modes=EVERY,
        how="a directory stays open",
        broken=replaced(
            Patch(
                file=LAUNCHER,
                old="        orders, _ = receive(control)\n",
                new='        orders, _ = receive(control)\n        os.open("/usr", os.O_RDONLY)\n',
            )
        ),
    ),
    Sabotage(
        check_id="executable",
        modes=USER,
        how="another program of the machine's runs the launcher",
        broken=replaced(Patch(file=MODES, old="self._exec(PYTHON)", new=f'self._exec("{LOADER}", PYTHON)')),
    ),
    Sabotage(
        check_id="executable",
        modes=NAMESPACE,
        how="firejail runs another program of the machine's",
        broken=replaced(
            Patch(
                file=MODES, old='/firejail.profile", PYTHON)', new=f'/firejail.profile", "{LOADER}", PYTHON)'
            )
        ),
    ),
    Sabotage(
        check_id="executable",
        modes=CONTAINER,
        how="the container runs another program of the image's",
        broken=replaced(
            Patch(
                file=CONTAINERS, old='argv=("/usr/bin/python3",', new=f'argv=("{LOADER}", "/usr/bin/python3",'
            )
        ),
    ),
    Sabotage(
        check_id="root",
        modes=USER,
        how="the root is not made read-only",
        broken=replaced(
            Patch(
                file=VIEW,
                old="MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID",
                new="MS_REMOUNT | MS_BIND | MS_NOSUID",
            )
        ),
    ),
    Sabotage(
        check_id="mounts",
        modes=LOCAL,
        how="a directory of the machine's is mounted",
        broken=replaced(
            Patch(
                file=VIEW,
                old="        self._devices()\n",
                new="        self._devices()\n"
                '        bind("/boot", self.directory("/mnt"), self.read_only)\n',
            )
        ),
    ),
    Sabotage(
        check_id="mounts",
        modes=USER,  # firejail makes it anew
        how="memory of the machine's is mounted",
        broken=replaced(
            Patch(
                file=VIEW,
                old='        self.writable("/dev/shm", 0o1777)\n',
                new='        bind("/dev/shm", self.directory("/dev/shm"), 0)\n',
            )
        ),
    ),
    Sabotage(
        check_id="mounts",
        modes=USER,  # firejail makes it read-only by itself
        how="the system's programs are writable",
        broken=replaced(
            Patch(
                file=VIEW,
                old='bind(f"/{name}", self.directory(f"/{name}"), self.read_only)',
                new='bind(f"/{name}", self.directory(f"/{name}"), self.read_only & ~MOUNT_ATTR_RDONLY)',
            )
        ),
    ),
    Sabotage(
        check_id="container-root",
        modes=CONTAINER,
        how="the image is writable",
        broken=replaced(Patch(file=CONTAINERS, old='"read_only": True,', new='"read_only": False,')),
        also={"container-mounts": "the root is the first of the mounts"},
    ),
    Sabotage(
        check_id="container-mounts",
        modes=CONTAINER,
        how="a directory of the machine's is mounted",
        broken=replaced(
            Patch(
                file=PODMAN,
                old='"mounts": [*bound, *memory],',
                new='"mounts": [*bound, *memory, '
                '{"type": "bind", "source": "/usr", "target": "/mnt", "read_only": True}],',
            )
        ),
    ),
)

SABOTAGE: tuple[Sabotage, ...] = (*BARRIER, *INSIDE, *LEFT)
