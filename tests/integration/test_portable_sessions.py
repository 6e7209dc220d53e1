"""Agent files, missing programs and a shared Homebrew in real sessions; the real Claude Code at the end."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import sweep
from tests.support.messages_api import MessagesApi, bash, text, tool_use
from tests.support.overlaid import overlaid
from tests.support.person import SYSTEM_PATH, Person
from tests.support.repostate import assert_only_new_branch, snapshot

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(240)]

_numbers = itertools.count()
both_modes = pytest.mark.parametrize("mode", ["user", "namespace"])
BREW = Path("/home/linuxbrew/.linuxbrew")
OFFLINE = ("--agent", "demo", "--no-network", "--output", "json")

SERVER = """
import json, os, sys
open(os.path.expanduser("~/server-started"), "w").write(sys.executable)
for line in sys.stdin:
    request = json.loads(line)
    match request.get("method"):
        case "initialize":
            result = {"protocolVersion": request["params"]["protocolVersion"], "capabilities": {"tools": {}},
                      "serverInfo": {"name": "tiny", "version": "1"}}
        case "tools/list":
            schema = {"type": "object", "properties": {"word": {"type": "string"}}}
            result = {"tools": [{"name": "mark", "description": "Mark", "inputSchema": schema}]}
        case "tools/call":
            word = request["params"]["arguments"]["word"]
            open(os.path.expanduser("~/server-called"), "w").write(word)
            result = {"content": [{"type": "text", "text": "marked " + word}]}
        case _:
            result = {}
    if "id" in request:
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def no_workers_left(person: Person) -> Iterator[None]:
    """Give the machine its accounts back after the module."""
    yield
    sweep.remove_workers(person.uid)


@pytest.fixture
def repo(person: Person) -> Path:
    """A repository whose agent files were written for one machine alone."""
    path = person.repository(f"portable{next(_numbers)}")
    person.run(["mkdir", "-p", str(path / "tools"), str(path / ".claude")]).check()
    servers = {
        "tiny": {"command": f"{person.home}/.pyenv/shims/python3", "args": ["tools/server.py"]},
        "lacking": {"command": f"{person.home}/.local/bin/uvx", "args": ["something"]},
    }
    hook = {"type": "command", "command": "./tools/hook.sh"}
    hooks = {"PreToolUse": [{"matcher": "Bash", "hooks": [hook]}]}
    person.write(path / ".mcp.json", json.dumps({"mcpServers": servers}, indent=4).encode())
    person.write(path / ".claude/settings.json", json.dumps({"hooks": hooks}).encode())
    person.write(path / "tools/server.py", SERVER.encode())
    person.write(path / "tools/hook.sh", b'#!/bin/sh\necho "$0" >~/hooked\n', mode=0o755)
    person.git(path, "add", "-A")
    person.git(path, "commit", "-qm", "Agent files")
    return path


@both_modes
@pytest.mark.parametrize("dirty", [False, True], ids=["committed", "dirty"])
def test_a_session_that_changes_nothing_imports_nothing(person, repo, mode, dirty):
    if dirty:
        person.write(repo / ".mcp.json", (repo / ".mcp.json").read_bytes().replace(b"something", b"other"))
    before = snapshot(repo)
    look = "cp .mcp.json .claude/settings.json ~; git status --porcelain >~/status; git commit -qam x; pwd"
    done = person.clsecure(
        "--mode", mode, *OFFLINE, "--on-finish", "import", "--", "sh", "-c", look, cwd=repo
    )  # fmt: skip
    document = done.json()
    home = Path("/home", document["worker_user"])
    inside = json.loads((home / ".mcp.json").read_text())["mcpServers"]
    assert (inside["tiny"]["command"], inside["lacking"]["command"]) == ("python3", "uvx")
    hook = json.loads((home / "settings.json").read_text())["hooks"]["PreToolUse"][0]["hooks"][0]["command"]
    assert hook == f"{home}/{repo.name}/tools/hook.sh"
    assert (home / "status").read_text() == (" M .mcp.json\n" if dirty else "")
    if dirty:  # the agent committed what was the user's own change: as the user wrote it
        branch = document["import"]["branch"]
        shown = person.run(["git", "cat-file", "blob", f"{branch}:.mcp.json"], cwd=repo).check().stdout
        assert shown == (repo / ".mcp.json").read_bytes()
        return
    assert document["import"] is None
    assert_only_new_branch(before, snapshot(repo), None)


@both_modes
def test_the_agents_changes_come_home_from_a_kept_session_too(person, repo, mode):
    work = """
        sed -i 's/something/committed/' .mcp.json && git add -A && git commit -qm 'By the agent'
        sed -i 's/"Bash"/"Edit"/' .claude/settings.json
    """
    done = person.clsecure(
        "--mode", mode, *OFFLINE, "--on-finish", "keep", "--", "sh", "-c", work, cwd=repo
    ).check()  # fmt: skip
    more = """
        grep -c '"python3"' .mcp.json; sed -i 's/Edit/Write/' .claude/settings.json
    """
    resume = ("--mode", mode, *OFFLINE, "--resume", "--on-finish", "keep", "--", "sh", "-c", more)
    done = person.clsecure(*resume, cwd=repo).check()
    assert b"\n1\n" in b"\n" + done.stderr
    key = done.json()["session_id"]
    before = snapshot(repo)
    done = person.clsecure("import", key, "--branch", f"work{mode}", "--output", "json", cwd=repo).check()
    assert_only_new_branch(before, snapshot(repo), f"work{mode}")
    for name, old, new in (
        (".mcp.json", b"something", b"committed"),
        (".claude/settings.json", b"Bash", b"Write"),
    ):
        shown = person.run(["git", "cat-file", "blob", f"work{mode}:{name}"], cwd=repo).check().stdout
        assert shown == (repo / name).read_bytes().replace(old, new)
    assert person.git(repo, "rev-list", "--count", f"main..work{mode}") == "2"


# ---- toolchains ---------------------------------------------------------------------------------------


@pytest.fixture
def homebrew(tmp_path: Path) -> Iterator[Path]:
    """A Homebrew of an account of its own; one program is of a name that the system has, too."""
    if BREW.exists():
        pytest.skip("this machine has a Homebrew")
    name = "clsecure-test-brew"
    subprocess.run(["userdel", name], capture_output=True, check=False)
    subprocess.run(["useradd", "--no-create-home", "--shell", "/bin/false", name], check=True)
    prefix = tmp_path / "linuxbrew/.linuxbrew"
    for part in ("bin", "Cellar/tool/1/bin", "var/run", "etc/secrets"):
        (prefix / part).mkdir(parents=True)
    program = prefix / "Cellar/tool/1/bin/brewed"
    program.write_text("#!/bin/sh\necho brewed here\n")
    (prefix / "bin/git").write_text("#!/bin/sh\necho not the system's\n")
    for each in (program, prefix / "bin/git"):
        each.chmod(0o755)
    (prefix / "bin/brewed").symlink_to("../Cellar/tool/1/bin/brewed")
    subprocess.run(["chown", "-hR", name, prefix], check=True)
    prefix.parent.chmod(0o755)
    # The place is all that the machine gets; what is there is seen by the person of the test alone.
    BREW.parent.mkdir(exist_ok=True)
    try:
        yield prefix
    finally:
        BREW.parent.rmdir()
        subprocess.run(["userdel", name], check=True, capture_output=True)


@pytest.mark.xdist_group("homebrew")
@both_modes
def test_a_shared_homebrew_is_there_to_be_read(person, repo, homebrew, mode):
    brewer = overlaid(person, {str(BREW.parent): homebrew.parent})
    script = f"""
        brewed; command -v git; ls -A {BREW}; ls -A {BREW.parent}
        for place in {BREW}/bin {BREW}; do touch $place/x || echo refused; done
        grep -c '{BREW}' /proc/self/mountinfo
    """
    done = brewer.clsecure(
        "--mode", mode, "--agent", "demo", "--no-network", "--on-finish", "discard", "--", "sh", "-c", script,
        cwd=repo,
    ).check()  # fmt: skip
    seen = ["brewed here", "/usr/bin/git", "Cellar", "bin", ".linuxbrew", "refused", "refused", "2"]
    assert done.text.split("\n") == [*seen, ""]
    assert f"mounted: {BREW} (bin, Cellar), read-only" in done.errors
    assert not (homebrew / "bin/x").exists()


@pytest.mark.xdist_group("homebrew")
def test_the_setting_and_an_unsafe_one_leave_it_out(person, repo, homebrew):
    brewer = overlaid(person, {str(BREW.parent): homebrew.parent})

    def planned(**env: str) -> list[str]:
        done = brewer.clsecure("--dry-run", "--output", "json", cwd=repo, env=env).check()
        return [mount["target"] for mount in done.json()["mounts"]]

    assert planned() == [f"{BREW}/bin", f"{BREW}/Cellar"]
    assert f"{BREW} (bin, Cellar), read-only" in brewer.clsecure("--dry-run", cwd=repo).check().errors
    assert planned(CLSECURE_TOOLCHAINS="no") == []
    homebrew.chmod(0o777)
    assert planned() == []
    homebrew.chmod(0o755)
    os.chown(homebrew.parent, person.uid, person.gid)
    assert planned() == []


# ---- the real Claude Code -----------------------------------------------------------------------------


@both_modes
def test_a_configured_server_and_a_hook_work_inside_and_their_paths_stay_home(
    person, repo, claude_binary, mode
):
    directory = person.home / ".local/bin"
    person.run(["mkdir", "-p", str(directory)]).check()
    person.run(["ln", "-sf", str(claude_binary), str(directory / "claude")]).check()
    turns = [
        [bash("sleep 1; echo made >made")],
        [tool_use("mcp__tiny__mark", word="it")],
        [bash("git add -A && git commit -qm 'By the agent'; echo more >more")],
        [text("Done.")],
    ]
    before, key = snapshot(repo), {"ANTHROPIC_API_KEY": "sk-ant-x"}
    with MessagesApi(turns) as api:
        done = person.clsecure(
            "--mode", mode, "--on-finish", "import", "--output", "json",
            "--", "claude", "--dangerously-skip-permissions", "-p", "do it",
            cwd=repo,
            env={**key, "PATH": f"{directory}:{SYSTEM_PATH}", "ANTHROPIC_BASE_URL": api.url},
        ).check()  # fmt: skip
        said = json.dumps(api.messages()[-1].body["messages"])
    document = done.json()
    home = Path("/home", document["worker_user"])
    assert (home / "server-started").exists()
    assert (home / "server-called").read_text() == "it", said
    assert "marked it" in said
    assert (home / "hooked").read_text() == f"{home}/{repo.name}/tools/hook.sh\n"
    (warning,) = [each for each in document["warnings"] if each.startswith("MCP")]
    assert warning.startswith("MCP server lacking can't start: uvx is not there inside; ")
    assert warning in done.errors
    branch = document["import"]["branch"]
    assert_only_new_branch(before, snapshot(repo), branch)
    assert person.git(repo, "diff", "--name-status", f"main..{branch}").split() == ["A", "made", "A", "more"]
