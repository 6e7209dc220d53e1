"""Debian's packages through apt, with a configuration of its own: /etc/apt is read for proxies alone."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from clsecure import process
from clsecure.errors import BackendUnavailableError, ImageError
from clsecure.images.lock import LockedPackage
from clsecure.images.mirror import KEYRING, Mirror
from clsecure.machine.probe import install_command
from clsecure.process import SYSTEM_PATH, Command, CommandResult

_TIMEOUT = 1800.0
_FILE = re.compile(r"(?P<name>[^_/]+)_(?P<version>[^_/]+)_(?P<architecture>[^_/]+)\.deb")
_MISSING = re.compile(r"Version '([^']*)' for '([^']*)' was not found|Unable to locate package (\S+)")
ESSENTIAL = "?and(?essential,?not(?exact-name(apt)))"
"""What every Debian holds. apt counts itself among them, but nothing is ever installed in an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Apt:
    """An apt of our own.

    :param directory: for its configuration and lists.
    """

    directory: Path
    mirror: Mirror
    suite: str
    architecture: str

    def prepare(self) -> None:
        """Write the configuration and fetch the lists, their signatures checked.

        :raises BackendUnavailableError: apt or the keyring is missing, or the mirror can't be used.
        """
        if not Path(KEYRING).is_file():
            raise BackendUnavailableError(
                "the keys of Debian's archive are missing",
                details=f"{KEYRING} does not exist",
                resolution=install_command("debian-archive-keyring"),
            )
        if shutil.which("apt-get", path=SYSTEM_PATH) is None:
            raise BackendUnavailableError(
                "apt is needed to fetch Debian's packages",
                resolution=f"{install_command('apt-get', 'mmdebstrap')}; or bring an image that was built "
                "elsewhere: clsecure images save there, clsecure images load here",
            )
        for name in ("lists/partial", "cache/archives/partial"):
            (self.directory / name).mkdir(parents=True)
        (self.directory / "status").touch()
        (self.directory / "sources.list").write_text(self.mirror.sources(self.suite), encoding="utf-8")
        (self.directory / "apt.conf").write_text(self._configuration(), encoding="utf-8")
        updated = self._run("apt-get", "update", "--error-on=any")
        if updated.returncode != 0:
            raise BackendUnavailableError(
                f"Debian's package lists can't be fetched from {self.mirror.main}",
                details=_words(updated),
                resolution="name another mirror: image_mirror in config.toml, or CLSECURE_IMAGE_MIRROR; "
                "for unknown keys, a newer debian-archive-keyring",
            )

    def resolve(self, packages: Sequence[str], target: Path) -> tuple[Path, ...]:
        """Fetch packages, what they depend on and the essential ones into ``target``.

        :raises ImageError: there is no such package, or they don't fit together.
        """
        target.mkdir(parents=True, exist_ok=True)
        (target / "partial").mkdir(exist_ok=True)
        fetched = self._run(
            "apt-get", "install", "--yes", "--download-only", f"-oDir::Cache::archives={target}",
            ESSENTIAL, *packages,
        )  # fmt: skip
        if fetched.returncode != 0:
            raise ImageError("the packages of the recipe can't be resolved", details=_words(fetched))
        return tuple(sorted(target.glob("*.deb")))

    def fetch(self, packages: Sequence[LockedPackage], target: Path, *, image: str) -> None:
        """Fetch locked packages into ``target``, under the names that :func:`file_name` gives.

        :raises ImageError: the mirror does not have one of them in the locked version.
        """
        target.mkdir(parents=True, exist_ok=True)
        fetched = self._run("apt-get", "download", *(package.pin for package in packages), cwd=target)
        if fetched.returncode == 0:
            return
        words = _words(fetched)
        missing = [
            f"{name or unknown}={version}" if version else unknown
            for version, name, unknown in _MISSING.findall(words)
        ]
        if not missing:
            raise ImageError("packages can't be fetched", details=words)
        raise missing_error(missing, image=image, mirror=self.mirror.main)

    def _configuration(self) -> str:
        here = self.directory
        own = {
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Install-Recommends": "false",
            "APT::Keep-Downloaded-Packages": "true",
            "Dir::Etc::sourcelist": here / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Etc::trusted": "/dev/null",
            "Dir::Etc::trustedparts": "/dev/null",
            "Dir::State::status": here / "status",
            "Dir::State::lists": here / "lists",
            "Dir::State::extended_states": here / "extended_states",
            "Dir::Cache": here / "cache",
            "Acquire::Languages": "none",
            # A snapshot's lists are past their date; what is used is decided by the lock's hashes.
            "Acquire::Check-Valid-Until": "false",
        }
        if os.geteuid() == 0:
            own["APT::Sandbox::User"] = "root"  # the directory is nobody else's
        # Proxies and the like are this machine's business.
        system = process.run(
            Command(argv=("apt-config", "dump", "--no-empty", "--format", '%F "%v";%n', "Acquire"))
        ).check()
        lines = [line for line in system.stdout.decode("utf-8", "replace").splitlines() if line.endswith(";")]
        return "".join(f"{line}\n" for line in [*lines, *(f'{k} "{v}";' for k, v in own.items())])

    def _run(self, *argv: str, cwd: Path | None = None) -> CommandResult:
        env = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", "APT_CONFIG": str(self.directory / "apt.conf")}
        env |= {name: os.environ[name] for name in _PROXIES if name in os.environ}
        return process.run(Command(argv=argv, env=env, cwd=cwd, timeout=_TIMEOUT))


_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY")


def missing_error(missing: Sequence[str], *, image: str, mirror: str) -> ImageError:
    """Return the error for locked versions that a mirror no longer has."""
    return ImageError(
        f"the mirror does not have {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
        details="\n".join([*missing, f"mirror: {mirror}"]),
        resolution="name a mirror of that day: image_mirror in config.toml or CLSECURE_IMAGE_MIRROR, such as "
        "https://snapshot.debian.org/archive/debian/DATE; or lock anew, in a checkout: "
        f"./dev invoke lock-images --image {image}",
    )


def file_name(package: LockedPackage) -> str:
    """Return what apt calls the file of a package: only a colon is escaped."""
    version = package.version.replace(":", "%3a")
    return f"{package.name}_{version}_{package.architecture}.deb"


def from_file_name(file: Path) -> tuple[str, str, str]:
    """Return name, version and architecture of a file that apt fetched."""
    match = _FILE.fullmatch(file.name)
    if match is None:
        raise ImageError(f"{file.name[:200]!r} is no name that apt gives")
    return match["name"], unquote(match["version"]), match["architecture"]


def _words(result: CommandResult) -> str:
    return result.stderr[-4000:].decode("utf-8", "replace").strip()
