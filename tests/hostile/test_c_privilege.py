"""C: privilege and kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

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
        seen = 0
        for pid in agent.processes():
            status = status_of(pid)
            # firejail's own parent waits outside of what it made; the agent can't reach it: another PID
            # namespace and another user. Everything of the agent's is below it.
            if status["Name"] == "firejail":
                continue
            seen += 1
            assert status["Uid"].split() == [str(uid)] * 4
            assert status["Gid"].split() == [str(uid)] * 4
            assert set(status["Groups"].split()) <= {str(uid)}
            assert status["NoNewPrivs"] == "1"
            assert {status[name] for name in _CAPABILITIES} == {"0" * 16}
            # The first process of the PID namespace is the helper's own: it waits, and nothing can trace it.
            assert status["Seccomp"] == "2" or status["NSpid"].split()[-1] == "1"
        assert seen
