"""C: privilege and kernel."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import secrets
import select
import shutil
import struct
import subprocess
import termios
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clsecure.privileged.launcher import DENIED
from tests.support import sweep
from tests.support.hostile import DEADLINE, Target, files_containing, processes_with, quoted
from tests.support.leftovers import wait_until
from tests.support.person import Person

pytestmark = pytest.mark.root

_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def status_of(pid: int) -> dict[str, str]:
    """What the kernel says of a process, seen from the host."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_c2_set_user_id_programs_raise_nothing(target):
    """sudo, su, pkexec, newuidmap and a set-user-id copy of id are run to become somebody else."""
    script = """
    for program in sudo su pkexec newuidmap newgidmap mount passwd; do
        if command -v $program >/dev/null; then
            echo "found $program"
            timeout 5 $program -n id </dev/null 2>&1 | grep -q 'uid=0' && echo "raised by $program"
        fi
    done
    timeout 5 su -c 'id -u' root </dev/null 2>&1 | grep -qx 0 && echo 'raised by su'
    cp /usr/bin/id ./id && chmod 6755 ./id
    echo ready
    read _
    """
    with target.live(script) as agent:
        agent.wait_for("ready")
        assert b"found su" in agent.said, "nothing to attack with"
        assert b"raised by" not in agent.said
        uid = target.account()["uid"]
        # firejail's own parent and a container's engine wait outside of what they made; the agent can't reach
        # them: another PID namespace, and firejail is another user's.
        inside = agent.inside()
        assert inside
        for pid in inside:
            status = status_of(pid)
            if status["Name"] == "firejail":  # what waits in there for the agent's end
                continue
            assert status["Uid"].split() == [str(uid)] * 4
            assert status["Gid"].split() == [str(uid)] * 4
            assert set(status["Groups"].split()) <= {str(uid)}
            assert status["NoNewPrivs"] == "1"
            assert {status[name] for name in _CAPABILITIES} == {"0" * 16}
            # The first process of the PID namespace is the helper's own: it waits, and nothing can trace it.
            assert status["Seccomp"] == "2" or status["NSpid"].split()[-1] == "1"


@pytest.mark.xdist_group("hostile-container")
def test_c2_the_engine_around_a_container_is_nobody_to_the_machine(contained):
    """Whoever takes the engine over has capabilities in its own user namespace, and no way up from there."""
    with contained.live("ls -d /proc/[0-9]*; echo ready; read _") as agent:
        agent.wait_for("ready")
        seen = {int(line[6:]) for line in agent.said.split() if line.startswith(b"/proc/")}
        uid, inside = contained.account()["uid"], agent.inside()
        engine = [pid for pid in agent.processes() if pid not in inside]
        words = [Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in engine]
        assert {word[0] for word in words} >= {"/usr/bin/podman", "/usr/bin/conmon"}, words
        host = {
            name: Path(f"/proc/self/ns/{name}").readlink() for name in ("user", "mnt", "pid", "net", "ipc")
        }
        for pid in engine:
            status = status_of(pid)
            assert status["Uid"].split() == [str(uid)] * 4
            assert set(status["Groups"].split()) <= {str(uid)}
            assert status["NoNewPrivs"] == "1"
            # What it has, it has in there: the kernel gives nothing on this machine for it.
            assert not [name for name in host if Path(f"/proc/{pid}/ns/{name}").readlink() == host[name]]
            maps = [line.split() for line in Path(f"/proc/{pid}/uid_map").read_text().splitlines()]
            store = Path(f"/var/lib/clsecure/images/{contained.person.uid}/account.json")
            images = str(json.loads(store.read_text())["uid"])
            assert sorted(maps) == sorted([["0", str(uid), "1"], ["65534", images, "1"]])
        # The agent sees its own processes alone, by their numbers inside.
        assert len(seen) <= len(inside)


# ---------------------------------------------------------------- C1

INJECT = r"""
import ctypes, fcntl, json, os, sys, termios
libc = ctypes.CDLL(None, use_errno=True)
results = {}
numbers = {"x86_64": 16, "aarch64": 29}
# The kernel takes 32 bits of the request: a filter that compares 64 is walked around with the upper ones.
requests = {"TIOCSTI": 0x5412, "TIOCSTI-wide": 0x100005412, "TIOCLINUX": 0x541C}
def attempt(name, fd):
    for what, request in requests.items():
        buffer = ctypes.create_string_buffer(b"\x03" if what == "TIOCLINUX" else b"x")
        failed = libc.syscall(numbers[os.uname().machine], fd, ctypes.c_ulong(request), buffer) == -1
        results[f"{name} {what}"] = ctypes.get_errno() if failed else 0
for fd in (0, 1, 2):
    attempt(str(fd), fd)
for path in ["/dev/tty", "/dev/console", "/dev/tty0", *(f"/dev/pts/{n}" for n in os.listdir("/dev/pts"))]:
    try:
        attempt(path, os.open(path, os.O_RDWR | os.O_NOCTTY))
    except OSError as error:
        results[path] = error.errno
print(json.dumps({"results": results, "terminal": os.isatty(0)}))
"""


@contextlib.contextmanager
def terminal(person: Person) -> Iterator[tuple[int, int]]:
    """A pty of the person's: (master, slave)."""
    master, slave = os.openpty()
    try:
        os.chown(os.ttyname(slave), person.uid, -1)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 500, 0, 0))
        tty.setraw(slave)
        yield master, slave
    finally:
        os.close(master)
        os.close(slave)


def in_terminal(person: Person, argv: list[str], cwd: Path, ends: tuple[int, int]) -> tuple[int, bytes]:
    """Run a program with the pty as its controlling terminal; return its status and what it showed."""
    master, slave = ends
    process = person.spawn(
        argv, cwd=cwd, stdin=slave, stdout=slave, stderr=slave,
        preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    shown = b""
    os.set_blocking(master, False)
    with process:
        while process.poll() is None:
            if select.select([master], [], [], 0.05)[0]:
                shown += os.read(master, 65536)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(master, 65536):
                shown += data
    return process.returncode, shown


def waiting_input(slave: int) -> int:
    """Count the bytes that somebody would read from a terminal next."""
    tty.setraw(slave, termios.TCSANOW)
    return int(struct.unpack("i", fcntl.ioctl(slave, termios.FIONREAD, b"\0" * 4))[0])


@pytest.mark.parametrize("use_pty", ["use_pty", "!use_pty"])
def test_c1_input_for_the_users_terminal(target, use_pty):
    """Bytes are pushed into every terminal that can be opened, with a pty and with pipes."""
    person, injection = target.person, ["/usr/bin/python3", "-I", "-c", INJECT]
    sudoers = Path("/etc/sudoers.d", f"clsecure-test-{person.name}")
    sudoers.write_text(f"Defaults:{person.name} {use_pty}\n")
    sudoers.chmod(0o440)
    try:
        with terminal(person) as ends:
            in_terminal(person, injection, target.repository, ends)
            if Path("/proc/sys/dev/tty/legacy_tiocsti").read_text().strip() == "1":
                assert waiting_input(ends[1]) > 0, "the attack does not work in the first place"
        for output in ("human", "json"):
            with terminal(person) as ends:
                argv = [output if word == "json" else word for word in target.argv(injection)]
                status, shown = in_terminal(person, argv, target.repository, ends)
                assert status == 0, shown
                assert waiting_input(ends[1]) == 0
                line = next(line for line in shown.splitlines() if b'"results"' in line)
                seen = json.loads(line[line.index(b"{") :])
                assert seen["terminal"] is (output == "human")
                assert 0 not in seen["results"].values(), seen["results"]
    finally:
        sudoers.unlink()


# ---------------------------------------------------------------- C3, C4

CALL = r"""
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
results = {}
for name, number in json.loads(sys.argv[1]).items():
    failed = libc.syscall(ctypes.c_long(number), -1, -1, -1, -1, -1, -1) == -1
    results[name] = ctypes.get_errno() if failed else 0
print(json.dumps(results))
"""

NAMESPACES = r"""
import ctypes, errno, json, os
libc = ctypes.CDLL(None, use_errno=True)
clone, clone3 = {"x86_64": 56, "aarch64": 220}[os.uname().machine], 435
flags = {"user": 0x10000000, "mnt": 0x20000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x8000000,
         "uts": 0x4000000, "cgroup": 0x2000000}
results = {}
def forked(result):
    if result == 0:
        os._exit(0)
    failed = result == -1
    code = ctypes.get_errno()
    if not failed:
        os.waitpid(result, 0)
    return code if failed else 0
for name, flag in flags.items():
    for extra, how in ((0, "alone"), (0x10000000, "with a user namespace")):
        results[f"unshare {name} {how}"] = ctypes.get_errno() if libc.unshare(flag | extra) == -1 else 0
        results[f"clone {name} {how}"] = forked(libc.syscall(clone, flag | extra | 17, 0, 0, 0, 0))
        arguments = (ctypes.c_uint64 * 11)(flag | extra, 0, 0, 0, 17)
        results[f"clone3 {name} {how}"] = forked(libc.syscall(clone3, ctypes.byref(arguments), 88))
print(json.dumps(results))
"""

# By the kernel's own tables; what all architectures number alike stands once.
SYSCALLS = {
    "x86_64": {
        "keyctl": 250, "add_key": 248, "request_key": 249, "bpf": 321, "perf_event_open": 298,
        "userfaultfd": 323, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "setns": 308,
        "open_by_handle_at": 304, "name_to_handle_at": 303, "init_module": 175, "finit_module": 313,
        "kexec_load": 246, "kexec_file_load": 320, "syslog": 103, "swapon": 167, "fanotify_init": 300,
    },
    "aarch64": {
        "keyctl": 219, "add_key": 217, "request_key": 218, "bpf": 280, "perf_event_open": 241,
        "userfaultfd": 282, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "setns": 268,
        "open_by_handle_at": 265, "name_to_handle_at": 264, "init_module": 105, "finit_module": 273,
        "kexec_load": 104, "kexec_file_load": 294, "syslog": 116, "swapon": 224, "fanotify_init": 262,
    },
}  # fmt: skip
EVERYWHERE = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
    "open_tree_attr": 467,
}  # fmt: skip

TRACE = r"""
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
child = os.fork()
if child == 0:
    assert libc.ptrace(0, 0, 0, 0) == 0
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(7)
assert os.WIFSTOPPED(os.waitpid(child, 0)[1])
libc.ptrace(7, child, 0, 0)
print("traced", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

OTHER_ABI = r"""
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(b"\xb8" + (288).to_bytes(4, "little") + b"\xcd\x80\xc3")  # mov eax, keyctl; int 0x80; ret
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
print("returned", call())
"""


def on_the_host(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python source as a plain user of the host, without a sandbox."""
    return subprocess.run(
        ["/usr/bin/python3", "-I", "-c", source, *arguments],
        user=65534, group=65534, extra_groups=[], capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip


def test_c3_namespaces_of_the_agents_own(target):
    """unshare, clone and clone3 with every namespace flag, alone and with a user namespace."""
    seen = target.python(NAMESPACES).evidence
    assert len(seen) == 42
    assert set(seen.values()) <= {errno.EPERM, errno.ENOSYS}, seen
    shell = target.attack("unshare -Ur true")
    assert shell.status != 0
    assert "Operation not permitted" in shell.said


def test_c4_system_calls(target):
    """Each system call of the list is made with nonsense: an open one would answer with another error."""
    calls = SYSCALLS[platform.machine()] | EVERYWHERE
    seen = target.python(CALL, json.dumps(calls)).evidence
    assert seen.keys() == calls.keys()
    assert {n: code for n, code in seen.items() if code not in (errno.EPERM, errno.ENOSYS)} == {}
    # Without a sandbox a plain user gets other answers, so the filter is what denies.
    host = json.loads(on_the_host(CALL, json.dumps(calls)).stdout)
    open_on_the_host = {name for name, code in host.items() if code not in (errno.EPERM, errno.ENOSYS)}
    assert {"keyctl", "add_key", "setns", "name_to_handle_at", "io_uring_setup"} - {
        "io_uring_setup"
    } <= open_on_the_host


def test_c4_the_table_is_the_filters(target):
    """A number of the filter that is wrong would deny another call: compare with this test's own table."""
    for machine, table in SYSCALLS.items():
        assert {name: DENIED[machine][name] for name in table} == table


def test_c4_the_other_system_call_interface(target):
    """The filter counts for the 32-bit interface of the same process too."""
    if platform.machine() != "x86_64":
        pytest.skip("left out: only x86-64 has int 0x80")
    inside = target.attack(["/usr/bin/python3", "-I", "-c", OTHER_ABI])
    assert inside.status == 128 + 31 or "returned -1\n" in inside.said or "returned -38" in inside.said, (
        inside
    )


def test_c4_debuggers_work(target):
    """ptrace of an own child is allowed: the own PID namespace and uid bound it."""
    assert "traced 7" in target.python(TRACE).said


# ---------------------------------------------------------------- C9, C10, C11


def test_c9_firejail_from_another_account(target):
    """Somebody else lists, joins, reads from, writes into and shuts down the sandbox through firejail."""
    other = target.account()["uid"] + 1
    with target.live("echo secret >loot; echo ready; read word; echo got-$word") as agent:
        agent.wait_for("ready")
        pids = agent.processes()
        home = Path(target.account()["home"])
        loot = home / target.repository.name / "loot"
        for uid in (65534, target.person.uid, other):
            for pid in pids:
                for attempt in (
                    [f"--join={pid}", "cat", loot],
                    [f"--join-filesystem={pid}", "cat", loot],
                    [f"--join-network={pid}", "cat", "/proc/net/dev"],
                    [f"--cat={pid}", loot],
                    [f"--ls={pid}", home],
                    [f"--put={pid}", "/etc/hostname", home / "put"],
                    [f"--shutdown={pid}"],
                ):
                    done = subprocess.run(
                        ["firejail", *map(str, attempt)], user=uid, group=uid, extra_groups=[],
                        capture_output=True, text=True, timeout=DEADLINE, cwd="/", env={"PATH": "/usr/bin"},
                    )  # fmt: skip
                    assert done.returncode != 0, (uid, attempt, done)
                    assert "secret" not in done.stdout
        agent.say("alive")
        agent.wait_for("got-alive")
    assert not (home / "put").exists()


def facts(pid: int) -> dict[str, Any]:
    """What a session's policy makes of a process: status, mounts, and which namespaces are not the host's."""
    status = status_of(pid)
    kept = ("NoNewPrivs", "Seccomp", "Seccomp_filters", "Groups", "Uid", "Gid", *_CAPABILITIES)
    mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    own = {
        name: Path(f"/proc/{pid}/ns/{name}").readlink() != Path(f"/proc/self/ns/{name}").readlink()
        for name in ("mnt", "pid", "net", "ipc", "uts", "user")
    }
    return {
        "status": {name: status[name] for name in kept},
        "mounts": sorted((m[4], m[5], m[m.index("-") + 1]) for m in mounts),
        "own": own,
    }


POISON = """
set -eu
for directory in .config/firejail .config/containers .config/bash .local/bin bin .npm-global/bin .ssh; do
    mkdir -p "$HOME/$directory"
done
for profile in globals python3 python3.11 launcher default server clsecure firejail disable-common; do
    for kind in local profile; do
        printf 'ignore seccomp\nignore nonewprivs\nignore noroot\nignore caps.drop\nignore private-dev\n%s' \
            'ignore restrict-namespaces\nkeep-dev-shm\nnoprofile\n' >"$HOME/.config/firejail/$profile.$kind"
    done
done
cd "$HOME/.config/containers"
printf '[containers]\nprivileged=true\nseccomp_profile="unconfined"\nvolumes=["/:/host"]\n%s\n%s\n%s\n' \
    'default_capabilities=["SYS_ADMIN"]' 'read_only=false' '[engine]' >containers.conf
printf 'runtime="mine"\nhooks_dir=["%s/hooks"]\n[engine.runtimes]\nmine=["%s/bin/crun"]\n' \
    "$HOME" "$HOME" >>containers.conf
printf '[storage]\ndriver="vfs"\ngraphroot="%s/graph"\nrunroot="%s/run"\n' "$HOME" "$HOME" >storage.conf
printf 'unqualified-search-registries=["registry.invalid"]\n' >registries.conf
printf '/etc:/host-etc\n' >mounts.conf
mkdir -p "$HOME/.docker" "$HOME/hooks" && cd
printf '{"credsStore": "mine", "credHelpers": {"*": "mine"}}' >"$HOME/.docker/config.json"
printf '{"version": "1.0.0", "when": {"always": true}, "stages": ["createRuntime"], "hook": {"path": "%s"}}' \
    "$HOME/bin/crun" >"$HOME/hooks/mine.json"
for program in firejail sudo python3 sh git cat ls grep env unshare podman crun conmon tini \
    docker-credential-mine; do
    for directory in .local/bin bin .npm-global/bin; do
        printf '#!/bin/sh\necho %s >>"$HOME/hijacked"\nexec "/usr/bin/%s" "$@"\n' $program $program \
            >"$HOME/$directory/$program"
        chmod 755 "$HOME/$directory/$program"
    done
done
for file in .bashrc .profile .bash_profile .bash_login .zshenv .zshrc .kshrc .pam_environment .ssh/rc; do
    printf 'echo %s >>"$HOME/hijacked"\nexport BASH_ENV="$HOME/.bashrc" PATH="$HOME/bin:$PATH"\n' $file \
        >"$HOME/$file"
done
mkdir -p "$HOME/.local/lib/python3.11/site-packages"
printf 'open(\"%s/hijacked\", \"a\").write(\"python\")\n' "$HOME" \
    >"$HOME/.local/lib/python3.11/site-packages/usercustomize.py"
echo poisoned
"""


def test_c10_c11_policy_and_programs_in_the_workers_home(target):
    """Session 1 leaves firejail policies, programs and start files behind; session 2 is held the same."""
    poisoned = Target(
        person=target.person, mode=target.mode, repository=target.repository, session="poisoned",
        options=target.options,
    )  # fmt: skip
    word = f"held-{secrets.token_hex(6)}"

    def held(*options: str) -> dict[str, Any]:
        with poisoned.live(f": {word}; echo ready; read _", *options, finish="keep") as agent:
            agent.wait_for("ready")
            (pid,) = set(agent.processes()) & set(processes_with(word))
            return facts(pid)

    first = held()
    attack = poisoned.attack(POISON, "--resume", finish="keep")
    assert "poisoned" in attack.said
    second = held("--resume")
    home = Path(poisoned.account()["home"])
    assert (home / ".config/firejail/globals.local").exists()
    # firejail itself covers its directory in the home with an empty read-only one: tighter, never looser.
    covered = (str(home / ".config/firejail"), "ro,nosuid,nodev,relatime", "tmpfs")
    assert [mount for mount in second.pop("mounts") if mount != covered] == first.pop("mounts")
    assert second == first
    assert not (home / "hijacked").exists(), (home / "hijacked").read_text()
    # The agent itself meets what it left; that it can is what the marker shows.
    poisoned.attack(
        'bash -ic true 2>/dev/null; PATH="$HOME/bin:$PATH" ls >/dev/null', "--resume", finish="keep"
    )
    assert (home / "hijacked").read_text().split() == [".bashrc", "ls"]


def test_c11_programs_on_the_users_path(target, tmp_path):
    """A sudo, firejail, python3 and sh before the real ones on the user's PATH; BASH_ENV and a function."""
    person = target.person
    directory = person.home / f"fake-{target.mode}"
    marker = directory / "marker"
    person.run(["mkdir", "-p", str(directory)]).check()
    for name in ("sudo", "firejail", "python3", "sh", "env", "unshare", "pasta"):
        person.write(directory / name, f"#!/bin/bash\necho {name} >>{marker}\n".encode(), mode=0o755)
    person.write(directory / "rc", f"echo BASH_ENV >>{marker}\n".encode())
    environ = {
        "PATH": f"{directory}:{person.environment()['PATH']}", "BASH_ENV": f"{directory}/rc",
        "ENV": f"{directory}/rc", "BASH_FUNC_ls%%": f"() {{ echo function >>{marker}; }}",
        "PYTHONPATH": str(directory), "PYTHONSTARTUP": f"{directory}/rc",
    }  # fmt: skip
    control = person.run(["/bin/bash", "-c", "sudo; ls /"], env=environ)
    assert set(marker.read_text().split()) == {"sudo", "BASH_ENV", "function"}, control
    marker.unlink()
    seen = target.attack("env; bash -c 'ls /'", env=environ)
    assert str(directory) not in seen.said
    assert not marker.exists(), marker.read_text()


# ---------------------------------------------------------------- C12, C13

LATER = r"""
mark=$1 spool=$2
later="touch /tmp/$mark /var/tmp/$mark $HOME/$mark"
for directory in /var/spool/cron/crontabs /var/spool/cron /var/spool/cron/atjobs /etc/cron.d "$spool" \
    /var/lib/systemd/linger /etc/systemd/system /run/systemd/system /run/systemd/transient; do
    mkdir -p "$directory"; echo "* * * * * $later" >"$directory/$mark"; touch "$directory/$(id -un)"
done
echo "* * * * * $later" | timeout 10 crontab -
echo "$later" | timeout 10 at now
timeout 10 systemd-run --user --on-active=1 sh -c "$later"
timeout 10 systemd-run sh -c "$later"
timeout 10 loginctl enable-linger
timeout 10 busctl --user call org.freedesktop.systemd1 /org/freedesktop/systemd1 \
    org.freedesktop.systemd1.Manager StartUnit ss "$mark.service" replace
mkdir -p ~/.config/systemd/user/default.target.wants ~/.config/autostart ~/.local/share/dbus-1/services
cd ~/.config/systemd/user/default.target.wants &&
    printf '[Service]\nExecStart=/bin/sh -c "%s"\n' "$later" >"$mark.service"
cd ~/.local/share/dbus-1/services &&
    printf '[D-BUS Service]\nName=x.%s\nExec=/bin/sh -c "%s"\n' "$mark" "$later" >x.service
(trap '' TERM HUP INT; setsid sh -c "trap '' TERM HUP INT; while : $mark; do sleep 1; done" &) >/dev/null 2>&1
setsid nohup sh -c ": $mark; exec sleep 3600" >/dev/null 2>&1 &
echo attempted
""".strip()


def hidden(agent):
    """Count the agent's detached processes; one may still be on its way through setsid and nohup."""
    found = 0
    for pid in agent.processes():
        with contextlib.suppress(OSError):
            found += Path(f"/proc/{pid}/cmdline").read_bytes().startswith((b"sh\0-c\0", b"sleep\0"))
    return found


def test_c12_work_for_later(target):
    """cron, at, systemd-run, linger, D-Bus services and detached processes are to run after the end.

    Nothing waits for a minute to pass: what would fire is looked for in the spools. So that this can fail
    without cron, at or systemd, one spool is made here in which everybody may write.
    """
    mark, uid = f"later-{secrets.token_hex(6)}", None
    spool = Path("/var/spool", mark)
    spool.mkdir()
    spool.chmod(0o777)
    try:
        control = ["/bin/sh", "-c", f"touch {spool}/control"]
        subprocess.run(control, user=65534, group=65534, extra_groups=[], check=True)
        with target.live(f"set -- {mark} {spool}\n{LATER}\nread _") as agent:
            agent.wait_for("attempted")
            wait_until(lambda: hidden(agent) >= 2, "the processes that should survive are there")
            uid = target.account()["uid"]
        assert processes_with(mark) == []
        assert sweep.processes_of(uid) == []
        assert [path.name for path in spool.iterdir()] == ["control"]
        name = target.account()["name"]
        for place in ("/var/spool", "/var/lib/systemd/linger", "/etc", "/run/systemd", "/tmp", "/var/tmp"):
            for directory, _, files in os.walk(place):
                assert not {mark, name} & set(files), directory
        for place in ("/var/spool", "/var/lib/systemd", "/etc", "/run/systemd"):
            assert files_containing(Path(place), mark) == []
    finally:
        shutil.rmtree(spool)


IPC = r"""
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mq_open.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
mark, key, create = sys.argv[1], int(sys.argv[2]), 0o1666 if sys.argv[3] == "create" else 0
results = {}
for name, call in {
    "shm": lambda: libc.shmget(key, 4096 if create else 0, create),
    "sem": lambda: libc.semget(key, 1 if create else 0, create),
    "msg": lambda: libc.msgget(key, create),
    "mqueue": lambda: libc.mq_open(b"/" + mark.encode(), 0o102 if create else 2, 0o666, None),
}.items():
    results[name] = ctypes.get_errno() if call() == -1 else 0
for directory in ("/tmp", "/var/tmp", "/dev/shm", "/run/lock", f"/run/user/{os.getuid()}"):
    try:
        if create:
            with open(f"{directory}/{mark}", "w") as file:
                file.write(mark)
            os.chmod(f"{directory}/{mark}", 0o666)
        results[directory] = 0 if os.path.exists(f"{directory}/{mark}") else 2
    except OSError as error:
        results[directory] = error.errno
print(json.dumps(results))
"""
TAKE_AWAY = r"""
import ctypes, sys
libc, key = ctypes.CDLL(None, use_errno=True), int(sys.argv[2])
libc.shmctl(libc.shmget(key, 0, 0), 0, None)
libc.semctl(libc.semget(key, 0, 0), 0, 0)
libc.msgctl(libc.msgget(key, 0), 0, None)
libc.mq_unlink(b"/" + sys.argv[1].encode())
"""
PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock")
OBJECTS = ("shm", "sem", "msg", "mqueue")


def test_c13_shared_places(target):
    """Files in shared directories, SysV and POSIX objects: the host's looked for inside, and the reverse."""
    theirs, ours = (f"shared-{secrets.token_hex(6)}" for _ in range(2))
    their_key, our_key = (str(secrets.randbelow(2**30) + 2) for _ in range(2))
    try:
        host = json.loads(on_the_host(IPC, ours, our_key, "create").stdout)
        shared = {name for name in (*PLACES, *OBJECTS) if host[name] == 0}
        assert {"/tmp", "/var/tmp", "shm", "sem", "msg"} <= shared, "nothing is there to be found"
        inside = target.python(IPC, ours, our_key, "look").evidence
        assert {name for name, code in inside.items() if code == 0} == set()
        create = quoted("/usr/bin/python3", "-I", "-c", IPC, theirs, their_key, "create")
        with target.live(f"{create}; echo; echo made; read _") as agent:
            agent.wait_for("made\n")
            line = next(line for line in agent.said.splitlines() if b'"shm"' in line)
            made = {name for name, code in json.loads(line).items() if code == 0}
            assert {"/tmp", "/var/tmp", "/dev/shm", "shm", "sem", "msg"} <= made
            seen = json.loads(on_the_host(IPC, theirs, their_key, "look").stdout)
            assert {name for name, code in seen.items() if code == 0} == set()
    finally:
        for mark, key in ((ours, our_key), (theirs, their_key)):
            subprocess.run(["/usr/bin/python3", "-I", "-c", TAKE_AWAY, mark, key], check=True)
            for place in PLACES:
                Path(place, mark).unlink(missing_ok=True)
