"""The file system that a sandbox sees."""

from __future__ import annotations

import os
import re
import stat

from clsecure.privileged.root.kernel import (
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    attach,
    bind,
    call,
    mount,
    tmpfs,
    tree_of,
)
from clsecure.privileged.root.messages import MOUNT_LIMIT, Refused, text
from clsecure.privileged.root.network import RESOLVER
from clsecure.privileged.root.state import CLOSED_TARGETS, STATE, own_directory, write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.root.messages import Entry, Message

    GivenMount = tuple[str, bool, int]  # target, read-only, descriptor
    KeptAgent = tuple[str, str] | None

HOSTS_LIMIT = 16 * 1024
SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


class View:
    """The file system that a sandbox sees: a new root that holds only what is named here."""

    def __init__(
        self,
        entry: Entry,
        mounts: list[GivenMount],
        agent: KeptAgent,
        *,
        setuid_allowed: bool,
        memory: int | None,
    ) -> None:
        self.entry, self.agent = entry, agent
        quarter = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
        self.size = min(quarter, memory or quarter)
        self.root = own_directory(f"{STATE}/view", 0o700)
        self.read_only = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | (0 if setuid_allowed else MOUNT_ATTR_NOSUID)
        # Before there is a mount namespace of its own: the kernel copies no mounts out of another one.
        self.mounts = [(target, read_only, tree_of(fd)) for target, read_only, fd in mounts]

    def at(self, path: str) -> str:
        """Return where a path of the inside is being built."""
        return self.root + path

    def directory(self, path: str, mode: int = 0o755) -> str:
        """Make a directory and its parents in the new root."""
        os.makedirs(self.at(path), exist_ok=True)
        os.chmod(self.at(path), mode)
        return self.at(path)

    def writable(self, path: str, mode: int = 0o755) -> None:
        """Make a directory that stays writable: a mount of its own, in the one memory file system."""
        made = self.directory(path, mode)
        mount(made, made, None, MS_BIND)

    def build(self, *, home: bool = True) -> None:
        """Assemble the new root in this process's own mount namespace."""
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        tmpfs(self.root, "755", f"size={self.size}")
        self._private()
        self._system()
        self._devices()
        if home:
            place = self.directory(self.entry["home"])
            bind(self.entry["home"], place, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
        if self.agent is not None:
            digest_directory, name = self.agent
            made = f"{self.directory('/opt/clsecure/bin')}/{name}"
            write_file(made, b"", 0o755)
            bind(f"{digest_directory}/agent", made, self.read_only | MOUNT_ATTR_NOSUID)
        for target, read_only, tree in self.mounts:
            self._given(target, tree, read_only=read_only)

    def _system(self) -> None:
        for name in SYSTEM:
            if os.path.islink(f"/{name}"):
                os.symlink(os.readlink(f"/{name}"), self.at(f"/{name}"))
            elif os.path.isdir(f"/{name}"):
                bind(f"/{name}", self.directory(f"/{name}"), self.read_only)
        ours = self.directory("/opt/clsecure/etc")
        for name, content in user_files(self.entry, self.entry["uid"]).items():
            write_file(f"{ours}/{name}", content.encode(), 0o644)
        # Files that are mounts of their own, as containers have them: the layer below does not show them.
        for name in ("hosts", "hostname", "resolv.conf"):
            if os.path.ismount(f"/etc/{name}") and os.path.isfile(f"/etc/{name}"):
                with open(f"/etc/{name}", "rb") as file:
                    write_file(f"{ours}/{name}", file.read(HOSTS_LIMIT), 0o644)
        # Not files mounted over the host's: the kernel drops such a mount when somebody on the host renames
        # another file into its place, and that is how useradd writes /etc/passwd.
        flags = MS_RDONLY | MS_NODEV | (MS_NOSUID if self.read_only & MOUNT_ATTR_NOSUID else 0)
        mount("overlay", self.directory("/etc"), "overlay", flags, f"lowerdir={ours}:/etc")

    def _private(self) -> None:
        for path in ("/run", "/var", "/opt"):
            self.writable(path)
        self.writable("/tmp", 0o1777)
        for path in ("/var/tmp", "/run/lock"):
            self.directory(path, 0o1777)
        for path in ("var/lib", "var/log", "var/cache", "root", "srv", "mnt", "media", "proc", "sys", "home"):
            self.directory(f"/{path}")
        uid = self.entry["uid"]
        os.chown(self.directory(f"/run/user/{uid}", 0o700), uid, uid)

    def _devices(self) -> None:
        self.writable("/dev/shm", 0o1777)
        dev = self.at("/dev")
        for name in DEVICES:
            write_file(f"{dev}/{name}", b"")
            mount(f"/dev/{name}", f"{dev}/{name}", None, MS_BIND)
        for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
            os.symlink(f"/proc/self/fd{target}", f"{dev}/{name}")
        options = "newinstance,ptmxmode=0666,mode=0620,gid=5"
        mount("devpts", self.directory("/dev/pts"), "devpts", MS_NOSUID | MS_NOEXEC, options)
        os.symlink("pts/ptmx", f"{dev}/ptmx")

    def resolver(self) -> None:
        """Name the resolver of a full network, also where the host's file is a link into its /run."""
        place = os.path.realpath("/etc/resolv.conf")
        content = f"nameserver {RESOLVER}\n".encode()
        if place.startswith("/run/"):
            self.directory(os.path.dirname(place))
            write_file(self.at(place), content, 0o644)
        elif os.path.isfile(place):
            made = self.at("/opt/clsecure/etc/resolv.conf")
            write_file(made, content, 0o644)
            bind(made, self.at(place), self.read_only | MOUNT_ATTR_NOSUID)

    def _given(self, target: str, tree: int, *, read_only: bool) -> None:
        made = self.at(target)
        if os.path.realpath(made) != made:
            raise Refused(f"the mount target {target!r} leads through a link")
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            os.makedirs(made, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(made), exist_ok=True)
            os.close(os.open(made, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))
        attach(tree, made, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (MOUNT_ATTR_RDONLY if read_only else 0))

    def enter(self, *, host_proc: bool, cgroup: bool = False, open_sys: bool = False) -> None:
        """Make the new root the only one.

        :param host_proc: firejail looks at the host's /proc first.
        :param cgroup: with the sandbox's own groups.
        :param open_sys: not read-only by mount. The kernel lets user namespaces below have no more than this
            one, and privileged containers want theirs so; root's files in it stay root's.
        """
        if host_proc:
            mount("/proc", self.at("/proc"), None, MS_BIND | MS_REC)
            mount("/sys", self.at("/sys"), None, MS_BIND | MS_REC)
        else:
            flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | (0 if open_sys else MS_RDONLY)
            mount("sysfs", self.at("/sys"), "sysfs", flags)
        if cgroup:
            # The sandbox's own groups, and only those: engines want to see what they would put limits on.
            flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
            mount("cgroup2", self.at("/sys/fs/cgroup"), "cgroup2", flags)
        os.chdir(self.root)
        call("pivot_root", b".", b".")
        call("umount2", b".", MNT_DETACH)
        os.chdir("/")
        mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def parse_mounts(message: Message, fds: list[int], entry: Entry) -> list[GivenMount]:
    """Return [(target, read_only, fd)], checked: in no closed directory, not nested, opened by the caller."""
    wanted = message.get("mounts", [])
    if not isinstance(wanted, list) or len(wanted) > MOUNT_LIMIT or len(wanted) != len(fds):
        raise Refused("mounts and descriptors do not match")
    parsed: list[GivenMount] = []
    for item, fd in zip(wanted, fds, strict=True):
        if not isinstance(item, dict):
            raise Refused("a mount must be an object")
        target = text(item, "target")
        # Not "//x": normpath() leaves two slashes, and the checks below would take it for another place.
        if target != os.path.normpath(target) or not re.match(r"/[^/]", target) or "\n" in target:
            raise Refused(f"the mount target {target!r} is not a plain absolute path")
        if target.split("/")[1].rstrip("0123456789x") in CLOSED_TARGETS:
            raise Refused(f"nothing can be mounted below /{target.split('/')[1]}")
        for other in (*(t for t, _, _ in parsed), entry["home"], "/opt/clsecure"):
            if f"{target}/".startswith(f"{other}/") or f"{other}/".startswith(f"{target}/"):
                raise Refused(f"the mount target {target!r} overlaps another one")
        mode, place = os.fstat(fd).st_mode, os.readlink(f"/proc/self/fd/{fd}")
        # A namespace is a regular file, too; it has no place.
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) or not place.startswith("/"):
            raise Refused(f"only directories and files can be mounted ({target!r})")
        parsed.append((target, item.get("read_only") is not False, fd))
    return parsed


def user_files(entry: Entry, uid: int) -> dict[str, str]:
    """Return the databases of users that a sandbox sees. ``uid``: the worker's, inside."""
    name, home = entry["name"], entry["home"]
    root = "root:x:0:0:root:/root:/usr/sbin/nologin\n" if uid else ""
    worker = f"{name}:x:{uid}:{uid}::{home}:/bin/bash\n"
    return {
        "passwd": f"{root}{worker}nobody:x:65534:65534::/:/usr/sbin/nologin\n",
        "group": ("root:x:0:\n" if uid else "") + f"tty:x:5:\n{name}:x:{uid}:\nnogroup:x:65534:\n",
    }
