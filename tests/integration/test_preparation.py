"""Before the agent: the user's setup script and the dependencies that lock files name, in real sessions."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import registries as stand_in
from tests.support import schema, sweep
from tests.support.hostile import Ear
from tests.support.overlaid import overlaid
from tests.support.person import SYSTEM_PATH, Outcome, Person
from tests.support.registries import Registries

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

_numbers = itertools.count()
both_modes = pytest.mark.parametrize("mode", ["user", "namespace"])
CURL = "/usr/bin/curl --silent --show-error --max-time 20 --output /dev/null --write-out '%{http_code}\\n'"


@pytest.fixture(scope="module", autouse=True)
def no_workers_left(person: Person) -> Iterator[None]:
    """Give the machine its accounts back after the module."""
    yield
    sweep.remove_workers(person.uid)


@pytest.fixture
def repo(person: Person) -> Path:
    return person.repository(f"prepared{next(_numbers)}")


def script_of(person: Person, text: str, *, mode: int = 0o700) -> dict[str, str]:
    """Write a setup script of the person's; return the environment that names it."""
    path = person.home / f"setup{next(_numbers)}.sh"
    person.write(path, text.encode(), mode=mode)
    return {"CLSECURE_SETUP_SCRIPT": str(path)}


def run(person: Person, repo: Path, *args: str, **options: Any) -> Outcome:
    return person.clsecure("--agent", "demo", *args, cwd=repo, **options)


def session(person: Person, repo: Path, script: str, *args: str, **options: Any) -> tuple[Any, str]:
    """Run a shell script as the agent; return the session's document and what was said."""
    done = run(person, repo, "--output", "json", *args, "--", "sh", "-ec", script, **options).check()
    document = done.json()
    schema.check(document, schema.load("result"))
    return document, done.errors


@both_modes
def test_a_setup_script_prepares_the_worker_once_per_fresh_workspace(
    person: Person, repo: Path, mode: str
) -> None:
    env = script_of(
        person,
        """#!/bin/bash
        set -eu
        [[ $PWD == "$CLSECURE_PROJECT_DIR" && -f README.md && ! -t 0 ]]
        read -r line && exit 3
        mkdir -p ~/.local/bin && printf '#!/bin/sh\\necho tool-speaks\\n' >~/.local/bin/tool
        chmod +x ~/.local/bin/tool
        echo once >>~/runs
        echo "set up for $(id -un)"
        """,
    )
    options = ("--mode", mode, "--no-network", "--on-finish", "keep")
    document, said = session(person, repo, "tool; cat ~/runs", *options, env=env)
    assert "tool-speaks\nonce\n" in said
    (step,) = document["setup"]
    assert (step["name"], step["status"], step["exit_code"]) == ("script", "ok", 0)
    log = Path(step["log"])
    assert f"set up for {document['worker_user']}" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    again, said = session(person, repo, "cat ~/runs", *options, "--resume", env=env)
    assert again["setup"] == []
    assert said.count("once\n") == 1
    skipped, said = session(
        person, repo, "ls ~/runs 2>&1 || true", *options, "--fresh", "--skip-setup", env=env
    )
    assert skipped["setup"] == []
    assert "No such file" in said


def test_a_script_without_a_first_line_is_the_shells(person: Person, repo: Path) -> None:
    env = script_of(person, 'echo "by the shell" >~/said\n', mode=0o600)
    document, said = session(person, repo, "cat ~/said", "--no-network", "--on-finish", "discard", env=env)
    assert document["setup"][0]["status"] == "ok"
    assert "by the shell\n" in said


def test_a_failed_setup_is_said_and_ends_no_session(person: Person, repo: Path) -> None:
    env = script_of(
        person, "#!/bin/sh\nprintf 'no \\033[31mtool\\007 here\\n'\n: ${GH_TOKEN:-none}\nexit 7\n"
    )
    env |= {"GH_TOKEN": "gho_" + "z" * 30}
    document, said = session(
        person, repo, "echo agent-ran; env", "--no-network", "--on-finish", "discard", env=env
    )
    (step,) = document["setup"]
    assert (step["status"], step["exit_code"]) == ("failed", 7)
    (warning,) = [w for w in document["warnings"] if "setup script" in w]
    assert "status 7" in warning
    assert "no \\x1b[31mtool\\x07 here" in warning
    assert "setup.log" in warning
    assert "github_token" in warning
    assert "agent-ran" in said
    assert "gho_" not in said


def test_a_setup_script_gets_the_token_only_where_the_user_said_so(person: Person, repo: Path) -> None:
    token = "gho_" + "q" * 36
    env = script_of(person, '#!/bin/sh\necho "token: ${GH_TOKEN:-none}"\n[ -n "$GH_TOKEN" ]\n')
    options = ("--no-network", "--on-finish", "keep")
    without, _ = session(person, repo, "true", *options, env={**env, "GH_TOKEN": token})
    assert without["setup"][0]["status"] == "failed"
    given = {**env, "GITHUB_TOKEN": token, "CLSECURE_GITHUB_TOKEN": "yes"}
    document, said = session(person, repo, "env; ls -a ~", *options, "--fresh", env=given)
    assert document["setup"][0]["status"] == "ok"
    assert token not in said
    log = Path(document["setup"][0]["log"]).read_text()
    assert "token: ********" in log
    assert token not in log


def test_the_token_comes_from_gh_where_the_environment_has_none(person: Person, repo: Path) -> None:
    token = "gho_" + "h" * 36
    tools = person.home / "tools"
    person.run(["mkdir", "-p", str(tools)]).check()
    person.write(tools / "gh", f'#!/bin/sh\n[ "$*" = "auth token" ] && echo {token}\n'.encode(), mode=0o755)
    env = script_of(person, f'#!/bin/sh\n[ "$GH_TOKEN" = {token} ]\n')
    env |= {"CLSECURE_GITHUB_TOKEN": "yes", "PATH": f"{tools}:{SYSTEM_PATH}"}
    document, _ = session(person, repo, "true", "--no-network", "--on-finish", "discard", env=env)
    assert document["setup"][0]["status"] == "ok"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("rm -f {0}", "can't be read"),
        ("rm {0} && mkdir {0}", "not a regular file"),
        ("rm {0} && mkfifo {0}", "not a regular file"),
        ("chmod o+w {0}", "everybody can write it"),
        ("truncate -s 2M {0}", "larger than 1 MiB"),
        ("truncate -s 0 {0}", "empty"),
    ],
)
def test_an_unusable_setup_script_is_an_error_before_anything_is_made(
    person: Person, repo: Path, spoil: str, words: str
) -> None:
    env = script_of(person, "#!/bin/sh\ntrue\n")
    path = env["CLSECURE_SETUP_SCRIPT"]
    person.run(["sh", "-ec", spoil.format(path)]).check()
    before = person.worker_accounts()
    done = run(person, repo, "--no-network", "--", "true", env=env)
    assert done.returncode == 125
    assert words in done.errors
    assert person.worker_accounts() == before


def test_a_setup_script_behind_a_link_of_the_users_own_is_used(person: Person, repo: Path) -> None:
    env = script_of(person, "#!/bin/sh\ntrue\n")
    link = person.home / f"link{next(_numbers)}"
    person.run(["ln", "-s", env["CLSECURE_SETUP_SCRIPT"], str(link)]).check()
    env = {"CLSECURE_SETUP_SCRIPT": str(link)}
    document, _ = session(person, repo, "true", "--no-network", "--on-finish", "discard", env=env)
    assert document["setup"][0]["status"] == "ok"


@both_modes
def test_a_setup_has_the_sessions_network_or_one_of_its_own(person: Person, repo: Path, mode: str) -> None:
    """The session's hosts are reached by the setup; with a network of its own those and no others."""
    with Registries() as first, Registries() as second:
        hosts = [
            f"http://host.clsecure.internal:{port}/simple/clsecure-sample/"
            for port in (first.port, second.port)
        ]
        asked = "\n".join(f"echo {name}=$({CURL} {url})" for name, url in zip("ab", hosts, strict=True))
        env = script_of(person, f"#!/bin/sh\n{asked}\nenv | grep -i anthropic\ntrue\n")
        allow_first = ("--allow-domain", f"localhost:{first.port}")
        options = ("--mode", mode, "--credentials", "none", "--on-finish", "discard", *allow_first)

        def log_of(**more: str) -> tuple[str, str]:
            document, said = session(person, repo, f"({asked}) 2>&1", *options, env={**env, **more})
            place = Path(document["setup"][0]["log"])
            return place.read_text(), said

        log, said = log_of(ANTHROPIC_API_KEY="sk-none")
        assert "a=200\nb=403" in log
        assert "a=200\nb=403" in said
        assert "ANTHROPIC" not in log.upper().replace("=== ", "")
        log, said = log_of(CLSECURE_SETUP_NETWORK=f"localhost:{second.port}")
        assert "a=403\nb=200" in log
        assert "a=200\nb=403" in said
        assert "setup: 1 of 2 requests were refused" in said
        for kind in ("none", "api"):
            log, said = log_of(CLSECURE_SETUP_NETWORK=kind)
            assert "=200" not in log
            assert "a=200" in said
        denied = {"CLSECURE_SETUP_NETWORK": f"localhost:{second.port}"}
        denied |= {"CLSECURE_DENY_DOMAINS": f"localhost:{second.port}"}
        log, said = log_of(**denied)
        assert "=200" not in log
        assert "stays denied" in said


def test_what_the_repository_shuts_stays_shut_for_the_setup(person: Person, repo: Path) -> None:
    with Registries() as server:
        url = f"http://host.clsecure.internal:{server.port}/simple/clsecure-sample/"
        env = script_of(person, f"#!/bin/sh\n{CURL} {url}\n")
        env |= {"CLSECURE_SETUP_NETWORK": f"localhost:{server.port}"}
        person.run(["mkdir", str(repo / ".clsecure")]).check()
        person.write(repo / ".clsecure/config", b"network = none\n")
        document, said = session(person, repo, "true", "--on-finish", "discard", env=env)
        assert document["setup"][0]["status"] == "failed"
        assert "setup_network (CLSECURE_SETUP_NETWORK) does not count" in said
        assert server.log == []


@pytest.fixture
def with_tun(person: Person, tmp_path: Path) -> Person:
    """The person on a machine where users can make a full network, as machines usually let them."""
    if shutil.which("pasta") is None:
        pytest.skip("pasta is not installed")
    tun = Path("/dev/net/tun")
    if tun.stat().st_mode & 0o006 == 0o006:
        return person
    node = tmp_path / "tun"
    os.mknod(node, stat.S_IFCHR, tun.stat().st_rdev)
    node.chmod(0o666)
    return overlaid(person, {str(tun): node})


def test_a_full_network_serves_the_setup_and_the_agent_after_it(with_tun: Person, repo: Path) -> None:
    person, links = with_tun, "cut -s -d: -f1 /proc/net/dev"
    env = script_of(person, f"#!/bin/sh\n{links} >~/links\ngrep -vw lo ~/links\n")
    options = ("--allow-network", "--credentials", "none", "--on-finish", "discard")
    document, said = session(
        person, repo, f"echo links: $(cat ~/links); echo links: $({links})", *options, env=env
    )
    assert document["setup"][0]["status"] == "ok"
    first, second = re.findall(r"^links: (.*)$", said, re.MULTILINE)
    assert first.split() == second.split() != ["lo"]
    own = {**env, "CLSECURE_SETUP_NETWORK": "full"}
    document, said = session(
        person, repo, f"echo links: $({links})", "--no-network", "--on-finish", "discard", env=own
    )
    assert document["setup"][0]["status"] == "ok"
    assert re.findall(r"^links: (.*)$", said, re.MULTILINE) == ["lo"]


def test_denied_hosts_and_a_full_network_of_the_setup_exclude_each_other(person: Person, repo: Path) -> None:
    env = script_of(person, "#!/bin/sh\ntrue\n") | {"CLSECURE_SETUP_NETWORK": "full"}
    done = run(person, repo, "--deny-domain", "x.example", "--", "true", env=env)
    assert done.returncode == 125
    assert "can't be enforced" in done.errors


def test_ctrl_c_in_the_setup_gives_everything_back(person: Person, repo: Path) -> None:
    env = script_of(person, "#!/bin/sh\necho waiting-now\nexec sleep 600\n")
    before = person.worker_accounts()
    argv = person.clsecure_argv("--agent", "demo", "--no-network", "--verbose", "--", "true")
    process = person.spawn(argv, cwd=repo, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with process:
        assert process.stderr is not None
        seen = b""
        while b"waiting-now" not in seen:
            data = os.read(process.stderr.fileno(), 65536)
            assert data, seen
            seen += data
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode != 0
    assert person.worker_accounts() == before
    done, _ = session(person, repo, "true", "--no-network", "--on-finish", "discard")
    assert done["setup"] == []


def test_a_setup_that_was_cut_short_by_kill_9_is_done_again_from_the_start(
    person: Person, repo: Path
) -> None:
    """In a fresh copy: what the first try left is gone, and going on with it is refused."""
    env = script_of(person, "#!/bin/sh\necho begun >>~/runs\necho waiting-now\nexec sleep 600\n")
    argv = person.clsecure_argv("--agent", "demo", "--no-network", "--verbose", "--", "true")
    process = person.spawn(argv, cwd=repo, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with process:
        assert process.stderr is not None
        seen = b""
        while b"waiting-now" not in seen:
            data = os.read(process.stderr.fileno(), 65536)
            assert data, seen
            seen += data
        process.kill()
    env = script_of(person, "#!/bin/sh\necho begun >>~/runs\n")
    options = ("--no-network", "--on-finish", "discard")
    deadline = time.monotonic() + 30
    while True:  # until the helper has ended what is left
        resumed = run(person, repo, *options, "--resume", "--", "true", env=env)
        if "no kept session" in resumed.errors or time.monotonic() > deadline:
            break
    assert resumed.returncode == 125
    assert "no kept session" in resumed.errors
    document, said = session(person, repo, "cat ~/runs", *options, env=env)
    assert document["setup"][0]["status"] == "ok"
    assert said.count("begun\n") == 1


def test_a_setup_that_takes_too_long_is_ended(person: Person, repo: Path) -> None:
    env = script_of(
        person, "#!/bin/sh\ntrap '' TERM\n(trap '' TERM; sleep 600) &\nwhile :; do sleep 60; done\n"
    )
    document, said = session(
        person,
        repo,
        "echo agent-ran",
        "--no-network",
        "--time-limit",
        "3s",
        "--on-finish",
        "discard",
        env=env,
    )
    assert document["setup"][0]["status"] == "timeout"
    assert document["setup"][0]["exit_code"] is None
    assert "agent-ran" in said


def test_a_session_without_any_opens_no_sandbox_for_it(person: Person, repo: Path) -> None:
    document, _ = session(person, repo, "true", "--no-network", "--on-finish", "discard")
    assert document["setup"] == []
    assert not {"setup", "cleanup"} & document["phases"].keys()


# ---------------------------------------------------------------- dependencies


def npm_tarball(name: str, *, install: str) -> bytes:
    """Return a package as ``npm pack`` makes it, with a script of its own."""
    package = {"name": name, "version": "1.0.0", "main": "index.js", "scripts": {"install": install}}
    files = {"package.json": json.dumps(package), "index.js": "module.exports = 'offline speaks';\n"}
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(f"package/{path}")
            entry.size, entry.mode = len(text), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return target.getvalue()


def npm_project(person: Person, repo: Path, *, locked: bool = True, install: str = "echo ran >ran") -> None:
    """Make a project whose one dependency lies beside it as a tarball, with its lock file."""
    data = npm_tarball("offline", install=install)
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    package = {"name": "project", "version": "1.0.0", "dependencies": {"offline": "file:offline.tgz"}}
    lock = {
        "name": "project", "version": "1.0.0", "lockfileVersion": 3, "requires": True,
        "packages": {
            "": package,
            "node_modules/offline": {
                "version": "1.0.0", "resolved": "file:offline.tgz", "integrity": integrity,
                "hasInstallScript": True,
            },
        },
    }  # fmt: skip
    person.write(repo / "offline.tgz", data)
    person.write(repo / "package.json", json.dumps(package).encode())
    if locked:
        person.write(repo / "package-lock.json", json.dumps(lock).encode())
    person.git(repo, "add", ".")
    person.git(repo, "commit", "--quiet", "-m", "A project of npm's")


@pytest.fixture
def npm() -> None:
    program = shutil.which("npm", path=SYSTEM_PATH)
    if program is None or not Path(program).resolve().is_relative_to("/usr"):
        pytest.skip("npm is not installed below /usr, where sessions see it")


@pytest.mark.usefixtures("npm")
@both_modes
@pytest.mark.parametrize("locked", [True, False])
def test_npm_installs_for_the_agent_and_nothing_of_it_comes_home(
    person: Person, repo: Path, mode: str, locked: bool
) -> None:
    npm_project(person, repo, locked=locked)
    options = ("--mode", mode, "--no-network", "--install-deps", "--on-finish", "import")
    document, said = session(
        person,
        repo,
        "node -p 'require(\"offline\")'; cat node_modules/offline/ran; git status --short",
        *options,
    )
    assert [(s["name"], s["status"]) for s in document["setup"]] == [("npm", "ok")]
    assert "offline speaks\nran\n" in said
    assert document["import"] is None
    assert document["warnings"] == []
    assert not (repo / "node_modules").exists()
    # What the agent itself does comes home, and nothing besides.
    document, _ = session(person, repo, "echo new >new.txt", *options, "--fresh")
    branch = document["import"]["branch"]
    assert person.git(repo, "diff", "--name-only", "HEAD", branch) == "new.txt"


def python_project(person: Person, repo: Path) -> None:
    """Make a project that asks for a wheel beside it, and can itself be installed without any index."""
    person.run(["mkdir", str(repo / "wheels")]).check()
    wheel = f"{stand_in.PIP_PACKAGE.replace('-', '_')}-1.0-py3-none-any.whl"
    person.write(repo / "wheels" / wheel, stand_in._wheel())
    person.write(repo / "requirements.txt", b"--no-index\n--find-links wheels\nclsecure-sample==1.0\n")
    person.git(repo, "add", ".")
    person.git(repo, "commit", "--quiet", "-m", "A project of pip's")


@both_modes
def test_pip_installs_into_an_environment_of_the_workers_that_the_agent_finds(
    person: Person, repo: Path, mode: str
) -> None:
    python_project(person, repo)
    options = ("--mode", mode, "--no-network", "--install-deps", "--on-finish", "keep")
    use = "python3 -c 'import clsecure_sample; print(clsecure_sample.WORD)'; echo $VIRTUAL_ENV"
    document, said = session(person, repo, f"{use}; git status --short", *options)
    assert [(s["name"], s["status"]) for s in document["setup"]] == [("pip", "ok")], said
    assert f"{stand_in.WORD}\n/home/" in said
    assert document["warnings"] == []
    resumed, said = session(person, repo, use, *options, "--resume")
    assert f"{stand_in.WORD}\n/home/" in said
    assert resumed["setup"] == []
    done = person.clsecure("import", resumed["session_id"], cwd=repo).check()
    assert "nothing to import" in done.errors


def test_package_managers_reach_what_setup_network_names_and_the_agent_does_not(
    person: Person, repo: Path
) -> None:
    """The user's own registry, by preset, for the installation alone."""
    with Registries() as registry:
        base = f"http://localhost:{registry.port}"
        conf = person.home / ".config/pip/pip.conf"
        person.run(["mkdir", "-p", str(conf.parent)]).check()
        person.write(conf, f"[global]\nindex-url = {base}/simple\n".encode())
        try:
            person.write(repo / "requirements.txt", b"clsecure-sample\n")
            document, said = session(
                person, repo, "python3 -c 'import clsecure_sample'; env", "--install-deps", "--no-network",
                "--on-finish", "discard", env={"CLSECURE_SETUP_NETWORK": "pip"},
            )  # fmt: skip
        finally:
            person.run(["rm", "-f", str(conf)]).check()
        assert [(s["name"], s["status"]) for s in document["setup"]] == [("pip", "ok")], said
        assert any(path.endswith(".whl") for path in registry.log)
        assert "HTTP_PROXY" not in said
        assert "PIP_INDEX_URL" not in said


def test_what_a_repository_wants_and_is_not_there_is_said_by_name(person: Person, repo: Path) -> None:
    for name in ("pnpm-lock.yaml", "package.json", "poetry.lock", "go.mod", "Gemfile.lock"):
        person.write(repo / name, b"{}\n")
    missing = [n for n in ("pnpm", "poetry", "go", "bundle") if shutil.which(n, path=SYSTEM_PATH) is None]
    if not missing:
        pytest.skip("all of them are installed here")
    document, said = session(
        person, repo, "echo agent-ran", "--install-deps", "--no-network", "--on-finish", "discard"
    )
    for name in missing:
        assert f"{name} is not installed inside" in said
    assert {s["status"] for s in document["setup"] if s["name"] in missing} <= {"missing"}
    assert "agent-ran" in said


@pytest.mark.usefixtures("npm")
def test_what_installing_changes_in_the_work_tree_is_said(person: Person, repo: Path) -> None:
    npm_project(person, repo, install="echo changed >>$INIT_CWD/README.md; echo new >$INIT_CWD/generated.txt")
    document, said = session(person, repo, "true", "--install-deps", "--no-network", "--on-finish", "keep")
    assert "installing changed README.md, generated.txt: it comes home" in said
    assert document["setup"][0]["status"] == "ok"


def test_a_repository_without_lock_files_has_nothing_to_install(person: Person, repo: Path) -> None:
    document, said = session(person, repo, "true", "--install-deps", "--no-network", "--on-finish", "discard")
    assert document["setup"] == []
    assert "no dependencies to install" in said


def test_the_listener_of_the_host_is_not_reached_by_a_setup_without_network(
    person: Person, repo: Path
) -> None:
    with Ear(("127.0.0.1", 0)) as ear:
        env = script_of(person, f"#!/bin/sh\n{CURL} http://127.0.0.1:{ear.port}/\ntrue\n")
        session(person, repo, "true", "--no-network", "--on-finish", "discard", env=env)
        assert ear.heard == []
