"""The values that rooms hand to each other. Frozen; nothing here does anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath


class IsolationMode(StrEnum):
    """What holds the agent, weakest first."""

    USER = "user"
    NAMESPACE = "namespace"
    CONTAINER = "container"


GVISOR = "runsc"
"""gVisor's OCI runtime."""


class Engine(StrEnum):
    """What runs the containers of container mode."""

    PODMAN = "podman"
    DOCKER = "docker"


class DockerAccess(StrEnum):
    """What of a container engine the agent can use.

    ``NONE``: nothing. ``OWN``: an engine of the session's own, in its own sandbox. ``HOST``: the machine's
    docker, which is as good as root.
    """

    NONE = "none"
    OWN = "own"
    HOST = "host"


class NetworkPolicy(StrEnum):
    """What the agent reaches.

    ``NONE``: loopback only. ``API``: the model provider's API through the gateway, nothing else.
    ``ALLOWLIST``: the API and the hosts that the user named, through the gateway. ``FULL``: the internet
    without the host's addresses and private ranges.
    """

    NONE = "none"
    API = "api"
    ALLOWLIST = "allowlist"
    FULL = "full"


class Credentials(StrEnum):
    """What becomes of the user's credential for the provider's API.

    ``INJECT``: it stays with the gateway, the agent gets a token of the session's. ``COPY``: the agent gets
    the credential itself. ``NONE``: the session has none.
    """

    INJECT = "inject"
    COPY = "copy"
    NONE = "none"


class OnFinish(StrEnum):
    """What happens with the work at the end."""

    ASK = "ask"
    IMPORT = "import"
    KEEP = "keep"
    DISCARD = "discard"


class Severity(StrEnum):
    """How much a finding deserves a look before the branch is checked out."""

    INFO = "info"
    WARNING = "warning"
    HIGH = "high"


class Vantage(StrEnum):
    """Where a check looks from. Only the host decides; the inside adds."""

    HOST = "host"
    INSIDE = "inside"


class Phase(StrEnum):
    """When a check looks: before the agent starts, while it runs, after it is dead."""

    START = "start"
    RUNNING = "running"
    END = "end"


class CheckStatus(StrEnum):
    """The outcome of one check."""

    PASS = "pass"  # noqa: S105  # a status, not a password
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLimits:
    """Most that a session may take of the machine.

    None leaves a part to the defaults; 0 lifts it, defaults included.

    :param memory: bytes, of all processes and memory file systems together.
    :param cpus: processors' worth of time, 0.5 for half of one.
    :param pids: processes and threads at the same time.
    :param disk: bytes that the worker's home takes.
    :param open_files: descriptors that one process may have.
    """

    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    disk: int | None = None
    open_files: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A directory or file of the host that the session sees.

    :param source: absolute path on the host, opened by the user (never by root).
    :param target: absolute path inside.
    """

    source: Path
    target: Path
    read_only: bool = True
    direct: bool = field(default=False, compare=False)
    """The source is refused where a link is on the way to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAccount:
    """The Unix account that a project's session runs as. Facts come from the helper's registry."""

    name: str
    uid: int
    gid: int
    home: Path
    created: bool = False
    """True when this request made the account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptProgram:
    """An agent's executable in root's own store.

    :param name: what it is called inside.
    :param version: as its installation says, for the record.
    """

    name: str
    sha256: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerImage:
    """The image that a container is made from.

    :param name: as the user says it, ``worker``.
    :param image_id: ``sha256:`` and the digest of its configuration; the same in every engine.
    :param agents: what agents are in it, name to version.
    :param programs: sha256 of the agents' programs, by name, as its lock has them.
    """

    name: str
    image_id: str
    agents: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """What container mode needs to know besides.

    :param runtime: name or path of the OCI runtime, None for the engine's own choice.
    """

    engine: Engine
    image: WorkerImage
    runtime: str | None = None

    @property
    def is_gvisor(self) -> bool:
        """The runtime has a kernel of its own; it hands no descriptors through."""
        return self.runtime is not None and PurePosixPath(self.runtime).name == GVISOR


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """One sandbox: everything that a backend needs to know to build it."""

    mode: IsolationMode
    account: WorkerAccount
    mounts: tuple[Mount, ...] = ()
    listener: bool = False
    """Ask for a listening TCP socket on the sandbox's loopback, handed out for the gateway."""
    gateway_token: str | None = field(default=None, repr=False)
    """What an engine of the session's own shows the gateway: what the agent has, too."""
    terminal: tuple[int, int] | None = None
    """Rows and columns of a pty made inside, or None for plain descriptors."""
    network: NetworkPolicy = NetworkPolicy.NONE
    network_namespace: int | None = None
    """Descriptor of the network namespace of a full network, None for one of the sandbox's own."""
    allow_private: bool = False
    """A full network reaches private addresses, too."""
    program: KeptProgram | None = None
    limits: ResourceLimits = field(default_factory=ResourceLimits)
    """What is None or 0 here is not limited: defaults are filled in already."""
    required_limits: frozenset[str] = frozenset()
    """Limits that the user named: where one of them does not hold, the sandbox is refused."""
    container: ContainerSpec | None = None
    """Given exactly in container mode."""
    docker: DockerAccess = DockerAccess.NONE
    workspace: str | None = None
    """The directory below the worker's home that an engine of the session's own shares."""
    disk_reserve: bool = False
    """End the sandbox before it fills the disk of the worker's home."""

    @property
    def is_gvisor(self) -> bool:
        """The sandbox has a kernel of its own; it hands no descriptors through."""
        return self.container is not None and self.container.is_gvisor


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxCommand:
    """What the launcher executes once the host has confirmed the sandbox.

    :param env: the whole environment; nothing is inherited.
    :param cwd: absolute path inside.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One property of the isolation, as observed. ``observed`` may hold hostile text."""

    check_id: str
    status: CheckStatus
    vantage: Vantage
    phase: Phase
    expected: str
    observed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How the isolation of a session stood, by every check that looked.

    :param checks: in the order in which they looked; one check may have looked several times.
    :param import_anyway: the user took the work home although a check had failed.
    """

    checks: tuple[CheckResult, ...] = ()
    import_anyway: bool = False

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """Those that do not hold."""
        return tuple(check for check in self.checks if check.status is CheckStatus.FAIL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportFinding:
    """Something to look at before checking the branch out. ``path`` is escaped for printing."""

    kind: str
    path: str
    severity: Severity
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartUnit:
    """One repository of the start state: the user's own, or a submodule of it.

    :param path: path relative to the top work tree as git stores it; ``b""`` for the top.
    :param name: the submodule's name in .gitmodules; ``""`` for the top.
    :param source: the user's work tree of this unit.
    :param source_git_dir: the user's git directory of it (of this work tree).
    :param base: a bare repository of the tool's own that holds exactly what was cloned in, and the
        objects of ``base_tree``; the worker can't write there.
    :param head: commit id that HEAD named.
    :param branch: short name of the current branch, None when detached.
    :param base_tree: tree id in ``base``: the work tree as it was cloned in, with uncommitted changes.
    :param index_tree: tree id in ``base`` of what the user had staged.
    """

    path: bytes
    name: str
    source: Path
    source_git_dir: Path
    base: Path
    head: str
    branch: str | None
    base_tree: str
    index_tree: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """A string of an agent file that reads differently in the private copy.

    :param place: the keys that lead there, see docs/architecture.md, "Portable files".
    :param outside: the JSON string as it is written in the user's file, quotes and all.
    :param inside: the one that stands in its place inside.
    """

    place: tuple[str, ...]
    outside: str
    inside: str

    @property
    def rule(self) -> dict[str, object]:
        """As ``privileged/portable.py`` takes it."""
        return {"place": list(self.place), "outside": self.outside, "inside": self.inside}


@dataclass(frozen=True, slots=True, kw_only=True)
class StartState:
    """All that was cloned in. ``units[0]`` is the top repository.

    :param portable: per path of the top repository, what is rewritten in the copy, and only there.
    """

    units: tuple[StartUnit, ...]
    warnings: tuple[str, ...] = ()
    portable: Mapping[str, tuple[Rewrite, ...]] = field(default_factory=dict)

    @property
    def top(self) -> StartUnit:
        """The user's repository itself."""
        return self.units[0]

    @property
    def rules(self) -> dict[str, list[dict[str, object]]]:
        """What is rewritten, as ``privileged/portable.py`` takes it."""
        return {path: [each.rule for each in rewrites] for path, rewrites in self.portable.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedUnit:
    """One branch that was made: in the user's repository, or in a submodule of it.

    :param tree: of ``tip``.
    :param base_commit, base_tree: what was cloned in.
    """

    path: str
    branch: str
    tip: str
    tree: str
    base_commit: str
    base_tree: str
    commits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportResult:
    """The ``import`` object of the JSON result.

    :param tree: of ``tip``.
    """

    branch: str
    tip: str
    tree: str
    commits: int
    uncommitted_commit: str | None
    files_changed: int
    submodules: tuple[ImportedUnit, ...] = ()
    refused: tuple[str, ...] = ()
    findings: tuple[ImportFinding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeFile:
    """A file for the worker's home, written inside by the worker itself.

    :param path: relative to the home; no ``..``.
    :param mode: permission bits.
    :param keep: leave what is there already.
    """

    path: PurePosixPath
    mode: int
    data: bytes = field(repr=False)
    keep: bool = False
