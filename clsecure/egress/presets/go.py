"""go: the module proxies and the checksum database."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from clsecure.egress.presets.ask import ask, find_tools
from clsecure.egress.presets.files import read_text
from clsecure.egress.presets.urls import bad_url, read_host, read_url
from clsecure.egress.presets.values import Collection, Person, Preset, named_path

_NAMES = ("GOPROXY", "GOSUMDB")
# Which modules go past them: without these the checksum database would be asked for private modules.
_PRIVATE = ("GOPRIVATE", "GONOPROXY", "GONOSUMDB")
# What a go.mod near by says must not make it fetch another go.
_SETTINGS = {"GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": ""}
_SUMDB = re.compile(r"(?P<name>[^+\s]+)(?:\+[^\s]*)?(?:\s+(?P<url>\S+))?")


def find(person: Person) -> Preset:
    """Return go's proxies and checksum database: the environment, ``go env -w``, go's own answer."""
    preset = Collection("go")
    file = _file(person)
    values: dict[str, tuple[str, str]] = {}
    for where, settings in (("the environment", person.environ), (str(file), _read(file))):
        for name in (*_NAMES, *_PRIVATE):
            if settings.get(name):
                values.setdefault(name, (settings[name], where))
    if not values.keys() >= set(_NAMES):
        for name, value in _asked(person).items():
            if value:
                values.setdefault(name, (value, "go env"))
    if "GOPROXY" in values:
        preset.env["GOPROXY"] = _add_proxies(*values["GOPROXY"], preset)
    if "GOSUMDB" in values:
        preset.env["GOSUMDB"] = _add_database(*values["GOSUMDB"], preset)
    preset.env |= {
        name: values[name][0] for name in _PRIVATE if name in values and values[name][0].isprintable()
    }
    return preset.finish(looked_at=["GOPROXY", str(file), "go env GOPROXY GOSUMDB"])


def _add_proxies(text: str, where: str, preset: Collection) -> str:
    """Add the hosts of a list; return it as it is for inside."""
    inside = []
    # The separator says on which failures the next one is asked.
    for entry in re.split(r"([,|])", text):
        word = entry.strip()
        if word in {",", "|", "off", "direct", ""}:
            if word == "direct":
                preset.note(
                    "modules that come directly from their repositories need those hosts allowed, too"
                )
            inside.append(word)
        elif word.startswith("file:"):
            preset.note(f"GOPROXY in {where} names files of this machine: mount them with --mount")
            inside.append("off")
        else:
            url = read_url(word if "://" in word else f"https://{word}", where=f"GOPROXY in {where}")
            preset.add(url, where)
            inside.append(url.inside)
    return "".join(inside)


def _add_database(text: str, where: str, preset: Collection) -> str:
    if text.strip() == "off":
        return "off"
    match = _SUMDB.fullmatch(text.strip())
    if match is None:
        raise bad_url("it is malformed", where=f"GOSUMDB in {where}")
    if match["url"]:
        url = read_url(match["url"], where=f"GOSUMDB in {where}")
        preset.add(url, where)
        return f"{text.split()[0]} {url.inside}"
    preset.add(read_host(match["name"], where=f"GOSUMDB in {where}"), where)
    return text.strip()


def _file(person: Person) -> Path:
    if person.environ.get("GOENV") == "off":
        return Path("/dev/null")
    return named_path("goenv", person) or person.config_home / "go/env"


def _read(path: Path) -> Mapping[str, str]:
    """Return the settings of a file of ``NAME=value`` lines."""
    if path == Path("/dev/null"):
        return {}
    lines = (read_text(path) or "").splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line))


def _asked(person: Person) -> Mapping[str, str]:
    for program in find_tools("go", person):
        answer = ask(
            program,
            "env",
            "-json",
            *_NAMES,
            *_PRIVATE,
            person=person,
            variables="GO[A-Z]+",
            settings=_SETTINGS,
        )
        try:
            found = json.loads(answer or "")
            return {name: str(found[name]) for name in (*_NAMES, *_PRIVATE) if name in found}
        except (ValueError, TypeError):
            continue
    return {}
