"""What the layers come to together: one value for each key that was said, and where it came from.

Standard library only, like the layers themselves; :mod:`.model` makes the settings of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clsecure.errors import UsageError
from clsecure.model import Credentials, DockerAccess, IsolationMode, Mount, NetworkPolicy, ResourceLimits
from clsecure.policy import Budget, NetworkRule
from clsecure.settings import enforce, narrowing, network, structured
from clsecure.settings.enforce import Ceilings
from clsecure.settings.keys import KEYS, STRUCTURED, TOGETHER
from clsecure.settings.network import Said
from clsecure.settings.sources import DEFAULT, Entry, Layer, Layers, Source
from clsecure.settings.structured import AgentTable, ProviderTable
from clsecure.settings.values import paths, reach
from clsecure.settings.values.isolation import AutoMode, docker
from clsecure.settings.values.readers import READERS

DEFAULT_MODE = IsolationMode.NAMESPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What was said, decided. Keys that nobody spoke of are in none of it.

    :param ceilings: what the machine allows at most; ``values`` are within it.
    :param said: everything that was said, strongest first, before ceilings and the repository.
    :param warnings: what the user should hear about the layers.
    :param notes: what the repository narrowed.
    :param providers: the tables of the user's and the machine's own providers; ``agents`` likewise.
    :param served: the provider that was chosen; None for Anthropic.
    """

    values: Mapping[str, Any]
    sources: Mapping[str, Source]
    said: tuple[Said, ...] = ()
    ceilings: Ceilings = field(default_factory=Ceilings)
    providers: tuple[ProviderTable, ...] = ()
    agents: tuple[AgentTable, ...] = ()
    served: ProviderTable | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """The settings that decide over the network; the model has them by the same names and defaults."""

    network: NetworkPolicy = NetworkPolicy.API
    allow_domains: tuple[NetworkRule, ...] = ()
    deny_domains: tuple[NetworkRule, ...] = ()
    presets: tuple[str, ...] = ()
    credentials: Credentials = Credentials.INJECT
    allow_private: bool = False
    agent: str = "claude"
    provider: str = "anthropic"
    base_url: str | None = None
    ceilings: Ceilings = field(default_factory=Ceilings)
    agents: tuple[AgentTable, ...] = ()
    served: ProviderTable | None = None


def network_settings(settled: Settled) -> NetworkSettings:
    """Return what decides over the network."""
    names = NetworkSettings.__dataclass_fields__
    found = {key: value for key, value in settled.values.items() if key in names}
    return NetworkSettings(**found, ceilings=settled.ceilings, agents=settled.agents, served=settled.served)


def settle(layers: Layers) -> Settled:
    """Decide about each key.

    :raises UsageError: a value that can't be accepted, naming its place, also one that a stronger layer
        overrides, since it would decide as soon as that is gone; or things that exclude each other.
    """
    said = [
        Said(key=entry.key, value=_read(entry, layers), source=entry.source)
        for entry in layers.entries
        if entry.key not in STRUCTURED
    ]
    by_key = {key: [one for one in said if one.key == key] for key in KEYS}
    ceilings = enforce.read(layers.ceilings)
    by_key, cut = enforce.bound(by_key, ceilings)
    combined = network.combine(
        by_key["network"],
        sorted([*by_key["allow_domains"], *by_key["presets"]], key=lambda one: one.rank),
        by_key["deny_domains"],
    )
    decided = Said(key="network", value=combined.kind, source=combined.source)
    by_key["network"] = [] if combined.source == DEFAULT else [decided]
    for key in ("allow_domains", "presets"):
        by_key[key] = [one for one in combined.hosts if one.key == key]
    mode, warnings, notes = _mode(by_key["mode"])
    by_key["mode"] = [mode] if mode else []
    for key in narrowing.KEYS:
        narrowed = narrowing.narrowed(by_key[key])
        by_key[key] = list(narrowed.said)
        warnings, notes = (*warnings, *narrowed.warnings), (*notes, *narrowed.notes)
    found: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    for key, ones in by_key.items():
        value, used = _TOGETHER[key](ones) if key in TOGETHER else _strongest(ones)
        if used:
            found[key] = value
            where = ", ".join(dict.fromkeys(str(source) for source in used))
            sources[key] = Source(layer=used[0].layer, where=where)
    unused = network.check(
        combined,
        allow_private=next((one for one in by_key["allow_private"][:1] if one.value), None),
        credentials=_counted(found, sources, ceilings),
        budget=found.get("budget", Budget()),
        bounds=sources.get("budget", DEFAULT),
    )
    providers, agents, replaced = structured.combined(layers.entries, ceilings)
    return Settled(
        values=found,
        sources=sources,
        said=tuple(said),
        ceilings=ceilings,
        providers=providers,
        agents=agents,
        served=_served(found, sources, providers),
        warnings=(*layers.warnings, *cut, *combined.warnings, *warnings, *unused, *replaced),
        notes=(*notes, *combined.notes),
    )


def _served(
    found: Mapping[str, Any], sources: Mapping[str, Source], providers: Sequence[ProviderTable]
) -> ProviderTable | None:
    """Return the provider that was chosen; None for Anthropic, whose address ``base_url`` is."""
    name = found.get("provider", structured.ANTHROPIC)
    where = sources.get("provider", DEFAULT)
    served = structured.chosen(
        name,
        providers,
        where=where,
        kimi_key=found.get("kimi_api_key"),
        kimi_source=sources.get("kimi_api_key"),
    )
    if served is not None and "base_url" in found:
        raise UsageError(
            f"base_url ({sources['base_url']}) and provider {name} ({where}) exclude each other",
            details="base_url is the address of the provider anthropic; every other has its own.",
            resolution="take one of them out, or give the address a table: [providers.NAME]",
        )
    return served


def _counted(found: Mapping[str, Any], sources: Mapping[str, Source], ceilings: Ceilings) -> Credentials:
    """Return which credentials the budget is to be held against."""
    held: Credentials = found.get("credentials", Credentials.INJECT)
    others = (
        sources.get("credentials", DEFAULT).layer is Layer.PROJECT,
        sources.get("budget", DEFAULT).layer is Layer.DEFAULT,
        ceilings.credentials is Credentials.NONE,
    )
    # Without a key nothing is spent. Who says both is told; here one of the two is not the user's to change.
    return Credentials.INJECT if held is Credentials.NONE and any(others) else held


def _mode(found: Sequence[Said]) -> tuple[Said | None, tuple[str, ...], tuple[str, ...]]:
    """Return the mode that counts: a flag's; otherwise the stricter of the user's and the repository's.

    Warnings and notes go with it.
    """
    project = next((one for one in found if one.source.layer is Layer.PROJECT), None)
    own = next((one for one in found if one.source.layer is not Layer.PROJECT), None)
    before = own.value if own else DEFAULT_MODE
    by_flag = own is not None and own.source.layer is Layer.FLAG
    strength = tuple(IsolationMode).index
    if project is None or project.value == before:
        return own, (), ()
    if isinstance(project.value, AutoMode):
        return own, () if by_flag else (f"{project} {network.WIDER} --mode",), ()
    if own is not None and isinstance(before, AutoMode) and not by_flag:
        least = enforce.stronger(before.at_least, project.value)
        if least is before.at_least:
            return own, (), ()
        note = f"the mode is at least {least}, because of the repository ({project.source})"
        return replace(own, value=AutoMode(at_least=least)), (), (note,)
    if not isinstance(before, AutoMode) and strength(project.value) < strength(before):
        return own, () if by_flag else (f"{project} {network.WIDER} --mode",), ()
    if by_flag:
        return (
            own,
            (),
            (f"{own} stands against the repository ({project.source}), which says {project.value}",),
        )
    return project, (), (f"the mode is {project.value}, because of the repository ({project.source})",)


_Sources = list[Source]


def _strongest(found: Sequence[Said]) -> tuple[object, _Sources]:
    return next(((one.value, [one.source]) for one in found), (None, []))


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
    parts, used = _parts(found)
    return Budget(**parts), used


def _limits(found: Sequence[Said]) -> tuple[ResourceLimits, _Sources]:
    parts, used = _parts(found)
    return ResourceLimits(**parts), used


def _parts(found: Sequence[Said]) -> tuple[dict[str, Any], _Sources]:
    """Return the strongest layer's word on each part."""
    parts: dict[str, Any] = {}
    used = []
    for read in found:
        used += [read.source] if read.value.keys() - parts.keys() else []
        parts = {**read.value, **parts}
    return parts, used


_TOGETHER: Mapping[str, Callable[[Sequence[Said]], tuple[object, _Sources]]] = {
    "mounts": _mounts,
    "allow_domains": _joined,
    "deny_domains": _joined,
    "presets": _joined,
    "docker_images": _joined,
    "budget": _budget,
    "limits": _limits,
}
"""Keys whose layers count together, strongest first, and how."""


def _read(entry: Entry, layers: Layers) -> object:
    try:
        match entry.key:
            case "mounts":
                if entry.source.layer is Layer.FLAG:  # one each, so that a path may hold a comma
                    return (paths.mount(entry.text, relative_to=layers.directory, home=layers.home),)
                # What is relative in a file or the environment would mean something else in each directory.
                if entry.item:
                    return (paths.mount(entry.text, home=layers.home),)
                return paths.mounts(entry.text, home=layers.home)
            case "allow_domains" | "deny_domains" | "presets" | "docker_images" if (
                entry.item and "," in entry.text
            ):
                raise ValueError("must have one in each string of an array")
            case "allow_domains":
                return reach.allow_domains(entry.text, where=str(entry.source))
            case "deny_domains":
                return reach.deny_domains(entry.text, where=str(entry.source))
            case "docker":
                return _docker(entry)
            case "setup_network":
                return reach.setup_network(entry.text, where=str(entry.source))
            case "setup_script" | "notify_command" | "record_ssh_key":
                return paths.own_path(entry.text, home=layers.home)
            case _:
                return READERS[entry.key](entry.text)
    except ValueError as error:
        raise UsageError(
            f"{entry.source}: {entry.key} {error}", resolution=f"correct {entry.key} there, or remove it"
        ) from None


def _docker(entry: Entry) -> DockerAccess:
    access = docker(entry.text)
    # A repository's is wider than anything, and does nothing.
    if access is DockerAccess.HOST and entry.source.layer not in (Layer.FLAG, Layer.PROJECT):
        raise ValueError(
            "must not be host: that is as good as root, so say it each time: --allow-docker=host"
        )
    return access
