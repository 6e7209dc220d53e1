"""Container mode against the engines' own command lines, with the same image in the same run."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.cases import Session
from benchmarks.measuring import Case
from tests.support.built_images import Image, given_to
from tests.support.engines import CONTAINERS_CONF, docker_engine
from tests.support.person import SYSTEM_PATH, Person

IMAGE = "worker-minimal"
PODMAN, DOCKER = "podman run", "docker run"
FLOORS = {"podman": PODMAN, "docker": DOCKER}
OWN_ENGINE, WITHOUT = "session, namespace, --allow-docker", "session, namespace, without docker"


def session(engine: str, finish: str) -> str:
    """Return the name of a case."""
    return f"session, container ({engine}), existing account, {finish}"


@contextmanager
def cases(person: Person, repository: Path) -> Iterator[list[Case]]:
    """Return the floors and the sessions; what they need lasts as long as the context."""
    with ExitStack() as stack:
        image = stack.enter_context(given_to(person, IMAGE))
        found = [Case(name=PODMAN, run=stack.enter_context(_podman(image)))]
        found += _sessions(person, repository, "podman", {})
        for name, options in ((WITHOUT, ()), (OWN_ENGINE, ("--allow-docker",))):
            one = Session(person, repository, mode="namespace", finish="keep", options=options)
            key = f"engine-{len(options)}"
            one.run(key)
            found.append(Case(name=name, run=partial(one.run, key, "--fresh")))
        address = stack.enter_context(docker_engine())
        path = Path(address.removeprefix("unix://"))
        os.chown(path, person.uid, person.gid)
        for directory in (path.parent, path.parent.parent):
            directory.chmod(directory.stat().st_mode | 0o011)
        with image.archive.open("rb") as archive:
            _run(["docker", "load", "--quiet"], {"DOCKER_HOST": address}, stdin=archive.fileno())
        argv = ("docker", "run", "--rm", "--network", "none", "--read-only", image.image, "true")
        found.append(Case(name=DOCKER, run=partial(_run, argv, {"DOCKER_HOST": address})))
        yield found + _sessions(person, repository, "docker", {"DOCKER_HOST": address})


def _sessions(person: Person, repository: Path, engine: str, env: dict[str, str]) -> list[Case]:
    found = []
    for finish in ("keep", "import"):
        options = ("--engine", engine, "--image", IMAGE)
        one = Session(person, repository, mode="container", finish=finish, options=options, env=env)
        key = f"{engine}-{finish}"
        one.run(key)  # from here on the account exists, and the engine has the image
        found.append(
            Case(name=session(engine, finish), run=partial(one.run, key, "--fresh"), floor=FLOORS[engine])
        )
    return found


@contextmanager
def _podman(image: Image) -> Iterator[Callable[[], None]]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="clsecure-bench-") as name:
        place = Path(name)
        (place / "containers.conf").write_text(CONTAINERS_CONF)
        (place / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{place}/root"\nrunroot = "{place}/run"\n'
        )
        env = {
            "CONTAINERS_CONF": str(place / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(place / "storage.conf"),
        }
        _run(["podman", "load", "--quiet", "--input", str(image.archive)], env)
        try:
            argv = ("podman", "run", "--rm", "--network", "none", "--read-only", image.image, "true")
            yield partial(_run, argv, env)
        finally:
            _run(["podman", "system", "reset", "--force"], env)


def _run(argv: Sequence[str], env: dict[str, str], stdin: int = subprocess.DEVNULL) -> None:
    subprocess.run(
        argv,
        check=True,
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        env={"PATH": SYSTEM_PATH, "HOME": "/root", **env},
        timeout=600,
    )
