"""C8, C14 for containers: the container is what docs/containers.md promises, and none starts that is not."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.test_c14_no_sandbox import SAYS_YES, assert_refused, changed
from tests.support.built_images import Image
from tests.support.containers import engine_of, in_engine, inspected, words_of
from tests.support.hostile import LiveAgent, Target
from tests.support.person import CHECKOUT
from tests.support.sabotage import DOCKER, Patch, Scene, replaced

pytestmark = pytest.mark.root
by_podman = pytest.mark.xdist_group("hostile-container")

PROMISE = CHECKOUT / "docs" / "containers.md"
PIECES = "/usr/local/lib/clsecure"


def promised(engine: str) -> dict[str, Any]:
    """Return the table of docs/containers.md for one engine: what inspect says, as JSON, by its place."""
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| (.+?) \|", PROMISE.read_text(), re.MULTILINE)
    cells = {name: podman if engine == "podman" else docker for name, podman, docker in rows}
    assert len(cells) > 20, "the table is not where it was"
    return {name: json.loads(cell.strip("`")) for name, cell in cells.items() if cell != "-"}


def at(document: Any, place: str) -> Any:
    """Return a part of a document by its dotted name."""
    for name in place.split("."):
        document = document[name]
    return document


def mounts_of(document: Any) -> set[tuple[str, bool]]:
    """Return what is bound into a container: where, and whether it can be written to."""
    assert {mount["Type"] for mount in document["Mounts"]} == {"bind"}
    assert {mount["Propagation"] for mount in document["Mounts"]} == {"rprivate"}
    return {(mount["Destination"], mount["RW"]) for mount in document["Mounts"]}


def assert_as_promised(
    engine: str, document: Any, target: Target, image: Image, *more: tuple[str, bool]
) -> None:
    """Fail unless an inspection says what the documentation does."""
    account = target.account()
    uid = "0" if engine == "podman" else str(account["uid"])
    seen = {place: at(document, place) for place in promised(engine)}
    assert seen == promised(engine)
    assert document["Config"]["User"] == f"{uid}:{uid}"
    assert document["Image"].removeprefix("sha256:") == image.image.removeprefix("sha256:")
    assert mounts_of(document) == {
        (PIECES, False), ("/run/clsecure/control", True), ("/etc/passwd", False), ("/etc/group", False),
        (str(account["home"]), True), *more,
    }  # fmt: skip
    labels = document["Config"]["Labels"]
    assert (labels["clsecure.worker"], labels["clsecure.image"]) == (account["name"], image.name)
    env = dict(line.split("=", 1) for line in document["Config"]["Env"])
    assert env.keys() <= {"HOME", "LC_ALL", "LANG", "PATH", "HOSTNAME", "TERM", "container"}
    command = [*(document["Config"]["Entrypoint"] or ()), *document["Config"]["Cmd"]]
    assert command == ["/usr/bin/python3", "-I", "-S", f"{PIECES}/launcher.py"]


def filtered_twice(agent: LiveAgent) -> list[int]:
    """Return the processes of a session; each has the engine's filter, and the launcher's on top of it."""
    pids = agent.inside()
    for pid in pids:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
        assert int(status["Seccomp_filters"]) >= 2
    return pids


@by_podman
def test_c8_podman_made_the_container_that_is_promised(contained, worker_image):
    """What the session's own engine says of its container, and what the kernel says of the agent in it."""
    place = contained.person.home / "given"
    contained.person.run(["mkdir", "-p", str(place)]).check()
    given, more = ("--mount", str(place)), ((str(place), False),)
    with contained.live("echo ready; read _", *given) as agent:
        agent.wait_for("ready")
        assert_as_promised("podman", inspected(agent), contained, worker_image, *more)
        listed = in_engine(agent, "podman", "ps", "--all", "--quiet").stdout.split()
        assert len(listed) == 1, "there is another container"
        for pid in filtered_twice(agent):
            assert Path(f"/proc/{pid}/root").readlink() == Path("/")
            spaces = {
                name: Path(f"/proc/{pid}/ns/{name}").readlink()
                for name in ("mnt", "pid", "ipc", "uts", "net")
            }
            engine = engine_of(agent)
            assert not [n for n in spaces if spaces[n] == Path(f"/proc/{engine}/ns/{n}").readlink()]


@pytest.mark.xdist_group("containers")
def test_c8_docker_made_the_container_that_is_promised(person, worker_image, docker_host):
    """The same of a docker daemon's, which is asked as its administrator would."""
    import docker

    target = Target(
        person=person, mode="container", repository=person.repository("inspected"), session="docker",
        options=("--agent", "demo", "--no-network", "--engine", "docker"),
    )  # fmt: skip
    proxies = {"proxies": {"default": {"httpProxy": "http://somebody:secret@192.0.2.1:1"}}}
    person.run(["mkdir", "-p", ".docker"]).check()
    person.write(person.home / ".docker/config.json", json.dumps(proxies).encode())
    with contextlib.closing(docker.DockerClient(base_url=docker_host)) as client:
        with target.live("echo ready; read _", env={"DOCKER_HOST": docker_host}) as agent:
            agent.wait_for("ready")
            (found,) = client.containers.list(all=True)
            assert_as_promised("docker", found.attrs, target, worker_image)
            assert filtered_twice(agent)
        assert client.containers.list(all=True) == []
        # As a session leaves it that is killed while its container comes up.
        name = str(target.account()["name"])
        client.containers.create(worker_image.image, ["/bin/true"], name=name)
        with target.live("echo ready; read _", env={"DOCKER_HOST": docker_host}) as agent:
            agent.wait_for("ready")
        assert client.containers.list(all=True) == []
    (person.home / ".docker/config.json").unlink()
    person.clsecure("cleanup", "docker", "--yes")


@pytest.mark.xdist_group("containers")
def test_e1_a_container_that_docker_still_has_fails_its_check(person, worker_image, docker_host, tmp_path):
    """Nobody takes the last one away; the daemon itself is asked."""
    import docker

    broken = replaced(
        Patch(file=DOCKER, old='"auto_remove": True,', new=""),
        Patch(
            file=DOCKER,
            old="                remove(self._client, spec.account.name)\n",
            new="                pass\n",
        ),
    )
    argv = ("verify", "--mode", "container", "--engine", "docker", "--no-network", "--output", "json")
    environ = {"DOCKER_HOST": docker_host}
    with contextlib.closing(docker.DockerClient(base_url=docker_host)) as client:
        with broken(Scene(person=person, mode="container", place=tmp_path)) as victim:
            found = victim.clsecure(*argv, env=environ)
        (left,) = client.containers.list(all=True)
        failed = {
            each["check_id"]: each["observed"] for each in found.json()["checks"] if each["status"] == "fail"
        }
        # It may still have been ending when it was asked for.
        assert failed in [{"containers-left": f"{left.id[:12]} is {how}"} for how in ("running", "exited")]
        assert found.returncode == 123
        left.remove(v=True, force=True)
        whole = person.clsecure(*argv, env=environ)
        assert whole.returncode == 0
        assert "containers-left" in {each["check_id"] for each in whole.json()["checks"]}


# ---------------------------------------------------------------- C14


def stub(directory: Path, name: str, text: str, *, owner: int = 0, mode: int = 0o755) -> str:
    """Return the command that puts another program in the place of one in /usr/bin."""
    made = directory / name
    made.write_text(text)
    made.chmod(mode)
    subprocess.run(["chown", f"{owner}:{owner}", made], check=True)
    directory.chmod(0o755)
    return f"mount --bind {made} /usr/bin/{name}"


@by_podman
def test_c14_podman_that_is_not_roots(contained, tmp_path):
    """A podman that belongs to somebody else, or that others can change, is never run."""
    marker = tmp_path / "marker"
    text = f"#!/bin/sh\ntouch {marker}\nexec sleep 60\n"
    tmp_path.chmod(0o777)
    for change in ({"owner": contained.person.uid}, {"mode": 0o775}):
        said = assert_refused(changed(contained, change=stub(tmp_path, "podman", text, **change)))
        assert "is not root's own program" in said
    assert not marker.exists()


@by_podman
def test_c14_podman_that_does_nothing(contained, tmp_path):
    """Something in podman's place ends well and has made no container."""
    said = assert_refused(changed(contained, change=stub(tmp_path, "podman", SAYS_YES)))
    assert "podman did not start the container" in said


# An OCI runtime that obeys its engine in everything but the point of it: the process runs beside the engine.
PASS_THROUGH = """#!/usr/bin/python3 -I
import json, os, sys
words = sys.argv[1:]
def value(name):
    return words[words.index(name) + 1] if name in words else None
if "create" in words:
    with open(value("--bundle") + "/config.json") as file:
        process = json.load(file)["process"]
    pid = os.fork()
    if pid == 0:
        os.setsid()
        env = dict(line.split("=", 1) for line in process["env"])
        os.execve(process["args"][0], process["args"], env)
    with open(value("--pid-file"), "w") as file:
        file.write(str(pid))
elif "state" in words:
    print(json.dumps({"ociVersion": "1.0.0", "id": words[-1], "pid": 1, "status": "running", "bundle": "/"}))
elif "features" in words or "--version" in words:
    print("crun version 1.21.1")
"""


@by_podman
def test_c14_a_runtime_that_only_passes_through(contained, tmp_path):
    """Something in crun's place runs the launcher without a container: the agent is never told to it."""
    ended = changed(contained, change=stub(tmp_path, "crun", PASS_THROUGH))
    said = assert_refused(ended)
    assert ended.status == 123, said
    assert "the sandbox is not what was promised" in said
    assert "container-root" in said


# Does what it was told by the real one, but for one namespace that it leaves out.
LEAVES_OUT = """#!/usr/bin/python3 -I
import json, os, sys
if "create" in sys.argv:
    name = sys.argv[sys.argv.index("--bundle") + 1] + "/config.json"
    with open(name) as file:
        config = json.load(file)
    linux = config["linux"]
    linux["namespaces"] = [each for each in linux["namespaces"] if each["type"] != "%s"]
    for mount in config["mounts"]:
        if mount["type"] == "proc" and not any(each["type"] == "pid" for each in linux["namespaces"]):
            mount |= {"type": "bind", "source": "/proc", "options": ["rbind", "nosuid", "noexec", "nodev"]}
    with open(name, "w") as file:
        json.dump(config, file)
os.execv("%s", sys.argv)
"""
ASIDE = Path("/usr/bin/tty")
"""A file below /usr in whose place the real runtime can be: an engine sees nothing else of the machine."""


@by_podman
@pytest.mark.parametrize("left_out", ["pid", "none"])
def test_c14_a_runtime_that_leaves_a_namespace_out(contained, tmp_path, left_out):
    """The container is there as it should be, but the agent would run beside its engine, as the same uid."""
    change = f"mount --bind /usr/bin/crun {ASIDE}\n" + stub(tmp_path, "crun", LEAVES_OUT % (left_out, ASIDE))
    ended = changed(contained, change=change)
    if left_out == "none":
        assert ended.ran, "the control: with all of them it is a container like any other"
        return
    said = assert_refused(ended)
    assert ended.status == 123, said
    assert "pid shared with the container's engine" in said


@by_podman
def test_c14_a_runtime_that_does_nothing(contained, tmp_path):
    """Something in crun's place says yes to everything and starts nothing."""
    assert_refused(changed(contained, change=stub(tmp_path, "crun", SAYS_YES)))


# ---------------------------------------------------------------- C10


@by_podman
def test_c10_what_an_agent_leaves_for_an_engine_is_read_by_none(contained):
    """Configuration for podman and docker in the worker's home: the next engine is made as the first."""
    target = Target(
        person=contained.person, mode="container", repository=contained.repository, session="planted",
        options=contained.options,
    )  # fmt: skip

    def seen(*options: str) -> tuple[Any, ...]:
        with target.live("echo ready; read _", *options, finish="keep") as agent:
            agent.wait_for("ready")
            found = inspected(agent)
            info = json.loads(in_engine(agent, "podman", "info", "--format", "json").stdout)
            store, conmon = (
                info["store"],
                next(words for words in map(words_of, agent.processes()) if words[0].endswith("conmon")),
            )
            changing = re.compile(r"[0-9a-f]{64}")
            kept = {key: store[key] for key in ("configFile", "graphDriverName", "graphRoot", "runRoot")}
            host = {key: value for key, value in found["HostConfig"].items() if key != "ContainerIDFile"}
            return kept, host, found["Mounts"], info["registries"], changing.sub("ID", "\0".join(conmon))

    word = f"planted-{secrets.token_hex(6)}"
    plant = f"""
    set -e
    mkdir -p ~/.config/containers ~/.docker ~/.local/share/containers ~/hooks ~/bin; cd ~/.config/containers
    printf '#!/bin/sh\\necho {word} >>$HOME/obeyed\\nexit 1\\n' >~/bin/crun; chmod 755 ~/bin/crun
    cp ~/bin/crun ~/bin/docker-credential-mine; cp ~/bin/crun ~/bin/conmon
    exec >containers.conf
    printf '[containers]\\nprivileged=true\\nseccomp_profile="unconfined"\\nvolumes=["/:/host"]\\n'
    printf 'annotations=["run.oci.keep_original_groups=1"]\\nnetns="host"\\npidns="host"\\n'
    printf '[engine]\\nruntime="mine"\\nhooks_dir=["%s/hooks"]\\nconmon_path=["%s/bin/conmon"]\\n' ~ ~
    printf '[engine.runtimes]\\nmine=["%s/bin/crun"]\\ncrun=["%s/bin/crun"]\\n' ~ ~
    exec >/dev/null
    printf '[storage]\\ndriver="vfs"\\ngraphroot="%s/graph"\\nrunroot="%s/run"\\n' ~ ~ >storage.conf
    printf 'unqualified-search-registries=["registry.invalid"]\\n' >registries.conf
    printf '/etc:/host-etc\\n' >mounts.conf
    printf '{{"credsStore": "mine"}}' >~/.docker/config.json; cp ~/.docker/config.json auth.json
    printf '{{"version":"1.0.0","when":{{"always":true}},"stages":["prestart"],' >~/hooks/mine.json
    printf '"hook":{{"path":"%s/bin/crun"}}}}' ~ >>~/hooks/mine.json
    """
    first = seen()
    target.attack(plant, "--resume", finish="keep").outcome.check()
    home = Path(target.account()["home"])
    assert (home / ".config/containers/containers.conf").exists()
    assert seen("--resume") == first
    assert not (home / "obeyed").exists()
    contained.person.clsecure("cleanup", "planted", "--yes")
