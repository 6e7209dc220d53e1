"""Every key in the machine's files, every value in a repository's, the predecessor's own examples."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from math import inf
from pathlib import Path
from typing import Any

import pytest

from clsecure.errors import UsageError
from clsecure.model import Credentials, DockerAccess, IsolationMode, NetworkPolicy
from clsecure.policy import Budget
from clsecure.settings import files
from clsecure.settings.keys import KEYS, SPELLINGS
from clsecure.settings.limits import defaults
from clsecure.settings.model import Settings, load
from clsecure.settings.project import NARROWING, with_project
from clsecure.settings.sources import Layer, Source, gather
from clsecure.settings.values.isolation import AutoMode
from tests.unit.test_settings_layers import EXAMPLES
from tests.unit.test_settings_toml import VALUES

HOSTS = [("allow_domains", "a.org, *.b.org:80"), ("deny_domains", "a.org"), ("deny_domains", "*.b.org")]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's files belong to whoever runs the tests."""
    monkeypatch.setattr(files, "SYSTEM_OWNER", os.geteuid())
    place = tmp_path / "etc"
    place.mkdir(mode=0o755)
    return place


def keep(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)


@pytest.mark.parametrize(("key", "text", "value"), EXAMPLES)
def test_a_value_of_the_machines_flat_file(machine: Path, key: str, text: str, value: object) -> None:
    keep(machine / "config", f"\n{key} = {text}\n")
    settings = load(gather(environ={"HOME": "/home/u"}, system=machine))
    assert getattr(settings, key) == value
    assert settings.provenance(key) == Source(layer=Layer.SYSTEM, where=f"{machine}/config:2")


@pytest.mark.parametrize(("content", "key", "value"), VALUES)
def test_a_value_of_the_machines_toml(machine: Path, content: str, key: str, value: object) -> None:
    keep(machine / "config.toml", content)
    settings = load(gather(environ={"HOME": "/nonexistent"}, system=machine))
    assert getattr(settings, key) == value
    assert settings.provenance(key).layer is Layer.SYSTEM
    assert settings.provenance(key).where.startswith(f"{machine}/config.toml:")


def test_every_key_is_tried() -> None:
    assert {key for key, *_ in (*EXAMPLES, *HOSTS)} == set(KEYS)


def test_a_key_in_both_files_of_the_machine_is_an_error(machine: Path) -> None:
    keep(machine / "config", "mode = user\n")
    keep(machine / "config.toml", "mode = 'user'\n")
    with pytest.raises(UsageError, match="second time"):
        gather(environ={"HOME": "/nonexistent"}, system=machine)


# ------------------------------------------------------------ what a repository makes of it

_OPENNESS: dict[str, Callable[[Any], float]] = {
    "mode": lambda mode: -tuple(IsolationMode).index(mode.at_least if isinstance(mode, AutoMode) else mode),
    "docker": tuple(DockerAccess).index,
    "network": (NetworkPolicy.NONE, NetworkPolicy.API, NetworkPolicy.ALLOWLIST, NetworkPolicy.FULL).index,
    "credentials": (Credentials.NONE, Credentials.INJECT, Credentials.COPY).index,
    "provider_tools": float,
    "skip_docker_autodetect": lambda skipped: float(not skipped),
    "time_limit": lambda limit: inf if limit is None else limit / timedelta(seconds=1),
    "cleanup_hook_timeout": float,
}
"""How much each value lets through."""


def openness(key: str, settings: Settings) -> list[float]:
    value = getattr(settings, key)
    if key in ("limits", "budget"):
        unsaid = defaults() if key == "limits" else Budget()
        parts = {name: getattr(value, name) for name in value.__dataclass_fields__}
        # 0 is a limit that was lifted, None one that nobody spoke of.
        held = (getattr(unsaid, name) if part is None else part for name, part in parts.items())
        return [part or inf for part in held]
    return [_OPENNESS[key](value)]


def in_repository(tmp_path: Path, own: str, project: str) -> tuple[Settings, Settings] | None:
    """Return the settings without and with the repository's file; None where they are refused."""
    (tmp_path / ".clsecurerc").write_text(own)
    (tmp_path / "repo/.clsecure").mkdir(parents=True, exist_ok=True)
    (tmp_path / "repo/.clsecure/config").write_text(project)
    layers = gather(environ={"HOME": str(tmp_path)}, system=tmp_path / "none")
    try:
        before = load(layers)
    except UsageError:
        return None
    return before, load(with_project(layers, tmp_path / "repo"))


@pytest.mark.parametrize("key", KEYS)
def test_no_value_of_a_repository_opens_anything(tmp_path: Path, key: str) -> None:
    texts = [text for name, text, *_ in (*EXAMPLES, *HOSTS) if name == key]
    compared = 0
    for own in ("", *texts):
        for project in texts:
            both = in_repository(tmp_path, own and f"{key} = {own}\n", f"{key} = {project}\n")
            if both is None:
                continue
            before, after = both
            compared += 1
            changed = {name for name in KEYS if getattr(before, name) != getattr(after, name)}
            assert changed <= {key} & NARROWING
            if key == "deny_domains":
                assert set(before.deny_domains) <= set(after.deny_domains)
            elif key in NARROWING and (own or key != "cleanup_hook_timeout"):
                pairs = zip(openness(key, before), openness(key, after), strict=True)
                assert all(most >= left for most, left in pairs), (own, project)
    assert compared


@pytest.mark.parametrize("text", ["pids=1000000", "memory=900T", "none"])
def test_a_repository_raises_no_limit_that_holds_unsaid(tmp_path: Path, text: str) -> None:
    both = in_repository(tmp_path, "", f"limits = {text}\n")
    assert both is not None
    assert both[1].limits == both[0].limits
    assert ["limits" in warning for warning in both[1].warnings] == [True]
    both = in_repository(tmp_path, "limits = none\n", "limits = pids=1000000\n")
    assert both is not None
    assert both[1].limits.pids == 1_000_000  # the user lifted it, so this is narrower


def test_a_ceiling_above_what_holds_unsaid_raises_nothing(machine: Path) -> None:
    keep(machine / "config.toml", "[enforce]\nlimits = { pids = 1000000, disk = '1G' }\n")
    found = load(gather(environ={"HOME": "/nonexistent"}, system=machine))
    assert (found.limits.pids, found.limits.disk) == (None, 1 << 30)
    keep(machine / "config.toml", "[enforce]\nlimits = { pids = 99 }\n")
    assert load(gather(environ={"HOME": "/nonexistent"}, system=machine)).limits.pids == 99


def test_the_time_of_a_hook_is_the_repositorys_where_nobody_said_one(tmp_path: Path) -> None:
    for own, effective in (("", 60), ("cleanup_hook_timeout = 20\n", 20), ("cleanup_hook_timeout=300\n", 60)):
        both = in_repository(tmp_path, own, "cleanup_hook_timeout = 60\n")
        assert both is not None
        assert both[1].cleanup_hook_timeout == effective


# ------------------------------------------------------------ the predecessor's own

EXAMPLE = """\
# ~/.config/clsecure/config

# Default isolation mode (user, namespace, container)
mode = namespace

# Allow network access by default
network = true

# Allow Docker access (adds worker to docker group)
docker = true

# Path to a custom setup script (executed inside the worker environment)
setup_script = /home/user/.config/clsecure/install_private_tools.sh
"""


@pytest.mark.parametrize("name", [".config/clsecure/config", ".clsecurerc"])
def test_the_predecessors_example_of_a_users_file_counts(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(EXAMPLE)
    found = load(gather(environ={"HOME": str(tmp_path)}, system=tmp_path / "none"))
    assert (found.mode, found.network) == (IsolationMode.NAMESPACE, NetworkPolicy.FULL)
    assert found.setup_script == Path("/home/user/.config/clsecure/install_private_tools.sh")
    assert (found.docker, found.warnings) == (DockerAccess.OWN, ())


SPELLED = [
    ("mode", "container", IsolationMode.CONTAINER), ("isolation_mode", "user", IsolationMode.USER),
    ("ISOLATION_MODE", '"user"', IsolationMode.USER), ("network", "yes", NetworkPolicy.FULL),
    ("allow_network", "1", NetworkPolicy.FULL), ("ALLOW_NETWORK", "'no'", NetworkPolicy.API),
    ("docker", "true", DockerAccess.OWN), ("ALLOW_DOCKER", "1", DockerAccess.OWN),
    ("allow_docker", "no", DockerAccess.NONE), ("install_dependencies", "true", True),
    ("INSTALL_DEPS", "yes", True),
    ("setup_script", "/x.sh", Path("/x.sh")), ("SETUP_SCRIPT", "/x.sh", Path("/x.sh")),
    ("cleanup_hook_timeout", "300", 300), ("CLEANUP_HOOK_TIMEOUT", "5", 5),
    ("skip_docker_autodetect", "1", True), ("SKIP_DOCKER_AUTODETECT", "0", False),
    ("provider", "kimi", "kimi"), ("PROVIDER", "anthropic", "anthropic"),
]  # fmt: skip
_MEANT = {"install_deps": "install_dependencies", **SPELLINGS}


@pytest.mark.parametrize(("written", "text", "value"), SPELLED)
def test_the_predecessors_spellings_are_understood(
    tmp_path: Path, written: str, text: str, value: object
) -> None:
    (tmp_path / ".clsecurerc").write_text(f"{written}={text}   # as before\n")
    found = load(gather(environ={"HOME": str(tmp_path)}, system=tmp_path / "none"))
    key = _MEANT.get(written.lower(), written.lower())
    assert getattr(found, key) == value
    assert found.warnings == ()


@pytest.mark.parametrize("written", ["kimi_api_key", "KIMI_API_KEY"])
def test_the_predecessors_key_is_read_and_not_shown(tmp_path: Path, written: str) -> None:
    (tmp_path / ".clsecurerc").write_text(f"{written} = sk-kimi-CANARY\n")
    found = load(gather(environ={"HOME": str(tmp_path)}, system=tmp_path / "none"))
    assert found.kimi_api_key is not None
    assert found.kimi_api_key.value == "sk-kimi-CANARY"
    assert "CANARY" not in f"{found!r} {found} {found.kimi_api_key} {found.model_dump()!r}"


@pytest.mark.parametrize(
    ("own", "project"),
    [
        ("budget = tokens=5\n", "credentials = none\n"),
        ("", "budget = tokens=5\ncredentials = none\n"),
        ("network = none\n", "budget = requests=5\n"),
    ],
)
def test_a_bound_that_has_nothing_to_count_any_more_stops_no_session(
    tmp_path: Path, own: str, project: str
) -> None:
    assert in_repository(tmp_path, own, project) is not None


def test_a_bound_of_the_machines_stops_no_session_without_a_key(machine: Path, tmp_path: Path) -> None:
    keep(machine / "config.toml", "[enforce]\nbudget = { tokens = 5 }\n")
    (tmp_path / ".clsecurerc").write_text("credentials = none\n")
    found = load(gather(environ={"HOME": str(tmp_path)}, system=machine))
    assert (found.credentials, found.budget.tokens) == (Credentials.NONE, 5)
    (tmp_path / ".clsecurerc").write_text("credentials = copy\n")
    with pytest.raises(UsageError, match="tokens can't be counted"):
        load(gather(environ={"HOME": str(tmp_path)}, system=machine))
