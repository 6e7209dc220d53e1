"""What a caller asks of a sandbox, checked before anything of it is made."""

from __future__ import annotations

import os
import re
import stat

from clsecure.privileged.root.agents import SHA256
from clsecure.privileged.root.engine import GATEWAY, PODMAN, given_listener
from clsecure.privileged.root.limits import parse_limits
from clsecure.privileged.root.messages import Refused, text
from clsecure.privileged.root.network import CLOSED, PRIVATE
from clsecure.privileged.root.state import STATE, require_root_owned
from clsecure.privileged.root.view import parse_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from clsecure.privileged.root.messages import Entry, Message
    from clsecure.privileged.root.view import KeptAgent

FIREJAIL = "/usr/bin/firejail"
PROXY_PORT = 3128
RUNTIME = re.compile(r"/usr/[A-Za-z0-9._/-]{1,200}\Z")
RUNTIME_DIRECTORIES = ("/usr/local/bin", "/usr/bin", "/usr/sbin", "/usr/local/sbin", "/usr/libexec")
PROGRAM = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
PROGRAMS = 3
TOKEN = re.compile(r"[0-9a-f]{16,128}\Z")


class Request:
    """One ``run``. The descriptors stay the connection's, but for the engine's socket, which is taken out."""

    def __init__(self, entry: Entry, message: Message, fds: list[int]) -> None:
        self.mode, self.container, self.docker = parse_modes(message)
        self.api: socket.socket | None = None
        if self.container == "podman":
            require_root_owned(PODMAN)
            self.api = given_listener(fds)
        try:
            self._take_in(entry, message, fds)
        except BaseException:
            if self.api is not None:
                self.api.close()
            raise

    def _take_in(self, entry: Entry, message: Message, fds: list[int]) -> None:
        self.network: int | None = None
        if message.get("network_namespace") is True:
            self.network, *fds = fds
        private = message.get("private") is True
        if private and self.network is None:
            raise Refused("only a network namespace can be opened to private addresses")
        if self.network is not None and (self.docker == "own" or self.container == "docker"):
            raise Refused("an engine's own network and a full network do not go together")
        self.closed = CLOSED if private else CLOSED + PRIVATE
        self.mounts = parse_mounts(message, fds, entry)
        self.agent = parse_agent(message, entry)
        if self.mode == "namespace":
            require_root_owned(FIREJAIL, stat.S_ISUID)
        self.limits = parse_limits(message)
        self.watches_disk = message.get("disk_reserve") is True or "disk" in self.limits
        self.terminal = parse_terminal(message)
        self.listener = message.get("listener") is True
        # A runtime with a kernel of its own hands no descriptors through.
        self.plain = self.container is not None and message.get("plain") is True
        self.programs = parse_programs(message) if self.container and not self.plain else []
        self.runtime = parse_runtime(text(message, "runtime")) if message.get("runtime") else None
        self.workspace = text(message, "workspace") if self.docker == "own" else ""
        self.proxy = parse_proxy(message) if self.docker == "own" and self.listener else None

    @property
    def address(self) -> tuple[str, int] | None:
        """Where the launcher listens for what the gateway is to serve, inside."""
        if not self.listener:
            return None
        # The session's own engine makes networks in the same namespace, whose containers want it, too.
        # There is no way out of it but that gateway: all addresses are those of the namespace.
        return ("0.0.0.0", PROXY_PORT) if self.docker == "own" else ("127.0.0.1", 0)  # noqa: S104


def parse_proxy(message: Message) -> str | None:
    """Return where the session's own engine finds the gateway; with the token that the agent has, too."""
    if message.get("gateway_token") is None:
        return None
    token = text(message, "gateway_token", 128)
    if not TOKEN.match(token):
        raise Refused("the gateway's token is none")
    return f"http://clsecure:{token}@{GATEWAY}:{PROXY_PORT}"


def parse_modes(message: Message) -> tuple[str, str | None, str | None]:
    """Return the mode, the engine of a container, and what of docker the inside gets."""
    mode, container, docker = message.get("mode"), message.get("engine"), message.get("docker")
    if mode not in ("user", "namespace", "container"):
        raise Refused("the mode must be user, namespace or container")
    if container not in (("podman", "docker") if mode == "container" else (None,)):
        raise Refused("containers have an engine, podman or docker, and nothing else has")
    if docker not in (None, "own", "host"):
        raise Refused("docker must be own or host")
    return mode, container, docker


def parse_agent(message: Message, entry: Entry) -> KeptAgent:
    """Return where root keeps the agent's executable, and its name inside."""
    if message.get("agent") is None:
        return None
    digest, name = text(message, "agent", 64), text(message, "agent_name", 32)
    directory = f"{STATE}/agents/{entry['owner']}/{digest}"
    if not SHA256.match(digest) or not PROGRAM.match(name) or not os.path.isdir(directory):
        raise Refused("the agent is not in the store")
    return directory, name


def parse_programs(message: Message) -> list[str]:
    """Return the names of the agents that an image has."""
    names = message.get("image_programs", [])
    if not isinstance(names, list) or len(names) > PROGRAMS:
        raise Refused("the programs of an image must be a few names")
    if not all(isinstance(name, str) and PROGRAM.match(name) for name in names):
        raise Refused("a program of an image has a plain name")
    return names


def parse_runtime(wanted: str) -> str:
    """Return the path of an OCI runtime: root's own, and where an engine sees it."""
    places = [wanted] if "/" in wanted else [f"{directory}/{wanted}" for directory in RUNTIME_DIRECTORIES]
    # Looked for below /usr only: elsewhere root would say what is there, or wait for somebody's file system.
    plain = [path for path in places if RUNTIME.match(path) and path == os.path.normpath(path)]
    found = next((path for path in plain if os.path.isfile(path)), None)
    if found is None:
        raise Refused(f"there is no OCI runtime {wanted!r} below /usr")
    require_root_owned(os.path.realpath(found))
    return found


def parse_terminal(message: Message) -> list[int] | None:
    """Return rows and columns."""
    terminal = message.get("terminal")
    if terminal is None:
        return None
    if not isinstance(terminal, list) or [type(n) is int and 0 < n < 10000 for n in terminal] != [True, True]:
        raise Refused("the terminal must be rows and columns")
    return terminal
