"""How the checks after the end are made to fail: something is left that the helper should have taken away.

All of it goes with the account, which a run of ``clsecure verify`` makes and takes away, or lies in mounts
and networks of that one command.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from tests.support.person import CHECKOUT, Person
from tests.support.sabotage import (
    CONTAINER,
    EVERY,
    LOCAL,
    LOCAL_BACKEND,
    REMAINS,
    SANDBOX,
    USER,
    Patch,
    Sabotage,
    Scene,
    replaced,
)
from tests.support.shared_setup import STATE

_EMPTY = f"""
mount -t tmpfs -o mode=1777 tmpfs /var/tmp && mount --rbind {CHECKOUT} /mnt &&
mount -t tmpfs -o mode=1777 tmpfs /tmp && mkdir -p {CHECKOUT} && mount --rbind /mnt {CHECKOUT}
"""
"""Temporary directories with nothing in them, but for a checkout that lies in one."""

# A way out that leads nowhere: a full network is connected to what looks like one.
_NETWORK = """ip link set lo up && ip link add cst0 type veth peer name cst1 && ip link set cst0 up &&
ip link set cst1 up && ip address add 192.0.2.2/24 dev cst0 && ip route add default via 192.0.2.1 &&
nft add table inet clsecure"""


def at_the_end(*lines: str) -> Patch:
    """Do something as root when the sandbox has ended; ``name``, ``uid`` and ``home`` are the worker's."""
    old = "        close_home(self.entry)\n        wipe_storage(self.entry)\n"
    known = 'name, uid, home = (self.entry[each] for each in ("name", "uid", "home"))'
    return Patch(
        file=SANDBOX, old=old, new="".join([old, *(f"        {line}\n" for line in (known, *lines))])
    )


def tool(*argv: str) -> tuple[str, str]:
    """Return lines that run a program of the machine's; a word in braces is the worker's name, say."""
    words = ", ".join(f"f{word!r}" for word in argv)
    return "from clsecure.privileged.root.processes import tool", f"tool({words})"


def file(path: str, mode: int) -> tuple[str, ...]:
    """Return lines that make a file of the worker's."""
    return (
        f'write_file(f"{path}", b"")',
        f'os.chown(f"{path}", uid, uid)',
        f'os.chmod(f"{path}", {mode:#o})',
    )


@contextlib.contextmanager
def open_store(scene: Scene) -> Iterator[Person]:
    """Let everybody write to the person's store of images."""
    store = STATE / "images" / str(scene.person.uid) / "store" / "storage" / "overlay"
    before = store.stat().st_mode & 0o7777
    store.chmod(0o777)
    try:
        yield scene.person
    finally:
        store.chmod(before)


@contextlib.contextmanager
def changed_store(scene: Scene) -> Iterator[Person]:
    """Have one more file in the person's image."""
    layers = STATE / "images" / str(scene.person.uid) / "store" / "storage" / "overlay"
    place = next(layers.glob("*/diff/usr/bin"))
    before = place.stat()
    (place / "planted").touch()
    try:
        yield scene.person
    finally:
        (place / "planted").unlink()
        os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))


@contextlib.contextmanager
def with_groups(scene: Scene) -> Iterator[Person]:
    """Have the helper make the worker's control groups again; they don't go with the account."""
    broken = replaced(
        at_the_end(
            "from clsecure.privileged.root.limits import cgroups",
            "for place in cgroups(self.entry):",
            "    with contextlib.suppress(OSError):",
            "        os.makedirs(place)",
        )
    )
    try:
        with broken(scene) as victim:
            yield victim
    finally:
        found = [
            Path(top, name)
            for top, directories, _ in os.walk("/sys/fs/cgroup")
            for name in directories
            if name.startswith("claude-worker-")
        ]
        # Asked for after that: whoever had a group then and still has an account is somebody else's worker.
        names = {account.pw_name for account in pwd.getpwall()}
        for place in found:
            if place.name not in names:
                # The end of somebody else's takes its own away.
                with contextlib.suppress(FileNotFoundError):
                    place.rmdir()


LEFT = (
    Sabotage(
        check_id="processes-left",
        modes=LOCAL,
        how="a process is not killed",
        broken=replaced(
            at_the_end(
                "heard, said = os.pipe()",
                "if os.fork() == 0:",
                "    import signal",
                "    os.setsid()",
                "    os.setresuid(uid, uid, uid)",
                "    os.closerange(0, 1024)",
                "    while True:",
                "        signal.pause()",
                "os.close(said)",
                "os.read(heard, 1)",
                "os.close(heard)",
            )
        ),
    ),
    Sabotage(
        check_id="control-groups-left",
        modes=USER,
        how="the control group is not removed",
        broken=with_groups,
    ),
    Sabotage(
        check_id="ipc-left",
        modes=USER,
        how="a file stays in shared memory",
        broken=replaced(
            at_the_end(*file("/dev/shm/left", 0o600)),
            first="mount -t tmpfs -o mode=1777 tmpfs /dev/shm",
        ),
    ),
    Sabotage(
        check_id="mounts-left",
        modes=USER,
        how="the home is mounted elsewhere on the machine",
        broken=replaced(
            at_the_end(
                "from clsecure.privileged.root.kernel import bind",
                'bind(home, "/mnt", 0)',
            )
        ),
    ),
    Sabotage(
        check_id="runtime-files-left",
        modes=USER,
        how="the directory of its sockets stays",
        broken=replaced(at_the_end("own_directory(RUN, 0o711)", 'own_directory(f"{RUN}/{name}", 0o711)')),
    ),
    Sabotage(
        check_id="storage-left",
        modes=USER,
        how="the storage of an engine stays",
        broken=replaced(
            at_the_end(f'os.makedirs(f"{STATE}/engines/{{name}}", mode=0o700, exist_ok=True)'),
            first=f"mkdir -p -m 711 {STATE}/engines && mount -t tmpfs -o mode=711 tmpfs {STATE}/engines",
        ),
    ),
    Sabotage(
        check_id="network-rules-left",
        modes=USER,
        how="a table of the packet filter stays in the machine's network",
        options=("--allow-network",),
        broken=replaced(first=_NETWORK, own_network=True),
    ),
    Sabotage(
        check_id="scheduled-left",
        modes=USER,
        how="a crontab stays",
        broken=replaced(
            at_the_end(*file("/var/spool/cron/crontabs/{name}", 0o600)),
            first="mount -t tmpfs tmpfs /var/spool && mkdir -p /var/spool/cron/crontabs",
        ),
    ),
    Sabotage(
        check_id="files-outside",
        modes=USER,
        how="a file stays in /var/tmp",
        broken=replaced(
            at_the_end(*file("/var/tmp/left", 0o600)),
            # Also /tmp: there may be more in it than is looked at in time.
            first=_EMPTY,
        ),
    ),
    Sabotage(
        check_id="special-files",
        modes=USER,
        how="the home holds a set-uid program",
        broken=replaced(at_the_end(*file("{home}/program", 0o4755))),
    ),
    Sabotage(
        check_id="special-files",
        modes=USER,
        how="the home holds a set-uid program in a directory that the worker closed to itself",
        broken=replaced(
            at_the_end(
                'os.mkdir(f"{home}/closed")',
                *file("{home}/closed/program", 0o4755),
                'os.chown(f"{home}/closed", uid, uid)',
                'os.chmod(f"{home}/closed", 0)',
            )
        ),
    ),
    Sabotage(
        check_id="special-files",
        modes=USER,
        how="the home is not looked at to its end",
        broken=replaced(
            Patch(
                file=REMAINS,
                old="HOME_SECONDS, OUTSIDE_SECONDS = 60.0",
                new="HOME_SECONDS, OUTSIDE_SECONDS = -1.0",
            )
        ),
    ),
    Sabotage(
        check_id="home-closed",
        modes=EVERY,
        how="the home is not closed",
        broken=replaced(at_the_end("os.chmod(home, 0o755)")),
    ),
    Sabotage(
        check_id="group-membership",
        modes=USER,
        how="the worker is in a group, as in that of docker",
        broken=replaced(at_the_end(*tool("/usr/sbin/usermod", "-aG", "users", "{name}"))),
    ),
    Sabotage(
        check_id="account-unshared",
        modes=USER,
        how="somebody is in the worker's group",
        broken=replaced(at_the_end(*tool("/usr/sbin/usermod", "-aG", "{name}", "nobody"))),
    ),
    Sabotage(
        check_id="account-locked",
        modes=USER,
        how="the worker has a shell",
        broken=replaced(at_the_end(*tool("/usr/sbin/usermod", "--shell", "/bin/sh", "{name}"))),
    ),
    # A daemon that has the image is too slow to start for a row: tests/hostile/test_c_containers.py has one.
    Sabotage(
        check_id="containers-left",
        modes=CONTAINER,
        how="an engine of the machine's says that it has a container of the session's",
        broken=replaced(
            Patch(
                file=LOCAL_BACKEND,
                old="        del spec\n        return None\n",
                new='        return Found(count=1, names=(f"{spec.account.name} is running",))\n',
            )
        ),
    ),
    Sabotage(
        check_id="image-unchanged",
        modes=CONTAINER,
        how="the store of images is open",
        broken=open_store,
    ),
    Sabotage(
        check_id="image-unchanged",
        modes=CONTAINER,
        how="the image has another program than was loaded",
        broken=changed_store,
    ),
)
