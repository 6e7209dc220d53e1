"""A: files and credentials. One session per mode gathers what can be seen; each test judges a part of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.hostile import Attack, Ear, Target, canary, files_containing, quoted

pytestmark = pytest.mark.root

# What docs/agents.md says of the environment inside; the names that the user's terminal may add are not here
# since the person of these tests has set TERM and LANG only, and the session has no terminal.
DOCUMENTED = {
    "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL", "CLAUDE_CODE_IDE_SKIP_AUTO_INSTALL", "CLSECURE",
    "CLSECURE_SESSION", "DISABLE_AUTOUPDATER", "DISABLE_INSTALLATION_CHECKS", "HOME", "LANG", "LOGNAME", "PATH",
    "SHELL", "TMPDIR", "USER", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME",
}  # fmt: skip

# Run by python3 inside. The needle comes in two parts, so that no argument vector holds it.
SEARCH = r"""
import array, fcntl, json, os, socket, stat, subprocess, sys
needle = sys.argv[1] + sys.argv[2]
def run(*argv, **options):
    return subprocess.run(argv, capture_output=True, **options).stdout.decode(errors="replace")
files = run("grep", "-rlsaF", "-D", "skip", "--exclude-dir=usr", "--exclude-dir=proc", "--exclude-dir=sys",
            "-f", "-", "/", input=needle.encode())
objects = run("git", "cat-file", "--batch-all-objects", "--batch")
sockets, connected = [], []
for place, directories, names in os.walk("/"):
    directories[:] = [name for name in directories if os.path.join(place, name) not in ("/proc", "/sys", "/usr")]
    for name in names + directories:
        path = os.path.join(place, name)
        try:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                sockets.append(path)
        except OSError:
            pass
for address in json.loads(sys.argv[3]):
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
    "objects": objects.count(needle), "object_count": objects.count(" blob "),
    "sockets": sockets, "connected": connected, "abstract": [l for l in read("/proc/net/unix").split() if "@" in l],
    "environment": dict(os.environ), "environments": environments,
    "descriptors": {n: os.readlink("/proc/self/fd/" + n) for n in os.listdir("/proc/self/fd") if os.path.lexists("/proc/self/fd/" + n)},
    "parent": os.listdir(f"/proc/{os.getppid()}/fd"),
    "homes": listed("/home"), "remotes": run("git", "remote", "-v"), "config": run("git", "config", "--list"),
    "credential": run("git", "credential", "fill", input=b"protocol=https\nhost=example.org\n\n", env={**os.environ, "GIT_TERMINAL_PROMPT": "0"}),
    "keys": read("/proc/keys"), "loot": [read("loot/id"), read("key"), read("loose/id"), read("loose-key")],
}))
"""

SAMPLER = r"""
import os, select, sys
needle, hits, sessions = sys.argv[1].encode()[::-1], set(), 0
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
            if needle in line:
                hits.add(line)
print(sessions, *hits, sep="\n")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A person's machine with a canary wherever an agent must not look, and what an agent found there."""

    target: Target
    canary: str
    key: str
    planted: tuple[Path, ...]
    listeners: dict[str, Ear]
    sampled: str
    attack: Attack
    seen: dict[str, Any]


@pytest.fixture(scope="session")
def world(person, mode) -> Iterator[World]:
    """Plant, attack once, and clear up."""
    needle, key = canary(), f"sk-ant-{canary()}"
    repository = person.repository(f"hostile-world-{mode}")
    options = ("--agent", "claude")
    target = Target(person=person, mode=mode, repository=repository, session="world", options=options)
    with contextlib.ExitStack() as stack:
        planted = _plant(target, needle, stack)
        listeners = _listen(target, stack)
        environ = {
            "ANTHROPIC_API_KEY": key,
            # Named by the user, so a loopback address is allowed; nobody listens there.
            "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
            "PATH": f"{person.home}/tokens/bin:{person.environment()['PATH']}",
            **{name: needle for name in ("GH_TOKEN", "GITHUB_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
               "AWS_SESSION_TOKEN", "NPM_TOKEN", "OPENAI_API_KEY", "DATABASE_URL", "CLAUDE_CODE_CLIENT_KEY_PASSPHRASE")},
            "SSH_AUTH_SOCK": str(listeners["ssh"].address), "GPG_AGENT_INFO": f"{needle}:0:1",
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={listeners['bus'].address}", "DISPLAY": ":77",
            "WAYLAND_DISPLAY": "wayland-0", "XAUTHORITY": needle, "TMUX": f"{listeners['tmux'].address},1,0",
            "XDG_RUNTIME_DIR": f"{person.home}/run", "DOCKER_HOST": f"unix://{listeners['docker'].address}",
            "CONTAINER_HOST": f"unix://{listeners['podman'].address}", "GNOME_KEYRING_CONTROL": needle,
        }  # fmt: skip
        addresses = [_spelled(ear.address) for ear in listeners.values()]
        arguments = (needle[:9], needle[9:], __import__("json").dumps(addresses))
        with _sampling(needle, key) as sampled:
            attack = target.python(SEARCH, *arguments, env=environ, finish="keep")
        yield World(
            target=target, canary=needle, key=key, planted=planted, listeners=listeners,
            sampled=sampled[0], attack=attack, seen=attack.evidence,
        )  # fmt: skip
