"""What is left after the end: nothing of a real session; each thing that root leaves fails its own check."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clsecure.model import (
    CheckResult,
    CheckStatus,
    ContainerSpec,
    Engine,
    IsolationMode,
    NetworkPolicy,
    SandboxSpec,
    WorkerAccount,
    WorkerImage,
)
from clsecure.privileged.leftovers import Leftovers
from clsecure.verify.leftovers import check_leftovers
from tests.support import planted
from tests.support.engines import need
from tests.support.hostile import Target
from tests.support.overlaid import overlaid
from tests.support.person import Person, clsecure_command
from tests.support.planted import Plant, Worker
from tests.support.raw_helper import DEADLINE, RawHelper
from tests.support.shared_setup import STATE

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("leftovers")]

HASH = "$6$salt$3aEJgflnzWuw1O3tr0IYSmhUY0cZ7iBQeBP392T7RXjLP3TKKu3ddIapQaCpbD4p9ioeGaVIjOHaym7HvCuUm0"


@pytest.fixture(scope="module")
def project(person: Person) -> Iterator[str]:
    """A project whose worker is there: its home holds what the home of an honest agent may hold."""
    path = str(person.home / "leftovers")
    yield path
    with RawHelper(person) as helper:
        helper.ask({"verb": "lease", "project": path, "session": "default", "create": True})
        helper.ask({"verb": "remove"})


@pytest.fixture
def helper(person: Person) -> Iterator[RawHelper]:
    with RawHelper(person) as made:
        yield made


@pytest.fixture
def worker(helper: RawHelper, project: str) -> Worker:
    """The worker, held over the connection: as it is when a session's sandbox has ended."""
    return leased(helper, project)


def leased(helper: RawHelper, project: str) -> Worker:
    said = helper.ask({"verb": "lease", "project": project, "session": "default", "create": True})
    account = said["account"]
    return Worker(name=account["name"], uid=account["uid"], home=Path(account["home"]))


def looked(
    helper: RawHelper, worker: Worker, mode: IsolationMode = IsolationMode.CONTAINER
) -> dict[str, CheckResult]:
    """Have the helper look, and judge; return what does not hold."""
    end = time.monotonic() + DEADLINE
    while True:
        facts = Leftovers.parse(helper.ask({"verb": "inspect", "rules": True, "workspace": "work"}))
        # The machine's own directories get a quarter of a second, in which others may be using it.
        if facts.outside.complete and facts.memory.complete:
            break
        assert time.monotonic() < end, facts
    image = WorkerImage(name="worker", image_id=f"sha256:{'0' * 64}")
    spec = SandboxSpec(
        mode=mode,
        account=WorkerAccount(name=worker.name, uid=worker.uid, gid=worker.uid, home=worker.home),
        network=NetworkPolicy.FULL,
        container=ContainerSpec(engine=Engine.PODMAN, image=image),
    )
    results = check_leftovers(facts, spec)
    return {result.check_id: result for result in results if result.status is not CheckStatus.PASS}


LEFT: dict[str, tuple[Plant, str]] = {
    "a process": (planted.process, "processes-left"),
    "System V memory": (planted.system_v, "ipc-left"),
    "a file in shared memory": (planted.file("/dev/shm/cst-{uid}"), "ipc-left"),
    "memory mounted in the home": (planted.memory_below_home, "mounts-left"),
    "a directory mounted in the home": (planted.machine_below_home, "mounts-left"),
    "the home mounted elsewhere": (planted.home_elsewhere, "mounts-left"),
    "sockets": (planted.file("/run/clsecure/{name}", directory=True, uid=0), "runtime-files-left"),
    "storage": (planted.file("/var/lib/clsecure/engines/{name}", directory=True, mode=0o700), "storage-left"),
    "a control group": (planted.control_group, "control-groups-left"),
    "a crontab": (planted.file("/var/spool/cron/crontabs/{name}", mode=0o600), "scheduled-left"),
    "a crontab by another name": (planted.file("/var/spool/cron/crontabs/cst-x"), "scheduled-left"),
    "an at job": (planted.file("/var/spool/cron/atjobs/a0000101c0ffee", mode=0o700), "scheduled-left"),
    "lingering": (planted.file("/var/lib/systemd/linger/{name}", uid=0), "scheduled-left"),
    "a user manager": (planted.file("/run/user/{uid}", directory=True, mode=0o700), "scheduled-left"),
    "a file in /tmp": (planted.file("/tmp/cst-{uid}"), "files-outside"),
    "a closed directory in /var/tmp": (
        planted.file("/var/tmp/cst-{uid}", directory=True, mode=0o700),
        "files-outside",
    ),
    "a file in a directory of root's": (planted.file("/tmp/cst-{uid}-a/b/file"), "files-outside"),
    "a set-uid program of the worker's": (planted.file("{home}/program", mode=0o4755), "special-files"),
    "a set-uid program of root's": (planted.file("{home}/program", mode=0o4755, uid=0), "special-files"),
    "a set-gid program": (planted.file("{home}/program", mode=0o2755), "special-files"),
    "a set-uid program further down": (planted.hidden, "special-files"),
    "a device": (planted.device, "special-files"),
    "file capabilities": (planted.capabilities, "special-files"),
    "a file of root's": (planted.file("{home}/file", uid=0), "special-files"),
    "a home open to all": (planted.home_mode(0o755), "home-closed"),
    "a home open to its group": (planted.home_mode(0o710), "home-closed"),
    "a group": (planted.in_group, "group-membership"),
    "another one in its group": (planted.with_member, "account-unshared"),
    "a second account of its number": (planted.same_number, "account-unshared"),
    "a password": (planted.changed("--password", HASH, "!"), "account-locked"),
    "an empty password": (planted.changed("--password", "", "!"), "account-locked"),
    "an account that does not end": (
        planted.changed("--expiredate", "", "1970-01-02"),
        "account-locked",
    ),
    "an account that ends later": (
        planted.changed("--expiredate", "2999-01-01", "1970-01-02"),
        "account-locked",
    ),
    "a shell": (planted.changed("--shell", "/bin/sh", "/usr/sbin/nologin"), "account-locked"),
}  # fmt: skip


@pytest.mark.parametrize("left", LEFT)
def test_e_each_leftover_fails_its_own_check_and_no_other(
    helper: RawHelper, worker: Worker, left: str
) -> None:
    plant, check = LEFT[left]
    with planted.planted(worker, planted.harmless):
        assert looked(helper, worker) == {}
        with planted.planted(worker, plant):
            found = looked(helper, worker)
            assert {name: r.status for name, r in found.items()} == {check: CheckStatus.FAIL}
            assert len(found[check].observed) < 300
        assert looked(helper, worker) == {}


def test_e_rules_in_the_machines_own_network_fail_their_own_check(person: Person, project: str) -> None:
    """The machine's is one of the test's own: others' sessions that end meanwhile look for rules, too."""
    found = []
    for first in ("", "nft add table inet clsecure"):
        with RawHelper(overlaid(person, {}, first=first, own_network=True)) as helper:
            left = looked(helper, leased(helper, project))
            found.append({name: result.status for name, result in left.items()})
    assert found == [{}, {"network-rules-left": CheckStatus.FAIL}]


def test_a_link_in_the_place_of_the_home_is_not_followed(helper: RawHelper, worker: Worker) -> None:
    """What lies behind it is not looked at: that is not the home that was made."""
    with planted.planted(worker, planted.file("{home}/program", mode=0o4755), planted.link_for_home):
        found = looked(helper, worker)
    assert found["home-closed"].status is CheckStatus.FAIL
    assert found["special-files"].status is CheckStatus.FAIL


@pytest.mark.parametrize("mode", [0, 0o400, 0o100])
def test_a_directory_that_the_agent_closed_to_itself_is_looked_at_and_stays_closed(
    helper: RawHelper, worker: Worker, mode: int
) -> None:
    closed = worker.home / "closed"
    with planted.planted(worker, planted.file("{home}/closed", directory=True, mode=0o700)):
        closed.chmod(mode)
        assert looked(helper, worker) == {}
        with planted.planted(worker, planted.file("{home}/closed/program", mode=0o4755)):
            found = looked(helper, worker)
            assert {k: r.status for k, r in found.items()} == {"special-files": CheckStatus.FAIL}
            assert f"{closed}/program" in found["special-files"].observed
        assert stat.S_IMODE(closed.stat().st_mode) == mode


def test_a_program_below_very_many_directories_is_found(helper: RawHelper, worker: Worker) -> None:
    place = worker.home.joinpath(*["d"] * 300)
    subprocess.run(["mkdir", "-p", place], user=worker.uid, group=worker.uid, check=True, timeout=60)
    try:
        with planted.planted(worker, planted.file(f"{place}/program", mode=0o4755)):
            found = looked(helper, worker)["special-files"]
            assert "set-id 4755" in found.observed
    finally:
        shutil.rmtree(worker.home / "d")


def test_everything_at_once_is_told_without_a_secret(helper: RawHelper, worker: Worker) -> None:
    """The answer holds no hash of a password, whatever is left."""
    with planted.planted(worker, *(LEFT[name][0] for name in ("a password", "a process", "a file in /tmp"))):
        said = helper.ask({"verb": "inspect", "workspace": "x"})
        assert HASH not in str(said)
        assert "$6$" not in str(said)
        assert said["account"]["locked"] is False
        assert set(looked(helper, worker)) == {"account-locked", "processes-left", "files-outside"}


def test_an_account_that_an_older_version_made_ends_with_the_next_lease(
    person: Person, project: str, helper: RawHelper, worker: Worker
) -> None:
    subprocess.run(["usermod", "--expiredate", "", worker.name], check=True, capture_output=True, timeout=60)
    assert set(looked(helper, worker)) == {"account-locked"}
    helper.finish()
    with RawHelper(person) as again:
        again.ask({"verb": "lease", "project": project, "session": "default", "create": False})
        assert looked(again, worker) == {}


def test_nothing_is_said_of_an_account_that_is_not_held(helper: RawHelper) -> None:
    assert "lease one first" in helper.ask({"verb": "inspect", "workspace": "x"})["error"]


@pytest.mark.parametrize("change", ["closed", "foreign", "loose"])
def test_a_store_of_images_that_is_not_as_it_was_made(
    person: Person, helper: RawHelper, worker: Worker, change: str
) -> None:
    store = STATE / "images" / str(person.uid)
    there = store.exists()
    keeper = store / "store"
    try:
        if not there:
            (keeper / "storage" / "overlay" / "layer" / "diff").mkdir(parents=True)
            (keeper / "storage" / "overlay" / ".has-mount-program").touch()
            (store / "account.json").write_text(json.dumps({"uid": worker.uid + 1}))
            store.chmod(0o700)
            for path in (keeper, *keeper.rglob("*")):
                os.chown(path, worker.uid + 1, worker.uid + 1)
            (STATE / "images").chmod(0o711)
        assert looked(helper, worker) == {}
        before = keeper.stat()
        match change:
            case "closed":
                keeper.chmod(0o777)
            case "foreign":
                os.chown(keeper, person.uid, person.gid)
            case "loose":
                (keeper / "storage" / "overlay").chmod(0o777)
        try:
            assert {k: r.status for k, r in looked(helper, worker).items()} == {
                "image-unchanged": CheckStatus.FAIL
            }
            assert looked(helper, worker, IsolationMode.USER) == {}
        finally:
            os.chown(keeper, before.st_uid, before.st_gid)
            keeper.chmod(0o755)
            (keeper / "storage" / "overlay").chmod(0o755)
    finally:
        if not there:
            shutil.rmtree(store)


HONEST = """
git config user.email agent@localhost && git config user.name Agent && echo more >>README.md
git commit -qam 'More' && git gc -q && git clone -q . ~/clone && git worktree add -q ~/tree
python3 -m venv --without-pip ~/venv && mkdir -m 2775 ~/shared && mkfifo ~/fifo && ln -s /usr/bin/sudo ~/sudo
ssh-keygen -q -t ed25519 -N '' -f ~/key 2>/dev/null; tar -C /usr/bin -cf - python3 | tar -C ~ -xpf -
echo x >/tmp/x; echo x >/var/tmp/x; echo x >/dev/shm/x; ipcmk -M 4096; setsid sleep 1000 & echo done
"""
CONTAINED = """
git config user.email agent@localhost && git config user.name Agent && echo more >>README.md
git commit -qam 'More' && git clone -q . ~/clone && mkdir -m 2775 ~/shared && mkfifo ~/fifo
echo x >/tmp/x; echo x >/var/tmp/x; echo x >/dev/shm/x; setsid sleep 1000 & echo done
"""


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("user", ()),
        ("namespace", ()),
        ("namespace", ("--allow-docker",)),
        pytest.param("container", (), marks=pytest.mark.xdist_group("containers")),
    ],
)
def test_an_honest_agent_leaves_nothing(
    request: pytest.FixtureRequest, person: Person, helper: RawHelper, mode: str, options: tuple[str, ...]
) -> None:
    if options:
        need("podman", "docker")
    if mode == "container":
        request.getfixturevalue("podman_image")
    target = Target(
        person=person, mode=mode, repository=person.repository(f"honest-{mode}{len(options)}"),
        session="honest", options=("--agent", "demo", "--no-network", *options),
    )  # fmt: skip
    try:
        said = target.attack(HONEST if mode != "container" else CONTAINED, finish="keep").said
        assert "done" in said
        session = {"project": str(target.repository), "session": target.session}
        account = helper.ask({"verb": "lease", **session, "create": False})["account"]
        there = Worker(name=account["name"], uid=account["uid"], home=Path(account["home"]))
        assert list(there.home.iterdir())
        assert looked(helper, there, IsolationMode(mode)) == {}
    finally:
        helper.finish()
        person.clsecure("cleanup", target.session, "--yes", cwd=target.repository)


# ---------------------------------------------------------------- the user's side

LOOK = """
import json, sys
from pathlib import Path
from dataclasses import asdict
from clsecure.model import IsolationMode, KeptProgram, SandboxSpec, WorkerAccount
from clsecure.verify.userside import check_user_side, look
from clsecure.verify.userstate import UserState, user_state
from clsecure.workspace.repository import discover
top, uid, sha256, before = sys.argv[1], int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
repository, home = discover(Path(top)), Path.home()
if before is None:
    print(json.dumps(asdict(user_state(repository, home))))
else:
    account = WorkerAccount(name="w", uid=uid, gid=uid, home=Path("/home/w"))
    program = KeptProgram(name="claude", sha256=sha256, version="1")
    spec = SandboxSpec(mode=IsolationMode.USER, account=account, program=program)
    results = check_user_side(look(repository, home, spec, UserState.parse(before)), spec)
    print(json.dumps({r.check_id: r.status for r in results if r.status != "pass"}))
"""


def test_each_change_on_the_users_side_fails_its_own_check(
    person: Person, helper: RawHelper, worker: Worker
) -> None:
    """A file of the worker's among git's, a swapped program, a home that is opened."""
    repository = person.repository("users-side")
    with tempfile.TemporaryFile() as program:
        program.write(b"#!/bin/true\n")
        program.flush()
        digest = hashlib.sha256(b"#!/bin/true\n").hexdigest()
        kept = Path(helper.ask({"verb": "agent", "sha256": digest}, [program.fileno()])["path"]) / "agent"

    def look(before: object) -> Any:
        argv = [*clsecure_command()[:2], "-c", LOOK, str(repository), str(worker.uid), digest]
        return person.run([*argv, json.dumps(before)], cwd=repository).check().json()

    before = look(None)
    assert look(before) == {}
    with planted.planted(worker, planted.file(f"{repository}/.git/info/attributes")):
        assert look(before) == {"repository-untouched": "fail"}
    with planted.planted(worker, planted.file(f"{repository}/planted")):
        assert look(before) == {"repository-untouched": "fail"}
    content = kept.read_bytes()
    try:
        kept.write_bytes(b"#!/bin/false\n")
        assert look(before) == {"agent-program-unchanged": "fail"}
        kept.write_bytes(content)
        kept.chmod(0o777)
        assert look(before) == {"agent-program-unchanged": "fail"}
    finally:
        kept.write_bytes(content)
        kept.chmod(0o555)
    mode = stat.S_IMODE(person.home.stat().st_mode)
    try:
        person.home.chmod(0o777)
        assert look(before) == {"user-home-closed": "fail"}
    finally:
        person.home.chmod(mode)
    assert look(before) == {}
