"""G8: what a repository says of its own sessions. The user says the same afterwards, and then it works."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests.support.hostile import Ear, Target, canary
from tests.support.messages_api import MessagesApi, text
from tests.support.person import Person

pytestmark = pytest.mark.root

ATTACK = r"""
import base64, json, os, socket, sys, urllib.parse

port, secret = int(sys.argv[1]), sys.argv[2][::-1]
proxy = urllib.parse.urlsplit(os.environ["HTTPS_PROXY"])
auth = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
host = f"host.clsecure.internal:{port}"
with socket.create_connection((proxy.hostname, proxy.port), timeout=20) as client:
    request = f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Basic {auth}\r\n\r\n"
    client.sendall(request.encode())
    answered = client.recv(65536).decode().split("\r\n")[0]
print(json.dumps({
    "by proxy": answered,
    "holds the key": any(secret in value for value in os.environ.values()),
    "sees the mount": os.path.exists("/opt/seen"),
    "interfaces": [name for _, name in socket.if_nameindex()],
}))
"""


@pytest.fixture
def own(person: Person, mode: str) -> Target:
    """A repository of these tests alone, without any settings yet."""
    repository = person.home / f"settings-{mode}"
    if not repository.exists():
        person.repository(repository.name)
    person.run(["rm", "-rf", str(repository / ".clsecure")]).check()
    return Target(person=person, mode=mode, repository=repository, options=())


def say(target: Target, content: str, name: str = "config") -> None:
    """Write the repository's own settings."""
    place = target.repository / ".clsecure"
    target.person.run(["mkdir", "-p", str(place)]).check()
    target.person.write(place / name, content.encode())


def test_g8_a_repository_opens_nothing(own):
    """Full network, allowed hosts, private addresses, the key itself, a mount of the user's files."""
    key, opened = canary(), own.person.home / "g8-secret"
    own.person.write(opened, b"secret")
    with Ear(("127.0.0.1", 0)) as ear, MessagesApi([[text("hello")]]) as api:
        env = {"ANTHROPIC_API_KEY": key, "ANTHROPIC_BASE_URL": api.url}
        host = f"localhost:{ear.port}"
        said = {"network": "full", "allow_private": "true", "allow_domains": host, "presets": "git-remote",
                "credentials": "copy", "mounts": f"{opened}:/opt/seen", "mode": "user", "on_finish": "import",
                "session": "other", "agent": "demo", "full_clone": "true"}  # fmt: skip
        say(own, "".join(f"{name} = {value}\n" for name, value in said.items()))
        attack = own.python(ATTACK, str(ear.port), key[::-1], env=env)
        assert attack.evidence["by proxy"].startswith("HTTP/1.1 403 ")
        assert not attack.evidence["holds the key"]
        assert not attack.evidence["sees the mount"]
        assert attack.evidence["interfaces"] == ["lo"]
        assert ear.heard == []
        result = attack.result
        assert (result["mode"], result["network"], result["session"]) == (own.mode, "api", "default")
        assert result["import"] is None
        place = f"{own.repository}/.clsecure/config:"
        for told in (attack.outcome.errors, "\n".join(result["warnings"])):
            assert told.count(place) == len(said) - 1  # a flag of these tests says the mode
            assert all(f"{place}{line}: {name} " in told for line, name in enumerate(said, 1)
                       if name not in {"mode", "network", "credentials"})  # fmt: skip
            assert f"credentials ({place}5) is wider than what you have" in told
        # The same from the user themselves.
        flags = ("--allow-domain", host, "--credentials", "copy", "--mount", f"{opened}:/opt/seen")
        meant = dataclasses.replace(own, options=flags).python(ATTACK, str(ear.port), key[::-1], env=env)
        assert not meant.evidence["by proxy"].startswith("HTTP/1.1 403 ")
        assert meant.evidence["holds the key"]
        assert meant.evidence["sees the mount"]
        assert ear.heard


ENGINES = r"""
import json, os

places = ("/run/docker.sock", "/var/run/docker.sock", "/run/podman/podman.sock")
print(json.dumps({
    "variables": sorted(name for name in os.environ if "DOCKER" in name or "CONTAINER" in name),
    "sockets": [place for place in places if os.path.exists(place)],
    "groups": len(set(os.getgroups()) | {os.getgid()}),
}))
"""


@pytest.mark.parametrize("word", ["true", "host"])
def test_g8_a_repository_gives_its_agent_no_engine(own, word):
    """It asks for an engine, the machine's own, images of the user's, a runtime that it brought along."""
    said = {
        "docker": word,
        "docker_images": "evil:1",
        "engine": "docker",
        "image": "evil",
        "runtime": "/tmp/x",
    }
    say(own, "".join(f"{name} = {value}\n" for name, value in said.items()))
    attack = own.python(ENGINES, env={"ANTHROPIC_API_KEY": canary()})
    assert attack.evidence == {"variables": [], "sockets": [], "groups": 1}
    assert attack.result["docker"] == "none"
    held = attack.result["container"]
    assert (held is None) == (own.mode != "container")
    assert held is None or (held["engine"] == "podman" and held["image"] != "evil" and not held["runtime"])
    told, place = "\n".join(attack.result["warnings"]), f"{own.repository}/.clsecure/config:"
    assert f"docker ({place}1) is wider than what you have" in told
    assert all(f"{place}{line}: {name} " in told for line, name in enumerate(said, 1) if name != "docker")


@pytest.mark.parametrize("name", ["config", "config.toml"])
def test_g8_a_denial_of_the_repository_stands_against_every_flag(own, name):
    """Narrowing is honoured: what the repository denies is denied, whatever the user allows."""
    with Ear(("127.0.0.1", 0)) as ear, MessagesApi([[text("hello")]]) as api:
        env = {"ANTHROPIC_API_KEY": canary(), "ANTHROPIC_BASE_URL": api.url}
        allowing = dataclasses.replace(own, options=("--allow-domain", f"localhost:{ear.port}"))
        attack = allowing.python(ATTACK, str(ear.port), "x", env=env)
        assert not attack.evidence["by proxy"].startswith("HTTP/1.1 403 ")
        assert ear.heard
        del ear.heard[:]
        denial = "deny_domains = 127.0.0.1\n" if name == "config" else '[egress]\ndeny = ["127.0.0.1"]\n'
        say(own, denial.replace("127.0.0.1", f"127.0.0.1:{ear.port}"), name)
        attack = allowing.python(ATTACK, str(ear.port), "x", env=env)
        assert attack.evidence["by proxy"].startswith("HTTP/1.1 403 ")
        assert ear.heard == []
        blocked = [host for host in attack.result["egress"]["hosts"] if host["denied"]]
        assert [(host["host"], host["port"]) for host in blocked] == [("host.clsecure.internal", ear.port)]


def test_g8_a_repository_shuts_the_network_and_a_flag_opens_it(own):
    """``network = none`` of the repository holds for a session without flags."""
    say(own, "network = none\n")
    env = {"ANTHROPIC_API_KEY": canary()}
    shut = own.attack("env", env=env)
    assert shut.result["network"] == "none"
    assert "PROXY" not in shut.said
    assert shut.result["egress"] is None
    opened = dataclasses.replace(own, options=("--allow-domain", "a.example.org")).attack("env", env=env)
    assert opened.result["network"] == "allowlist"
    assert "HTTPS_PROXY=" in opened.said


@pytest.mark.parametrize("kind", ["link", "fifo", "huge", "link to the place"])
def test_g8_a_hostile_file_is_refused_before_anything_starts(own, kind):
    """The repository's settings are a link to a secret, a FIFO, 100 MB, or lie behind a link."""
    secret = canary()
    outside = own.person.home / f"g8-{own.mode}"
    own.person.run(["mkdir", "-p", str(outside)]).check()
    own.person.write(outside / "config", f"network = {secret}\n".encode())
    script = {
        "link": f"mkdir .clsecure; ln -s {outside}/config .clsecure/config",
        "fifo": "mkdir .clsecure; mkfifo .clsecure/config.toml",
        "huge": f"mkdir .clsecure; yes '{secret}' | head -c 100000000 > .clsecure/config",
        "link to the place": f"ln -s {outside} .clsecure",
    }[kind]
    own.person.run(["/bin/sh", "-c", f"rm -rf .clsecure; {script}"], cwd=own.repository).check()
    refused = own.refused()
    error = json.loads(refused.stdout)["error"]
    assert "can't be used" in error["brief"]
    assert secret not in refused.text + refused.errors
    own.person.run(["rm", "-rf", ".clsecure"], cwd=own.repository).check()
    assert own.attack("true", "--no-network").status == 0
