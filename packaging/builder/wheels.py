"""The locked dependencies, as wheels: fetched by pip with their hashes, laid out once or per Python version.

A wheel that is the same file for every version (pure Python, or of the stable ABI) is installed once, for all
of them; one that is compiled for a version goes to that version's own directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from builder.project import PYTHONS, ROOT, Architecture, Say, run

LOCK = ROOT / "requirements.lock"
COMMON = "common"
"""Stands for all versions of Python in what :func:`fetch` returns."""

# The newest that the oldest distribution can load (Debian 12: 2.36), downwards: pip takes the first that
# fits.
_GLIBC = range(36, 16, -1)
_TIMEOUT = 900.0
# Whoever calls may be behind a proxy or a mirror of PyPI: pip's own settings are theirs.
_PASSED_ON = re.compile(r"PIP_\w+|XDG_CONFIG_HOME|HOME|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|\w+_proxy|\w+_PROXY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """One line of the lock that counts for a version of Python.

    :param text: name, version and hashes as pip reads them; without a marker, which pip would judge by the
        Python that it runs on.
    """

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A file of the lock, and whether every version of Python takes it."""

    locked: Locked
    path: Path
    common: bool


def locked_for(python: str, architecture: Architecture, lock: Path = LOCK) -> tuple[Locked, ...]:
    """Return what the lock has for one version of Python on this kind of machine."""
    from packaging.markers import default_environment
    from packaging.requirements import Requirement

    environment: dict[str, str] = {
        **{key: str(value) for key, value in default_environment().items()},
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_version": f"{python}.0",
        "platform_machine": architecture.value,
    }
    found = []
    for line in lock.read_text().replace("\\\n", " ").splitlines():
        named = line.partition(" --hash=")[0].strip()
        if not named or named.startswith("#"):
            continue
        requirement = Requirement(named)
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        hashes = (f"--hash={each.strip()}" for each in line.split("--hash=")[1:])
        text = " ".join((f"{requirement.name}{requirement.specifier}", *hashes))
        found.append(Locked(name=requirement.name, text=text))
    return tuple(found)


def fetch(architecture: Architecture, say: Say) -> Mapping[str, tuple[Wheel, ...]]:
    """Return the wheels of each version of Python, from the cache or the index; pip checks each hash.

    :raises ToolError: the index has no wheel for one of them.
    """
    found: dict[str, tuple[tuple[Locked, Path], ...]] = {}
    for python in PYTHONS:
        locked = locked_for(python, architecture)
        found[python] = tuple(zip(locked, _download(python, architecture, locked, say), strict=True))
    names = [{path.name for _, path in wheels} for wheels in found.values()]
    everywhere = set.intersection(*names)
    return {
        python: tuple(
            Wheel(locked=locked, path=path, common=path.name in everywhere) for locked, path in wheels
        )
        for python, wheels in found.items()
    }


def install(
    wheels: Mapping[str, tuple[Wheel, ...]],
    architecture: Architecture,
    targets: Mapping[str, Path],
    scratch: Path,
) -> None:
    """Unpack all wheels.

    :param targets: a directory for :data:`COMMON` and for each version of Python.
    """
    common = [wheel for wheel in wheels[PYTHONS[0]] if wheel.common]
    _install(PYTHONS[0], architecture, common, targets[COMMON], scratch)
    for python in PYTHONS:
        own = [wheel for wheel in wheels[python] if not wheel.common]
        _install(python, architecture, own, targets[python], scratch)


def _download(
    python: str, architecture: Architecture, locked: tuple[Locked, ...], say: Say
) -> tuple[Path, ...]:
    requirements = "".join(f"{each.text}\n" for each in locked)
    key = hashlib.sha256(f"{python} {architecture} {requirements}".encode()).hexdigest()[:24]
    place = _cache() / f"{python}-{architecture}-{key}"
    if not place.is_dir():
        say(f"fetching the wheels for Python {python}")
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.{os.getpid()}")
        partial.mkdir()
        try:
            (partial / "requirements").write_text(requirements)
            _pip(
                "download",
                "--dest",
                str(partial),
                *_selection(python, architecture, partial / "requirements"),
            )
            # Who was faster has the same files.
            with contextlib.suppress(OSError):
                partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    wheels = {_normal(path.name.partition("-")[0]): path for path in place.glob("*.whl")}
    return tuple(wheels[_normal(each.name)] for each in locked)


def _install(
    python: str, architecture: Architecture, wheels: list[Wheel], target: Path, scratch: Path
) -> None:
    target.mkdir(parents=True, exist_ok=True)
    if not wheels:
        return
    requirements = scratch / "requirements"
    requirements.write_text("".join(f"{wheel.locked.text}\n" for wheel in wheels))
    links = {str(wheel.path.parent) for wheel in wheels}
    found = [f"--find-links={place}" for place in sorted(links)]
    options = ("--no-index", *found, "--no-compile", "--no-warn-conflicts", "--target", str(target))
    _pip("install", *options, *_selection(python, architecture, requirements))
    # Commands of the dependencies, which would run outside of our tree's python, and pip's own notes.
    shutil.rmtree(target / "bin", ignore_errors=True)
    for name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
        for path in target.glob(f"*.dist-info/{name}"):
            path.unlink()
    # What only who builds or tests them needs: sources in C, scripts, files of git's.
    for pattern in ("*.c", "*.h", "*.sh", ".gitignore"):
        for path in target.rglob(pattern):
            path.unlink()


def _selection(python: str, architecture: Architecture, requirements: Path) -> tuple[str, ...]:
    tag = f"cp{python.replace('.', '')}"
    platforms = [f"manylinux_2_{minor}_{architecture}" for minor in _GLIBC]
    platforms += [f"manylinux2014_{architecture}", "any"]
    return (
        "--require-hashes", "--no-deps", "--only-binary=:all:",
        "--implementation=cp", f"--python-version={python}",
        f"--abi={tag}", "--abi=abi3", "--abi=none",
        *(f"--platform={platform}" for platform in platforms),
        "--requirement", str(requirements),
    )  # fmt: skip


def pip_environment() -> dict[str, str]:
    """Return what of this process's environment pip may go by: its own settings, a proxy."""
    return {key: value for key, value in os.environ.items() if _PASSED_ON.fullmatch(key)}


def _pip(*arguments: str) -> None:
    argv = (
        sys.executable,
        "-I",
        "-m",
        "pip",
        "--quiet",
        "--quiet",
        "--disable-pip-version-check",
        *arguments,
    )
    run(*argv, env=pip_environment(), timeout=_TIMEOUT)


def _cache() -> Path:
    configured = os.environ.get("XDG_CACHE_HOME", "")
    home = os.environ.get("HOME", "/nonexistent")
    base = Path(configured) if configured.startswith("/") else Path(home, ".cache")
    return base / "clsecure" / "wheels"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
