"""How the checks from inside are made to fail.

The host decides first, and nothing is tried in a sandbox that it does not confirm. So what is broken here is
broken where the host does not look, or the helper tells of it what should be: then the probe has to notice.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.support.names import own_address
from tests.support.person import Person
from tests.support.sabotage import (
    CONTAINER,
    EVERY,
    FACTS,
    LAUNCHER,
    LOCAL,
    MODES,
    RAISABLE,
    SANDBOX,
    USER,
    VIEW,
    Patch,
    Sabotage,
    Scene,
    after,
    replaced,
    unseen,
)

_TEMPORARY = "it lies there"
_ALSO_HOMES = "a home that is seen is one more in /home"


def in_view(*lines: str) -> Patch:
    """Do something to the new root while it is built, as root."""
    return after(VIEW, "        self._private()\n", *(f"        {line}" for line in lines))


def in_network(*lines: str) -> Patch:
    """Do something in the sandbox's own network namespace, as root."""
    return after(MODES, "        loopback_up()\n", *(f"        {line}" for line in lines))


def beside_probe(*lines: str) -> Patch:
    """Do something in the launcher before it starts the probe."""
    return after(LAUNCHER, "        self.any = True\n", *(f"        {line}" for line in lines))


def without_call(*numbers: int) -> Patch:
    """Take system calls out of the launcher's filter, of each architecture; what is tried stays whole."""
    return Patch(
        file=LAUNCHER,
        old="in (*DENIED[machine].values(), *also):",
        new=f"in {{*DENIED[machine].values(), *also}} - {{{', '.join(map(str, numbers))}}}:",
    )


_OWN_PROC = '        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)\n'
_SHARED_NETWORK = replaced(
    Patch(file=MODES, old="own_network = CLONE_NEWNET", new="own_network = 0"),
    Patch(
        file=FACTS,
        old='for n in os.listdir(f"/proc/{pid}/ns")},',
        new='for n in os.listdir(f"/proc/{pid}/ns")} | {"net": "net:[1]"},',
    ),
    Patch(
        file=SANDBOX,
        old='"network": network_of(pid),',
        new='"network": {"interfaces": ["lo"], "routes": [], "ports": [], "sockets": []},',
    ),
)
_OF_NETWORK = dict.fromkeys(
    ("loopback", "own-address", "no-route", "no-port", "ipv6", "metadata", "resolvers", "inside-unchanged"),
    "there is one network, and all of it is the machine's: this one, where the machine has it",
)

# sudo allows none either.
_CORES = """ulimit -c unlimited && mount -t tmpfs -o mode=755 tmpfs /mnt && mkdir -m 755 /mnt/d &&
cp -a /etc/sudoers.d/. /mnt/d && echo 'Defaults rlimit_core=infinity' >/mnt/d/zz && chmod 440 /mnt/d/zz &&
mount --bind /mnt/d /etc/sudoers.d &&
echo 'Set disable_coredump false' >/mnt/conf && mount --bind /mnt/conf /etc/sudo.conf"""
AGENT = Path(f"/run/clsecure-sabotage-{os.getpid()}")


@contextlib.contextmanager
def keys(scene: Scene) -> Iterator[None]:
    """Have a socket of the user's, as ssh-agent makes one."""
    AGENT.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(AGENT))
        try:
            AGENT.chmod(0o777)
            listener.listen(16)
            scene.environ["SSH_AUTH_SOCK"] = str(AGENT)
            yield
        finally:
            AGENT.unlink()


@contextlib.contextmanager
def with_keys(scene: Scene) -> Iterator[Person]:
    """And bind it into the view."""
    broken = replaced(
        in_view(
            f"""write_file(self.at("{AGENT}"), b"")""",
            f"""bind("{AGENT}", self.at("{AGENT}"), 0)""",
        ),
        unseen(str(AGENT)),
    )
    with keys(scene), broken(scene) as victim:
        yield victim


@contextlib.contextmanager
def with_service(scene: Scene) -> Iterator[Person]:
    """The same of a socket that nobody has heard of: only the kernel's table tells of it."""
    with with_keys(scene) as victim:
        del scene.environ["SSH_AUTH_SOCK"]
        yield victim


@contextlib.contextmanager
def with_address(scene: Scene) -> Iterator[Person]:
    """Have the filter of a full network leave this machine open, which has an address more."""
    broken = replaced(
        Patch(file=MODES, old="[*self.request.closed, *host_addresses()]", new="self.request.closed"),
        Patch(
            file=FACTS,
            old='return tool(NFT, "list", "table", *TABLE, network=space, timeout=10)',
            new="from clsecure.privileged.root.network import host_addresses\n"
            '        said = tool(NFT, "list", "table", *TABLE, network=space, timeout=10)\n'
            "        return said + f\"\\nip daddr {{ {', '.join(host_addresses())} }} reject with a lie\"",
        ),
    )
    with own_address("198.51.100.77"), broken(scene) as victim:
        yield victim


INSIDE = (
    Sabotage(
        check_id="canary-home",
        modes=USER,
        how="the view holds a file of the user's home",
        broken=replaced(
            in_view(
                "import pwd",
                'home = self.directory(pwd.getpwuid(self.entry["owner"]).pw_dir)',
                'write_file(f"{home}/letter", b"")',
            )
        ),
        also={"other-homes": _ALSO_HOMES},
    ),
    Sabotage(
        check_id="canary-state",
        modes=USER,
        how="the view holds a file of the user's state",
        broken=replaced(
            in_view(
                "import glob, pwd",
                'home = pwd.getpwuid(self.entry["owner"]).pw_dir',
                'for bait in glob.glob(f"{home}/.local/state/clsecure/info-*/bait"):',
                "    self.directory(os.path.dirname(bait))",
                '    write_file(self.at(bait), b"bait", 0o644)',
            )
        ),
        also={"other-homes": _ALSO_HOMES, "canary-home": "the state lies in it"},
    ),
    Sabotage(
        check_id="canary-temporary",
        modes=USER,  # firejail makes /tmp anew
        how="/tmp holds what the machine's does",
        broken=replaced(
            in_view(
                "import glob",
                'for bait in glob.glob("/tmp/clsecure-info-*/bait"):',
                "    self.directory(os.path.dirname(bait))",
                '    write_file(self.at(bait), b"bait", 0o644)',
            )
        ),
        also={"temporary-empty": _TEMPORARY},
    ),
    Sabotage(
        check_id="root-files",
        modes=USER,
        how="root's home is open, and holds something",
        broken=replaced(in_view("""write_file(f"{self.directory('/root')}/letter", b"")""")),
    ),
    Sabotage(
        check_id="other-homes",
        modes=USER,
        how="/home holds another home, an empty one",
        broken=replaced(in_view('self.directory("/home/somebody")')),
    ),
    Sabotage(
        check_id="system-read-only",
        modes=USER,
        how="files can be made in /, and the helper says that it is read-only",
        broken=replaced(
            Patch(file=VIEW, old='tmpfs(self.root, "755",', new='tmpfs(self.root, "1777",'),
            Patch(
                file=VIEW,
                old="MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID",
                new="MS_REMOUNT | MS_BIND | MS_NOSUID",
            ),
            Patch(file=LAUNCHER, old='("/", EXECUTE | READ_FILE | READ_DIR)', new='("/", FS_ALL)'),
            Patch(
                file=FACTS,
                old='mountinfo = [line.rstrip("\\n") for line in file]',
                new='mountinfo = [line.rstrip("\\n").replace(" / / rw,", " / / ro,") for line in file]',
            ),
        ),
        also={
            "root-options": "it is not read-only",
            "system-modes": "everybody may write to it",
        },
    ),
    Sabotage(
        check_id="landlock-refuses",
        modes=EVERY,
        how="the launcher applies no Landlock, and says that it does",
        broken=replaced(
            Patch(file=LAUNCHER, old='abi = landlock(orders["writable"])', new="abi = landlock_abi()")
        ),
    ),
    Sabotage(
        check_id="landlock-refuses",
        modes=LOCAL,
        how="Landlock leaves signals to processes without it",
        broken=replaced(Patch(file=LAUNCHER, old="| SCOPE_SIGNAL if abi >= 6", new="if abi >= 6")),
    ),
    Sabotage(
        check_id="landlock-refuses",
        modes=CONTAINER,  # elsewhere the host does not believe it
        how="the launcher applies no Landlock, and says that there is none",
        broken=replaced(Patch(file=LAUNCHER, old='abi = landlock(orders["writable"])', new="abi = 0")),
    ),
    Sabotage(
        check_id="inherited-descriptors",
        modes=EVERY,
        how="a program gets a descriptor more",
        broken=replaced(
            Patch(
                file=LAUNCHER,
                old="    os.closerange(3, 1024)\n    resource.setrlimit",
                new='    os.dup2(os.open("/usr", os.O_RDONLY), 9)\n    resource.setrlimit',
            )
        ),
    ),
    Sabotage(
        check_id="loopback",
        modes=USER,
        how="the network is the machine's, and the helper says that it is not",
        broken=_SHARED_NETWORK,
        options=("--no-network",),
        perhaps=_OF_NETWORK,
    ),
    Sabotage(
        check_id="own-address",
        modes=USER,
        how="the network is the machine's, and the helper says that it is not",
        broken=_SHARED_NETWORK,
        options=("--no-network",),
        perhaps=_OF_NETWORK,
    ),
    Sabotage(
        check_id="own-address",
        modes=USER,
        how="a full network leads to this machine, and the helper says that it does not",
        broken=with_address,
        options=("--allow-network",),
    ),
    Sabotage(
        check_id="local-sockets",
        modes=USER,
        how="a socket of the machine's /tmp is in the view, and the helper does not tell of it",
        broken=replaced(
            in_view(
                "import glob",
                'for place in glob.glob("/tmp/clsecure-info-*/socket"):',
                "    self.directory(os.path.dirname(place))",
                '    write_file(self.at(place), b"")',
                "    bind(place, self.at(place), 0)",
            ),
            unseen("/tmp/clsecure-info-"),
        ),
        also={"temporary-empty": _TEMPORARY},
        perhaps={"inside-unchanged": "the first view may be built before the socket is there"},
    ),
    Sabotage(
        check_id="service-sockets",
        modes=USER,
        how="the socket of the user's keys is in the view, and the helper does not tell of it",
        broken=with_keys,
    ),
    Sabotage(
        check_id="service-sockets",
        modes=USER,
        how="the socket of a service that no list names is in the view, and the helper does not tell of it",
        broken=with_service,
    ),
    Sabotage(
        check_id="resolvers",
        modes=USER,
        how="a name server answers",
        broken=replaced(
            Patch(
                file=VIEW,
                old="        flags = MS_RDONLY | MS_NODEV | (MS_NOSUID if",
                new='        write_file(f"{ours}/resolv.conf", b"nameserver 127.0.0.1", 0o644)\n'
                "        flags = MS_RDONLY | MS_NODEV | (MS_NOSUID if",
            ),
            in_network(
                'with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "w") as first:',
                '    first.write("0")',
            ),
            beside_probe(
                "answers = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
                'answers.bind(("127.0.0.1", 53))',
                "if os.fork() == 0:",
                "    while True:",
                "        answers.sendto(*answers.recvfrom(512))",
            ),
        ),
    ),
    Sabotage(
        check_id="root-unreachable",
        modes=USER,
        how="set-uid programs raise it, and the helper says that they do not",
        broken=replaced(
            *RAISABLE,
            Patch(
                file=FACTS,
                old='        "status": status,',
                new='        "status": status | {"NoNewPrivs": "1"},',
            ),
        ),
        perhaps={"landlock-refuses": "root has confined the first process together with it"},
    ),
    Sabotage(
        check_id="no-route",
        modes=USER,
        how="there is an address to send packets to",
        broken=replaced(
            in_network(
                "from clsecure.privileged.root.kernel import loopback_address",
                'loopback_address("192.0.2.1")',
            )
        ),
    ),
    Sabotage(
        check_id="ipv6",
        modes=USER,
        how="there is an IPv6 address",
        broken=replaced(
            in_network(
                "import fcntl, struct",
                "with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six:",
                '    place = socket.inet_pton(socket.AF_INET6, "2001:db8::2")',
                '    fcntl.ioctl(six, 0x8916, struct.pack("16sIi", place, 64, 1))',
            )
        ),
    ),
    Sabotage(
        check_id="metadata",
        modes=USER,
        how="there is a way to the address where clouds tell secrets",
        broken=replaced(
            in_network(
                "from clsecure.privileged.root.kernel import loopback_address",
                'loopback_address("169.254.169.254")',
            )
        ),
    ),
    Sabotage(
        check_id="no-port",
        modes=EVERY,
        how="something listens that is not the gateway",
        options=("--no-network",),
        broken=replaced(beside_probe('self.port = socket.create_server(("127.0.0.1", 4444))')),
    ),
    Sabotage(
        check_id="gateway-port",
        modes=USER,
        how="something listens beside the gateway",
        broken=replaced(beside_probe('self.port = socket.create_server(("127.0.0.1", 4444))')),
    ),
    Sabotage(
        check_id="host-processes",
        modes=USER,
        how="/proc is the machine's, and the helper does not tell of it",
        broken=replaced(
            Patch(
                file=MODES,
                old="host_proc = groups_shown = False",
                new="groups_shown = False\n    host_proc = True",
            ),
            Patch(file=MODES, old=_OWN_PROC, new=""),
            unseen(" /proc", " /sys"),
        ),
        perhaps={"root-unreachable": "whose number a child has is another one there"},
    ),
    Sabotage(
        check_id="system-calls",
        modes=USER,
        how="setns is not filtered",
        broken=replaced(without_call(308, 268)),
    ),
    Sabotage(
        check_id="system-calls",
        modes=USER,
        how="pairs of sockets are not filtered",
        broken=replaced(
            Patch(file=LAUNCHER, old="(jump_eq, 0, 4, SOCKETPAIR[machine])", new="(jump_eq, 0, 4, X32_BIT)")
        ),
    ),
    Sabotage(
        check_id="system-calls",
        modes=USER,
        how="the mount calls that kernels have had since 5.2 are there",
        broken=replaced(
            Patch(file=LAUNCHER, old="in MISSING.values():", new="in {*MISSING.values()} - {430}:")
        ),
    ),
    Sabotage(
        check_id="user-namespaces",
        modes=USER,
        how="clone is not filtered",
        broken=replaced(
            Patch(file=LAUNCHER, old="jump_set, 0, 1, NAMESPACE_FLAGS", new="jump_set, 0, 1, 1 << 31")
        ),
    ),
    Sabotage(
        check_id="user-namespaces",
        modes=USER,
        how="unshare is not filtered",
        broken=replaced(without_call(272, 97)),
    ),
    Sabotage(
        check_id="keyring",
        modes=USER,
        how="keyctl is not filtered",
        broken=replaced(without_call(250, 219)),
    ),
    Sabotage(
        check_id="escape-probes",
        modes=USER,
        how="a process with another root can be entered",
        broken=replaced(
            # With Landlock it could not be: it is in no domain of the launcher's making.
            Patch(file=LAUNCHER, old='abi = landlock(orders["writable"])', new="abi = landlock_abi()"),
            Patch(
                file=MODES,
                old="        become(self.entry, empty_bounding_set=True)\n        # The change of",
                new="        heard, said = os.pipe()\n"
                "        if os.fork() == 0:\n"
                '            os.chroot("/usr")\n'
                "            become(self.entry, empty_bounding_set=True)\n"
                "            prctl(PR_SET_DUMPABLE, 1)\n"
                "            os.closerange(0, 64)\n"
                "            while True:\n"
                "                signal.pause()\n"
                "        os.close(said)\n"
                "        os.read(heard, 1)\n"
                "        become(self.entry, empty_bounding_set=True)\n        # The change of",
            ),
        ),
        also={"landlock-refuses": "there is none, as is said above"},
    ),
    Sabotage(
        check_id="devices",
        modes=USER,  # firejail makes /dev anew
        how="/dev has one more",
        broken=replaced(
            after(VIEW, '        dev = self.at("/dev")\n', '        write_file(f"{dev}/sda", b"")')
        ),
    ),
    Sabotage(
        check_id="terminal-injection",
        modes=USER,
        how="TIOCSTI is not filtered",
        broken=replaced(Patch(file=LAUNCHER, old="(jump_eq, 1, 0, TIOCSTI)", new="(jump_eq, 1, 0, 0x5499)")),
    ),
    Sabotage(
        check_id="limit-processes",
        modes=USER,
        how="the launcher does not limit itself, and the helper says that it does",
        broken=replaced(
            Patch(file=LAUNCHER, old='if orders["processes"]:', new="if False:"),
            Patch(
                file=SANDBOX,
                old='({"disk": "measured"} if "disk" in limits else {}) | (self.held or {})',
                new='(self.held or {}) | {"pids": "rlimit"}',
            ),
        ),
        options=("--limit", "pids=77"),
    ),
    Sabotage(
        check_id="limit-files",
        modes=USER,
        how="open files are not limited, and the helper says that they are",
        broken=replaced(
            Patch(file=MODES, old="        limit_open_files(self.request.limits)\n", new=""),
            Patch(
                file=SANDBOX,
                old='({"disk": "measured"} if "disk" in limits else {}) | (self.held or {})',
                new='(self.held or {}) | {"open_files": "rlimit"}',
            ),
        ),
        options=("--limit", "open_files=77"),
    ),
    Sabotage(
        check_id="core-dumps",
        modes=USER,
        how="core dumps are written",
        broken=replaced(
            Patch(
                file=LAUNCHER,
                old="os.closerange(3, 1024)\n    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
                new="os.closerange(3, 1024)\n    resource.setrlimit("
                "resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)",
            ),
            first=_CORES,
        ),
    ),
    Sabotage(
        check_id="inside-answers",
        modes=EVERY,
        how="there is no probe",
        broken=replaced(
            Patch(file=LAUNCHER, old='argv = piece("inside.py")', new='argv = ("/usr/bin/true",)')
        ),
    ),
    Sabotage(
        check_id="root-options",
        modes=USER,
        how="the root may hold devices",
        broken=replaced(
            Patch(
                file=VIEW,
                old="MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV",
                new="MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID",
            )
        ),
    ),
    Sabotage(
        check_id="system-modes",
        modes=USER,
        how="everybody may write to /home",
        broken=replaced(in_view('self.directory("/home", 0o777)')),
    ),
    Sabotage(
        check_id="temporary-empty",
        modes=USER,
        how="/tmp holds a file",
        broken=replaced(in_view("""write_file(self.at("/tmp/left"), b"")""")),
    ),
    Sabotage(
        check_id="account-name",
        modes=LOCAL,
        how="the worker is called something else",
        broken=replaced(Patch(file=VIEW, old='worker = f"{name}:x:{uid}', new='worker = f"somebody:x:{uid}')),
    ),
    Sabotage(
        check_id="inside-unchanged",
        modes=USER,
        how="no sandbox is like the one before",
        broken=replaced(in_view('self.directory(f"/{os.getpid()}")')),
    ),
)
