"""G10: what ``clsecure info`` says is what the host confirmed; where it can't, nothing is said to hold."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.hostile.test_c14_no_sandbox import (
    NO_LANDLOCK,
    NO_NAMESPACES,
    NO_NEW_PRIVS,
    NO_SECCOMP,
    PASS_THROUGH,
    SAYS_YES,
    on_changed_machine,
    replaced,
)
from tests.support.hostile import REFUSED, Target

pytestmark = pytest.mark.root


def info(target: Target, **machine: object) -> subprocess.CompletedProcess[str]:
    argv = target.person.clsecure_argv("info", "--mode", target.mode, "--output", "json")
    return on_changed_machine(target, argv, **machine)  # type: ignore[arg-type]


def status_of(document: dict, property_: str) -> str:
    return next(row["status"] for row in document["rows"] if row["property"] == property_)


def test_g10_the_machine_as_it_is(target):
    """The control: everything that is tried by the next tests holds when nothing is changed."""
    done = info(target)
    assert done.returncode == 0, done
    document = json.loads(done.stdout)
    assert document["holds"]
    assert status_of(document, "writes are confined by Landlock too") == "held"
    assert status_of(document, "your home is out of reach") == "held"


@pytest.mark.parametrize("program", [PASS_THROUGH, SAYS_YES])
def test_g10_firejail_that_is_none_is_not_called_a_sandbox(target, tmp_path, program):
    """Something in firejail's place runs the launcher without a sandbox, or nothing at all."""
    done = info(target, change=replaced(tmp_path, program))
    if target.mode != "namespace":
        assert done.returncode == 0, "no firejail is used here"
        return
    assert done.returncode in REFUSED, done
    document = json.loads(done.stdout)
    if program is SAYS_YES:
        assert "did not come up" in document["error"]["brief"]
        return
    assert done.returncode == 123
    assert not document["holds"]
    assert status_of(document, "own mount, PID, network, IPC and UTS namespaces") == "not held"
    assert not [row for row in document["rows"] if "inside" in row["evidence"]], "the probe ran"


@pytest.mark.parametrize("lacks", [NO_SECCOMP, NO_NEW_PRIVS, NO_NAMESPACES], ids=["seccomp", "nnp", "ns"])
def test_g10_a_kernel_without_what_the_mode_needs_holds_nothing(target, lacks):
    """Nothing comes up, or what came up is not what was promised: no table says otherwise."""
    done = info(target, without=lacks)
    assert done.returncode in REFUSED, done
    document = json.loads(done.stdout)
    assert "error" in document or not document["holds"]


def test_g10_a_kernel_without_landlock_is_said_to_be_without(target):
    """The second wall is missing: its row says so, the others are still tried."""
    done = info(target, without=NO_LANDLOCK)
    assert done.returncode == 0, done
    document = json.loads(done.stdout)
    assert status_of(document, "writes are confined by Landlock too") == "not enforced here"
    assert status_of(document, "your home is out of reach") == "held"


def test_g10_nothing_of_it_is_left(target):
    """The account that was made for the probe is gone, and its bait."""
    mine = ("-maxdepth", "1", "-user", target.person.name)  # other tests have theirs at the same time
    places = ("/tmp", str(target.person.home / ".local/state/clsecure"))

    def bait() -> set[str]:
        return set(target.person.run(["find", *places, *mine, "-name", "*info-*"]).text.split())

    # A session that was killed leaves some until a later one sweeps it away.
    before = bait()
    info(target)
    assert not [a for a in target.person.worker_accounts() if a["session"] == "clsecure-info"]
    assert bait() <= before
