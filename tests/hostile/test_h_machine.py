"""H6 and G8 for the machine's own settings: hostile files in their place, and ceilings in real sessions.

The person's programs start in a mount namespace of their own, where another directory lies over
/etc/clsecure; the machine's own files stay as they are.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.test_g_settings import ATTACK, say
from tests.support.hostile import Ear, Target, canary
from tests.support.messages_api import MessagesApi, text
from tests.support.overlaid import overlaid
from tests.support.person import Person
from tests.support.private_mounts import configuration_directory

# One after the other, with the tests of full disks: the mount point is the machine's.
pytestmark = [pytest.mark.root, pytest.mark.xdist_group("disk_full")]
MODES = pytest.mark.parametrize("mode", ["user", "namespace"])
_PLACE = Path("/etc/clsecure")
_DEADLINE = 30.0


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Path]:
    """What the person sees as /etc/clsecure. The mount point itself is made where there is none."""
    ours = tmp_path / "etc"
    ours.mkdir(mode=0o755)
    with configuration_directory():
        # Root's pieces read their own configuration there.
        if (_PLACE / "helper.json").exists():
            (ours / "helper.json").write_bytes((_PLACE / "helper.json").read_bytes())
        yield ours


@pytest.fixture(scope="module")
def top(person: Person) -> Path:
    return person.repository("h6-machine")


def on(person: Person, machine: Path) -> Person:
    return overlaid(person, {str(_PLACE): machine})


def enforce(machine: Path, content: str) -> None:
    (machine / "config.toml").write_text(f"[enforce]\n{content}\n")
    (machine / "config.toml").chmod(0o644)


@pytest.mark.parametrize("name", ["config", "config.toml"])
@pytest.mark.parametrize(
    "kind",
    [
        "fifo",
        "huge",
        "link to a secret",
        "shadow",
        "device",
        "nul",
        "directory",
        "twice",
        "writable",
        "theirs",
    ],
)
def test_h6_a_hostile_file_of_the_machine_is_never_passed_over(person, machine, top, kind, name):
    """The machine's settings are a FIFO, 100 MB, a link, have NUL bytes, or others than root write them."""
    file, secret = machine / name, canary()
    match kind:
        case "fifo":
            os.mkfifo(file)
        case "huge":
            with file.open("wb") as out:
                out.write(f"mode = '{secret}'\n".encode() * 1000)
                out.truncate(100 << 20)
        case "link to a secret":
            (machine / "secret").write_text(secret)
            (machine / "secret").chmod(0o600)
            file.symlink_to("secret")
        case "shadow":
            file.symlink_to("/etc/shadow")
        case "device":
            file.symlink_to("/dev/zero")
        case "nul":
            file.write_bytes(f"mode = 'user'\n\0{secret}".encode())
        case "directory":
            file.mkdir()
        case "twice":
            file.write_text("mode = 'user'\nISOLATION_MODE = 'user'\n")
        case "writable":
            file.write_text("mode = 'user'\n")
            file.chmod(0o666)
        case "theirs":
            file.write_text("mode = 'user'\n")
            os.chown(file, person.uid, person.gid)
    for command in (("config",), ("--config", "--output", "json"), ("--dry-run",), ("list",)):
        done = on(person, machine).clsecure(*command, cwd=top, timeout=_DEADLINE)
        assert done.returncode == 125, done
        told = done.text + done.errors
        assert str(_PLACE / name) in told
        assert secret not in told
        assert "root:" not in told
        assert len(told) < 4000


@MODES
def test_g8_ceilings_hold_in_a_session_whatever_its_user_says(person, machine, mode):
    """A user's file and a repository's ask for everything; flags and variables are refused by name."""
    opened, key = person.home / "ceiling-secret", canary()
    person.write(opened, b"secret")
    target = Target(
        person=on(person, machine), mode=mode, repository=person.repository(f"ceilings-{mode}"), options=()
    )
    own = person.home / ".config" / "clsecure"
    person.run(["mkdir", "-p", str(own)]).check()
    with Ear(("127.0.0.1", 0)) as ear, MessagesApi([[text("hello")]]) as api:
        env = {"ANTHROPIC_API_KEY": key, "ANTHROPIC_BASE_URL": api.url}
        host = f"localhost:{ear.port}"
        content = f"allow_domains = {host}\ncredentials = copy\nmounts = {opened}:/opt/seen\n"
        person.write(own / "config", content.encode())
        try:
            free = target.python(ATTACK, str(ear.port), key[::-1], env=env)
            assert not free.evidence["by proxy"].startswith("HTTP/1.1 403 ")
            assert free.evidence["holds the key"]
            assert free.evidence["sees the mount"]
            assert ear.heard
            del ear.heard[:]
            enforce(
                machine, "allow = ['*.corp.example']\ncredentials = 'inject'\nmounts = []\ntime_limit = '90s'"
            )
            held = target.python(ATTACK, str(ear.port), key[::-1], env=env)
            assert held.evidence["by proxy"].startswith("HTTP/1.1 403 ")
            assert not held.evidence["holds the key"]
            assert not held.evidence["sees the mount"]
            assert ear.heard == []
            for written in ("allow_domains", "credentials", "mounts"):
                assert any(
                    written in warning and str(_PLACE) in warning for warning in held.result["warnings"]
                )
            for flags in (("--allow-network",), ("--allow-domain", host), ("--credentials", "copy"),
                          ("--mount", str(opened)), ("--time-limit", "2h")):  # fmt: skip
                refused = dataclasses.replace(target, options=flags).refused(env=env)
                error = json.loads(refused.stdout)["error"]
                assert "more than this machine allows" in error["brief"]
                assert f"{_PLACE}/config.toml:" in error["details"]
            refused = target.refused(env={**env, "CLSECURE_NETWORK": "full"})
            assert "CLSECURE_NETWORK" in refused.text
        finally:
            person.run(["rm", "-rf", str(own)]).check()


def test_g8_a_running_session_is_let_no_further_than_the_ceiling(person, machine):
    """``clsecure network allow`` on a session that runs, within the machine's list and beyond it."""
    enforce(machine, "allow = ['*.corp.example']")
    one = on(person, machine)
    target = Target(
        person=one, mode="user", repository=person.repository("ceilings-live"),
        options=("--agent", "demo", "--allow-domain", "a.corp.example"),
    )  # fmt: skip
    with target.live("echo ready; read -r _") as agent:
        agent.wait_for("ready")
        refused = one.clsecure("network", "allow", "evil.example", cwd=target.repository)
        assert refused.returncode == 125
        assert f"{_PLACE}/config.toml:2" in refused.errors
        # From outside of the ceiling's reach, too: it is the gateway's, and was fixed at the start.
        refused = person.clsecure("network", "allow", "evil.example", cwd=target.repository)
        assert "beyond what this machine allows" in refused.errors
        one.clsecure("network", "allow", "b.corp.example", cwd=target.repository).check()


@MODES
def test_g8_the_rest_of_what_a_repository_may_narrow_counts_in_a_session(person, mode):
    """The repository shortens the time, and asks in vain for the key and more time than the user gives."""
    target = Target(person=person, mode=mode, repository=person.repository(f"narrow-{mode}"), options=())
    env = {"ANTHROPIC_API_KEY": canary()}
    say(target, "time_limit = 2s\ncredentials = none\n")
    mine = ("--agent", "demo", "--mode", mode, "--on-finish", "discard", "--output", "json")
    done = person.clsecure(*mine, "--", "sleep", "60", cwd=target.repository, env=env)
    assert done.returncode == 124, done
    say(target, "time_limit = 2h\ncredentials = copy\n")
    done = person.clsecure(*mine, "--time-limit", "2s", "--", "sleep", "60", cwd=target.repository, env=env)
    assert done.returncode == 124, done
    place = f"{target.repository}/.clsecure/config"
    assert any(place in warning and "credentials" in warning for warning in done.json()["warnings"])
