"""What the session's sandbox has of programs, and what the repository's MCP servers lack there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from clsecure.agents.spec import BIN_DIRECTORY, SYSTEM_DIRECTORIES
from clsecure.machine.probe import install_command
from clsecure.model import NetworkPolicy
from clsecure.session.context import Context
from clsecure.session.plan import SessionPlan
from clsecure.terminal import escape
from clsecure.workspace.portable import Inside, Server

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
_SHOWN = 5
_SHOWN_NAME = 60
_REGISTRIES = {
    "npm": re.compile(r"np[mx]|pnp[mx]|yarn|bunx?"),
    "pip": re.compile(r"uvx?|pipx|pip3?"),
}
_MORE = "see docs/toolchains.md"


def inside_of(context: Context, workspace: PurePosixPath) -> Inside:
    """Say what the sandbox of a session will hold."""
    plan = context.plan
    places = {PurePosixPath(place): Path(place) for place in _SYSTEM}
    places |= {PurePosixPath(m.target): m.source for m in plan.mounts}
    return Inside(
        home=context.around.home,
        project=plan.project,
        workspace=workspace,
        places=places,
        path=(BIN_DIRECTORY, *mounted_path(plan), *map(PurePosixPath, SYSTEM_DIRECTORIES), *late_path(plan)),
        given=frozenset(context.agent.executables),
    )


def mounted_path(plan: SessionPlan) -> list[PurePosixPath]:
    """Return the directories of programs in what the user mounted; on the PATH before the system's."""
    return [PurePosixPath(m.target) / "bin" for m in plan.mounts if m not in plan.toolchains]


def late_path(plan: SessionPlan) -> list[PurePosixPath]:
    """Return those of toolchains that nobody named; after the system's: they add, and replace nothing."""
    return [PurePosixPath(m.target) for m in plan.toolchains if m.target.name in ("bin", "sbin")]


def uses_servers(context: Context) -> bool:
    """Tell whether the agent that reads ``.mcp.json`` may run."""
    command, names = context.plan.command, context.agent.executables
    return bool(names) and (command is None or PurePosixPath(command[0]).name in names)


def missing(servers: tuple[Server, ...], inside: Inside, plan: SessionPlan) -> Iterator[str]:
    """Say what MCP servers need and will not have, with the fix; names and commands are hostile text."""
    lacking: dict[str, list[str]] = {}
    for server in servers:
        if _is_missing(server.command, inside):
            lacking.setdefault(server.command, []).append(server.name)
    for command, names in list(lacking.items())[:_SHOWN]:
        yield f"MCP {_servers(names)} can't start: {_shown(command)} is not there inside; {_fix(command)}"
    if len(lacking) > _SHOWN:
        yield f"MCP servers need {len(lacking) - _SHOWN} more programs that are not there inside; {_MORE}"
    if plan.network is NetworkPolicy.FULL:
        return
    for preset, pattern in _REGISTRIES.items():
        asking = [s.name for s in servers if s.command not in lacking and pattern.fullmatch(_name(s.command))]
        if asking and not any(rule.where.startswith(f"preset {preset}") for rule in plan.policy.allow):
            yield (
                f"MCP {_servers(asking)} may have to fetch packages, which this session can't reach: "
                f"--allow-preset {preset}"
            )


def _is_missing(command: str, inside: Inside) -> bool:
    if not command or "$" in command or "\0" in command or len(command) > 4096:
        return False  # the agent puts variables in; or it is no command at all
    if "/" not in command:
        return not inside.has(command)
    return command.startswith("/") and not inside.exists(PurePosixPath(command))


def _fix(command: str) -> str:
    name = _name(command)
    if command != name:
        return f"name the program alone, or bring its directory along: --mount DIRECTORY ({_MORE})"
    if not re.fullmatch(r"[A-Za-z0-9._+-]{1,40}", name) or name.startswith("-"):
        return _MORE
    if name in ("uv", "uvx", "bun", "bunx", "deno"):
        return f"install it for everybody, in /usr/local/bin or with Homebrew ({_MORE})"
    package = _PACKAGES.get(name)
    if package is None:
        return f"install it for everybody, or --mount it ({_MORE})"
    return f"{install_command(package)} ({_MORE})"


_PACKAGES = {
    name: name for name in ("python3", "node", "npm", "npx", "pipx", "go", "ruby", "docker", "cargo", "git")
} | {"nodejs": "node", "python": "python", "pip": "pip3", "pip3": "pip3"}
"""Program → what :func:`install_command` knows; others may be called anything, and be anybody's."""


def _name(command: str) -> str:
    return command.rpartition("/")[2]


def _servers(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"server{'s' if len(names) > 1 else ''} {', '.join(map(_shown, names[:3]))}{more}"


def _shown(text: str) -> str:
    return escape(text if len(text) <= _SHOWN_NAME else text[:_SHOWN_NAME] + "…")
