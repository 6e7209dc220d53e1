"""H: a member of the group who speaks to the root helper with a program of his own.

Membership must not amount to root, to another member's worker, or to the power to stop the others' work.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import sweep
from tests.support.helper import DEADLINE, HELPER, RawHelper, leased

pytestmark = pytest.mark.root

DAEMON = 1  # an account that every machine has; the helper only asks whether it exists


@pytest.fixture(scope="module")
def held(person):
    """A connection that holds an account of the person's."""
    with leased(person.uid, "/hostile/member") as (helper, account):
        yield helper, account


def refusal(helper: RawHelper, mode: str, target: object, fd: int) -> str:
    answer = helper.ask({"verb": "run", "mode": mode, "mounts": [{"target": target}]}, [fd])
    if answer.get("event") == "ready":
        helper.send({"verb": "kill"})
        helper.receive()
    return str(answer.get("error", ""))


def test_h10_given_directories_appear_and_only_there(held, mode, tmp_path):
    """The positive control: what a member may mount is there, read-only or not, and no device or set-uid."""
    helper, account = held
    tmp_path.chmod(0o777)
    (tmp_path / "file").write_text("content\n")
    (tmp_path / "file").chmod(0o4755)
    targets = ("/home/somebody/tool", "/mnt/tool", "/opt/tool", "/srv/tool")
    mounts = [{"target": target, "read_only": target != "/srv/tool"} for target in targets]
    directory = os.open(tmp_path, os.O_PATH)
    script = f"cat {'/file '.join(targets)}/file; touch /mnt/tool/made /srv/tool/{mode}; "
    script += "grep tool /proc/self/mountinfo"
    try:
        said = helper.run(mode, script, mounts, [directory] * len(targets))
    finally:
        os.close(directory)
    assert said.count("content\n") == len(targets)
    assert (tmp_path / mode).stat().st_uid == account["uid"]
    assert not (tmp_path / "made").exists()
    lines = [line for line in said.splitlines() if " /srv/tool " in line or " /mnt/tool " in line]
    assert len(lines) == 2
    assert all("nosuid" in line and "nodev" in line and "shared:" not in line for line in lines)


def test_h1_mount_targets_do_not_leave_the_view(held, mode, tmp_path):
    """A mount target reaches the host, or the /etc that firejail trusts as root, by // or a link."""
    helper, account = held
    home = account["home"]
    helper.run("user", f"ln -sfn / {home}/root; ln -sfn {tmp_path} {home}/out")
    tmp_path.chmod(0o755)
    (tmp_path / "ld.so.preload").write_text("/home/somebody/evil.so\n")
    fd = os.open(tmp_path, os.O_PATH)
    outside = tmp_path / "made-by-root"
    targets = [
        *("//etc", "//usr/lib", "///etc", "/etc/ld.so.preload", "/lib64", "/libx32", "/usr", "/", "", "."),
        *(f"/{home}/root{outside}/x", f"/{home}/out/{outside.name}/x", f"{home}/out/x", home, "/home"),
        *("/opt", "/opt/clsecure/bin", "/srv/../etc", "/srv/./x", "/srv/x/", "srv/x", "/srv/a\nb"),
        *("/srv/\0", 7, "/run/firejail/mnt"),
    ]  # fmt: skip
    nested = [{"target": "/srv/a"}, {"target": "/srv/a/b"}]
    try:
        for target in targets:
            assert refusal(helper, mode, target, fd), target
        assert "overlaps" in helper.ask({"verb": "run", "mode": mode, "mounts": nested}, [fd, fd])["error"]
    finally:
        os.close(fd)
    assert not outside.exists()


def test_h10_descriptors_of_odd_kinds_are_not_mounted(held, mode, tmp_path):
    """A FIFO, a socket, a device, a memory file and a directory of another mount namespace are given."""
    helper, _ = held
    os.mkfifo(tmp_path / "fifo")
    with socket.socket() as listener:
        fds = [
            os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK),
            os.dup(listener.fileno()),
            os.open("/dev/null", os.O_RDONLY),
            os.memfd_create("given"),
            directory_of_another_namespace(tmp_path),
        ]
    try:
        for fd in fds:
            assert refusal(helper, mode, "/srv/given", fd), Path(f"/proc/self/fd/{fd}").readlink()
    finally:
        for fd in fds:
            os.close(fd)


def directory_of_another_namespace(mount_point: Path) -> int:
    command = f"mount -t tmpfs tmpfs {mount_point} && touch {mount_point}/there && echo ready && read _"
    other = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        fd = os.open(f"/proc/{other.pid}/root{mount_point}", os.O_PATH)
        assert Path(f"/proc/self/fd/{fd}/there").exists()
        return fd
    finally:
        other.communicate(timeout=DEADLINE)


@pytest.mark.parametrize(
    "message",
    [
        b"[]", b"{", b"nul\0", b'{"verb": []}', b'{"verb": {}}', b'{"verb": "__init__"}', b"[" * 100_000,
        b'{"verb": "lease", "project": "/\\ud800", "session": "default"}',
        b'{"verb": "lease", "project": "x", "session": "default"}',
        b'{"verb": "lease", "project": "/x", "session": "../x"}',
        b'{"verb": "lease", "project": "/x", "session": "-f"}',
        b'{"verb": "agent", "sha256": "../../../../etc"}',
        b'{"verb": "run", "mode": "namespace", "agent": "/../../..", "agent_name": "../x"}',
        b'{"verb": "run", "mode": "root"}', b'{"verb": "run", "mode": "user", "terminal": [1e9, -1]}',
        b'{"verb": "run", "mode": "user", "mounts": {"target": "/x"}}',
    ],
)  # fmt: skip
def test_h10_malformed_messages_are_answered_and_nothing_more(held, message):
    """Messages of wrong kinds, names that are paths, texts that are none."""
    helper, _ = held
    assert "error" in helper.ask(message)
    assert helper.ask({"verb": "hello"})["protocol"] == 1


def test_h10_the_store_takes_only_what_the_caller_could_read(held, person, tmp_path):
    """An agent is given by a descriptor without the right to read, as a device, under a false digest."""
    helper, _ = held
    (tmp_path / "secret").write_bytes(secret := os.urandom(64))
    digest = hashlib.sha256(secret).hexdigest()
    sparse = os.open(tmp_path / "sparse", os.O_RDWR | os.O_CREAT)
    os.truncate(sparse, (1 << 30) + 1)
    fds = [
        os.open(tmp_path / "secret", os.O_PATH),
        os.open(tmp_path / "secret", os.O_WRONLY),
        os.open("/dev/zero", os.O_RDONLY),
        os.open("/proc/self/maps", os.O_RDONLY),
        sparse,
    ]
    try:
        for fd in fds:
            assert "error" in helper.ask({"verb": "agent", "sha256": digest}, [fd])
        with (tmp_path / "secret").open("rb") as file:
            assert "error" in helper.ask({"verb": "agent", "sha256": "0" * 64}, [file.fileno()])
            store = Path(f"/var/lib/clsecure/agents/{person.uid}")
            assert not [each for each in store.iterdir() if each.name.startswith((".new", "0"))]
            assert helper.ask({"verb": "agent", "sha256": digest}, [file.fileno()])["path"] == str(
                store / digest
            )
    finally:
        for fd in fds:
            os.close(fd)


def test_h10_an_account_of_somebody_else_is_not_there(held, person):
    """Another user asks for the person's worker by its project and session."""
    with RawHelper(DAEMON) as other:
        wanted = {"verb": "lease", "project": "/hostile/member", "session": "default"}
        assert other.ask(wanted) == {"error": "there is no such worker"}
        assert other.ask({"verb": "accounts"}) == {"accounts": []}
        for verb in ("run", "reset", "remove"):
            assert other.ask({"verb": verb})["error"] == "no account is held; lease one first"
    with RawHelper(person.uid) as second:
        assert second.ask(wanted)["busy"] is True


def test_h12_a_slow_removal_keeps_nobody_else_waiting(person):
    """A worker's home takes for ever to delete; another member starts meanwhile.

    It holds more names than an argument vector can, too: it must go all the same.
    """
    with RawHelper(person.uid) as helper:
        lease = {"verb": "lease", "project": "/hostile/slow", "session": "default", "create": True}
        account = helper.ask(lease)["account"]
        for number in range(20_000):
            (Path(account["home"]) / f"{number:0200}").touch()
        helper.send({"verb": "remove"})
        stopped = stop_one(account["uid"])
        try:
            with leased(DAEMON, "/hostile/meanwhile") as (_, other):
                assert other["owner"] == DAEMON
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert helper.receive() == {"done": True}
    assert not Path(account["home"]).exists()


def stop_one(uid: int) -> int:
    """Stop the first process that is seen under a uid."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        for pid in sweep.processes_of(uid):
            os.kill(pid, signal.SIGSTOP)
            return pid
    raise AssertionError(f"nothing ever ran as {uid}")


def test_h12_the_callers_terminal_and_timers_do_not_stop_the_helper(held):
    """Ctrl-Z, and every other signal that a terminal or an inherited timer sends, reaches the helper."""
    helper, _ = held
    for number in (
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGALRM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGXCPU,
    ):
        helper.process.send_signal(number)
        assert helper.ask({"verb": "hello"})["protocol"] == 1


def test_h10_the_callers_limits_do_not_cut_roots_files(person):
    """The helper, and so useradd, is started with a limit on the size of files and on its time."""
    script = (
        "import socket, subprocess;"
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        f"p = subprocess.Popen(['sudo', '-n', '{HELPER}'], stdin=b); b.close(); a.settimeout(60);"
        'a.send(b\'{"verb": "hello"}\'); print(a.recv(9999), flush=True);'
        "input(); a.close(); p.wait()"
    )
    process = person.spawn(
        ["sh", "-c", 'ulimit -f 4; ulimit -t 60; exec /usr/bin/python3 -I -c "$1" 2>&1', "sh", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        if "ulimit" in line:
            return  # a machine where root itself can't lift them: refused before anything was touched
        assert "protocol" in line
        helpers = [p for p in pids_below(process.pid) if b"-IS\0" in Path(f"/proc/{p}/cmdline").read_bytes()]
        limits = [Path(f"/proc/{pid}/limits").read_text().splitlines() for pid in helpers]
        assert limits
        for lines in limits:
            for name in ("Max cpu time", "Max file size"):
                assert next(each for each in lines if each.startswith(name)).split()[3:5] == ["unlimited"] * 2
    finally:
        process.communicate(b"\n", timeout=DEADLINE)


def pids_below(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def test_a12_the_first_process_of_the_sandbox_is_out_of_reach(held, mode):
    """The agent traces, reads, stops and borrows descriptors of PID 1, which may hold the helper's socket."""
    helper, _ = held
    said = helper.run(mode, f"exec /usr/bin/python3 -I -c '{_REACH_PID_1}'")
    assert said.split() == ["traced", "-1", "vm_readv", "-1", "getfd", "-1", "fds", "-1", "mem", "-1"]


_REACH_PID_1 = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def tried(action):
    try:
        return action()
    except OSError:
        return -1
for number in (19, 9, 15):
    tried(lambda: os.kill(1, number))
print("traced", libc.ptrace(16, 1, 0, 0))
buffer = ctypes.create_string_buffer(16)
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
here = Vector(ctypes.addressof(buffer), 16)
print("vm_readv", libc.process_vm_readv(1, ctypes.byref(here), 1, ctypes.byref(Vector(id(libc), 16)), 1, 0))
print("getfd", libc.syscall(438, os.pidfd_open(1), 0, 0))
print("fds", tried(lambda: len(os.listdir("/proc/1/fd"))))
print("mem", tried(lambda: os.open("/proc/1/mem", os.O_RDWR)))
"""
