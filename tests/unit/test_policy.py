"""The network policy: what its patterns mean, and what holds of every policy and every target."""

from __future__ import annotations

import contextlib
import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clsecure.model import NetworkPolicy
from clsecure.policy import (
    HOST_ALIAS,
    EgressPolicy,
    HostPattern,
    NetworkRule,
    allow_rules,
    decide,
    denial_of,
    deny_rule,
    parse_pattern,
    parse_target,
)

LOOPBACK = ("localhost", "127.0.0.1", "::1", HOST_ALIAS)
KINDS = [kind for kind in NetworkPolicy if kind is not NetworkPolicy.NONE]

# Few labels, so that names meet each other: below, above, beside, and nearly the same.
_LABELS = st.sampled_from(["a", "b", "ab", "x-y", "com", "org", "localhost", "internal", "clsecure", "host"])
names = st.lists(_LABELS, min_size=1, max_size=4).map(".".join)
addresses = st.one_of(
    st.sampled_from(["127.0.0.1", "::1", "10.0.0.5", "fd00::1", "8.8.8.8"]),
    st.ip_addresses().map(str),
)
hosts = st.one_of(names, addresses, st.sampled_from(LOOPBACK))
# What some parsers take for a dot, and letters that change when their case does; a NUL and half a surrogate.
_DOTS_AND_FOLDS = "\u3002\uff0e\uff61\u0130\u00df\u017f\0\udc80"
ports = st.one_of(st.sampled_from([443, 80, 4873]), st.integers(min_value=1, max_value=65535))
targets = st.tuples(hosts, ports)


def written(host: str, port: int | None, *, below: bool = False) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"{'*.' if below else ''}{shown}{'' if port is None else f':{port}'}"


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """Texts that make a rule."""
    port = draw(st.one_of(st.none(), ports))
    if draw(st.booleans()):
        domain = f"{draw(names)}.{draw(_LABELS)}"
        return written(domain, port, below=True)
    return written(draw(hosts), port)


allowed = st.lists(patterns(), max_size=6).map(
    lambda texts: tuple(rule for text in texts for rule in allow_rules(text, where=f"allow {text}"))
)
denied = st.lists(patterns(), max_size=4).map(
    lambda texts: tuple(deny_rule(text, where=f"deny {text}") for text in texts)
)


def names_of(host: str) -> set[str]:
    return set(LOOPBACK) if host in LOOPBACK else {host}


@given(kind=st.sampled_from(KINDS), allow=allowed, deny=denied, target=targets)
def test_nothing_is_allowed_that_no_rule_names(
    kind: NetworkPolicy,
    allow: tuple[NetworkRule, ...],
    deny: tuple[NetworkRule, ...],
    target: tuple[str, int],
) -> None:
    decision = decide(EgressPolicy(kind=kind, allow=allow, deny=deny), *target)
    if decision.allowed:
        assert decision.rule in allow
        assert decision.rule.pattern.matches(*target)
    else:
        named = any(rule.pattern.matches(*target) for rule in allow)
        assert decision.rule in deny if named else decision.rule is None or decision.rule in deny


@given(allow=allowed, deny=denied, target=targets)
def test_a_denial_wins_over_every_permission(
    allow: tuple[NetworkRule, ...], deny: tuple[NetworkRule, ...], target: tuple[str, int]
) -> None:
    host, port = target
    decision = decide(EgressPolicy(kind=NetworkPolicy.ALLOWLIST, allow=allow, deny=deny), host, port)
    if any(rule.pattern.matches(name, port) for rule in deny for name in names_of(host)):
        assert not decision.allowed
        assert decision.rule in deny


@given(allow=allowed, more=allowed, deny=denied, target=targets)
def test_allowing_more_denies_nothing(
    allow: tuple[NetworkRule, ...],
    more: tuple[NetworkRule, ...],
    deny: tuple[NetworkRule, ...],
    target: tuple[str, int],
) -> None:
    before = EgressPolicy(kind=NetworkPolicy.ALLOWLIST, allow=allow, deny=deny)
    after = EgressPolicy(kind=NetworkPolicy.ALLOWLIST, allow=(*more, *allow), deny=deny)
    if decide(before, *target).allowed:
        assert decide(after, *target).allowed


@given(allow=allowed, deny=denied, more=denied, target=targets)
def test_denying_more_allows_nothing(
    allow: tuple[NetworkRule, ...],
    deny: tuple[NetworkRule, ...],
    more: tuple[NetworkRule, ...],
    target: tuple[str, int],
) -> None:
    before = EgressPolicy(kind=NetworkPolicy.ALLOWLIST, allow=allow, deny=deny)
    after = EgressPolicy(kind=NetworkPolicy.ALLOWLIST, allow=allow, deny=(*more, *deny))
    if decide(after, *target).allowed:
        assert decide(before, *target) == decide(after, *target)


@given(allow=allowed, deny=denied, target=targets)
def test_without_a_network_nothing_is_allowed(
    allow: tuple[NetworkRule, ...], deny: tuple[NetworkRule, ...], target: tuple[str, int]
) -> None:
    assert not decide(EgressPolicy(kind=NetworkPolicy.NONE, allow=allow, deny=deny), *target).allowed


@given(allow=allowed, target=targets)
def test_only_a_host_that_was_named_itself_may_be_private(
    allow: tuple[NetworkRule, ...], target: tuple[str, int]
) -> None:
    decision = decide(EgressPolicy(kind=NetworkPolicy.ALLOWLIST, allow=allow), *target)
    if decision.allowed and decision.rule is not None and decision.rule.may_be_private:
        assert (decision.rule.pattern.host, decision.rule.pattern.port) == target
    exact = any((rule.pattern.host, rule.pattern.subdomains) == (target[0], False)
                and rule.pattern.port == target[1] for rule in allow)  # fmt: skip
    # And a wildcard beside it does not take that away.
    assert exact == bool(decision.allowed and decision.rule and decision.rule.may_be_private)


@given(deny=denied, pattern=patterns(), target=targets)
def test_what_a_denial_covers_is_denied_wholly(
    deny: tuple[NetworkRule, ...], pattern: str, target: tuple[str, int]
) -> None:
    rules = allow_rules(pattern, where="here")
    policy = EgressPolicy(kind=NetworkPolicy.ALLOWLIST, allow=rules, deny=deny)
    if denial_of(policy, rules[0].pattern) is not None:
        assert not decide(policy, *target).allowed


@given(pattern=patterns())
def test_a_pattern_is_written_as_it_is_read(pattern: str) -> None:
    for default in (443, None):
        read = parse_pattern(pattern, default_port=default)
        assert parse_pattern(str(read), default_port=default) == read
        assert parse_pattern(pattern.upper(), default_port=default) == read


@given(target=targets)
def test_a_target_in_its_canonical_form_is_read_as_it_is(target: tuple[str, int]) -> None:
    host, port = target
    text = written(host, port)
    assert parse_target(text) == (host, port)
    if not any(character.isalpha() for character in host):
        return
    with pytest.raises(ValueError, match="lower case"):
        parse_target(text.upper())


@pytest.mark.parametrize("alphabet", [st.characters(), st.sampled_from(string.printable + _DOTS_AND_FOLDS),
                                      st.sampled_from("ab.:[]*%-_@/0x19 ")])  # fmt: skip
def test_any_text_is_read_canonically_or_refused(alphabet: st.SearchStrategy[str]) -> None:
    @given(text=st.text(alphabet, max_size=300))
    def check(text: str) -> None:
        with contextlib.suppress(ValueError):
            host, port = parse_target(text)
            assert written(host, port) == text
            assert text.isascii()
            assert text == text.lower()
        try:
            pattern = parse_pattern(text)
        except ValueError:
            return
        assert pattern.host.isascii()
        assert parse_pattern(str(pattern)) == pattern
        assert decide(EgressPolicy(), pattern.host, pattern.port or 1).allowed is False

    check()


@given(tld=st.one_of(_LABELS, st.text(st.characters(categories=["Ll", "Lu", "Nd"]), min_size=1, max_size=20)),
       port=st.one_of(st.none(), ports))  # fmt: skip
def test_a_pattern_never_means_a_whole_top_level_domain(tld: str, port: int | None) -> None:
    for text in ("*", "*.", "**", f"*.{tld}", f"*{tld}.org", f"*.*.{tld}", f"a.*.{tld}", f"*.{tld}."):
        with pytest.raises(ValueError, match=r"must|IPv6"):
            parse_pattern(text if port is None else f"{text}:{port}")


@given(st.ip_addresses(v=6))
def test_an_address_has_one_form(address: ipaddress.IPv6Address) -> None:
    assert parse_pattern(f"[{address.exploded}]").host == str(address)
    if address.exploded != str(address):
        with pytest.raises(ValueError, match="usual form"):
            parse_target(f"[{address.exploded}]:443")


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a..b", ".a", "a.", "-a.org", "a-.org", "a b", "a\n", "a\0b", "a/b", "a@b", "a?b", "a#b",
     "http://a", "a:", "a:0", "a:65536", "a:-1", "a:+1", "a:٤٤", "a:443:443", "a:1e3", "[a]", "[::1", "::1",
     "::1]:80", "[::1]80", "[::1%lo]", "[127.0.0.1]", "0x7f.1", "127.1", "2130706433", "0177.0.0.1",
     "1.2.3.4.5", "a.0x1", "*", "*.org", "*.127.0.0.1", "*a.org", "a*.org", "a.*.org", "*.*.a.org", "!a.org",
     "x" * 64 + ".org", "a." * 127 + "org", "\u202ea.org", "a.org\u3002"],
)  # fmt: skip
def test_what_no_pattern_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"must "):
        parse_pattern(text)


@pytest.mark.parametrize(
    "text",
    ["A.org:443", "a.org.:443", "a.org", "a.org:0443", "a.org: 443", "ä.org:443", "[0:0::1]:443",
     "[::FFFF:1.2.3.4]:443", "010.0.0.1:443", "[::1]", "*.a.org", "a.org:443/", "user@a.org:443",
     "a.org:443\r\n"],
)  # fmt: skip
def test_what_no_target_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"must "):
        parse_target(text)


@pytest.mark.parametrize(
    ("text", "host", "port", "below"),
    [
        ("Files.Example.org", "files.example.org", 443, False),
        ("files.example.org:80", "files.example.org", 80, False),
        ("*.example.org", "example.org", 443, True),
        ("*.EXAMPLE.org:8443", "example.org", 8443, True),
        ("bücher.example", "xn--bcher-kva.example", 443, False),
        ("_dmarc.example.org", "_dmarc.example.org", 443, False),
        ("registry", "registry", 443, False),
        ("10.0.0.5:4873", "10.0.0.5", 4873, False),
        ("[FD00:0::1]:80", "fd00::1", 80, False),
    ],
)
def test_a_pattern_is_read_generously(text: str, host: str, port: int, below: bool) -> None:
    assert parse_pattern(text) == HostPattern(host=host, port=port, subdomains=below)


@pytest.mark.parametrize(
    "text",
    [
        "stra\u00dfe.example",
        "STRA\u1e9eE.example",
        "\u03c3\u03bf\u03c2.example",
        "a\u200db.example",
        "a\u00adb.example",
        "a\u3002example",
    ],
)
def test_a_name_that_two_standards_read_differently_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="xn--"):
        parse_pattern(text)


def test_subdomains_are_those_below_and_not_the_domain_itself() -> None:
    policy = EgressPolicy(allow=allow_rules("*.example.org", where="x"))
    assert decide(policy, "a.example.org", 443).allowed
    assert decide(policy, "a.b.example.org", 443).allowed
    for host in ("example.org", "badexample.org", "example.org.evil.org", "a.example.org.evil"):
        assert not decide(policy, host, 443).allowed
    assert not decide(policy, "a.example.org", 80).allowed


def test_a_denial_without_a_port_is_for_all_and_with_one_for_that() -> None:
    allow = (*allow_rules("a.org", where="x"), *allow_rules("a.org:80", where="x"))
    whole = EgressPolicy(allow=allow, deny=(deny_rule("a.org", where="y"),))
    assert [decide(whole, "a.org", port).allowed for port in (443, 80)] == [False, False]
    one = EgressPolicy(allow=allow, deny=(deny_rule("a.org:443", where="y"),))
    assert [decide(one, "a.org", port).allowed for port in (443, 80)] == [False, True]
    assert [str(policy.deny[0].pattern) for policy in (whole, one)] == ["a.org", "a.org:443"]


@pytest.mark.parametrize("name", LOOPBACK)
def test_the_loopback_of_this_machine_has_a_name_inside_and_leads_outside(name: str) -> None:
    rules = allow_rules(written(name, 4873), where="x")
    decision = decide(EgressPolicy(allow=rules), HOST_ALIAS, 4873)
    assert decision.allowed
    assert decision.rule is not None
    assert decision.rule.connect in {"localhost", "127.0.0.1", "::1"}
    for denied in LOOPBACK:
        policy = EgressPolicy(allow=rules, deny=(deny_rule(written(denied, None), where="y"),))
        assert not decide(policy, HOST_ALIAS, 4873).allowed
        assert denial_of(policy, rules[0].pattern) is not None


def test_the_exact_rule_speaks_before_the_wildcard() -> None:
    rules = (*allow_rules("*.corp.example", where="wide"), *allow_rules("git.corp.example", where="exact"))
    decision = decide(EgressPolicy(allow=rules), "git.corp.example", 443)
    assert decision.rule is not None
    assert (decision.rule.where, decision.rule.may_be_private) == ("exact", True)
    other = decide(EgressPolicy(allow=rules), "www.corp.example", 443)
    assert other.rule is not None
    assert other.rule.may_be_private is False


@pytest.mark.parametrize(
    ("denied", "pattern", "wholly"),
    [
        ("a.org", "a.org:80", True),
        ("a.org:80", "a.org:80", True),
        ("a.org:80", "a.org", False),
        ("a.org", "*.a.org", False),
        ("a.org", "b.a.org", False),
        ("*.a.org", "b.a.org", True),
        ("*.a.org", "*.a.org", True),
        ("*.a.org", "*.b.a.org:80", True),
        ("*.b.a.org", "*.a.org", False),
        ("*.a.org:80", "b.a.org", False),
        ("*.a.org", "a.org", False),
        ("*.a.org", "ba.org", False),
    ],
)
def test_what_a_denial_leaves_nothing_of(denied: str, pattern: str, wholly: bool) -> None:
    policy = EgressPolicy(deny=(deny_rule(denied, where="x"),))
    assert (denial_of(policy, parse_pattern(pattern)) is not None) is wholly
