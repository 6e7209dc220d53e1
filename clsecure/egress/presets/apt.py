"""apt: the machine's package sources, in both of their formats."""

from __future__ import annotations

import email.parser
import re
from collections.abc import Iterator
from pathlib import Path

from clsecure.egress.presets.files import entries, read_text
from clsecure.egress.presets.urls import WEB, read_url
from clsecure.egress.presets.values import Collection, Person, Preset

# Source: sources.list(5).
_LINE = re.compile(r"\s*deb(?:-src)?\s+(?:\[[^\]]*\]\s*)?(?P<uri>\S+)\s+\S")
_LOCAL = ("file:", "copy:", "cdrom:")
_MIRROR = "mirror+"


def find(person: Person) -> Preset:
    """Return the hosts of the machine's package sources."""
    preset = Collection("apt")
    directory = person.system / "etc/apt"
    parts = directory / "sources.list.d"
    files = [directory / "sources.list", *entries(parts, "*.list"), *entries(parts, "*.sources")]
    for path in files:
        text = read_text(path)
        if text is None:
            continue
        uris = _deb822(text) if path.suffix == ".sources" else _lines(text)
        for uri in uris:
            _add(uri, str(path), person, preset)
    return preset.finish(looked_at=[str(directory / "sources.list"), f"{parts}/*.list", f"{parts}/*.sources"])


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is not None:
            yield match["uri"]


def _deb822(text: str) -> Iterator[str]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n(?:[ \t]*\n)+", "\n".join(lines)):
        fields = email.parser.HeaderParser().parsestr(stanza.strip("\n"))
        if fields.get("Enabled", "yes").strip().lower() not in {
            "no",
            "false",
            "0",
            "off",
            "without",
            "disable",
        }:
            yield from str(fields.get("URIs", "")).split()


def _add(uri: str, where: str, person: Person, preset: Collection) -> None:
    if uri.startswith(_LOCAL):
        return
    if uri.startswith(f"{_MIRROR}file:"):
        listed = Path(re.sub(r"^file:/*", "/", uri.removeprefix(_MIRROR)))
        _add_listed(person.system / listed.relative_to("/"), person, preset)
        return
    if uri.startswith((_MIRROR, "mirror:")):
        preset.note(f"the mirrors that a list on the network names ({where}) are not known here")
        uri = re.sub(r"^mirror:", "http:", uri.removeprefix(_MIRROR))
    scheme = re.match(r"[a-z][a-z0-9+.-]*(?=:)", uri)
    if scheme is not None and scheme[0] not in WEB:
        preset.note(f"the sources in {where} that are fetched by {scheme[0]} are left out")
        return
    preset.add(read_url(uri, where=where), where)


def _add_listed(path: Path, person: Person, preset: Collection) -> None:
    """Add the mirrors of a list on this machine: one to a line, what is behind a tab is about it."""
    for line in (read_text(path) or "").splitlines():
        words = line.split()
        if words and not words[0].startswith(("#", _MIRROR)):
            _add(words[0], str(path), person, preset)
