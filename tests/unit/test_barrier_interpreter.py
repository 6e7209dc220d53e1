"""What runs the launcher: the machine's own interpreter, by the file, or the image's, by its name."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from clsecure.backends.api import ProcessFacts
from clsecure.model import (
    CheckStatus,
    ContainerSpec,
    Engine,
    IsolationMode,
    SandboxSpec,
    WorkerAccount,
    WorkerImage,
)
from clsecure.privileged.root.facts import facts_of
from clsecure.verify.host import check_barrier
from tests.support.leftovers import wait_until

ACCOUNT = WorkerAccount(name="claude-worker-x", uid=1_900_000_000, gid=1_900_000_000, home=Path("/home/x"))
LOCAL = SandboxSpec(mode=IsolationMode.USER, account=ACCOUNT)
CONTAINER = replace(
    LOCAL,
    mode=IsolationMode.CONTAINER,
    container=ContainerSpec(engine=Engine.PODMAN, image=WorkerImage(name="worker", image_id="sha256:0")),
)


def status(spec: SandboxSpec, executable: str, *, interpreter: bool) -> CheckStatus:
    facts = ProcessFacts(
        pid=1, status={}, namespaces={}, host_namespaces={}, mountinfo=(), descriptors={},
        executable=executable, interpreter=interpreter, landlock_abi=0, seccomp_filter=False,
    )  # fmt: skip
    (found,) = [each for each in check_barrier(facts, spec) if each.check_id == "executable"]
    return found.status


@pytest.mark.parametrize("mode", [IsolationMode.USER, IsolationMode.NAMESPACE])
def test_c14_another_file_is_not_the_interpreter_whatever_it_is_called(mode: IsolationMode) -> None:
    spec = replace(LOCAL, mode=mode)
    assert status(spec, "/usr/bin/python3.11", interpreter=True) is CheckStatus.PASS
    for name in ("/usr/bin/python3", "/usr/bin/python3.11", "/usr/bin/python3-evil", ""):
        assert status(spec, name, interpreter=False) is CheckStatus.FAIL


@pytest.mark.parametrize(
    ("executable", "holds"),
    [
        ("/usr/bin/python3", True),
        ("/usr/bin/python3.13", True),
        ("/usr/bin/python3-evil", False),
        ("/usr/bin/python3.13.evil", False),
        ("/usr/bin/python3.13 (deleted)", False),
        ("/usr/bin/python3/../sh", False),
        ("/usr/bin/python3.13\n", False),
        ("/tmp/usr/bin/python3", False),
    ],
)
def test_c14_an_images_interpreter_has_exactly_its_name(executable: str, *, holds: bool) -> None:
    assert (status(CONTAINER, executable, interpreter=False) is CheckStatus.PASS) is holds
    assert (status(CONTAINER, executable, interpreter=True) is CheckStatus.PASS) is holds


def test_c14_the_helper_tells_the_interpreter_from_a_copy_of_it(tmp_path: Path) -> None:
    copy = tmp_path / "python3"
    shutil.copy("/usr/bin/python3", copy)
    for program, same in (("/usr/bin/python3", True), (str(copy), False), ("/usr/bin/cat", False)):
        argv = [program, *(["-I", "-S", "-c", "input()"] if "python" in program else [])]
        with subprocess.Popen(argv, stdin=subprocess.PIPE) as child:
            wait_until(
                lambda child=child, program=program: Path(f"/proc/{child.pid}/exe").samefile(program),
                "it is executed",
            )
            assert facts_of(child.pid)["interpreter"] is same
            child.communicate(b"\n")
