"""Providers and agents of the user's own in real sessions, as a plain person runs them."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import schema, sweep
from tests.support.messages_api import MessagesApi, bash, text
from tests.support.person import SYSTEM_PATH, Person

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(240)]

KEY = "sk-llm-CANARY-of-mine"
OTHER = "sk-ant-CANARY-of-anthropic"
_numbers = itertools.count()
both_modes = pytest.mark.parametrize("mode", ["user", "namespace"])


@pytest.fixture(scope="module", autouse=True)
def no_workers_left(person: Person) -> Iterator[None]:
    """Give the machine its accounts back after the module."""
    yield
    sweep.remove_workers(person.uid)


@pytest.fixture
def repo(person: Person) -> Path:
    return person.repository(f"provider{next(_numbers)}")


@pytest.fixture
def settings(person: Person) -> Iterator[Callable[[str], None]]:
    """Write the person's own settings; they are gone after the test."""
    place = person.home / ".config/clsecure"

    def write(content: str) -> None:
        person.run(["mkdir", "-p", str(place)]).check()
        person.write(place / "config.toml", content.encode(), mode=0o600)

    yield write
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def path(person: Person, claude_binary: Path) -> str:
    """The person's PATH with claude and a password manager on it."""
    directory = person.home / ".local/bin"
    person.run(["mkdir", "-p", str(directory)]).check()
    person.run(["ln", "-sf", str(claude_binary), str(directory / "claude")]).check()
    person.write(
        directory / "mypass", f'#!/bin/sh\n[ "$*" = "show llm" ] && echo {KEY}\n'.encode(), mode=0o755
    )
    return f"{directory}:{SYSTEM_PATH}"


SOURCES = {
    "command": "key_command = ['mypass', 'show', 'llm']",
    "file": "key_file = '~/.key-of-mine'",
    "environment": "key_env = 'MINE_KEY'",
}


@pytest.mark.parametrize(
    ("mode", "source", "auth"),
    [
        ("user", "command", "api-key"),
        ("namespace", "file", "bearer"),
        ("namespace", "environment", "api-key"),
    ],
)
def test_claude_code_works_with_a_provider_of_the_users_own(person, repo, path, settings, mode, source, auth):
    person.write(person.home / ".key-of-mine", f"{KEY}\n".encode(), mode=0o600)
    environ = {"PATH": path, "ANTHROPIC_API_KEY": OTHER, "ANTHROPIC_MODEL": "claude-other"}
    if source == "environment":
        environ["MINE_KEY"] = KEY
    turns = [[text("I start."), bash("env >~/seen; echo made >made")], [text("All is done.")]]
    with MessagesApi(turns, prefix="/coding") as mine, MessagesApi([]) as anthropic:
        settings(
            f"provider = 'mine'\n[providers.mine]\nbase_url = '{mine.url}/'\n{SOURCES[source]}\n"
            f"auth = '{auth}'\nmodel = 'my-big-model'\nmodels.haiku = 'my-small-model'\n"
        )
        environ["ANTHROPIC_BASE_URL"] = anthropic.url
        done = person.clsecure(
            "--mode", mode, "--on-finish", "import", "--output", "json",
            "--", "claude", "--dangerously-skip-permissions", "-p", "do it",
            cwd=repo, env=environ,
        ).check()  # fmt: skip
        assert anthropic.requests == []
        presented = {(r.headers.get("x-api-key"), r.headers.get("authorization")) for r in mine.messages()}
        assert presented == {(KEY, None) if auth == "api-key" else (None, f"Bearer {KEY}")}
        assert {request.body["model"] for request in mine.messages()} == {"my-big-model"}
        assert all(request.target.startswith("/coding/v1/") for request in mine.requests)
    document = done.json()
    schema.check(document, schema.load("result"))
    assert person.git(repo, "show", f"{document['import']['branch']}:made") == "made"
    assert f"the model is served by mine, {mine.url}" in done.errors
    home = Path("/home", document["worker_user"])
    seen = (home / "seen").read_text()
    assert "ANTHROPIC_MODEL=my-big-model\n" in seen
    assert "ANTHROPIC_DEFAULT_HAIKU_MODEL=my-small-model\n" in seen
    assert "ANTHROPIC_AUTH_TOKEN=" in seen
    places = (home, person.home / ".local/state/clsecure")
    files = [
        file for place in places for file in place.rglob("*") if file.is_file() and not file.is_symlink()
    ]
    assert [file for file in files if {b"CANARY-of-", b"claude-other"} & words_of(file)] == []


def words_of(file: Path) -> set[bytes]:
    """Return which of the person's secrets a file holds."""
    content = file.read_bytes()
    return {word for word in (b"CANARY-of-", b"claude-other") if word in content}


def test_kimi_is_asked_at_its_address_and_nobody_else(person, repo):
    """Nothing answers there in a test: what counts is where the request would go."""
    ask = (
        'curl -s -o ~/answer -w "%{http_code}" --noproxy "*" -H "x-api-key: $ANTHROPIC_AUTH_TOKEN" '
        '"$ANTHROPIC_BASE_URL/v1/models"; echo; env'
    )
    with MessagesApi([]) as anthropic:
        environ = {"KIMI_API_KEY": KEY, "ANTHROPIC_BASE_URL": anthropic.url, "ANTHROPIC_API_KEY": OTHER}
        done = person.clsecure(
            "--provider", "kimi", "--on-finish", "discard", "--output", "json", "--", "sh", "-c", ask,
            cwd=repo, env=environ,
        ).check()  # fmt: skip
        assert anthropic.requests == []
    asked = [(host["host"], host["port"]) for host in done.json()["egress"]["hosts"]]
    assert asked == [("api.kimi.com", 443)]
    assert "ANTHROPIC_AUTH_TOKEN=" in done.errors
    assert "CANARY" not in done.errors + done.text


@pytest.mark.parametrize(
    ("options", "content", "words"),
    [
        (("--provider", "kimi"), "", "KIMI_API_KEY is not set"),
        (("--provider", "mine"), "key_env = 'MINE_KEY'", "export MINE_KEY="),
        (("--provider", "mine"), "key_file = '~/.no-key'", ".no-key: No such file"),
        (("--provider", "mine"), "key_command = ['false']", "status 1"),
        (("--provider", "mine"), "key_command = ['no-such-pass']", "no-such-pass"),
        (("--provider", "mini"), "key_env = 'A'", "did you mean mine?"),
        (("--agent", "mine"), "key_env = 'A'", "there is no agent called mine"),
    ],
)
def test_without_its_key_nothing_is_made(person, repo, settings, options, content, words):
    if content:
        settings(f"[providers.mine]\nbase_url = 'https://a.example'\n{content}\n")
    accounts = person.worker_accounts()
    done = person.clsecure(*options, "--", "true", cwd=repo, env={"ANTHROPIC_API_KEY": OTHER})
    assert done.returncode == 125
    assert words in done.errors
    assert person.worker_accounts() == accounts
    sessions = person.home / ".local/state/clsecure/sessions"
    assert not [each for each in sessions.glob("*") if each.name.startswith(f"{repo.name}-")]


def test_what_only_looks_asks_for_no_key(person, repo, settings):
    mark = person.home / "asked"
    person.write(person.home / "marks", f"#!/bin/sh\ntouch {mark}\necho {KEY}\n".encode(), mode=0o755)
    settings(
        "provider = 'mine'\n[providers.mine]\nbase_url = 'https://llm.example.org/v'\n"
        "key_command = ['~/marks', 'secret-argument']\nmodel = 'big'\n"
        "[agents.own]\ncommand = ['own-agent', '--yes']\n"
    )
    shown = person.clsecure("--agent", "own", "--dry-run", cwd=repo).check()
    assert "runs       own: own-agent --yes" in shown.errors
    assert "mine at https://llm.example.org/v, the key from the command ~/marks (" in shown.errors
    assert "models     default big" in shown.errors
    assert "secret-argument" not in shown.errors + shown.text
    person.clsecure("--dry-run", "--output", "json", cwd=repo).check()
    check = person.clsecure("network", "check", "https://llm.example.org/v/v1/messages", cwd=repo).check()
    assert "allowed" in check.text
    assert (
        person.clsecure("network", "check", "https://api.anthropic.com/v1/messages", cwd=repo).returncode == 1
    )
    assert not mark.exists()


@both_modes
def test_an_agent_of_the_users_own_works_and_goes_on(person, repo, settings, mode):
    """Its program is in a mount; it asks its API by its own variables."""
    tools = person.home / "own-tools"
    person.run(["mkdir", "-p", str(tools / "bin")]).check()
    script = """#!/bin/sh -e
        echo "$1" >>done; env >~/seen
        curl -sf --noproxy '*' -H "x-api-key: $OWN_KEY" "$OWN_URL/v1/models" >~/models
        """
    person.write(tools / "bin/own-agent", script.encode(), mode=0o755)
    with MessagesApi([]) as api:
        settings(
            f"""
            agent = "own"
            mounts = ["{tools}:/opt/own"]
            provider = "mine"
            [providers.mine]
            base_url = "{api.url}"
            key_env = "MINE_KEY"
            [agents.own]
            command = ["own-agent", "began"]
            resume = ["/opt/own/bin/own-agent", "went on"]
            env = ["OWN_MODEL"]
            base_url_env = "OWN_URL"
            token_env = "OWN_KEY"
            """
        )
        env = {"MINE_KEY": KEY, "OWN_MODEL": "m", "OWN_OTHER": "x"}
        options = ("--mode", mode, "--output", "json")
        first = person.clsecure(*options, "--on-finish", "keep", cwd=repo, env=env).check()
        assert "own runs isolated" in first.errors
        second = person.clsecure(*options, "--resume", "--on-finish", "import", cwd=repo, env=env).check()
        assert [request.headers["x-api-key"] for request in api.requests] == [KEY, KEY]
    document = second.json()
    assert document["agent"] == "own"
    branch = document["import"]["branch"]
    assert person.git(repo, "show", f"{branch}:done") == "began\nwent on"
    seen = (Path("/home", document["worker_user"]) / "seen").read_text().splitlines()
    assert "OWN_MODEL=m" in seen
    assert [
        line for line in seen if line.startswith(("OWN_OTHER", "MINE_KEY", "ANTHROPIC")) or KEY in line
    ] == []


def test_an_agent_whose_program_is_not_there_inside_is_said(person, repo, settings):
    settings("[agents.own]\ncommand = ['no-such-agent']\n")
    done = person.clsecure("--agent", "own", "--on-finish", "discard", cwd=repo)
    assert done.returncode == 125
    assert "no-such-agent" in done.errors
