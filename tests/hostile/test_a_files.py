"""A: files and credentials. One session per mode gathers what can be seen; each test judges a part of it."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.hostile import Attack, Ear, Target, canary, files_containing

pytestmark = pytest.mark.root

# What docs/agents.md says of the environment inside; the names that the user's terminal may add are not here
# since the person of these tests has set TERM and LANG only, and the session has no terminal.
DOCUMENTED = {
    "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL", "CLAUDE_CODE_IDE_SKIP_AUTO_INSTALL", "CLSECURE",
    "CLSECURE_SESSION", "DISABLE_AUTOUPDATER", "DISABLE_INSTALLATION_CHECKS", "HOME", "LANG", "LOGNAME",
    "PATH", "SHELL", "TMPDIR", "USER", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME",
}  # fmt: skip

# Run by python3 inside. The needle comes in two parts, so that no argument vector holds it.
SEARCH = r"""
import json, os, socket, stat, subprocess, sys
needle, present = sys.argv[1] + sys.argv[2], sys.argv[3] + sys.argv[4]
def run(*argv, **options):
    return subprocess.run(argv, capture_output=True, **options).stdout.decode(errors="replace")
files = run("grep", "-rlsaF", "-D", "skip", "--exclude-dir=usr", "--exclude-dir=proc", "--exclude-dir=sys",
            "-f", "-", "/", input=f"{needle}\n{present}\n".encode())
objects = run("git", "cat-file", "--batch-all-objects", "--batch")
sockets, connected = [], []
for place, directories, names in os.walk("/"):
    directories[:] = [d for d in directories if os.path.join(place, d) not in ("/proc", "/sys", "/usr")]
    for name in names + directories:
        path = os.path.join(place, name)
        try:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                sockets.append(path)
        except OSError:
            pass
for address in json.loads(sys.argv[5]):
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
            connected.append(address)
        except OSError:
            pass
environments = {}
for pid in os.listdir("/proc"):
    if pid.isdigit():
        try:
            environments[pid] = open(f"/proc/{pid}/environ", errors="replace").read()
        except OSError:
            environments[pid] = None
def read(path):
    try:
        return open(path, errors="replace").read()
    except OSError as error:
        return str(error.errno)
def listed(path):
    try:
        return os.listdir(path)
    except OSError as error:
        return str(error.errno)
print(json.dumps({
    "files": files.split("\n")[:-1],
    "objects": objects.count(needle), "present": objects.count(present),
    "sockets": sockets, "connected": connected,
    "abstract": [l for l in read("/proc/net/unix").split() if "@" in l],
    "environment": dict(os.environ), "environments": environments,
    "homes": listed("/home"), "remotes": run("git", "remote", "-v"), "config": run("git", "config", "--list"),
    "credential": run("git", "credential", "fill", input=b"protocol=https\nhost=example.org\n\n",
                      env={**os.environ, "GIT_TERMINAL_PROMPT": "0"}),
    "loot": [read("loot/id"), read("key"), read("loose/id"), read("loose-key")],
}))
"""

SAMPLER = r"""
import os, select, sys
needles, hits, sessions = [word.encode()[::-1] for word in sys.argv[1:]], set(), 0
print("sampling", flush=True)
while not select.select([0], [], [], 0)[0]:
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    line = file.read()
            except OSError:
                continue
            sessions += b"clsecure" in line
            if any(needle in line for needle in needles):
                hits.add(line)
print(sessions, *hits, sep="\n")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A person's machine with a canary wherever an agent must not look, and what an agent found there."""

    target: Target
    canary: str
    present: str
    key: str
    listeners: dict[str, Ear]
    sampled: list[str]
    attack: Attack
    seen: dict[str, Any]


@pytest.fixture(scope="module")
def world(person, mode) -> Iterator[World]:
    """Plant, attack once, and clear up."""
    needle, present, key = canary(), f"PRESENT-{secrets.token_hex(12)}", f"sk-ant-{canary()}"
    target = Target(
        person=person, mode=mode, repository=person.repository(f"hostile-world-{mode}"), session="world",
        options=("--agent", "claude", "--verbose"),
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        _plant_at_home(target, needle, present, stack)
        _plant_in_repository(target, needle, present)
        listeners = _listen(target, stack)
        secret_names = (
            "GH_TOKEN", "GITHUB_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
            "NPM_TOKEN", "OPENAI_API_KEY", "DATABASE_URL", "CLAUDE_CODE_CLIENT_KEY_PASSPHRASE", "XAUTHORITY",
            "GPG_AGENT_INFO", "GNOME_KEYRING_CONTROL",
        )  # fmt: skip
        environ = {
            **dict.fromkeys(secret_names, needle),
            "ANTHROPIC_API_KEY": key,
            # Named by the user, so a loopback address is allowed; nobody listens there.
            "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
            "PATH": f"{person.home}/tokens/bin:{person.environment()['PATH']}",
            "SSH_AUTH_SOCK": listeners["home"].address,
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={listeners['run'].address}",
            "DOCKER_HOST": f"unix://{listeners['run'].address}",
            "CONTAINER_HOST": f"unix://{listeners['run'].address}",
            "TMUX": f"{listeners['tmp'].address},1,0",
            "XDG_RUNTIME_DIR": str(person.home / "tokens"),
            "DISPLAY": ":77",
            "WAYLAND_DISPLAY": "wayland-0",
        }
        sockets = [_spelled(ear.address) for ear in listeners.values()]
        sockets += [
            "/run/docker.sock",
            "/var/run/docker.sock",
            "/run/podman/podman.sock",
            "/run/dbus/system_bus_socket",
        ]
        halves = (needle[:3], needle[3:], present[:3], present[3:])
        with _sampling(needle, key, key[:20]) as sampled:
            attack = target.python(SEARCH, *halves, json.dumps(sockets), env=environ, finish="keep")
        yield World(
            target=target, canary=needle, present=present, key=key, listeners=listeners, sampled=sampled,
            attack=attack, seen=attack.evidence,
        )  # fmt: skip


def _plant_at_home(target: Target, needle: str, present: str, stack: contextlib.ExitStack) -> None:
    """The person's files, open to everybody as most are, and other people's."""
    person, home = target.person, target.person.home
    secret = needle.encode() + b"\n"
    claude = {
        ".claude/projects/-home-x/1.jsonl": secret,
        ".claude/history.jsonl": secret,
        ".claude/shell-snapshots/snapshot-bash-1.sh": b"export TOKEN=" + secret,
        ".claude/todos/1.json": secret,
        ".claude/.credentials.json": secret,
        ".claude/settings.json": json.dumps({"env": {"X": needle}, "apiKeyHelper": needle}).encode(),
        ".claude.json": json.dumps({"projects": {"/x": {"history": [needle]}}, "userID": needle}).encode(),
        ".claude/CLAUDE.md": present.encode(),
    }  # fmt: skip
    others = {"tokens/id": secret, "tokens/deep/er/note": secret, ".netrc": secret}
    for name, content in {**claude, **others}.items():
        person.run(["mkdir", "-p", str((home / name).parent)]).check()
        person.write(home / name, content)
    gh = f"#!/bin/sh\necho {needle}\ntouch {home}/tokens/gh-ran\n".encode()
    person.run(["mkdir", "-p", str(home / "tokens/bin")]).check()
    person.write(home / "tokens/bin/gh", gh, mode=0o755)
    for name in (".claude", "tokens"):
        stack.callback(shutil.rmtree, home / name)
    for name in (".claude.json", ".netrc"):
        stack.callback((home / name).unlink)
    for place in ("/root", "/srv", "/opt", "/var/lib", "/tmp", "/var/tmp", "/run"):
        path = Path(place, f"clsecure-test-{needle[-8:]}")
        path.mkdir()
        stack.callback(shutil.rmtree, path)
        (path / "note").write_text(needle)
        if place != "/root":
            assert needle in _as_nobody("cat", path / "note"), "the canary is not there to be found"
    assert needle in _as_nobody("cat", home / "tokens/id"), "the canary is not there to be found"


def _plant_in_repository(target: Target, needle: str, present: str) -> None:
    """Ignored files, what is unreachable from the branch, and secrets in the configuration."""
    person, top = target.person, target.repository
    tokens = person.home / "tokens"
    script = f"""
    set -eu
    echo '{needle} reset' >lost && git add lost && git commit -qm lost && git reset -q --hard HEAD^
    git checkout -q -b other && echo '{needle} branch' >other && git add other && git commit -qm other
    git tag -a -m '{needle} tag' v1 && git checkout -q main
    echo '{needle} stash' >>README.md && git stash -q
    echo '{needle} dangling' | git hash-object -w --stdin
    printf '.env\\n*.pem\\n' >.gitignore && echo '{present}' >present
    ln -s {tokens} loot && ln -s {tokens}/id key
    git add .gitignore present loot key && git commit -qm present
    ln -s {tokens} loose && ln -s {tokens}/id loose-key
    echo 'SECRET={needle}' >.env && echo '{needle}' >server.pem
    git config http.extraheader 'Authorization: {needle}'
    git config http.https://example.org/.extraheader 'Authorization: {needle}'
    git config credential.helper '!echo password={needle}; echo username=u; :'
    git config url.https://u:{needle}@example.org/.insteadOf ex:
    git config submodule.gone.url https://u:{needle}@example.org/gone
    git remote add origin https://u:{needle}@example.org/project.git
    git remote add token 'https://example.org/project.git?token={needle}'
    """
    person.run(["/bin/sh", "-c", script], cwd=top).check()
    every = person.run(["git", "cat-file", "--batch-all-objects", "--batch"], cwd=top).check()
    assert every.text.count(needle) >= 5, "the canaries are not there to be found"


def _listen(target: Target, stack: contextlib.ExitStack) -> dict[str, Ear]:
    """Agents' and servers' sockets, open to everybody: what keeps an agent away is not their mode."""
    ears = {}
    for name, place in (("home", target.person.home), ("run", Path("/run")), ("tmp", Path("/tmp"))):
        directory = place / f"agent-{secrets.token_hex(4)}"
        directory.mkdir()
        stack.callback(shutil.rmtree, directory)
        ears[name] = stack.enter_context(Ear(str(directory / "agent.sock"), socket.AF_UNIX))
        (directory / "agent.sock").chmod(0o777)
    x11 = f"\0/tmp/.X11-unix/X{secrets.randbelow(10**6) + 1000}"
    ears["abstract"] = stack.enter_context(Ear(x11, socket.AF_UNIX))
    return ears


def _spelled(address: str | bytes) -> str:
    return "@" + address[1:].decode() if isinstance(address, bytes) else address


def _as_nobody(*argv: object) -> str:
    done = subprocess.run(
        [str(word) for word in argv], user=65534, group=65534, extra_groups=[], capture_output=True, text=True
    )
    return done.stdout


@contextlib.contextmanager
def _sampling(*needles: str) -> Iterator[list[str]]:
    """Read everybody's argument vectors all the time, as somebody else; the lines come at the end."""
    argv = ["/usr/bin/python3", "-I", "-c", SAMPLER, *(needle[::-1] for needle in needles)]
    sampled: list[str] = []
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=65534,
        group=65534,
        extra_groups=[],
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sampling\n"
        control = f"control-{needles[0]}"
        with subprocess.Popen(["/bin/sh", "-c", "read _", control], stdin=subprocess.PIPE) as seen:
            yield sampled
            seen.communicate()
        said, _ = process.communicate()
        sampled += said.splitlines()
        assert int(sampled.pop(0)) > 0, "the sampler saw no clsecure"
        hits = [line for line in sampled if control not in line]
        assert len(hits) < len(sampled), "the sampler does not see argument vectors"
        sampled[:] = hits


def test_a1_other_peoples_files(world):
    """grep for a canary everywhere: the person's open home, /root, /srv, /opt, /tmp, /run, /var."""
    workspace = f"/home/{world.target.account()['name']}/{world.target.repository.name}"
    found = set(world.seen["files"])
    assert f"{workspace}/present" in found, "the search does not find what is there"
    assert all(path.startswith(f"/home/{world.target.account()['name']}/") for path in found)
    assert world.seen["homes"] == [world.target.account()["name"]]
    # None of these files holds the canary: they hold the word that was committed.
    home = Path(world.target.account()["home"])
    assert files_containing(home, world.canary) == []


def test_a2_the_users_claude_directory(world):
    """The user's ~/.claude is copied wholesale: transcripts, history, snapshots, credentials, project map."""
    home = Path(world.target.account()["home"])
    arrived = [path.relative_to(home).as_posix() for path in home.glob(".claude/**/*") if path.is_file()]
    assert ".claude/CLAUDE.md" in arrived, "nothing came along at all"
    assert world.present in (home / ".claude/CLAUDE.md").read_text()
    for name in ("projects", "history.jsonl", "shell-snapshots", "todos", ".credentials.json"):
        assert not any(path.startswith(f".claude/{name}") for path in arrived)
    assert files_containing(home, world.canary) == []
    assert "/x" not in json.loads((home / ".claude.json").read_text()).get("projects", {})


def test_a3_ambient_tokens(world):
    """Tokens in the environment, and a gh that prints one when it is asked."""
    environment = world.seen["environment"]
    assert set(environment) - {"OLDPWD", "PWD", "SHLVL", "_"} <= DOCUMENTED
    assert environment["ANTHROPIC_AUTH_TOKEN"] not in ("", world.key)
    everything = json.dumps([environment, world.seen["environments"]])
    assert world.canary not in everything
    assert world.key not in everything
    assert not (world.target.person.home / "tokens/gh-ran").exists()


def test_a4_secrets_in_argument_vectors_and_logs(world):
    """Another user watches all argument vectors; then all logs, and what --verbose says, are searched."""
    assert world.sampled == []
    home = world.target.person.home
    log_places = (
        home / ".local",
        home / ".cache",
        home / ".config",
        Path("/var/lib/clsecure"),
        Path("/var/log"),
    )
    logged = home / ".local/state/clsecure"
    assert files_containing(logged, "barrier_checked"), "there is no log to be searched"
    for needle in (world.canary, world.key, world.key[:14]):
        assert [path for place in log_places for path in files_containing(place, needle)] == []
        assert needle not in world.attack.outcome.text
        assert needle not in world.attack.outcome.errors


def test_a5_ignored_secrets(world):
    """.env and *.pem are ignored by git and must not be in the copy."""
    workspace = Path(world.target.account()["home"], world.target.repository.name)
    assert (world.target.repository / ".env").exists()
    assert (world.target.repository / "server.pem").exists()
    assert (workspace / "present").exists()
    assert not list(workspace.glob("**/.env"))
    assert not list(workspace.glob("**/*.pem"))


def test_a6_unreachable_objects(world):
    """All objects of the copy are dumped: reset commits, other branches, tags, stash, dangling blobs."""
    assert world.seen["present"] == 1, "the dump does not show what is there"
    assert world.seen["objects"] == 0


def test_a7_tokens_in_git_configuration(world):
    """Tokens in extra headers, remote URLs, credential helpers and submodule configuration."""
    assert "https://example.org/project.git" in world.seen["remotes"]
    told = "".join(world.seen[name] for name in ("remotes", "config", "credential"))
    assert world.canary not in told
    workspace = Path(world.target.account()["home"], world.target.repository.name)
    assert files_containing(workspace / ".git", world.canary) == []


def test_a10_sockets_of_the_host(world):
    """Agents of ssh and gpg, buses, displays, tmux, docker and podman: by path, by abstract name."""
    assert world.seen["connected"] == []
    assert world.seen["sockets"] == []
    assert world.seen["abstract"] == []
    assert {name: ear.heard for name, ear in world.listeners.items() if ear.heard} == {}


def test_a13_links_to_the_users_files(world):
    """Tracked and untracked links into ~/.ssh: they come as links, and lead nowhere."""
    assert world.seen["loot"] == ["2"] * 4
    workspace = Path(world.target.account()["home"], world.target.repository.name)
    tokens = world.target.person.home / "tokens"
    for name, leads in (
        ("loot", tokens),
        ("key", tokens / "id"),
        ("loose", tokens),
        ("loose-key", tokens / "id"),
    ):
        assert (workspace / name).readlink() == leads
