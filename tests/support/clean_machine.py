"""A clean Debian in a directory: a package is installed into it as on a machine that never saw clsecure.

Its files are layers: what several tests start from is made once, each test writes into a layer of its own.
Everything is mounted in a mount namespace that ends with the program that was started in it. The kernel and
the processes are this machine's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from clsecure.images.mirror import choose_mirror
from tests.support.person import SYSTEM_PATH, Outcome

PERSON = "alice"
RUN = os.environ.get("CLSECURE_TEST_RUN") or f"cst{os.getppid():06d}"
PLACE = Path(f"/var/tmp/clsecure-test-packages-{RUN}")
# Numbers that neither the persons of other tests nor their workers have, nor another run of these: what is
# killed by its number here must not be somebody else's.
_SLOT = int(hashlib.sha256(RUN.encode()).hexdigest()[:8], 16) % 500
PERSON_UID = 61000 + _SLOT
WORKER_UIDS = range(1_700_000_000 + _SLOT * 90_000, 1_700_000_000 + (_SLOT + 1) * 90_000)
_HELPER = {
    "uid_first": WORKER_UIDS.start, "uid_count": len(WORKER_UIDS),
    "range_first": 1_750_000_000 + _SLOT * (4 << 16), "range_count": 3,
}  # fmt: skip
_MARK = "CLSECURE_TEST_MACHINE"
_ENTER = r"""
set -eu
root=$1 repository=$2 layers=$3 upper=$4
shift 4
mount -t overlay -o "lowerdir=$layers,upperdir=$upper/files,workdir=$upper/work" clean "$root"
cd "$root"
mkdir -p proc sys dev srv/repository run
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount --bind "$upper/run" run
[ -z "$repository" ] || mount --bind -o ro "$repository" srv/repository
pivot_root . .
umount -l .
cd /
exec "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One such Debian.

    :param place: a directory of its own.
    :param layers: what it starts from, the uppermost first; they don't change.
    :param repository: the packages that it sees in ``/srv/repository``.
    """

    place: Path
    layers: tuple[Path, ...]
    repository: Path | None = None

    def prepare(self) -> Machine:
        """Make the directories that it is mounted from."""
        for name in ("root", "files", "work", "run"):
            (self.place / name).mkdir(parents=True)
        self.place.chmod(0o755)
        return self

    @property
    def as_layers(self) -> tuple[Path, ...]:
        """What another machine can start from, once this one is not used any more."""
        return (self.place / "files", *self.layers)

    def file(self, path: str) -> Path:
        """Return where a file that was written here lies on the outside."""
        return self.place / "files" / path.lstrip("/")

    def run(self, *argv: str, input: bytes | None = None, timeout: float = 300) -> Outcome:  # noqa: A002
        """Run a program as root."""
        layers = ":".join(str(each) for each in self.layers)
        outside = [str(self.place / "root"), str(self.repository or ""), layers, str(self.place)]
        whole = ["unshare", "-m", "--propagation", "private", "sh", "-c", _ENTER, "sh", *outside, *argv]
        environment = {
            "PATH": SYSTEM_PATH, "HOME": "/root", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive",
            _MARK: str(self.place),
        }  # fmt: skip
        given = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        try:
            done = subprocess.run(whole, env=environment, capture_output=True, timeout=timeout, **given)
        finally:
            # Of root's: a gpg-agent of dnf's, which would keep all that is mounted here.
            _end_marked(self.place)
        return Outcome(argv=argv, returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)

    def sh(self, script: str, *, timeout: float = 300) -> Outcome:
        """Run a shell script as root."""
        return self.run("sh", "-euc", script, timeout=timeout)

    def person(self, script: str, *, timeout: float = 300) -> Outcome:
        """Run a shell script as the plain person, in a fresh login."""
        login = ["runuser", "--login", PERSON, "--shell", "/bin/sh", "-c", f"set -eu\n{script}"]
        return self.run(*login, timeout=timeout)

    def write(self, path: str, data: bytes) -> None:
        """Write a file of root's."""
        self.run("sh", "-euc", 'mkdir -p "${1%/*}" && cat >"$1"', "sh", path, input=data).check()

    def names(self) -> set[str]:
        """Return every path that there is on the disk and in ``/run``, but for firejail's own there."""
        found = self.sh("find / /run -xdev -path /run/firejail -prune -o -print").check()
        return set(found.text.splitlines())


def make_debian(place: Path, suite: str) -> tuple[Path, ...]:
    """Make a minimal Debian from the machine's own mirror; return it as a layer."""
    mirror = choose_mirror(os.environ.get("CLSECURE_IMAGE_MIRROR"))
    place.mkdir(parents=True)
    place.chmod(0o755)
    root, sources = place / "debian", place / "sources.list"
    sources.write_text(mirror.sources(suite))
    done = subprocess.run(
        ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--skip=cleanup/apt/lists",
         "--include=ca-certificates", '--aptopt=Acquire::Languages "none"', suite, root, sources],
        capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    for name in ("resolv.conf", "hosts"):
        (root / "etc" / name).write_bytes(Path("/etc", name).read_bytes())
    # Nobody needs these files after the next power failure.
    (root / "etc/dpkg/dpkg.cfg.d/tests").write_text("force-unsafe-io\n")
    return (root,)


def add_person(machine: Machine) -> None:
    """Make the plain account, and give the workers numbers that nobody else has."""
    machine.write("/etc/clsecure/helper.json", json.dumps(_HELPER).encode())
    machine.sh(f"""
        useradd --create-home --shell /bin/sh --uid {PERSON_UID} {PERSON}
        usermod --append --groups clsecure {PERSON}
    """).check()
    machine.person("""
        git config --global user.name Alice
        git config --global user.email alice@localhost
        git init -q -b main sample && cd sample && echo hello >README.md
        git add . && git commit -q -m "A beginning"
    """).check()


def _end_marked(place: Path) -> None:
    wanted = f"{_MARK}={place}".encode()
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and wanted in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def end_all() -> None:
    """Kill what a failed test left running on any of these machines."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            uid = process.stat().st_uid
            if process.name.isdigit() and (uid == PERSON_UID or uid in WORKER_UIDS):
                os.kill(int(process.name), signal.SIGKILL)


def sweep() -> None:
    """Remove what a killed run left; its mounts ended with its programs."""
    if PLACE.exists():
        end_all()
        shutil.rmtree(PLACE)
