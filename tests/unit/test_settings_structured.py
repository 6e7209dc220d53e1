"""[providers.NAME] and [agents.NAME] of the user's and the machine's config.toml."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from clsecure.agents.spec import AGENTS, find_spec
from clsecure.cli.render import plain
from clsecure.errors import UsageError
from clsecure.settings import files, report, structured
from clsecure.settings.layers import network_settings, settle
from clsecure.settings.model import Settings, load
from clsecure.settings.project import with_project
from clsecure.settings.sources import Entry, Layer, Source, gather
from clsecure.settings.structured import AgentTable, Auth, KeySource, ProviderTable
from tests.support.person import CHECKOUT

SECRET = "sk-hunter2-CANARY"
MINE = "[providers.mine]\nbase_url = 'https://llm.example.org/v/'\nkey_env = 'MINE_KEY'\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home/.config/clsecure").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    return tmp_path / "home"


def loaded(
    home: Path, content: str, *, provider: str | None = None, system: str = "", flat: str = "", **environ: str
) -> Settings:
    for path, words in (
        (home / ".config/clsecure/config.toml", content),
        (home / ".config/clsecure/config", flat),
        (home.parent / "etc/config.toml", system),
    ):
        path.write_text(words)
        path.chmod(0o600)
    source = Source(layer=Layer.FLAG, where="--provider")
    flags = [Entry(key="provider", text=provider, source=source)] if provider else []
    return load(gather(flags, environ={"HOME": str(home), **environ}, system=home.parent / "etc"))


def refused(home: Path, content: str, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        loaded(home, content, **options)
    error = caught.value
    return f"{error.brief} | {error.details} | {error.resolution}"


@pytest.fixture(autouse=True)
def owner_of_the_machines_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SYSTEM_OWNER", os.geteuid())


# ------------------------------------------------------------ providers


def test_a_provider_has_all_that_its_table_says(home: Path) -> None:
    settings = loaded(
        home,
        """
        provider = "mine"
        [providers.mine]
        base-url = "https://llm.example.org/v/"
        key_command = ["pass", "show", "llm/mine"]
        auth = "bearer"
        model = "big"
        timeout_ms = 600000
        [providers.mine.models]
        haiku = "small"
        subagent = "middle"
        """,
    )
    assert settings.served == ProviderTable(
        name="mine",
        base_url="https://llm.example.org/v",
        key=KeySource(command=("pass", "show", "llm/mine")),
        auth=Auth.BEARER,
        models={"default": "big", "haiku": "small", "subagent": "middle"},
        timeout_ms=600000,
        source=Source(layer=Layer.USER_FILE, where=f"{home}/.config/clsecure/config.toml:3"),
    )
    assert settings.providers == (settings.served,)
    assert str(settings.served.key) == "the command pass"


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("key_env = 'A_KEY'", KeySource(variable="A_KEY")),
        ("key_file = '~/.keys/a'", KeySource(file="~/.keys/a")),
        ("key_file = '/run/keys/a'", KeySource(file="/run/keys/a")),
        ("""key_command = 'op read "op://a/b c"'""", KeySource(command=("op", "read", "op://a/b c"))),
        ("key_command = ['~/bin/key']", KeySource(command=("~/bin/key",))),
    ],
)
def test_a_key_comes_from_one_of_three_places(home: Path, line: str, key: KeySource) -> None:
    settings = loaded(home, f"[providers.a]\nbase_url = 'http://127.0.0.1:1'\n{line}\n", provider="a")
    assert settings.served is not None
    assert settings.served.key == key


def test_nothing_is_served_by_another_unless_it_is_chosen(home: Path) -> None:
    assert loaded(home, MINE).served is None
    assert loaded(home, MINE, provider="anthropic").served is None


@pytest.mark.parametrize(
    ("lines", "line", "words"),
    [
        (f"key = '{SECRET}'", 4, ("key_env", "key_file", "key_command")),
        (f"api_key = '{SECRET}'", 4, ("key_env", "key_file", "key_command")),
        (f"token = '{SECRET}'", 4, ("key_env", "key_file", "key_command")),
        (f"key_env = '{SECRET}'", 4, ("name of a variable",)),
        (f"key_file = '{SECRET}'", 4, ("absolute path",)),
        ("key_file = '~/../x'", 4, ("without '..'",)),
        ("key_command = './pass show x'", 4, ("without a directory",)),
        ("key_command = ['bin/pass']", 4, ("without a directory",)),
        (f"key_command = [1, '{SECRET}']", 4, ("array of strings",)),
        ("key_command = []", 4, ("array of strings",)),
        (f"""key_command = "pass '{SECRET}" """, 4, ("quotes close",)),
        ("key_comand = 'pass'", 4, ("'key_comand'", "did you mean key_command?")),
        (f"auth = '{SECRET}'", 4, ("api-key or bearer",)),
        (f"model = 'a {SECRET}'", 4, ("name of a model",)),
        ("models = { default = 'a', best = 'b' }", 4, ("opus",)),
        ("timeout_ms = 5", 4, ("milliseconds",)),
        ("model = 'a'\nmodels = { default = 'b' }\nkey_env = 'A'", 4, ("twice",)),
        ("key_env = 'A'\nkey_file = '/a'", 2, ("exactly one of key_env",)),
        ("auth = 'bearer'", 2, ("exactly one of key_env",)),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_table_is_said_with_its_line_and_never_repeated(
    home: Path, lines: str, line: int, words: tuple[str, ...]
) -> None:
    said = refused(home, f"\n[providers.mine]\nbase_url = 'https://a.example'\n{lines}\n")
    assert f"config.toml:{line}: providers.mine " in said
    assert [word for word in words if word not in said] == []
    assert SECRET not in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[providers.mine]\nkey_env = 'A'", "needs a base_url"),
        (f"[providers.mine]\nbase_url = 'ftp://{SECRET}'\nkey_env = 'A'", "toml:2: providers.mine base_url"),
        (f"[providers.mine]\nbase_url = 'https://u:{SECRET}@a'\nkey_env = 'A'", "user name or password"),
        (f"providers = '{SECRET}'", "must be tables: [providers.NAME]"),
        (f"providers.mine = '{SECRET}'", "must be a table: [providers.mine]"),
        (f"[[providers.mine]]\nkey = '{SECRET}'", "must be a table: [providers.mine]"),
        ("[providers.Mine]\nkey_env = 'A'", "lower-case"),
        ("[providers.'a b']\nkey_env = 'A'", "lower-case"),
        ("[providers.anthropic]\nkey_env = 'A'", "config.toml:1: providers.anthropic is built in"),
        ("[providers.kimi]\nkey_env = 'A'", "[providers.my-kimi]"),
        (f"{MINE}\n[providers.mine.key]\nx = '{SECRET}'", "must not hold the key itself"),
    ],
)  # fmt: skip
def test_what_is_no_provider_is_refused(home: Path, content: str, words: str) -> None:
    said = refused(home, content)
    assert words in said
    assert SECRET not in said


def test_a_table_that_is_not_chosen_is_held_to_the_same(home: Path) -> None:
    assert "timeout_ms" in refused(home, f"{MINE}timeout_ms = 'x'\n", provider="anthropic")


def test_a_provider_that_is_nowhere_is_refused_with_the_names_of_those_that_are(home: Path) -> None:
    assert "did you mean mine?" in refused(home, MINE, provider="mini")
    said = refused(home, MINE, provider="zzzzzzz")
    assert "no provider called zzzzzzz (--provider)" in said
    assert "there are: anthropic, kimi, mine" in said


@pytest.mark.parametrize("provider", ["mine", "kimi"])
def test_an_address_of_anthropics_does_not_go_with_another_provider(home: Path, provider: str) -> None:
    said = refused(home, MINE, provider=provider, flat="base_url = https://a.example\n")
    assert f"base_url ({home}/.config/clsecure/config:1) and provider {provider} (--provider)" in said
    said = refused(home, MINE, provider=provider, CLSECURE_BASE_URL="https://a.example")
    assert "base_url (CLSECURE_BASE_URL)" in said


def test_the_strongest_layers_table_counts_whole(home: Path) -> None:
    """A key of one layer must not be sent to the address of another."""
    system = "[providers.mine]\nbase_url = 'https://corp.example'\nkey_command = 'corp-key'\nmodel = 'corp'\n"
    both = loaded(home, MINE, provider="mine", system=system)
    assert both.served is not None
    assert (both.served.base_url, both.served.key) == (
        "https://llm.example.org/v",
        KeySource(variable="MINE_KEY"),
    )
    assert both.served.models == {}
    alone = loaded(home, "", provider="mine", system=system)
    assert alone.served is not None
    assert (alone.served.base_url, alone.served.key) == (
        "https://corp.example",
        KeySource(command=("corp-key",)),
    )
    assert alone.served.source == Source(layer=Layer.SYSTEM, where=f"{home.parent}/etc/config.toml:1")


def test_a_users_table_does_not_give_a_name_that_the_machine_allows_another_meaning(home: Path) -> None:
    corp = "[providers.corp]\nbase_url = 'https://corp.example'\nkey_env = 'CORP'\n"
    own = corp.replace("corp.example", "evil.example")
    settings = loaded(home, own, provider="corp", system=f"enforce.providers = ['corp']\n{corp}")
    assert settings.served is not None
    assert settings.served.base_url == "https://corp.example"
    assert "[providers.corp]" in "".join(settings.warnings)
    said = refused(home, own, provider="corp", system="enforce.providers = ['corp']\n")
    assert "no provider called corp" in said


def test_the_flat_file_and_the_environment_know_no_tables(home: Path) -> None:
    assert "unknown key 'providers'" in refused(home, "", flat="providers = mine\n")
    assert "unknown key 'agents'" in refused(home, "", flat="agents = mine\n")
    assert "CLSECURE_PROVIDERS" in refused(home, "", CLSECURE_PROVIDERS="mine")


def test_a_repository_can_bring_no_provider_and_no_agent(home: Path) -> None:
    repository = home.parent / "repository"
    (repository / ".clsecure").mkdir(parents=True)
    evil = MINE.replace("llm.example.org", "evil.example").replace("mine", "kimi")
    (repository / ".clsecure/config.toml").write_text(
        f"provider = 'evil'\n{evil}key = '{SECRET}'\n[agents.claude]\ncommand = ['evil']\n"
    )
    (repository / ".clsecure/config").write_text(f"kimi_api_key = {SECRET}\n")
    layers = with_project(gather(environ={"HOME": str(home)}, system=home.parent / "etc"), repository)
    settings = load(layers)
    assert (settings.providers, settings.agents, settings.served) == ((), (), None)
    assert settings.kimi_api_key is None
    said = "\n".join(settings.warnings)
    for written in ("provider", "providers.kimi", "agents.claude", "kimi_api_key"):
        assert f": {written} is not taken from a repository" in said
    assert SECRET not in said


def test_network_check_knows_who_serves(home: Path) -> None:
    path = home / ".config/clsecure/config.toml"
    path.write_text(f"provider = 'mine'\n{MINE}[agents.own]\ncommand = ['own']\n")
    settings = network_settings(settle(gather(environ={"HOME": str(home)}, system=home.parent / "etc")))
    assert settings.served is not None
    assert settings.served.name == "mine"
    assert [agent.name for agent in settings.agents] == ["own"]


# ------------------------------------------------------------ kimi


def test_kimi_has_its_address_and_its_variable(home: Path) -> None:
    settings = loaded(home, "", provider="kimi")
    assert settings.served == ProviderTable(
        name="kimi",
        base_url="https://api.kimi.com/coding",
        key=KeySource(variable="KIMI_API_KEY"),
        built_in=True,
    )


@pytest.mark.parametrize("written", ["kimi_api_key", "KIMI_API_KEY"])
def test_kimis_key_in_a_file_is_behind_the_variable(home: Path, written: str) -> None:
    settings = loaded(home, "", provider="kimi", flat=f"{written} = {SECRET}\n")
    assert settings.served is not None
    assert settings.served.key.variable == "KIMI_API_KEY"
    assert settings.served.key.literal is not None
    assert settings.served.key.literal.value == SECRET


def test_kimis_key_in_our_own_variable_is_before_it(home: Path) -> None:
    settings = loaded(home, "", provider="kimi", CLSECURE_KIMI_API_KEY=SECRET)
    assert settings.served is not None
    assert settings.served.key.variable is None


def test_kimis_key_is_shown_nowhere(home: Path) -> None:
    settings = loaded(home, "", provider="kimi", flat=f"kimi_api_key = {SECRET}\n")
    assert SECRET not in repr(settings.served) + str(settings.served) + str(plain(settings.served))
    assert "********" in str(plain(settings.served))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_with_a_key_that_others_can_read_is_warned_of(home: Path, mode: int) -> None:
    path = home / ".config/clsecure/config"
    path.write_text(f"kimi_api_key = {SECRET}\n")
    path.chmod(mode)
    layers = gather(environ={"HOME": str(home)}, system=home.parent / "etc")
    assert layers.warnings == (f"{path} holds a key, and others can read it: chmod 600 {path}",)
    path.chmod(0o600)
    assert gather(environ={"HOME": str(home)}, system=home.parent / "etc").warnings == ()
    path.write_text("mode = user\n")
    path.chmod(mode)
    assert gather(environ={"HOME": str(home)}, system=home.parent / "etc").warnings == ()


# ------------------------------------------------------------ agents


def test_an_agent_has_all_that_its_table_says(home: Path) -> None:
    settings = loaded(
        home,
        """
        [agents.aider]
        command = ["aider", "--yes-always"]
        resume = ["aider", "--restore-chat-history"]
        env = ["AIDER_MODEL", "MAX_TOKENS", "TOKENIZERS_PARALLELISM", "KEYBOARD"]
        base_url_env = "ANTHROPIC_BASE_URL"
        token_env = "ANTHROPIC_API_KEY"
        """,
    )
    (table,) = settings.agents
    spec = find_spec("aider", settings.agents)
    assert (spec.argv_unattended, spec.argv_resume) == (
        ("aider", "--yes-always"),
        ("aider", "--restore-chat-history"),
    )
    assert spec.env_allowlist == {"AIDER_MODEL", "MAX_TOKENS", "TOKENIZERS_PARALLELISM", "KEYBOARD"}
    assert spec.executables == ()
    assert table.source is not None


def test_an_agent_goes_on_as_it_began_where_it_says_nothing_else(home: Path) -> None:
    (table,) = loaded(home, "[agents.own]\ncommand = ['/opt/own/bin/own']\n").agents
    assert table == AgentTable(
        name="own",
        command=("/opt/own/bin/own",),
        resume=("/opt/own/bin/own",),
        source=table.source,
    )


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "needs a command"),
        ("command = 'own --yes'", "array of strings"),
        ("command = ['./own']", "absolute path inside"),
        ("command = ['../own']", "absolute path inside"),
        ("command = ['']", "array of strings"),
        ('command = ["a\\u0000b"]', "array of strings"),
        ("command = ['own']\nresume = 'own'", "resume must be an array"),
        ("command = ['own']\nenv = 'A'", "array of names"),
        ("command = ['own']\nenv = ['A B']", "name of a variable"),
        ("command = ['own']\nenv = ['OPENAI_API_KEY']", "[providers.NAME]"),
        ("command = ['own']\nenv = ['GH_TOKEN']", "[providers.NAME]"),
        ("command = ['own']\nenv = ['DB_PASSWORD']", "[providers.NAME]"),
        ("command = ['own']\nenv = ['AWS_SECRET_ACCESS_KEY']", "[providers.NAME]"),
        ("command = ['own']\nenv = ['AWS_ACCESS_KEY_ID']", "[providers.NAME]"),
        ("command = ['own']\nenv = ['my_secret_thing']", "[providers.NAME]"),
        ("command = ['own']\nenv = ['ANTHROPIC_CUSTOM_HEADERS']", "[providers.NAME]"),
        ("command = ['own']\nenv = ['LD_PRELOAD']", "every session sets"),
        ("command = ['own']\nenv = ['PATH']", "every session sets"),
        ("command = ['own']\nenv = ['https_proxy']", "every session sets"),
        ("command = ['own']\ntoken_env = 'A'", "both of base_url_env and token_env"),
        ("command = ['own']\nbase_url_env = 'A'", "both of base_url_env and token_env"),
        ("command = ['own']\nresme = ['own']", "did you mean resume?"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_an_agent_is_refused(home: Path, lines: str, words: str) -> None:
    said = refused(home, f"[agents.own]\n{lines}\n")
    assert "config.toml:" in said
    assert ": agents.own " in said
    assert words in said


def test_no_table_takes_a_built_in_agents_name(home: Path) -> None:
    assert set(structured.AGENTS) == set(AGENTS)
    for name in AGENTS:
        assert "is built in" in refused(home, f"[agents.{name}]\ncommand = ['own']\n")


@pytest.mark.parametrize("name", ["providers.md", "agents.md"])
def test_the_examples_of_the_documentation_are_accepted(home: Path, name: str) -> None:
    text = (CHECKOUT / "docs" / name).read_text()
    examples = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        settings = loaded(home, example)
        assert settings.providers or settings.agents
        assert settings.warnings == ()


def test_config_shows_tables_and_where_they_are_and_no_argument(home: Path) -> None:
    path = home / ".config/clsecure/config.toml"
    path.write_text(
        "[providers.mine]\nbase_url = 'https://a.example'\n"
        f"key_command = ['pass', 'show', '{SECRET}']\nmodels.haiku = 'small'\n"
        "[agents.own]\ncommand = ['own']\n"
    )
    settled = settle(gather(environ={"HOME": str(home)}, system=home.parent / "etc"))
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    rows = {row.key: row for row in report.rows(settled, defaults)}
    mine, own = rows["providers.mine"], rows["agents.own"]
    assert mine.value == {
        "base_url": "https://a.example",
        "key": "the command pass",
        "auth": "api-key",
        "models": {"haiku": "small"},
    }
    assert (mine.layer, mine.where, own.where) == ("user file", f"{path}:1", f"{path}:5")
    assert own.value == {"command": ["own"], "resume": ["own"]}
    shown = report.text(mine.value)
    assert shown == "base_url=https://a.example,key=the command pass,auth=api-key,models=haiku=small"
    assert SECRET not in str(rows)
