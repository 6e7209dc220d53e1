"""What a package says about itself: bill of materials, licences, changelog."""

from __future__ import annotations

import json
import re
import textwrap
import uuid
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.parser import HeaderParser
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from builder.project import ROOT, Release
from builder.wheels import Wheel
from clsecure.images.fetch import sha256
from clsecure.images.lock import canonical

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

SBOM = Path("usr/share/clsecure/sbom.cdx.json")
MAINTAINER = "The clsecure contributors <clsecure@packages.invalid>"
"""There is no address yet; who publishes packages puts in their own."""
URL = "https://packages.invalid/clsecure"
SUMMARY = "run an AI coding agent unattended, isolated"
DESCRIPTION = (
    "clsecure runs Claude Code, or any other agent, on a private copy of a git repository, as a Unix account "
    "of its own in a sandbox that reaches neither your files nor your keys, and no network but what you "
    "allow. Each sandbox is checked from outside before the agent starts. All of its work comes home as one "
    "new branch."
)
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/clsecure")
# Debian has these texts itself, and its policy wants to be told where.
_COMMON_LICENCES = {
    "Apache-2.0": "Apache-2.0", "MPL-2.0": "MPL-2.0", "LGPL-2.1": "LGPL-2.1", "LGPL-3.0": "LGPL-3",
    "GPL-2.0": "GPL-2", "GPL-3.0": "GPL-3",
}  # fmt: skip
_APACHE = re.compile(r"Apache License\s+Version 2\.0, January 2004")
_LICENCE_FILE = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|AUTHORS)", re.IGNORECASE)
_COPYRIGHT = re.compile(r"^\W*(?:Copyright\b:?|\(c\)|©)\s*(?=.*\d{4}|.*by )(?P<who>.+)$", re.IGNORECASE)


def bill_of_materials(wheels: Mapping[str, tuple[Wheel, ...]], release: Release) -> bytes:
    """Return a CycloneDX document of the wheels in a package: the same bytes for the same package."""
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    package = Component(
        type=ComponentType.APPLICATION, name="clsecure", version=release.version, bom_ref="package"
    )
    paths = {wheel.path.name: wheel.path for each in wheels.values() for wheel in each}
    components = [_component(path) for _, path in sorted(paths.items())]
    contents = "".join(f"{name} {sha256(path)}\n" for name, path in sorted(paths.items()))
    bom = Bom(
        serial_number=uuid.uuid5(_NAMESPACE, f"{release.version}\n{release.architecture}\n{contents}"),
        metadata=BomMetaData(timestamp=datetime.fromtimestamp(release.epoch, UTC), component=package),
        components=components,
    )
    bom.register_dependency(package, components)
    return canonical(json.loads(JsonV1Dot6(bom).output_as_string()))


def _component(wheel: Path) -> Component:
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL
    from packaging.utils import parse_wheel_filename

    name, version, _, _ = parse_wheel_filename(wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (each for each in names if re.fullmatch(r"[^/]*\.dist-info/METADATA", each))
        licence = _licence_of(HeaderParser().parsestr(archive.read(metadata).decode()))
    url = PackageURL(type="pypi", name=name, version=str(version), qualifiers={"file_name": wheel.name})
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=str(version),
        purl=url,
        bom_ref=url.to_string(),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256(wheel))],
        licenses=[LicenseFactory().make_from_string(licence)],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A wheel in a package, by what its dist-info says.

    :param licence: an SPDX expression, as far as the wheel has one.
    :param texts: its licence files.
    """

    name: str
    version: str
    licence: str
    author: str
    information: Path
    texts: tuple[Path, ...]


def libraries(place: Path) -> tuple[Library, ...]:
    """Return the wheels below a directory, by name; one that each version of Python has is named once."""
    found = {each.name: each for each in sorted(place.rglob("*.dist-info"), reverse=True)}
    return tuple(_read_library(found[name]) for name in sorted(found))


def _read_library(information: Path) -> Library:
    metadata = HeaderParser().parsestr((information / "METADATA").read_text(encoding="utf-8"))
    listed = (path for path in sorted(information.rglob("*")) if path.is_file())
    return Library(
        name=re.sub(r"[-_.]+", "-", metadata["Name"]).lower(),
        version=metadata["Version"],
        licence=_licence_of(metadata),
        author=metadata.get("Author") or metadata.get("Author-email") or metadata["Name"],
        information=information,
        texts=tuple(path for path in listed if _LICENCE_FILE.search(path.name)),
    )


def copyright_file(target: Path, place: Path) -> str:
    """Return whose work is in the package, as Debian wants it: one paragraph for each library."""
    own = (ROOT / "LICENSE").read_text()
    paragraphs = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        "Upstream-Name: clsecure\n"
        "Comment: clsecure, and the libraries that its package brings along, each as its wheel has it.",
        _paragraph(["*"], [_copyrights([own])[0]], "MIT", own),
        *(_described(library, target) for library in libraries(place)),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _described(library: Library, target: Path) -> str:
    words = [path.read_text(encoding="utf-8", errors="replace") for path in library.texts]
    licence = library.licence.replace(" AND ", " and ").replace(" OR ", " or ")
    common = next((file for name, file in _COMMON_LICENCES.items() if licence.startswith(name)), None)
    if common is None and any(_APACHE.search(word) for word in words):
        common = "Apache-2.0"
    if common is not None:
        text = f"On Debian systems, the text is in /usr/share/common-licenses/{common}."
        if library.texts:
            where = ", ".join(f"/{path.relative_to(target)}" for path in library.texts)
            text += f"\nAs it came: {where}"
    elif words:
        text = "\n".join(word.strip() for word in words)
    else:
        text = f"The wheel of {library.name} has no text of its licence, only its name."
    parent = library.information.parent.relative_to(target)
    place = re.sub(r"/python3\.\d+/", "/python3.*/", str(parent))
    patterns = [f"{place}/{name}" for name in _top_level(library.information)]
    return _paragraph(patterns, _copyrights(words) or [library.author], licence, text)


def _top_level(information: Path) -> list[str]:
    """Return what a wheel put beside its own dist-info."""
    name = information.name.partition("-")[0]
    found = {f"{information.name}/*"}
    listed = information / "top_level.txt"
    candidates = listed.read_text().split() if listed.exists() else [name, name.partition("_")[0]]
    for path in information.parent.iterdir():
        if path.name.partition(".")[0] in candidates and path != information:
            found.add(f"{path.name}/*" if path.is_dir() else path.name)
    return sorted(found)


def _licence_of(metadata: Message) -> str:
    expression = metadata.get("License-Expression")
    if expression:
        return str(expression)
    lines = metadata.get_all("Classifier", [])
    classified = [line.rpartition(" :: ")[2] for line in lines if line.startswith("License ::")]
    named = classified or [str(metadata.get("License") or "unknown").splitlines()[0]]
    return _SHORT.get(named[0], re.sub(r"[^A-Za-z0-9.+-]+", "-", named[0]).strip("-"))


_SHORT = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "ISC License (ISCL)": "ISC",
}


def _copyrights(texts: Iterable[str]) -> list[str]:
    found = [_COPYRIGHT.match(line.strip()) for text in texts for line in text.splitlines()]
    return list(dict.fromkeys(match["who"].strip().rstrip(".") for match in found if match is not None))


def _paragraph(patterns: list[str], who: list[str], licence: str, text: str) -> str:
    body = "\n".join(f" {line.rstrip()}" if line.strip() else " ." for line in text.strip().splitlines())
    holders = "\n           ".join(who)
    return f"Files: {' '.join(patterns)}\nCopyright: {holders}\nLicense: {licence}\n{body}"


def debian_changelog(release: Release) -> str:
    """Return the newest part of CHANGELOG.md as Debian writes it."""
    when = format_datetime(datetime.fromtimestamp(release.epoch, UTC))
    head = f"clsecure ({release.package_version}) stable; urgency=medium"
    lines = changes(release, bullet="  * ", width=78)
    return "\n".join([head, "", *lines, "", f" -- {MAINTAINER}  {when}", ""])


def changes(release: Release, *, bullet: str, width: int) -> list[str]:
    """Return what CHANGELOG.md has of the version, else of what is to be released, as wrapped lines."""
    parts = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    named = [part for part in parts if part.startswith(f"[{release.version}]")]
    lines = []
    for line in (named or parts)[0].splitlines():
        if line.startswith("- "):
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line[2:]).replace("`", "")
            lines += textwrap.wrap(plain, width, initial_indent=bullet, subsequent_indent=" " * len(bullet))
    return lines
