"""How the checks on a running session, and on the user's side, are made to fail: in real sessions."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.support.person import Person
from tests.support.sabotage import (
    BECOMES,
    CONTAINER,
    LOADED,
    MODES,
    PODMAN,
    SANDBOX,
    USER,
    VIEW,
    Breakage,
    Patch,
    Sabotage,
    Scene,
    nothing,
    replaced,
)
from tests.support.shared_setup import STATE

_BECOME = """become(self.entry, empty_bounding_set=True)"""
_HARMLESS = """prctl(PR_SET_NO_NEW_PRIVS, 1)"""
_FILTER = "launcher.seccomp()"


def beside(
    *, first: str = "pass", filtered: str = _FILTER, become: str = _BECOME, last: str = _HARMLESS
) -> Patch:
    """Have a process of root's in the sandbox become another one of the worker's, when the command runs.

    Until then the launcher would kill it, as it does with whatever a probe leaves.
    """
    lines = f"""import time
def waiting():
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{{name}}/cmdline", "rb") as file:
                if b"launcher.py" in file.read():
                    return True
        except OSError:
            pass
    return False
if os.fork() == 0:
    os.closerange(0, 64)
    while not waiting():
        time.sleep(0.001)
    while waiting():
        time.sleep(0.01)
    {first}
    {filtered}
    {become}
    {last}
    while True:
        signal.pause()
"""
    code = "".join(f"        {line}\n" for line in lines.splitlines())
    return Patch(file=MODES, old=BECOMES, new=f"{LOADED}{code}{BECOMES}")


def running(check: str, how: str, broken: Breakage, modes: tuple[str, ...] = USER) -> Sabotage:
    return Sabotage(check_id=check, modes=modes, how=how, broken=broken, session=nothing)


@contextlib.contextmanager
def with_program(scene: Scene) -> Iterator[Person]:
    """Give the person an agent's program, as its own installer lays it down; it does nothing."""
    place = scene.person.home / "programs"
    scene.person.run(["mkdir", "-p", str(place / "versions")]).check()
    scene.person.run(["cp", "/usr/bin/true", str(place / "versions" / "1.2.3")]).check()
    scene.person.run(["ln", "-sf", "versions/1.2.3", str(place / "claude")]).check()
    scene.environ["PATH"] = f"{place}:{scene.person.environment()['PATH']}"
    try:
        yield scene.person
    finally:
        shutil.rmtree(place)


@contextlib.contextmanager
def with_other_program(scene: Scene) -> Iterator[Person]:
    """And have the helper show another one in its place."""
    other = Patch(
        file=VIEW, old='bind(f"{digest_directory}/agent", made,', new='bind("/usr/bin/false", made,'
    )
    with with_program(scene), replaced(other)(scene) as victim:
        yield victim


@contextlib.contextmanager
def hooked(person: Person, repository: Path) -> Iterator[None]:
    """Put a hook into the user's repository, as root."""
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    try:
        yield
    finally:
        hook.unlink()


@contextlib.contextmanager
def home_open(person: Person, _repository: Path) -> Iterator[None]:
    """Let everybody write to the user's home."""
    person.home.chmod(0o777)
    try:
        yield
    finally:
        person.home.chmod(0o755)


@contextlib.contextmanager
def program_changed(person: Person, _repository: Path) -> Iterator[None]:
    """Change the program that root keeps, as only root can."""
    kept = list((STATE / "agents" / str(person.uid)).glob("*/agent"))
    before = {path: path.read_bytes() for path in kept}
    assert kept
    for path in kept:
        path.write_bytes(b"x" + before[path][1:])
    try:
        yield
    finally:
        for path, data in before.items():
            path.write_bytes(data)


RUNNING = (
    running(
        "running-account",
        "a process has a real gid of somebody else's",
        replaced(
            beside(
                become='os.setgroups([]); drop_bounding_set(); os.setresgid(5, *(self.entry["uid"],) * 2); '
                'os.setresuid(*(self.entry["uid"],) * 3)',
                first="from clsecure.privileged.root.kernel import drop_bounding_set",
            )
        ),
    ),
    running(
        "running-groups",
        "a process has a supplementary group",
        replaced(
            beside(
                become='os.setgroups([5]); drop_bounding_set(); os.setresgid(*(self.entry["uid"],) * 3); '
                'os.setresuid(*(self.entry["uid"],) * 3)',
                first="from clsecure.privileged.root.kernel import drop_bounding_set",
            )
        ),
    ),
    running(
        "running-capabilities",
        "a process has a full bounding set",
        replaced(beside(become="become(self.entry, empty_bounding_set=False)")),
    ),
    running("running-no-new-privileges", "a process can be raised", replaced(beside(last="pass"))),
    running("running-seccomp", "a process has no filter", replaced(beside(filtered="pass"))),
    running(
        "running-namespaces",
        "a process is in another IPC namespace",
        replaced(beside(first='call("unshare", CLONE_NEWIPC)')),
    ),
    running(
        "running-mounts",
        "something is mounted over its memory when the command runs",
        replaced(beside(first='mount("tmpfs", "/tmp", "tmpfs", 0)')),
    ),
    running(
        "running-outside",
        "a process of the worker's is in the machine's namespaces",
        replaced(
            Patch(
                file=SANDBOX,
                old="                self.looking = self._looking()\n",
                new="""                self.looking = self._looking()
                if os.fork() == 0:
                    import signal
                    os.closerange(0, 1024)
                    os.setsid()
                    os.setresuid(*(self.entry["uid"],) * 3)
                    if os.fork():
                        os._exit(0)
                    while True:
                        signal.pause()
""",
            )
        ),
    ),
    Sabotage(
        check_id="agent-program",
        modes=USER,
        how="another program is in the place of the agent's",
        broken=with_other_program,
        options=("--agent", "claude"),
        session=nothing,
    ),
    Sabotage(
        check_id="agent-program",
        modes=CONTAINER,
        how="another program lies over the image's agent",
        broken=replaced(
            Patch(
                file=PODMAN,
                old='"mounts": [*bound, *memory],',
                new='"mounts": [*bound, *memory, {"type": "bind", "source": "/usr/bin/true", '
                '"target": "/opt/clsecure/bin/claude", "read_only": True}],',
            )
        ),
        also={"container-mounts": "that is a mount", "engine-plan": "the engine says so, too"},
    ),
    Sabotage(
        check_id="repository-untouched",
        modes=USER,
        how="the user's repository has a new hook",
        broken=replaced(),
        session=hooked,
    ),
    Sabotage(
        check_id="user-home-closed",
        modes=USER,
        how="the user's home is open",
        broken=replaced(),
        session=home_open,
    ),
    Sabotage(
        check_id="agent-program-unchanged",
        modes=USER,
        how="the agent's program is another one after the session",
        broken=with_program,
        options=("--agent", "claude"),
        also={"agent-program": "a fresh sandbox after the session has it in its place"},
        session=program_changed,
    ),
)
