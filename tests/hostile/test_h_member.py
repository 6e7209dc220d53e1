"""H: a member of the group who speaks to the root helper with a program of his own.

Membership must not amount to root, to another member's worker, or to the power to stop the others' work.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import sweep
from tests.support.raw_helper import DEADLINE, RawHelper
from tests.support.shared_setup import DIRECTORY

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("helper")]

HELPER = DIRECTORY / "helper"
DAEMON = 1  # an account that every machine has; the helper only asks whether it exists


@pytest.fixture(scope="module")
def held(person):
    """A connection that holds an account of the person's."""
    with RawHelper(person) as helper:
        yield helper, helper.ask(lease("/hostile/member"))["account"]
        helper.ask({"verb": "remove"})


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(mode, marks=pytest.mark.xdist_group(f"hostile-{mode}")) for mode in ("user", "namespace")
    ],
)
def mode(request):
    """The modes that the helper builds alone; containers, in test_h_engine.py, need an engine's API, too."""
    return str(request.param)


def lease(project):
    return {"verb": "lease", "project": project, "session": "default", "create": True}


def run(helper, mode, script, mounts=(), fds=()):
    """Run a shell script in a sandbox of the held account; return what it said."""
    ready = helper.ask({"verb": "run", "mode": mode, "mounts": list(mounts)}, fds)
    assert ready.get("event") == "ready", ready
    read, write = os.pipe()
    with os.fdopen(read, "rb") as pipe, Path("/dev/null").open("rb") as null:
        start = {"verb": "start", "argv": ["/bin/sh", "-c", script], "env": {}, "cwd": "/tmp"}
        helper.send(start, [null.fileno(), write, write])
        os.close(write)
        said = pipe.read().decode("utf-8", "replace")
    assert helper.receive()["event"] == "exit"
    return said


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
        said = run(helper, mode, script, mounts, [directory] * len(targets))
    finally:
        os.close(directory)
    assert said.count("content\n") == len(targets)
    assert (tmp_path / mode).stat().st_uid == account["uid"]
    assert not (tmp_path / "made").exists()
    lines = [line for line in said.splitlines() if " /srv/tool " in line or " /mnt/tool " in line]
    assert len(lines) == 2
    assert all("nosuid" in line and "nodev" in line and "shared:" not in line for line in lines)


def test_h1_mount_targets_lead_through_no_link_of_the_workers(held, mode, tmp_path):
    """The agent leaves links in its home; a mount target leads through them while root is on the host."""
    helper, account = held
    home = account["home"]
    run(helper, "user", f"ln -sfn / {home}/root; ln -sfn {tmp_path} {home}/out")
    tmp_path.chmod(0o755)
    outside, fd = tmp_path / "made-by-root", os.open("/usr/share", os.O_PATH)
    try:
        for target in (f"/{home}/root{outside}/x", f"/{home}/out/{outside.name}/x", f"{home}/out/x/y"):
            answer = helper.ask({"verb": "run", "mode": mode, "mounts": [{"target": target}]}, [fd])
            assert set(answer) == {"error"}, target
    finally:
        os.close(fd)
    assert list(tmp_path.iterdir()) == []


def test_h10_a_directory_of_another_mount_namespace_is_not_mounted(held, mode, tmp_path):
    """A directory that lies in a mount namespace of somebody else's making is given."""
    helper, _ = held
    fd = directory_of_another_namespace(tmp_path)
    try:
        answer = helper.ask({"verb": "run", "mode": mode, "mounts": [{"target": "/srv/given"}]}, [fd])
        assert set(answer) == {"error"}
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", ["net", "mnt", "user"])
def test_h10_a_network_namespace_of_roots_is_not_entered(held, mode, kind):
    """A namespace that root made (anybody can open those below /run/netns), or of another kind, is given."""
    helper, _ = held
    with subprocess.Popen(
        ["unshare", "--net", "--mount", "sh", "-c", "echo ready; read _"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        for pid in (other.pid, os.getpid()):
            with Path(f"/proc/{pid}/ns/{kind}").open("rb") as file:
                wanted = {"verb": "run", "mode": mode, "network_namespace": True}
                answer = helper.ask(wanted, [file.fileno()])
            assert "network namespace" in answer["error"], answer
        rules = ["nsenter", f"--net=/proc/{other.pid}/ns/net", "nft", "list", "ruleset"]
        assert subprocess.run(rules, check=True, capture_output=True, timeout=DEADLINE).stdout == b""
        other.communicate(b"\n", timeout=DEADLINE)


def test_h10_private_addresses_are_opened_in_a_namespace_of_the_callers_only(held, mode):
    """They are asked for without a network namespace, and with the helper's own."""
    helper, _ = held
    answer = helper.ask({"verb": "run", "mode": mode, "private": True})
    assert "only a network namespace" in answer["error"], answer
    with Path("/proc/self/ns/net").open("rb") as file:
        wanted = {"verb": "run", "mode": mode, "private": True, "network_namespace": True}
        answer = helper.ask(wanted, [file.fileno()])
    assert "not the caller's own" in answer["error"], answer
    assert "error" in helper.ask({"verb": "run", "mode": mode, "network_namespace": True})


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


def test_h12_a_slow_removal_keeps_nobody_else_waiting(person):
    """A worker's home takes for ever to delete; another member starts meanwhile.

    It holds more names than an argument vector can, too: it must go all the same (E6).
    """
    with RawHelper(person) as helper:
        account = helper.ask(lease("/hostile/slow"))["account"]
        for number in range(20_000):
            (Path(account["home"]) / f"{number:0200}").touch()
        helper.send({"verb": "remove"})
        stopped = stop_one(account["uid"])
        try:
            answers = sweep.ask_helper(HELPER, DAEMON, lease("/hostile/meanwhile"), {"verb": "remove"})
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert answers[1] == {"done": True}, answers
        assert helper.receive() == {"done": True}
    assert not Path(account["home"]).exists()


def stop_one(uid: int) -> int:
    """Stop the first process that is seen under a uid."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        for pid in sweep.processes_of(uid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                return pid
    raise AssertionError(f"nothing ever ran as {uid}")


def test_h12_the_callers_terminal_and_timers_do_not_stop_the_helper(held):
    """Ctrl-Z, and every other signal that a terminal or an inherited timer sends, reaches the helper."""
    helper, account = held
    lock = f":{Path('/var/lib/clsecure/locks', account['name']).stat().st_ino} "
    holder = next(line.split()[4] for line in Path("/proc/locks").read_text().splitlines() if lock in line)
    for name in ("TSTP", "TTIN", "TTOU", "ALRM", "INT", "HUP", "XCPU"):
        os.kill(int(holder), signal.Signals[f"SIG{name}"])
        assert helper.ask({"verb": "hello"})["protocol"] == 1


def test_a11_a_kept_home_is_open_to_nobody(held, mode):
    """The agent opens its home to every account of the machine, for later."""
    helper, account = held
    run(helper, mode, f"chmod 777 {account['home']}")
    info = Path(account["home"]).stat()
    assert (info.st_uid, info.st_mode & 0o777) == (account["uid"], 0o700)


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
    said = run(helper, mode, f"exec /usr/bin/python3 -I -c '{_REACH_PID_1}'")
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
