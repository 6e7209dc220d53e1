"""The machine's settings: a weak layer of their own, and ceilings that nothing exceeds."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clsecure.agents.environment import CLAUDE_CLOUDS
from clsecure.cli.reach import reach
from clsecure.egress.live import LivePolicy
from clsecure.errors import EgressError, UsageError
from clsecure.model import (
    Credentials,
    DockerAccess,
    Engine,
    IsolationMode,
    Mount,
    NetworkPolicy,
    ResourceLimits,
)
from clsecure.policy import Budget, EgressPolicy, allow_rules, decide, parse_pattern
from clsecure.session.ui import SilentUi
from clsecure.settings import files
from clsecure.settings.enforce import within
from clsecure.settings.model import Settings, load
from clsecure.settings.network import stricter
from clsecure.settings.project import with_project
from clsecure.settings.sources import Entry, Layer, Layers, Source, gather
from clsecure.settings.tables import ENFORCE
from clsecure.settings.values.isolation import AutoMode

Make = Callable[..., Settings]


@pytest.fixture(autouse=True)
def _machine_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the machine's files belong to whoever runs the tests."""
    monkeypatch.setattr(files, "SYSTEM_OWNER", os.geteuid())


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    place = tmp_path / "etc"
    place.mkdir(mode=0o755)
    return place


def flags(**said: str) -> list[Entry]:
    return [
        Entry(key=key, text=text, source=Source(layer=Layer.FLAG, where=f"--{key}"))
        for key, text in said.items()
    ]


def write(path: Path, text: str | bytes) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o644)


def layers(machine: Path, user: str = "", *said: Entry, **environ: str) -> Layers:
    home = machine.parent / "home"
    (home / ".config/clsecure").mkdir(parents=True, exist_ok=True)
    write(home / ".config/clsecure/config", user)
    return gather(said, environ={"HOME": str(home), **environ}, system=machine)


def test_the_machine_is_weaker_than_the_user_and_stronger_than_the_defaults(machine: Path) -> None:
    write(machine / "config", "mode = user\nsession = theirs\non_finish = keep\n")
    write(machine / "config.toml", "full_clone = true\n[limits]\npids = 100\n")
    found = load(layers(machine, "session = mine\n"))
    assert (found.mode, found.session, found.full_clone) == (IsolationMode.USER, "mine", True)
    assert found.limits == ResourceLimits(pids=100)
    assert found.provenance("mode") == Source(layer=Layer.SYSTEM, where=f"{machine}/config:1")
    assert found.provenance("limits").where == f"{machine}/config.toml:3"
    assert found.provenance("session").layer is Layer.USER_FILE


def test_a_repository_narrows_what_the_machine_says(machine: Path, tmp_path: Path) -> None:
    write(machine / "config", "network = full\ncleanup_hook_timeout = 20\n")
    top = tmp_path / "repo"
    (top / ".clsecure").mkdir(parents=True)
    write(top / ".clsecure/config", "network = none\nmode = user\ncleanup_hook_timeout = 10\n")
    found = load(with_project(layers(machine), top))
    assert (found.network, found.mode) == (NetworkPolicy.NONE, IsolationMode.NAMESPACE)
    assert found.cleanup_hook_timeout == 10


@pytest.mark.parametrize("name", ["config", "config.toml"])
@pytest.mark.parametrize("how", ["writable", "directory", "link", "fifo", "large", "nul", "place", "unknown"])
def test_what_might_hold_a_ceiling_is_never_passed_over(machine: Path, name: str, how: str) -> None:
    path, secret = machine / name, "hunter2-CANARY"
    match how:
        case "writable":
            write(path, "")
            path.chmod(0o664)
        case "directory":
            path.mkdir()
        case "link":
            write(machine.parent / "other", f"mode = {secret}\n")
            path.symlink_to(machine.parent / "other")
        case "fifo":
            os.mkfifo(path)
        case "large":
            write(path, b"#" * (files.MAX_FILE_BYTES + 1))
        case "nul":
            write(path, f"{secret}\0".encode())
        case "place":
            write(path, "")
            machine.chmod(0o777)
        case "unknown":
            write(path, f'netwrok = "{secret}"\n')
    with pytest.raises(UsageError) as caught:
        layers(machine)
    assert str(path) in caught.value.brief
    assert secret not in f"{caught.value.brief}{caught.value.details}{caught.value.resolution}"


def test_only_the_machine_enforces(machine: Path) -> None:
    home = machine.parent / "home/.config/clsecure"
    home.mkdir(parents=True)
    write(home / "config.toml", "[enforce]\nmode = 'user'\n")
    with pytest.raises(UsageError, match="for the machine's own file"):
        layers(machine)
    top = machine.parent / "repo"
    (top / ".clsecure").mkdir(parents=True)
    write(top / ".clsecure/config.toml", "[enforce]\nmode = 'user'\nnetwork = 'none'\n")
    write(home / "config.toml", "")
    found = load(with_project(layers(machine), top))
    assert (found.network, len(found.warnings)) == (NetworkPolicy.API, 2)


CEILINGS = [
    # ceiling, key, what exceeds it, what is left of that in a file, what counts where nobody says anything
    ("mode = 'container'", "mode", "user", IsolationMode.CONTAINER, IsolationMode.CONTAINER),
    ("engine = 'docker'", "engine", "podman", Engine.DOCKER, Engine.DOCKER),
    ("images = ['corp', 'worker-minimal']", "image", "worker", "corp", "corp"),
    ("docker = 'none'", "docker", "own", DockerAccess.NONE, DockerAccess.NONE),
    ("docker = false", "docker", "true", DockerAccess.NONE, DockerAccess.NONE),
    ("network = 'none'", "network", "full", NetworkPolicy.NONE, NetworkPolicy.NONE),
    ("network = 'api'", "network", "full", NetworkPolicy.API, NetworkPolicy.API),
    ("network = 'allowlist'", "network", "full", NetworkPolicy.API, NetworkPolicy.API),
    ("network = 'api'", "allow_domains", "a.org", (), ()),
    ("network = 'api'", "presets", "npm", (), ()),
    ("allow = ['*.b.org']", "allow_domains", "a.org", (), ()),
    ("allow = []", "allow_domains", "a.org", (), ()),
    ("allow = ['*.b.org']", "network", "full", NetworkPolicy.API, NetworkPolicy.API),
    ("presets = ['pip']", "presets", "npm,pip", ("pip",), ()),
    ("presets = []", "presets", "npm", (), ()),
    ("credentials = 'inject'", "credentials", "copy", Credentials.INJECT, Credentials.INJECT),
    ("credentials = 'none'", "credentials", "inject", Credentials.NONE, Credentials.NONE),
    ("provider_tools = false", "provider_tools", "true", False, False),
    ("github_token = false", "github_token", "true", False, False),
    ("providers = ['kimi']", "provider", "anthropic", "kimi", "kimi"),
    ("providers = ['anthropic']", "base_url", "https://a.org", None, None),
    ("mounts = []", "mounts", "/opt/x", (), ()),
    ("mounts = ['/opt']", "mounts", "/opt/../srv/x", (), ()),
    ("time_limit = '1h'", "time_limit", "2h", timedelta(hours=1), timedelta(hours=1)),
    ("time_limit = '1h'", "time_limit", "none", timedelta(hours=1), timedelta(hours=1)),
    ("limits = { memory = '1G' }", "limits", "memory=2G,pids=99", ResourceLimits(memory=1 << 30, pids=99),
     ResourceLimits(memory=1 << 30)),
    ("limits = { memory = '1G' }", "limits", "none",
     ResourceLimits(memory=1 << 30, cpus=0, pids=0, disk=0, open_files=0),
     ResourceLimits(memory=1 << 30)),
    ("budget = { tokens = 5 }", "budget", "tokens=6,bytes=7", Budget(tokens=5, bytes=7), Budget(tokens=5)),
]  # fmt: skip


@pytest.mark.parametrize(("ceiling", "key", "text", "left", "default"), CEILINGS)
def test_nothing_exceeds_a_ceiling(
    machine: Path, ceiling: str, key: str, text: str, left: object, default: object
) -> None:
    write(machine / "config.toml", f"[enforce]\n{ceiling}\n")
    if ".." not in text:
        found = load(layers(machine, f"{key} = {text}\n"))
        assert getattr(found, key) == left
        assert any(f"{machine}/config.toml:2" in warning for warning in found.warnings)
        for said in ({"environ": {f"CLSECURE_{key.upper()}": text}}, {"flags": flags(**{key: text})}):
            with pytest.raises(UsageError, match="more than this machine allows") as caught:
                load(layers(machine, "", *said.get("flags", ()), **said.get("environ", {})))
            assert f"{machine}/config.toml:2" in (caught.value.details or "")
    assert getattr(load(layers(machine)), key) == default


def test_every_row_of_the_table_is_tried() -> None:
    tried = {ceiling.partition(" = ")[0] for ceiling, *_ in CEILINGS}
    assert tried | {"deny", "allow_private"} == set(ENFORCE)


def test_private_addresses_need_both_ceilings(machine: Path) -> None:
    write(machine / "config.toml", "[enforce]\nallow_private = false\n")
    found = load(layers(machine, "network = full\nallow_private = true\n"))
    assert (found.network, found.allow_private) == (NetworkPolicy.FULL, False)
    write(machine / "config.toml", "[enforce]\nnetwork = 'api'\n")
    found = load(layers(machine, "network = full\nallow_private = true\n"))
    assert (found.network, found.allow_private) == (NetworkPolicy.API, False)


def test_the_machines_denials_hold_for_everybody(machine: Path) -> None:
    write(machine / "config.toml", "[enforce]\ndeny = ['evil.org']\n")
    found = load(layers(machine, "allow_domains = evil.org, good.org\n"))
    [rule] = found.deny_domains
    assert rule.where == f"{machine}/config.toml:2"
    # The full network goes past the gateway, and so past every denial: the setup's own, too.
    found = load(layers(machine, "network = full\nsetup_network = full\n"))
    assert (found.network, found.setup_network.kind) == (NetworkPolicy.API, NetworkPolicy.API)
    assert sum(f"{machine}/config.toml:2" in warning for warning in found.warnings) == 2
    with pytest.raises(UsageError, match="more than this machine allows"):
        load(layers(machine, "", *flags(network="full")))


@pytest.mark.parametrize("hosts", ["allow_domains = a.org", "presets = npm"])
def test_an_allow_list_of_which_nothing_is_left_is_the_api_alone(machine: Path, hosts: str) -> None:
    write(machine / "config.toml", "[enforce]\nallow = ['*.b.org']\npresets = []\n")
    found = load(layers(machine, f"network = allowlist\n{hosts}\n"))
    assert (found.network, found.allow_domains, found.presets) == (NetworkPolicy.API, (), ())
    assert any(f"{machine}/config.toml:" in warning for warning in found.warnings)


@pytest.mark.parametrize("key", ["allow = ['a.org']", "deny = ['b.org']", "budget = { requests = 5 }"])
def test_what_the_gateway_alone_can_hold_bounds_the_network(machine: Path, key: str) -> None:
    for explicit in ("", "network = 'full'\n"):
        write(machine / "config.toml", f"[enforce]\n{explicit}{key}\n")
        found = load(layers(machine, "network = full\nsetup_network = full\n"))
        assert (found.network, found.setup_network.kind) == (NetworkPolicy.API, NetworkPolicy.API)
        with pytest.raises(UsageError, match="more than this machine allows"):
            load(layers(machine, "", *flags(network="full")))


@pytest.mark.parametrize("network", ["api", "full"])
def test_the_providers_own_variable_can_not_rename_a_provider(machine: Path, network: str) -> None:
    write(machine / "config.toml", "[enforce]\nproviders = ['anthropic']\n")
    found = load(layers(machine, f"network = {network}\n"))
    environ = {"ANTHROPIC_BASE_URL": "https://elsewhere.example"}
    with pytest.raises(UsageError, match="more than this machine allows"):
        reach(found, environ=environ, home=machine, repository=None, ui=SilentUi())
    assert reach(found, environ={}, home=machine, repository=None, ui=SilentUi()).policy


@pytest.mark.parametrize("name", sorted(CLAUDE_CLOUDS))
def test_a_cloud_is_another_provider_where_the_agent_would_ask_it(machine: Path, name: str) -> None:
    write(machine / "config.toml", "[enforce]\nproviders = ['anthropic']\n")
    for credentials, refused in (("inject", False), ("copy", True)):
        found = load(layers(machine, f"network = full\ncredentials = {credentials}\n"))
        expected = pytest.raises(UsageError, match=f"{name} asks for more") if refused else nullcontext()
        with expected:
            reach(found, environ={name: "1"}, home=machine, repository=None, ui=SilentUi())


def test_shared_toolchains_are_mounts_like_any_other(machine: Path) -> None:
    brew = (Mount(source=Path("/home/linuxbrew/.linuxbrew/bin"), target=Path("/x"), direct=True),)
    for ceiling, left in (("[]", ()), ("['/home/linuxbrew:ro']", brew), ("['/opt']", ())):
        write(machine / "config.toml", f"[enforce]\nmounts = {ceiling}\n")
        assert within(brew, load(layers(machine)).ceilings) == left
    write(machine / "config.toml", "")
    assert within(brew, load(layers(machine)).ceilings) == brew


def test_mounts_below_an_allowed_directory_stay_and_links_lead_nowhere(machine: Path) -> None:
    data = machine.parent / "data"
    data.mkdir()
    (data / "out").symlink_to("/etc")
    (data / "in").mkdir()
    write(machine / "config.toml", f"[enforce]\nmounts = ['{data}:ro']\n")
    found = load(layers(machine, f"mounts = {data}/in:/x:rw, {data}/out:/y, /etc:/z\n"))
    # As it was judged: a link that comes in between is refused.
    assert found.mounts == (Mount(source=data / "in", target=Path("/x"), read_only=True),)
    # A link that comes in between is refused; what is allowed stays so, also where nothing is cut down.
    found = load(layers(machine, "", *flags(mounts=f"{data}/in:/x:ro")))
    assert found.mounts == (Mount(source=data / "in", target=Path("/x"), read_only=True),)
    assert found.mounts[0].direct
    (machine.parent / "way").symlink_to(data)
    found = load(layers(machine, "", *flags(mounts=f"{machine.parent}/way/in:/x:ro")))
    assert [mount.source for mount in found.mounts] == [data / "in"]


@pytest.mark.parametrize(
    "ceiling",
    ["mode = 'hunter2'", "network = true\nmode = 1", "mdoe = 'user'", "allow = 'hunter2/'", "limits = 5",
     "mounts = ['relative']", "limits = { hunter2 = 1 }", "providers = ['../x']", "provider_tools = 'no'",
     "mode = ''", "mode = 'auto'", "images = []", "images = ['hunter2/']", "docker = 'host'",
     "engine = 'hunter2'"],
)  # fmt: skip
def test_a_ceiling_that_makes_no_sense_starts_nothing(machine: Path, ceiling: str) -> None:
    write(machine / "config.toml", f"[enforce]\n{ceiling}\n")
    with pytest.raises(UsageError) as caught:
        load(layers(machine))
    assert f"{machine}/config.toml:" in caught.value.brief
    assert "hunter2" not in caught.value.brief.replace("enforce.hunter2", "")


def test_what_is_allowed_later_stays_within_the_ceiling() -> None:
    only = (parse_pattern("*.corp.org", default_port=None), parse_pattern("localhost:8080"))
    policy = EgressPolicy(kind=NetworkPolicy.ALLOWLIST, only=only, only_where="/etc/x:1")
    live = LivePolicy(policy)
    live.allow(allow_rules("a.corp.org:8443", where="x"))
    live.allow(allow_rules("127.0.0.1:8080", where="x"))
    with pytest.raises(EgressError, match="beyond what this machine allows"):
        live.allow(allow_rules("evil.org", where="x"))
    with pytest.raises(EgressError, match="beyond what this machine allows"):
        live.allow(allow_rules("localhost:9", where="x"))
    assert live.decide("a.corp.org", 8443).allowed
    # Rules that came about otherwise (a preset's) are held by it, too.
    beyond = replace(policy, allow=allow_rules("evil.org", where="preset"))
    assert not decide(beyond, "evil.org", 443).allowed
    assert "/etc/x:1" in decide(beyond, "evil.org", 443).reason


_WORDS = {
    "mode": st.sampled_from(["user", "namespace", "container", "auto"]),
    "engine": st.sampled_from(["podman", "docker"]),
    "image": st.sampled_from(["worker", "corp", "other"]),
    "docker": st.sampled_from(["none", "own", "host"]),
    "network": st.sampled_from(["none", "api", "full"]),
    "allow_domains": st.sampled_from(["a.org", "x.b.org", "*.b.org", "localhost:80"]),
    "presets": st.sampled_from(["npm", "pip", "npm,pip"]),
    "credentials": st.sampled_from(["inject", "copy", "none"]),
    "provider_tools": st.sampled_from(["true", "false"]),
    "github_token": st.sampled_from(["true", "false"]),
    "time_limit": st.sampled_from(["none", "30m", "3h"]),
    "limits": st.sampled_from(["none", "memory=1G", "memory=9G,pids=50", "pids=none"]),
    "budget": st.sampled_from(["none", "tokens=1", "tokens=9"]),
    "setup_network": st.sampled_from(["session", "none", "full", "npm,a.org", "x.b.org"]),
}
_LAYERS = (Layer.FLAG, Layer.ENVIRONMENT, Layer.USER_FILE, Layer.PROJECT, Layer.SYSTEM)
_PROJECTS = ("mode", "docker", "network", "credentials", "provider_tools", "time_limit", "limits", "budget")


@st.composite
def _said(draw: st.DrawFn) -> tuple[Entry, ...]:
    entries = []
    for layer in _LAYERS:
        keys = _PROJECTS if layer is Layer.PROJECT else tuple(_WORDS)
        for key in draw(st.lists(st.sampled_from(keys), unique=True, max_size=4)):
            source = Source(layer=layer, where=f"{layer}:{key}")
            entries.append(Entry(key=key, text=draw(_WORDS[key]), source=source))
    return tuple(entries)


_CEILINGS = {
    "mode": st.sampled_from(["user", "namespace", "container"]),
    "engine": _WORDS["engine"],
    "images": st.sampled_from(["corp", "corp,worker"]),
    "docker": st.sampled_from(["none", "own"]),
    "network": st.sampled_from(["none", "api", "allowlist", "full"]),
    "allow_domains": st.sampled_from(["*.b.org", "a.org:443"]),
    "presets": st.sampled_from(["npm", "pip"]),
    "credentials": _WORDS["credentials"],
    "provider_tools": st.just("false"),
    "github_token": st.just("false"),
    "time_limit": st.just("1h"),
    "limits": st.sampled_from(["memory=2G", "memory=2G,pids=60"]),
    "budget": st.just("tokens=5"),
}


@given(said=_said(), ceilings=st.fixed_dictionaries({}, optional=_CEILINGS))
@hypothesis_settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_the_layers_say_the_ceilings_hold(said: tuple[Entry, ...], ceilings: dict[str, str]) -> None:
    bounds = tuple(
        Entry(key=key, text=text, source=Source(layer=Layer.SYSTEM, where=f"enforce:{key}"))
        for key, text in ceilings.items()
    )
    try:
        found = load(Layers(entries=said, ceilings=bounds, home=Path("/home/u"), directory=Path("/")))
    except UsageError:
        return
    most = found.ceilings
    strength = tuple(IsolationMode).index
    mode = found.mode.at_least if isinstance(found.mode, AutoMode) else found.mode
    assert most.mode is None or strength(mode) >= strength(most.mode)
    assert most.engine in (None, found.engine)
    assert most.images is None or found.image in most.images
    reach = tuple(DockerAccess).index
    assert most.docker is None or reach(found.docker) <= reach(most.docker)
    assert most.network is None or not stricter(most.network, found.network)
    kinds = [found.setup_network.kind] if found.setup_network.kind else []
    assert all(most.network is None or not stricter(most.network, kind) for kind in kinds)
    names = [*found.presets, *found.setup_network.presets]
    assert most.presets is None or set(names) <= most.presets
    rules = [rule.pattern for rule in (*found.allow_domains, *found.setup_network.allow)]
    assert most.hosts is None or all(any(p.covers(rule) for p in most.hosts) for rule in rules)
    order = (Credentials.NONE, Credentials.INJECT, Credentials.COPY)
    assert most.credentials is None or order.index(found.credentials) <= order.index(most.credentials)
    for key in ("provider_tools", "github_token"):
        assert most.allowed.get(key, True) or not getattr(found, key)
    assert most.time_limit is None or (found.time_limit or timedelta.max) <= most.time_limit
    no_network = found.network is NetworkPolicy.NONE
    for key, parts in most.parts.items():
        for name, bound in parts.items():
            value = getattr(getattr(found, key), name)
            assert (value is not None and value <= bound) or (key == "budget" and no_network)
