"""Inside a sandbox, as the worker, before the agent: the user's setup script, or what lock files name.

``prepare.py script NAME`` reads the script from standard input and becomes it. ``prepare.py dependencies
VENV`` runs the package managers that the work tree asks for and that exist here, and says on standard output,
a line of JSON each, what came of it; their own words go to standard error. The work tree is looked at without
following links, since the repository wrote it; what the managers run is the repository's code, so nobody
outside believes these lines more than it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing takes longer to import than this program to run
    from collections.abc import Iterable, Iterator
    from typing import Any

MAX_SCRIPT = 1 << 20
MAX_READ = 1 << 20
MAX_ENTRIES = 300_000
MAX_CHANGED = 20
GIT_SECONDS = 120
MADE = re.compile(r"node_modules|\.venv|[^/]+\.egg-info")
"""Directories that installing makes and that nobody wants in a commit."""


class Step:
    """What one package manager has to do; its commands in order, the first failure ends it."""

    def __init__(self, name: str, *commands: list[str], env: dict[str, str] | None = None) -> None:
        self.name, self.commands, self.env = name, commands, env or {}
        self.needs = commands[0][0] if commands else name
        self.why = ""


def read(name: str) -> bytes | None:
    """Return the beginning of a regular file of the work tree; None when there is no such file."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read(MAX_READ) if stat.S_ISREG(os.fstat(fd).st_mode) else None


def has(*names: str) -> bool:
    """Tell whether one of these regular files is in the work tree."""
    for name in names:
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.lstat(name).st_mode):
                return True
    return False


def javascript() -> Iterator[Step]:
    """Yield what installs node_modules: at most one."""
    package = read("package.json")
    if package is None:
        return
    named = re.search(rb'"packageManager"\s*:\s*"(npm|pnpm|yarn)@', package)
    manager = named[1].decode() if named else ""
    if manager == "pnpm" or (not manager and has("pnpm-lock.yaml")):
        locked = ["--frozen-lockfile"] if has("pnpm-lock.yaml") else ["--lockfile=false"]
        yield Step("pnpm", ["pnpm", "install", *locked])
    elif manager == "yarn" or (not manager and has("yarn.lock")):
        yield yarn()
    elif has("package-lock.json", "npm-shrinkwrap.json"):
        yield Step("npm", ["npm", "ci", "--no-audit", "--no-fund"])
    else:
        yield Step("npm", ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"])


def yarn() -> Step:
    """Return what yarn has to do: its first version and the later ones have little in common."""
    lock = read("yarn.lock")
    if has(".yarnrc.yml") or b"__metadata:" in (lock or b""):
        # Its cache would lie in the work tree.
        env = {"YARN_ENABLE_GLOBAL_CACHE": "true", "YARN_ENABLE_TELEMETRY": "false"}
        return Step("yarn", ["yarn", "install", *(["--immutable"] if lock is not None else [])], env=env)
    frozen = ["--frozen-lockfile"] if lock is not None else ["--no-lockfile"]
    return Step("yarn", ["yarn", "install", "--non-interactive", *frozen])


def python(venv: str) -> Iterator[Step]:
    """Yield what fills the virtual environment: at most one."""
    project = read("pyproject.toml") or b""
    buildable = has("setup.py") or re.search(rb"^\[build-system\]", project, re.MULTILINE) is not None
    if has("uv.lock"):
        yield Step("uv", ["uv", "sync", "--frozen"], env={"UV_PROJECT_ENVIRONMENT": venv})
    elif has("poetry.lock"):
        command = ["poetry", "install", "--no-interaction"]
        step = Step("poetry", ["python3", "-m", "venv", "--without-pip", venv], command, env=active(venv))
        step.needs = "poetry"
        yield step
    elif has("requirements.txt") or buildable:
        what = [
            *(["-r", "requirements.txt"] if has("requirements.txt") else []),
            *(["-e", "."] if buildable else []),
        ]
        yield pip(venv, what)


def pip(venv: str, what: list[str]) -> Step:
    """Return what pip has to do: the environment's own or, where there can be none, the system's."""
    install = ["install", "--disable-pip-version-check", "--no-input", *what]
    if succeeds(["python3", "-c", "import ensurepip"]):
        make = ["python3", "-m", "venv", venv]
        return Step("pip", make, [f"{venv}/bin/python3", "-m", "pip", *install], env=active(venv))
    make = ["python3", "-m", "venv", "--without-pip", venv]
    step = Step("pip", make, ["pip", "--python", f"{venv}/bin/python3", *install], env=active(venv))
    step.needs = "pip"
    step.why = "neither pip nor python3-venv is installed inside"
    return step


def active(venv: str) -> dict[str, str]:
    """Return what makes a virtual environment the one that counts."""
    return {"VIRTUAL_ENV": venv, "PATH": f"{venv}/bin:{os.environ['PATH']}"}


def others() -> Iterator[Step]:
    """Yield what fetches for the remaining languages."""
    if has("Cargo.lock"):
        yield Step("cargo", ["cargo", "fetch", "--locked"])
    if has("go.mod"):
        yield Step("go", ["go", "mod", "download"], env={"GOFLAGS": "-mod=readonly"})
    if has("Gemfile.lock"):
        yield Step("bundler", ["bundle", "install"], env={"BUNDLE_FROZEN": "true"})


def succeeds(command: list[str]) -> bool:
    """Tell whether a program is there and ends with 0."""
    try:
        quiet = subprocess.DEVNULL
        return subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, check=False).returncode == 0
    except OSError:
        return False


def say(**fields: Any) -> None:
    """Tell the host."""
    os.write(1, json.dumps(fields).encode() + b"\n")


def run(step: Step) -> None:
    """Let one package manager do its work, and tell what came of it."""
    begun = time.monotonic()
    if shutil.which(step.needs) is None:
        say(step=step.name, status="missing", why=step.why or f"{step.needs} is not installed inside")
        return
    say(step=step.name, status="begun")
    code = 0
    for command in step.commands:
        shown = " ".join(command)
        os.write(2, f"+ {shown}\n".encode())
        try:
            code = subprocess.run(
                command, env={**os.environ, **step.env}, stdin=subprocess.DEVNULL, stdout=2, check=False
            ).returncode
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror}\n".encode())
            code = 127
        if code:
            break
    code = 128 - code if code < 0 else code
    seconds = round(time.monotonic() - begun, 3)
    say(step=step.name, status="failed" if code else "ok", exit_code=code, seconds=seconds)


def made_directories() -> set[bytes]:
    """Return the directories of the work tree that are named like what installing makes; no links."""
    found: set[bytes] = set()
    waiting, seen = [b"."], 0
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                seen += 1
                if seen > MAX_ENTRIES:
                    return found
                if entry.is_dir(follow_symlinks=False):
                    if MADE.fullmatch(os.fsdecode(entry.name)):
                        found.add(entry.path)
                    elif entry.name != b".git":
                        waiting.append(entry.path)
    return found


def ignore(directories: Iterable[bytes]) -> None:
    """Have new directories ignore themselves, in the way that git has for it; nothing of them comes home."""
    for path in directories:
        with contextlib.suppress(OSError):
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(".gitignore", flags, 0o644, dir_fd=directory)
                os.write(fd, b"# made by the installation of dependencies\n*\n")
                os.close(fd)
            finally:
                os.close(directory)


def changes() -> set[str]:
    """Return what git takes for changed, or for new and not ignored."""
    try:
        done = subprocess.run(
            ["/usr/bin/git", "status", "--porcelain", "-z", "--no-renames", "--untracked-files=normal"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=GIT_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return {os.fsdecode(line) for line in done.stdout.split(b"\0") if line}


def dependencies(venv: str) -> None:
    """Install what the work tree asks for."""
    steps = [*javascript(), *python(venv), *others()]
    if not steps:
        return
    before, there = changes(), made_directories()
    for step in steps:
        run(step)
    ignore(made_directories() - there)
    changed = sorted(line[3:] for line in changes() - before)
    say(changed=[name.encode("utf-8", "backslashreplace").decode()[:200] for name in changed[:MAX_CHANGED]])
    if os.path.exists(f"{venv}/bin/python3"):
        say(venv=True)


def script(name: str) -> None:
    """Become the script on standard input; it lies in memory and nowhere else."""
    with open(0, "rb", closefd=False) as source:
        data = source.read(MAX_SCRIPT + 1)
    place = os.path.join(os.environ["TMPDIR"], ".clsecure-setup")
    os.mkdir(place, 0o700)
    path = os.path.join(place, os.path.basename(name))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o700)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    if data.startswith((b"#!", b"\x7fELF")):
        os.execv(path, [path])
    os.execv("/bin/sh", ["/bin/sh", path])


def main() -> None:
    """Do what was asked for."""
    what, argument = sys.argv[1:]
    try:
        if what == "script":
            script(argument)
        else:
            dependencies(argument)
    except OSError as error:
        os.write(2, f"{error}\n".encode())
        sys.exit(127)


if __name__ == "__main__":
    main()
