"""npm's packages: npm fetches them, with the registry and proxy that it knows; nothing of them is run."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import shutil
from pathlib import Path

from clsecure import process
from clsecure.errors import BackendUnavailableError, ImageError
from clsecure.images.lock import LockedNpm
from clsecure.machine.probe import install_command
from clsecure.process import SYSTEM_PATH, Command, CommandResult

_TIMEOUT = 900.0
_HASHES = {"sha512", "sha384"}
_SETTINGS = re.compile(
    r"(npm_config_|NPM_CONFIG_)\w+|(https?|no|all)_proxy|(HTTPS?|NO|ALL)_PROXY"
    r"|NODE_EXTRA_CA_CERTS|SSL_CERT_FILE|SSL_CERT_DIR|XDG_CONFIG_HOME"
)


def look_up_integrity(package: str, version: str, *, directory: Path) -> str:
    """Return what the registry says is the hash of a package's archive."""
    asked = _npm("view", f"{package}@{version}", "dist.integrity", "--json", directory=directory)
    try:
        integrity = json.loads(asked.stdout)
    except ValueError:
        integrity = None
    if asked.returncode != 0 or not isinstance(integrity, str) or not integrity:
        raise ImageError(f"npm does not know {package}@{version}", details=_words(asked))
    return integrity


def fetch(package: LockedNpm, directory: Path) -> Path:
    """Fetch the archive of a package into a directory and return where it lies, unchecked."""
    directory.mkdir(parents=True, exist_ok=True)
    # A package of its own, so that npm looks for no project (and no .npmrc of one) further up.
    (directory / "package.json").write_text('{"private": true}\n', encoding="ascii")
    packed = _npm(
        "pack", "--ignore-scripts", "--loglevel=error", "--json", f"{package.package}@{package.version}",
        directory=directory,
    )  # fmt: skip
    files = list(directory.glob("*.tgz"))
    if packed.returncode != 0 or len(files) != 1:
        raise ImageError(
            f"npm can't fetch {package.package}@{package.version}",
            details=_words(packed),
            resolution="Check npm's registry and network: npm ping",
        )
    return files[0]


def matches(file: Path, integrity: str) -> bool:
    """Tell whether a file has the hash that the lock names."""
    name, _, expected = integrity.partition("-")
    if name not in _HASHES:
        raise ImageError(f"{name[:20]!r} is no hash that a lock file may use")
    with file.open("rb") as opened:
        found = base64.b64encode(hashlib.file_digest(opened, name).digest()).decode()
    return hmac.compare_digest(found, expected)


def find_npm() -> str | None:
    """Return where npm is: this machine's, else the user's own; None when there is none."""
    npm = shutil.which("npm", path=f"{SYSTEM_PATH}:{os.environ.get('PATH', '')}")
    return npm if npm is not None and npm.startswith("/") else None


def _npm(*arguments: str, directory: Path) -> CommandResult:
    npm = find_npm()
    if npm is None:
        raise BackendUnavailableError(
            "npm is needed to fetch an agent for an image", resolution=install_command("npm")
        )
    env = {name: value for name, value in os.environ.items() if _SETTINGS.fullmatch(name)}
    env |= {
        "PATH": f"{Path(npm).parent}:{SYSTEM_PATH}",
        "HOME": os.environ.get("HOME", "/nonexistent"),
        "LC_ALL": "C.UTF-8",
    }
    return process.run(Command(argv=(npm, *arguments), env=env, cwd=directory, timeout=_TIMEOUT))


def _words(result: CommandResult) -> str:
    return result.stderr[-4000:].decode("utf-8", "replace").strip()
