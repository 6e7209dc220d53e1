"""``--allow-preset``: npm and pip inside install from the registries that the user's own are set to."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import registries as stand_in
from tests.support import sweep
from tests.support.hostile import Target
from tests.support.person import SYSTEM_PATH, Outcome, Person
from tests.support.registries import Directory, Registries

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

HOST_ALIAS = "host.clsecure.internal"
PIP = "/tools/pip"
OPTIONS = ("--agent", "demo", "--credentials", "none")

NPM_INSTALL = """
mkdir /tmp/n && cd /tmp/n && npm install --no-audit --no-fund "$@" &&
for package; do node -p 'process.argv[1] + ": " + require(process.argv[1])' "$package" || exit; done
"""
PIP_INSTALL = f"""
/usr/bin/python3 {PIP} install --disable-pip-version-check --no-cache-dir --target /tmp/p \
    {stand_in.PIP_PACKAGE} &&
PYTHONPATH=/tmp/p /usr/bin/python3 -c 'import clsecure_sample; print(clsecure_sample.WORD)'
"""


@pytest.fixture(scope="module", autouse=True)
def no_workers_left(person: Person) -> Iterator[None]:
    yield
    sweep.remove_workers(person.uid)


@pytest.fixture
def registries() -> Iterator[Registries]:
    with Registries() as running:
        yield running


@pytest.fixture
def npm() -> None:
    program = shutil.which("npm", path=SYSTEM_PATH)
    if program is None or not Path(program).resolve().is_relative_to("/usr"):
        pytest.skip("npm is not installed below /usr, where sessions see it")


@pytest.fixture
def pip() -> Path:
    """The tests' own pip, mounted into the sessions: Debian's python has none by itself."""
    place = Path(sysconfig.get_path("purelib")) / "pip"
    if not (place / "__main__.py").exists():
        pytest.skip("this python has no pip")
    return place


@pytest.fixture
def configured(person: Person, registries: Registries) -> Iterator[None]:
    """The person's own tools use the stand-in."""
    base = f"http://localhost:{registries.port}"
    npmrc, pip_conf = person.home / ".npmrc", person.home / ".config/pip/pip.conf"
    person.run(["mkdir", "-p", str(pip_conf.parent)]).check()
    person.write(npmrc, f"registry={base}/npm/\n@clsteam:registry={base}/team/\n".encode())
    person.write(pip_conf, f"[global]\nindex-url = {base}/simple\n".encode())
    yield
    person.run(["rm", "-f", str(npmrc), str(pip_conf)]).check()


@pytest.fixture(scope="module", params=["user", "namespace"])
def target(request: pytest.FixtureRequest, person: Person) -> Target:
    mode = request.param
    return Target(person=person, mode=mode, repository=person.repository(f"presets-{mode}"), options=OPTIONS)


def session(target: Target, script: str, *arguments: str, options: tuple[str, ...]) -> Outcome:
    """Run a script of bash as the agent.

    Not below another shell: dash keeps no variable whose name is none for a shell, as those of scopes are.
    """
    program = ["/bin/bash", "-c", script, "bash", *arguments]
    return target.person.run(target.argv(program, *options), cwd=target.repository)


def counted(outcome: Outcome, host: str, port: int) -> dict[str, Any]:
    """Return what the result says of one target."""
    egress = outcome.json()["egress"]
    found = [row for row in egress["hosts"] if (row["host"], row["port"]) == (host, port)]
    assert len(found) == 1, egress
    return dict(found[0])


@pytest.mark.usefixtures("npm", "configured")
def test_npm_inside_installs_from_the_users_own_registries(target: Target, registries: Registries) -> None:
    packages = [stand_in.NPM_PACKAGE, stand_in.SCOPED_PACKAGE]
    done = session(target, NPM_INSTALL, *packages, options=("--allow-preset", "npm")).check()
    for package in packages:
        assert f"{package}: {stand_in.WORD}" in done.errors
    assert {"/npm/-/sample.tgz", "/team/-/sample.tgz"} <= set(registries.log)
    row = counted(done, HOST_ALIAS, registries.port)
    assert row["requests"] >= len(registries.log)
    assert row["denied"] == 0
    assert row["bytes_in"] > 0


@pytest.mark.usefixtures("npm", "configured")
def test_npm_inside_takes_packages_that_name_the_registry_as_it_is_called_outside(
    target: Target, registries: Registries
) -> None:
    npmrc = f"registry=http://localhost:{registries.port}/\n"
    target.person.write(target.person.home / ".npmrc", npmrc.encode())
    done = session(target, NPM_INSTALL, stand_in.FIXED_PACKAGE, options=("--allow-preset", "npm")).check()
    assert f"{stand_in.FIXED_PACKAGE}: {stand_in.WORD}" in done.errors
    assert "/-/fixed.tgz" in registries.log


@pytest.mark.usefixtures("configured")
def test_pip_inside_installs_from_the_users_own_index(
    target: Target, registries: Registries, pip: Path
) -> None:
    options = ("--allow-preset", "pip", "--mount", f"{pip}:{PIP}")
    done = session(target, PIP_INSTALL, options=options).check()
    assert stand_in.WORD in done.errors
    assert [path for path in registries.log if path.startswith("/files/")]
    assert counted(done, HOST_ALIAS, registries.port)["denied"] == 0


def test_git_inside_reaches_the_repositorys_own_remote(target: Target, tmp_path: Path) -> None:
    place = tmp_path / "served"
    bare = place / "p.git"
    subprocess.run(["git", "init", "--quiet", "--bare", "-b", "main", bare], check=True)
    env = {"PATH": SYSTEM_PATH, "HOME": str(tmp_path)}
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    tree = (
        subprocess.run(["git", "-C", bare, "mktree"], env=env, input=b"", capture_output=True, check=True)
        .stdout.decode()
        .strip()
    )
    commit = (
        subprocess.run(
            ["git", *who, "-C", bare, "commit-tree", "-m", "x", tree],
            env=env,
            capture_output=True,
            check=True,
        )
        .stdout.decode()
        .strip()
    )
    for words in (["update-ref", "refs/heads/main", commit], ["update-server-info"]):
        subprocess.run(["git", "-C", bare, *words], env=env, check=True)
    with Directory(place) as served:
        url = f"http://localhost:{served.port}/p.git"
        target.person.git(target.repository, "remote", "add", "origin", url)
        try:
            done = session(target, "git ls-remote origin", options=("--allow-preset", "git-remote")).check()
        finally:
            target.person.git(target.repository, "remote", "remove", "origin")
        assert f"{commit}\trefs/heads/main" in done.errors
        assert any("info/refs" in path for path in served.log)


@pytest.mark.usefixtures("configured")
def test_without_the_preset_the_registry_is_blocked_and_listed(
    target: Target, registries: Registries, pip: Path
) -> None:
    # The same variables, given by the agent itself: what is missing is the permission.
    inside = f"http://{HOST_ALIAS}:{registries.port}"
    script = f"export PIP_INDEX_URL={inside}/simple PIP_TRUSTED_HOST={HOST_ALIAS}\n{PIP_INSTALL}"
    options = ("--allow-domain", "files.example.org", "--mount", f"{pip}:{PIP}")
    done = session(target, script, options=options)
    assert done.returncode == 1, done
    assert stand_in.WORD not in done.errors
    assert registries.log == []
    row = counted(done, HOST_ALIAS, registries.port)
    assert row["denied"] == row["requests"] > 0
    assert f"{HOST_ALIAS}:{registries.port}" in done.errors.partition("blocked")[2]


@pytest.mark.usefixtures("configured")
def test_the_plan_shows_what_the_presets_come_to(target: Target, registries: Registries) -> None:
    done = target.person.clsecure(
        "--mode", target.mode, *OPTIONS, "--allow-preset", "npm,pip", "--dry-run", cwd=target.repository
    ).check()  # fmt: skip
    said = done.text + done.errors
    assert f"{HOST_ALIAS}:{registries.port}" in said
    assert f"{target.person.home}/.npmrc" in said
