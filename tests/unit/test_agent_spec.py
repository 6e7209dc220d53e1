"""The environment inside holds what the allow-list names, and the demo agent works."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from clsecure.agents.environment import cloud_credentials
from clsecure.agents.spec import AGENTS, AgentSpec, GatewayAccess, environment, find_spec
from clsecure.errors import AgentError, UsageError

CANARY = "CANARY-77ab"
HOME = PurePosixPath("/home/claude-worker-shop-1a2b3c")

SECRET_NAMES = """
ANTHROPIC_API_KEY ANTHROPIC_AUTH_TOKEN ANTHROPIC_BASE_URL ANTHROPIC_CUSTOM_HEADERS ANTHROPIC_UNIX_SOCKET
ANTHROPIC_FOUNDRY_API_KEY ANTHROPIC_AWS_API_KEY ANTHROPIC_BEDROCK_BASE_URL ANTHROPIC_CONFIG_DIR
ANTHROPIC_PROFILE CLAUDE_CODE_OAUTH_TOKEN CLAUDE_CODE_OAUTH_REFRESH_TOKEN CLAUDE_CODE_CLIENT_KEY
CLAUDE_CODE_CLIENT_KEY_PASSPHRASE CLAUDE_CODE_SESSION_ACCESS_TOKEN CLAUDE_CODE_EXTRA_BODY
CLAUDE_CODE_SHELL_PREFIX CLAUDE_CODE_SHELL CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR CLAUDE_CODE_USE_BEDROCK
CLAUDE_CONFIG_DIR CLAUDE_ENV_FILE CLAUDE_CODE_TMPDIR CLAUDE_CODE_SOMETHING_NEW ANTHROPIC_SOMETHING_NEW
AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_PROFILE GOOGLE_APPLICATION_CREDENTIALS
GH_TOKEN GITHUB_TOKEN NPM_TOKEN KIMI_API_KEY OPENAI_API_KEY HTTP_PROXY HTTPS_PROXY https_proxy ALL_PROXY
NODE_EXTRA_CA_CERTS NODE_OPTIONS LD_PRELOAD LD_LIBRARY_PATH PYTHONPATH PYTHONSTARTUP BASH_ENV ENV
PROMPT_COMMAND SSH_AUTH_SOCK SSH_AGENT_PID GPG_AGENT_INFO DBUS_SESSION_BUS_ADDRESS DISPLAY XAUTHORITY
WAYLAND_DISPLAY XDG_RUNTIME_DIR TMUX TMUX_PANE STY DOCKER_HOST KUBECONFIG GIT_DIR GIT_SSH_COMMAND
GIT_CONFIG_COUNT EDITOR VISUAL PAGER BROWSER SUDO_USER MAIL OLDPWD HISTFILE NVM_DIR VIRTUAL_ENV LC_
lc_all MCP_CLIENT_SECRET OTEL_EXPORTER_OTLP_HEADERS VSCODE_GIT_ASKPASS_MAIN CLSECURE_TOKEN
""".split()  # noqa: SIM905  # to be read, not to be scrolled


def inside(agent: AgentSpec, environ: dict[str, str], **more: object) -> dict[str, str]:
    arguments: dict[str, object] = {
        "user": "claude-worker-shop-1a2b3c",
        "home": HOME,
        "session": "default",
        "terminal": True,
        **more,
    }
    return environment(agent, environ, **arguments)  # type: ignore[arg-type]


def access(**more: Any) -> GatewayAccess:
    return GatewayAccess(port=4321, token="session-token", **more)


@pytest.mark.parametrize("agent", AGENTS.values(), ids=lambda agent: agent.name)
def test_nothing_secret_of_the_users_environment_passes(agent: AgentSpec) -> None:
    env = inside(agent, dict.fromkeys(SECRET_NAMES, CANARY))
    assert CANARY not in "\n".join(f"{name}={value}" for name, value in env.items())


def test_the_terminal_and_harmless_variables_pass() -> None:
    environ = {
        "TERM": "xterm-kitty",
        "COLORTERM": "truecolor",
        "LANG": "de_DE.UTF-8",
        "LC_TIME": "C",
        "TZ": "Europe/Berlin",
        "ANTHROPIC_MODEL": "opus",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": "kimi-k2",
        "API_TIMEOUT_MS": "600000",
        "CLAUDE_CODE_SUBAGENT_MODEL": "haiku",
        "CLAUDE_CODE_DISABLE_TERMINAL_TITLE": "1",
    }
    env = inside(AGENTS["claude"], environ)
    assert {name: env.get(name) for name in environ} == environ
    demo = inside(AGENTS["demo"], environ)
    assert "ANTHROPIC_MODEL" not in demo
    assert demo["TERM"] == "xterm-kitty"


@pytest.mark.parametrize("value", ["\x1b]0;x\x07", "a\nb", "x" * 600, "\x00", "\x9b31m", "\udcff"])
def test_a_value_that_could_speak_to_a_terminal_does_not_pass(value: str) -> None:
    env = inside(AGENTS["claude"], {"ANTHROPIC_MODEL": value, "TZ": value})
    assert "ANTHROPIC_MODEL" not in env
    assert "TZ" not in env


def test_the_environment_is_complete_without_anything_of_the_users() -> None:
    env = inside(AGENTS["claude"], {}, extra_path=(PurePosixPath("/opt/node/bin"),))
    assert env["HOME"] == str(HOME)
    assert env["USER"] == env["LOGNAME"] == "claude-worker-shop-1a2b3c"
    assert env["PATH"].split(":")[:4] == ["/opt/clsecure/bin", "/opt/node/bin", "/usr/local/bin", "/usr/bin"]
    assert (env["TERM"], env["LANG"], env["SHELL"]) == ("xterm-256color", "C.UTF-8", "/bin/bash")
    assert (env["CLSECURE"], env["CLSECURE_SESSION"]) == ("1", "default")
    assert not [name for name in env if name.startswith("ANTHROPIC_")]
    assert "TERM" not in inside(AGENTS["claude"], {"TERM": "xterm"}, terminal=False)


@pytest.mark.parametrize(
    ("outside", "variable"),
    [
        ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
        ("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN"),
        ("CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"),
    ],
)
def test_the_token_takes_the_place_of_the_credential(outside: str, variable: str) -> None:
    environ = {outside: CANARY, "ANTHROPIC_BASE_URL": "https://gateway.invalid"}
    env = inside(AGENTS["claude"], environ, gateway=access(credential_variable=outside))
    assert {name: value for name, value in env.items() if value == "session-token"} == {
        variable: "session-token"
    }
    assert env["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:4321"
    assert CANARY not in env.values()


def test_programs_inside_are_led_to_the_gateway_and_not_by_way_of_the_users_own_proxy() -> None:
    environ = dict.fromkeys(("HTTPS_PROXY", "http_proxy", "ALL_PROXY", "NO_PROXY"), CANARY)
    env = inside(AGENTS["demo"], environ, gateway=access())
    url = "http://clsecure:session-token@127.0.0.1:4321"
    assert {name: value for name, value in env.items() if value == url} == dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), url
    )
    assert env["NO_PROXY"] == env["no_proxy"] == "localhost,127.0.0.1,::1"
    assert env["CLSECURE_POLICY_URL"] == f"{url}/.clsecure/policy"
    assert "ALL_PROXY" not in env
    assert CANARY not in env.values()


@pytest.mark.parametrize(
    ("gateway", "api"), [(None, False), ({"proxy": False, "credential_variable": "ANTHROPIC_API_KEY"}, True)]
)
def test_without_a_gateway_or_with_another_way_out_there_is_no_proxy(gateway: Any, api: bool) -> None:
    env = inside(AGENTS["claude"], {}, gateway=None if gateway is None else access(**gateway))
    assert not [name for name in env if "PROXY" in name.upper() or name == "CLSECURE_POLICY_URL"]
    assert ("ANTHROPIC_BASE_URL" in env, "ANTHROPIC_AUTH_TOKEN" in env) == (api, api)


def test_a_gateway_without_a_credential_is_no_api() -> None:
    env = inside(AGENTS["claude"], {"ANTHROPIC_BASE_URL": CANARY}, gateway=access())
    assert not [name for name in env if name.startswith("ANTHROPIC_")]


def test_what_the_tools_are_told_does_not_replace_what_the_sandbox_says() -> None:
    tool_env = {"NPM_CONFIG_REGISTRY": "http://host.clsecure.internal:4873/", "PATH": CANARY, "HOME": CANARY}
    env = inside(AGENTS["demo"], {}, tool_env=tool_env, gateway=access())
    assert env["NPM_CONFIG_REGISTRY"] == "http://host.clsecure.internal:4873/"
    assert CANARY not in env.values()


def test_credentials_that_the_user_gives_the_agent_are_there_under_their_own_names() -> None:
    env = inside(AGENTS["claude"], {}, gateway=access(), credentials={"ANTHROPIC_API_KEY": "the-key"})
    assert env["ANTHROPIC_API_KEY"] == "the-key"
    assert "ANTHROPIC_BASE_URL" not in env


CLOUD = {
    "CLAUDE_CODE_USE_BEDROCK": "1",
    "AWS_ACCESS_KEY_ID": "AKIA-CANARY",
    "AWS_SECRET_ACCESS_KEY": "secret-CANARY",
    "AWS_SESSION_TOKEN": "t" * 2000,
    "AWS_REGION": "eu-central-1",
    "AWS_PROFILE": "mine",
    "GOOGLE_CLOUD_PROJECT": "other",
}


def test_of_the_clouds_only_the_chosen_one_gets_its_credentials() -> None:
    clouds = AGENTS["claude"].clouds
    found = cloud_credentials(CLOUD, clouds)
    assert found is not None
    assert set(found.env) == set(CLOUD) - {"AWS_PROFILE", "GOOGLE_CLOUD_PROJECT"}
    assert set(found.secrets) == {"AKIA-CANARY", "secret-CANARY", "t" * 2000}
    assert "CANARY" not in repr(found)
    for no in ("", "0", "false"):
        assert cloud_credentials({**CLOUD, "CLAUDE_CODE_USE_BEDROCK": no}, clouds) is None
    vertex = cloud_credentials(
        {**CLOUD, "CLAUDE_CODE_USE_BEDROCK": "", "CLAUDE_CODE_USE_VERTEX": "1"}, clouds
    )
    assert vertex is not None
    assert set(vertex.env) == {"CLAUDE_CODE_USE_VERTEX", "GOOGLE_CLOUD_PROJECT"}
    assert cloud_credentials({**CLOUD, "AWS_SECRET_ACCESS_KEY": "a\x1b[0m"}, clouds).env.keys() == (
        found.env.keys() - {"AWS_SECRET_ACCESS_KEY"}
    )


def test_a_credential_that_the_agent_cannot_use_is_an_error() -> None:
    with pytest.raises(AgentError):
        inside(AGENTS["claude"], {}, gateway=access(credential_variable="OPENAI_API_KEY"))


def test_an_unknown_agent_is_refused_with_the_names_of_the_known() -> None:
    with pytest.raises(UsageError) as caught:
        find_spec("gpt")
    assert caught.value.resolution.startswith("Choose one of: claude, demo; or ")


def test_resume_starts_anew_where_there_is_nothing_to_resume(tmp_path: Path) -> None:
    workspace = tmp_path / "home/work.space"
    workspace.mkdir(parents=True)
    argv = [
        "/bin/echo" if part == "/opt/clsecure/bin/claude" else part for part in AGENTS["claude"].argv_resume
    ]

    def said() -> str:
        env = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
        return subprocess.run(argv, env=env, cwd=workspace, capture_output=True, text=True, check=True).stdout

    assert said() == "--dangerously-skip-permissions\n"
    slug = "".join(letter if letter.isalnum() else "-" for letter in str(workspace))
    transcripts = tmp_path / "home/.claude/projects" / slug
    transcripts.mkdir(parents=True)
    (transcripts / "empty.jsonl").touch()
    assert said() == "--dangerously-skip-permissions\n"
    (transcripts / "talk.jsonl").write_text("{}\n")
    assert said() == "--dangerously-skip-permissions --continue\n"


def git(repository: Path, *args: str) -> str:
    env = {"PATH": os.environ["PATH"], "HOME": str(repository), "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(
        ["git", "-C", str(repository), *args], env=env, capture_output=True, text=True, check=True
    ).stdout


def test_the_demo_agent_edits_adds_commits_and_leaves_a_change(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "user.name", "A")
    git(tmp_path, "config", "user.email", "a@example.org")
    (tmp_path / "README.md").write_text("Hello\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "start")
    for number in (1, 2):
        env = inside(AGENTS["demo"], {}) | {"HOME": str(tmp_path)}
        done = subprocess.run(
            AGENTS["demo"].argv_unattended, env=env, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "demo agent: Done." in done.stdout
        assert git(tmp_path, "rev-list", "--count", "HEAD").strip() == str(1 + number)
        assert git(tmp_path, "status", "--porcelain") == "?? demo/notes.txt\n"
    assert git(tmp_path, "ls-tree", "-r", "--name-only", "HEAD").split() == ["README.md", "demo/hello.sh"]
    assert git(tmp_path, "ls-tree", "HEAD", "demo/hello.sh").startswith("100755")


def test_the_demo_agent_does_not_write_through_a_link(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "README.md").symlink_to("/dev/full")
    env = inside(AGENTS["demo"], {}) | {"HOME": str(tmp_path), "GIT_AUTHOR_NAME": "A"}
    done = subprocess.run(
        AGENTS["demo"].argv_unattended, env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert "I edit README.demo.md" in done.stdout
