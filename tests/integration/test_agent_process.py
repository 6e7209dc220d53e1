"""What an agent finds itself as: a process like any other that a shell would start."""

from __future__ import annotations

import pytest

from tests.support import sweep

pytestmark = pytest.mark.root


@pytest.mark.parametrize("mode", ["user", "namespace"])
def test_signals_have_their_default_actions(person, mode):
    """Python ignores SIGPIPE and SIGXFSZ, and what is ignored stays so across exec."""
    repository = person.repository(f"signals-{mode}")
    script = "grep SigIgn /proc/self/status; yes | head -n 1"
    options = ("--mode", mode, "--agent", "demo", "--on-finish", "discard")
    done = person.clsecure(*options, "--", "sh", "-c", script, cwd=repository).check()
    assert done.stdout == b"SigIgn:\t0000000000000000\ny\n"
    assert "Broken pipe" not in done.errors


@pytest.mark.parametrize("mode", ["user", "namespace"])
def test_what_it_leaves_running_ends_with_it_and_its_status_counts(person, mode):
    """One ignores SIGTERM, one is in a session of its own: neither holds the session up."""
    repository = person.repository(f"left-{mode}")
    script = "(trap '' TERM; sleep 600; sleep 600) & setsid sleep 600 & exit 7"
    options = ("--mode", mode, "--agent", "demo", "--on-finish", "discard", "--output", "json")
    done = person.clsecure(*options, "--", "sh", "-c", script, cwd=repository)
    assert done.returncode == done.json()["exit_code"] == 7
    workers = {int(entry["uid"]) for entry in person.worker_accounts()}
    assert workers
    assert not [pid for uid in workers for pid in sweep.processes_of(uid)]


_RESPAWN = """
import os, sys
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        while True:
            if os.fork():
                os._exit(0)
sys.exit(9)
"""


@pytest.mark.parametrize("mode", ["user", "namespace"])
def test_what_it_leaves_can_not_hold_the_session_up_by_outrunning_the_end(person, mode):
    """Each process is gone before it can be killed by its number: the sandbox is killed then."""
    repository = person.repository(f"respawn-{mode}")
    options = ("--mode", mode, "--agent", "demo", "--on-finish", "discard", "--output", "json")
    done = person.clsecure(*options, "--", "python3", "-c", _RESPAWN, cwd=repository)
    assert done.json()["exit_code"] in (9, 137)
    workers = {int(entry["uid"]) for entry in person.worker_accounts()}
    assert not [pid for uid in workers for pid in sweep.processes_of(uid)]
