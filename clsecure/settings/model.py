"""The one model of settings. Frozen; every value knows the layer that it came from.

Importing this costs what pydantic-settings costs; :mod:`.sources` has what can be had without.
"""

from __future__ import annotations

from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, field_serializer
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

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
from clsecure.policy import Budget, NetworkRule
from clsecure.settings.enforce import Ceilings
from clsecure.settings.layers import DEFAULT_MODE, settle
from clsecure.settings.sources import DEFAULT, Layer, Layers, Source
from clsecure.settings.structured import AgentTable, ProviderTable
from clsecure.settings.values.isolation import DEFAULT_IMAGE, AutoMode
from clsecure.settings.values.output import OutputFormat
from clsecure.settings.values.reach import SetupNetwork
from clsecure.settings.values.services import Secret

DEFAULT_HOOK_SECONDS = 30

# How load() hands its layers through pydantic-settings, which makes its sources from the class alone.
_LOADING: ContextVar[dict[Layer, dict[str, object]] | None] = ContextVar("layers", default=None)


class Settings(BaseSettings):
    """What the user decided, once. A session's plan is made from it; nothing consults it after that."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    mode: IsolationMode | AutoMode = DEFAULT_MODE
    """What holds the agent; ``auto`` is settled where a session starts."""
    engine: Engine = Engine.PODMAN
    """What runs the containers of container mode."""
    runtime: str | None = None
    """The OCI runtime, a name or an absolute path; None leaves it to the engine."""
    image: str = DEFAULT_IMAGE
    """The worker image of container mode."""
    docker: DockerAccess = DockerAccess.NONE
    """What of a container engine the agent can use. ``HOST`` comes from a flag alone."""
    docker_images: tuple[str, ...] = ()
    """Images of the user's engine that are copied into the session's own, of all layers together."""
    network: NetworkPolicy = NetworkPolicy.API
    """What the agent reaches."""
    allow_domains: tuple[NetworkRule, ...] = ()
    """Hosts that are allowed, of all layers together; each rule knows where it was written."""
    deny_domains: tuple[NetworkRule, ...] = ()
    """Hosts that are denied, of all layers together; they win over every permission."""
    presets: tuple[str, ...] = ()
    """Names of presets, of all layers together."""
    credentials: Credentials = Credentials.INJECT
    """What becomes of the user's credential for the provider's API."""
    provider_tools: bool = False
    """The provider may fetch, search and run code for the agent."""
    allow_private: bool = False
    """Full network reaches private addresses and this machine's, too."""
    budget: Budget = Budget()
    """Most that a session may use; of each part the strongest layer that names it decides."""
    session: str | None = None
    """The name of the environment within the project; None is the unnamed one."""
    agent: str = "claude"
    on_finish: OnFinish = OnFinish.ASK
    """What happens with the work at the end."""
    full_clone: bool = False
    """The whole history instead of its last 50 commits."""
    mounts: tuple[Mount, ...] = ()
    """Of all layers together, a stronger layer's first; for one target the strongest counts."""
    toolchains: bool = True
    """What several users of this machine share (Homebrew) is mounted, read-only."""
    limits: ResourceLimits = ResourceLimits()
    """Most that a session may take of the machine; of each part the strongest layer that names it decides."""
    time_limit: timedelta | None = None
    """How long the agent may run."""
    provider: str = "anthropic"
    """Who serves the model: a built-in name, or a table of the user's."""
    base_url: str | None = None
    """The provider's API; None leaves it to ANTHROPIC_BASE_URL and the provider's own default."""
    kimi_api_key: Secret | None = None
    """The key of the built-in provider ``kimi``."""
    install_dependencies: bool = False
    """What the repository's lock files name is installed inside, once per fresh workspace."""
    setup_script: Path | None = None
    """A program of the user's that runs inside, once per fresh workspace."""
    setup_network: SetupNetwork = SetupNetwork()
    """What both may reach."""
    github_token: bool = False
    """The setup script gets the user's GitHub token as GH_TOKEN."""
    cleanup_hook_timeout: int = DEFAULT_HOOK_SECONDS
    """Seconds that ``.clsecure/on-cleanup`` may take."""
    skip_docker_autodetect: bool = False
    """Compose files don't stand in for a cleanup hook."""
    notify: tuple[str, ...] = ()
    """How the user is called when a session that took long ends."""
    notify_command: Path | None = None
    """A program of the user's that is started then, too."""
    notify_after: timedelta = timedelta(minutes=1)
    """How long that is."""
    image_mirror: str | None = None
    """Where packages of Debian for images come from; None for the mirror that apt of this machine uses."""
    image_registry: str | None = None
    """Where images are fetched from instead of being built; None for nowhere."""
    record_ssh_key: Path | None = None
    """An SSH key of the user's that signs the record of each session as well."""
    record_notes: bool = False
    """An import also leaves a git note that names the record."""
    output: OutputFormat = OutputFormat.HUMAN
    verbose: bool = False

    _providers: tuple[ProviderTable, ...] = PrivateAttr(default=())
    _agents: tuple[AgentTable, ...] = PrivateAttr(default=())
    _served: ProviderTable | None = PrivateAttr(default=None)
    _ceilings: Ceilings = PrivateAttr(default_factory=Ceilings)
    _sources: dict[str, Source] = PrivateAttr(default_factory=dict)
    _warnings: tuple[str, ...] = PrivateAttr(default=())
    _notes: tuple[str, ...] = PrivateAttr(default=())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should hear about the layers: what does nothing or does not count, and why."""
        return self._warnings

    @property
    def providers(self) -> tuple[ProviderTable, ...]:
        """The tables ``[providers.NAME]`` that count; each knows where it was written."""
        return self._providers

    @property
    def agents(self) -> tuple[AgentTable, ...]:
        """The tables ``[agents.NAME]`` that count."""
        return self._agents

    @property
    def served(self) -> ProviderTable | None:
        """Who ``provider`` is; None for Anthropic."""
        return self._served

    @property
    def ceilings(self) -> Ceilings:
        """What the machine allows at most; all values are within it."""
        return self._ceilings

    @property
    def notes(self) -> tuple[str, ...]:
        """What the repository narrowed."""
        return self._notes

    def provenance(self, key: str) -> Source:
        """Tell where the value of a key came from.

        :raises KeyError: no such key.
        """
        if key not in type(self).model_fields:
            raise KeyError(key)
        return self._sources.get(key, DEFAULT)

    @field_serializer("kimi_api_key")
    def _masked(self, key: Secret | None) -> str | None:
        return None if key is None else str(key)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put our layers in the place of pydantic's own sources, which know neither lines nor spellings."""
        del env_settings, dotenv_settings, file_secret_settings
        loading = _LOADING.get() or {}
        return (init_settings, *(_LayerSource(settings_cls, loading.get(layer, {})) for layer in Layer))


class _LayerSource(PydanticBaseSettingsSource):
    """One layer, already read, as pydantic-settings wants it."""

    def __init__(self, settings_cls: type[BaseSettings], layer: dict[str, object]) -> None:
        super().__init__(settings_cls)
        self._layer = layer

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return one value of this layer."""
        del field
        return self._layer.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the values of this layer."""
        return dict(self._layer)


def load(layers: Layers) -> Settings:
    """Make the settings of all layers.

    :raises UsageError: see :func:`.layers.settle`.
    """
    settled = settle(layers)
    loading: dict[Layer, dict[str, object]] = {layer: {} for layer in Layer}
    for key, value in settled.values.items():
        loading[settled.sources[key].layer][key] = value
    token = _LOADING.set(loading)
    try:
        settings = Settings()
    finally:
        _LOADING.reset(token)
    settings._sources = dict(settled.sources)
    settings._providers = settled.providers
    settings._agents = settled.agents
    settings._served = settled.served
    settings._ceilings = settled.ceilings
    settings._warnings = settled.warnings
    settings._notes = settled.notes
    return settings
