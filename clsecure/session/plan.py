"""Settings + repository + flags → one frozen plan. Pure: nothing after it consults settings again."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from clsecure.model import (
    Credentials,
    DockerAccess,
    Engine,
    IsolationMode,
    Mount,
    NetworkPolicy,
    OnFinish,
    ResourceLimits,
)
from clsecure.policy import Budget, EgressPolicy
from clsecure.session.store import DEFAULT_SESSION
from clsecure.session.toolchains import HOMEBREW
from clsecure.settings.structured import AgentTable, ProviderTable


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlan:
    """What a session will be.

    :param session_id: unpredictable; its first characters are the tag that the tool's own output carries.
    :param command: what runs instead of the agent; None for the agent itself.
    :param resume: True or False when the user said which, None to ask.
    :param branch: None for a name made from project, session and time.
    :param message: of the commit of uncommitted work.
    :param stdout_is_ours: standard output is for the JSON document; the agent's goes to standard error.
    :param policy: what the session may reach besides the API; its kind is ``network``.
    :param tool_env: variables that tell the tools inside where the user's registries are, without secrets.
    :param provider_tools: the provider may fetch, search and run code for the agent.
    :param allow_private: full network may reach private addresses, too.
    :param limits: most that the session may take of the machine.
    :param toolchains: those of the mounts that nobody named: what several users of this machine share.
    :param setup_script: a program of the user's that runs inside, once per fresh workspace.
    :param install_dependencies: what the repository's lock files name is installed then, too.
    :param setup_policy: what both may reach; None for the session's own network.
    :param setup_tool_env: as ``tool_env``, for a policy of their own.
    :param github_token: the setup script gets the user's GitHub token.
    :param cleanup_hook_timeout: seconds.
    :param engine: what runs the containers of container mode.
    :param runtime: name or path of the OCI runtime, None for the engine's own choice.
    :param image: name of the worker image of container mode.
    :param image_mirror: of Debian's packages, for an image that has to be built; None for the machine's own.
    :param image_registry: where it is fetched from instead; None for nowhere.
    :param docker: what of a container engine the agent can use.
    :param docker_images: images of the user's engine that are copied into the session's own.
    :param skip_docker_autodetect: compose files don't stand in for a cleanup hook.
    :param provider: who serves the model.
    :param notify: how the user is called when the session ends after ``notify_after``; see ``notify.py``.
    :param served: the same, with its address and where its key is; None for Anthropic.
    :param own_agent: the agent, where it is one of the user's own.
    :param record_ssh_key: the user's SSH key that signs the record as well.
    :param record_notes: the import also leaves a git note that names the record.
    :param warnings: what the user was told about the settings, for the result.
    """

    session_id: str
    started: datetime
    project: Path
    project_name: str
    session: str
    mode: IsolationMode
    network: NetworkPolicy
    agent: str
    command: tuple[str, ...] | None
    shell: bool
    mounts: tuple[Mount, ...]
    full_clone: bool
    on_finish: OnFinish
    branch: str | None
    message: str | None
    resume: bool | None
    time_limit: timedelta | None
    base_url: str | None
    stdout_is_ours: bool
    policy: EgressPolicy = field(default_factory=EgressPolicy)
    tool_env: Mapping[str, str] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    credentials: Credentials = Credentials.INJECT
    provider_tools: bool = False
    allow_private: bool = False
    limits: ResourceLimits = field(default_factory=ResourceLimits)
    toolchains: tuple[Mount, ...] = ()
    setup_script: Path | None = None
    install_dependencies: bool = False
    setup_policy: EgressPolicy | None = None
    setup_tool_env: Mapping[str, str] = field(default_factory=dict)
    github_token: bool = False
    cleanup_hook_timeout: int = 30
    engine: Engine = Engine.PODMAN
    runtime: str | None = None
    image: str = "worker"
    image_mirror: str | None = None
    image_registry: str | None = None
    docker: DockerAccess = DockerAccess.NONE
    docker_images: tuple[str, ...] = ()
    skip_docker_autodetect: bool = False
    provider: str = "anthropic"
    notify: tuple[str, ...] = ()
    notify_command: Path | None = None
    notify_after: timedelta = timedelta(minutes=1)
    served: ProviderTable | None = None
    own_agent: AgentTable | None = None
    record_ssh_key: Path | None = None
    record_notes: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def mounted(self) -> tuple[str, ...]:
        """What of the host is seen inside, in words; may need escaping."""
        lines = [
            f"{m.source} at {m.target}{'' if m.read_only else ', writable'}"
            for m in self.mounts
            if m not in self.toolchains
        ]
        if self.toolchains:
            parts = ", ".join(str(m.target.relative_to(HOMEBREW)) for m in self.toolchains)
            lines.append(f"{HOMEBREW} ({parts}), read-only; toolchains = false leaves it out")
        return tuple(lines)

    @property
    def tag(self) -> str:
        """Mark of the tool's own words, shown at the start: the agent can't fake what it can't know."""
        return self.session_id[-6:]

    @property
    def has_setup(self) -> bool:
        """Something runs in a fresh workspace before the agent."""
        return self.setup_script is not None or self.install_dependencies

    @property
    def branch_name(self) -> str:
        """The branch that the work comes home as."""
        if self.branch is not None:
            return self.branch
        return default_branch(project_name=self.project_name, session=self.session, started=self.started)

    @property
    def commit_message(self) -> str:
        """The message of the commit that holds uncommitted work."""
        return self.message or f"Uncommitted work of session {self.session_id}"


def default_branch(*, project_name: str, session: str, started: datetime) -> str:
    """Return the name of a branch that nobody named: ``claude/<project>[-<session>]-<timestamp>``."""
    suffix = "" if session == DEFAULT_SESSION else f"-{ref_component(session)}"
    return f"claude/{ref_component(project_name)}{suffix}-{started:%Y%m%d-%H%M%S}"


def ref_component(name: str) -> str:
    """Return a name that git takes as part of a branch name. Source: git-check-ref-format(1)."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    plain = re.sub(r"\.{2,}|\.lock$", "-", plain).strip(".-")
    return plain[:60] or "project"


def new_session_id(now: datetime) -> str:
    """Return an id that sorts by time and ends in 48 unpredictable bits."""
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(6)}"
