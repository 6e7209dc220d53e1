"""``clsecure setup`` for tests: once for all test processes of the machine, undone by the last of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.person import CHECKOUT, clsecure_command

DIRECTORY = Path("/usr/local/lib/clsecure")
SUDOERS = Path("/etc/sudoers.d/clsecure")
STATE = Path("/var/lib/clsecure")
_SHARED = Path("/run/clsecure-tests")


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    _SHARED.mkdir(mode=0o700, exist_ok=True)
    with (_SHARED / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _setup(*args: str) -> None:
    done = subprocess.run(
        [*clsecure_command(), "setup", "--yes", *args],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"clsecure setup {args}: {done.stdout}{done.stderr}"


def _holders() -> list[Path]:
    """Return who uses the setup; a process that is gone does not count."""
    holders = _SHARED / "holders"
    holders.mkdir(exist_ok=True)
    for file in holders.iterdir():
        if not Path("/proc", file.name).exists():
            file.unlink()
    return list(holders.iterdir())


@contextlib.contextmanager
def installed_for(user: str) -> Iterator[None]:
    """Have the root-owned pieces of this checkout installed, and the user allowed to use the helper."""
    with _locked():
        if not _holders():
            _remember()
        _setup("--user", user)
        (_SHARED / "holders" / str(os.getpid())).touch()
    try:
        yield
    finally:
        with _locked():
            (_SHARED / "holders" / str(os.getpid())).unlink()
            if not _holders():
                _restore()
                shutil.rmtree(_SHARED / "before", ignore_errors=True)


def _remember() -> None:
    """Keep what a person had installed before the first test."""
    before = _SHARED / "before"
    shutil.rmtree(before, ignore_errors=True)
    before.mkdir()
    if DIRECTORY.is_dir():
        shutil.copytree(DIRECTORY, before / "pieces")
    if SUDOERS.exists():
        shutil.copy2(SUDOERS, before / "sudoers")
    if STATE.exists():
        (before / "state").touch()


def _restore() -> None:
    before = _SHARED / "before"
    if (before / "pieces").is_dir():
        for file in (before / "pieces").iterdir():
            shutil.copy2(file, DIRECTORY / file.name)
        if (before / "sudoers").exists():
            shutil.copy2(before / "sudoers", SUDOERS)
        else:
            SUDOERS.unlink(missing_ok=True)
        return
    _setup("--remove")
    assert not DIRECTORY.exists()
    assert not SUDOERS.exists()
    if not (before / "state").exists():
        shutil.rmtree(STATE, ignore_errors=True)
