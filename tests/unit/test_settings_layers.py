"""Every key in every layer, who wins, and where a value says it came from."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from clsecure.errors import UsageError
from clsecure.model import (
    Credentials,
    DockerAccess,
    Engine,
    IsolationMode,
    Mount,
    NetworkPolicy,
    OnFinish,
    ResourceLimits,
)
from clsecure.policy import HOST_ALIAS, Budget
from clsecure.settings.layers import NetworkSettings
from clsecure.settings.model import Settings, load
from clsecure.settings.sources import KEYS, Entry, Layer, Source, gather
from clsecure.settings.values import work
from clsecure.settings.values.isolation import AutoMode
from clsecure.settings.values.output import OutputFormat
from clsecure.settings.values.reach import SetupNetwork
from clsecure.settings.values.readers import READERS
from clsecure.settings.values.services import Secret

EXAMPLES = [
    ("mode", "user", IsolationMode.USER),
    ("mode", "CONTAINER", IsolationMode.CONTAINER),
    ("mode", "Auto", AutoMode()),
    ("engine", "Docker", Engine.DOCKER),
    ("runtime", "runsc", "runsc"),
    ("runtime", "/opt/gvisor/runsc", "/opt/gvisor/runsc"),
    ("runtime", "none", None),
    ("image", "worker-minimal", "worker-minimal"),
    ("docker", "yes", DockerAccess.OWN),
    ("docker", "own", DockerAccess.OWN),
    ("docker", "0", DockerAccess.NONE),
    ("docker_images", "postgres:16, localhost:5000/team/x",
     ("postgres:16", "localhost:5000/team/x")),
    ("network", "none", NetworkPolicy.NONE),
    ("network", "true", NetworkPolicy.FULL),
    ("network", "no", NetworkPolicy.API),
    ("network", "full", NetworkPolicy.FULL),
    ("network", "none", NetworkPolicy.NONE),
    ("presets", "npm", ("npm",)),
    ("presets", "Pip, npm,pip", ("pip", "npm")),
    ("credentials", "copy", Credentials.COPY),
    ("credentials", "NONE", Credentials.NONE),
    ("provider_tools", "yes", True),
    ("allow_private", "no", False),
    ("budget", "tokens=5", Budget(tokens=5)),
    ("budget", "requests=1K, bytes=2G,tokens=3M", Budget(requests=1000, bytes=2 << 30, tokens=3_000_000)),
    ("budget", "bytes=none,requests=7", Budget(requests=7)),
    ("session", "auth.2", "auth.2"),
    ("agent", "demo", "demo"),
    ("on_finish", "discard", OnFinish.DISCARD),
    ("full_clone", "yes", True),
    ("full_clone", "0", False),
    ("mounts", "/opt/tool", (Mount(source=Path("/opt/tool"), target=Path("/opt/tool")),)),
    ("mounts", "/a:/b:rw, /c", (
        Mount(source=Path("/a"), target=Path("/b"), read_only=False),
        Mount(source=Path("/c"), target=Path("/c")),
    )),
    ("mounts", "~/x:/x:ro", (Mount(source=Path("/home/u/x"), target=Path("/x")),)),
    ("toolchains", "no", False),
    ("limits", "memory=4G, cpus=1.5,pids=1K,disk=20G,open-files=4096",
     ResourceLimits(memory=4 << 30, cpus=1.5, pids=1000, disk=20 << 30, open_files=4096)),
    ("limits", "none", ResourceLimits(memory=0, cpus=0, pids=0, disk=0, open_files=0)),
    ("provider", "Kimi", "kimi"),
    ("kimi_api_key", "sk-hunter2", Secret(value="sk-hunter2")),
    ("install_dependencies", "yes", True),
    ("setup_script", "~/setup.sh", Path("/home/u/setup.sh")),
    ("setup_network", "session", SetupNetwork()),
    ("setup_network", "full", SetupNetwork(kind=NetworkPolicy.FULL)),
    ("setup_network", "npm,pip", SetupNetwork(kind=NetworkPolicy.ALLOWLIST, presets=("npm", "pip"))),
    ("github_token", "1", True),
    ("cleanup_hook_timeout", "60", 60),
    ("skip_docker_autodetect", "true", True),
    ("notify", "bell,desktop", ("bell", "desktop")),
    ("notify", "none", ()),
    ("notify_command", "/usr/bin/true", Path("/usr/bin/true")),
    ("image_mirror", "https://mirror.example/debian/", "https://mirror.example/debian"),
    ("image_registry", "https://r.example:5000/our/images/", "https://r.example:5000/our/images"),
    ("image_registry", "http://r.example", "http://r.example"),
    ("record_ssh_key", "~/.ssh/id.pub", Path("/home/u/.ssh/id.pub")), ("record_notes", "yes", True),
    ("notify_after", "5m", timedelta(minutes=5)),
    ("notify_after", "0", timedelta(0)),
    ("time_limit", "90", timedelta(seconds=90)),
    ("time_limit", "2h", timedelta(hours=2)),
    ("time_limit", "none", None),
    ("base_url", "http://127.0.0.1:8080/v/", "http://127.0.0.1:8080/v"),
    ("output", "json", OutputFormat.JSON),
    ("verbose", "true", True),
]  # fmt: skip

BAD = [
    ("mode", "docker"), ("engine", "lxc"), ("runtime", "../runsc"), ("runtime", "-x"), ("runtime", "/a/../b"),
    ("runtime", "/"), ("runtime", "run sc"), ("image", "Worker"), ("image", "../worker"), ("image", "-x"),
    ("docker", "maybe"), ("docker_images", "-x"), ("docker_images", "a b"), ("docker_images", "https://a/b"),
    ("docker_images", "a,"), ("docker_images", "a:"), ("docker_images", "A"),
    ("docker_images", "a@sha256:hunter2"), ("network", "maybe"), ("allow_domains", "*"),
    ("allow_domains", "*.com"),
    ("allow_domains", "a.org,,b.org"), ("allow_domains", ","), ("allow_domains", "https://hunter2@a.org/"),
    ("allow_domains", "a.org:0"), ("deny_domains", "*"), ("deny_domains", "a.org, *.com"),
    ("deny_domains", "a_org/hunter2"), ("presets", "npm,hunter2"), ("presets", "npm,"),
    ("credentials", "hunter2"),
    ("provider_tools", "hunter2"), ("allow_private", "2"), ("budget", "hunter2"), ("budget", "tokens"),
    ("budget", "tokens=0"), ("budget", "tokens=-1"), ("budget", "tokens=1.5"), ("budget", "tokens=hunter2"),
    ("budget", "tokens=1,tokens=2"), ("budget", "hunter2=1"), ("budget", "bytes=999999999999999T"),
    ("session", "../x"), ("session", "-f"), ("session", "a" * 33),
    ("session", "a b"), ("session", "ä"), ("agent", "Claude"), ("agent", "a/b"), ("on_finish", "push"),
    ("full_clone", "perhaps"), ("mounts", "relative"), ("mounts", "/a:relative"), ("mounts", "/a:/"),
    ("mounts", "/a/../b"), ("mounts", "/a:/b:/c"), ("mounts", "/a:"), ("mounts", "~bob/x"),
    ("toolchains", "2"), ("limits", "hunter2"), ("limits", "memory=1K"), ("limits", "cpus=0"),
    ("limits", "cpus=hunter2"), ("limits", "pids=1"), ("limits", "memory=4G,memory=5G"),
    ("limits", "swap=1G"),
    ("limits", "open_files=1.5"), ("provider", "a/b"), ("provider", "-x"), ("kimi_api_key", "hunter2 x"),
    ("kimi_api_key", "hunter2ä"), ("install_dependencies", "npm"), ("setup_script", "relative.sh"),
    ("setup_script", "~bob/x"), ("setup_network", "*"), ("setup_network", "npm,"),
    ("github_token", "ghp_hunter2"),
    ("cleanup_hook_timeout", "4"), ("cleanup_hook_timeout", "301"), ("cleanup_hook_timeout", "-5"),
    ("cleanup_hook_timeout", "soon"), ("skip_docker_autodetect", "maybe"),
    ("notify", "mail"), ("notify", "bell,"),
    ("record_ssh_key", "id.pub"), ("record_notes", "git"),
    ("image_mirror", "mirror.example"), ("image_mirror", "file:///srv/debian"),
    ("image_registry", "r.example/images"), ("image_registry", "https://u:p@r.example"),
    ("image_registry", "https://r.example/../x"), ("image_registry", "https://r.example/Images"),
    ("notify_command", "notify"), ("notify_after", "none"), ("notify_after", "x"),
    ("time_limit", "0"),
    ("time_limit", "soon"), ("time_limit", "31d"), ("time_limit", "-1"), ("time_limit", "1h30"),
    ("time_limit", "9999h"), ("base_url", "ftp://x"), ("base_url", "https://user:hunter2@x"),
    ("base_url", "https://"), ("base_url", "https://x?y"), ("base_url", "https://x:99999"), ("output", "xml"),
    ("verbose", "2"),
]  # fmt: skip


def flag(key: str, text: str) -> Entry:
    return Entry(key=key, text=text, source=Source(layer=Layer.FLAG, where=f"--{key}"))


def in_file(tmp_path: Path, text: str, name: str = ".clsecurerc") -> dict[str, str]:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return {"HOME": str(tmp_path)}


@pytest.mark.parametrize(("key", "text", "value"), EXAMPLES)
def test_a_value_of_a_flag(key: str, text: str, value: object) -> None:
    texts = text.split(", ") if key == "mounts" else [text]  # one flag names one mount
    settings = load(gather([flag(key, part) for part in texts], environ={"HOME": "/home/u"}))
    assert getattr(settings, key) == value
    assert settings.provenance(key) == Source(layer=Layer.FLAG, where=f"--{key}")


@pytest.mark.parametrize(("key", "text", "value"), EXAMPLES)
def test_a_value_of_the_environment(key: str, text: str, value: object) -> None:
    name = f"CLSECURE_{key.upper()}"
    settings = load(gather(environ={"HOME": "/home/u", name: text}))
    assert getattr(settings, key) == value
    assert settings.provenance(key) == Source(layer=Layer.ENVIRONMENT, where=name)


@pytest.mark.parametrize(("key", "text", "value"), EXAMPLES)
def test_a_value_of_the_users_file(tmp_path: Path, key: str, text: str, value: object) -> None:
    settings = load(gather(environ=in_file(tmp_path, f"\n{key} = {text.replace('~', '/home/u')}\n")))
    assert getattr(settings, key) == value
    assert settings.provenance(key) == Source(layer=Layer.USER_FILE, where=f"{tmp_path}/.clsecurerc:2")


@pytest.mark.parametrize("key", KEYS)
def test_a_default(key: str) -> None:
    settings = load(gather(environ={"HOME": "/nonexistent"}))
    assert getattr(settings, key) == Settings.model_fields[key].default
    assert settings.provenance(key).layer is Layer.DEFAULT


@pytest.mark.parametrize(("key", "text"), BAD)
def test_a_bad_value_names_its_place_and_is_not_shown(tmp_path: Path, key: str, text: str) -> None:
    environ = in_file(tmp_path, f"# one\n{key} = {text}\n")
    # Also beneath a flag that overrides it.
    good = next((example for name, example, _ in EXAMPLES if name == key), "good.example.org")
    with pytest.raises(UsageError) as caught:
        load(gather([flag(key, good)], environ=environ))
    assert caught.value.brief.startswith(f"{tmp_path}/.clsecurerc:2: {key} ")
    assert "hunter2" not in caught.value.brief
    with pytest.raises(UsageError, match=f"CLSECURE_{key.upper()}: {key} "):
        load(gather(environ={f"CLSECURE_{key.upper()}": text, "HOME": "/nonexistent"}))


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    environ = in_file(tmp_path, "mode = user\nagent = from-file\nsession = from-file\n")
    environ |= {"CLSECURE_AGENT": "from-env", "CLSECURE_SESSION": "from-env"}
    settings = load(gather([flag("session", "from-flag")], environ=environ))
    assert (settings.mode, settings.agent, settings.session) == (IsolationMode.USER, "from-env", "from-flag")
    assert settings.network is NetworkPolicy.API
    layers = [settings.provenance(key).layer for key in ("session", "agent", "mode", "network")]
    assert layers == [Layer.FLAG, Layer.ENVIRONMENT, Layer.USER_FILE, Layer.DEFAULT]


DOMAINS = [
    ("a.example.org", ["a.example.org:443"]),
    ("A.Example.ORG:80", ["a.example.org:80"]),
    ("*.example.org, b.example.org:8080", ["*.example.org:443", "b.example.org:8080"]),
    ("[::1]:4873", ["[::1]:4873", f"{HOST_ALIAS}:4873"]),
]


@pytest.mark.parametrize("layer", [Layer.FLAG, Layer.ENVIRONMENT, Layer.USER_FILE])
@pytest.mark.parametrize(("text", "patterns"), DOMAINS)
def test_allowed_hosts_know_where_they_were_written(
    tmp_path: Path, layer: Layer, text: str, patterns: list[str]
) -> None:
    flags, environ = [], {"HOME": "/nonexistent"}
    match layer:
        case Layer.FLAG:
            flags, where = [flag("allow_domains", text)], "--allow_domains"
        case Layer.ENVIRONMENT:
            environ, where = environ | {"CLSECURE_ALLOW_DOMAINS": text}, "CLSECURE_ALLOW_DOMAINS"
        case _:
            environ, where = in_file(tmp_path, f"allow_domains = {text}\n"), f"{tmp_path}/.clsecurerc:1"
    settings = load(gather(flags, environ=environ))
    assert [(str(rule.pattern), rule.where) for rule in settings.allow_domains] == [
        (pattern, where) for pattern in patterns
    ]
    assert settings.provenance("allow_domains") == Source(layer=layer, where=where)
    assert settings.network is NetworkPolicy.ALLOWLIST
    assert settings.provenance("network") == Source(layer=layer, where=where)


def test_denied_hosts_of_all_layers_come_together(tmp_path: Path) -> None:
    environ = in_file(tmp_path, "deny_domains = c.example.org:80\n") | {
        "CLSECURE_DENY_DOMAIN": "b.example.org"
    }
    settings = load(gather([flag("deny_domains", "a.example.org")], environ=environ))
    assert [(str(rule.pattern), rule.where) for rule in settings.deny_domains] == [
        ("a.example.org", "--deny_domains"),
        ("b.example.org", "CLSECURE_DENY_DOMAIN"),
        ("c.example.org:80", f"{tmp_path}/.clsecurerc:1"),
    ]
    assert settings.network is NetworkPolicy.API


def test_of_a_budget_each_part_is_the_strongest_layers(tmp_path: Path) -> None:
    environ = in_file(tmp_path, "budget = tokens=1M,bytes=1G,requests=1\n")
    environ |= {"CLSECURE_BUDGET": "bytes=none,requests=2"}
    settings = load(gather([flag("budget", "requests=3")], environ=environ))
    assert settings.budget == Budget(requests=3, tokens=1_000_000)
    assert settings.provenance("budget").where == f"--budget, CLSECURE_BUDGET, {tmp_path}/.clsecurerc:1"
    assert load(gather([flag("budget", "none")], environ=environ)).budget == Budget()
    assert load(gather([flag("budget", "none")], environ=environ)).provenance("budget").where == "--budget"


def test_what_network_check_asks_has_the_defaults_of_the_model() -> None:
    for field in dataclasses.fields(NetworkSettings):
        if field.name in {"ceilings", "agents", "served"}:
            continue
        assert field.default == Settings.model_fields[field.name].default


def test_mounts_of_all_layers_come_together_and_the_strongest_wins_a_target(tmp_path: Path) -> None:
    environ = in_file(tmp_path, "mounts = /opt/a, /opt/b\n") | {"CLSECURE_MOUNTS": "/opt/c:/opt/b"}
    settings = load(gather([flag("mounts", "rel:/opt/a:rw")], environ=environ))
    assert settings.mounts == (
        Mount(source=Path.cwd() / "rel", target=Path("/opt/a"), read_only=False),
        Mount(source=Path("/opt/c"), target=Path("/opt/b")),
    )
    assert settings.provenance("mounts") == Source(layer=Layer.FLAG, where="--mounts, CLSECURE_MOUNTS")


def test_a_path_with_a_comma_can_be_mounted_by_flag() -> None:
    settings = load(gather([flag("mounts", "/opt/a,b")], environ={"HOME": "/h"}))
    assert [str(mount.source) for mount in settings.mounts] == ["/opt/a,b"]


def test_xdg_takes_the_place_of_dot_config(tmp_path: Path) -> None:
    environ = in_file(tmp_path, "mode = user\n", ".config/clsecure/config")
    assert load(gather(environ=environ)).mode is IsolationMode.USER
    in_file(tmp_path, "mode = container\n", "xdg/clsecure/config")
    environ["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
    assert load(gather(environ=environ)).mode is IsolationMode.CONTAINER
    environ["XDG_CONFIG_HOME"] = "relative"
    assert load(gather(environ=environ)).mode is IsolationMode.USER


def test_a_second_file_is_named_because_it_is_not_read(tmp_path: Path) -> None:
    in_file(tmp_path, "mode = container\n")
    settings = load(gather(environ=in_file(tmp_path, "mode = user\n", ".config/clsecure/config")))
    assert settings.mode is IsolationMode.USER
    assert [f"{tmp_path}/.clsecurerc is not read" in warning for warning in settings.warnings] == [True]


def test_a_misspelt_variable_is_an_error_because_it_might_have_shut_something() -> None:
    with pytest.raises(UsageError) as caught:
        gather(environ={"CLSECURE_NETWROK": "none"})
    assert "CLSECURE_NETWROK" in caught.value.brief
    assert "network" in (caught.value.resolution or "")


@pytest.mark.parametrize(
    "name",
    [
        "CLSECURE_IMAGES",
        "CLSECURE_TEST_CLAUDE",
        "CLSECURE_DEV_VENV",
        "CLSECURE_POLICY_URL",
        "CLSECURE_WORKER_USER",
        "CLSECURE_PROJECT_DIR",
        "CLSECUREX",
    ],
)
def test_variables_that_are_no_settings_are_left_alone(name: str) -> None:
    assert gather(environ={name: "x", "HOME": "/nonexistent"}).entries == ()


def test_an_empty_variable_is_none() -> None:
    assert gather(environ={"CLSECURE_MODE": "", "HOME": "/nonexistent"}).entries == ()


def test_two_variables_for_one_thing_are_refused() -> None:
    with pytest.raises(UsageError, match="same thing"):
        gather(environ={"CLSECURE_MODE": "user", "CLSECURE_ISOLATION_MODE": "container"})


def test_the_settings_are_frozen_and_checked() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.mode = IsolationMode.USER  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Settings(mode="docker")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        Settings(moed="user")  # type: ignore[call-arg]


def test_pydantics_own_sources_are_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODE", "user")
    monkeypatch.setenv("AGENT", "evil")
    (tmp_path / ".env").write_text("MODE=user\n")
    monkeypatch.chdir(tmp_path)
    assert Settings() == load(gather(environ={"HOME": "/nonexistent"}))


def test_the_keys_of_the_sources_are_those_of_the_model() -> None:
    assert set(KEYS) == set(Settings.model_fields)
    placed = {"mounts", "allow_domains", "deny_domains", "setup_script", "setup_network", "notify_command",
              "record_ssh_key"}  # fmt: skip
    assert set(READERS) | placed == set(KEYS)


@pytest.mark.parametrize("name", ["a", "feature/x", "claude/app-1", "ä", "a.b", "x@y"])
def test_a_branch_that_git_accepts(name: str) -> None:
    assert work.branch(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "-x", "a..b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "/a", "a/", "a//b", ".a", "a/.b",
     "a.", "a.lock", "a.lock/b", "@", "HEAD", "a@{b", "a\x1b", "a\x7f", "a\n", "refs/heads/a", "\udc80",
     "a" * 201],
)  # fmt: skip
def test_a_branch_that_git_refuses(name: str) -> None:
    with pytest.raises(ValueError, match=r"must|git"):
        work.branch(name)
