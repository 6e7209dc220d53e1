"""What root leaves behind on purpose of a worker's: a thing of each kind, and how it is taken away again."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.leftovers import wait_until

FILE_CAPABILITIES = struct.pack("<5I", 0x02000000, 1 << 13, 0, 0, 0)
"""Version 2, CAP_NET_RAW permitted. Source: capabilities(7), linux/capability.h."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """The account whose leftovers they are."""

    name: str
    uid: int
    home: Path


Plant = Callable[[Worker], AbstractContextManager[None]]


def _run(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


@contextmanager
def _made(path: Path, *, uid: int = 0, mode: int = 0o644, directory: bool = False) -> Iterator[None]:
    """Make a file, or an empty directory, and the directories above it that are not there."""
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        _make(path, directory=directory)
        os.chown(path, uid, uid)
        path.chmod(mode)
        yield
    finally:
        path.rmdir() if directory else path.unlink()
        _remove_empty(*missing)


def _make(path: Path, *, directory: bool) -> None:
    """Another session may take away an empty directory above it, which is theirs as well."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.mkdir() if directory else path.touch()
            return


def _remove_empty(*directories: Path) -> None:
    """Take away directories, but none that others use by now or took away themselves."""
    for directory in directories:
        with contextlib.suppress(FileNotFoundError):
            try:
                directory.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
                    raise


def file(place: str, *, mode: int = 0o644, uid: int | None = None, directory: bool = False) -> Plant:
    """Leave a file, or a directory.

    :param place: path, with what is known of the worker in braces.
    :param uid: the worker's by default.
    """

    @contextmanager
    def plant(worker: Worker) -> Iterator[None]:
        path = Path(place.format(name=worker.name, uid=worker.uid, home=worker.home))
        with _made(path, uid=worker.uid if uid is None else uid, mode=mode, directory=directory):
            yield

    return plant


@contextmanager
def process(worker: Worker) -> Iterator[None]:
    """A program that runs on."""
    with subprocess.Popen(["sleep", "10000"], user=worker.uid, group=worker.uid, extra_groups=[]) as child:
        try:
            # Its uid is the worker's as soon as it executes something.
            wait_until(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "sleep\n", "it runs")
            yield
        finally:
            child.kill()


@contextmanager
def system_v(worker: Worker) -> Iterator[None]:
    """A segment of shared memory in the machine's own IPC namespace, made by the worker itself."""
    made = subprocess.run(
        ["ipcmk", "-M", "4096"],
        check=True, capture_output=True, text=True, user=worker.uid, group=worker.uid, extra_groups=[],
        timeout=60,
    ).stdout.split()[-1]  # fmt: skip
    try:
        yield
    finally:
        _run("ipcrm", "-m", made)


@contextmanager
def memory_below_home(worker: Worker) -> Iterator[None]:
    """A file system mounted in the home, with files of root's in it."""
    place = worker.home / "mounted"
    with _made(place, directory=True, mode=0o755, uid=worker.uid), _mounted("-t", "tmpfs", "tmpfs", place):
        (place / "program").touch()
        (place / "program").chmod(0o4755)
        yield


@contextmanager
def machine_below_home(worker: Worker) -> Iterator[None]:
    """A directory of the machine's, mounted in the home: it lies on the same disk."""
    place = worker.home / "mounted"
    with _made(place, directory=True, mode=0o755, uid=worker.uid), _mounted("--bind", "/usr/bin", place):
        yield


@contextmanager
def home_elsewhere(worker: Worker) -> Iterator[None]:
    """The home, shown in another place of the machine."""
    place = Path("/mnt/clsecure test")
    with _made(place, directory=True, mode=0o755), _mounted("--bind", worker.home, place):
        yield


@contextmanager
def _mounted(*argv: str | Path) -> Iterator[None]:
    _run("mount", *argv)
    try:
        yield
    finally:
        _run("umount", argv[-1])


@contextmanager
def control_group(worker: Worker) -> Iterator[None]:
    """A control group without a process."""
    top = next(
        Path(p) for p in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified") if Path(p, "cgroup.procs").exists()
    )
    ours, group = top / "clsecure", top / "clsecure" / worker.name
    there = ours.exists()
    _make(group, directory=True)
    try:
        yield
    finally:
        group.rmdir()
        if not there:
            _remove_empty(ours)


@contextmanager
def device(worker: Worker) -> Iterator[None]:
    """A device node: /dev/null by another name."""
    path = worker.home / "device"
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    try:
        os.chown(path, worker.uid, worker.uid)
        yield
    finally:
        path.unlink()


@contextmanager
def capabilities(worker: Worker) -> Iterator[None]:
    """A program with file capabilities."""
    path = worker.home / "able"
    with _made(path, uid=worker.uid, mode=0o755):
        os.setxattr(path, "security.capability", FILE_CAPABILITIES)
        yield


@contextmanager
def hidden(worker: Worker) -> Iterator[None]:
    """A set-id program somewhere below."""
    directory = worker.home / "a" / "b"
    with _made(directory / "program", uid=worker.uid, mode=0o4711):
        yield


def home_mode(mode: int) -> Plant:
    """Open the home."""

    @contextmanager
    def plant(worker: Worker) -> Iterator[None]:
        worker.home.chmod(mode)
        try:
            yield
        finally:
            worker.home.chmod(0o700)

    return plant


@contextmanager
def link_for_home(worker: Worker) -> Iterator[None]:
    """A link where the home was."""
    aside = worker.home.with_name(f"{worker.name}.aside")
    worker.home.rename(aside)
    try:
        worker.home.symlink_to(aside)
        yield
    finally:
        worker.home.unlink(missing_ok=True)
        aside.rename(worker.home)


@contextmanager
def in_group(worker: Worker) -> Iterator[None]:
    """Membership in a group like docker's."""
    group = "cst-docker"
    _run("groupadd", "--force", group)
    try:
        _run("gpasswd", "--add", worker.name, group)
        yield
    finally:
        _run("groupdel", group)


@contextmanager
def with_member(worker: Worker) -> Iterator[None]:
    """Somebody else in the worker's group."""
    _run("gpasswd", "--add", "nobody", worker.name)
    try:
        yield
    finally:
        _run("gpasswd", "--delete", "nobody", worker.name)


@contextmanager
def same_number(worker: Worker) -> Iterator[None]:
    """A second account with the same uid."""
    name = "cst-twin"
    _run("useradd", "--no-create-home", "--non-unique", "--uid", str(worker.uid), "--gid", "nogroup", name)
    try:
        yield
    finally:
        # Not userdel: it refuses as long as the number has processes, and these may be others' by now.
        _run("userdel", "--force", name)


def changed(option: str, value: str, before: str) -> Plant:
    """Change the account as usermod does, and back."""

    @contextmanager
    def plant(worker: Worker) -> Iterator[None]:
        _run("usermod", option, value, worker.name)
        try:
            yield
        finally:
            _run("usermod", option, before, worker.name)

    return plant


@contextmanager
def harmless(worker: Worker) -> Iterator[None]:
    """What the home of an honest agent may hold: none of it is worth a word."""
    top = worker.home / "harmless"
    top.mkdir()
    try:
        (top / "shared").mkdir()
        (top / "shared").chmod(0o2775)
        (top / "locked").touch()
        (top / "locked").chmod(0o2644)
        os.mkfifo(top / "fifo")
        os.mknod(top / "deleted", stat.S_IFCHR, 0)
        (top / "sudo").symlink_to("/usr/bin/sudo")
        (top / "etc").symlink_to("/etc")
        for path in (top, *top.iterdir()):
            os.chown(path, worker.uid, worker.uid, follow_symlinks=False)
            if not path.is_symlink() and path.name in ("shared", "locked"):
                # chown() takes them away.
                path.chmod(0o2775 if path.is_dir() else 0o2644)
        yield
    finally:
        shutil.rmtree(top)


def planted(worker: Worker, *plants: Plant) -> contextlib.ExitStack:
    """Leave several things at once; all of them are gone with the context."""
    with contextlib.ExitStack() as stack:
        for plant in plants:
            stack.enter_context(plant(worker))
        return stack.pop_all()
