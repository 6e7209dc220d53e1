"""podman's API as root of a user namespace."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import stat

from clsecure.privileged.root.kernel import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    bind,
    loopback_address,
    loopback_up,
    mount,
    prctl,
)
from clsecure.privileged.root.messages import Refused
from clsecure.privileged.root.processes import exit_code, keep_only, parent_of, run_and_exit
from clsecure.privileged.root.seccomp import restrict_engine
from clsecure.privileged.root.state import write_file
from clsecure.privileged.root.userspace import credentials_of, enter_user_namespace, wide_map, write_maps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from clsecure.privileged.root.messages import Entry
    from clsecure.privileged.root.userspace import Map
    from clsecure.privileged.root.view import View

PODMAN = "/usr/bin/podman"
GATEWAY = "169.254.1.2"
"""Of the session's own network namespace: the one address under which everything in it has the gateway."""
OVERFLOW, TTY = 65534, 5
CONTAINERS_CONF = """# Written by clsecure for this engine, which reads nothing else of the machine's.
[containers]
cgroups = "disabled"
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
log_driver = "k8s-file"
log_size_max = 10000000
http_proxy = false
host_containers_internal_ip = "{gateway}"
[engine]
runtime = "{runtime}"
runtime_supports_nocgroup = ["{runtime}"]
runtime_supports_nocgroups = ["{runtime}"]
cgroup_manager = "cgroupfs"
events_logger = "file"
[engine.runtimes]
{runtime} = ["{path}"]
[network]
network_backend = "netavark"
"""
STORAGE_CONF = """[storage]
driver = "overlay"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers"
[storage.options]
additionalimagestores = [{images}]
[storage.options.overlay]
ignore_chown_errors = "{single}"
"""
MOUNTS_CONF = ("/etc/containers/mounts.conf", "/usr/share/containers/mounts.conf")
"""What Fedora has podman mount into every container: the subscriptions of the machine."""
IMAGES = "/opt/clsecure/images"
CRUN = "/usr/bin/crun"
# No network and no groups: both are those of the engine's sandbox. Sockets: the launcher talks to the helper.
# What podman says about groups is crun's alone.
RUNSC_WRAPPER = """#!/bin/sh
left=$#
while [ "$left" -gt 0 ]; do
    word=$1 left=$((left - 1))
    shift
    case $word in
    --cgroup-manager) shift && left=$((left - 1)) ;;
    --cgroup-manager=*) ;;
    *) set -- "$@" "$word" ;;
    esac
done
exec {path} --root=/run/runsc --network=none --host-uds=open --ignore-cgroups "$@"
"""


class Engine:
    """podman's API as root of a user namespace of its own: to everybody else it is the worker.

    It needs no set-uid program and no capability of the machine's; with its first process all of it dies.

    :param api: the listening socket, handed over as systemd does it (sd_listen_fds(3)).
    :param images: the owner's image store, read-only; None without one.
    :param storage: a directory of the engine's own for what it stores, None for memory.
    :param runtime: path of the OCI runtime.
    :param wide: with the account's range of further uids, and a network namespace to build networks in.
    """

    def __init__(
        self,
        entry: Entry,
        api: socket.socket,
        *,
        tty: int,
        images: Entry | None = None,
        storage: str | None = None,
        wide: bool = False,
        proxy: str | None = None,
        runtime: str = CRUN,
    ) -> None:
        self.entry, self.api, self.images, self.storage = entry, api, images, storage
        self.wide, self.proxy, self.runtime = wide, proxy, runtime
        uid = entry["uid"]
        self.others = {"images": None if images is None else images["uid"], "tty": tty}
        self.uids: Map = [(0, uid, 1)]
        self.gids: Map = [(0, uid, 1), (TTY, tty, 1)]
        if wide:
            self.uids, self.gids = wide_map(entry), wide_map(entry)
        elif images is not None:
            # Who the image's files belong to. Mapped, so that mount points can be made above them; the store
            # itself is read-only here, and the agent is somebody else and has no capability.
            self.uids += [(OVERFLOW, images["uid"], 1)]
            self.gids += [(OVERFLOW, images["uid"], 1)]
        self._words, self._inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._words.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    def started(self, timeout: float, stage: int) -> int:
        """In the helper, after the fork: give the user namespace its maps; return its first process's pid.

        :param stage: pid of the process that forked it, a child of the helper's.
        """
        # With the only copies in there, an engine that is dead is heard, and its socket takes nobody's call.
        self._inside.close()
        self.api.close()
        pid = credentials_of(self._words, timeout)
        if not pid or parent_of(pid) != stage:
            raise Refused("the engine did not come up")
        write_maps(pid, self.uids, self.gids)
        return pid

    def go(self) -> None:
        """Let it go on."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._words.send(b"1")

    def close(self) -> None:
        """Give back what the helper holds of it."""
        for end in (self._words, self._inside, self.api):
            end.close()

    def furnish(self, view: View) -> None:
        """In the child: what the engine needs of the view."""
        for path in ("/run", "/run/containers", "/var/lib/containers", "/var/cache/containers"):
            os.chown(view.directory(path), self.entry["uid"], self.entry["uid"])
        if self.storage is not None:
            flags = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
            # Images of a session's own engine may hold set-uid programs: they raise nobody out of its range.
            bind(self.storage, view.at("/var/lib/containers"), 0 if self.wide else flags)
        stores = []
        if self.images is not None:
            bind(self.images["home"], view.directory(IMAGES), view.read_only | MOUNT_ATTR_NOSUID)
            stores = [f'"{IMAGES}/storage"']
        hard = [resource.getrlimit(limit)[1] for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)]
        files, processes = (
            n if 0 <= n < most else most for n, most in zip(hard, (1 << 20, 1 << 22), strict=True)
        )
        ours = view.directory("/opt/clsecure/etc")
        write_file(f"{ours}/nothing", b"", 0o644)
        for path in MOUNTS_CONF:
            if os.path.isfile(view.at(path)):
                bind(f"{ours}/nothing", view.at(path), view.read_only)
        name, path = os.path.basename(self.runtime), self.runtime
        if name == "runsc":
            write_file(f"{ours}/runsc", RUNSC_WRAPPER.format(path=path).encode(), 0o755)
            path = "/opt/clsecure/etc/runsc"
        gateway = GATEWAY if self.wide else ""
        conf = CONTAINERS_CONF.format(
            files=files, processes=processes, gateway=gateway, runtime=name, path=path
        )
        write_file(f"{ours}/containers.conf", conf.encode(), 0o644)
        conf = STORAGE_CONF.format(images=", ".join(stores), single="false" if self.wide else "true")
        write_file(f"{ours}/storage.conf", conf.encode(), 0o644)
        short = '"docker.io"' if self.wide else ""
        conf = f'unqualified-search-registries = [{short}]\nshort-name-mode = "disabled"\n'
        write_file(f"{ours}/registries.conf", conf.encode(), 0o644)

    def run(self) -> NoReturn:
        """In the child, still root: fork into the new PID namespace, whose first process it is."""
        # The caller's connection and the account's lock are among what nothing in there may hold.
        keep_only(self.api.fileno(), self._inside.fileno())
        first = os.fork()
        if first:
            os.closerange(0, 5)
            _, status = os.waitpid(first, 0)
            os._exit(exit_code(status))
        run_and_exit(self._first)

    def _first(self) -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        inside = socket.socket(fileno=4)
        enter_user_namespace(inside, CLONE_NEWNS | (CLONE_NEWNET if self.wide else 0))
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # The changes of uid took it away: did the helper die meanwhile?
        if select.select([inside], [], [], 0)[0]:
            raise Refused("the helper is gone")
        # This process is a copy of the helper, and root in here must not read what that knew.
        prctl(PR_SET_DUMPABLE, 0)
        if self.wide:
            loopback_up()
            loopback_address(GATEWAY)
            restrict_engine()
        main = os.fork()
        if main == 0:
            env = {
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/run/engine", "TMPDIR": "/var/tmp",
                "CONTAINERS_CONF": "/opt/clsecure/etc/containers.conf",
                "CONTAINERS_STORAGE_CONF": "/opt/clsecure/etc/storage.conf",
                "CONTAINERS_REGISTRIES_CONF": "/opt/clsecure/etc/registries.conf",
                # Images are built in the engine's own namespaces: nothing there is the agent's to gain.
                "BUILDAH_ISOLATION": "chroot",
                # sd_listen_fds(3): the first is 3.
                "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "podman.sock",
            }  # fmt: skip
            if self.proxy:
                env |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), self.proxy)
                env |= dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1,::1")
            fcntl.fcntl(3, fcntl.F_SETFD, 0)
            os.execve(PODMAN, (PODMAN, "system", "service", "--time=0"), env)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.closerange(3, 1024)
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == main:
                os._exit(exit_code(status))


def given_listener(fds: list[int]) -> socket.socket:
    """Take the first descriptor out of what came along: a listening Unix socket; refuse anything else."""
    if not fds or not stat.S_ISSOCK(os.fstat(fds[0]).st_mode):
        raise Refused("the engine's socket is none")
    given = socket.socket(fileno=fds.pop(0))
    listening = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if (given.family, given.type, listening) != (socket.AF_UNIX, socket.SOCK_STREAM, 1):
        given.close()
        raise Refused("the engine's socket does not listen")
    return given


def listen(path: str, kind: socket.SocketKind, *, uid: int, gid: int, mode: int) -> socket.socket:
    """Return a listening socket at a path in a directory of root's own."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(path)
    os.chmod(path, mode)
    os.chown(path, uid, gid)
    listener.listen(64)
    return listener
