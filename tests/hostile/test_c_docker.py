"""An agent with an engine of the session's own (``--allow-docker``): all that it gains is that engine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support import sweep
from tests.support.compose import BUILD, give_project
from tests.support.hostile import DEADLINE, Ear, Target, canary, processes_with
from tests.support.leftovers import mounts, traces, wait_until

pytestmark = pytest.mark.root

ENGINES = Path("/var/lib/clsecure/engines")
SOCKETS = Path("/run/clsecure")
RANGE = 65536

# Each command by itself, with what it said and how it ended; the evidence is one JSON document at the end.
TRY = r"""
import json, os, subprocess, sys
if subprocess.run(sys.argv[1], shell=True).returncode:
    sys.exit("the image was not built")
told = {}
for name, words in json.loads(sys.argv[2]).items():
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        told[name] = [done.returncode, done.stdout.decode(errors="replace")]
    except subprocess.TimeoutExpired:
        told[name] = [None, ""]
own = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
print(json.dumps({"told": told, "own": own}))
"""  # noqa: E501
EVERYTHING = ("--privileged", "--cap-add", "ALL", "--security-opt", "seccomp=unconfined")


def run(*words: str, image: str = "clsecure-web", shell: str) -> list[str]:
    # Not with --rm: podman 4.3 says that all of those ended well.
    return ["docker", "run", *words, image, "sh", "-c", shell]


def python(*words: str, source: str, arguments: tuple[str, ...] = ()) -> list[str]:
    """Python of this machine in a container: what the engine sees of it."""
    usr = [word for path in ("/usr", "/lib", "/lib64") for word in ("-v", f"{path}:{path}:ro")]
    command = ["clsecure-web", "/usr/bin/python3", "-I", "-S", "-c", source, *arguments]
    return ["docker", "run", *usr, *words, *command]


@pytest.fixture(scope="module")
def project(target: Target) -> Target:
    """The mode's repository with the project, and every session of it with an engine of its own."""
    give_project(target.person, target.repository)
    return dataclasses.replace(target, session="docker", options=(*target.options, "--allow-docker"))


@pytest.fixture
def mine(project: Target) -> Iterator[Target]:
    """A session of the test's own; whatever is left of it goes at the end."""
    made = dataclasses.replace(project, session="docker-own")
    yield made
    made.person.clsecure("cleanup", "docker-own", "--yes")


def attempts(target: Target, commands: dict[str, list[str]]) -> dict[str, tuple[int | None, str]]:
    """Run commands as the agent; return how each ended, by name, after a look at the agent's own process."""
    evidence = target.python(TRY, BUILD, json.dumps(commands), timeout=300).evidence
    own = evidence["own"]
    assert (own["NoNewPrivs"], int(own["CapEff"], 16), int(own["CapBnd"], 16)) == ("1", 0, 0)
    assert own["Seccomp"] == "2"
    return {name: (status, said) for name, (status, said) in evidence["told"].items()}


def assert_clean(target: Target) -> None:
    """Fail when anything of an engine is left: storage, sockets, processes, of the worker and its range."""
    account = target.account()
    assert not (ENGINES / account["name"]).exists()
    assert not (SOCKETS / account["name"]).exists()
    assert processes_of_range(account) == []
    assert not [line for line in mounts() if f"engines/{account['name']}" in line]


def processes_of_range(account: dict[str, object]) -> list[int]:
    """The processes of the machine that run as the worker or under a uid of its range."""
    first = int(str(account["range"]))
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, StopIteration):
            lines = (entry / "status").read_text().splitlines()
            uid = int(next(line for line in lines if line.startswith("Uid:")).split()[1])
            state = next(line for line in lines if line.startswith("State:"))
            if (uid == account["uid"] or first <= uid < first + RANGE) and "Z" not in state:
                found.append(int(entry.name))
    return found


# A hierarchy of version 1 may be mounted, of this group and what is below; all of it is root's.
_GROUPS = """
    mkdir /c && mount -t cgroup -o memory none /c || exit 3
    for f in release_agent notify_on_release cgroup.procs memory.limit_in_bytes; do
        echo 1 >/c/$f && echo wrote $f
    done
    mkdir /c/sub && echo wrote sub
    exit 4
"""


def test_privileged_containers_see_and_change_nothing_of_the_host(project):
    word, person = canary(), project.person
    places = [person.home / word, Path("/root") / word, Path("/srv") / word]
    person.write(places[0], word.encode())
    for place in places[1:]:
        place.write_text(word)
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    everything = ("-v", "/:/host", *EVERYTHING)
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.callback(place.unlink)
        stack.enter_context(subprocess.Popen(["/bin/sh", "-c", "read _", word], stdin=subprocess.PIPE))
        wait_until(lambda: processes_with(word), "the process to be found is there")
        told = attempts(
            project,
            {
                "control": run("-v", "/:/host", shell=f"echo {word} >/tmp/w; grep -rl {word} /tmp"),
                "files": run(
                    *everything,
                    shell=f"grep -rl {word} /host/home /host/root /host/srv /host/opt /host/tmp; :",
                ),
                "homes": run(*everything, shell="ls /host/home /host/root /host/run /host/var/lib"),
                "shadow": run(*everything, shell="cat /host/etc/shadow"),
                "usr": run(*everything, shell="touch /host/usr/bin/planted"),
                "processes": run("-v", "/proc:/p", *EVERYTHING, shell="cat /p/*/cmdline | tr '\\0' ' '"),
                "pid": run("--pid=host", *EVERYTHING, shell="cat /proc/*/cmdline | tr '\\0' ' '"),
                "first": run(
                    "-v", "/proc:/p", *EVERYTHING, shell="cat /p/1/environ /p/1/maps; ls /p/1/root/"
                ),
                "pattern": run("-v", "/proc:/p", *EVERYTHING, shell="echo '|/x' >/p/sys/kernel/core_pattern"),
                "helper": run(*EVERYTHING, shell="echo /x >/sys/kernel/uevent_helper"),
                "trigger": run("-v", "/proc:/p", *EVERYTHING, shell="echo w >/p/sysrq-trigger"),
                "device": run(*EVERYTHING, shell="mknod /disk b 254 0 || mknod /disk b 8 0"),
                "disks": run(*EVERYTHING, shell="find /dev -type b | grep ."),
                "release": run(*EVERYTHING, shell=_GROUPS),
                "groups": run(*EVERYTHING, shell="echo 1 >/sys/fs/cgroup/cgroup.procs"),
                "log": run(*EVERYTHING, shell="dmesg"),
                "module": run(*EVERYTHING, shell="echo x >/tmp/m.ko; insmod /tmp/m.ko"),
                "sockets": run(
                    *everything, shell="find /host -xdev -type s -o -path /host/proc -prune | grep sock"
                ),
                "bus": run(*everything, shell="ls /host/run/dbus /host/run/docker.sock /host/run/systemd"),
            },
        )
    assert told["control"] == (0, "/tmp/w\n")
    assert told["files"] == (0, "")
    assert set(told["homes"][1].split()) & {person.name, word, "docker"} == set()
    assert told["processes"][0] == 0
    assert "podman system service" in told["processes"][1]
    assert word not in told["processes"][1]
    assert Path("/proc/sys/kernel/core_pattern").read_text() == pattern
    assert not Path("/usr/bin/planted").exists()
    refused = ["shadow", "usr", "pid", "first", "pattern", "helper", "trigger", "device", "disks", "release"]
    for name in (*refused, "groups", "log", "module", "bus"):
        assert told[name][0] not in (0, None), (name, told[name])
    assert "wrote" not in told["release"][1]
    assert "docker.sock" not in told["sockets"][1].replace("/host/run/clsecure/docker.sock", "")
    assert_clean(project)


_FAMILIES = r"""
import ctypes, socket
found = []
for family in (17, 38, 40):
    try:
        socket.socket(family, socket.SOCK_DGRAM if family != 38 else socket.SOCK_SEQPACKET)
        found.append(family)
    except OSError:
        pass
libc = ctypes.CDLL(None, use_errno=True)
for number in (425, 321, 298, 250):
    libc.syscall(number, 0, 0, 0, 0, 0)
    if ctypes.get_errno() != 38:
        found.append(number)
print("reached", found)
"""


def test_containers_have_a_filter_whatever_they_ask_for(project):
    """vsock is in no network namespace; io_uring, bpf, perf and keys are what exploits begin with. B1, C4."""
    if os.uname().machine != "x86_64":
        pytest.skip("left out: the numbers are those of x86_64")
    told = attempts(
        project,
        {
            "calls": python(*EVERYTHING, source=_FAMILIES),
            "status": run(*EVERYTHING, shell="grep -E 'Seccomp|NoNewPrivs' /proc/self/status"),
        },
    )
    assert told["calls"] == (0, "reached []\n")
    assert "Seccomp:\t2" in told["status"][1]
    assert "NoNewPrivs:\t1" in told["status"][1]


_KNOCK = r"""
import select, socket, sys, time
port, datagrams, name, *hosts = sys.argv[1:]
reached, knocking = [], {}
for host in hosts:
    one = socket.socket()
    one.setblocking(False)
    if one.connect_ex((host, int(port))) in (0, 115):
        knocking[one] = host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.sendto(b"knock", (host, int(datagrams)))
            one.sendto(b"\0\1\1\0\0\1\0\0\0\0\0\0\6canary\7example\0\0\1\0\1", (host, 53))
        except OSError:
            pass
# All at once: where there is a way that leads nowhere, nobody ever answers.
until = time.monotonic() + 3
while knocking and (left := until - time.monotonic()) > 0:
    for one in select.select([], [*knocking], [], left)[1]:
        host = knocking.pop(one)
        if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            reached.append(host)
with socket.socket(socket.AF_UNIX) as one:
    if one.connect_ex("\0" + name) == 0:
        reached.append(name)
print("reached", reached)
"""
_ROUTE = "ip route add default dev podman0 && ip route | grep -c default"


def test_containers_reach_no_network_of_the_host(project):
    """B1 to B5 for every container, with a server among them that the same words reach."""
    with contextlib.ExitStack() as stack:
        ears = [stack.enter_context(Ear(("0.0.0.0", 0))), stack.enter_context(Ear(("0.0.0.0", 0), kind=2))]
        name = f"clsecure-{canary()}"
        ears.append(stack.enter_context(Ear(f"\0{name}", family=socket.AF_UNIX)))
        hosts = [
            "127.0.0.1",
            "10.0.2.2",
            "172.17.0.1",
            "169.254.169.254",
            "169.254.1.2",
            "10.88.0.1",
            *_own(),
        ]
        doors = (str(ears[0].port), str(ears[1].port), name, *hosts)
        serve = "docker run -d --rm --name there -p 8099:80 clsecure-web >/dev/null"
        shared = ("--network=host", *EVERYTHING)
        told = attempts(
            project,
            {
                "serve": ["sh", "-c", serve],
                "control": python(
                    "--network=host", source=_KNOCK, arguments=("8099", "9", name, "127.0.0.1")
                ),
                "bridge": python(*EVERYTHING, source=_KNOCK, arguments=doors),
                "host": python(*shared, source=_KNOCK, arguments=doors),
                "links": run(*shared, shell="ip -o link | grep -vE ' (lo|podman[0-9]+|veth[^ ]*):? '"),
                "new route": run(*shared, shell=_ROUTE),
                "by it": python(*shared, source=_KNOCK, arguments=doors),
            },
        )
        assert told["control"] == (0, "reached ['127.0.0.1']\n")
        for name in ("bridge", "host", "by it"):
            assert told[name] == (0, "reached []\n"), told
        assert told["new route"] == (0, "1\n"), "the agent may do what it likes with its own network"
        for ear in ears:
            assert ear.heard == []
            ear.control()


def _own() -> list[str]:
    """The addresses of this machine that are no loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        return [probe.getsockname()[0]]
    return []


def test_set_user_id_programs_in_the_storage_are_out_of_reach(mine):
    """Of every other account of the machine; and those that run inside raise nobody out of the range."""
    script = f"""
        {BUILD} || exit 9
        docker run --name kept clsecure-web sh -c 'cp /bin/busybox /su && chmod 4755 /su && ls -ln /su'
        echo planted; read _
    """
    with mine.live(script) as agent:
        agent.wait_for("planted")
        place = ENGINES / mine.account()["name"]
        planted = [path for path in place.rglob("su") if path.stat().st_mode & 0o4000]
        assert planted, "root of the host sees the program"
        for uid in (65534, mine.person.uid):
            look = ["/bin/sh", "-c", f"ls {place}; {planted[0]} id; cat {planted[0]}"]
            done = subprocess.run(look, user=uid, group=uid, extra_groups=[], capture_output=True, timeout=60)
            assert done.returncode != 0
            assert done.stdout == b""
        agent.say("")
        agent.finish()
    assert_clean(mine)


DETACHED = f"""
    {BUILD} || exit 9
    docker run -d --restart=always --name a clsecure-web >/dev/null
    docker run -d --restart=always -u 999 clsecure-web sh -c 'trap "" TERM; while :; do sleep 1; done'
    docker network create n >/dev/null; docker run -d --network n -p 8088:80 clsecure-web
    docker volume create v; echo up; read _
"""


@pytest.mark.parametrize("how", ["exit", "SIGINT", "SIGKILL", "helper"])
def test_e1_e2_nothing_of_an_engine_survives(mine, how):
    with mine.live(DETACHED, finish="keep") as agent:
        agent.wait_for("up")
        account = mine.account()
        seen = traces(agent.process.pid, worker=account["name"], uid=account["uid"])
        assert len(processes_of_range(account)) > len(sweep.processes_of(int(account["uid"])))
        match how:
            case "exit":
                agent.say("")
                agent.finish()
            case "helper":
                os.kill(_helper(int(pid) for pid, _ in seen.processes), signal.SIGKILL)
            case _:
                os.killpg(agent.process.pid, signal.Signals[how])
        agent.process.wait(DEADLINE)
        wait_until(lambda: not processes_of_range(account), "no process of the range")
        if how == "helper":
            # Nobody was left to do it; the next who takes the account does.
            assert (ENGINES / account["name"]).exists()
        else:
            seen.assert_gone()
    mine.person.clsecure("cleanup", "docker-own", "--yes").check()
    assert not (ENGINES / account["name"]).exists()
    assert not (SOCKETS / account["name"]).exists()
    assert not [line for line in mounts() if f"engines/{account['name']}" in line]


def _helper(pids: Iterable[int]) -> int:
    """Return which of them is the helper itself, and none of its children or sudo."""
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in pids}
    ours = {
        pid for pid, words in lines.items() if words[0].endswith(b"python3") and b"helper" in b"".join(words)
    }
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in ours}
    (found,) = (pid for pid in ours if parents[pid] not in ours)
    return found


def test_a_workspace_that_became_a_link_is_not_shared(mine):
    """What an earlier session made of it must not lead the engine's root elsewhere."""
    swap = 'cd .. && mv "$OLDPWD" aside && ln -s /root "$OLDPWD" && ls -ld "$OLDPWD"'
    mine.attack(f"cd . && {swap}", finish="keep")
    outcome = mine.refused("--resume")
    assert_clean(mine)
    assert "docker" not in outcome.text


def test_c5_an_engine_is_not_there_in_the_next_session(project):
    project.attack(f"{BUILD} && docker images -q clsecure-web | grep .", finish="keep")
    options = tuple(word for word in project.options if word != "--allow-docker")
    plain = dataclasses.replace(project, options=options)
    look = "env | grep -E 'DOCKER|CONTAINER_HOST'; ls -la /run/clsecure /run/docker.sock; id -G; docker ps"
    said = plain.attack(f"{look}; :", "--resume").said
    assert "DOCKER" not in said
    assert "docker.sock" not in said.replace("cannot access '/run/docker.sock'", "").replace(
        "/var/run/docker.sock", ""
    )
    again = project.attack(f"docker images -q | wc -l; {BUILD}")
    assert again.said.split()[0] == "0", "the storage of the session before"


_BOMB = "while :; do sh -c 'sleep {0} & sleep {0} &' & done"


def test_f1_a_fork_bomb_in_a_container_stops_at_the_limit_of_the_session(mine):
    # A time that nothing else on the machine sleeps for: other tests sleep, too.
    seconds = str(10**6 + secrets.randbelow(10**6))
    bomb = shlex.quote(_BOMB.format(seconds))
    script = f"{BUILD} || exit 9; timeout 20 docker run --rm -u 999 clsecure-web sh -c {bomb}; :"
    attack = mine.attack(script, "--limit", "pids=400", timeout=180)
    assert attack.result["limits"]["pids"]["value"] == 400
    assert any("pids" in warning or "processes" in warning for warning in attack.result["warnings"])
    wait_until(lambda: not processes_with(f"sleep\0{seconds}"), "the bomb is gone")


def test_f2_memory_in_containers_counts(mine):
    eat = "docker run --rm clsecure-web sh -c 'head -c 900000000 /dev/zero | tail -c 800000000 | wc -c'"
    attack = mine.attack(f"{BUILD} || exit 9; {eat}; echo ended $?", "--limit", "memory=400M", timeout=180)
    assert "800000000" not in attack.said
    assert any("memory" in warning for warning in attack.result["warnings"])


def test_f3_what_containers_write_counts_for_the_limit_of_the_disk(mine):
    fill = "docker run --rm -u 999 clsecure-web sh -c 'cd /data && mkdir -m 700 d && cat /dev/zero >d/filler'"
    agent = mine.argv(["/bin/sh", "-c", f"{BUILD} || exit 9; {fill}; sleep 100"], "--limit", "disk=200M")
    outcome = mine.person.run(agent, cwd=mine.repository, timeout=180)
    assert any("took more than 200M" in warning for warning in outcome.json()["warnings"]), outcome
    assert not (ENGINES / mine.account()["name"]).exists()
