"""The agents that clsecure knows, as data: adding one is one entry in :data:`AGENTS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import MappingProxyType

from clsecure.agents import claude_home, demo
from clsecure.agents.environment import (
    CLAUDE_CLOUDS,
    CLAUDE_MODELS,
    CLAUDE_NAMES,
    CLAUDE_PROVIDER_NAMES,
    may_pass,
)
from clsecure.agents.request import AgentHome, HomeRequest, empty_home
from clsecure.errors import AgentError, UsageError
from clsecure.settings.structured import AgentTable

BIN_DIRECTORY = PurePosixPath("/opt/clsecure/bin")
"""Where the agent's root-owned program lies inside."""

SYSTEM_DIRECTORIES = (
    "/usr/local/bin",
    "/usr/bin",
    "/bin",
    "/usr/local/sbin",
    "/usr/sbin",
    "/sbin",
)
"""Where the system has its programs, on the PATH inside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """One agent.

    :param executables: names of its program on the user's PATH; empty when it needs none.
    :param argv_unattended: what starts it so that it asks nobody for permission.
    :param argv_resume: what goes on with the last conversation, or starts one where there is none.
    :param env: fixed values.
    :param env_allowlist: names that may pass from the user's environment, besides the terminal's.
    :param token_env: the variable that the session's token goes into inside, by the variable that the real
        credential has outside.
    :param copied_env: the variable that a credential goes into which the agent itself holds; None for the one
        that it has outside.
    :param base_url_env: the variable that names the provider's API: the gateway's address inside.
    :param model_env: the variables that name models, by role, see :data:`.structured.ROLES`.
    :param timeout_env: the variable that says how many milliseconds an answer may take.
    :param models_of_provider: names of ``env_allowlist`` whose values are for one provider alone.
    :param clouds: providers whose requests are signed, which no gateway can do for the agent: the variable
        that chooses one, and what passes then, with ``credentials = copy`` alone.
    :param home: makes the files of the worker's home.
    """

    name: str
    title: str
    argv_unattended: tuple[str, ...]
    argv_resume: tuple[str, ...]
    argv_shell: tuple[str, ...] = ("/bin/bash",)
    executables: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    env_allowlist: frozenset[str] = frozenset()
    token_env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    copied_env: str | None = None
    base_url_env: str | None = None
    model_env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    timeout_env: str | None = None
    models_of_provider: frozenset[str] = frozenset()
    clouds: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    home: Callable[[HomeRequest], AgentHome] = empty_home


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayAccess:
    """How programs inside reach the session's gateway.

    :param port: of the gateway on the loopback inside.
    :param token: the session's own, never the user's credential.
    :param credential_variable: under which variable the credential is known outside that the gateway puts
        into API requests; None when it has none, and no API is to be had there.
    :param proxy: programs are told to reach everything through it; not where there is another way out.
    :param host: where they are told to. With an engine of the session's own it is an address that containers
        come to, too.
    """

    port: int
    token: str = field(repr=False)
    credential_variable: str | None = None
    proxy: bool = True
    host: str = "127.0.0.1"


_CLAUDE = str(BIN_DIRECTORY / "claude")
_CLAUDE_ARGV = (_CLAUDE, "--dangerously-skip-permissions")

# `claude --continue` ends with an error where no conversation was ever begun in this directory.
_CLAUDE_RESUME = """
slug=$(printf %s "$PWD" | tr -c 'A-Za-z0-9' -)
for transcript in "$HOME/.claude/projects/$slug"/*.jsonl; do
    if [ -s "$transcript" ]; then exec "$@" --continue; fi
done
exec "$@"
"""

AGENTS: Mapping[str, AgentSpec] = MappingProxyType(
    {
        "claude": AgentSpec(
            name="claude",
            title="Claude Code",
            executables=("claude",),
            argv_unattended=_CLAUDE_ARGV,
            argv_resume=("/bin/sh", "-c", _CLAUDE_RESUME, "sh", *_CLAUDE_ARGV),
            env=MappingProxyType(
                {
                    # The program is root-owned and the network is closed: updates, telemetry, market places
                    # and editors' extensions could only fail, and would delay each start.
                    "DISABLE_AUTOUPDATER": "1",
                    "DISABLE_INSTALLATION_CHECKS": "1",
                    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                    "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL": "1",
                    "CLAUDE_CODE_IDE_SKIP_AUTO_INSTALL": "1",
                }
            ),
            env_allowlist=CLAUDE_NAMES,
            # A key in ANTHROPIC_API_KEY must be approved in a dialog, again for each session's new token; one
            # in ANTHROPIC_AUTH_TOKEN is simply used. The subscription's token has a variable of its own since
            # requests then carry the beta header without which the provider refuses such a token.
            token_env=MappingProxyType(
                {
                    "ANTHROPIC_API_KEY": "ANTHROPIC_AUTH_TOKEN",
                    "ANTHROPIC_AUTH_TOKEN": "ANTHROPIC_AUTH_TOKEN",
                    "CLAUDE_CODE_OAUTH_TOKEN": "CLAUDE_CODE_OAUTH_TOKEN",
                }
            ),
            base_url_env="ANTHROPIC_BASE_URL",
            model_env=CLAUDE_MODELS,
            timeout_env="API_TIMEOUT_MS",
            models_of_provider=CLAUDE_PROVIDER_NAMES,
            clouds=CLAUDE_CLOUDS,
            home=claude_home.collect,
        ),
        "demo": AgentSpec(
            name="demo",
            title="the built-in demo agent",
            argv_unattended=("/bin/sh", "-c", demo.SCRIPT, "demo"),
            argv_resume=("/bin/sh", "-c", demo.SCRIPT, "demo"),
        ),
    }
)


def find_spec(name: str, tables: Sequence[AgentTable] = ()) -> AgentSpec:
    """Return the agent of that name.

    :param tables: the user's own agents.
    :raises UsageError: there is none.
    """
    own = {table.name: table for table in tables}
    if name in own:
        return _of_table(own[name])
    try:
        return AGENTS[name]
    except KeyError:
        raise UsageError(
            f"there is no agent called {name}",
            resolution=f"Choose one of: {', '.join(sorted({*AGENTS, *own}))}; or describe it in a table "
            f"[agents.{name}] of your own config.toml",
        ) from None


def _of_table(table: AgentTable) -> AgentSpec:
    """Return an agent of the user's own: its program is one that is there inside."""
    # Not the subscription's token, which is for Claude Code alone.
    variables = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")
    return AgentSpec(
        name=table.name,
        title=table.name,
        argv_unattended=table.command,
        argv_resume=table.resume,
        env_allowlist=table.env,
        token_env=dict.fromkeys(variables, table.token_env) if table.token_env else {},
        copied_env=table.token_env,
        base_url_env=table.base_url_env,
    )


def environment(
    agent: AgentSpec,
    environ: Mapping[str, str],
    *,
    user: str,
    home: PurePosixPath,
    session: str,
    terminal: bool,
    gateway: GatewayAccess | None = None,
    credentials: Mapping[str, str] | None = None,
    models: Mapping[str, str] | None = None,
    tool_env: Mapping[str, str] | None = None,
    extra_path: Sequence[PurePosixPath] = (),
    late_path: Sequence[PurePosixPath] = (),
) -> dict[str, str]:
    """Return the complete environment of the agent; nothing else is inherited.

    :param environ: the user's environment.
    :param user: name of the worker account.
    :param terminal: the agent has a terminal.
    :param gateway: None without one.
    :param credentials: what the user gives the agent itself (``credentials = copy``).
    :param models: variables of another provider than Anthropic; those of the user's environment are for
        Anthropic's models then, and stay outside.
    :param tool_env: where the tools inside find the user's registries.
    :param extra_path: directories with programs in what the user mounted.
    :param late_path: directories with programs that the system's own go before.
    :raises AgentError: the agent can't be given a token for that credential.
    """
    allowed = agent.env_allowlist if models is None else agent.env_allowlist - agent.models_of_provider
    env = {name: value for name, value in environ.items() if may_pass(name, value, allowed=allowed)}
    env |= models or {}
    if not terminal:
        env.pop("TERM", None)
    elif env.get("TERM", "dumb") in {"", "dumb"}:
        env["TERM"] = "xterm-256color"
    if not any(name in env for name in ("LANG", "LC_ALL", "LC_CTYPE")):
        env["LANG"] = "C.UTF-8"
    env |= tool_env or {}
    path = [str(BIN_DIRECTORY), *map(str, extra_path), *SYSTEM_DIRECTORIES, *map(str, late_path)]
    env |= {
        "HOME": str(home),
        "USER": user,
        "LOGNAME": user,
        "SHELL": "/bin/bash",
        "PATH": ":".join(path),
        "TMPDIR": "/tmp",  # noqa: S108  # the sandbox's own
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_DATA_HOME": str(home / ".local/share"),
        "XDG_STATE_HOME": str(home / ".local/state"),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "CLSECURE": "1",
        "CLSECURE_SESSION": session,
        **agent.env,
    }
    if gateway is not None:
        env |= _gateway_env(agent, gateway)
    return env | dict(credentials or {})


def _gateway_env(agent: AgentSpec, gateway: GatewayAccess) -> dict[str, str]:
    """Return what makes the agent and the tools inside use the gateway."""
    url, own = (f"http://clsecure:{gateway.token}@{h}:{gateway.port}" for h in (gateway.host, "127.0.0.1"))
    env: dict[str, str] = {}
    if gateway.proxy:
        # Both spellings: curl reads only the lower-case one of http_proxy, others only the upper-case one.
        # Not ALL_PROXY, by which some would send what is not HTTP.
        env |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), url)
        env |= dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1,::1")
        env |= {"CLSECURE_POLICY_URL": f"{own}/.clsecure/policy", "NODE_USE_ENV_PROXY": "1"}
        # By itself git asks each time without the token first, and that stands in the log as denied.
        env |= {"GIT_HTTP_PROXY_AUTHMETHOD": "basic"}
    if gateway.credential_variable is not None and agent.base_url_env is not None:
        env[agent.base_url_env] = f"http://127.0.0.1:{gateway.port}"
        try:
            env[agent.token_env[gateway.credential_variable]] = gateway.token
        except KeyError:
            raise AgentError(
                f"{agent.title} has no use for a credential from {gateway.credential_variable}"
            ) from None
    return env
