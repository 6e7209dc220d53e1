"""What the filter of system calls refuses is tried, for real and all of it: what it lets through shows."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clsecure.errors import ToolError
from clsecure.privileged import launcher
from clsecure.session.probing import control
from clsecure.verify import calls
from clsecure.verify.bait import Bait, put_out
from clsecure.verify.probe import Probe
from clsecure.verify.tried import Report
from tests.support.person import CHECKOUT

PIECES = CHECKOUT / "clsecure" / "privileged"
pytestmark = [
    pytest.mark.skipif(
        platform.machine() not in launcher.DENIED, reason="the launcher has no table of this architecture"
    ),
    pytest.mark.skipif(
        "Seccomp:\t0" not in Path("/proc/self/status").read_text(),
        reason="a filter is in force already, which answers in the place of this one",
    ),
]
LOADED = """
import importlib.util, json, os, sys
def load(name):
    spec = importlib.util.spec_from_file_location(name, f"{sys.argv[1]}/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
launcher = load("launcher")
launcher.libc.prctl(launcher.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
"""
# Each round in a process of its own: a filter can't be taken away.
ROUNDS = f"""{LOADED}
inside, order = load("inside"), json.load(sys.stdin)
def one(weaken, filtered=True):
    out, into = os.pipe()
    if os.fork() == 0:
        families = weaken() or launcher.ALLOWED_FAMILIES
        if filtered:
            launcher.seccomp(families)
        told = {{
            **inside.handed_over(order["handed_over"]),
            **{{name: inside.called(call) for name, call in order["called"].items()}},
        }}
        os.write(into, json.dumps(told).encode())
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as file:
        told = json.loads(file.read())
    os.wait()
    return told
"""
WEAKER = f"""{ROUNDS}
def weakened(name):
    denied = launcher.DENIED[os.uname().machine]
    if name in denied:
        del denied[name]
    elif name in launcher.MISSING:
        del launcher.MISSING[name]
    elif name.startswith("clone "):
        launcher.NAMESPACE_FLAGS &= ~order["handed_over"][name][1]
    elif name.startswith("TIOC"):
        setattr(launcher, name, 0x5499)
    elif name.startswith("pair of "):
        launcher.AF_UNIX = order["handed_over"][name][1]
    elif name.startswith("AF_"):
        return (*launcher.ALLOWED_FAMILIES, order["handed_over"][name][1])
    else:
        launcher.X32_BIT <<= 1
found = {{name: one(lambda: weakened(name)) for part in order.values() for name in part}}
print(json.dumps({{"open": one(bool, filtered=False), "whole": one(bool), "weaker": found}}))
"""
# By their text: another account can't read a checkout, and what Landlock holds can't either.
HELD = """
import os, sys
launcher = {"__name__": "launcher"}
exec(sys.argv[2], launcher)
read, everything = launcher["EXECUTE"] | launcher["READ_FILE"] | launcher["READ_DIR"], launcher["FS_ALL"]
launcher["libc"].prctl(launcher["PR_SET_NO_NEW_PRIVS"], 1, 0, 0, 0)
if sys.argv[1] == "held":
    places = [(path, read) for path in ("/usr", "/lib", "/lib64", "/etc")]
    launcher["restrict"](launcher["landlock_abi"](), [*places, ("/proc", everything), ("/dev", everything)])
os.execv("/usr/bin/python3", ["python3", "-I", "-S", "-c", sys.argv[3]])
"""


def asked(program: str, order: object) -> Any:
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", program, str(PIECES)],
        input=json.dumps(order), capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def rounds() -> Any:
    return asked(WEAKER, calls.ORDER)


def let_through(told: dict[str, str | None]) -> set[str]:
    return {name for part in calls.ORDER.values() for name in part if not calls.refused(told, name)}


def test_the_filter_refuses_all_that_is_tried(rounds) -> None:
    assert let_through(rounds["whole"]) == set()
    assert set(rounds["whole"]) == {*calls.ORDER["handed_over"], *calls.ORDER["called"]}


def test_without_a_filter_what_is_to_be_refused_is_handed_over_and_not_executed(rounds) -> None:
    """None of it, not even what everybody may do: the positive control runs as the user."""
    assert {name: rounds["open"][name] for name in calls.ORDER["handed_over"]} == dict.fromkeys(
        calls.ORDER["handed_over"], "ENOSYS"
    )


def test_what_is_to_be_missing_is_answered_with_an_error_where_it_is_there(rounds) -> None:
    """Wrong arguments do nothing; a kernel that does without a call shows nothing of it."""
    answers = {name: rounds["open"][name] for name in launcher.MISSING}
    assert set(answers.values()) <= {"EINVAL", "EFAULT", "EPERM", "EBADF", "ENOSYS"}
    assert set(answers.values()) != {"ENOSYS"}


@pytest.mark.parametrize("name", [name for part in calls.ORDER.values() for name in part])
def test_a_call_that_the_filter_lets_through_is_noticed_and_no_other(rounds, name) -> None:
    found = let_through(rounds["weaker"][name])
    if name in calls.ORDER["called"] and rounds["open"][name] == "ENOSYS":
        assert found == set(), "this kernel does without it"
    else:
        assert found == {name}


@pytest.mark.parametrize("machine", sorted(launcher.DENIED))
def test_every_rule_of_the_filters_tables_is_tried(machine) -> None:
    tried, missing = calls.refused_calls(machine), calls.missing_calls(machine)
    assert {name: tried[name][0] for name in launcher.DENIED[machine]} == launcher.DENIED[machine]
    assert {name: missing[name][0] for name in launcher.MISSING} == launcher.MISSING
    assert set(calls.NONSENSE) == set(launcher.MISSING)
    flags = [call[1] for call in tried.values() if call[0] == launcher.CLONE[machine]]
    assert sum(flags) == launcher.NAMESPACE_FLAGS
    assert all(flag & (flag - 1) == 0 for flag in flags)
    for number, allowed in (
        (launcher.SOCKET[machine], set(launcher.ALLOWED_FAMILIES)),
        (launcher.SOCKETPAIR[machine], {launcher.AF_UNIX}),
    ):
        assert {call[1] for call in tried.values() if call[0] == number} == set(range(64)) - allowed


def test_each_call_is_of_one_check() -> None:
    groups = [*calls.TERMINAL, *calls.KEYS, *calls.NAMESPACES, *calls.OTHERS]
    assert sorted(groups) == sorted(name for part in calls.ORDER.values() for name in part)


def test_no_rule_of_the_filter_is_in_none_of_its_tables() -> None:
    """Every number that there is, none of them executed: what is refused has to be one that is tried."""
    # What the process that tries them lives by: memory, writing, waiting, ending. And uretprobe and uprobe,
    # which no filter sees: the kernel's own code makes them, and whoever else does is killed.
    lives_by = {
        "x86_64": {1, 9, 10, 11, 12, 13, 14, 15, 25, 28, 60, 202, 231, 335, 336},
        "aarch64": {64, 93, 94, 98, 134, 135, 139, 214, 215, 216, 222, 226, 233},
    }[platform.machine()]
    numbers = {str(number): (number,) for number in range(1000) if number not in lives_by}
    program = f"{ROUNDS}\nprint(json.dumps(one(bool)))"
    told = asked(program, {"handed_over": numbers, "called": {}})
    refused = {int(name) for name, error in told.items() if error != "ENOSYS"}
    tried = {call[0] for call in calls.ORDER["handed_over"].values()}
    assert len(told) == len(numbers)
    # Of these it is the arguments that count: a family 0 there is none.
    only_some = {launcher.CLONE[platform.machine()], launcher.IOCTL[platform.machine()]}
    assert refused == tried - only_some


def test_an_engine_of_a_sessions_own_makes_neither_sockets_nor_pairs_of_other_families() -> None:
    """Its filter is another one, and its containers can't leave that."""
    ours = f"sys.path.append({str(CHECKOUT)!r}); import clsecure.privileged.root.seccomp as engine"
    program = f"{ROUNDS}\n{ours}\nlauncher.seccomp = lambda _families: engine.restrict_engine()"
    sockets = {
        name: call
        for name, call in calls.ORDER["handed_over"].items()
        if name.startswith(("AF_", "pair of "))
    }
    machine = platform.machine()
    local = {"a pair": (launcher.SOCKETPAIR[machine], 1, 1), "a socket": (launcher.SOCKET[machine], 1, 1)}
    told = asked(f"{program}\nprint(json.dumps(one(bool)))", {"handed_over": sockets | local, "called": {}})
    assert told == dict.fromkeys(sockets, "EAFNOSUPPORT") | dict.fromkeys(local, "ENOSYS")


@contextmanager
def probing(bait: Bait, how: str) -> Iterator[Probe]:
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()
    texts = ((PIECES / name).read_text() for name in ("launcher.py", "inside.py"))
    argv = (*user, "/usr/bin/python3", "-I", "-c", HELD, how, *texts)
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=bait.words)
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        yield Probe(child.stdin.fileno(), child.stdout.fileno())
        child.stdin.close()


def reopened(where: Path, how: str) -> Report:
    with put_out(where, where) as bait, probing(bait, how) as probe:
        report = probe.battery({**bait.order(), "services": {}})
        assert bait.said() == ""
        return report


@pytest.mark.skipif(not launcher.landlock_abi(), reason="this kernel has no Landlock")
def test_the_file_that_only_landlock_keeps_from_being_opened_again_can_be_without(tmp_path) -> None:
    """By another account: nothing else is in the way, which is what makes it a test of Landlock."""
    held, free = reopened(tmp_path, "held"), reopened(tmp_path, "free")
    assert held.reopened == dict.fromkeys(("read", "written"), "EACCES")
    assert free.reopened == dict.fromkeys(("read", "written"))
    assert held.landlock == free.landlock == launcher.landlock_abi()


def test_the_probes_last_words_are_told_once_and_bounded(tmp_path) -> None:
    with put_out(tmp_path, tmp_path) as bait:
        os.write(bait.words, b"first " + b"x" * 10000)
        assert bait.said().startswith("first ")
        os.write(bait.words, b"second")
        assert bait.said() == "second"
        assert bait.said() == ""
        assert not Path(bait.words_path).exists()


def test_a_probe_that_fails_outside_is_told_with_its_own_words(tmp_path) -> None:
    program = tmp_path / "probe.py"
    program.write_text("import sys; sys.exit('there is no kernel here')")
    with put_out(tmp_path, tmp_path) as bait, pytest.raises(ToolError) as raised:
        control(program, bait)
    assert raised.value.details == "there is no kernel here"
