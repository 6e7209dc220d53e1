"""What an agent finds itself as: a process like any other that a shell would start."""

from __future__ import annotations

import pytest

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
