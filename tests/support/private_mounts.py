"""Run a program as a person where something is mounted for it alone, and for the helper that it starts."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.person import Outcome, Person

CONFIGURATION = Path("/etc/clsecure")


def run_with_mounts(person: Person, mounts: str, argv: list[str], *, cwd: Path) -> Outcome:
    """Run ``mounts``, a shell command, as root in a mount namespace of its own; then the program in it."""
    ids = ("--reuid", person.uid, "--regid", person.gid, "--groups", person.groups[0], "--inh-caps=-all")
    script = f'{mounts} && cd {shlex.quote(str(cwd))} && exec setpriv "$@"'
    whole = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", *map(str, ids), *argv]
    done = subprocess.run(
        whole, env=person.environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=120
    )
    return Outcome(argv=tuple(whole), returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)


@contextmanager
def small_homes(person: Person, place: Path) -> Iterator[Callable[..., Outcome]]:
    """Give what runs clsecure where the workers' homes are on a small disk of the call's own.

    :param place: an empty directory for the helper's setting.
    """
    base = Path(f"/srv/{person.name}-homes")
    base.mkdir()
    place.chmod(0o755)  # it stands in the place of one that everybody can read
    (place / "helper.json").write_text(json.dumps({"home_base": str(base)}))

    def run(repository: Path, size: str, *arguments: str) -> Outcome:
        mounts = (
            f"mount -t tmpfs -o size={size},mode=755 tmpfs {base} && mount --bind {place} {CONFIGURATION}"
        )
        return run_with_mounts(person, mounts, person.clsecure_argv(*arguments), cwd=repository)

    with configuration_directory():
        yield run
    base.rmdir()


@contextmanager
def configuration_directory() -> Iterator[None]:
    """Have the directory to mount over; whoever is the last to use it removes it.

    Tests beside this one need it as well: one that removed it under a mount would take the mount away.
    """
    parent = os.open(CONFIGURATION.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(parent, fcntl.LOCK_SH)
        CONFIGURATION.mkdir(exist_ok=True)
        yield
        with suppress(OSError):
            fcntl.flock(parent, fcntl.LOCK_EX | fcntl.LOCK_NB)
            CONFIGURATION.rmdir()  # no directory of somebody's: that is not empty
    finally:
        os.close(parent)
