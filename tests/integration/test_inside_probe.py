"""The probe in real sandboxes of every kind: what holds passes; testinfra and own tests see the inside."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.built_images import given_to
from tests.support.gvisor import runsc
from tests.support.person import CHECKOUT, Person
from tests.support.shared_setup import DIRECTORY

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]  # building the image is some of it

DRIVER = """
import contextlib, dataclasses, json, sys, time
from pathlib import Path
from clsecure.backends.choose import backend_for
from clsecure.installation import Installation
from clsecure.model import ContainerSpec, Engine, IsolationMode, NetworkPolicy, Phase, WorkerImage
from clsecure.privileged.client import HelperConnection
from clsecure.session.info import Wanted, own_account
from clsecure.session.own_checks import find_own_checks, run_own_checks
from clsecure.session.probing import control, probing, try_inside
from clsecure.verify.bait import put_out
from clsecure.verify.changes import differences
from clsecure.verify.fresh import check_fresh
from clsecure.verify.inside import check_inside

mode, image, runtime, directory, settings = sys.argv[1:]
engine = Engine(mode) if mode in ("podman", "docker") else None
image = WorkerImage(name="worker", image_id=image)
container = engine and ContainerSpec(engine=engine, image=image, runtime=runtime or None)
kind = IsolationMode.CONTAINER if engine else IsolationMode(mode)
wanted = Wanted(mode=kind, network=NetworkPolicy.API, container=container)
installed, results, seconds = Installation(directory=Path(directory)), [], {}
with contextlib.ExitStack() as stack:
    connection = stack.enter_context(contextlib.closing(HelperConnection(installed.helper)))
    bait = stack.enter_context(put_out(Path.home(), Path.home()))
    spec = stack.enter_context(own_account(wanted, connection, Path.home(), None))
    outside = control(installed.inside, bait)
    backend = backend_for(kind, connection, container)
    with backend.open(spec) as sandbox:
        begun = time.monotonic()
        with probing(sandbox, spec, installed.inside, bait) as probe:
            tried = try_inside(probe, outside, bait=bait, sandbox=sandbox, spec=spec)
            results += check_inside(tried, spec, Phase.START)
        seconds["start"] = time.monotonic() - begun
    with backend.open(spec) as sandbox, probing(sandbox, spec, installed.inside, bait) as probe:
        begun = time.monotonic()
        again = try_inside(probe, outside, bait=bait, sandbox=sandbox, spec=spec)
        results.append(differences(tried, again.inside, port=again.port))
        results += check_fresh(probe, spec)
        seconds["end"] = time.monotonic() - begun
        results += run_own_checks(find_own_checks(Path(settings)), probe, spec, session="s", phase=Phase.END)
print(json.dumps({"checks": [dataclasses.asdict(each) for each in results], "seconds": seconds}))
"""
OWN = """
import os

def test_this_is_the_sandbox(host, session):
    assert host.user().home == session.home != os.path.expanduser("~")
    assert host.file(session.home).mode == 0o700
    assert not host.file(os.path.expanduser("~")).exists
    assert host.mount_point("/").filesystem in ("tmpfs", "overlay", "9p")

def test_this_fails(host):
    assert host.file("/etc/shadow").content_string == "readable"
"""


def looked(
    person: Person, kind: str, settings: Path, *, image: str, runtime: str, environ: dict[str, str]
) -> Any:
    ids = ("--reuid", person.uid, "--regid", person.gid, "--groups", person.groups[0], "--inh-caps=-all")
    argv = (
        "setpriv",
        *map(str, ids),
        sys.executable,
        "-I",
        "-c",
        DRIVER,
        kind,
        image,
        runtime,
        DIRECTORY,
        settings,
    )
    done = subprocess.run(
        list(map(str, argv)), env=person.environment(environ), cwd=person.home, capture_output=True,
        text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def engine(kind: str, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The image, runtime and environment of a container of the kind; nothing of it for the others."""
    found: dict[str, Any] = {"image": "", "runtime": "", "environ": {}}
    match kind:
        case "podman" | "docker":
            address = request.getfixturevalue("podman_image" if kind == "podman" else "docker_host")
            found["image"] = request.getfixturevalue("worker_image").image
            found["environ"] = {"DOCKER_HOST": address} if kind == "docker" else {}
            yield found
        case "gvisor":
            person = request.getfixturevalue("person")
            with given_to(person, "worker-minimal") as image, runsc() as runtime:
                person.clsecure("images", "load", image.name, timeout=240).check()
                yield {**found, "image": image.image, "runtime": runtime}
        case _:
            yield found


@pytest.mark.parametrize(
    "kind",
    [
        "user",
        "namespace",
        pytest.param("podman", marks=pytest.mark.xdist_group("containers")),
        pytest.param("docker", marks=pytest.mark.xdist_group("containers")),
        pytest.param("gvisor", marks=[pytest.mark.xdist_group("gvisor"), pytest.mark.slow]),
    ],
)
def test_a_sandbox_that_holds_passes_and_own_tests_look_into_it(person, kind, engine) -> None:
    settings = person.home / ".config" / "clsecure"
    example = (CHECKOUT / "hooks" / "checks.d" / "test_house_rules.py").read_bytes()
    person.run(["mkdir", "-p", str(settings / "checks.d")]).check()
    person.write(settings / "checks.d" / "test_house_rules.py", example)
    person.write(settings / "checks.d" / "test_own.py", OWN.encode())
    try:
        found = looked(person, "podman" if kind == "gvisor" else kind, settings, **engine)
    finally:
        person.run(["rm", "-r", str(settings / "checks.d")]).check()
    checks = {each["check_id"]: each for each in found["checks"]}
    assert len(checks) == len(found["checks"])
    failed = {name: each["observed"] for name, each in checks.items() if each["status"] == "fail"}
    assert list(failed) == ["own:test_own.py::test_this_fails"], failed
    passed = {name for name, each in checks.items() if each["status"] == "pass"}
    assert {"canary-home", "loopback", "no-route", "system-calls", "gateway-port"} <= passed
    assert "escape-probes" in passed or kind == "gvisor"
    assert {"inside-unchanged", "temporary-empty", "account-name", "root-options"} <= passed
    assert "own:test_own.py::test_this_is_the_sandbox" in passed
    house = {name: each["status"] for name, each in checks.items() if "house_rules" in name}
    assert len(house) == 7
    assert set(house.values()) <= {"pass", "skip"}
