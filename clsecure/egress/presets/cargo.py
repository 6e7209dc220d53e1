"""cargo: the registries, the sources in the place of its own, and where they serve crates from."""

from __future__ import annotations

import json
import re
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clsecure.egress.presets.ask import find_tools, run
from clsecure.egress.presets.files import entries, read_text, read_toml, unreadable
from clsecure.egress.presets.urls import ToolUrl, read_url
from clsecure.egress.presets.values import Collection, Person, Preset, named_path

_OWN = "crates-io"
_OWN_DEFAULT = "cargo's own default"
_VARIABLE = re.compile(r"CARGO_REGISTRIES_(?P<name>[A-Z0-9_]+)_INDEX")
_ASKED = re.compile(r"`(https?://[^`\s]+)`")


def find(person: Person) -> Preset:
    """Return cargo's registries: the environment, its configuration, its own default, and their stores."""
    preset = Collection("cargo")
    cargo_home = named_path("cargo_home", person) or person.home / ".cargo"
    file, config = _configuration(cargo_home)
    indexes = list(_registries(config, file, person, preset))
    replaced = _replacement(config, file, preset)
    if replaced is None:
        own = _ask_default(person)
        if own is not None:
            preset.add(own, _OWN_DEFAULT)
            indexes.append(own)
    else:
        indexes += replaced
        preset.note("cargo takes a source replacement from a file only: have it in the repository's .cargo")
    for index in indexes:
        _add_store(index, cargo_home, preset)
    return preset.finish(looked_at=["CARGO_REGISTRIES_*_INDEX", str(file), "cargo's answer to a search"])


def _configuration(cargo_home: Path) -> tuple[Path, Mapping[str, Any]]:
    for name in ("config", "config.toml"):
        content = read_toml(cargo_home / name)
        if content is not None:
            return cargo_home / name, content
    return cargo_home / "config.toml", {}


def _registries(
    config: Mapping[str, Any], file: Path, person: Person, preset: Collection
) -> Iterator[ToolUrl]:
    """Yield the indexes of the registries that have a name, and name them to cargo inside."""
    found = {}
    for name, table in _table(config, "registries", file).items():
        if isinstance(table, Mapping) and isinstance(table.get("index"), str):
            found[name.upper().replace("-", "_")] = table["index"], str(file)
    for variable, text in person.environ.items():
        match = _VARIABLE.fullmatch(variable)
        if match is not None and text:
            found[match["name"]] = text, variable
    for name, (text, where) in found.items():
        url = _index(text, where=where, preset=preset)
        if url is not None:
            sparse = "sparse+" if text.startswith("sparse+") else ""
            preset.env[f"CARGO_REGISTRIES_{name}_INDEX"] = f"{sparse}{url.inside}"
            yield url


def _replacement(config: Mapping[str, Any], file: Path, preset: Collection) -> list[ToolUrl] | None:
    """Return the indexes in the place of cargo's own registry, None where it has not been replaced."""
    sources, name, seen = _table(config, "source", file), _OWN, set()
    while isinstance(source := sources.get(name, {}), Mapping) and "replace-with" in source:
        if name in seen:
            raise unreadable(file, "its sources replace each other")
        seen.add(name)
        name = f"{source['replace-with']}"
    if not seen:
        return None
    registries = _table(config, "registries", file)
    entry = sources.get(name) or registries.get(name) or {}
    text = entry.get("registry") or entry.get("index") if isinstance(entry, Mapping) else None
    if not isinstance(text, str):
        preset.note(f"the source {name!r} in {file} is of this machine: mount it with --mount")
        return []
    url = _index(text, where=str(file), preset=preset)
    return [url] if url is not None else []


def _index(text: str, *, where: str, preset: Collection) -> ToolUrl | None:
    if text.startswith("file:"):
        preset.note(f"an index in {where} is of this machine: mount it with --mount")
        return None
    url = read_url(text.removeprefix("sparse+"), where=f"an index in {where}")
    preset.add(url, where)
    return url


def _add_store(index: ToolUrl, cargo_home: Path, preset: Collection) -> None:
    """Add where a registry serves crates from, as cargo's own copy of its index says."""
    host = index.pattern.host
    known = False
    for path in entries(cargo_home / "registry/index", f"{host}-*/config.json"):
        if not re.fullmatch(r"[0-9a-f]{8,32}", path.parent.name.removeprefix(f"{host}-")):
            continue
        try:
            content = json.loads(read_text(path) or "{}")
            store, secured = content["dl"], content.get("auth-required")
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise unreadable(path, "it is malformed") from None
        preset.add(read_url(f"{store}", where=str(path)), str(path))
        known = True
        if secured:
            preset.note_credentials(index)
    if not known:
        preset.note(
            f"where {index.target} serves crates from is not known before cargo has fetched something"
            " from it; other hosts than its own stay closed until then"
        )


def _ask_default(person: Person) -> ToolUrl | None:
    """Return cargo's own index, which it only tells by failing to reach it."""
    with socket.socket() as nobody, tempfile.TemporaryDirectory(prefix="clsecure-") as empty:
        # Bound and not listening: the proxy that cargo is told of refuses, and nothing reaches a network.
        nobody.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        settings = {
            "CARGO_HOME": empty,
            "CARGO_HTTP_PROXY": proxy,
            # rustup's, should it think of fetching a toolchain first.
            "https_proxy": proxy,
            "CARGO_NET_RETRY": "0",
            "CARGO_TERM_COLOR": "never",
        }
        for program in find_tools("cargo", person):
            result = run(program, "search", "--limit=1", "clsecure", person=person, settings=settings)
            words = result.stderr[:4096].decode("utf-8", "replace") if result is not None else ""
            match = _ASKED.search(words)
            if match is not None:
                return read_url(match[1], where=_OWN_DEFAULT)
    return None


def _table(config: Mapping[str, Any], name: str, file: Path) -> Mapping[str, Any]:
    table = config.get(name, {})
    if not isinstance(table, Mapping):
        raise unreadable(file, f"its {name} is no table")
    return table
