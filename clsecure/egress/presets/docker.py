"""docker and podman: the registries that the user has logged in to, mirrors, and podman's list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clsecure.egress.presets.files import entries, read_text, read_toml, unreadable
from clsecure.egress.presets.urls import ToolUrl, read_host, read_url
from clsecure.egress.presets.values import Collection, Person, Preset, named_path


def find(person: Person) -> Preset:
    """Return the hosts of the container registries that are configured. No tool is asked."""
    preset = Collection("docker")
    client = (named_path("docker_config", person) or person.home / ".docker") / "config.json"
    daemon = person.system / "etc/docker/daemon.json"
    podman = list(_podman_files(person))
    for path in (client, *_login_files(person)):
        for name in _logins(path):
            url = _registry(name, where=str(path))
            preset.add(url, str(path))
            preset.note_credentials(url)
    for name in _strings(_json(daemon), daemon, "registry-mirrors", "insecure-registries"):
        # Networks may stand there as well; they are no host.
        if "/" not in name or "://" in name:
            preset.add(_registry(name, where=str(daemon)), str(daemon))
    for path in podman:
        for name in _podman_registries(path):
            preset.add(_registry(name, where=str(path)), str(path))
    preset.note(
        "a registry may send its clients on to hosts of its own for tokens and for layers;"
        " what is blocked is named at the end of the session"
    )
    return preset.finish(looked_at=[str(path) for path in (client, *_login_files(person), daemon, *podman)])


def _registry(name: str, *, where: str) -> ToolUrl:
    if "://" in name:
        return read_url(name, where=where)
    return read_host(name, where=where)


def _login_files(person: Person) -> list[Path]:
    files = [person.config_home / "containers/auth.json"]
    runtime = named_path("xdg_runtime_dir", person)
    if runtime is not None:
        files.append(runtime / "containers/auth.json")
    named = named_path("registry_auth_file", person)
    return [named] if named is not None else files


def _logins(path: Path) -> Iterator[str]:
    content = _json(path)
    for key in ("auths", "credHelpers"):
        table = content.get(key, {})
        if not isinstance(table, dict):
            raise unreadable(path, f"its {key} is malformed")
        yield from table


def _podman_files(person: Person) -> Iterator[Path]:
    """Yield podman's lists: the user's, else the machine's."""
    users = person.config_home / "containers"
    named = named_path("containers_registries_conf", person)
    if named is not None:
        yield named
        return
    base = users if (users / "registries.conf").exists() else person.system / "etc/containers"
    yield base / "registries.conf"
    yield from entries(base / "registries.conf.d", "*.conf")


def _podman_registries(path: Path) -> Iterator[str]:
    content = read_toml(path) or {}
    yield from _strings(content, path, "unqualified-search-registries")
    registries = content.get("registry", [])
    try:
        for registry in registries:
            places = [registry, *registry.get("mirror", [])]
            for place in places:
                location = place.get("location") or place.get("prefix")
                # With a star it is a pattern of names, not a place.
                if location and not registry.get("blocked") and not location.startswith("*"):
                    yield f"{location}"
    except (AttributeError, TypeError):
        raise unreadable(path, "its registries are malformed") from None


def _json(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        content = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        # Without the cause: it quotes what it read.
        raise unreadable(path, "it is malformed") from None
    if not isinstance(content, dict):
        raise unreadable(path, "it is malformed")
    return content


def _strings(content: dict[str, Any], path: Path, *keys: str) -> Iterator[str]:
    for key in keys:
        values = content.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise unreadable(path, f"its {key} is malformed")
        yield from values
