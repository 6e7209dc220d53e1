"""The RPM package, by rpmbuild from a staged tree."""

from __future__ import annotations

import re
import shutil
import textwrap
from datetime import UTC, datetime
from pathlib import Path

from builder import documents
from builder.project import PACKAGING, PYTHONS, Release, Say, run
from builder.tree import LIBRARY, SUDOERS, Family, files, normalise, stage
from clsecure.errors import StateError

_DEFINITIONS = {
    # The same bytes whoever builds, wherever and whenever.
    "_buildhost": "packages.invalid",
    "use_source_date_epoch_as_buildtime": "1",
    "clamp_mtime_to_source_date_epoch": "1",
    "source_date_epoch_from_changelog": "0",
    # The files are as their wheels have them: nothing is stripped, compiled, or linked to.
    "__os_install_post": "%{nil}",
    "debug_package": "%{nil}",
    "_build_id_links": "none",
    "_build_name_fmt": "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
    # Debian's rpm, too, writes what Fedora's rpm reads.
    "_source_filedigest_algorithm": "8",
    "_binary_filedigest_algorithm": "8",
}

# What rpm would take for a pattern.
_PATTERN, _ESCAPED = re.compile(r"([][*?{}\\])"), r"\\\1"


def build_rpm(release: Release, output: Path, work: Path, say: Say, *, level: int = 19) -> Path:
    """Stage and build the package.

    :param work: an empty directory; it is taken away by who made it.
    :param level: of the compression; 1 to 19.
    :raises ToolError: a tool of the build failed.
    """
    tree = work / "tree"
    stage(tree, release, Family.RPM, say)
    return pack(tree, release, output, level=level)


def pack(tree: Path, release: Release, output: Path, *, level: int) -> Path:
    """Build the package of a staged tree."""
    normalise(tree, release.epoch)
    work = tree.parent / "rpm"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    listed, spec = work / "files", work / "clsecure.spec"
    listed.write_text("".join(f"{line}\n" for line in _listed(tree)))
    spec.write_text(_spec(tree, release))
    definitions = {
        **_DEFINITIONS,
        "_binary_payload": f"w{level}.zstdio",
        "_topdir": str(work),
        "_rpmdir": str(work / "done"),
        "_dbpath": str(work / "database"),
        "staged": str(tree),
        "listed": str(listed),
    }
    defined = [word for name, value in definitions.items() for word in ("--define", f"{name} {value}")]
    environment = {"SOURCE_DATE_EPOCH": str(release.epoch), "HOME": str(work)}
    target = f"--target={release.architecture}-linux"
    run("rpmbuild", "-bb", "--quiet", "--nodeps", target, *defined, str(spec), env=environment)
    (built,) = (work / "done").glob("*.rpm")
    output.mkdir(parents=True, exist_ok=True)
    package = release.rpm(output)
    shutil.copyfile(built, package)
    return package


def _listed(tree: Path) -> list[str]:
    """Return the lines of ``%files``: ours are all files, and the directories that no other package has."""
    shared = (Path("usr/share", name, "clsecure") for name in ("", "doc", "licenses"))
    lines = ["%defattr(-,root,root,-)"]
    for place in (LIBRARY, *shared):
        inner = (path.relative_to(tree) for path in sorted((tree / place).rglob("*")) if path.is_dir())
        lines += [f"%dir /{directory}" for directory in (place, *inner)]
    for path in files(tree):
        if path == SUDOERS:
            lines.append(f"%config(noreplace) %attr(0440,root,root) /{path}")
        elif path.is_relative_to("usr/share/licenses"):
            lines.append(f"%license /{path}")
        else:
            lines.append(f'"/{_PATTERN.sub(_ESCAPED, str(path))}"')
    return lines


def _spec(tree: Path, release: Release) -> str:
    metadata = documents.libraries(tree / LIBRARY)
    bundled = [f"Provides: bundled(python3dist({each.name})) = {each.version}" for each in metadata]
    private = sorted({path.name for path in (tree / LIBRARY).rglob("*.libs/*.so*")})
    excluded = "|".join(re.escape(name) for name in private)
    values = {
        "VERSION": release.package_version,
        "SUMMARY": documents.SUMMARY[0].upper() + documents.SUMMARY[1:],
        "LICENSE": " AND ".join(_licences(metadata)),
        "URL": documents.URL,
        "ARCHITECTURE": release.architecture.value,
        "PYTHON": PYTHONS[0],
        "NEXT_PYTHON": release.next_python,
        "BUNDLED": "\n".join(bundled),
        "EXCLUDED": f"%global __requires_exclude ^({excluded})" if private else "",
        "DESCRIPTION": textwrap.fill(documents.DESCRIPTION, 78),
        "CHANGELOG": _changelog(release),
    }
    text = (PACKAGING / "rpm" / "clsecure.spec").read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    if left := re.findall(r"@[A-Z_]+@", text):
        raise StateError(f"clsecure.spec: nothing fills in {', '.join(left)}")
    return text


def _licences(metadata: tuple[documents.Library, ...]) -> list[str]:
    found = {each.licence.replace(" and ", " AND ").replace(" or ", " OR ") for each in metadata}
    return sorted({f"({each})" if " OR " in each else each for each in {*found, "MIT"}})


def _changelog(release: Release) -> str:
    when = datetime.fromtimestamp(release.epoch, UTC).strftime("%a %b %d %Y")
    head = f"* {when} {documents.MAINTAINER} - {release.package_version}-1"
    return "\n".join([head, *documents.changes(release, bullet="- ", width=76)]).replace("%", "%%")
