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
