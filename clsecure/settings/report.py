"""Every setting as it is shown: its value, where it comes from, and what was said and doesn't count. Pure.

No secret is in it, nor anything of one: not its beginning, not its length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

from clsecure.model import Mount, NetworkPolicy, ResourceLimits
from clsecure.policy import Budget, NetworkRule
from clsecure.settings import enforce
from clsecure.settings.keys import KEYS, TOGETHER
from clsecure.settings.layers import Settled
from clsecure.settings.network import Said
from clsecure.settings.sources import DEFAULT, Layer, Source
from clsecure.settings.structured import AgentTable, ProviderTable
from clsecure.settings.values.isolation import AutoMode
from clsecure.settings.values.reach import SetupNetwork
from clsecure.settings.values.services import Secret

CEILING = "ceiling"
"""The layer of what nobody said, where a ceiling of the machine's is below the default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overruled:
    """Something that was said and does not count.

    :param value: as in :class:`Row`.
    :param why: one sentence, without a full stop.
    """

    value: object
    where: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One setting.

    :param value: what counts, in JSON's own types; durations in seconds.
    :param layer: the strongest layer that has a part in it; see :class:`.sources.Layer`, and :data:`CEILING`.
    :param where: flag, variable, or file and line, commas between several; None for defaults.
    """

    key: str
    value: object
    layer: str
    where: str | None
    overruled: tuple[Overruled, ...] = ()


def rows(settled: Settled, defaults: Mapping[str, object]) -> tuple[Row, ...]:
    """Return a row for every key, in their order.

    :param defaults: the value of each key that nobody spoke of.
    """
    found = [_row(key, settled, settled.values.get(key, defaults[key])) for key in KEYS]
    found += [_table(f"providers.{each.name}", _provider(each), each.source) for each in settled.providers]
    found += [_table(f"agents.{each.name}", _agent(each), each.source) for each in settled.agents]
    return tuple(found)


def _table(key: str, value: Mapping[str, object], source: Source | None) -> Row:
    source = source or DEFAULT
    said = {name: each for name, each in value.items() if each not in (None, {}, [])}
    return Row(key=key, value=said, layer=source.layer.value, where=source.where or None)


def _provider(table: ProviderTable) -> dict[str, object]:
    """Show where the key is, and nothing that a command is told: it may be told a secret."""
    return {
        "base_url": table.base_url,
        "key": str(table.key),
        "auth": table.auth.value,
        "models": dict(table.models),
        "timeout_ms": table.timeout_ms,
    }


def _agent(table: AgentTable) -> dict[str, object]:
    return {
        "command": list(table.command),
        "resume": list(table.resume),
        "env": sorted(table.env),
        "base_url_env": table.base_url_env,
        "token_env": table.token_env,
    }


def _row(key: str, settled: Settled, value: object) -> Row:
    source = settled.sources.get(key, DEFAULT)
    said = [one for one in settled.said if one.key == key]
    found = _of_many(key, said, value) if key in TOGETHER else _of_one(said, value, source)
    return Row(
        key=key,
        value=plain(value),
        layer=CEILING if source.layer is Layer.DEFAULT and source.where else source.layer.value,
        where=source.where or None,
        overruled=tuple(
            Overruled(
                value=plain(one.value),
                where=str(one.source),
                why=_why(one, value, source, settled),
            )
            for one in found
        ),
    )


def _of_one(said: Sequence[Said], value: object, source: Source) -> list[Said]:
    """Return the strongest word of the user's and the repository's, where another one counts."""
    own = next((one for one in said if one.source.layer is not Layer.PROJECT), None)
    project = next((one for one in said if one.source.layer is Layer.PROJECT), None)
    if source.layer is Layer.PROJECT:  # what it says may count as something narrower still
        project = None
    return [one for one in (own, project) if one is not None and one.value != value]


def _of_many(key: str, said: Sequence[Said], value: Any) -> list[Said]:  # noqa: ANN401  # of any key
    """Return what is left out of keys whose layers come together."""
    found = []
    for number, one in enumerate(said):
        if isinstance(one.value, Mapping):
            # Of each part the strongest word counts, so a weaker one is overridden, not overruled.
            stronger = {
                name
                for other in said[:number]
                if other.source.layer is not Layer.PROJECT
                for name in other.value
            }
            left: Any = {
                name: most
                for name, most in one.value.items()
                if name not in stronger and getattr(value, name) != most
            }
        else:
            left = tuple(item for item in one.value if item not in value)
        if left:
            found.append(Said(key=key, value=left, source=one.source))
    return found


def _why(one: Said, value: object, source: Source, settled: Settled) -> str:
    if one.source.layer is Layer.PROJECT:
        return "a flag stands against it" if source.layer is Layer.FLAG else "a repository may only narrow"
    place = enforce.place_of(one.key, settled.ceilings)
    if place is not None and _is_cut(one, settled):
        return f"beyond what this machine allows ({place})"
    if one.key == "mounts":
        return "another one has its target"
    if isinstance(value, tuple):
        network = settled.sources.get("network", DEFAULT)
        return f"the network is {settled.values.get('network', NetworkPolicy.API)} ({network})"
    others = [each.source for each in settled.said if each.key == one.key]
    project = [other for other in others if other.layer is Layer.PROJECT]
    return f"the repository narrows it ({project[0]})" if project else f"{source} decides"


def _is_cut(one: Said, settled: Settled) -> bool:
    bounded, _ = enforce.bound({one.key: [one]}, settled.ceilings, lenient=True)
    return one not in bounded[one.key]


def plain(value: object) -> object:
    """Return a value of a setting in JSON's own types, as it would be written in ``config.toml``."""
    match value:
        case Secret() | AutoMode():
            return str(value)
        case Enum():
            return value.value
        case timedelta():
            return int(value.total_seconds())
        case Path():
            return str(value)
        case NetworkRule():
            return str(value.pattern)
        case Mount():
            return f"{value.source}:{value.target}:{'ro' if value.read_only else 'rw'}"
        case Budget() | ResourceLimits():
            return {part.name: getattr(value, part.name) for part in fields(value)}
        case SetupNetwork():
            return _setup_network(value)
        case Mapping():
            return {str(name): plain(item) for name, item in value.items()}
        case tuple() | list():
            # This machine's loopback makes a second rule, for its name inside.
            shown = [item for item in value if not (isinstance(item, NetworkRule) and item.connect)]
            return [plain(item) for item in shown]
        case _:
            return value


def _setup_network(value: SetupNetwork) -> object:
    if value.kind is None:
        return "session"
    hosts = plain(value.allow)
    named = [*(hosts if isinstance(hosts, list) else []), *value.presets]
    return named or value.kind.value


def text(value: object) -> str:
    """Return a value of a row for people; it may need escaping."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case Mapping():
            parts = (
                f"{name}={_amount(name, most) if isinstance(most, int | float) else text(most)}"
                for name, most in value.items()
                if most is not None
            )
            return ",".join(parts) or "none"
        case list():
            return ", ".join(map(text, value)) or "none"
        case _:
            return str(value)


def _amount(name: str, most: float) -> str:
    if not most:
        return "none"
    if name not in _BYTES or not isinstance(most, int):
        return f"{most:g}" if isinstance(most, float) else str(most)
    letters = iter("KMGT")
    letter = ""
    while most and most % 1024 == 0 and (larger := next(letters, "")):
        most, letter = most // 1024, larger
    return f"{most}{letter}"


_BYTES = frozenset({"memory", "disk", "bytes"})
