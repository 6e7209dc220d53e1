"""What of the user's Claude settings comes along, and a canary in every place that must not."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from clsecure.agents import claude_settings, tree
from clsecure.agents.claude_home import TREES, collect
from clsecure.agents.request import AgentHome, HomeRequest

CANARY = "CANARY-4f1c"
WORKER_HOME = PurePosixPath("/home/claude-worker-shop-1a2b3c")
WORKSPACE = WORKER_HOME / "workspace"


def gather(home: Path, **environ: str) -> AgentHome:
    return collect(HomeRequest(user_home=home, worker_home=WORKER_HOME, workspace=WORKSPACE, environ=environ))


def written(found: AgentHome) -> dict[str, bytes]:
    return {str(file.path): file.data for file in found.files}


def settings_of(found: AgentHome) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(written(found)[".claude/settings.json"])
    return value


def state_of(found: AgentHome) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(written(found)[".claude.json"])
    return value


def assert_clean(found: AgentHome) -> None:
    for path, data in written(found).items():
        assert CANARY.encode() not in data, path
        assert CANARY not in path
    assert CANARY not in "\n".join(found.left_out)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "alice/.claude").mkdir(parents=True)
    return tmp_path / "alice"


def put(home: Path, name: str, content: object) -> Path:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


FORBIDDEN_SETTINGS: dict[str, object] = {
    "env": {"ANTHROPIC_API_KEY": CANARY, "HTTPS_PROXY": CANARY},
    "apiKeyHelper": f"echo {CANARY}",
    "proxyAuthHelper": f"echo {CANARY}",
    "awsAuthRefresh": f"echo {CANARY}",
    "awsCredentialExport": f"echo {CANARY}",
    "gcpAuthRefresh": f"echo {CANARY}",
    "otelHeadersHelper": f"echo {CANARY}",
    "hooks": {"PreToolUse": [{"hooks": [{"type": "command", "command": CANARY}]}]},
    "statusLine": {"type": "command", "command": CANARY},
    "subagentStatusLine": {"type": "command", "command": CANARY},
    "fileSuggestion": {"type": "command", "command": CANARY},
    "mcpServers": {
        "x": {"command": CANARY, "args": [CANARY], "env": {"T": CANARY}, "headers": {"A": CANARY}}
    },
    "allowedMcpServers": [{"serverUrl": CANARY}],
    "enabledMcpjsonServers": [CANARY],
    "enabledPlugins": {CANARY: True},
    "pluginConfigs": {"x": {"options": {"token": CANARY}}},
    "extraKnownMarketplaces": {"x": {"source": {"url": CANARY}}},
    "sshConfigs": [{"sshIdentityFile": CANARY}],
    "sandbox": {"enabled": True, "network": {"httpProxyPort": 1, "x": CANARY}},
    "permissions": {
        "allow": [f"Bash(curl -H 'Authorization: {CANARY}')"],
        "additionalDirectories": [CANARY],
        "defaultMode": CANARY,
        CANARY: ["x"],
    },
    "forceLoginOrgUUID": CANARY,
    "modelOverrides": {"x": CANARY},
    "autoMemoryDirectory": CANARY,
    "plansDirectory": CANARY,
    "companyAnnouncements": [CANARY],
    "somethingOfTheFuture": CANARY,
    CANARY: "x",
}


@pytest.mark.parametrize("key", sorted(FORBIDDEN_SETTINGS))
def test_a_forbidden_setting_stays_outside(home: Path, key: str) -> None:
    put(home, ".claude/settings.json", {key: FORBIDDEN_SETTINGS[key], "theme": "light"})
    found = gather(home)
    assert_clean(found)
    assert settings_of(found)["theme"] == "light"


def test_all_forbidden_settings_together_leave_only_what_a_session_sets(home: Path) -> None:
    put(home, ".claude/settings.json", FORBIDDEN_SETTINGS)
    found = gather(home)
    assert_clean(found)
    assert settings_of(found) == claude_settings.session_settings({})


def test_what_may_be_missed_is_named_without_its_value(home: Path) -> None:
    put(home, ".claude/settings.json", FORBIDDEN_SETTINGS)
    named = "\n".join(gather(home).left_out)
    assert CANARY not in named
    for key in claude_settings.LEFT_OUT:
        assert f"settings.json: {key} (" in named


FORBIDDEN_STATE: dict[str, object] = {
    "projects": {f"/home/alice/{CANARY}": {"history": [CANARY], "mcpServers": {"x": {"env": {"T": CANARY}}}}},
    "mcpServers": {"x": {"command": "npx", "env": {"TOKEN": CANARY}, "headers": {"Authorization": CANARY}}},
    "oauthAccount": {"emailAddress": CANARY, "accountUuid": CANARY},
    "primaryApiKey": CANARY,
    "customApiKeyResponses": {"approved": [CANARY], "rejected": []},
    "userID": CANARY,
    "machineID": CANARY,
    "env": {"X": CANARY},
    "cachedGrowthBookFeatures": {CANARY: CANARY},
    "githubRepoPaths": {"x": [CANARY]},
    "history": [CANARY],
    CANARY: 1,
}


@pytest.mark.parametrize("key", sorted(FORBIDDEN_STATE))
def test_a_forbidden_piece_of_state_stays_outside(home: Path, key: str) -> None:
    put(home, ".claude.json", {key: FORBIDDEN_STATE[key], "editorMode": "vim"})
    found = gather(home)
    assert_clean(found)
    assert state_of(found)["editorMode"] == "vim"
    assert list(state_of(found)["projects"]) == [str(WORKSPACE)]


FORBIDDEN_FILES = (
    ".claude/.credentials.json",
    ".claude/history.jsonl",
    ".claude/settings.local.json",
    ".claude/projects/-home-alice-shop/1.jsonl",
    ".claude/projects/-home-alice-shop/memory/MEMORY.md",
    ".claude/shell-snapshots/snapshot-bash.sh",
    ".claude/todos/1.json",
    ".claude/statsig/cache.json",
    ".claude/ide/1.lock",
    ".claude/plugins/config.json",
    ".claude/plugins/cache/x/commands/x.md",
    ".claude/file-history/x/1",
    ".claude/paste-cache/1.txt",
    ".claude/session-env/1/env.sh",
    ".claude/debug/log.txt",
    ".claude/backups/.claude.json.backup",
    ".claude/telemetry/events.json",
    ".claude/tasks/1.json",
    ".claude/plans/plan.md",
    ".claude/local/package.json",
    ".claude/hooks/hook.sh",
    ".claude/statusline.sh",
    ".claude/NOTES.md",
    ".claude/skills/deploy/.env",
    ".claude/skills/deploy/.env.production",
    ".claude/skills/deploy/server.pem",
    ".claude/skills/deploy/id_ed25519",
    ".claude/skills/deploy/credentials.json",
    ".claude/skills/deploy/.git/config",
    ".claude/skills/deploy/.npmrc",
    ".claude/skills/deploy/node_modules/x/index.js",
    ".claude/skills/deploy/session.jsonl",
    "CLAUDE.md",
    ".config/claude/settings.json",
)


@pytest.mark.parametrize("name", FORBIDDEN_FILES)
def test_a_forbidden_file_stays_outside(home: Path, name: str) -> None:
    put(home, name, CANARY)
    put(home, ".claude/skills/deploy/SKILL.md", "how to deploy")
    found = gather(home)
    assert_clean(found)
    assert ".claude/skills/deploy/SKILL.md" in written(found)


@pytest.mark.parametrize("tree_name", TREES)
def test_what_the_user_wrote_for_claude_comes_along(home: Path, tree_name: str) -> None:
    put(home, f".claude/{tree_name}/one.md", "one")
    script = put(home, f".claude/{tree_name}/deep/run.sh", "#!/bin/sh\n")
    script.chmod(0o755)
    found = {str(file.path): file for file in gather(home).files}
    assert found[f".claude/{tree_name}/one.md"].mode == 0o600
    assert found[f".claude/{tree_name}/deep/run.sh"].mode == 0o700


def test_instructions_bring_the_texts_beside_them_that_they_import(home: Path) -> None:
    put(home, ".claude/CLAUDE.md", "Be brief.\n@STYLE.md and @~/.claude/TOOLS.md\n@projects/x/memory.md\n")
    put(home, ".claude/STYLE.md", "@./DEEPER.md")
    put(home, ".claude/DEEPER.md", "@STYLE.md")
    put(home, ".claude/TOOLS.md", "tools")
    put(home, ".claude/OTHER.md", CANARY)
    put(home, ".claude/projects/x/memory.md", CANARY)
    found = gather(home)
    assert_clean(found)
    texts = {path for path in written(found) if path.endswith(".md")}
    assert texts == {f".claude/{name}.md" for name in ("CLAUDE", "STYLE", "DEEPER", "TOOLS")}


ACCEPTED: dict[str, list[object]] = {
    "model": ["opus", "claude-opus-4-8[1m]", "us.anthropic.claude:0"],
    "fallbackModel": [["sonnet", "haiku"]],
    "effortLevel": ["high"],
    "alwaysThinkingEnabled": [True, False],
    "outputStyle": ["Explanatory"],
    "language": ["日本語"],
    "theme": ["light", "custom:mine"],
    "editorMode": ["vim"],
    "spinnerVerbs": [{"mode": "append", "verbs": ["Brewing tea"]}],
    "attribution": [{"commit": "By me\n\nCo-Authored-By: x <y>", "pr": ""}],
    "includeCoAuthoredBy": [False],
    "cleanupPeriodDays": [7, 365],
    "autoCompactWindow": [200000],
    "skillOverrides": [{"deploy": "off"}],
    "disabledMcpjsonServers": [["playwright"]],
}
REFUSED: dict[str, list[object]] = {
    "model": [7, "", "a b", "$(id)", "x" * 200, ["opus"], {"a": 1}],
    "fallbackModel": ["sonnet", [1], ["x y"]],
    "verbose": ["true", 1, None],
    "outputStyle": ["a\nb", "\x1b[31m", 5],
    "theme": ["a;b", {}],
    "cleanupPeriodDays": [0, -1, True, "30", 1e12],
    "attribution": [{"commit": 5}, {"other": "x"}, "text", {"commit": "a\x1b"}],
    "skillOverrides": [{"deploy": 1}, {"a b": "off"}, ["x"]],
    "spinnerVerbs": [{"mode": "x", "verbs": ["\x1b]"]}],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in ACCEPTED.items() for v in values])
def test_a_harmless_preference_comes_along_as_it_is(home: Path, key: str, value: object) -> None:
    put(home, ".claude/settings.json", {key: value})
    assert settings_of(gather(home))[key] == value


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in REFUSED.items() for v in values])
def test_a_preference_of_another_form_stays_outside(home: Path, key: str, value: object) -> None:
    put(home, ".claude/settings.json", {key: value})
    assert key not in settings_of(gather(home))


def test_every_preference_says_why_and_none_is_also_left_out() -> None:
    assert all(row.why for row in claude_settings.SETTINGS.values())
    assert not set(claude_settings.SETTINGS) & set(claude_settings.LEFT_OUT)
    assert set(claude_settings.SETTINGS) >= claude_settings.GLOBAL_KEYS


def test_rules_that_restrict_come_along_and_rules_that_allow_do_not(home: Path) -> None:
    rules = {"deny": [f"Read(/{home}/secret/**)"], "ask": ["Bash(git push:*)"], "allow": ["Bash(ls)"]}
    put(home, ".claude/settings.json", {"permissions": rules})
    assert settings_of(gather(home))["permissions"] == {
        "deny": [f"Read(/{WORKER_HOME}/secret/**)"],
        "ask": ["Bash(git push:*)"],
    }


def test_the_sandbox_decides_over_the_user_and_the_state_of_a_kept_session_stays(home: Path) -> None:
    put(
        home,
        ".claude/settings.json",
        {"sandbox": {"enabled": True}, "skipDangerousModePermissionPrompt": False},
    )
    found = gather(home)
    assert settings_of(found)["sandbox"] == {"enabled": False}
    assert settings_of(found)["skipDangerousModePermissionPrompt"] is True
    assert {str(file.path): file.keep for file in found.files} == {
        ".claude/settings.json": False,
        ".claude.json": True,
    }


def test_paths_below_the_users_home_point_into_the_workers(home: Path) -> None:
    text = "\n".join(
        (f"{home}/bin/tool", f"`{home}`", f"file://{home}.", f"{home}2/x", f"/mnt{home}/x", f"{home}.old/x")
    )
    put(home, ".claude/CLAUDE.md", text)
    put(home, ".claude/skills/s/data.bin", b"\0" + os.fsencode(home))
    put(home, ".claude/skills/s/large.md", f"{home}/x\n" * (2_000_000 // len(str(home))))
    data = written(gather(home))
    assert data[".claude/CLAUDE.md"].decode().split("\n") == [
        f"{WORKER_HOME}/bin/tool",
        f"`{WORKER_HOME}`",
        f"file://{WORKER_HOME}.",
        f"{home}2/x",
        f"/mnt{home}/x",
        f"{home}.old/x",
    ]
    assert os.fsencode(home) in data[".claude/skills/s/data.bin"]
    assert os.fsencode(home) in data[".claude/skills/s/large.md"]


@pytest.mark.parametrize(
    "link",
    [
        ".claude/CLAUDE.md",
        ".claude/settings.json",
        ".claude.json",
        ".claude/keybindings.json",
        ".claude/skills/deploy/loot",
        ".claude/commands",
        ".claude/agents/a.md",
    ],
)
@pytest.mark.parametrize("target", ["outside", ".claude/history.jsonl", ".claude/projects"])
def test_a_link_that_leads_elsewhere_is_not_followed(
    home: Path, tmp_path: Path, link: str, target: str
) -> None:
    secret = json.dumps({"theme": CANARY, "model": CANARY})
    put(tmp_path, "outside/id_rsa.md", secret)
    put(tmp_path, "outside/settings.md", secret)
    put(home, ".claude/history.jsonl", secret)
    put(home, ".claude/projects/x.md", secret)
    path = home / link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(tmp_path / "outside" if target == "outside" else home / target)
    assert_clean(gather(home))
    path.unlink()
    path.symlink_to(tmp_path / "outside/settings.md")
    found = gather(home)
    assert_clean(found)
    assert any("link" in line for line in found.left_out)


def test_a_link_from_one_text_to_another_is_followed_and_a_circle_ends(home: Path) -> None:
    put(home, ".claude/skills/real/SKILL.md", "real")
    (home / ".claude/commands").mkdir()
    (home / ".claude/commands/linked.md").symlink_to("../skills/real/SKILL.md")
    (home / ".claude/skills/again").symlink_to("real")
    (home / ".claude/skills/real/loop").symlink_to("..")
    data = written(gather(home))
    assert data[".claude/commands/linked.md"] == b"real"
    assert data[".claude/skills/again/SKILL.md"] == b"real"
    assert len(data) < 20


def test_pipes_large_files_and_odd_names_are_left_out(home: Path) -> None:
    (home / ".claude/commands").mkdir()
    os.mkfifo(home / ".claude/commands/pipe.md")
    os.mkfifo(home / ".claude/CLAUDE.md")
    put(home, ".claude/commands/huge.md", b"x" * ((4 << 20) + 1))
    (home / ".claude/commands" / os.fsdecode(b"bad\xff.md")).write_text(CANARY)
    (home / ".claude/commands/esc\x1b[31m.md").write_text(CANARY)
    put(home, ".claude/commands/fine.md", "fine")
    found = gather(home)
    assert_clean(found)
    assert set(written(found)) == {".claude/settings.json", ".claude.json", ".claude/commands/fine.md"}


def test_a_tree_without_end_is_cut_and_said(home: Path) -> None:
    for number in range(30):
        put(home, f".claude/skills/{number:02}/SKILL.md", "x")
    put(home, ".claude/commands/" + "d/" * 15 + "deep.md", CANARY)
    assert_clean(gather(home))
    reader = tree.TreeReader(
        root=home / ".claude", allowed=frozenset({"skills"}), limits=tree.Limits(max_files=10)
    )
    assert len(list(reader.walk("skills"))) == 10
    assert reader.left_out == ["more files than can come along; the rest of them"]


@pytest.mark.parametrize("content", ["", "[1]", "{", "\0", "[" * 100_000, '{"theme": NaN}'])
def test_settings_that_are_no_settings_are_as_good_as_none(home: Path, content: str) -> None:
    put(home, ".claude/settings.json", content)
    put(home, ".claude.json", content)
    found = gather(home)
    assert settings_of(found) == claude_settings.session_settings({})
    assert state_of(found)["hasCompletedOnboarding"] is True


def test_a_home_without_claude_gets_what_a_session_needs(tmp_path: Path) -> None:
    assert set(written(gather(tmp_path / "nobody"))) == {".claude/settings.json", ".claude.json"}


@pytest.mark.parametrize(("version", "known"), [("2.1.197", True), ("unknown", False), (None, False)])
def test_release_notes_of_the_version_in_use_do_not_greet(
    home: Path, version: str | None, known: bool
) -> None:
    request = HomeRequest(user_home=home, worker_home=WORKER_HOME, workspace=WORKSPACE, version=version)
    assert ("lastReleaseNotesSeen" in state_of(collect(request))) == known


def test_settings_that_were_moved_are_read_where_they_are(home: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    put(moved, "settings.json", {"theme": "light"})
    put(moved, ".claude.json", {"editorMode": "vim", "primaryApiKey": CANARY})
    put(home, ".claude/settings.json", {"theme": "dark"})
    found = gather(home, CLAUDE_CONFIG_DIR=str(moved))
    assert settings_of(found)["theme"] == "light"
    assert state_of(found)["editorMode"] == "vim"
    assert_clean(found)
