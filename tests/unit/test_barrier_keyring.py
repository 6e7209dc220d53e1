"""A9: whose keyring a sandbox has, as the kernel says it, and what of it stops the start."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from clsecure.backends.api import KeyringFacts, ProcessFacts
from clsecure.model import (
    CheckResult,
    CheckStatus,
    ContainerSpec,
    Engine,
    IsolationMode,
    SandboxSpec,
    WorkerAccount,
    WorkerImage,
)
from clsecure.verify.host import check_barrier

ACCOUNT = WorkerAccount(name="claude-worker-x", uid=1_900_000_000, gid=1_900_000_000, home=Path("/home/x"))
SPEC = SandboxSpec(mode=IsolationMode.USER, account=ACCOUNT)
OWN = KeyringFacts(serial=5, name="_ses", helper=4)


def results(keyring: KeyringFacts | None, spec: SandboxSpec = SPEC) -> list[CheckResult]:
    facts = ProcessFacts(
        pid=1, status={}, namespaces={}, host_namespaces={}, mountinfo=(), descriptors={}, executable="",
        landlock_abi=0, seccomp_filter=False, keyring=keyring,
    )  # fmt: skip
    return [each for each in check_barrier(facts, spec) if each.check_id == "session-keyring"]


def test_a_new_keyring_passes() -> None:
    assert [each.status for each in results(OWN)] == [CheckStatus.PASS]


@pytest.mark.parametrize(
    "found",
    [
        None,
        dataclasses.replace(OWN, serial=4),
        # What a process has that never took one.
        dataclasses.replace(OWN, name="_uid_ses.1900000000"),
        dataclasses.replace(OWN, name="somebody's"),
    ],
)
def test_one_that_was_there_before_stops_the_start(found: KeyringFacts | None) -> None:
    assert [each.status for each in results(found)] == [CheckStatus.FAIL]


@pytest.mark.parametrize("runtime", [None, "runsc"])
def test_what_dockers_daemon_starts_has_none_of_the_users(runtime: str | None) -> None:
    image = WorkerImage(name="worker", image_id=f"sha256:{'0' * 64}")
    for engine, count in ((Engine.DOCKER, 0), (Engine.PODMAN, 1)):
        container = ContainerSpec(engine=engine, image=image, runtime=runtime)
        spec = dataclasses.replace(SPEC, mode=IsolationMode.CONTAINER, container=container)
        assert len(results(OWN, spec)) == count


ASK = """
import json, os
from clsecure.privileged.root.kernel import own_keyring, session_keyring
own_keyring()
before = session_keyring()
if os.fork() == 0:
    inherited = session_keyring()
    own_keyring()
    print(json.dumps([before, inherited, session_keyring()]))
else:
    os.wait()
"""


def test_the_kernel_tells_whose_keyring_it_is() -> None:
    argv = [sys.executable, "-P", "-c", ASK]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    if "Operation not permitted" in done.stderr:
        pytest.skip("keys are closed to this process, as in a container")
    before, inherited, own = json.loads(done.stdout)
    assert before == inherited
    assert before[0] != own[0]
    assert own[1] == "_ses"
