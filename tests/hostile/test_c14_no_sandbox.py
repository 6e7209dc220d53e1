"""C14: the sandbox that did not happen.

The machine is changed for one session at a time, in a mount namespace of its own. firejail is run by
namespace mode only; what user mode is made of is taken away by the tests of a kernel without it.
"""

from __future__ import annotations

import json
import platform
import re
import secrets
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import schema
from tests.support.hostile import DEADLINE, REFUSED, Target

pytestmark = pytest.mark.root

PASS_THROUGH = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""
SAYS_YES = "#!/bin/sh\nexit 0\n"
OLD = PASS_THROUGH.replace("while", '[ "$1" != --version ] || exec echo "firejail version 0.9.58"\nwhile', 1)

# Run as root by python3: makes system calls fail as on a kernel without them, then becomes somebody else.
# Without no_new_privs, so that sudo still works.
WITHOUT = r"""
import ctypes, json, os, struct, sys
rules, argv = json.loads(sys.argv[1]), sys.argv[2:]
program = []
for number, first, error in rules:
    program += [(0x20, 0, 0, 0), (0x15, 0, 3 if first is not None else 1, number)]
    if first is not None:
        program += [(0x20, 0, 0, 16), (0x15, 0, 1, first)]
    program += [(0x06, 0, 0, 0x50000 | error)]
program += [(0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(22, 2, header, 0, 0) == 0, ctypes.get_errno()
os.execvp(argv[0], argv)
"""
# number of the call, value of its first argument where that decides, error
_X86, _ARM = platform.machine() == "x86_64", platform.machine() == "aarch64"
PRCTL, SECCOMP = (157, 317) if _X86 else (167, 277)
UNSHARE = 272 if _X86 else 97
NO_LANDLOCK = [(number, None, 38) for number in (444, 445, 446)]
NO_SECCOMP = [(PRCTL, 22, 22), (SECCOMP, None, 38)]
NO_NEW_PRIVS = [(PRCTL, 38, 22)]
NO_NAMESPACES = [(UNSHARE, None, 22)]
NO_MOUNT_SETATTR = [(442, None, 38)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a session on a changed machine ended."""

    status: int
    stdout: str
    stderr: str
    ran: bool


def on_changed_machine(
    target: Target,
    argv: list[str],
    *,
    change: str = ":",
    without: object = (),
    unshared: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a command of the person's on a machine that root has changed."""
    person = target.person
    become = ["setpriv", f"--reuid={person.uid}", f"--regid={person.gid}"]
    become += [f"--groups={','.join(map(str, person.groups))}", *argv]
    if without:
        become = ["/usr/bin/python3", "-I", "-c", WITHOUT, json.dumps(without), *become]
    script = f'set -eu\n{change}\nexec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", *unshared, "/bin/sh", "-c", script, "sh", *become],
        cwd=target.repository, env=person.environment(), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=2 * DEADLINE,
    )  # fmt: skip


def changed(
    target: Target, *options: str, change: str = ":", without: object = (), unshared: tuple[str, ...] = ()
) -> Ended:
    """Start a session on a machine that root has changed: by commands, by a filter, by namespaces."""
    mark = f"ran-{secrets.token_hex(6)}"
    agent = ["/bin/sh", "-c", f"printf %s%s {mark[:5]} {mark[5:]}"]
    argv = target.argv(agent, *options)
    done = on_changed_machine(target, argv, change=change, without=without, unshared=unshared)
    return Ended(
        status=done.returncode,
        stdout=done.stdout,
        stderr=done.stderr,
        ran=mark in done.stdout + done.stderr,
    )


def assert_refused(ended: Ended) -> str:
    """Fail unless the agent never ran and the tool said so; return what it said."""
    assert not ended.ran, ended
    assert ended.status in REFUSED, ended
    error = json.loads(ended.stdout)["error"]
    assert error["resolution"], error
    return f"{error['brief']} {error['details']}"


def replaced(directory: Path, text: str, *, mode: int = 0o4755) -> str:
    """Return the command that puts another program in firejail's place."""
    stub = directory / "firejail"
    stub.write_text(text)
    stub.chmod(mode)
    return f"mount --bind {stub} /usr/bin/firejail"


@pytest.fixture(scope="module")
def jailed(person):
    """A target in namespace mode."""
    return Target(person=person, mode="namespace", repository=person.repository("hostile-jailed"))


def test_c14_the_machine_as_it_is(target):
    """The control: the same way of starting runs the agent when nothing is changed."""
    ended = changed(target)
    assert ended.ran, ended
    assert ended.status == 0
    assert not [w for w in json.loads(ended.stdout)["warnings"] if "not enforced" in w]


@pytest.mark.xdist_group("hostile-namespace")
def test_c14_firejail_that_only_passes_through(jailed, tmp_path):
    """Something in firejail's place runs the command without a sandbox."""
    ended = changed(jailed, change=replaced(tmp_path, PASS_THROUGH))
    said = assert_refused(ended)
    assert "the sandbox is not what was promised" in said
    assert "namespaces" in said
    # It leaves a signed word of what was seen, though there is no session any more.
    run = re.search(r"clsecure record show ([0-9a-f-]+)", json.loads(ended.stdout)["error"]["resolution"])
    assert run is not None, ended
    shown = jailed.person.clsecure(
        "record", "show", run[1], "--output", "json", cwd=jailed.repository
    ).check()
    statement = shown.json()["statement"]
    schema.check(statement, schema.load("record"))
    predicate = statement["predicate"]
    assert (predicate["complete"], predicate["decisions"][0]["action"]) == (False, "refuse")
    failed = {c["check_id"] for c in predicate["verification"]["checks"] if c["status"] == "fail"}
    assert "namespaces" in failed
    jailed.person.clsecure("record", "verify", run[1], cwd=jailed.repository).check()


@pytest.mark.xdist_group("hostile-namespace")
def test_c14_firejail_that_does_nothing(jailed, tmp_path):
    """Something in firejail's place ends well and has run nothing."""
    assert "did not come up" in assert_refused(changed(jailed, change=replaced(tmp_path, SAYS_YES)))


@pytest.mark.xdist_group("hostile-namespace")
def test_c14_firejail_that_is_not_roots(jailed, tmp_path):
    """A firejail without the set-user-id bit, or that others can change, is never run."""
    assert "set-uid" in assert_refused(changed(jailed, change=replaced(tmp_path, PASS_THROUGH, mode=0o755)))
    assert "set-uid" in assert_refused(changed(jailed, change=replaced(tmp_path, PASS_THROUGH, mode=0o4775)))


@pytest.mark.xdist_group("hostile-namespace")
def test_c9_old_firejail(jailed, tmp_path):
    """A firejail that is too old for the policy: doctor says so, and no session starts."""
    change = replaced(tmp_path, OLD)
    assert_refused(changed(jailed, change=change))
    person = jailed.person
    become = ["setpriv", f"--reuid={person.uid}", f"--regid={person.gid}", "--clear-groups"]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", f'{change}; exec "$@"', "sh",
         *become, *person.clsecure_argv("doctor", "--output", "json")],
        env=person.environment(), cwd="/", capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert not document["modes"]["namespace"]["works"]
    assert "firejail" in document["modes"]["namespace"]["lacks"]


def test_c14_a_foreign_pid_namespace(target):
    """Inside a PID namespace, as in a container, firejail warns and runs the command unsandboxed."""
    ended = changed(target, unshared=("--pid", "--fork", "--mount-proc"))
    match target.mode:
        case "namespace":
            assert_refused(ended)
        case _:
            # What the helper itself makes is made here too, and was seen to be.
            assert ended.ran, ended
            assert ended.status == 0


@pytest.mark.skipif(not (_X86 or _ARM), reason="left out: the tables of system calls are for two machines")
class TestKernelWithout:
    """A feature of the kernel is missing: the session is refused, or says what is not enforced."""

    @pytest.mark.parametrize("feature", ["SECCOMP", "NEW_PRIVS", "NAMESPACES", "MOUNT_SETATTR"])
    def test_c14_kernel_without(self, target, feature):
        """Seccomp, no_new_privs, namespaces or mount attributes can't be had: nothing starts."""
        rules = {
            "SECCOMP": NO_SECCOMP,
            "NEW_PRIVS": NO_NEW_PRIVS,
            "NAMESPACES": NO_NAMESPACES,
            "MOUNT_SETATTR": NO_MOUNT_SETATTR,
        }
        began = time.monotonic()
        assert_refused(changed(target, without=rules[feature]))
        # What ended at once is not waited for until its minute is over, whatever a runtime said of it.
        assert time.monotonic() - began < 50

    def test_c14_kernel_without_landlock(self, target):
        """Landlock is a second wall: without it the session starts, and says before that it is not there."""
        ended = changed(target, without=NO_LANDLOCK)
        assert ended.ran, ended
        warnings = json.loads(ended.stdout)["warnings"]
        assert [w for w in warnings if w.startswith("not enforced here: landlock")], warnings
        before, _, _ = ended.stderr.partition("ran-")
        assert "not enforced here: landlock" in before
