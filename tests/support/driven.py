"""A program of a person's that holds a real sandbox by clsecure's own modules, step by step with the test."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.person import SYSTEM_PATH, Person
from tests.support.shared_setup import DIRECTORY

MODES = [
    "user",
    "namespace",
    pytest.param("podman", marks=pytest.mark.xdist_group("containers")),
    pytest.param("docker", marks=pytest.mark.xdist_group("containers")),
]
PRELUDE = """
import contextlib, json, os, sys
from pathlib import Path
from clsecure.backends.choose import backend_for
from clsecure.model import *
from clsecure.privileged.client import HelperConnection

def tell(what):
    print(json.dumps(what), flush=True)

def told():
    return sys.stdin.readline().rstrip("\\n")

@contextlib.contextmanager
def opened(mode, image, helper, **more):
    engine = Engine(mode) if mode in ("podman", "docker") else None
    container = engine and ContainerSpec(engine=engine, image=WorkerImage(name="worker", image_id=image))
    kind = IsolationMode.CONTAINER if engine else IsolationMode(mode)
    with contextlib.closing(HelperConnection(Path(helper))) as connection:
        account = connection.lease(project=os.getcwd(), session="driven", create=True)
        try:
            spec = SandboxSpec(mode=kind, account=account, container=container, **more)
            with backend_for(kind, connection, container).open(spec) as sandbox:
                yield sandbox, spec
        finally:
            connection.remove()

"""


class Driver:
    """The program: it is told lines, and says JSON documents."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def tell(self, line: str = "") -> None:
        """Give it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def said(self) -> Any:  # a document of any shape
        """Return what it says next; fail with its words where it ended."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read().decode()
        return json.loads(line)


@contextmanager
def driven(
    person: Person, source: str, mode: str, image: str, environ: dict[str, str], *, mounts: str = "true"
) -> Iterator[Driver]:
    """Run ``PRELUDE`` and the source as the person, with mode, image and helper as its arguments.

    :param mounts: a shell command, run as root in a mount namespace of the program's own.
    """
    argv = [sys.executable, "-I", "-c", PRELUDE + source, mode, image, f"{DIRECTORY}/helper"]
    ids = ("--reuid", person.uid, "--regid", person.gid, "--groups", person.groups[0], "--inh-caps=-all")
    script = f'{mounts} && cd {shlex.quote(str(person.home))} && exec setpriv "$@"'
    whole = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", *map(str, ids), *argv]
    pipe = subprocess.PIPE
    env = person.environment({**environ, "PATH": SYSTEM_PATH})
    with subprocess.Popen(whole, env=env, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            yield Driver(process)
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.communicate(timeout=60)


def image_for(request: pytest.FixtureRequest, mode: str) -> tuple[str, dict[str, str]]:
    """Return the image of a mode and what the person's environment needs for it; nothing in local modes."""
    if mode not in ("podman", "docker"):
        return "", {}
    image = request.getfixturevalue("worker_image").image
    if mode == "docker":
        return image, {"DOCKER_HOST": request.getfixturevalue("docker_host")}
    request.getfixturevalue("podman_image")
    return image, {}
