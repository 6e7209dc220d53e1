"""pip, and uv where it is configured: indexes and places of links."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from clsecure.egress.presets.ask import ask, find_tools
from clsecure.egress.presets.files import is_inside, read_ini, read_toml, unreadable
from clsecure.egress.presets.urls import ToolUrl, read_host, read_url
from clsecure.egress.presets.values import Collection, Person, Preset, named_path
from clsecure.policy import HOST_ALIAS

# pip holds two hosts in its own code: of the index, and of the files that the index names.
_QUESTION = (
    "import json; from pip._internal.models.index import PyPI;"
    " print(json.dumps([PyPI.simple_url, PyPI.file_storage_domain]))"
)
_KEYS = ("index-url", "extra-index-url", "find-links", "trusted-host", "no-index", "cert")
_OWN_DEFAULT = "pip's own default"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """One setting and where it is."""

    text: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """What an installation may come from: one default index (None for the tool's own), more, and links."""

    index: ToolUrl | None
    extra: tuple[ToolUrl, ...]
    links: tuple[ToolUrl, ...]


def find(person: Person) -> Preset:
    """Return what pip and uv are configured for, and pip's own default where nothing else is."""
    preset = Collection("pip")
    settings = _pip_settings(person)
    sources = _pip_sources(settings, preset)
    _use_for_pip(sources, settings, preset)
    uv = _uv_sources(person, preset)
    _use_for_uv(uv, sources, preset)
    if not _no_index(settings) and not (sources.index is not None and sources.index.scheme == "http"):
        _add_default(sources.index, person, preset)
    return preset.finish(
        looked_at=[
            "the environment",
            *map(str, _pip_files(person)),
            *map(str, _uv_files(person)),
            "pip itself",
        ]
    )


def _add_default(index: ToolUrl | None, person: Person, preset: Collection) -> None:
    """Add pip's own index and its host of files, unless another index is configured in its place."""
    for python in find_tools("python3", person):
        answer = ask(python, "-I", "-c", _QUESTION, person=person)
        try:
            simple, files = json.loads(answer or "")
            own = read_url(f"{simple}", where=_OWN_DEFAULT)
            storage = read_host(f"{files}", where=_OWN_DEFAULT)
        except (ValueError, TypeError):
            continue
        if index is None or index.target == own.target:
            preset.add(own, _OWN_DEFAULT)
            preset.add(storage, _OWN_DEFAULT)
        return


# --------------------------------------------------------------------------- pip


def _pip_settings(person: Person) -> dict[str, _Value]:
    """Return what counts for ``pip install``: the environment, else its section, else ``[global]``."""
    found: dict[str, dict[str, _Value]] = {"global": {}, "install": {}}
    for path in _pip_files(person):
        parser = read_ini(path)
        if parser is None:
            continue
        for section in found.keys() & set(parser.sections()):
            for written, text in parser.items(section):
                key = written.lower().replace("_", "-").removeprefix("--")
                if key in _KEYS:
                    found[section][key] = _Value(text=text or "", where=str(path))
    environment = {}
    for key in _KEYS:
        variable = f"PIP_{key.upper().replace('-', '_')}"
        if person.environ.get(variable):
            environment[key] = _Value(text=person.environ[variable], where=variable)
    return {**found["global"], **found["install"], **environment}


def _pip_files(person: Person) -> list[Path]:
    """Return pip's files, weakest first. Source: pip's own documentation, Configuration, Location."""
    if person.environ.get("PIP_CONFIG_FILE") == "/dev/null":
        return []
    shared = [
        Path(directory) / "pip/pip.conf"
        for directory in reversed(person.environ.get("XDG_CONFIG_DIRS", "").split(":"))
        if directory.startswith("/") and not is_inside(Path(directory), person.repository)
    ]
    files = [
        *(shared or [person.system / "etc/xdg/pip/pip.conf"]),
        person.system / "etc/pip.conf",
        person.home / ".pip/pip.conf",
        person.config_home / "pip/pip.conf",
    ]
    named = named_path("pip_config_file", person)
    return [*files, named] if named is not None else files


def _pip_sources(settings: Mapping[str, _Value], preset: Collection) -> _Sources:
    def urls(key: str) -> tuple[ToolUrl, ...]:
        value = settings.get(key, _Value(text="", where=""))
        words = [value.text] if key == "index-url" and value.text else value.text.split()
        return tuple(_urls(words, key=key, where=value.where, preset=preset))

    index = urls("index-url")
    return _Sources(
        index=index[0] if index else None, extra=urls("extra-index-url"), links=urls("find-links")
    )


def _urls(words: list[str], *, key: str, where: str, preset: Collection) -> Iterator[ToolUrl]:
    """Yield the URLs of a setting; files of this machine are none of the network's."""
    for word in words:
        if word.startswith("file:") or "://" not in word:
            preset.note(f"{key} in {where} names files of this machine: mount them with --mount")
            continue
        url = read_url(word, where=f"{key} in {where}")
        preset.add(url, where)
        yield url


def _use_for_pip(sources: _Sources, settings: Mapping[str, _Value], preset: Collection) -> None:
    if sources.index is not None:
        preset.env["PIP_INDEX_URL"] = sources.index.inside
    if sources.extra:
        preset.env["PIP_EXTRA_INDEX_URL"] = " ".join(url.inside for url in sources.extra)
    if sources.links:
        preset.env["PIP_FIND_LINKS"] = " ".join(url.inside for url in sources.links)
        if _no_index(settings):
            preset.env["PIP_NO_INDEX"] = "1"
    urls = [url for url in (sources.index, *sources.extra, *sources.links) if url is not None]
    trusted = _trusted(settings.get("trusted-host"), urls)
    if trusted:
        preset.env["PIP_TRUSTED_HOST"] = " ".join(trusted)
    if "cert" in settings:
        preset.certificates(settings["cert"].text, variable="PIP_CERT", where=settings["cert"].where)


def _no_index(settings: Mapping[str, _Value]) -> bool:
    return "no-index" in settings and settings["no-index"].text.lower() in {
        "1",
        "true",
        "yes",
        "on",
        "t",
        "y",
    }


def _trusted(setting: _Value | None, urls: list[ToolUrl]) -> list[str]:
    """Return the hosts that pip inside may use without a valid certificate: those that pip outside may."""
    named = set(setting.text.split() if setting is not None else ())
    trusted: dict[str, None] = {}
    for url in urls:
        if named & {url.pattern.host, url.target}:
            trusted[f"{url.inside_host}:{url.pattern.port}"] = None
        elif url.loopback and url.scheme == "http":
            # pip trusts the loopback by its own names.
            trusted[f"{HOST_ALIAS}:{url.pattern.port}"] = None
    return list(trusted)


# --------------------------------------------------------------------------- uv


def _uv_files(person: Person) -> list[Path]:
    named = named_path("uv_config_file", person)
    return [named] if named else [person.config_home / "uv/uv.toml", person.system / "etc/uv/uv.toml"]


def _uv_sources(person: Person, preset: Collection) -> _Sources:
    """Return what uv is configured for: the environment first, then the user's file, then the machine's."""
    index: ToolUrl | None = None
    extra: list[ToolUrl] = []
    links: list[ToolUrl] = []
    for default, more, places, where in (_uv_environment(person), *map(_uv_file, _uv_files(person))):
        if index is None:
            index = next(_urls(default, key="the default index", where=where, preset=preset), None)
        extra += _urls(more, key="an index", where=where, preset=preset)
        links += _urls(places, key="find-links", where=where, preset=preset)
    return _Sources(index=index, extra=tuple(extra), links=tuple(links))


def _uv_environment(person: Person) -> tuple[list[str], list[str], list[str], str]:
    environ = person.environ
    default = [environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL") or ""]
    more = f"{environ.get('UV_INDEX', '')} {environ.get('UV_EXTRA_INDEX_URL', '')}".split()
    links = environ.get("UV_FIND_LINKS", "").replace(",", " ").split()
    return [_unnamed(url) for url in default if url], [_unnamed(url) for url in more], links, "UV_*"


def _unnamed(text: str) -> str:
    """Return the URL of ``name=url``."""
    name, equals, url = text.partition("=")
    return url if equals and "://" not in name else text


def _uv_file(path: Path) -> tuple[list[str], list[str], list[str], str]:
    content = read_toml(path) or {}
    default: list[str] = []
    more: list[str] = []
    links: list[str] = []
    try:
        for table in (content, content.get("pip", {})):
            default += [table["index-url"]] if "index-url" in table else []
            more += table.get("extra-index-url", [])
            links += table.get("find-links", [])
        for entry in content.get("index", []):
            (default if entry.get("default") is True else more).append(entry["url"])
        if not all(isinstance(text, str) for text in (*default, *more, *links)):
            raise TypeError
    except (TypeError, AttributeError, KeyError):
        raise unreadable(path, "its indexes are malformed") from None
    return default, more, links, str(path)


def _use_for_uv(uv: _Sources, pip: _Sources, preset: Collection) -> None:
    """Tell uv inside what uv outside uses; pip's where it has nothing of its own."""
    index, extra, links = uv.index or pip.index, uv.extra or pip.extra, uv.links or pip.links
    if index is not None:
        preset.env["UV_DEFAULT_INDEX"] = index.inside
    if extra:
        preset.env["UV_INDEX"] = " ".join(url.inside for url in extra)
    if links:
        preset.env["UV_FIND_LINKS"] = ",".join(url.inside for url in links)
