"""Claude Code is fetched by the user's own npm, with nothing of the repository's in reach."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from clsecure.agents.find import BinaryKind, agents_directory, find_agent
from clsecure.agents.install import install_claude
from clsecure.agents.npm_package import platform_packages
from clsecure.agents.spec import AGENTS
from clsecure.errors import AgentError, UsageError

CANARY = "CANARY-9d2e"
PLATFORM = platform_packages(os.uname().machine)[0]

# npm's part is played by a script: what is judged here is how it is called and what is made of its result.
NPM = """#!/bin/sh
printf '%s\\n' "$PWD" "$@" >{log}/argv
env >{log}/env
{then}
d=node_modules/{package}
mkdir -p $d
cp /bin/{program} $d/claude
chmod 644 $d/claude
printf '{{"name": "{package}", "version": "{version}"}}' >$d/package.json
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def npm(directory: Path, *, then: str = ":", program: str = "true", version: str = "2.1.197") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "npm"
    file.write_text(NPM.format(log=directory, then=then, package=PLATFORM, program=program, version=version))
    file.chmod(0o755)
    return directory


def install(home: Path, tools: Path, *, exclude: tuple[Path, ...] = (), **environ: str) -> Path:
    env = {"PATH": str(tools), **environ}
    target = agents_directory(env, home) / "claude"
    return install_claude(target, environ=env, home=home, exclude=exclude)


def test_what_npm_fetched_lies_under_its_version_and_is_found(home: Path, tmp_path: Path) -> None:
    tools = npm(tmp_path / "tools")
    program = install(home, tools)
    assert program == home / ".local/share/clsecure/agents/claude/2.1.197/claude"
    assert stat.S_IMODE(program.stat().st_mode) == 0o755
    found = find_agent(AGENTS["claude"], {"PATH": ""}, home, elsewhere=())
    assert (found.path, found.version, found.kind) == (program, "2.1.197", BinaryKind.CLSECURE)
    assert [entry.name for entry in program.parent.parent.iterdir()] == ["2.1.197"], "nothing else is left"
    assert install(home, tools) == program, "again is no error"


def test_npm_runs_no_scripts_and_sees_no_project_and_no_secret(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = npm(tmp_path / "tools")
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / ".npmrc").write_text("registry=http://evil.invalid/\n")
    monkeypatch.chdir(repository)
    install(home, tools, ANTHROPIC_API_KEY=CANARY, HTTPS_PROXY="http://proxy.invalid", NODE_OPTIONS=CANARY)
    cwd, *argv = (tools / "argv").read_text().splitlines()
    assert Path(cwd).parent == home / ".local/share/clsecure/agents/claude"
    assert "--ignore-scripts" in argv
    assert argv[-2:] == ["--", f"{PLATFORM}@latest"]
    env = (tools / "env").read_text()
    assert CANARY not in env
    assert "HTTPS_PROXY=http://proxy.invalid" in env


def test_without_npm_the_command_of_this_system_is_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    for tool in ("apt-get", "dnf"):
        (tmp_path / "bin" / tool).touch(mode=0o755)
    monkeypatch.setattr("clsecure.process.SYSTEM_PATH", str(tmp_path / "bin"))
    with pytest.raises(AgentError) as caught:
        install(home, tmp_path / "nowhere")
    assert caught.value.resolution == "sudo apt-get install npm"


def test_an_npm_of_the_repository_does_not_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = npm(tmp_path / "repository/node_modules/.bin")
    monkeypatch.setattr("clsecure.process.SYSTEM_PATH", str(tmp_path / "empty"))
    with pytest.raises(AgentError, match="npm is needed"):
        install(home, tools, exclude=(tmp_path / "repository",))
    assert not (tools / "argv").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"then": "echo 'npm error 404' >&2; exit 1"}, "could not fetch"),
        ({"then": "exit 0"}, "not Claude Code"),
        ({"program": "../etc/hostname"}, "not Claude Code"),
        ({"version": "../../x"}, "not Claude Code"),
    ],
)
def test_a_failed_fetch_leaves_nothing(
    home: Path, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    with pytest.raises(AgentError, match=words):
        install(home, npm(tmp_path / "tools", **changes))
    assert list((home / ".local/share/clsecure/agents/claude").iterdir()) == []


@pytest.mark.parametrize("version", ["", "-x", "../x", "a b", "1;2", "x" * 80])
def test_an_odd_version_is_refused(home: Path, version: str) -> None:
    with pytest.raises(UsageError):
        install_claude(home / "t", environ={}, home=home, version=version)
    assert shutil.which("npm", path=str(home)) is None
    assert not (home / "t").exists()
