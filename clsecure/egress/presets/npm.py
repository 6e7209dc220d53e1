"""npm (and what reads its configuration): the registry and the registries of scopes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clsecure.egress.presets.ask import ask, find_tools
from clsecure.egress.presets.files import read_ini
from clsecure.egress.presets.urls import ToolUrl, bad_url, read_url
from clsecure.egress.presets.values import Collection, Person, Preset, named_path

_SECTION = "npmrc"
_VARIABLE = re.compile(r"(?i:npm_config_)(?P<key>.+)")
_SCOPED = re.compile(r"@[^:/@\s]{1,200}:registry")
_SECRETS = ("_authToken", "_auth", "_password", "username", "certfile", "keyfile")
_ASKED = "npm config get registry"
# Otherwise a question leaves files in the user's home.
_QUIET = {"npm_config_logs_max": "0", "npm_config_cache": "/dev/null", "npm_config_update_notifier": "false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One place of settings: a file, or the environment."""

    where: str
    settings: Mapping[str, str] = field(repr=False)


def find(person: Person) -> Preset:
    """Return what npm is configured for: the environment, the user's file, the global one, npm's answer."""
    preset = Collection("npm")
    layers = list(_layers(person))
    used: list[ToolUrl] = []
    registry = _configured(layers) or _asked(person)
    if registry is not None:
        url, where = registry
        preset.add(url, where)
        used.append(url)
        if where != _ASKED or url.loopback:
            preset.env["NPM_CONFIG_REGISTRY"] = url.inside
    for key, (url, where) in _scoped(layers).items():
        preset.add(url, where)
        used.append(url)
        scope = key.partition(":")[0]
        if scope != scope.lower() or "_" in scope:
            preset.note(
                f"npm takes no scope like {scope} from the environment: name its registry in an .npmrc"
            )
        else:
            preset.env[f"npm_config_{key}"] = url.inside
    if registry is not None and _is_all_of_this_machine(registry[0], used):
        # Packages and lock files name it as it is called outside; npm puts the name inside in its place.
        preset.env["NPM_CONFIG_REPLACE_REGISTRY_HOST"] = "always"
    _note_credentials(layers, used, preset)
    for layer in layers:
        if layer.settings.get("cafile"):
            preset.certificates(layer.settings["cafile"], variable="NPM_CONFIG_CAFILE", where=layer.where)
            break
    return preset.finish(looked_at=[*(layer.where for layer in layers), _ASKED])


def _configured(layers: list[_Layer]) -> tuple[ToolUrl, str] | None:
    """Return the registry of what has no scope, and where it is set."""
    for layer in layers:
        text = layer.settings.get("registry")
        if text:
            return read_url(text, where=f"registry in {layer.where}"), layer.where
    return None


def _asked(person: Person) -> tuple[ToolUrl, str] | None:
    """Return the registry that npm itself names."""
    for program in find_tools("npm", person):
        names = r"(?i:npm_config_)\w+"
        answer = ask(program, *_ASKED.split()[1:], person=person, variables=names, settings=_QUIET)
        if answer is not None:
            return read_url(answer.strip(), where=_ASKED), _ASKED
    return None


def _scoped(layers: list[_Layer]) -> dict[str, tuple[ToolUrl, str]]:
    found: dict[str, tuple[ToolUrl, str]] = {}
    for layer in layers:
        for key, text in layer.settings.items():
            if _SCOPED.fullmatch(key) and key not in found and text:
                found[key] = read_url(text, where=f"{key} in {layer.where}"), layer.where
    return found


def _is_all_of_this_machine(registry: ToolUrl, used: list[ToolUrl]) -> bool:
    """Tell whether npm may put one registry in the place of whatever a package names.

    It does so for packages of all scopes, so there must be but one. Older versions (9.2) put a path in twice.
    """
    return registry.loopback and registry.path in ("", "/") and len({url.inside for url in used}) == 1


def _note_credentials(layers: list[_Layer], used: list[ToolUrl], preset: Collection) -> None:
    """Say for which registries a file holds credentials, without reading them."""
    for key in (key for layer in layers for key in layer.settings):
        target, _, setting = key.removeprefix("//").rpartition(":")
        if not key.startswith("//") or setting not in _SECRETS:
            continue
        host = target.partition("/")[0]
        for url in used:
            if host in {url.target, url.target.rpartition(":")[0]}:
                preset.note_credentials(url)


def _layers(person: Person) -> Iterator[_Layer]:
    """Yield the places that npm looks at, strongest first; only those that are there."""
    variables = {}
    for name, value in person.environ.items():
        match = _VARIABLE.fullmatch(name)
        if match is not None and value:
            variables[_variable_key(match["key"])] = value
    yield _Layer(where="the environment", settings=variables)
    files = [named_path("npm_config_userconfig", person) or person.home / ".npmrc"]
    globally = named_path("npm_config_globalconfig", person)
    if globally is not None:
        files.append(globally)
    else:
        # npm's own is beside the prefix that it is installed in; distributions have theirs in /etc.
        files += [program.parent.parent / "etc/npmrc" for program in find_tools("npm", person)]
        files.append(person.system / "etc/npmrc")
    for path in dict.fromkeys(files):
        settings = _read(path, person)
        if settings is not None:
            yield _Layer(where=str(path), settings=settings)


def _variable_key(key: str) -> str:
    """Return the setting that a variable stands for, as npm makes it of the name."""
    return key if key.startswith("//") else key[:1].lower() + key[1:].replace("_", "-").lower()


def _read(path: Path, person: Person) -> dict[str, str] | None:
    """Return a file's settings; of those that may be secret only the names."""
    parser = read_ini(path, section=_SECTION)
    if parser is None:
        return None
    settings = {}
    for written, text in parser.items(_SECTION):
        key = _unquote(written)
        wanted = key in {"registry", "cafile"} or _SCOPED.fullmatch(key)
        settings[key] = _expand(_unquote(text or ""), path, person) if wanted else ""
    return settings


def _unquote(text: str) -> str:
    if text[:1] == '"':
        try:
            value = json.loads(text)
        except ValueError:
            return text
        return value if isinstance(value, str) else text
    return text.strip("'")


def _expand(value: str, path: Path, person: Person) -> str:
    """Put the environment's values in, as npm does for ``${NAME}``."""

    def replace(match: re.Match[str]) -> str:
        name, question, _ = match[1].partition("?")
        found = person.environ.get(name)
        if found is None and not question:
            raise bad_url(f"it wants the variable {name}, which is not set", where=str(path))
        return found or ""

    return re.sub(r"\$\{([^${}]{1,100})\}", replace, value)
