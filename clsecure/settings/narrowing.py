"""What a repository may take away of the user's own settings, key by key. Pure.

``network`` and ``mode`` are decided with what concerns them (:mod:`.network`, :mod:`.layers`), denials
add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

from clsecure.model import Credentials, DockerAccess
from clsecure.settings.keys import FLAGS
from clsecure.settings.limits import defaults
from clsecure.settings.network import CREDENTIALS, WIDER, Said
from clsecure.settings.sources import Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrowed:
    """What counts of one key.

    :param said: strongest first; the repository's word comes first where it narrows.
    :param warnings: what of it does nothing, being wider.
    :param notes: what it narrowed, or would have.
    """

    said: tuple[Said, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def narrowed(found: Sequence[Said]) -> Narrowed:
    """Return what counts of one key. A flag of the user's stands against the repository."""
    project = [said for said in found if said.source.layer is Layer.PROJECT]
    own = [said for said in found if said.source.layer is not Layer.PROJECT]
    if not project:
        return Narrowed(said=tuple(own))
    warnings: list[str] = []
    notes: list[str] = []
    flags = [said for said in own if said.source.layer is Layer.FLAG]
    for said in project:
        value = said.value
        if isinstance(value, Mapping):
            value = {n: v for n, v in value.items() if all(n not in flag.value for flag in flags)}
        elif flags:
            notes.append(f"{flags[0]} stands against the repository ({said.source})")
            continue
        before = _before(own)
        wider = _wider(said.key, value, before)
        value = _STRICTER[said.key](value, before)
        if wider:
            warnings.append(f"{said} {WIDER} {FLAGS.get(said.key, 'it in your own settings file')}")
        if value in (None, {}):
            continue
        notes.append(f"{said.key} is narrowed by the repository ({said.source})")
        own.insert(0, replace(said, value=value))
    return Narrowed(said=tuple(own), warnings=tuple(warnings), notes=tuple(notes))


def _wider(key: str, value: Any, before: Any) -> bool:  # noqa: ANN401  # values of the key
    """Tell whether something of the repository's word is wider than what counts without it."""
    if isinstance(value, Mapping):
        bounds = {**(asdict(defaults()) if key == "limits" else {}), **(before or {})}
        left = _STRICTER[key](value, before)
        return any(n not in left and most != bounds.get(n) for n, most in value.items())
    default = _UNSAID[key] if before is None else before
    return value != default and _STRICTER[key](value, before) is None


def _before(own: Sequence[Said]) -> Any:  # noqa: ANN401  # a value of the key
    """Return what counts without the repository; of what has parts, each part's strongest word."""
    if own and isinstance(own[0].value, Mapping):
        return {name: most for said in reversed(own) for name, most in said.value.items()}
    return own[0].value if own else None


def _shorter(value: timedelta | None, before: timedelta | None) -> timedelta | None:
    return value if value is not None and (before is None or value < before) else None


def _smaller_limits(value: Mapping[str, Any], before: Mapping[str, Any] | None) -> Mapping[str, Any]:
    # What nobody said is not boundless: a repository must not raise it either.
    return _smaller_parts(value, {**asdict(defaults()), **(before or {})})


def _smaller_parts(value: Mapping[str, Any], before: Mapping[str, Any] | None) -> Mapping[str, Any]:
    bounds = before or {}
    return {
        name: most for name, most in value.items() if most and (not bounds.get(name) or most < bounds[name])
    }


def _hook_time(value: int, before: int | None) -> int | None:
    # Only how long the end may take: where the user said nothing a project may ask for more than the default.
    return value if before is None or value < before else None


def _stricter_credentials(value: Credentials, before: Credentials | None) -> Credentials | None:
    held = before or Credentials.INJECT
    return value if CREDENTIALS.index(value) < CREDENTIALS.index(held) else None


def _less_docker(value: DockerAccess, before: DockerAccess | None) -> DockerAccess | None:
    held = before or DockerAccess.NONE
    reach = tuple(DockerAccess).index
    return value if reach(value) < reach(held) else None


def _off(value: bool, before: bool | None) -> bool | None:  # noqa: FBT001  # a setting's values
    return value if not value and before else None


def _on(value: bool, before: bool | None) -> bool | None:  # noqa: FBT001  # a setting's values
    return value if value and not before else None


_STRICTER: Mapping[str, Callable[[Any, Any], Any]] = {
    "cleanup_hook_timeout": _hook_time,
    "skip_docker_autodetect": _on,
    "provider_tools": _off,
    "docker": _less_docker,
    "credentials": _stricter_credentials,
    "time_limit": _shorter,
    "limits": _smaller_limits,
    "budget": _smaller_parts,
}
"""What of a repository's value counts beside the one before; None (or no part) where it narrows nothing."""

_UNSAID: Mapping[str, Any] = {
    "cleanup_hook_timeout": None,
    "skip_docker_autodetect": False,
    "provider_tools": False,
    "docker": DockerAccess.NONE,
    "credentials": Credentials.INJECT,
    "time_limit": None,
}
"""What counts where nobody says anything."""

KEYS = tuple(_STRICTER)
