"""Fetching Claude Code for a machine that has none: npm does it, with the registry and proxy it knows."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from clsecure import process
from clsecure.agents import npm_package
from clsecure.agents.elf import read_elf
from clsecure.errors import AgentError, UsageError
from clsecure.process import Command

_WANTED = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,63}")
_TIMEOUT = 900.0

# npm's own settings and what its HTTPS needs; they stay on the host, with npm.
_NPM_NAMES = re.compile(
    r"(npm_config_|NPM_CONFIG_)\w+|(https?|no|all)_proxy|(HTTPS?|NO|ALL)_PROXY"
    r"|NODE_EXTRA_CA_CERTS|SSL_CERT_FILE|SSL_CERT_DIR|LANG|XDG_CONFIG_HOME"
)

_PACKAGE_MANAGERS = (
    ("apt-get", "sudo apt-get install npm"),
    ("dnf", "sudo dnf install npm"),
    ("pacman", "sudo pacman -S npm"),
)


def install_claude(
    target_dir: Path,
    *,
    environ: Mapping[str, str],
    home: Path,
    version: str = "latest",
    exclude: Sequence[Path] = (),
) -> Path:
    """Fetch Claude Code's program for this machine and return where it lies: ``target_dir/VERSION/claude``.

    npm checks the download against the registry's integrity value; no script of any package runs.

    :param target_dir: made when missing; see :func:`clsecure.agents.find.agents_directory`.
    :param version: a version or a tag of the registry.
    :param exclude: directories whose ``npm`` doesn't count, such as the repository.
    :raises AgentError: npm is missing or failed, or what came is no program for this machine.
    """
    if not _WANTED.fullmatch(version):
        raise UsageError(f"{version!r} is no version of Claude Code")
    package = _package()
    npm = _find_npm(environ, exclude)
    target_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Beside the target, so that putting it in place is one rename.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target_dir) as name:
        staging = Path(name)
        _fetch(npm, f"{package}@{version}", staging, environ, home)
        fetched = staging / "node_modules" / package
        program = fetched / "claude"
        found = npm_package.version(fetched)
        if found is None or not _runs_here(program):
            raise AgentError("what npm fetched is not Claude Code for this machine", details=str(package))
        program.chmod(0o755)
        return _put_in_place(fetched, target_dir / found, staging) / "claude"


def _package() -> str:
    machine = os.uname().machine
    packages = npm_package.platform_packages(machine)
    if not packages:
        raise AgentError(f"there is no Claude Code for {machine}")
    glibc, musl = packages
    return musl if any(Path("/lib").glob("ld-musl-*")) and not _has_glibc() else glibc


def _has_glibc() -> bool:
    return any(
        Path(loader).exists() for loader in ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")
    )


def _find_npm(environ: Mapping[str, str], exclude: Sequence[Path]) -> Path:
    barred = [Path(os.path.realpath(path)) for path in exclude]
    for entry in [*environ.get("PATH", "").split(":"), *process.SYSTEM_PATH.split(":")]:
        candidate = Path(entry) / "npm"
        if not entry.startswith("/") or not os.access(candidate, os.X_OK):
            continue
        real = Path(os.path.realpath(candidate))
        if not any(path.is_relative_to(directory) for path in (candidate, real) for directory in barred):
            return candidate
    fix = next(
        (command for tool, command in _PACKAGE_MANAGERS if shutil.which(tool, path=process.SYSTEM_PATH)),
        "Install npm with the package manager of this system",
    )
    raise AgentError("npm is needed to fetch Claude Code, and is not installed", resolution=fix)


def _fetch(npm: Path, what: str, staging: Path, environ: Mapping[str, str], home: Path) -> None:
    # A package of its own, so that npm looks for no project (and no .npmrc of one) further up.
    (staging / "package.json").write_text('{"private": true}\n', encoding="ascii")
    env = {name: value for name, value in environ.items() if _NPM_NAMES.fullmatch(name)}
    env |= {"PATH": f"{npm.parent}:{process.SYSTEM_PATH}", "HOME": str(home)}
    result = process.run(
        Command(
            argv=(
                str(npm), "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save",
                "--no-package-lock", "--no-update-notifier", "--loglevel=error", "--", what,
            ),
            env=env,
            cwd=staging,
            timeout=_TIMEOUT,
        )
    )  # fmt: skip
    if result.returncode != 0:
        raise AgentError(
            "npm could not fetch Claude Code",
            details=result.stderr[-4000:].decode("utf-8", "replace").strip(),
            resolution="Check npm's registry and network: npm ping",
        )


def _runs_here(program: Path) -> bool:
    try:
        descriptor = os.open(program, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        elf = read_elf(descriptor)
    finally:
        os.close(descriptor)
    return elf is not None and elf.machine == os.uname().machine


def _put_in_place(fetched: Path, target: Path, staging: Path) -> Path:
    """Rename a fetched package to its version; an older copy of the same version is taken away."""
    if os.path.lexists(target):
        target.rename(staging / "replaced")
    fetched.rename(target)
    target.chmod(0o755)
    return target
