"""What a session's gateway is started with, who holds the credential, and what the session says of it all."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from clsecure import logs
from clsecure.agents.spec import GatewayAccess, environment, find_spec
from clsecure.egress.journal import Denials, begin_run
from clsecure.egress.wire import EgressTotals, HostProxies, HostTotals
from clsecure.errors import EgressError, UsageError
from clsecure.model import Credentials, IsolationMode, NetworkPolicy, OnFinish
from clsecure.policy import Budget, EgressPolicy, allow_rules, decide, deny_rule
from clsecure.session.context import Context, Surroundings
from clsecure.session.network import COPY_WARNING, arrange
from clsecure.session.opening import opening_lines
from clsecure.session.plan import SessionPlan
from clsecure.session.store import SessionDirectory
from clsecure.session.traffic import closing_lines, report
from clsecure.session.ui import SilentUi
from clsecure.settings.sources import DEFAULT
from clsecure.settings.structured import AgentTable, Auth, KeySource, ProviderTable, chosen
from tests.unit.test_journal import append, line

X = "\N{MULTIPLICATION SIGN}"
KEY = "sk-ant-CANARY-4711"
HOSTILE = "a\x1b[2J\u202e.example.org"


class Ui(SilentUi):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.said.append(f"warning: {text}")


def policy(
    *allow: str, kind: NetworkPolicy = NetworkPolicy.ALLOWLIST, deny: tuple[str, ...] = ()
) -> EgressPolicy:
    rules = tuple(rule for text in allow for rule in allow_rules(text, where="--allow-domain"))
    return EgressPolicy(
        kind=kind, allow=rules, deny=tuple(deny_rule(text, where="--deny-domain") for text in deny)
    )


def plan(network: NetworkPolicy = NetworkPolicy.API, **changes: Any) -> SessionPlan:
    values: dict[str, Any] = {
        "session_id": "20260102-030405-aabbccddeeff",
        "started": datetime(2026, 1, 2, tzinfo=UTC),
        "project": Path("/home/u/app"),
        "project_name": "app",
        "session": "default",
        "mode": IsolationMode.NAMESPACE,
        "network": network,
        "agent": "claude",
        "command": None,
        "shell": False,
        "mounts": (),
        "full_clone": False,
        "on_finish": OnFinish.KEEP,
        "branch": None,
        "message": None,
        "resume": None,
        "time_limit": None,
        "base_url": None,
        "stdout_is_ours": False,
        "policy": EgressPolicy(kind=network),
    }
    return SessionPlan(**{**values, **changes})


@pytest.fixture
def context(tmp_path: Path) -> Any:
    def make(made: SessionPlan, environ: dict[str, str] | None = None, agent: str = "claude") -> Context:
        nothing: Any = None
        place = SessionDirectory(tmp_path / "app-0123456789ab")
        place.make()
        return Context(
            plan=made,
            repository=SimpleNamespace(top=tmp_path / "repository"),  # type: ignore[arg-type]
            ui=Ui(),
            around=Surroundings(
                environ=environ or {}, home=tmp_path, terminal=False, installation=nothing, store=nothing
            ),
            connection=nothing,
            agent=find_spec(agent, [made.own_agent] if made.own_agent else []),
            place=place,
        )

    return make


WITH_KEY = {"ANTHROPIC_API_KEY": KEY}
ALLOWLIST, API, FULL, NONE = (
    NetworkPolicy.ALLOWLIST,
    NetworkPolicy.API,
    NetworkPolicy.FULL,
    NetworkPolicy.NONE,
)


# ------------------------------------------------------------ which gateway


@pytest.mark.parametrize(
    ("agent", "network", "credentials", "gateway", "api"),
    [
        ("claude", NONE, "inject", False, False),
        ("claude", API, "inject", True, True),
        ("claude", API, "copy", True, False),
        ("claude", API, "none", True, False),
        ("claude", ALLOWLIST, "inject", True, True),
        ("claude", ALLOWLIST, "none", True, False),
        ("claude", FULL, "inject", True, True),
        ("claude", FULL, "copy", False, False),
        ("claude", FULL, "none", False, False),
        ("demo", NONE, "inject", False, False),
        ("demo", API, "inject", False, False),
        ("demo", ALLOWLIST, "inject", True, False),
        ("demo", FULL, "inject", False, False),
    ],
)
def test_a_gateway_is_there_where_something_can_go_through_it(
    context: Any, agent: str, network: NetworkPolicy, credentials: str, gateway: bool, api: bool
) -> None:
    made = context(plan(network, credentials=Credentials(credentials)), WITH_KEY, agent)
    arranged = arrange(made)
    assert (arranged.gateway is not None) is gateway
    assert (arranged.variable == "ANTHROPIC_API_KEY") is api
    if arranged.gateway is not None:
        assert (arranged.gateway.provider is not None, arranged.gateway.credential is not None) == (api, api)
        assert arranged.gateway.control == made.place.egress_control
        assert arranged.gateway.log == made.place.egress_log
    assert (KEY in arranged.given.values()) is (credentials == "copy" and network is not NONE)
    assert KEY not in repr(arranged)


def test_the_gateway_gets_what_the_plan_says_and_the_machines_own_way_out(context: Any) -> None:
    allowed, budget = policy("files.example.org"), Budget(requests=3)
    made = plan(
        ALLOWLIST, policy=allowed, budget=budget, provider_tools=True, base_url="https://api.corp:8443"
    )
    environ = {**WITH_KEY, "https_proxy": "http://proxy.corp:3128", "no_proxy": ".corp"}
    config = arrange(context(made, environ)).gateway
    assert config.provider.provider_tools is True
    assert config.provider.base_url == "https://api.corp:8443"
    assert arrange(context(made, environ)).api_host == "api.corp"
    assert (config.policy, config.budget) == (allowed, budget)
    assert config.proxies == HostProxies(https="http://proxy.corp:3128", no_proxy=".corp")


@pytest.mark.parametrize("host", ["api.anthropic.com", "*.anthropic.com"])
def test_b10_a_way_to_the_api_that_nobody_inspects_is_warned_of(context: Any, host: str) -> None:
    made = context(plan(ALLOWLIST, policy=policy(host)), WITH_KEY)
    arrange(made)
    assert len(made.warnings) == 1
    assert made.warnings[0].startswith("api.anthropic.com is among the allowed hosts")
    denied = context(plan(ALLOWLIST, policy=policy(host, deny=("api.anthropic.com",))), WITH_KEY)
    arrange(denied)
    assert denied.warnings == []


def test_without_a_key_the_agent_does_not_start_unless_it_is_to_have_none(context: Any) -> None:
    for credentials in (Credentials.INJECT, Credentials.COPY):
        with pytest.raises(EgressError) as caught:
            arrange(context(plan(credentials=credentials)))
        assert "claude setup-token" in str(caught.value.resolution)
    made = context(plan(credentials=Credentials.NONE))
    assert arrange(made).given == {}
    assert made.warnings == []
    shell = context(plan(shell=True))
    assert arrange(shell).gateway is not None
    assert "no key" in shell.warnings[0]


# ------------------------------------------------------------ the credential itself


def test_a_budget_without_a_gateway_that_counts_is_refused(context: Any) -> None:
    bounded = plan(FULL, command=("make",), budget=Budget(tokens=5))
    assert arrange(context(bounded, WITH_KEY)).gateway is not None
    with pytest.raises(UsageError, match="budget can't be kept"):
        arrange(context(bounded))
    with pytest.raises(UsageError, match="budget can't be kept"):
        arrange(context(bounded, WITH_KEY, "demo"))
    assert arrange(context(plan(NONE, budget=Budget(tokens=5)))).gateway is None


@pytest.mark.parametrize("variable", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"])
def test_a_copied_credential_keeps_its_name_and_the_user_is_warned(
    context: Any, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setattr(logs, "_secrets", set())
    made = context(plan(credentials=Credentials.COPY), {variable: KEY})
    arranged = arrange(made)
    assert arranged.given == {variable: KEY}
    assert made.warnings == [COPY_WARNING]
    assert made.ui.said == [f"warning: {COPY_WARNING}"]
    assert logs.redact(f"it is {KEY}") == "it is ***"
    assert arranged.gateway is not None
    assert arranged.gateway.hidden == (KEY,)
    assert KEY not in repr(arranged.gateway)


def test_a_subscription_is_copied_as_the_token_that_it_is_now(context: Any, tmp_path: Path) -> None:
    file = tmp_path / ".claude/.credentials.json"
    file.parent.mkdir()
    oauth = {"accessToken": KEY, "refreshToken": "CANARY-refresh", "expiresAt": (time.time() + 900) * 1000}
    file.write_text(json.dumps({"claudeAiOauth": oauth}))
    assert arrange(context(plan(credentials=Credentials.COPY))).given == {"CLAUDE_CODE_OAUTH_TOKEN": KEY}


@pytest.mark.parametrize(
    ("network", "named", "inside"),
    [
        (API, "https://models.corp.example:8443/prefix", "https://models.corp.example:8443/prefix"),
        (API, "http://127.0.0.1:8080", "http://host.clsecure.internal:8080"),
        (API, "http://[::1]:8080/v", "http://host.clsecure.internal:8080/v"),
        (FULL, "http://127.0.0.1:8080", "http://127.0.0.1:8080"),
    ],
)
def test_an_address_that_the_user_named_goes_with_a_copied_key(
    context: Any, network: NetworkPolicy, named: str, inside: str
) -> None:
    made = context(plan(network, credentials=Credentials.COPY), {**WITH_KEY, "ANTHROPIC_BASE_URL": named})
    arranged = arrange(made)
    assert arranged.given == {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": inside}
    if arranged.gateway is not None:
        parts = urlsplit(inside)
        assert decide(arranged.gateway.policy, parts.hostname, parts.port).allowed


def test_a_copied_key_that_goes_in_the_clear_is_said(context: Any) -> None:
    said = {}
    for named in ("http://models.lan:8080", "https://models.lan:8080", "http://127.0.0.1:8080"):
        environ = {**WITH_KEY, "ANTHROPIC_BASE_URL": named}
        made = context(plan(credentials=Credentials.COPY), environ)
        arrange(made)
        said[named] = any("models.lan in the clear" in warning for warning in made.warnings)
    assert list(said.values()) == [True, False, False]


def test_a_copied_key_opens_the_way_to_the_providers_host_and_no_other(context: Any) -> None:
    allowed = policy("files.example.org", deny=("api.anthropic.com",))
    made = plan(ALLOWLIST, credentials=Credentials.COPY, policy=dataclasses.replace(allowed, deny=()))
    config = arrange(context(made, WITH_KEY)).gateway
    patterns = [str(rule.pattern) for rule in config.policy.allow]
    assert patterns == ["files.example.org:443", "api.anthropic.com:443"]
    assert config.policy.kind is ALLOWLIST
    assert config.policy.allow[-1].where == "credentials = copy"
    # What the user denies stays denied.
    denied = arrange(context(plan(credentials=Credentials.COPY, policy=allowed), WITH_KEY)).gateway.policy
    assert not decide(denied, "api.anthropic.com", 443).allowed


def test_a_clouds_credentials_pass_with_copy_alone(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_secrets", set())
    cloud = {"CLAUDE_CODE_USE_BEDROCK": "1", "AWS_SECRET_ACCESS_KEY": KEY, "AWS_REGION": "eu-central-1"}
    made = context(plan(credentials=Credentials.COPY), {**cloud, "ANTHROPIC_API_KEY": "other"})
    assert arrange(made).given == cloud
    assert made.warnings == [COPY_WARNING]
    assert logs.redact(KEY) == "***"
    assert logs.redact("eu-central-1") == "eu-central-1"
    with pytest.raises(EgressError) as caught:
        arrange(context(plan(), cloud))
    assert "--credentials copy" in str(caught.value.resolution)


# ------------------------------------------------------------ the start


def opening(
    context: Any, made: SessionPlan, environ: dict[str, str] | None = None, agent: str = "claude"
) -> str:
    gateway = arrange(context(made, WITH_KEY if environ is None else environ, agent)).gateway
    return "\n".join(opening_lines(made, gateway, uses_api=agent == "claude"))


@pytest.mark.parametrize(
    ("network", "credentials", "agent", "words"),
    [
        (NONE, "inject", "claude", "network: no network"),
        (API, "inject", "claude", "network: the model's API and nothing else"),
        (API, "inject", "demo", "network: no network (this agent needs none)"),
        (API, "copy", "claude", "the agent holds the key"),
        (API, "none", "claude", "network: no network (credentials = none)"),
        (ALLOWLIST, "inject", "claude", "network: the model's API and the allowed hosts"),
        (ALLOWLIST, "none", "claude", "network: the allowed hosts; no model's API (credentials = none)"),
        (ALLOWLIST, "inject", "demo", "network: the allowed hosts; this agent needs no API"),
        (FULL, "inject", "claude", "network: the internet, without this machine's"),
    ],
)
def test_the_start_says_what_is_reached(
    context: Any, network: NetworkPolicy, credentials: str, agent: str, words: str
) -> None:
    said = opening(context, plan(network, credentials=Credentials(credentials)), agent=agent)
    assert f"mode namespace, {words}" in said or words in said.splitlines()[0]


def test_the_start_names_who_allowed_what_and_not_without_end(context: Any) -> None:
    hosts = tuple(f"h{number}.example.org" for number in range(20))
    made = plan(ALLOWLIST, policy=policy("localhost:4873", *hosts, deny=("*.evil.example",)))
    said = opening(context, made).splitlines()
    assert "allowed: localhost:4873 (--allow-domain, inside as host.clsecure.internal:4873)" in said
    assert "allowed: h0.example.org (--allow-domain)" in said
    assert "allowed: and 9 more (all of them: clsecure --dry-run)" in said
    assert "denied: *.evil.example (--deny-domain)" in said


def test_the_start_names_budget_provider_tools_private_networks_and_a_proxy_in_between(context: Any) -> None:
    made = plan(budget=Budget(requests=500, bytes=2 << 30, tokens=1_000_000), provider_tools=True)
    said = opening(context, made, {**WITH_KEY, "https_proxy": "http://user:CANARY@proxy.corp:3128"})
    assert "budget: 500 requests, 2.0 GiB, 1,000,000 tokens; then the network stops" in said
    assert "(provider_tools)" in said
    assert "residual: this machine's own proxy" in said
    assert "CANARY" not in said
    assert "the internet and private networks" in opening(context, plan(FULL, allow_private=True))
    plain = opening(context, plan())
    assert not [word for word in ("budget", "provider_tools", "residual", "allowed:") if word in plain]


# ------------------------------------------------------------ the end


TOTALS = EgressTotals(requests=42, denied=3, bytes_in=1_258_291, bytes_out=81_920, tokens=12_345)


def test_the_end_names_what_was_blocked_with_the_flag_that_allows_it() -> None:
    hosts = Counter(
        {("files.example.org", 443): 3, ("x.example.org", 80): 1, ("host.clsecure.internal", 4873): 2}
    )
    said = list(
        closing_lines(TOTALS, Denials(hosts=hosts, rules=Counter({"provider-tools": 1})), name="app-1")
    )
    assert said == [
        f"blocked: files.example.org:443 {X}3 — allow with --allow-domain files.example.org",
        f"blocked: host.clsecure.internal:4873 {X}2 — allow with --allow-domain localhost:4873",
        f"blocked: x.example.org:80 {X}1 — allow with --allow-domain x.example.org:80",
        f"refused by the gateway: provider-tools {X}1 (--provider-tools allows it)",
        "network: 42 requests, 3 denied, 1.2 MiB in, 80 KiB out, 12,345 tokens",
    ]


def test_a_tunnel_to_the_models_api_is_not_proposed() -> None:
    for host in ("api.anthropic.com", "models.corp.example"):
        refused = Denials(hosts=Counter({(host, 443): 3}))
        first, *_ = closing_lines(TOTALS, refused, name="app-1", api_host="models.corp.example")
        assert first.startswith(f"blocked: {host}:443 {X}3")
        assert "--allow-domain" not in first


def test_names_that_an_agent_made_up_neither_command_the_terminal_nor_get_a_hint() -> None:
    bad = [HOSTILE, "*.org", "a b", "$(id)", "x" * 300 + ".org", "EXAMPLE.org", "--help", "-"]
    hosts = Counter({(host, 443): 1 for host in bad})
    said = list(closing_lines(TOTALS, Denials(hosts=hosts), name="app-1"))
    assert not [
        text for text in said if not text.isprintable() or "--allow-domain" in text or len(text) > 200
    ]
    assert len(said) == len(bad) + 1


def test_the_list_of_what_was_blocked_has_an_end() -> None:
    hosts = Counter({(f"h{number}.example.org", 443): 1 for number in range(5000)})
    said = list(closing_lines(TOTALS, Denials(hosts=hosts), name="app-1"))
    assert len(said) == 12
    assert said[10] == "…and 4990 more: clsecure network learn app-1"


def test_nothing_is_said_where_nothing_was_asked_for() -> None:
    assert list(closing_lines(EgressTotals(), Denials(), name="app-1")) == []


def test_the_end_of_a_run_counts_this_run_alone_and_repeats_the_gateways_warnings(context: Any) -> None:
    made = context(plan())
    log = made.place.egress_log
    append(log, line(host="old.example.org"))
    begin_run(log, made.plan.session_id)
    append(log, line() * 2 + line(rule="path", host="api.example.com"))
    hosts = (HostTotals(host=HOSTILE, port=443, requests=3, denied=3),)
    totals = dataclasses.replace(TOTALS, hosts=hosts, warnings=("the budget of tokens is used up",))
    result = report(made, totals)
    assert made.ui.said == [
        "warning: the budget of tokens is used up",
        f"blocked: files.example.org:443 {X}2 — allow with --allow-domain files.example.org",
        f"refused by the gateway: path {X}1",
        "network: 42 requests, 3 denied, 1.2 MiB in, 80 KiB out, 12,345 tokens",
    ]
    assert made.warnings == ["the budget of tokens is used up"]
    assert (result.policy, result.complete, result.warnings) == ("api", True, tuple(made.warnings))
    assert result.hosts[0].host.isprintable()


def test_a_gateway_that_died_is_said(context: Any) -> None:
    made = context(plan())
    result = report(made, EgressTotals(requests=2, bytes_in=7, complete=False))
    assert made.warnings == ["the gateway ended during the session: the agent had no network from then on"]
    assert made.ui.said[-1].endswith("(what the log has of it)")
    assert (result.requests, result.bytes_in, result.complete) == (2, 7, False)


# ------------------------------------------------------------ other providers


MINE = ProviderTable(
    name="mine",
    base_url="https://llm.example.org:8443/coding/",
    key=KeySource(variable="MINE_KEY"),
    models={"default": "big", "haiku": "small"},
    timeout_ms=5000,
)
KIMI = chosen("kimi", (), where=DEFAULT)
OTHERS = {
    "ANTHROPIC_BASE_URL": "https://anthropic.CANARY.example",
    "ANTHROPIC_API_KEY": "sk-ant-api-CANARY",
    "ANTHROPIC_AUTH_TOKEN": "sk-ant-auth-CANARY",
    "CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat-CANARY",
    "CLAUDE_CODE_USE_BEDROCK": "1",
    "AWS_SECRET_ACCESS_KEY": "aws-CANARY",
    "ANTHROPIC_MODEL": "claude-CANARY",
    "ANTHROPIC_SMALL_FAST_MODEL": "claude-CANARY",
    "ANTHROPIC_DEFAULT_HAIKU_MODEL": "claude-CANARY",
    "ANTHROPIC_DEFAULT_OPUS_MODEL": "claude-CANARY",
    "ANTHROPIC_BETAS": "CANARY",
    "CLAUDE_CODE_SUBAGENT_MODEL": "claude-CANARY",
}
"""Everything that is Anthropic's or a cloud's, in the user's environment."""


def inside(made: Context, arranged: Any) -> dict[str, str]:
    access = GatewayAccess(port=1, token="token", credential_variable=arranged.variable)
    return environment(
        made.agent,
        made.around.environ,
        user="worker",
        home=PurePosixPath("/home/worker"),
        session="default",
        terminal=False,
        gateway=access if arranged.gateway else None,
        credentials=arranged.given,
        models=arranged.models,
    )


@pytest.mark.parametrize("auth", Auth)
@pytest.mark.parametrize("network", [API, ALLOWLIST, FULL])
def test_another_provider_gets_its_own_key_and_nothing_of_anthropics(
    context: Any, tmp_path: Path, auth: Auth, network: NetworkPolicy
) -> None:
    (tmp_path / ".claude").mkdir()
    (tmp_path / ".claude/.credentials.json").write_text('{"claudeAiOauth": {"accessToken": "file-CANARY"}}')
    served = dataclasses.replace(MINE, auth=auth)
    made = context(plan(network, served=served), {**OTHERS, "MINE_KEY": "the-key"})
    arranged = arrange(made)
    assert arranged.gateway is not None
    provider, credential = arranged.gateway.provider, arranged.gateway.credential
    assert provider.base_url == "https://llm.example.org:8443/coding"
    assert (provider.prefix, provider.user_named) == ("/coding", True)
    assert credential.current() == "the-key"
    assert credential.kind == ("api_key" if auth is Auth.API_KEY else "bearer")
    assert arranged.given == {}
    env = inside(made, arranged)
    assert env["ANTHROPIC_MODEL"] == "big"
    assert env["ANTHROPIC_DEFAULT_HAIKU_MODEL"] == "small"
    assert env["API_TIMEOUT_MS"] == "5000"
    assert env["ANTHROPIC_AUTH_TOKEN"] == "token"
    assert "CANARY" not in str(env) + str(arranged) + repr(credential.current())
    assert "the-key" not in str(env) + str(arranged)


def test_a_copied_key_of_another_provider_comes_alone(context: Any) -> None:
    copied = plan(API, served=MINE, credentials=Credentials.COPY)
    made = context(copied, {**OTHERS, "MINE_KEY": "the-key"})
    arranged = arrange(made)
    assert arranged.given == {
        "ANTHROPIC_API_KEY": "the-key",
        "ANTHROPIC_BASE_URL": "https://llm.example.org:8443/coding",
    }
    env = inside(made, arranged)
    assert "CANARY" not in str(env)
    assert env["ANTHROPIC_MODEL"] == "big"
    assert decide(arranged.gateway.policy, "llm.example.org", 8443).allowed
    assert not decide(arranged.gateway.policy, "api.anthropic.com", 443).allowed


def test_a_key_that_the_session_does_not_use_is_not_asked_for(context: Any) -> None:
    for made in (
        plan(NONE, served=MINE),
        plan(API, served=MINE, credentials=Credentials.NONE),
        plan(ALLOWLIST, served=MINE, agent="demo"),
    ):
        arrange(context(made, {}, made.agent))


@pytest.mark.parametrize("changes", [{}, {"shell": True}, {"command": ("claude",)}])
@pytest.mark.parametrize("credentials", [Credentials.INJECT, Credentials.COPY])
def test_without_its_key_another_provider_is_not_asked_with_any_other(
    context: Any, changes: dict[str, Any], credentials: Credentials
) -> None:
    with pytest.raises(EgressError, match="provider mine: MINE_KEY is not set"):
        arrange(context(plan(API, served=MINE, credentials=credentials, **changes), dict(OTHERS)))


def test_kimis_requests_go_to_kimi_with_kimis_key(context: Any) -> None:
    made = context(plan(API, served=KIMI), {**OTHERS, "KIMI_API_KEY": "kimi-key"})
    config = arrange(made).gateway
    assert config.provider.base_url == "https://api.kimi.com/coding"
    assert not config.provider.user_named
    assert (config.credential.kind, config.credential.current()) == ("api_key", "kimi-key")
    env = inside(made, arrange(made))
    assert "CANARY" not in str(env)
    assert env["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] == "1"
    copied = context(
        plan(API, served=KIMI, credentials=Credentials.COPY), {**OTHERS, "KIMI_API_KEY": "kimi-key"}
    )
    assert arrange(copied).given == {
        "ANTHROPIC_API_KEY": "kimi-key",
        "ANTHROPIC_BASE_URL": "https://api.kimi.com/coding",
    }


def test_anthropic_gets_no_key_of_another_provider(context: Any) -> None:
    environ = {
        "MINE_KEY": "CANARY",
        "KIMI_API_KEY": "CANARY",
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_MODEL": "m",
    }
    made = context(plan(API), environ)
    arranged = arrange(made)
    assert arranged.gateway.credential.current() == KEY
    env = inside(made, arranged)
    assert "CANARY" not in str(env)
    assert env["ANTHROPIC_MODEL"] == "m"


OWN = AgentTable(
    name="own",
    command=("own",),
    resume=("own",),
    env=frozenset({"OWN_MODEL"}),
    base_url_env="OWN_URL",
    token_env="OWN_KEY",  # a variable's name
)


def test_an_agent_of_the_users_own_is_told_by_its_own_variables(context: Any) -> None:
    made = context(
        plan(API, served=MINE, agent="own", own_agent=OWN),
        {"MINE_KEY": "the-key", "OWN_MODEL": "m", "OTHER": "x", "ANTHROPIC_MODEL": "claude"},
        "own",
    )
    env = inside(made, arrange(made))
    assert (env["OWN_URL"], env["OWN_KEY"], env["OWN_MODEL"]) == ("http://127.0.0.1:1", "token", "m")
    assert {name for name in env if "ANTHROPIC" in name or name == "OTHER"} == set()


def test_an_agent_of_the_users_own_holds_a_copied_key_under_its_own_variable(context: Any) -> None:
    copied = plan(API, served=MINE, agent="own", own_agent=OWN, credentials=Credentials.COPY)
    arranged = arrange(context(copied, {"MINE_KEY": "the-key"}, "own"))
    assert arranged.given == {"OWN_KEY": "the-key", "OWN_URL": "https://llm.example.org:8443/coding"}
    copied = plan(API, agent="own", own_agent=OWN, credentials=Credentials.COPY)
    arranged = arrange(context(copied, WITH_KEY, "own"))
    assert arranged.given == {"OWN_KEY": KEY, "OWN_URL": "https://api.anthropic.com"}


def test_a_subscription_is_for_claude_alone(context: Any) -> None:
    made = context(plan(API, agent="own", own_agent=OWN), {"CLAUDE_CODE_OAUTH_TOKEN": "t"}, "own")
    with pytest.raises(EgressError, match="own has no use for a credential from CLAUDE_CODE_OAUTH_TOKEN"):
        arrange(made)


def test_the_opening_names_who_serves(context: Any) -> None:
    made = context(plan(API, served=MINE), {"MINE_KEY": "the-key"})
    lines = list(opening_lines(made.plan, arrange(made).gateway, uses_api=True))
    assert "the model is served by mine, https://llm.example.org:8443/coding/" in lines
