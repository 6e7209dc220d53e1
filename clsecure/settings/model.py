"""The one model of settings. Frozen; every value knows the layer that it came from.

Importing this costs what pydantic-settings costs; :mod:`.sources` has what can be had without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

from pydantic import PrivateAttr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from clsecure.errors import UsageError
from clsecure.model import Credentials, IsolationMode, Mount, NetworkPolicy, OnFinish
from clsecure.policy import Budget, NetworkRule
from clsecure.settings import network, values
from clsecure.settings.keys import TOGETHER
from clsecure.settings.network import Said
from clsecure.settings.sources import DEFAULT, Entry, Layer, Layers, Source
from clsecure.settings.values import OutputFormat

# How load() hands its layers through pydantic-settings, which makes its sources from the class alone.
_LOADING: ContextVar[dict[Layer, dict[str, object]] | None] = ContextVar("layers", default=None)


class Settings(BaseSettings):
    """What the user decided, once. A session's plan is made from it; nothing consults it after that."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    mode: IsolationMode = IsolationMode.NAMESPACE
    """What holds the agent."""
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
    time_limit: timedelta | None = None
    """How long the agent may run."""
    base_url: str | None = None
    """The provider's API; None leaves it to ANTHROPIC_BASE_URL and the provider's own default."""
    output: OutputFormat = OutputFormat.HUMAN
    verbose: bool = False

    _sources: dict[str, Source] = PrivateAttr(default_factory=dict)
    _warnings: tuple[str, ...] = PrivateAttr(default=())
    _notes: tuple[str, ...] = PrivateAttr(default=())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should hear about the layers: what does nothing or does not count, and why."""
        return self._warnings

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

    :raises UsageError: a value that can't be accepted, naming its place; also one that a stronger layer
        overrides, since it would decide as soon as that is gone.
    """
    said = [Said(key=entry.key, value=_read(entry, layers), source=entry.source) for entry in layers.entries]
    by_key = {key: [one for one in said if one.key == key] for key in Settings.model_fields}
    combined = network.combine(
        by_key["network"],
        [one for one in said if one.key in {"allow_domains", "presets"}],
        by_key["deny_domains"],
    )
    mode, notes = _mode(by_key["mode"])
    by_key["mode"] = [mode] if mode else []
    decided = Said(key="network", value=combined.kind, source=combined.source)
    by_key["network"] = [] if combined.source == DEFAULT else [decided]
    for key in ("allow_domains", "presets"):
        by_key[key] = [one for one in combined.hosts if one.key == key]
    loading: dict[Layer, dict[str, object]] = {layer: {} for layer in Layer}
    sources: dict[str, Source] = {}
    for key, found in by_key.items():
        if key in TOGETHER:
            value, used = _TOGETHER[key](found)
        else:
            value, used = next(((one.value, [one.source]) for one in found), (None, []))
        if used:
            loading[used[0].layer][key] = value
            where = ", ".join(dict.fromkeys(str(source) for source in used if source.where))
            sources[key] = Source(layer=used[0].layer, where=where)
    token = _LOADING.set(loading)
    try:
        settings = Settings()
    finally:
        _LOADING.reset(token)
    settings._sources = sources
    unused = network.check(
        combined,
        allow_private=next((one for one in by_key["allow_private"][:1] if one.value), None),
        credentials=settings.credentials,
        budget=settings.budget,
        bounds=settings.provenance("budget"),
    )
    settings._warnings = (*layers.warnings, *combined.warnings, *unused)
    settings._notes = (*notes, *combined.notes)
    return settings


def _mode(found: Sequence[Said]) -> tuple[Said | None, tuple[str, ...]]:
    """Return the mode that counts: a flag's; otherwise the stricter of the user's and the repository's."""
    project = next((one for one in found if one.source.layer is Layer.PROJECT), None)
    own = next((one for one in found if one.source.layer is not Layer.PROJECT), None)
    before = own.value if own else Settings.model_fields["mode"].default
    strength = tuple(IsolationMode).index
    if project is None or strength(project.value) <= strength(before):
        return own, ()
    if own and own.source.layer is Layer.FLAG:
        return own, (f"{own} stands against the repository ({project.source}), which says {project.value}",)
    return project, (f"the mode is {project.value}, because of the repository ({project.source})",)


_Sources = list[Source]


def _mounts(found: Sequence[Said]) -> tuple[tuple[Mount, ...], _Sources]:
    """Return one mount for each target: the strongest layer's."""
    targets: dict[object, tuple[Mount, Source]] = {}
    for read in found:
        for mount in read.value:
            targets.setdefault(mount.target, (mount, read.source))
    return tuple(mount for mount, _ in targets.values()), [source for _, source in targets.values()]


def _joined(found: Sequence[Said]) -> tuple[tuple[object, ...], _Sources]:
    """Return everything, each thing once."""
    items = dict.fromkeys(item for read in found for item in read.value)
    return tuple(items), [read.source for read in found]


def _budget(found: Sequence[Said]) -> tuple[Budget, _Sources]:
    """Return the strongest layer's word on each part."""
    parts: dict[str, int | None] = {}
    used = []
    for read in found:
        used += [read.source] if read.value.keys() - parts.keys() else []
        parts = {**read.value, **parts}
    return Budget(**parts), used


_TOGETHER: Mapping[str, Callable[[Sequence[Said]], tuple[object, _Sources]]] = {
    "mounts": _mounts,
    "allow_domains": _joined,
    "deny_domains": _joined,
    "presets": _joined,
    "budget": _budget,
}
"""Keys whose layers count together, strongest first, and how."""


def _read(entry: Entry, layers: Layers) -> object:
    try:
        match entry.key:
            case "mounts":
                if entry.source.layer is Layer.FLAG:  # one each, so that a path may hold a comma
                    return (values.mount(entry.text, relative_to=layers.directory, home=layers.home),)
                # What is relative in a file or the environment would mean something else in each directory.
                if entry.item:
                    return (values.mount(entry.text, home=layers.home),)
                return values.mounts(entry.text, home=layers.home)
            case "allow_domains" | "deny_domains" | "presets" if entry.item and "," in entry.text:
                raise ValueError("must have one in each string of an array")
            case "allow_domains":
                return values.allow_domains(entry.text, where=str(entry.source))
            case "deny_domains":
                return values.deny_domains(entry.text, where=str(entry.source))
            case _:
                return values.READERS[entry.key](entry.text)
    except ValueError as error:
        raise UsageError(
            f"{entry.source}: {entry.key} {error}", resolution=f"correct {entry.key} there, or remove it"
        ) from None
