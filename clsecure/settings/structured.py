"""``[providers.NAME]`` and ``[agents.NAME]``: what takes a table of its own. Standard library only.

A table of the strongest layer counts whole, never key by key: one layer's key must not be sent to the address
of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from clsecure.errors import UsageError
from clsecure.settings import keys
from clsecure.settings.enforce import Ceilings
from clsecure.settings.sources import Entry, Layer, Source
from clsecure.settings.values.services import Secret

ANTHROPIC = "anthropic"
KIMI = "kimi"
AGENTS = ("claude", "demo")
"""The built-in agents, whose names no table may take; a test keeps it what :mod:`clsecure.agents` has."""
ROLES = ("default", "opus", "sonnet", "haiku", "small_fast", "subagent")
"""What a provider can name a model for."""


class Auth(StrEnum):
    """How a provider wants its key: as ``x-api-key``, or as ``Authorization: Bearer``."""

    API_KEY = "api-key"
    BEARER = "bearer"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySource:
    """Where a provider's key comes from: the first of these that is there.

    :param literal: the predecessor's ``kimi_api_key``.
    :param file: absolute, or below the user's home with ``~/`` before it.
    :param command: prints it on its first line; no shell.
    """

    variable: str | None = None
    literal: Secret | None = None
    file: str | None = None
    command: tuple[str, ...] | None = None

    def __str__(self) -> str:
        """Say it for people; holds no argument of the command, the rest may need escaping."""
        if self.command is not None:
            return f"the command {self.command[0]}"
        if self.file is not None:
            return f"the file {self.file}"
        if self.variable is not None and self.literal is None:
            return f"the variable {self.variable}"
        return "kimi_api_key of your settings"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderTable:
    """Somebody besides Anthropic who serves a model by Anthropic's Messages API.

    :param models: names by role, see :data:`ROLES`.
    :param timeout_ms: how long the agent waits for an answer; None leaves it to the agent.
    :param built_in: nobody named its address, so it is a public one.
    """

    name: str
    base_url: str
    key: KeySource
    auth: Auth = Auth.API_KEY
    models: Mapping[str, str] = field(default_factory=dict)
    timeout_ms: int | None = None
    built_in: bool = False
    source: Source | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTable:
    """An agent of the user's own.

    :param command: what starts it; the program is looked for inside.
    :param resume: what goes on with a kept session.
    :param env: names that may pass from the user's environment.
    :param base_url_env: the variable that names the API's address to it; None when it asks none.
    :param token_env: the variable that it takes its key from; there exactly when ``base_url_env`` is.
    """

    name: str
    command: tuple[str, ...]
    resume: tuple[str, ...]
    env: frozenset[str] = frozenset()
    base_url_env: str | None = None
    token_env: str | None = None
    source: Source | None = None


_KIMI = ProviderTable(
    name=KIMI,
    base_url="https://api.kimi.com/coding",
    key=KeySource(variable="KIMI_API_KEY"),
    built_in=True,
)


def combined(
    entries: Sequence[Entry], ceilings: Ceilings
) -> tuple[tuple[ProviderTable, ...], tuple[AgentTable, ...], tuple[str, ...]]:
    """Return the tables that count, of each name the strongest layer's, and warnings about the others.

    Where the machine bounds the providers by name, what a name means is not the user's to say.
    """
    found: dict[tuple[type, str], Any] = {}
    warnings = []
    for entry in entries:
        table = entry.table
        if not isinstance(table, ProviderTable | AgentTable):
            continue
        bounded = isinstance(table, ProviderTable) and ceilings.providers is not None
        if bounded and entry.source.layer is not Layer.SYSTEM:
            warnings.append(
                f"[providers.{table.name}] ({entry.source}) does nothing: this machine says which providers "
                f"there are ({ceilings.sources['providers']})"
            )
            continue
        found.setdefault((type(table), table.name), replace(table, source=entry.source))
    providers = tuple(table for table in found.values() if isinstance(table, ProviderTable))
    agents = tuple(table for table in found.values() if isinstance(table, AgentTable))
    return providers, agents, tuple(warnings)


def chosen(
    name: str,
    tables: Sequence[ProviderTable],
    *,
    where: Source,
    kimi_key: Secret | None = None,
    kimi_source: Source | None = None,
) -> ProviderTable | None:
    """Return who serves the model; None for Anthropic.

    :param where: who chose the name.
    :raises UsageError: there is no such provider.
    """
    if name == ANTHROPIC:
        return None
    if name == KIMI:
        if kimi_key is None:
            return _KIMI
        said_now = kimi_source is not None and kimi_source.layer in (Layer.FLAG, Layer.ENVIRONMENT)
        variable = None if said_now else _KIMI.key.variable
        return replace(_KIMI, key=KeySource(variable=variable, literal=kimi_key))
    found = next((table for table in tables if table.name == name), None)
    if found is None:
        known = (ANTHROPIC, KIMI, *(table.name for table in tables))
        raise UsageError(
            f"there is no provider called {name} ({where})",
            resolution=f"{_nearest(name, known)}; or describe it in a table [providers.{name}] of your own "
            "config.toml",
        )
    return found


def _nearest(written: str, known: Sequence[str]) -> str:
    return keys.nearest(written, known).replace("valid keys:", "there are:")
