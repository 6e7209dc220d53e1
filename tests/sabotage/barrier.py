"""How the checks of the barrier are made to fail: one thing of a waiting sandbox is broken."""

from __future__ import annotations

import platform

from tests.support.sabotage import (
    BECOMES,
    CONTAINER,
    CONTAINERS,
    ENGINE,
    EVERY,
    KERNEL,
    LAUNCHER,
    LOCAL,
    LYING,
    MODES,
    NAMESPACE,
    PODMAN,
    PROCESSES,
    PROFILE,
    RAISABLE,
    SANDBOX,
    USER,
    USERSPACE,
    VIEW,
    Patch,
    Sabotage,
    after,
    replaced,
    unseen,
)

LOADER = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}[
    platform.machine()
]
_ENGINE_SAYS = "the engine says so of the container, too"
# It drops what crun does not know.
_IMPOSTOR = """mount -t tmpfs -o mode=755 tmpfs /usr/local/sbin && cat >/usr/local/sbin/runsc <<'END'
#!/bin/sh
for word; do shift; case $word in
--root=*|--network=*|--host-uds=*|--ignore-cgroups) ;; *) set -- "$@" "$word" ;; esac; done
exec /usr/bin/crun --cgroup-manager=disabled "$@"
END
chmod 755 /usr/local/sbin/runsc"""

_BUILT = "        self._devices()\n"
_HOMES = '__import__("pwd").getpwuid(self.entry["owner"]).pw_dir'
_GIVEN = ("--mount", "/usr/share/doc:/opt/given")
_BINDS_HOME = 'bind(self.entry["home"], place, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)'
_ATTACHES = "        attach(tree, made, "
_LEAVES = f"        return os.close(tree)\n{_ATTACHES}"
# It is listened to by nobody; its name is gone once it is mounted.
_SOCKET = "/var/tmp/clsecure-sabotage.sock"
_LISTENING = f"""{_BUILT}        import socket
        socket.socket(socket.AF_UNIX).bind("{_SOCKET}")
        write_file(self.at("/opt/clsecure/s"), b"")
        bind("{_SOCKET}", self.at("/opt/clsecure/s"), self.read_only)
        os.unlink("{_SOCKET}")
"""


def _also(source: str, target: str) -> str:
    """Return code of a view that has something more of the machine's."""
    return f'{_BUILT}        bind({source}, self.directory("{target}"), self.read_only)\n'


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
        also={
            "groups": "podman makes the first group a supplementary one, too",
            "id-maps": "it is the map that is wrong",
        },
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
        also={"engine-plan": _ENGINE_SAYS},
    ),
    Sabotage(
        check_id="groups",
        modes=CONTAINER,
        how="podman is asked for a further group",
        broken=replaced(
            Patch(file=PODMAN, old='"pid_mode": "private",', new='"pid_mode": "private", "group_add": ["5"],')
        ),
        also={"engine-plan": _ENGINE_SAYS},
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
        also={"engine-plan": _ENGINE_SAYS},
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
        check_id="session-keyring",
        modes=EVERY,
        how="the first process takes none of its own",
        broken=replaced(
            Patch(file=MODES, old="        own_keyring()\n        # All that", new="        # All that")
        ),
    ),
    Sabotage(
        check_id="session-keyring",
        modes=LOCAL,
        how="nobody takes one of their own, and the user's is left",
        broken=replaced(
            Patch(
                file=KERNEL,
                old='    call("syscall", SYS_KEYCTL[os.uname().machine], KEYCTL_JOIN_SESSION_KEYRING, None)',
                new="    return",
            )
        ),
    ),
    Sabotage(
        check_id="namespaces",
        modes=LOCAL,
        how="no namespace of control groups is made",
        broken=replaced(Patch(file=MODES, old="CLONE_NEWUTS | CLONE_NEWCGROUP", new="CLONE_NEWUTS")),
    ),
    Sabotage(
        check_id="mounts",
        modes=USER,
        how="set-uid programs and devices in the home count",
        broken=replaced(
            Patch(
                file=VIEW,
                old='bind(self.entry["home"], place, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)',
                new='bind(self.entry["home"], place, 0)',
            )
        ),
    ),
    Sabotage(
        check_id="mounts",
        modes=USER,
        how="set-uid programs of the system's count",
        broken=replaced(
            Patch(
                file=MODES,
                old="setuid_allowed = host_proc = groups_shown = False",
                new="setuid_allowed = True\n    host_proc = groups_shown = False",
            )
        ),
        perhaps={"root-unreachable": "they raise it then"},
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
        also={"engine-plan": _ENGINE_SAYS},
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
        modes=USER,
        how="another file is in the interpreter's place, and the helper does not tell of the mount",
        broken=replaced(
            after(
                VIEW,
                "        self._devices()\n",
                '        with open("/usr/bin/python3", "rb") as file:',
                '            write_file(self.at("/opt/python3"), file.read(), 0o755)',
                '        place = self.at(os.path.realpath("/usr/bin/python3"))',
                '        bind(self.at("/opt/python3"), place, self.read_only | MOUNT_ATTR_NOSUID)',
            ),
            unseen("/usr/bin/python3"),
        ),
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
    *(
        Sabotage(
            check_id="mounts",
            modes=LOCAL,
            how=how,
            options=options,
            broken=replaced(Patch(file=VIEW, old=old, new=new)),
        )
        for how, options, old, new in (
            ("the user's home is mounted below /opt/clsecure", (), _BUILT, _also(_HOMES, "/opt/clsecure/x")),
            ("the whole machine is mounted below /opt/clsecure", (), _BUILT, _also('"/"', "/opt/clsecure/x")),
            (
                "a socket of the machine's is mounted below /opt/clsecure",
                (),
                _BUILT,
                _LISTENING,
            ),
            (
                "another directory that everybody may write to is the home",
                (),
                _BINDS_HOME,
                _BINDS_HOME.replace('self.entry["home"]', '"/var/tmp"'),
            ),
            (
                "the user's home is mounted in the place of what was given",
                _GIVEN,
                "tree_of(fd)) for",
                f"tree_of(os.open({_HOMES}, os.O_PATH))) for",
            ),
            ("what was given is not mounted", _GIVEN, "in self.mounts:", "in ():"),
        )
    ),
    Sabotage(
        check_id="mounts",
        modes=USER,  # there firejail has a directory of its own
        how="the user's home is mounted writable where firejail has its own",
        broken=replaced(
            Patch(file=VIEW, old=_BUILT, new=_also(_HOMES, "/run/firejail/x").replace("self.read_only", "0"))
        ),
    ),
    *(
        Sabotage(
            check_id="container-mounts",
            modes=CONTAINER,
            how=how,
            options=options,
            broken=replaced(Patch(file=VIEW, old=old, new=new)),
        )
        for how, options, old, new in (
            (
                "the engine has another directory where the home is",
                (),
                _BINDS_HOME,
                _BINDS_HOME.replace('self.entry["home"]', '"/var/tmp"'),
            ),
            (
                "the engine has the user's home in the place of what was given",
                _GIVEN,
                "tree_of(fd)) for",
                f"tree_of(os.open({_HOMES}, os.O_PATH))) for",
            ),
            (
                "the engine has nothing in the place of what was given",
                _GIVEN,
                _ATTACHES,
                _LEAVES,
            ),
        )
    ),
    Sabotage(
        check_id="id-maps",
        modes=NAMESPACE,
        how="firejail makes no user namespace",
        broken=replaced(Patch(file=PROFILE, old="noroot\n", new="")),
        also={"namespaces": "that of users is one of them"},
    ),
    Sabotage(
        check_id="id-maps",
        modes=CONTAINER,
        how="the engine's user namespace has an uid of the machine's, too",
        broken=replaced(
            Patch(
                file=ENGINE,
                old="self.uids: Map = [(0, uid, 1)]",
                new="self.uids: Map = [(0, uid, 1), (7, 7, 1)]",
            )
        ),
    ),
    Sabotage(
        check_id="container-root",
        modes=CONTAINER,
        how="the image is writable",
        broken=replaced(Patch(file=CONTAINERS, old='"read_only": True,', new='"read_only": False,')),
        also={"container-mounts": "the root is the first of the mounts", "engine-plan": _ENGINE_SAYS},
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
        also={"engine-plan": _ENGINE_SAYS},
    ),
    Sabotage(
        check_id="network-interfaces",
        modes=LOCAL,
        how="there is a second interface",
        broken=replaced(
            Patch(
                file=SANDBOX,
                old="    def _facts(self, pid: int) -> Message:\n",
                new="""    def _facts(self, pid: int) -> Message:
        from clsecure.privileged.root.processes import tool
        words = "link add cst0 type veth peer name cst1".split()
        space = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(Refused):  # at the second one of a container they are there
            tool("/sbin/ip", *words, network=space)
        os.close(space)
""",
            )
        ),
    ),
    Sabotage(
        check_id="listeners",
        modes=USER,
        how="a process of root's in its network listens",
        broken=replaced(
            Patch(
                file=MODES,
                old=BECOMES,
                new=f'        ear = socket.create_server(("127.0.0.1", 4444))\n{BECOMES}',
            )
        ),
    ),
    Sabotage(
        check_id="listeners",
        modes=USER,
        how="a process of root's in its network takes datagrams",
        broken=replaced(
            Patch(
                file=MODES,
                old=BECOMES,
                new="        ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
                f'        ear.bind(("127.0.0.1", 4444))\n{BECOMES}',
            )
        ),
    ),
    Sabotage(
        check_id="listeners",
        modes=USER,
        how="a process of root's in its network takes every packet",
        broken=replaced(
            Patch(
                file=MODES,
                old=BECOMES,
                new="        ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))\n"
                f"{BECOMES}",
            )
        ),
    ),
    Sabotage(
        check_id="network-filter",
        modes=USER,
        how="the filter of a full network leaves metadata open",
        options=("--allow-network",),
        broken=replaced(
            Patch(file=MODES, old="[*self.request.closed, *host_addresses()]", new="host_addresses()")
        ),
    ),
    Sabotage(
        check_id="own-kernel",
        modes=CONTAINER,
        how="something in gVisor's place runs the container on the machine's kernel",
        options=("--runtime", "/usr/local/sbin/runsc"),
        broken=replaced(first=_IMPOSTOR),
    ),
    Sabotage(
        check_id="image",
        modes=CONTAINER,
        how="the container is made of another image",
        broken=replaced(
            Patch(
                file=PODMAN,
                old="            container = client.containers.create("
                'plan.image_id.removeprefix("sha256:"), **arguments(plan))\n',
                new="""            planned = plan.image_id.removeprefix("sha256:")
            base = client.containers.create(planned, ["true"])
            other = base.commit(repository="other", tag="one", author="somebody")
            base.remove()
            container = client.containers.create(other.id.removeprefix("sha256:"), **arguments(plan))
""",
            )
        ),
    ),
    Sabotage(
        check_id="engine-plan",
        modes=CONTAINER,
        how="the engine is asked for other labels",
        broken=replaced(
            Patch(file=PODMAN, old='"pid_mode": "private",', new='"pid_mode": "private", "labels": {},')
        ),
    ),
)
