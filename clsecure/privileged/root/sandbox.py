"""A sandbox, seen from the helper: made, watched at the barrier and after it, ended."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import time

from clsecure.privileged.root.accounts import close_home
from clsecure.privileged.root.channel import Channel, peer_uid
from clsecure.privileged.root.disk import Disk
from clsecure.privileged.root.engine import CRUN, PODMAN, Engine, listen
from clsecure.privileged.root.facts import (
    facts_of,
    filter_of,
    image_program,
    keyrings,
    network_of,
    program_of,
)
from clsecure.privileged.root.killing import kill_if_of, quiesce
from clsecure.privileged.root.limits import (
    CLEAR_SECONDS,
    by_rlimit,
    cgroup_enter,
    cgroup_paths,
    confirmed,
    struck,
)
from clsecure.privileged.root.looking import Looking
from clsecure.privileged.root.messages import Refused, close_all, receive, send
from clsecure.privileged.root.modes import DockerMode, NamespaceMode, PodmanMode, UserMode
from clsecure.privileged.root.places import known, places_of
from clsecure.privileged.root.processes import Stage, is_of, processes_of, uids_of
from clsecure.privileged.root.request import Request
from clsecure.privileged.root.sidecar import Sidecar
from clsecure.privileged.root.state import (
    RUN,
    own_directory,
    remove_directory,
    require_root_owned,
    write_file,
)
from clsecure.privileged.root.stores import image_store, storage_of, wipe_storage
from clsecure.privileged.root.view import DEVICES, SYSTEM, user_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from clsecure.privileged.root.messages import Entry, Message
    from clsecure.privileged.root.places import Outside
    from clsecure.privileged.root.registry import Registry

ENGINE_SECONDS, LAUNCHER_SECONDS = 60.0, 20.0
TICK_SECONDS = 1.0


class Sandbox:
    """One sandbox, from its first process to the death of its last.

    :param pieces: the root-owned directory of the launcher and firejail's profile.
    """

    def __init__(self, entry: Entry, message: Message, fds: list[int], *, pieces: str) -> None:
        self.entry, self.pieces = entry, pieces
        self.request = Request(entry, message, fds)
        self.disk: Disk | None = None
        self.engine: Engine | None = None
        self.sidecar: Sidecar | None = None
        self.stage: Stage | None = None
        self.run_directory = ""
        self.listened: Message | None = None  # the socket to which a container's launcher connects
        self.sockets: dict[str, socket.socket] = {}
        self.output: list[int] = []
        self.told = os.memfd_create("told")
        self.rlimited: list[str] = []
        self.main: Message = {}
        self.main_pidfd = -1
        self.programs: list[int] = []
        self.groups: dict[str, str] = {}
        self.looking: Looking | None = None
        self.held: dict[str, str] | None = None  # what limits hold, and how, in all that has groups
        self.passed: str | None = None
        self.struck: dict[str, int] = {}
        self.status: int | None = None

    def prepare(self, registry: Registry) -> None:
        """Make what has to be there before the first process; :meth:`end` takes it away."""
        request, tty = self.request, registry.config["range_first"]
        if request.watches_disk:
            storage = storage_of(self.entry) if request.docker == "own" else None
            self.disk = Disk(self.entry, request.limits.get("disk", 0), storage=storage)
        if request.container or request.docker:
            self._make_sockets()
        if request.api is not None:
            images = image_store(registry, self.entry["owner"])
            runtime = request.runtime or CRUN
            self.engine = Engine(self.entry, request.api, tty=tty, images=images, runtime=runtime)
        if request.docker == "own":
            require_root_owned(PODMAN)
            with registry.lock():
                registry.give_range(self.entry)
            self.sidecar = Sidecar(
                self.entry,
                self.sockets["docker"],
                tty=tty,
                workspace=request.workspace,
                proxy=request.proxy,
                limits=request.limits,
            )

    def _make_sockets(self) -> None:
        """Make the places where the inside meets this process and the caller, in a directory of root's."""
        uid, owner = self.entry["uid"], self.entry["owner"]
        own_directory(RUN, 0o711)
        self.run_directory = own_directory(f"{RUN}/{self.entry['name']}", 0o711)
        if self.request.container:
            path = f"{self.run_directory}/control"
            self.sockets["control"] = listen(path, socket.SOCK_SEQPACKET, uid=uid, gid=uid, mode=0o600)
            self.listened = known(path)
            inside = uid if self.request.container == "docker" else 0
            if self.request.plain:
                for name in ("streams", "gateway"):
                    path = f"{self.run_directory}/{name}"
                    self.sockets[name] = listen(path, socket.SOCK_STREAM, uid=uid, gid=uid, mode=0o600)
            for name, content in user_files(self.entry, inside).items():
                write_file(f"{self.run_directory}/{name}", content.encode(), 0o644)
        if self.request.docker:
            # The worker by its group, the caller as the owner: who brings images, or lends the host's docker.
            path = f"{self.run_directory}/docker.sock"
            self.sockets["docker"] = listen(path, socket.SOCK_STREAM, uid=owner, gid=uid, mode=0o660)

    def launch(self) -> None:
        """Start the first process; it becomes the launcher, or the engine from which one is wanted."""
        self.output += os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        log, output = self.output
        if self.sidecar is not None:
            self.sidecar.launch(self._limited, output)
        if self.request.container:
            control, inside = self.sockets.pop("control"), None
        else:
            control, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mode, end = self._mode(), -1 if inside is None else inside.fileno()
        self.stage = Stage(lambda: mode.run(end), output)
        os.close(self.output.pop())
        if inside is not None:
            inside.close()
        self.channel = Channel(control, log, self.stage.pidfd)
        if self.request.container != "docker":  # whose daemon has the container in groups of its own
            self._limited(self.stage.pid)
        limits = self.request.limits
        self.rlimited = [n for n in ("pids", "open_files") if n in limits and n not in (self.held or {})]
        self.stage.go()
        if self.engine is not None:
            self._start_engine(self.engine, self.stage.pid)
        if not self.request.container:
            self._give_orders()

    def _mode(self) -> UserMode:
        network = -1 if self.sidecar is None else self.sidecar.network
        places: dict[str, Any] = {
            "pieces": self.pieces,
            "sockets": self.run_directory,
            "joined": network,
            "told": self.told,
        }
        if self.engine is not None:
            return PodmanMode(self.entry, self.request, self.engine, **places)
        kinds = {"user": UserMode, "namespace": NamespaceMode, "container": DockerMode}
        return kinds[self.request.mode](self.entry, self.request, **places)

    def _limited(self, pid: int) -> None:
        """Put a first process into the session's groups."""
        self._holds(cgroup_enter(self.entry, pid, self.request.limits, beside=self.groups))
        self.groups = cgroup_paths(pid)

    def _holds(self, held: dict[str, str]) -> None:
        """Take note of what limits hold for one part of the session: what doesn't for another is not held."""
        self.held = {n: how for n, how in held.items() if self.held is None or n in self.held}

    def _start_engine(self, engine: Engine, stage: int) -> None:
        try:
            engine.started(10, stage)
        except Refused as refused:
            raise Refused(f"{refused}: {self.channel.drain() or 'no word from it'}") from None
        engine.go()

    def _give_orders(self) -> None:
        """Tell the launcher what it has to make."""
        request = self.request
        orders = {
            "listener": list(request.address) if request.address else None,
            "status": bool(request.container),
            "plain": request.plain,
            "terminal": request.terminal,
            "writable": [self.entry["home"], *(t for t, read_only, _ in request.mounts if not read_only)],
            # The launcher lowers it: firejail makes its user namespace as root, who has processes of its own.
            "processes": request.limits["pids"] if "pids" in self.rlimited else None,
        }
        self.channel.tell(orders)

    def barrier(self, conn: socket.socket) -> bool:
        """Wait for the launcher, look at that very process, and hand everything to the caller."""
        container = bool(self.request.container)
        deadline = time.monotonic() + (ENGINE_SECONDS if container else LAUNCHER_SECONDS)

        def awaited() -> bool:
            # With a container on its way, any word of the caller's is that it will not come.
            return self.channel.awaited(conn, deadline, heeds=container)

        fds = array.array("i")
        try:
            if container and not self._connected(awaited):
                return False
            # What it made comes first and by itself: at ``ready`` the launcher holds no copy any more.
            report: Message = {"event": "made"}
            while report.get("event") == "made":
                if not awaited():
                    return False
                if self.request.plain and not fds:
                    # It connects before it says a word.
                    self._take_streams(fds)
                report, pid = self.channel.word(fds)
            if report.get("event") != "ready":
                raise Refused(f"the launcher gave up: {report.get('error')}")
            enforced = self._looked_at(pid)
            if self.request.docker == "host":
                fds.append(self.sockets.pop("docker").detach())
            fds.extend(self.programs)
            self.programs = []
            send(conn, {"event": "ready", "report": report, "facts": self.main, "enforced": enforced}, fds)
        finally:
            close_all(fds)
        return True

    def _looked_at(self, pid: int) -> dict[str, str]:
        """Take in what /proc says of the launcher; return which limits hold for it.

        In a container it is a program of the caller's choice, which may end while its words lie here unread:
        another's process would have its number then, and be told about.
        """
        with contextlib.suppress(OSError):
            self.main_pidfd = os.pidfd_open(pid)
            if is_of(self.entry, uids_of(pid)):
                self.main, enforced = self._facts(pid), self._enforced(pid)
                if not select.select([self.main_pidfd], [], [], 0)[0]:
                    return enforced
        raise Refused("the launcher has ended")

    def _facts(self, pid: int) -> Message:
        found = {
            **facts_of(pid),
            "network": network_of(pid),
            "program": program_of(pid, self.request.agent, self.entry),
        }
        # A kernel of its own has files of its own, which nobody sees from here.
        found["places"] = {} if self.request.plain else places_of(pid, self._places(), self.entry)
        # Whose the numbers are that an engine maps besides the worker's.
        found["mapped"] = None if self.engine is None else self.engine.others
        found |= {"keyrings": keyrings(self.told)}
        programs = {name: image_program(pid, name, self.entry) for name in self.request.programs}
        self.programs = [fd for fd in programs.values() if fd is not None]
        found |= {"programs": {name: fd is not None for name, fd in programs.items()}}
        return found | {"filter": None if self.request.network is None else filter_of(pid)}

    def _places(self) -> Iterator[tuple[str, Outside]]:
        """Yield every place where the sandbox has something of the machine's, and what belongs there."""
        request = self.request
        yield self.entry["home"], self.entry["home"]
        yield from ((target, fd) for target, _, fd in request.mounts)
        if request.docker:
            yield f"{RUN}/docker.sock", f"{self.run_directory}/docker.sock"
        if request.container:
            yield self.pieces, self.pieces
            yield f"{RUN}/control", self.listened
            yield from ((f"/etc/{name}", f"{self.run_directory}/{name}") for name in ("passwd", "group"))
            return
        yield from ((f"/{name}", f"/{name}") for name in SYSTEM if os.path.lexists(f"/{name}"))
        if request.mode == "user":  # firejail makes others
            yield from ((f"/dev/{name}", f"/dev/{name}") for name in DEVICES)

    def _connected(self, awaited: Callable[[], bool]) -> bool:
        """Wait for the launcher in the container: the first process of the worker's that connects."""
        try:
            connected = self.channel.accept(self.entry["uid"], awaited)
        finally:
            os.unlink(f"{self.run_directory}/control")
        if connected:
            self._give_orders()
        return connected

    def _take_streams(self, fds: array.array[int]) -> None:
        """Take in what the gateway is to serve, and the launcher's connections by their tags."""
        listener = self.sockets.pop("streams")
        listener.settimeout(LAUNCHER_SECONDS)
        found: dict[bytes, int] = {}
        with listener:
            for _ in range(2 if self.request.terminal else 3):
                stream, _ = listener.accept()
                stream.settimeout(LAUNCHER_SECONDS)
                tag = stream.recv(1) if peer_uid(stream) == self.entry["uid"] else b""
                stream.settimeout(None)
                found[tag] = stream.detach()
        if self.request.listener:
            fds.append(self.sockets.pop("gateway").detach())
        fds.extend(found[tag] for tag in sorted(found))

    def _enforced(self, pid: int) -> dict[str, str]:
        """Return which limits hold for the launcher, and how: only what the kernel says."""
        limits = self.request.limits
        if self.request.container == "docker":
            self._holds(dict.fromkeys(confirmed(pid, limits), "engine"))
            self.groups = cgroup_paths(pid)
        rlimited = by_rlimit(pid, limits) & set(self.rlimited)
        if self.sidecar is not None:
            # The kernel counts processes by uid, and containers of the session's own engine have many.
            rlimited.discard("pids")
        enforced = dict.fromkeys(rlimited, "rlimit")
        return enforced | ({"disk": "measured"} if "disk" in limits else {}) | (self.held or {})

    def serve(self, conn: socket.socket) -> None:
        """Pass ``probe`` and ``start`` on, wait for the end; a ``kill``, or the caller's death, ends it."""
        control, log, first = self.channel.control, self.channel.log, self.channel.pidfd
        watch: list[Any] = [conn, control, first, self.main_pidfd, log]
        while True:
            counting = [self.disk.pipe] if self.disk and self.disk.pipe >= 0 else []
            ready, _, _ = select.select([*watch, *counting], [], [], TICK_SECONDS)
            if self._is_over(ready):
                return
            if log in ready:
                self.channel.drain()
            ended: list[Any] = [control] if control in ready and not self._heard(conn) else []
            ended += [log] if self.channel.log_closed else []
            if first in ready:
                return
            if self.main_pidfd in ready:
                ended.append(self.main_pidfd)
                if not self.request.container and not self.clear():
                    return
            watch = [each for each in watch if each not in ended]
            if self.request.container and control not in watch and self.main_pidfd not in watch:
                # With its first process, which this was, a container is dead, and all that it said is heard.
                return
            if conn in ready and self.main_pidfd not in ready and not self._asked(conn):
                return
            if self.looking is not None:
                self.looking.tell(conn)

    def _is_over(self, ready: Sequence[Any]) -> bool:
        self._note_struck()
        if self.disk:
            self.passed = self.disk.look(ready)
        return self.passed is not None

    def _heard(self, conn: socket.socket) -> bool:
        """Take in what the launcher says after the start; False at its end."""
        said = self.channel.late_word()
        if said is None:
            return False
        if said.get("event") == "failed":
            send(conn, {"event": "failed", "error": str(said.get("error", ""))})
        if self.request.container and type(said.get("status")) is int:
            self.status = said["status"] & 0xFF
        return True

    def _asked(self, conn: socket.socket) -> bool:
        """Take in what the caller says; False when it is the end."""
        message, fds = receive(conn)
        try:
            verb = None if message is None else message.get("verb")
            if message is None or verb not in ("start", "probe"):
                return False
            if verb == "probe":
                self._require_probeable()
            self.channel.tell(message, fds)
            if verb == "start":
                self.channel.no_more()
                self.looking = self._looking()
        finally:
            close_all(fds)
        return True

    def _looking(self) -> Looking:
        engine = self.stage.pid if self.engine and self.stage else None
        sidecar = self.sidecar.stage.pid if self.sidecar and self.sidecar.stage else None
        plain = self.request.plain
        return Looking(self.entry, self.main, engine=engine, sidecar=sidecar, plain=plain)

    def _require_probeable(self) -> None:
        """Refuse a probe beside the agent, and where the launcher could not end it."""
        spaces, hosts = self.main["namespaces"], self.main["host_namespaces"]
        if self.looking is not None:
            raise Refused("the command runs: no probe is started beside it")
        if self.request.plain or spaces["pid"] == hosts["pid"]:
            raise Refused("no probe can be started in this sandbox")

    def _note_struck(self) -> None:
        """Keep what the groups count: they may be gone with their last process."""
        with contextlib.suppress(OSError, ValueError):
            for name, count in struck(self.groups).items():
                self.struck[name] = max(count, self.struck.get(name, 0))

    def clear(self) -> bool:
        """The command has ended: end what it left running, so that the sandbox ends and gives the status.

        firejail would do it (deterministic-shutdown), but sleeps for 100 ms even where nothing is left. False
        when there is more than this gets in time, a fork bomb say: then the sandbox is to be killed.
        """
        deadline, first = time.monotonic() + CLEAR_SECONDS, [self.channel.pidfd]
        while not select.select(first, [], [], 0.03)[0] and time.monotonic() < deadline:
            for pid in processes_of(self.entry):
                if self._is_left(pid):
                    kill_if_of(pid, self.entry)
        return bool(select.select(first, [], [], 0)[0])

    def _is_left(self, pid: int) -> bool:
        """Tell whether a process is in the command's PID namespace, and not its first, which is firejail."""
        try:
            with open(f"/proc/{pid}/status", "rb") as file:
                inside = next(line for line in file if line.startswith(b"NSpid:")).split()[-1]
            return inside != b"1" and os.readlink(f"/proc/{pid}/ns/pid") == self.main["namespaces"]["pid"]
        except (OSError, StopIteration):
            return False

    def end(self) -> Message:
        """Kill whatever is left, collect the status, give the status back."""
        try:
            return self._ended()
        finally:
            self._release()

    def _ended(self) -> Message:
        running, code = True, 137
        if self.stage is not None:
            running = self.stage.kill()
            self._note_struck()
            code = self.stage.end()
        if self.request.container:
            # That one runs until it is killed; the launcher says how the command ended.
            running, code = self.status is None, 137 if self.status is None else self.status
        if self.disk:
            self.disk.close()
        if self.sidecar is not None:
            self.sidecar.end()
        killed = quiesce(self.entry)
        close_home(self.entry)
        wipe_storage(self.entry)
        return {
            "event": "exit", "status": code, "killed": killed, "interrupted": running,
            "log": "" if self.stage is None else self.channel.drain(),
            "passed": self.passed, "struck": self.struck,
        }  # fmt: skip

    def _release(self) -> None:
        """Give back every descriptor, and the places of the sockets."""
        for part in (self.engine, self.sidecar, self.request.api, *self.sockets.values()):
            if part is not None:
                part.close()
        if self.stage is not None:
            self.channel.control.close()
        close_all(fd for fd in (*self.output, *self.programs, self.told, self.main_pidfd) if fd >= 0)
        if self.run_directory:
            remove_directory(self.run_directory)
