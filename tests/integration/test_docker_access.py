"""``--allow-docker`` as people use it: a compose project, pulls by the gateway, the user's own images."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clsecure.policy import HOST_ALIAS
from tests.support.compose import BUILD, client, give_project
from tests.support.engines import docker_engine, need
from tests.support.hostile import Target
from tests.support.person import Person

pytestmark = pytest.mark.root

ENGINES = Path("/var/lib/clsecure/engines")
OWN = ("--agent", "demo", "--allow-docker")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(mode, marks=pytest.mark.xdist_group(f"docker-{mode}"))
        for mode in ("namespace", "container")
    ],
)
def project(request: pytest.FixtureRequest, person: Person) -> Target:
    """The person's project of containers, in a mode."""
    mode = str(request.param)
    if mode == "container":
        request.getfixturevalue("worker_image")
    repository = person.repository(f"docker-{mode}")
    give_project(person, repository)
    return Target(person=person, mode=mode, repository=repository, options=(*OWN, "--no-network"))


def without_warnings(said: str) -> list[str]:
    """Return the lines but for what Compose v2 says of the version that the old one wants in the file."""
    lines = said.replace("\r", "").split("\n")
    return [line for line in lines if "`version` is obsolete" not in line]


def test_a_compose_project_comes_up_and_is_gone_afterwards(project: Target) -> None:
    compose = client(project.mode)
    up = project.attack(
        f"""
        set -e
        {compose} up -d >up.log 2>&1 || {{ cat up.log; exit 8; }}
        until served=$({compose} exec -T peer wget -qO- http://web/ 2>/dev/null); do :; done; echo "$served"
        until {compose} exec -T web cat /data/word; do :; done 2>/dev/null
        python3 -I -c 'import urllib.request as u; print(u.urlopen("http://127.0.0.1:8080/").read().decode())'
        {compose} exec -T peer sh -c 'id -u; ls /work'
        {compose} ps 2>/dev/null | grep -c peer
        {compose} logs >/dev/null 2>&1
        script -qec '{compose} exec web tty' /dev/null
        script -qec 'docker run --rm -it clsecure-web tty' /dev/null
        echo piped | docker run --rm -i clsecure-web cat
        docker run --rm -u nobody clsecure-web id -un
        docker run --rm -v "$PWD:$PWD" -w "$PWD" clsecure-web cat src/main.py
        if docker run clsecure-web sh -c 'exit 7'; then exit 6; else echo status $?; fi
        """,
        timeout=300,
    )
    assert up.status == 0, up.said
    lines = without_warnings(up.said)
    assert lines[:2] == ["served", "from-peer"], up.said
    assert lines[2:5] == ["served", "", "999"], up.said
    assert "docker-compose.yml" in lines
    assert len([line for line in lines if line.endswith("/dev/pts/0")]) == 2
    assert {"piped", "nobody", 'print("hello")', "status 7"} <= set(lines)
    assert not (ENGINES / project.account()["name"]).exists()
    after = project.attack(
        f"{compose} ps -q; docker ps -aq; docker images -q; docker volume ls -q", timeout=120
    )
    assert without_warnings(after.said) in ([""], ["", ""])


def test_a_compose_project_is_taken_down_by_its_own_command(project: Target) -> None:
    compose = client(project.mode)
    down = project.attack(
        f"{compose} up -d >/dev/null 2>&1; {compose} down -v >/dev/null 2>&1 && docker ps -aq && "
        "docker volume ls -q && docker network ls --format '{{.Name}}'",
        timeout=300,
    )
    assert down.status == 0
    assert set(down.said.split()) <= {"bridge", "podman"}


def test_what_containers_wrote_under_other_uids_comes_home(project: Target) -> None:
    """Databases close their directories: what a bind mount holds of them is the session's work, too."""
    script = (
        f"{BUILD} && docker run --rm -v $PWD:/w clsecure-web sh -c "
        "'mkdir -p /w/db/deep && echo rows >/w/db/deep/table && chown -R 999:998 /w/db && chmod -R go= /w/db'"
    )
    done = project.attack(script, finish="import", timeout=180)
    assert done.status == 0, done.said
    branch = done.result["import"]["branch"]
    assert project.person.git(project.repository, "show", f"{branch}:db/deep/table") == "rows"


def test_podmans_own_client_works(project: Target) -> None:
    if project.mode == "container":
        pytest.skip("left out: the worker image has docker's client only")
    done = project.attack(f"{BUILD}; podman --remote run --rm clsecure-web sh -c 'echo it; exit 7'; echo $?")
    assert done.said.split() == ["it", "7"]


class Registry:
    """Serves one image as a registry without TLS, on this machine's loopback."""

    def __init__(self) -> None:
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            data = Path("/bin/busybox").read_bytes()
            entry = tarfile.TarInfo("bin/busybox")
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
        blob = layer.getvalue()
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
        files = {"type": "layers", "diff_ids": [_digest(blob)]}
        command = {"Cmd": ["/bin/busybox", "echo", "pulled"]}
        config = json.dumps(
            {"architecture": machine, "os": "linux", "config": command, "rootfs": files}
        ).encode()
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        manifest = {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": _described(config, "application/vnd.docker.container.image.v1+json"),
            "layers": [_described(blob, "application/vnd.docker.image.rootfs.diff.tar")],
        }
        self.asked: list[str] = []
        answers = {"/v2/": b"{}", "/v2/sample/manifests/latest": json.dumps(manifest).encode()}
        answers |= {f"/v2/sample/blobs/{_digest(data)}": data for data in (blob, config)}
        asked = self.asked

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = answers.get(self.path)
                asked.append(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Type", kind if "manifests" in self.path else "application/json")
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body or b"")

            do_HEAD = do_GET  # noqa: N815  # http.server's name

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _described(data: bytes, kind: str) -> dict[str, object]:
    return {"mediaType": kind, "size": len(data), "digest": _digest(data)}


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def test_pulls_and_builds_go_out_through_the_gateway_only(project: Target, registry: Registry) -> None:
    if project.mode == "container":
        pytest.skip("left out: the worker image has no podman, and docker's client wants TLS of a registry")
    place = f"{HOST_ALIAS}:{registry.port}"
    reach = f"wget -qO- http://{place}/v2/"
    script = f"""
        podman --remote pull -q --tls-verify=false {place}/sample || exit 8
        docker run --rm {place}/sample
        docker pull registry.example.org/other 2>&1
        {BUILD}
        echo bare $(docker run --rm clsecure-web {reach} 2>&1)
        echo told $(docker run --rm -e http_proxy clsecure-web {reach} 2>&1)
        printf 'FROM clsecure-web\\nRUN {reach} >/built\\n' >Dockerfile
        docker build -q --build-arg http_proxy . >/dev/null 2>&1 && echo built
    """
    options = tuple(word for word in project.options if word != "--no-network")
    allowed = Target(person=project.person, mode=project.mode, repository=project.repository, options=options)
    done = allowed.attack(script, "--allow-domain", f"localhost:{registry.port}", timeout=300)
    assert done.status == 0, done.said
    lines = done.said.splitlines()
    assert "pulled" in lines
    assert any("registry.example.org:443 is not allowed in this session" in line for line in lines)
    assert any(line.startswith("bare wget: ") for line in lines), "a container goes out by itself"
    assert "told {}" in lines
    assert "built" in lines
    assert registry.asked.count("/v2/") >= 3
    assert "registry.example.org:443" in done.outcome.errors + json.dumps(done.result)


def test_images_of_the_users_own_engine_come_along(project: Target) -> None:
    need("dockerd", "containerd", "docker")
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(docker_engine())
        socket = Path(address.removeprefix("unix://"))
        os.chown(socket, project.person.uid, project.person.gid)
        socket.parent.chmod(0o711)
        env = {"DOCKER_HOST": address}
        build = ["docker", "build", "-q", "-t", "mine:1", "app"]
        more = {**env, "DOCKER_BUILDKIT": "0"}
        (project.repository / "app").stat()
        plain = b'FROM scratch\nCOPY busybox /bin/busybox\nCMD ["/bin/busybox", "echo", "brought"]\n'
        dockerfile = project.repository / "app/Dockerfile.plain"
        project.person.write(dockerfile, plain)
        project.person.run([*build, "-f", "app/Dockerfile.plain"], cwd=project.repository, env=more).check()
        brought = project.attack("docker run --rm mine:1", "--docker-image", "mine:1", env=env)
        assert brought.said.strip() == "brought"
        missing = project.refused("--docker-image", "not-there:1", env=env)
        assert "not-there:1" in missing.errors + missing.text
        dockerfile.unlink()


def test_the_machines_docker_is_lent_for_a_session(project: Target) -> None:
    """Attach, a terminal, half-closed streams, a build and many connections, as the user; over at the end."""
    options = ("--agent", "demo", "--no-network", "--allow-docker=host", "--yes")
    lent = Target(person=project.person, mode=project.mode, repository=project.repository, options=options)
    with docker_engine() as address:
        socket = Path(address.removeprefix("unix://"))
        os.chown(socket, project.person.uid, project.person.gid)
        socket.parent.chmod(0o711)
        script = """
            printf 'FROM scratch\\nCOPY busybox /bin/busybox\\n' >app/Plain
            DOCKER_BUILDKIT=0 docker build -q -t lent -f app/Plain app >/dev/null 2>&1 || exit 8
            docker run -d --name held --net none lent /bin/busybox sleep 1000 >/dev/null || exit 9
            echo half-closed | docker run --rm -i --net none lent /bin/busybox cat
            script -qec 'docker exec -it held /bin/busybox tty' /dev/null
            for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
                docker exec held /bin/busybox echo many >>many & done; wait; grep -c many many
            docker ps -q | wc -l; id -G | wc -w; grep Groups /proc/self/status
        """
        env = {"DOCKER_HOST": address}
        done = lent.attack(script, env=env, timeout=180)
        assert done.status == 0, done.said
        # script shows the end of its own input as ^@.
        lines = done.said.replace("\r", "").replace("^@", "").splitlines()
        assert lines[0] == "half-closed"
        assert lines[1].endswith("/dev/pts/0")
        assert lines[2:5] == ["20", "1", "1"], lines
        assert done.result["docker"] == "host"
        left = project.person.run(["docker", "ps", "-q"], env=env).check().text.split()
        assert len(left) == 1, "what it left on the machine's docker is there, as the residual says"
        project.person.run(["docker", "rm", "-f", *left], env=env).check()
    after = Target(person=lent.person, mode=lent.mode, repository=lent.repository, options=options[:3])
    said = after.attack("env | grep DOCKER; ls /run/clsecure /run/docker.sock; docker ps; :").said
    assert "DOCKER" not in said
    assert "docker.sock:" not in said.replace("/var/run/docker.sock", "").replace("'/run/docker.sock':", "")


def test_the_preset_lets_the_engine_ask_dockers_own_registry(project: Target) -> None:
    """Whether it is reached is this machine's network's to say; without the preset the gateway says no."""
    if project.mode == "container":
        pytest.skip("left out: the gateway is the same in every mode")
    options = tuple(word for word in project.options if word != "--no-network")
    asking = Target(person=project.person, mode=project.mode, repository=project.repository, options=options)
    pull = "docker pull hello-world 2>&1; :"
    # Something has to be allowed for there to be a gateway.
    without = asking.attack(pull, "--allow-domain", "unrelated.example", timeout=300)
    assert "registry-1.docker.io:443 is not allowed in this session" in without.said
    allowed = asking.attack(pull, "--allow-preset", "docker", timeout=300)
    assert "is not allowed in this session" not in allowed.said
    assert "docker.io" in allowed.said


def test_setup_and_hook_have_an_engine_of_their_own_each(project: Target) -> None:
    """What they make in it does not reach the agent, nor what the agent makes the hook."""
    if project.mode != "namespace":
        pytest.skip("left out: the same engine in every mode")
    person = project.person
    repository = person.repository("docker-steps")
    give_project(person, repository)
    count = "docker images -q clsecure-web | wc -l"
    person.run(["mkdir", "-p", str(repository / ".clsecure")]).check()
    hook = f"#!/bin/sh\n{count} >hook-saw\n{BUILD}\n{count} >>hook-saw\n"
    person.write(repository / ".clsecure/on-cleanup", hook.encode(), mode=0o755)
    person.git(repository, "add", ".")
    person.git(repository, "commit", "--quiet", "-m", "A hook")
    setup = f"#!/bin/sh\nset -e\n{BUILD}\n{count} >setup-saw\n"
    person.write(person.home / "docker-setup.sh", setup.encode(), mode=0o755)
    environ = {"CLSECURE_SETUP_SCRIPT": str(person.home / "docker-setup.sh")}
    target = Target(
        person=person, mode=project.mode, repository=repository, options=project.options, environ=environ
    )
    done = target.attack(f"cat setup-saw; {count}; {BUILD}; {count}", finish="import", timeout=300)
    assert done.said.split() == ["1", "0", "1"], done.said
    branch = done.result["import"]["branch"]
    assert person.git(repository, "show", f"{branch}:hook-saw").split() == ["0", "1"]
