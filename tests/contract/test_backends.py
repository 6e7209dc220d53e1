"""What a session is, whatever holds it: every backend passes the same tests."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import random
import re
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import sweep
from tests.support.homecoming import files_in, files_of, session_key, workspace
from tests.support.hostile import DEADLINE, Target
from tests.support.leftovers import descendants, started, traces, wait_until
from tests.support.messages_api import MessagesApi, text
from tests.support.person import Outcome
from tests.support.repostate import assert_only_new_branch, snapshot
from tests.support.terminals import Seat

pytestmark = [pytest.mark.root, pytest.mark.timeout(180, func_only=True)]


@pytest.fixture(scope="module", autouse=True)
def no_workers_left(person) -> Iterator[None]:
    """Give the machine its accounts back after the module."""
    yield
    sweep.remove_workers(person.uid)


def run(target: Target, script: str, *options: str, finish: str = "discard", **more: Any) -> Outcome:
    """Run a shell script as the agent, as people do: without JSON, without marks."""
    argv = ["--mode", target.mode, *target.options, "--on-finish", finish, *options, "--", "sh", "-c", script]
    env = {**target.environ, **more.pop("env", {})}
    return target.person.clsecure(*argv, cwd=target.repository, env=env, **more)


def command(target: Target, *words: str) -> Outcome:
    """Run another command of clsecure's on the target's one session."""
    return target.person.clsecure(*words, cwd=target.repository, env=target.environ)


# ---------------------------------------------------------------- status and streams


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137)])
def test_the_status_is_the_agents(contract, script, status):
    assert run(contract, script).returncode == status


def test_streams_pass_apart_and_byte_for_byte(contract):
    data, errors = random.Random(1).randbytes(3 << 20), bytes(range(256)) * 4
    script = "printf '%s' \"$1\" | base64 -d >&2"
    quoted = shlex.join(["sh", "-c", script, "sh", base64.b64encode(errors).decode()])
    done = run(contract, f"cat; {quoted}; exit 3", input=data)
    assert done.returncode == 3
    assert done.stdout == data
    assert errors in done.stderr
    assert b"runs isolated" in done.stderr


def test_without_input_there_is_an_end_at_once(contract):
    assert run(contract, "wc -c; test -t 0 || echo none").text.split() == ["0", "none"]


TERMINAL = r"""
import fcntl, os, signal, struct, sys, termios, tty
def size():
    return struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))[:2]
signal.signal(signal.SIGWINCH, lambda *_: print("resized", *size(), flush=True))
print("size", *size(), [os.isatty(fd) for fd in (0, 1, 2)], flush=True)
print("line", repr(input()), flush=True)
before = termios.tcgetattr(0)
tty.setraw(0)
print("raw", end="", flush=True)
data = b""
while len(data) < 6:
    data += os.read(0, 6)
termios.tcsetattr(0, termios.TCSANOW, before)
try:
    print("", "bytes", data.hex(), flush=True)
    signal.pause()
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(9)
"""


def test_a_terminal_is_a_whole_one(contract):
    agent = ["python3", "-I", "-c", TERMINAL]
    argv = ["--mode", contract.mode, *contract.options, "--on-finish", "discard", "--", *agent]
    person = contract.person
    with Seat(
        person, person.clsecure_argv(*argv), cwd=contract.repository, env=contract.environ, size=(33, 101)
    ) as seat:
        seat.expect(r"size 33 101 \[True, True, True\]")
        seat.child.setwinsize(40, 120)
        seat.expect("resized 40 120")
        seat.child.sendline(b"a line")
        seat.expect("line 'a line'")
        seat.expect("raw")
        # Nobody on the way keeps Ctrl-C, Ctrl-D, Ctrl-Z, Ctrl-P Ctrl-Q (docker's way out) or Ctrl-].
        seat.child.send(b"\x03\x04\x1a\x10\x11\x1d")
        seat.expect("bytes 03041a10111d")
        seat.child.sendintr()
        seat.expect("interrupted")
        assert seat.end() == 9


# ---------------------------------------------------------------- surroundings


def test_the_environment_and_the_place_are_exactly_the_plans(own):
    """Nothing of the person's, of the engine's or of the image's is among it."""
    script = "import json, os; print(json.dumps([dict(os.environ), os.getcwd(), os.listdir('/home')]))"
    env = {"SECRET_OF_MINE": "x", "container": "mine", "LC_TIME": "de_DE.UTF-8"}
    done = run(own, f"exec python3 -I -c {shlex.quote(script)}", finish="keep", env=env)
    seen, place, homes = json.loads(done.check().stdout)
    account = own.account()
    home, name = str(account["home"]), str(account["name"])
    assert homes == [name]
    assert place == f"{home}/{own.repository.name}"
    assert seen.pop("PWD") == place  # the shell's
    session = seen.pop("CLSECURE_SESSION")
    path = seen.pop("PATH").split(":")
    assert session == "default" or own.repository.name in session
    assert path[0] == "/opt/clsecure/bin"
    assert {"/usr/bin", "/bin"} <= set(path)
    # Where the worker is called 0, agents that won't work as root are told.
    assert seen.pop("IS_SANDBOX", None) == ("1" if own.number_inside == "0" else None)
    # Where programs keep their caches, and the like: below the home.
    assert not [key for key, value in seen.items() if str(own.person.home) in value]
    assert {"SECRET_OF_MINE", "container", "HOSTNAME", "TERM", "DOCKER_HOST"}.isdisjoint(seen)
    expected = {
        "HOME": home, "USER": name, "LOGNAME": name, "SHELL": "/bin/bash", "TMPDIR": "/tmp", "CLSECURE": "1",
        "LANG": "C.UTF-8", "LC_TIME": "de_DE.UTF-8", "XDG_CONFIG_HOME": f"{home}/.config",
        "XDG_DATA_HOME": f"{home}/.local/share", "XDG_STATE_HOME": f"{home}/.local/state",
        "XDG_CACHE_HOME": f"{home}/.cache",
    }  # fmt: skip
    assert seen == expected


def test_a_resumed_session_has_its_workspace_and_home_and_nothing_else(own):
    places = "/tmp /var/tmp /run /dev/shm"
    plant = f"""
    echo mine >work.txt; echo mine >~/notes
    for place in {places}; do echo mine >$place/left 2>/dev/null && echo wrote $place; done
    """
    first = own.attack(plant, finish="keep")
    assert {"/tmp", "/var/tmp", "/dev/shm"} <= set(first.said.split())
    look = f"cat work.txt ~/notes; for p in {places}; do test ! -e $p/left || echo left in $p; done"
    second = own.attack(look, "--resume")
    assert second.said.split() == ["mine", "mine"]
    third = own.attack(look)
    assert third.said.count("No such file") == 2
    assert "mine" not in third.said


def test_mounts_are_there_as_they_were_said(contract):
    person, place = contract.person, contract.person.home / f"given-{contract.repository.name}"
    for name in ("read", "write"):
        person.run(["mkdir", "-p", str(place / name)]).check()
        person.write(place / name / "file", name.encode())
    person.run(["chmod", "777", str(place / "write")]).check()
    script = """
    cat /mnt/read/file /mnt/write/file; echo
    echo more 2>/dev/null >/mnt/read/new || echo refused
    chmod 777 /mnt/read/file 2>/dev/null || echo refused
    echo more >/mnt/write/new && echo written
    """
    given = ("--mount", f"{place}/read:/mnt/read", "--mount", f"{place}/write:/mnt/write:rw")
    assert contract.attack(script, *given).said.split() == ["readwrite", "refused", "refused", "written"]
    assert (place / "write" / "new").read_text() == "more\n"
    assert [path.name for path in (place / "read").iterdir()] == ["file"]


# ---------------------------------------------------------------- network


REACH = r"""
import errno, json, os, socket, urllib.request
def tried(family, address):
    with socket.socket(family) as probe:
        probe.settimeout(10)
        return errno.errorcode.get(probe.connect_ex(address), "connected")
print(json.dumps({
    "interfaces": [name for _, name in socket.if_nameindex()],
    "out": [tried(socket.AF_INET, ("1.1.1.1", 80)), tried(socket.AF_INET6, ("2606:4700::1111", 80))],
    "gateway": os.environ.get("ANTHROPIC_BASE_URL"),
}))
"""
ASK = r"""
import json, os, urllib.request
url = os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages"
headers = {"content-type": "application/json", "anthropic-version": "2023-06-01",
           "authorization": "Bearer " + os.environ["ANTHROPIC_AUTH_TOKEN"]}
body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"name": "Bash", "description": "Run", "input_schema": {"type": "object"}}]}
request = urllib.request.Request(url, json.dumps(body).encode(), headers)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
print(json.load(opener.open(request, timeout=30))["content"][0]["text"])
"""


def test_without_network_there_is_loopback_and_nothing_on_it(contract):
    seen = contract.attack(["python3", "-I", "-c", REACH]).evidence
    assert (seen["interfaces"], seen["gateway"]) == (["lo"], None)
    # Or no address to come from: docker switches IPv6 off altogether.
    assert set(seen["out"]) <= {"ENETUNREACH", "EADDRNOTAVAIL"}


def test_the_gateway_is_reached_and_the_key_stays_outside(contract):
    # The agent by default, and its network.
    left_out = ("--agent", "demo", "--no-network")
    options = tuple(word for word in contract.options if word not in left_out)
    target = dataclasses.replace(contract, options=options)
    with MessagesApi([[text("it is me")]]) as api:
        env = {"ANTHROPIC_API_KEY": "sk-ant-of-the-person", "ANTHROPIC_BASE_URL": api.url}
        attack = target.attack(["python3", "-I", "-c", ASK], env=env)
        assert attack.said.strip() == "it is me"
        assert {request.headers.get("x-api-key") for request in api.messages()} == {"sk-ant-of-the-person"}


# ---------------------------------------------------------------- limits


FORKS = r"""
import os, time
count = 0
while count < 500:
    try:
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
    except OSError:
        break
    count += 1
print(count)
"""


def test_limits_hold_as_the_result_says(contract):
    attack = contract.attack(
        f"python3 -I -c {shlex.quote(FORKS)}; ulimit -n", "--limit", "pids=90,open_files=200,memory=200M"
    )
    held = {name: limit["enforced_by"] for name, limit in attack.result["limits"].items()}
    assert held.keys() == {"pids", "open_files", "memory"}
    assert None not in held.values(), held
    forks, files = map(int, attack.said.split()[-2:])
    assert 20 < forks < 90
    assert files == 200
    eat = "python3 -I -c 'print(len(bytearray(500 << 20)))'"
    over = run(contract, f"{eat}; echo and $?", "--limit", "memory=200M")
    assert "524288000" not in over.text


def test_a_time_limit_ends_it(contract):
    began = time.monotonic()
    done = run(contract, "trap '' TERM INT HUP; echo begun; while :; do sleep 1; done", "--time-limit", "2s")
    assert done.returncode == 124
    assert done.text == "begun\n"
    assert time.monotonic() - began < 30


# ---------------------------------------------------------------- the way home


TREE = r"""
import os, random
names = [b"plain", b"with space", b"-dash", b"\xff\xfe", "\u00fc\u200b".encode(), b"new\nline", b"tab\t",
         b"x" * 255, b":(glob)*", b"$(id)", b"deep/er/and/deeper/file"]
for number, name in enumerate(names):
    os.makedirs(os.path.dirname(name) or b".", exist_ok=True)
    with open(name, "wb") as file:
        file.write(random.Random(number).randbytes(number * 1000))
    os.chmod(name, 0o755 if number % 2 else 0o600)
os.symlink(b"plain", b"link")
os.symlink(b"../../outside/\xff", b"dangling")
os.symlink(b"deep", b"to-directory")
with open("crlf.txt", "wb") as file:
    file.write(b"a\r\nb\r\n\0")
open("empty", "w").close()
os.unlink("README.md")
os.chmod("src/run.sh", 0o644)
os.rename("src/main.py", "src/moved.py")
"""


def test_the_work_comes_home_byte_for_byte(own):
    person, repository = own.person, own.repository
    before = snapshot(repository)
    script = f"python3 -I -c {shlex.quote(TREE)} && git add deep && git commit -qm 'A part of it'"
    attack = own.attack(script, finish="import")
    assert attack.status == 0, attack.said
    branch = attack.outcome.check().json()["import"]["branch"]
    inside = files_of(workspace(own))
    assert len(inside) > 15
    assert files_in(person, repository, branch) == inside
    assert attack.result["import"]["commits"] == 1
    assert attack.result["import"]["uncommitted_commit"] is not None
    assert_only_new_branch(before, snapshot(repository), branch)


def test_a_kept_session_is_looked_at_brought_home_and_removed(own):
    own.attack("echo more >>README.md; echo new >new.txt", finish="keep").outcome.check()
    key = session_key(own)
    assert "+more" in command(own, "diff", key).check().text
    done = command(own, "import", key, "--branch", "mine", "--output", "json").check().json()
    assert done["import"]["branch"] == "mine"
    assert own.person.git(own.repository, "show", "mine:new.txt") == "new"
    account = own.account()
    command(own, "cleanup", key, "--yes").check()
    assert not Path(str(account["home"])).exists()
    assert not [e for e in own.person.worker_accounts() if e["name"] == account["name"]]


# ---------------------------------------------------------------- ends


def containers_of(target: Target) -> list[str]:
    """Return what the person's docker has; a session's podman is gone with its processes."""
    if "DOCKER_HOST" not in target.environ:
        return []
    import docker

    with contextlib.closing(docker.DockerClient(base_url=target.environ["DOCKER_HOST"])) as client:
        return [container.name for container in client.containers.list(all=True)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_killed_it_leaves_nothing_but_the_work(own, number):
    """Processes that would not go, namespaces, sockets, control groups, containers, places in /run."""
    script = """
    trap '' TERM INT HUP
    echo precious >work.txt; git add work.txt; git commit -qm Work; echo loose >loose.txt
    setsid sh -c 'trap "" TERM HUP INT; while :; do sleep 1; done' >/dev/null 2>&1 &
    echo ready
    read _
    """
    with own.live(script, finish="keep") as agent:
        agent.wait_for("ready")
        account = own.account()
        seen = traces(agent.process.pid, worker=str(account["name"]), uid=int(account["uid"]))
        assert len(agent.inside()) >= 2
        assert containers_of(own) in ([], [account["name"]])
        place = Path("/run/clsecure", str(account["name"]))
        assert place.exists() == (own.mode == "container")
        agent.process.send_signal(number)
        agent.process.wait(DEADLINE)
        seen.assert_gone()
        wait_until(lambda: not place.exists(), f"{place} is gone", 10)
    # docker takes the dead container away by itself.
    wait_until(lambda: not containers_of(own), "no container is left", 20)
    key = session_key(own)
    done = command(own, "import", key, "--output", "json").check().json()
    branch = done["import"]["branch"]
    shown = [own.person.git(own.repository, "show", f"{branch}:{n}.txt") for n in ("work", "loose")]
    assert shown == ["precious", "loose"]


def test_what_root_left_running_ends_with_the_next_start(own, backend):
    """Root kills helper and command line at once: nobody is left who could end anything."""
    with own.live("setsid sleep 1000 & echo ready; read _; sleep 1000", finish="keep") as agent:
        agent.wait_for("ready")
        uid = int(own.account()["uid"])
        before = {(pid, started(pid)) for pid in agent.processes()}
        helper = next(pid for pid in descendants(agent.process.pid) if is_helper(pid))
        agent.process.send_signal(signal.SIGSTOP)
        os.kill(helper, signal.SIGKILL)
        agent.process.kill()
    if backend in ("user", "podman"):
        # Of these, every process hangs on the helper.
        wait_until(lambda: not sweep.processes_of(uid), "nothing runs", 10)
    again = own.attack("true", "--resume")
    assert again.outcome.returncode == 0
    assert not {(pid, when) for pid, when in before if started(pid) == when}
    assert sweep.processes_of(uid) == []
    wait_until(lambda: not containers_of(own), "no container is left", 20)


def is_helper(pid: int) -> bool:
    """Whether a process is the root helper."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return words[0].endswith(b"python3") and any(word.endswith(b"/helper") for word in words)


@pytest.mark.parametrize("moment", ["account_leased", "agent_ended"])
def test_killed_at_any_moment_it_goes_on_from_there(own, moment):
    """The command line dies before the agent ran, or before its work was looked at."""
    process = own.person.spawn(
        own.argv(["/bin/sh", "-c", "echo precious >work.txt"], finish="import"),
        cwd=own.repository, env=own.environ,
        stdin=-3, stdout=-3, stderr=-3,
    )  # fmt: skip
    states = own.person.home / ".local/state/clsecure/sessions"
    project = re.escape(str(own.repository))

    def happened() -> bool:
        for log in states.glob("*/events.jsonl"):
            state = log.with_name("session.json")
            if state.exists() and re.search(project + '"', state.read_text()):
                return f'"{moment}"' in log.read_text()
        return process.poll() is not None

    try:
        wait_until(happened, moment)
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not sweep.processes_of(int(own.account()["uid"])), "nothing runs", 20)
    wait_until(lambda: not containers_of(own), "no container is left", 20)
    how = "--fresh" if moment == "account_leased" else "--resume"
    again = own.attack("echo more >>work.txt; cat work.txt", how, finish="import")
    assert again.said.split()[-1] == "more"
    assert ("precious" in again.said) == (moment == "agent_ended")
    branch = again.result["import"]["branch"]
    assert own.person.git(own.repository, "show", f"{branch}:work.txt").endswith("more")
