"""``clsecure network check``: the answer is what a session would do, and names what decides."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clsecure.cli.commands.network_check import Question, Target, Way, answer, parse
from clsecure.egress.provider import Provider
from clsecure.errors import UsageError
from clsecure.model import Credentials, NetworkPolicy
from clsecure.policy import EgressPolicy, allow_rules, decide, deny_rule
from tests.support.cli import ROOT, home_and_repository, plain_user, run_cli
from tests.support.schema import check, load

SECRET = "hunter2-CANARY"


@pytest.mark.parametrize(
    ("text", "host", "port", "path"),
    [
        ("files.example.org", "files.example.org", 443, None),
        ("Files.Example.org:80", "files.example.org", 80, None),
        ("[::1]:4873", "::1", 4873, None),
        ("https://files.example.org", "files.example.org", 443, "/"),
        ("HTTPS://Files.Example.org:8443/a/b?c#d", "files.example.org", 8443, "/a/b"),
        ("http://files.example.org/x", "files.example.org", 80, "/x"),
        ("ws://a.example", "a.example", 80, "/"),
        ("https://b\u00fccher.example/", "xn--bcher-kva.example", 443, "/"),
        ("https://[fd00::1]/", "fd00::1", 443, "/"),
    ],
)
def test_what_is_asked_about(text: str, host: str, port: int, path: str | None) -> None:
    assert parse(text) == Target(host=host, port=port, path=path)


@pytest.mark.parametrize(
    "text",
    ["", "*", "*.example.org", "https://*.example.org/", f"https://user:{SECRET}@a.org/", f"{SECRET}@a.org",
     "ftp://a.org", "ssh://a.org", "https://", "https:///x", "https://a.org:0/", "https://a.org:x/",
     "https://a\n.org/", "https://a.org\\@b.org/", "https://a .org", "a.org/x", "a.org?x", "https://1.2.3/",
     "https://0x7f.1/", "//a.org", "https://a.org\u202e/"],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.brief.startswith("the address to check must ")
    assert SECRET not in f"{caught.value.brief}{caught.value.details}{caught.value.resolution}"


@given(st.one_of(st.text(max_size=60), st.text(st.sampled_from("htps:/@[]a.*1%?#\\ \n"), max_size=40)))
def test_any_text_is_a_target_in_canonical_form_or_one_error(text: str) -> None:
    try:
        found = parse(text)
    except UsageError:
        return
    assert parse(str(found)) == Target(host=found.host, port=found.port)


def question(kind: str = "allowlist", **more: object) -> Question:
    policy = EgressPolicy(
        kind=NetworkPolicy(kind),
        allow=(
            *allow_rules("files.example.org", where="--allow-domain"),
            *allow_rules("*.wide.example:8443", where="/u/config:3"),
            *allow_rules("10.0.0.5:80", where="/u/config:4"),
            *allow_rules("169.254.169.254:80", where="/u/config:5"),
            *allow_rules("localhost:4873", where="/u/config:6"),
            *allow_rules("bad.example.org", where="/u/config:7"),
        ),
        deny=(deny_rule("bad.example.org", where="/u/config:8"),),
    )
    given_ = {"policy": policy, "where": "/u/config:1", "api": Provider()} | more
    return Question(**given_)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "allowed", "rule", "private", "flag"),
    [
        ("files.example.org", True, "--allow-domain", True, None),
        ("https://files.example.org/any/path", True, "--allow-domain", True, None),
        ("http://files.example.org", False, None, False, "--allow-domain files.example.org:80"),
        ("other.example.org", False, None, False, "--allow-domain other.example.org"),
        ("a.wide.example:8443", True, "/u/config:3", False, None),
        ("wide.example:8443", False, None, False, "--allow-domain wide.example:8443"),
        ("bad.example.org", False, "/u/config:8", False, None),
        ("10.0.0.5:80", True, "/u/config:4", True, None),
        ("[fd00::1]:80", False, None, False, "--allow-domain [fd00::1]:80"),
        ("localhost:4873", True, "/u/config:6", True, None),
        ("host.clsecure.internal:4873", True, "/u/config:6", True, None),
        ("host.clsecure.internal:1", False, None, False, "--allow-domain localhost:1"),
        # never, whatever allows it
        ("169.254.169.254:80", False, None, False, None),
    ],
)
def test_what_the_rules_say(
    text: str, allowed: bool, rule: str | None, private: bool, flag: str | None
) -> None:
    found = answer(parse(text), question())
    assert (found.allowed, found.private_addresses, found.allow_with) == (allowed, private, flag)
    assert (found.rule.where if found.rule else None) == rule
    assert found.way == (Way.RULE if allowed else None)


HOST = Provider().host


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        (HOST, True),
        (f"https://{HOST}", True),
        (f"https://{HOST}/v1/messages", True),
        (f"https://{HOST}/v1/messages?beta=true", True),
        (f"https://{HOST}/v1/messages/count_tokens", True),
        (f"https://{HOST}/v1/models/x", True),
        (f"https://{HOST}/v1/files", False),
        (f"https://{HOST}/v1/messages/batches", False),
        (f"https://{HOST}/v1/%6dessages", False),
        (f"https://{HOST}/v1//messages", False),
        (f"https://{HOST}/v1/models/../files", False),
        (f"https://{HOST}/v1/\u00e4", False),
        (f"http://{HOST}/v1/messages", False),
        (f"https://{HOST}:8443/v1/messages", False),
        (f"https://x.{HOST}/v1/messages", False),
    ],
)
@pytest.mark.parametrize("kind", ["api", "allowlist"])
def test_the_models_api_is_reached_by_its_own_rules(kind: str, text: str, allowed: bool) -> None:
    found = answer(parse(text), question(kind))
    assert found.allowed is allowed
    if allowed:
        assert (found.way, found.rule, found.private_addresses) == (Way.API, None, False)
        assert "through the gateway's API rules" in found.reason
        assert "/v1/messages/count_tokens" in found.reason
    else:
        # A tunnel to the API itself would be past the inspection, and is not proposed.
        elsewhere = text.startswith(("http:", f"https://{HOST}:", "https://x."))
        assert (found.allow_with or "").startswith("--allow-domain ") is elsewhere
    assert not answer(parse(text), question(kind, api=None)).allowed


def test_a_host_of_the_api_that_is_also_allowed_is_reached_by_that_rule() -> None:
    rules = allow_rules(HOST, where="--allow-domain")
    asked = question(policy=EgressPolicy(kind=NetworkPolicy.ALLOWLIST, allow=rules))
    assert answer(parse(f"https://{HOST}/v1/files"), asked).way is Way.RULE
    assert answer(parse(f"https://{HOST}/v1/messages"), asked).way is Way.API


def test_a_denial_of_the_provider_wins() -> None:
    asked = question(policy=EgressPolicy(deny=(deny_rule(HOST, where="x"),)))
    assert not answer(parse(f"https://{HOST}/v1/messages"), asked).allowed


def test_a_provider_of_the_users_own_with_a_prefix() -> None:
    own = Provider(base_url="http://10.1.1.1:8080/llm", user_named=True)
    asked = question("api", api=own)
    inside = answer(parse("http://10.1.1.1:8080/llm/v1/messages"), asked)
    assert (inside.allowed, inside.way, inside.private_addresses) == (True, Way.API, True)
    assert not answer(parse("http://10.1.1.1:8080/v1/messages"), asked).allowed
    assert not answer(parse("http://10.1.1.1:8080/llmx/v1/messages"), asked).allowed


def test_with_a_copied_key_the_provider_is_a_host_like_others() -> None:
    asked = question("api", credentials=Credentials.COPY)
    assert answer(parse(f"https://{HOST}/v1/files"), asked).way is Way.RULE


@pytest.mark.parametrize("text", ["files.example.org", f"https://{HOST}/v1/messages", "localhost:4873"])
def test_without_a_network_all_is_denied(text: str) -> None:
    found = answer(parse(text), question("none"))
    assert (found.allowed, found.way) == (False, None)
    assert "/u/config:1" in found.reason
    assert found.allow_with == f"--allow-domain {text.removeprefix('https://').partition('/')[0]}"
    assert answer(parse(text), question("none", where="--no-network")).allow_with is None


@pytest.mark.parametrize(
    ("text", "private", "allowed", "flag"),
    [
        ("any.example", False, True, None),
        ("8.8.8.8:53", False, True, None),
        ("10.0.0.5:80", False, False, "--allow-private"),
        ("10.0.0.5:80", True, True, None),
        ("localhost:80", False, False, None),
        ("localhost:80", True, False, None),
        ("127.1.2.3:80", True, False, None),
        ("[::1]:80", True, False, None),
        ("[::ffff:127.0.0.1]:80", True, False, None),
        ("host.clsecure.internal:80", True, False, None),
        ("[::ffff:10.0.0.5]:80", False, False, "--allow-private"),
        ("169.254.169.254:80", True, False, None),
    ],
)
def test_the_full_network_leaves_out_what_is_private(
    text: str, private: bool, allowed: bool, flag: str | None
) -> None:
    policy = EgressPolicy(kind=NetworkPolicy.FULL)
    found = answer(parse(text), question(policy=policy, allow_private=private))
    assert (found.allowed, found.allow_with) == (allowed, flag)
    assert found.way == (Way.FULL if allowed else None)


@given(
    host=st.sampled_from(
        ["files.example.org", "a.wide.example", "bad.example.org", "x.org", "localhost", HOST]
    ),
    port=st.sampled_from([443, 80, 8443, 4873]),
)
def test_the_answer_is_the_gateways(host: str, port: int) -> None:
    asked = question()
    found = answer(Target(host=host, port=port), asked)
    decided = decide(asked.policy, host, port)
    assert found.allowed == (decided.allowed or (host, port) == (HOST, 443))
    if found.way is not Way.API:
        assert found.rule == decided.rule


@pytest.fixture
def home() -> Iterator[Path]:
    """A home and a repository that the plain user of these tests reaches."""
    with home_and_repository() as place:
        yield place


def ask(home: Path, *args: str, cwd: str = "repo") -> tuple[int, str, str]:
    done = run_cli("network", "check", *args, env={"HOME": str(home / "home")}, cwd=home / cwd)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_the_answer_for_people(home: Path) -> None:
    (home / "home/.config/clsecure/config.toml").write_text("[egress]\nallow = ['a.example.org']\n")
    where = f"{home}/home/.config/clsecure/config.toml:2"
    assert ask(home, "https://a.example.org/x") == (
        0,
        f"a.example.org:443 is allowed by a.example.org:443 ({where})\nit may lead to a private address\n",
        "",
    )
    status, out, _ = ask(home, "b.example.org")
    assert status == 1
    assert out.splitlines() == [
        "b.example.org:443 is denied: nothing allows it",
        "to allow it: clsecure --allow-domain b.example.org",
    ]
    status, out, _ = ask(home, "b.example.org", "--allow-domain", "b.example.org")
    assert (status, "(--allow-domain)" in out) == (0, True)


@pytest.mark.parametrize("args", [
    ["files.example.org"],
    ["files.example.org", "--allow-domain", "files.example.org"],
    ["files.example.org", "--allow-domain", "*.example.org", "--deny-domain", "files.example.org"],
    ["files.example.org", "--no-network"],
    ["https://files.example.org/x", "--allow-network"],
    [f"https://{HOST}/v1/messages"],
])  # fmt: skip
def test_the_answer_for_programs_is_the_schemas(home: Path, args: list[str]) -> None:
    status, out, _ = ask(home, *args, "--output", "json")
    document = json.loads(out)
    check(document, load("network-check"))
    assert status == (0 if document["allowed"] else 1)
    assert set(document) == set(load("network-check")["properties"])


def test_the_repository_counts_where_one_stands_in_it(home: Path) -> None:
    file = home / "repo/.clsecure/config"
    file.write_text("deny_domains = a.example.org\n")
    status, out, _ = ask(home, "a.example.org", "--allow-domain", "a.example.org")
    assert status == 1
    assert f"to allow it, take it out: {file}:1" in out
    assert ask(home, "a.example.org", "--allow-domain", "a.example.org", cwd="home")[0] == 0


def test_what_can_not_be_answered_is_an_error(home: Path) -> None:
    assert ask(home, f"https://u:{SECRET}@a.org/")[0] == 125
    assert SECRET not in "".join(map(str, ask(home, f"https://u:{SECRET}@a.org/")))
    assert ask(home)[0] == 125
    assert ask(home, "a.org", "--allow-domain", "*")[0] == 125
    status, _, err = ask(home, "a.org", "--deny-domain", HOST)
    assert (status, "the model's API itself" in err) == (125, True)


def test_nothing_slow_is_imported_for_it(home: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from clsecure.__main__ import main; main();"
        "print(*sys.modules, file=sys.stderr)"
    )
    argv = [sys.executable, "-I", "-c", code, "network", "check", "a.example.org"]
    env = {"HOME": str(home / "home"), "PATH": "/usr/bin:/bin"}
    who = plain_user()
    done = subprocess.run(argv, capture_output=True, cwd=home / "repo", env=env, timeout=60, **who)  # type: ignore[call-overload]
    loaded = {name.partition(".")[0] for name in done.stderr.decode().split("\n")[-2].split()}
    assert "clsecure" in loaded
    assert loaded.isdisjoint({"pydantic", "pydantic_settings", "structlog", "rich", "h11", "ssl", "asyncio"})
