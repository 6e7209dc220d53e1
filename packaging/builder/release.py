"""A release: everything that is published, built and checked in one go. See docs/release.md."""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import sys
import tempfile
from pathlib import Path

from builder.deb import build_deb
from builder.making import make
from builder.project import PACKAGING, ROOT, Release, Say, git, run, this_release
from builder.repository import build_repository, new_key, signer
from builder.rpm import build_rpm
from builder.wheels import pip_environment
from clsecure.errors import StateError, ToolError

SUMS = "SHA256SUMS"
_PARTS = ("pyproject.toml", "README.md", "LICENSE", "clsecure", "bin")


def make_release(
    key: Path | None, output: Path, *, dry_run: bool, say: Say, levels: tuple[int, int] = (6, 19)
) -> None:
    """Build both packages twice, lint them, build the wheel and the repositories, and sign.

    :param key: a file with the secret key that signs; None in a dry run, which makes one for itself.
    :param output: an empty directory, or none yet.
    :param levels: how hard the deb and the rpm are compressed.
    :raises StateError: this checkout is not what a release is made of; a dry run only says so.
    """
    if output.exists() and any(output.iterdir()):
        raise StateError(f"{output} is not empty")
    release = this_release()
    problems = what_is_missing(release)
    for problem in problems:
        say(f"not ready for a release: {problem}")
    if problems and not dry_run:
        raise StateError("this checkout is no release", details="\n".join(problems))
    packages = output / "packages"
    for_deb, for_rpm = levels
    deb = make(functools.partial(build_deb, level=for_deb), packages, twice=True, say=say)
    rpm = make(functools.partial(build_rpm, level=for_rpm), packages, twice=True, say=say)
    lint(deb, rpm, say)
    wheel = make(build_wheel, packages, twice=True, say=say)
    with tempfile.TemporaryDirectory(prefix="clsecure-key-") as scratch:
        signing_key = key or new_key(Path(scratch) / "key")
        build_repository([deb, rpm], signing_key, output / "repository", epoch=release.epoch, say=say)
        sums = packages / SUMS
        lines = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in (deb, rpm, wheel)
        ]
        sums.write_text("".join(lines))
        with signer(signing_key) as signing:
            signing.sign(sums, packages / f"{SUMS}.asc", "--armor", "--detach-sign")
    say(f"clsecure {release.version} is in {output}{' (a dry run: signed with a key of its own)' * dry_run}")


def what_is_missing(release: Release) -> list[str]:
    """Return what keeps this checkout from being a release."""
    missing = []
    heading = rf"^## \[{re.escape(release.version)}\] - \d{{4}}-\d{{2}}-\d{{2}}$"
    if not re.search(heading, (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE):
        missing.append(f"CHANGELOG.md has no section [{release.version}] with its date")
    try:
        if git("status", "--porcelain"):
            missing.append("there are changes that are not committed")
        if f"v{release.version}" not in git("tag", "--points-at", "HEAD").split():
            missing.append(f"the last commit has no tag v{release.version}")
    except ToolError:
        missing.append("this is no checkout of git's")
    return missing


def lint(deb: Path, rpm: Path, say: Say) -> None:
    """Have both packages looked at by the tools of their distributions.

    :raises ToolError: one of them found something that no override explains.
    :raises StateError: lintian has something else to say.
    """
    say("lintian and rpmlint")
    if said := run("lintian", "--allow-root", "--fail-on=error,warning", str(deb)):
        raise StateError("lintian does not find the package clean", details=said.decode("utf-8", "replace"))
    run("rpmlint", "--strict", "--config", str(PACKAGING / "rpm" / "rpmlint.toml"), str(rpm))


def build_wheel(release: Release, output: Path, work: Path, say: Say) -> Path:
    """Build the wheel, for pipx and uv."""
    say("building the wheel")
    source = work / "source"
    source.mkdir()
    # pip builds in the directory itself.
    for name in _PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, source / name)
    pip = (sys.executable, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check")
    options = ("wheel", "--no-deps", "--wheel-dir", str(work / "done"), str(source))
    environment = {**pip_environment(), "SOURCE_DATE_EPOCH": str(release.epoch)}
    run(*pip, *options, env=environment)
    (built,) = (work / "done").glob("*.whl")
    output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(built, output / built.name)
    return output / built.name
