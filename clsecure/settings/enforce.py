"""The machine's ceilings: ``[enforce]`` of ``/etc/clsecure/config.toml``. Nothing exceeds them. Pure.

What a flag or variable asks for beyond a ceiling is an error, since its user expects to get it; what a file
asks for is cut down with a warning; what nobody said is what the ceiling leaves of the default. They keep
users of clsecure from mistakes, not a user from running other programs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from clsecure.errors import UsageError
from clsecure.model import Credentials, DockerAccess, Engine, IsolationMode, Mount, NetworkPolicy
from clsecure.policy import HostPattern, NetworkRule, covered, parse_pattern
from clsecure.settings.limits import defaults
from clsecure.settings.network import CREDENTIALS, Said, stricter
from clsecure.settings.sources import Entry, Layer, Source
from clsecure.settings.values import amounts, isolation, paths, reach
from clsecure.settings.values.isolation import DEFAULT_IMAGE, AutoMode
from clsecure.settings.values.names import provider
from clsecure.settings.values.readers import READERS
from clsecure.settings.values.words import boolean, items


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What the machine allows at most; None or absence is no ceiling.

    :param mode: at least this strong.
    :param engine: containers are run by this one.
    :param images: the worker image is one of these; the first one where nobody says which.
    :param docker: at most this.
    :param network: at most this open.
    :param hosts: nothing but what these patterns cover is reached, whoever allows it.
    :param mounts: nothing but what lies below these directories is mounted; True for read-only.
    :param allowed: settings that may be true, or may not.
    :param providers: the model is served by one of these.
    :param parts: ``limits`` and ``budget``, by part.
    :param deny: hosts that are denied, whoever allows them.
    :param sources: where each was written.
    """

    mode: IsolationMode | None = None
    engine: Engine | None = None
    images: tuple[str, ...] | None = None
    docker: DockerAccess | None = None
    network: NetworkPolicy | None = None
    hosts: tuple[HostPattern, ...] | None = None
    presets: frozenset[str] | None = None
    credentials: Credentials | None = None
    allowed: Mapping[str, bool] = field(default_factory=dict)
    providers: frozenset[str] | None = None
    mounts: tuple[tuple[Path, bool], ...] | None = None
    time_limit: timedelta | None = None
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    deny: tuple[Said, ...] = ()
    sources: Mapping[str, Source] = field(default_factory=dict)


def read(entries: Sequence[Entry]) -> Ceilings:
    """Read the ceilings.

    :raises UsageError: a value that can't be one, naming its place.
    """
    by_key: dict[str, list[Entry]] = {}
    for entry in entries:
        by_key.setdefault(entry.key, []).append(entry)
    found: dict[str, Any] = {}
    sources = {key: each[0].source for key, each in by_key.items()}
    for key, those in by_key.items():
        try:
            name, value = _READERS[key](key, [entry for entry in those if entry.text or not entry.item])
        except ValueError as error:
            raise UsageError(
                f"{those[0].source}: enforce.{key} {error}",
                resolution="an administrator can correct it: nothing is started without the ceilings",
            ) from None
        found[name] = {**found[name], **value} if isinstance(found.get(name), Mapping) else value
    gateway = next((key for key in ("allow_domains", "deny_domains", "budget") if key in sources), None)
    if gateway is not None and found.get("network") in (None, NetworkPolicy.FULL):
        # What does not go through the gateway can't be held to hosts, nor counted.
        found["network"] = NetworkPolicy.ALLOWLIST
        sources["network"] = sources[gateway]
    return Ceilings(**found, sources=sources)


def _plain(key: str, entries: Sequence[Entry]) -> tuple[str, Any]:
    return key, READERS[key](entries[0].text)


def _least_mode(key: str, entries: Sequence[Entry]) -> tuple[str, Any]:
    return key, isolation.isolation_mode(entries[0].text)


def _images(key: str, entries: Sequence[Entry]) -> tuple[str, Any]:
    names = tuple(map(isolation.image, _items(entries)))
    if not names:
        raise ValueError("must name at least one image")
    return key, names


def _docker_at_most(key: str, entries: Sequence[Entry]) -> tuple[str, Any]:
    most = isolation.docker(entries[0].text)
    if most is DockerAccess.HOST:
        raise ValueError("must be none or own: without it there is no ceiling")
    return key, most


def _forbidden(key: str, entries: Sequence[Entry]) -> tuple[str, Any]:
    return "allowed", {key: boolean(entries[0].text)}


def _bounds(key: str, entries: Sequence[Entry]) -> tuple[str, Any]:
    read: Callable[[str], Mapping[str, Any]] = amounts.limits if key == "limits" else amounts.budget
    bounds = {name: most for entry in entries for name, most in read(entry.text).items()}
    return "parts", {key: {name: most for name, most in bounds.items() if most}}


def _items(entries: Sequence[Entry]) -> tuple[str, ...]:
    return tuple(item for entry in entries for item in items(entry.text))


_READERS: Mapping[str, Callable[[str, Sequence[Entry]], tuple[str, Any]]] = {
    **dict.fromkeys(("engine", "network", "credentials", "time_limit"), _plain),
    "mode": _least_mode,
    "images": _images,
    "docker": _docker_at_most,
    **dict.fromkeys(("provider_tools", "allow_private", "github_token"), _forbidden),
    **dict.fromkeys(("limits", "budget"), _bounds),
    "allow_domains": lambda _, those: (
        "hosts",
        tuple(parse_pattern(text, default_port=None) for text in _items(those)),
    ),
    "deny_domains": lambda _, those: ("deny", tuple(map(_denial, those))),
    "presets": lambda _, those: ("presets", frozenset(n for e in those for n in reach.presets(e.text))),
    "providers": lambda _, those: ("providers", frozenset(map(provider, _items(those)))),
    "mounts": lambda _, those: ("mounts", tuple(map(_below, _items(those)))),
}
"""How each ceiling is read: its name in :class:`Ceilings`, and its value."""


def bound(
    by_key: Mapping[str, list[Said]], ceilings: Ceilings, *, lenient: bool = False
) -> tuple[dict[str, list[Said]], tuple[str, ...]]:
    """Return what the layers said, cut down to the ceilings, and warnings about what was cut off.

    :param lenient: cut flags and variables down, too, to look at what would be left.
    :raises UsageError: a flag or variable asks for more.
    """
    warnings: list[str] = []
    bounded = dict(by_key)
    for key, cut in _CUTS.items():
        place = place_of(key, ceilings)
        if place is None:
            continue
        kept = []
        for said in by_key.get(key, ()):
            # What a repository says can only narrow; what it says too much does nothing anyway.
            value = said.value if said.source.layer is Layer.PROJECT else cut(said.value, ceilings)
            if value == (_resolved(said.value) if key == "mounts" else said.value):
                kept.append(replace(said, value=value))
                continue
            if said.source.layer in (Layer.FLAG, Layer.ENVIRONMENT) and not lenient:
                raise UsageError(
                    f"{said} asks for more than this machine allows",
                    details=f"The ceiling is set by {place}.",
                    resolution="leave it out, or ask an administrator",
                )
            warnings.append(f"{said} is beyond what this machine allows ({place}), and was cut down to that")
            if value not in (None, ()):
                kept.append(replace(said, value=value))
        bounded[key] = [*kept, *_instead(key, kept, place, ceilings)]
    hosts = ("allow_domains", "presets")
    if any(by_key.get(key) for key in hosts) and not any(bounded.get(key) for key in hosts):
        # An allow-list of which nothing is left is the API alone, not a mistake of its author's.
        bounded["network"] = [
            replace(said, value=NetworkPolicy.API) if said.value is NetworkPolicy.ALLOWLIST else said
            for said in bounded.get("network", ())
        ]
    bounded["deny_domains"] = [*by_key.get("deny_domains", ()), *ceilings.deny]
    if ceilings.network is NetworkPolicy.NONE:
        bounded["budget"] = []  # there is nothing to count
    return bounded, tuple(warnings)


_DEFAULTS: Mapping[str, Any] = {
    "mode": IsolationMode.NAMESPACE,
    "engine": Engine.PODMAN,
    "image": DEFAULT_IMAGE,
    "network": NetworkPolicy.API,
    "credentials": Credentials.INJECT,
    "provider": "anthropic",
    "time_limit": None,
    "limits": asdict(defaults()),
    "budget": dict.fromkeys(amounts.BUDGET_PARTS),
}
"""What counts where nobody says anything, of the keys whose default may exceed a ceiling."""


def _instead(key: str, kept: Sequence[Said], place: Source, ceilings: Ceilings) -> list[Said]:
    """Return what stands in the place of a default that exceeds its ceiling, as the weakest layer's word."""
    parts = key in ("limits", "budget")
    if key not in _DEFAULTS or (not parts and any(said.source.layer is not Layer.PROJECT for said in kept)):
        return []
    left = _CUTS[key](_DEFAULTS[key], ceilings)
    if left == _DEFAULTS[key]:
        return []
    if left is None and key == "image":
        left = (ceilings.images or ())[0]
    if left is None:
        allowed = sorted(ceilings.providers or ())
        if len(allowed) != 1:
            raise UsageError(
                f"this machine allows none but these providers: {', '.join(allowed) or 'none'} ({place})",
                resolution="say which: --provider NAME",
            )
        (left,) = allowed
    if parts:  # a default that is within its ceiling stays one
        left = {name: most for name, most in left.items() if most != _DEFAULTS[key][name]}
    return [Said(key=key, value=left, source=replace(place, layer=Layer.DEFAULT))]


def place_of(key: str, ceilings: Ceilings) -> Source | None:
    """Return where the ceiling of a key was written, None where there is none."""
    names = _WRITTEN.get(key, (key,))
    return next((ceilings.sources[name] for name in names if name in ceilings.sources), None)


_WRITTEN = {
    "image": ("images",),
    "provider": ("providers",),
    "base_url": ("providers",),
    "setup_network": ("network", "allow_domains", "presets"),
    "allow_domains": ("allow_domains", "network"),
    "presets": ("presets", "network"),
    "allow_private": ("allow_private", "network"),
}
"""Under which keys of the table a ceiling may stand that bounds another key."""


def _denial(entry: Entry) -> Said:
    return Said(
        key="deny_domains",
        value=reach.deny_domains(entry.text, where=str(entry.source)),
        source=entry.source,
    )


def _below(text: str) -> tuple[Path, bool]:
    mount = paths.mount(text if text.endswith((":ro", ":rw")) else f"{text}:rw")
    if mount.source != mount.target:
        raise ValueError("must name directories such as /opt/tools or /srv/data:ro")
    return mount.source, mount.read_only


def _mode(value: IsolationMode | AutoMode, ceilings: Ceilings) -> IsolationMode | AutoMode:
    if isinstance(value, AutoMode):  # asks for nothing in particular, so nothing of it is cut off
        return AutoMode(at_least=stronger(value.at_least, ceilings.mode or value.at_least))
    return stronger(value, ceilings.mode or value)


def stronger(one: IsolationMode, other: IsolationMode) -> IsolationMode:
    """Return the stronger of two modes."""
    return max(one, other, key=tuple(IsolationMode).index)


def _engine(value: Engine, ceilings: Ceilings) -> Engine:
    return ceilings.engine or value


def _image(value: str, ceilings: Ceilings) -> str | None:
    return value if ceilings.images is None or value in ceilings.images else None


def _docker(value: DockerAccess, ceilings: Ceilings) -> DockerAccess:
    return min(value, ceilings.docker or value, key=tuple(DockerAccess).index)


def _network(value: NetworkPolicy, ceilings: Ceilings) -> NetworkPolicy:
    most = ceilings.network or value
    if not stricter(most, value):
        return value
    # An allow-list needs hosts, and who said "full" named none.
    return NetworkPolicy.API if most is NetworkPolicy.ALLOWLIST else most


def _hosts_forbidden(ceilings: Ceilings) -> bool:
    return ceilings.network in (NetworkPolicy.NONE, NetworkPolicy.API)


def _hosts(value: tuple[NetworkRule, ...], ceilings: Ceilings) -> tuple[NetworkRule, ...]:
    if _hosts_forbidden(ceilings):
        return ()
    if ceilings.hosts is None:
        return value
    return tuple(rule for rule in value if covered(rule.pattern, ceilings.hosts))


def _presets(value: tuple[str, ...], ceilings: Ceilings) -> tuple[str, ...]:
    if _hosts_forbidden(ceilings):
        return ()
    return value if ceilings.presets is None else tuple(name for name in value if name in ceilings.presets)


def _credentials(value: Credentials, ceilings: Ceilings) -> Credentials:
    most = ceilings.credentials or value
    return min(value, most, key=CREDENTIALS.index)


def _forbid(key: str) -> Callable[[bool, Ceilings], bool]:
    return lambda value, ceilings: value and ceilings.allowed.get(key, True)


def _private(value: bool, ceilings: Ceilings) -> bool:  # noqa: FBT001  # a setting's value
    full = ceilings.network in (None, NetworkPolicy.FULL)
    return value and full and ceilings.allowed.get("allow_private", True)


def _base_url(value: str, ceilings: Ceilings) -> str | None:
    # It makes a provider's name mean somebody else.
    return None if ceilings.providers is not None else value


def _provider(value: str, ceilings: Ceilings) -> str | None:
    allowed = ceilings.providers
    return value if allowed is None or value in allowed else None


def within(mounts: tuple[Mount, ...], ceilings: Ceilings) -> tuple[Mount, ...]:
    """Return what of these mounts is left, as far as it is left; for those that nobody said, too."""
    return _mounts(mounts, ceilings)


def _mounts(value: tuple[Mount, ...], ceilings: Ceilings) -> tuple[Mount, ...]:
    allowed = ceilings.mounts
    if allowed is None:
        return value
    kept = []
    for mount in _resolved(value):
        rights = [read_only for place, read_only in allowed if mount.source.is_relative_to(place)]
        if rights:
            kept.append(replace(mount, read_only=mount.read_only or all(rights)))
    return tuple(kept)


def _resolved(mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    """Return mounts as they are judged: what is mounted then is that, and no link put there in between."""
    return tuple(replace(m, source=Path(os.path.realpath(m.source)), direct=True) for m in mounts)


def _time_limit(value: timedelta | None, ceilings: Ceilings) -> timedelta | None:
    most = ceilings.time_limit
    return most if most is not None and (value is None or value > most) else value


def _bounded_parts(key: str) -> Callable[[Mapping[str, Any], Ceilings], Mapping[str, Any]]:
    def cut(value: Mapping[str, Any], ceilings: Ceilings) -> Mapping[str, Any]:
        most = ceilings.parts.get(key, {})
        return {n: most[n] if n in most and (not v or v > most[n]) else v for n, v in value.items()}

    return cut


def _setup_network(value: reach.SetupNetwork, ceilings: Ceilings) -> reach.SetupNetwork:
    if value.kind is None:
        return value
    kind = _network(value.kind, ceilings)
    allow, presets = _hosts(value.allow, ceilings), _presets(value.presets, ceilings)
    if kind is NetworkPolicy.ALLOWLIST and not (allow or presets):
        kind = NetworkPolicy.NONE
    return replace(value, kind=kind, allow=allow, presets=presets)


_CUTS: Mapping[str, Callable[[Any, Ceilings], Any]] = {
    "mode": _mode,
    "engine": _engine,
    "image": _image,
    "docker": _docker,
    "network": _network,
    "allow_domains": _hosts,
    "presets": _presets,
    "credentials": _credentials,
    "provider_tools": _forbid("provider_tools"),
    "github_token": _forbid("github_token"),
    "allow_private": _private,
    "provider": _provider,
    "base_url": _base_url,
    "mounts": _mounts,
    "time_limit": _time_limit,
    "limits": _bounded_parts("limits"),
    "budget": _bounded_parts("budget"),
    "setup_network": _setup_network,
}
"""How each key is cut down."""
