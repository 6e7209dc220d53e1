"""``clsecure setup`` for tests: once for all test processes of the machine, undone by the last of them.

``python -m tests.support.shared_setup RUN`` is the net under a killed run: it takes away what is left of it.
"""

from __future__ import annotations

import compileall
import contextlib
import dataclasses
import grp
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support import built_images, clean_machine, engines, gvisor, sweep
from tests.support.locks import open_lock
from tests.support.person import CHECKOUT, Person, clsecure_command, make_person

DIRECTORY = Path("/usr/local/lib/clsecure")
SUDOERS = Path("/etc/sudoers.d/clsecure")
STATE = Path("/var/lib/clsecure")
_SHARED = Path("/run/clsecure-tests")


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
    # As pip does when it installs: a plain person can't write the checkout's __pycache__, and would compile
    # everything again in each run.
    compileall.compile_dir(CHECKOUT / "clsecure", quiet=1)
    with open_lock(_SHARED, 0o700):
        if not _holders():
            _remember()
        _setup("--user", user)
        (_SHARED / "holders" / str(os.getpid())).touch()
    try:
        yield
    finally:
        with open_lock(_SHARED, 0o700):
            (_SHARED / "holders" / str(os.getpid())).unlink()
            if not _holders():
                _restore()
                shutil.rmtree(_SHARED)


@contextlib.contextmanager
def person_with_clsecure(name: str) -> Iterator[Person]:
    """Yield a plain account that may use clsecure; removed with all of its workers."""
    with contextlib.ExitStack() as stack:
        stack.callback(sweep.remove_person, name)
        made = make_person(name, ())
        stack.enter_context(installed_for(name))
        # Once more, before the setup is undone: the workers go by the helper. What is gone stays gone.
        stack.callback(sweep.remove_person, name)
        subprocess.run(["gpasswd", "--add", name, "clsecure"], check=True, capture_output=True, timeout=60)
        yield dataclasses.replace(made, groups=(grp.getgrnam("clsecure").gr_gid,))


def abandoned() -> None:
    """Undo the setup of test processes that were killed; others that still run keep it."""
    if not _SHARED.exists():
        return
    with open_lock(_SHARED, 0o700):
        if not _holders():
            if (_SHARED / "before").exists():
                _restore()
            shutil.rmtree(_SHARED)


def _remember() -> None:
    """Keep what a person had installed before the first test."""
    before = _SHARED / "before"
    shutil.rmtree(before, ignore_errors=True)
    before.mkdir()
    if DIRECTORY.is_dir():
        shutil.copytree(DIRECTORY, before / "pieces")
    if SUDOERS.exists():
        shutil.copy2(SUDOERS, before / "sudoers")
    for name, there in (("state", STATE.exists()), ("group", _group_exists())):
        if there:
            (before / name).touch()


def _restore() -> None:
    """Put back what a person had; where nothing was, the removal must leave nothing."""
    before = _SHARED / "before"
    if (before / "pieces").is_dir():
        _put_back(before)
    else:
        _setup("--remove")
        assert not DIRECTORY.exists()
        assert not SUDOERS.exists()
        assert _group_exists() <= (before / "group").exists()
    if (before / "group").exists():
        subprocess.run(["groupadd", "--force", "--system", "clsecure"], check=True, timeout=60)
    elif _group_exists():
        subprocess.run(["groupdel", "clsecure"], check=True, timeout=60)
    if not (before / "state").exists():
        shutil.rmtree(STATE, ignore_errors=True)


def _put_back(before: Path) -> None:
    """File by file and by rename: the person's own sessions may be running."""
    pieces = before / "pieces"
    for there in sorted(pieces.rglob("*")):
        place = DIRECTORY / there.relative_to(pieces)
        if there.is_dir():
            place.mkdir(mode=0o755, exist_ok=True)
            continue
        shutil.copy2(there, place.with_name(f".{place.name}.before"))
        place.with_name(f".{place.name}.before").rename(place)
    for place in sorted(DIRECTORY.rglob("*"), reverse=True):
        if not (pieces / place.relative_to(DIRECTORY)).exists():
            place.rmdir() if place.is_dir() else place.unlink()
    if (before / "sudoers").exists():
        shutil.copy2(before / "sudoers", SUDOERS)
    else:
        SUDOERS.unlink(missing_ok=True)


def _group_exists() -> bool:
    try:
        grp.getgrnam("clsecure")
    except KeyError:
        return False
    return True


if __name__ == "__main__":
    _status = sweep.main(sys.argv[1])
    engines.sweep(sys.argv[1])
    built_images.sweep(sys.argv[1])
    gvisor.sweep(sys.argv[1])
    clean_machine.sweep()
    abandoned()
    sys.exit(_status)
