"""A: files and credentials. One session per mode gathers what can be seen; each test judges a part of it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.hostile import DEADLINE, Attack, Ear, Target, canary, files_containing, quoted, sampling
from tests.support.repostate import assert_only_new_branch, snapshot

pytestmark = pytest.mark.root

# What docs/agents.md says of the environment inside; the names that the user's terminal may add are not here
# since the person of these tests has set TERM and LANG only, and the session has no terminal.
DOCUMENTED = {
    "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL", "CLAUDE_CODE_IDE_SKIP_AUTO_INSTALL", "CLSECURE",
    "CLSECURE_POLICY_URL", "CLSECURE_SESSION", "DISABLE_AUTOUPDATER", "DISABLE_INSTALLATION_CHECKS",
    "GIT_HTTP_PROXY_AUTHMETHOD", "HOME", "HTTPS_PROXY", "HTTP_PROXY", "LANG", "LOGNAME", "NODE_USE_ENV_PROXY",
    "NO_PROXY", "PATH", "SHELL", "TMPDIR", "USER", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME",
    "XDG_STATE_HOME", "http_proxy", "https_proxy", "no_proxy",
}  # fmt: skip

# Run by python3 inside. The needle comes in two parts, so that no argument vector holds it.
SEARCH = r"""
import json, os, socket, stat, subprocess, sys, urllib.parse, urllib.request
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
for address in [*json.loads(sys.argv[5]), *sockets]:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_UNIX, kind) as probe:
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
    "policy": urllib.request.build_opener(urllib.request.ProxyHandler({})).open(urllib.request.Request(
        "http://127.0.0.1:%d/.clsecure/policy" % urllib.parse.urlsplit(os.environ["HTTPS_PROXY"]).port,
        headers={"authorization": "Bearer " + urllib.parse.urlsplit(os.environ["HTTPS_PROXY"]).password},
    ), timeout=20).read().decode(),
    "loot": [read("loot/id"), read("key"), read("loose/id"), read("loose-key")],
}))
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
        options=("--agent", "claude", "--verbose", "--allow-preset=npm,pip,docker,git-remote"),
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
            "HTTPS_PROXY": f"http://person:{needle}@127.0.0.1:9",
            "http_proxy": f"http://person:{needle}@127.0.0.1:9",
        }
        sockets = [_spelled(ear.address) for ear in listeners.values()]
        sockets += [
            "/run/docker.sock",
            "/var/run/docker.sock",
            "/run/podman/podman.sock",
            "/run/dbus/system_bus_socket",
        ]
        halves = (needle[:3], needle[3:], present[:3], present[3:])
        with sampling(needle, key, key[:20]) as sampled:
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
    opened = f"https://person:{needle}@registry.example.org/"
    others = {
        "tokens/id": secret,
        "tokens/deep/er/note": secret,
        ".netrc": secret,
        # What the presets read: their hosts go in, and nothing that opens them.
        ".npmrc": f"registry={opened}\n//registry.example.org/:_authToken={needle}\n".encode(),
        ".pip/pip.conf": f"[global]\nindex-url = {opened}simple\n".encode(),
        ".docker/config.json": json.dumps({"auths": {"registry.example.org": {"auth": needle}}}).encode(),
    }
    for name, content in {**claude, **others}.items():
        person.run(["mkdir", "-p", str((home / name).parent)]).check()
        person.write(home / name, content)
    gh = f"#!/bin/sh\necho {needle}\ntouch {home}/tokens/gh-ran\n".encode()
    person.run(["mkdir", "-p", str(home / "tokens/bin")]).check()
    person.write(home / "tokens/bin/gh", gh, mode=0o755)
    for name in (".claude", "tokens", ".pip", ".docker"):
        stack.callback(shutil.rmtree, home / name)
    for name in (".claude.json", ".netrc", ".npmrc"):
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
    # The certificates are those of the machine's own configuration, where it names some.
    presets = {
        "NPM_CONFIG_REGISTRY", "NPM_CONFIG_CAFILE", "PIP_INDEX_URL", "PIP_CERT", "UV_DEFAULT_INDEX",
    }  # fmt: skip
    if world.target.mode == "container":
        presets.add("IS_SANDBOX")  # uid 0 inside, and no root
    assert set(environment) - {"OLDPWD", "PWD", "SHLVL", "_"} - presets <= DOCUMENTED
    assert environment["ANTHROPIC_AUTH_TOKEN"] not in ("", world.key)
    everything = json.dumps([environment, world.seen["environments"]])
    assert world.canary not in everything
    assert world.key not in everything
    assert not (world.target.person.home / "tokens/gh-ran").exists()


def test_a3_what_opens_the_users_registries(world):
    """Presets tell the tools inside where the registries are, without user, password or token."""
    environment = world.seen["environment"]
    assert environment["NPM_CONFIG_REGISTRY"] == "https://registry.example.org/"
    assert environment["PIP_INDEX_URL"] == "https://registry.example.org/simple"
    policy = world.seen["policy"]
    assert "registry.example.org" in policy
    assert world.canary not in policy


def test_a4_secrets_in_argument_vectors_and_logs(world):
    """Another user watches all argument vectors; then all logs, and what --verbose says, are searched."""
    assert world.sampled == []
    home = world.target.person.home
    log_places = (
        home / ".local",
        home / ".cache",
        home / ".config",
        # Not the agents there: copies of programs, hundreds of MiB each.
        *(place for place in Path("/var/lib/clsecure").iterdir() if place.name != "agents"),
        Path("/var/log"),
    )
    logged = home / ".local/state/clsecure"
    assert files_containing(logged, '"event": "checked"'), "there is no log to be searched"
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
    assert world.seen["sockets"] == world.target.own_sockets
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


def test_a4_the_plan(world):
    """A dry run and the settings are printed with a key in the environment."""
    environ = {"ANTHROPIC_API_KEY": world.key}
    done = world.target.person.clsecure(
        "--dry-run", "--verbose", "--output", "json", cwd=world.target.repository, env=environ
    )
    assert done.check().json()["project"] == str(world.target.repository)
    assert world.key[:14] not in done.text + done.errors


def test_a4_the_settings(world):
    """A key lies in the settings file, another in the environment; the settings are printed, and logged."""
    person, key = world.target.person, f"sk-kimi-{canary()}"
    place = person.home / ".config" / "clsecure"
    person.run(["mkdir", "-p", str(place)]).check()
    person.write(place / "config", f"kimi_api_key = {key}\n".encode(), mode=0o600)
    try:
        for extra in ({}, {"CLSECURE_KIMI_API_KEY": f"sk-other-{key}"}):
            for output in ("human", "json"):
                done = person.clsecure(
                    "--config", "--verbose", "--output", output, cwd=world.target.repository,
                    env={"ANTHROPIC_API_KEY": world.key, **extra},
                )  # fmt: skip
                assert done.check().text.count("********") == 1
                for needle in (key, key[:8], key[-8:], world.key[:14], "sk-other"):
                    assert needle not in done.text + done.errors
    finally:
        person.run(["rm", "-rf", str(place)]).check()
    for needle in (key, world.key):
        assert files_containing(person.home / ".local", needle) == []


def test_a8_inherited_descriptors(target, tmp_path):
    """The tool is started with a secret file as descriptor 7 and root's home as descriptor 8."""
    (tmp_path / "secret").write_text("secret")
    with contextlib.ExitStack() as stack:
        given = []
        for path in (tmp_path / "secret", Path("/root")):
            given.append(os.open(path, os.O_RDONLY))
            stack.callback(os.close, given[-1])
        hand_on = (
            f"import os, sys; secret, root = os.dup({given[0]}), os.dup({given[1]});"
            "os.dup2(secret, 7); os.dup2(root, 8); os.execvp(sys.argv[1], sys.argv[1:])"
        )

        def started(argv: list[str]) -> tuple[int, str]:
            with target.person.spawn(
                ["/usr/bin/python3", "-I", "-c", hand_on, *argv], cwd=target.repository, pass_fds=given,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            ) as process:  # fmt: skip
                said, _ = process.communicate(timeout=DEADLINE)
            return process.returncode, said.decode()

        script = "ls -l /proc/$$/fd; exit 9"
        _, control = started(["/bin/sh", "-c", script])
        assert f"7 -> {tmp_path}/secret" in control, "the descriptor is not inherited at all"
        status, said = started(target.argv(["/bin/sh", "-c", script]))
        assert status == 9, said
        listed = dict(re.findall(r" (\d+) -> (.*)", said))
        assert set(listed) == {"0", "1", "2"}
        assert all(leads.startswith("pipe:") for leads in listed.values())


def test_a8_working_directory_behind_a_descriptor(target):
    """The tool is started in a directory that the user could never have entered: a descriptor leads there."""
    closed = Path("/root", f"clsecure-test-{secrets.token_hex(4)}")
    repository = target.person.repository(f"closed-{target.mode}")
    shutil.move(repository, closed)
    try:
        fd = os.open(closed, os.O_RDONLY | os.O_DIRECTORY)
        try:
            script = f"cd /proc/self/fd/{fd} && exec {shlex.join(target.argv(['echo', 'run']))}"
            with target.person.spawn(
                ["/bin/sh", "-c", script], pass_fds=(fd,), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as process:
                stdout, stderr = process.communicate(timeout=DEADLINE)
        finally:
            os.close(fd)
    finally:
        shutil.rmtree(closed)
    assert b"cd:" not in stderr, "the directory could not be entered in the first place"
    assert process.returncode == 125, stderr
    assert json.loads(stdout)["error"]["brief"]
    assert b"\nrun\n" not in stderr


PLANT_KEY = r"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
add_key, keyctl = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
assert libc.syscall(keyctl, 1, b"_person") > 0, "no session keyring"
assert libc.syscall(add_key, b"user", sys.argv[1].encode(), b"secret", 6, -3) > 0, "no key"
assert sys.argv[1] in open("/proc/keys").read(), "the key is not there to be found"
os.execvp(sys.argv[2], sys.argv[2:])
"""


def test_a9_the_session_keyring(target):
    """A key of the user's in the kernel's session keyring is looked for in /proc/keys, and asked for."""
    name = f"clsecure-test-{secrets.token_hex(6)}"
    argv = target.argv(["/bin/sh", "-c", "cat /proc/keys && echo listed; ls -l /proc/keys"])
    planted = target.person.run(
        ["/usr/bin/python3", "-I", "-c", PLANT_KEY, name, *argv], cwd=target.repository
    ).check()
    assert "\nlisted\n" in planted.errors
    assert name not in planted.errors


def test_a11_another_session(target):
    """Two sessions of the same person: one looks for the other's home and what is in it."""
    other = dataclasses.replace(target, session="other")
    word = canary()
    other.attack(f"echo {word} >mine; chmod -R a+rwX $HOME", finish="keep")
    home = Path(other.account()["home"])
    assert word in (home / other.repository.name / "mine").read_text()
    script = f"cat /proc/self/uid_map; echo; ls {home}; cat {home}/{other.repository.name}/mine; ls /home"
    seen = target.attack(script)
    # Its number inside is what the map of its user namespace makes of the worker's: 0 in a container.
    maps = [[int(word) for word in line.split()] for line in seen.said.partition("\n\n")[0].splitlines()]
    uid = target.account()["uid"]
    assert [line for line in maps if line[1] <= uid < line[1] + line[2]]
    assert not [line for line in maps if line[1] <= other.account()["uid"] < line[1] + line[2] < 2**31]
    assert word not in seen.said
    assert seen.said.count("No such file or directory") == 2
    # And without the view, by permissions alone, as the other worker on the host itself.
    home.chmod(0o700)
    uid = target.account()["uid"]
    done = subprocess.run(["ls", home], user=uid, group=uid, extra_groups=[], capture_output=True, text=True)
    assert "Permission denied" in done.stderr


LOOK = r"""
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
def attempts(pid):
    buffer = ctypes.create_string_buffer(64)
    near, far = Vector(ctypes.addressof(buffer), 64), Vector(int(sys.argv[1]), 64)
    vectors, results = (ctypes.byref(near), 1, ctypes.byref(far), 1), {}
    for what, call in {
        "ptrace": lambda: libc.ptrace(16, pid, 0, 0),
        "process_vm_readv": lambda: libc.process_vm_readv(pid, *vectors, 0),
        "kill": lambda: os.kill(pid, 0),
        "environ": lambda: open(f"/proc/{pid}/environ", "rb").read(),
        "mem": lambda: open(f"/proc/{pid}/mem", "rb"),
        "cwd": lambda: os.readlink(f"/proc/{pid}/cwd"),
        "fd": lambda: os.listdir(f"/proc/{pid}/fd"),
    }.items():
        try:
            result = call()
            results[what] = ctypes.get_errno() if result == -1 else 0
        except OSError as error:
            results[what] = error.errno
    return results
pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
print(json.dumps({"pids": pids, "attempts": attempts(int(sys.argv[2]))}))
"""


def test_a12_another_sessions_processes(target):
    """ptrace, process_vm_readv, signals and /proc of another session's process, inside and on the host."""
    other = dataclasses.replace(target, session="victim")
    with other.live("echo ready; read _") as victim:
        victim.wait_for("ready")
        pids = victim.processes()
        seen = target.python(LOOK, "4096", str(pids[-1])).evidence
        assert 0 < len(seen["pids"]) < 10, "more than the own processes are to be seen"
        assert set(seen["attempts"].values()) <= {errno.ENOENT, errno.ESRCH, errno.EPERM, errno.EACCES}
        # The same on the host, where the numbers are right and only the uid is in the way.
        uid, denied = target.account()["uid"], set[int]()
        for pid in pids:
            done = subprocess.run(
                ["/usr/bin/python3", "-I", "-c", LOOK, "4096", str(pid)],
                user=uid, group=uid, extra_groups=[], capture_output=True, text=True, check=True,
            )  # fmt: skip
            denied |= set(json.loads(done.stdout)["attempts"].values())
        # A process of the way in may have ended meanwhile.
        assert {errno.EPERM, errno.EACCES} <= denied
        assert denied <= {errno.EPERM, errno.EACCES, errno.ESRCH, errno.ENOENT}


def test_a13_links_made_later(target):
    """The agent makes links to the user's keys, to /etc/shadow and to sockets: they come home as links."""
    word, home = canary(), target.person.home
    person = target.person
    person.run(["mkdir", "-p", str(home / "keys")]).check()
    person.write(home / "keys/id", word.encode())
    links = {"later": home / "keys", "later-key": home / "keys/id", "sub/up": Path("../../../keys/id")}
    links |= {"shadow": Path("/etc/shadow"), "self": Path("/proc/self/environ")}
    script = "mkdir sub; " + "; ".join(quoted("ln", "-s", leads, name) for name, leads in links.items())
    before = snapshot(target.repository)
    attack = target.attack(f"{script}; git add later sub && git commit -qm links", finish="import")
    branch = attack.result["import"]["branch"]
    assert_only_new_branch(before, snapshot(target.repository), branch)
    every = person.run(["git", "cat-file", "--batch-all-objects", "--batch"], cwd=target.repository).check()
    assert word not in every.text
    for name, leads in links.items():
        entry = person.git(target.repository, "ls-tree", branch, name)
        assert entry.startswith("120000 blob"), entry
        assert person.git(target.repository, "cat-file", "blob", f"{branch}:{name}") == str(leads)
    kinds = {finding["path"]: finding["kind"] for finding in attack.result["import"]["findings"]}
    assert set(links) <= set(kinds), "links that leave the tree are named"


def test_a1_accounts_that_are_made_meanwhile(target):
    """The machine's list of accounts is written anew while an agent runs: it still sees the tool's own."""
    name = target.person.name
    with target.live("cat /etc/passwd; echo ready; read _; cat /etc/passwd; echo ended") as agent:
        agent.wait_for("ready")
        change = ["usermod", "--comment", secrets.token_hex(4), name]
        subprocess.run(change, check=True, timeout=DEADLINE)
        agent.say("go on")
        agent.wait_for("ended")
        first, _, second = agent.said.decode().partition("ready\n")
        assert target.account()["name"] in second
        assert name not in second
        assert second.partition("ended")[0] in first
