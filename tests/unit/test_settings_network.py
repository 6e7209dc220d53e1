"""What the layers' words on the network come to together: absence denies, and nothing weaker opens."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clsecure.errors import UsageError
from clsecure.model import NetworkPolicy
from clsecure.policy import EgressPolicy, decide
from clsecure.settings.layers import Settled, network_settings, settle
from clsecure.settings.sources import Entry, Layer, Layers, Source

FLAG, ENV, FILE, PROJECT = Layer.FLAG, Layer.ENVIRONMENT, Layer.USER_FILE, Layer.PROJECT
_WHERE = {FLAG: "--{}", ENV: "CLSECURE_{}", FILE: "/home/u/config:{}", PROJECT: "/repo/.clsecure/config:{}"}


def said(layer: Layer, key: str, text: str) -> Entry:
    return Entry(key=key, text=text, source=Source(layer=layer, where=_WHERE[layer].format(key)))


def settled(*entries: Entry) -> Settled:
    ordered = sorted(entries, key=lambda entry: entry.source.layer.rank)
    return settle(Layers(entries=tuple(ordered)))


def policy(result: Settled) -> EgressPolicy:
    settings = network_settings(result)
    return EgressPolicy(kind=settings.network, allow=settings.allow_domains, deny=settings.deny_domains)


def hosts(result: Settled) -> list[str]:
    return [rule.pattern.host for rule in policy(result).allow]


def network(layer: Layer, text: str) -> Entry:
    return said(layer, "network", text)


def allow(layer: Layer, text: str | None = None) -> Entry:
    return said(layer, "allow_domains", text or f"{layer.name.lower().replace('_', '-')}.org")


def deny(layer: Layer, text: str) -> Entry:
    return said(layer, "deny_domains", text)


@dataclass(frozen=True)
class Case:
    entries: tuple[Entry, ...]
    kind: str
    allowed: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    by: Layer = Layer.DEFAULT


USERS = [
    Case((), "api"),
    Case((network(FILE, "no"),), "api", by=FILE),
    Case((network(FILE, "yes"),), "full", by=FILE),
    Case((network(FILE, "none"),), "none", by=FILE),
    # allowed hosts and no word on the network
    Case((allow(FLAG),), "allowlist", ("flag.org",), by=FLAG),
    Case((allow(ENV),), "allowlist", ("environment.org",), by=ENV),
    Case((allow(FILE),), "allowlist", ("user-file.org",), by=FILE),
    Case((said(FILE, "presets", "npm"),), "allowlist", by=FILE),
    Case((allow(FLAG), allow(FILE)), "allowlist", ("flag.org", "user-file.org"), by=FLAG),
    # api
    Case((network(FILE, "api"), allow(FILE)), "allowlist", ("user-file.org",), by=FILE),
    Case((network(FILE, "api"), allow(FLAG)), "allowlist", ("flag.org",), by=FLAG),
    Case((network(ENV, "api"), allow(FILE)), "api", (), ("allow_domains",), by=ENV),
    Case((network(ENV, "api"), allow(FLAG), allow(FILE)), "allowlist", ("flag.org",),
         ("allow_domains",), by=FLAG),
    # none wins over its own and weaker layers
    Case((network(FLAG, "none"), allow(FILE)), "none", (), ("allow_domains",), by=FLAG),
    Case((network(FLAG, "none"), said(FILE, "presets", "npm")), "none", (), ("presets",), by=FLAG),
    Case((network(FILE, "none"), allow(FILE)), "none", (), ("allow_domains",), by=FILE),
    Case((network(ENV, "none"), allow(ENV), allow(FILE)), "none", (), ("allow_domains",), by=ENV),
    Case((network(FILE, "none"), allow(FLAG)), "allowlist", ("flag.org",), ("network",), by=FLAG),
    Case((network(FILE, "none"), allow(FLAG), allow(FILE)), "allowlist", ("flag.org",),
         ("network", "allow_domains"), by=FLAG),
    # allowlist
    Case((network(FILE, "allowlist"), allow(FILE)), "allowlist", ("user-file.org",), by=FILE),
    Case((network(ENV, "allowlist"), allow(FILE)), "allowlist", ("user-file.org",), by=ENV),
    Case((network(FILE, "allowlist"), allow(FLAG)), "allowlist", ("flag.org",), by=FLAG),
    Case((network(ENV, "none"), network(FILE, "allowlist"), allow(FILE)), "none", (),
         ("allow_domains",), by=ENV),
    # full wins over weaker hosts, stronger hosts win over it
    Case((network(FLAG, "full"), allow(FILE)), "full", (), ("allow_domains",), by=FLAG),
    Case((network(FILE, "full"), allow(FLAG)), "allowlist", ("flag.org",), ("network",), by=FLAG),
    # what is denied
    Case((deny(FILE, "a.org"),), "api"),
    Case((network(FLAG, "none"), deny(FILE, "a.org")), "none", by=FLAG),
]  # fmt: skip


@pytest.mark.parametrize(
    "case", USERS, ids=lambda case: " ".join(str(e.source) + "=" + e.text for e in case.entries)
)
def test_what_a_user_says(case: Case) -> None:
    result = settled(*case.entries)
    found = policy(result)
    assert (found.kind.value, tuple(hosts(result))) == (case.kind, case.allowed)
    assert [warning.split(" (")[0] for warning in result.warnings] == list(case.warned)
    assert result.sources.get("network", Source(layer=Layer.DEFAULT)).layer is case.by
    for warning in result.warnings:
        assert "does not count" in warning


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ((network(FLAG, "none"), allow(FLAG)), "--network and --allow_domains exclude each other"),
        ((network(FLAG, "full"), allow(FLAG)), "exclude each other"),
        ((network(FLAG, "full"), said(FLAG, "presets", "npm")), "exclude each other"),
        ((network(FILE, "full"), allow(FILE)), "exclude each other"),
        ((network(FILE, "allowlist"),), "nothing is allowed"),
        ((network(ENV, "allowlist"), deny(FLAG, "a.org")), "nothing is allowed"),
        ((network(FLAG, "full"), deny(FLAG, "a.org")), "can't be enforced with the full network"),
        ((network(FLAG, "full"), deny(FILE, "a.org")), "can't be enforced with the full network"),
        ((network(FLAG, "full"), deny(PROJECT, "a.org")), "/repo/.clsecure/config:deny_domains"),
        ((said(FLAG, "allow_private", "true"),), "goes with the full network only"),
        ((said(FILE, "allow_private", "true"),), "goes with the full network only"),
        ((said(FLAG, "allow_private", "true"), network(FILE, "none")), "goes with the full network only"),
        ((network(FLAG, "none"), said(FLAG, "budget", "tokens=5")), "nothing to count"),
        ((network(FILE, "none"), said(FLAG, "budget", "bytes=5")), "nothing to count"),
        ((network(FLAG, "full"), said(FLAG, "budget", "bytes=5")), "can't be limited with the full network"),
        ((network(FLAG, "full"), said(FILE, "budget", "requests=5")), "can't be limited with the full"),
        ((said(FILE, "credentials", "copy"), said(FLAG, "budget", "tokens=5")), "tokens can't be counted"),
        ((said(FLAG, "credentials", "none"), said(FILE, "budget", "tokens=5")), "tokens can't be counted"),
    ],
)
def test_what_excludes_each_other_or_can_not_be_enforced(entries: tuple[Entry, ...], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        settled(*entries)
    assert told in caught.value.brief
    assert caught.value.resolution


@pytest.mark.parametrize(
    "entries",
    [
        (network(FLAG, "full"), said(FLAG, "budget", "tokens=5")),
        (network(FLAG, "none"), said(FILE, "budget", "tokens=5")),
        (network(PROJECT, "none"), said(FILE, "budget", "tokens=5")),
        (said(FLAG, "credentials", "copy"), said(FILE, "budget", "bytes=5")),
        (network(FLAG, "full"), said(FLAG, "allow_private", "true")),
        (network(FLAG, "none"), said(FLAG, "provider_tools", "true")),
        (network(FLAG, "full"), said(FLAG, "provider_tools", "true")),
        (said(FILE, "allow_private", "false"),),
    ],
)
def test_what_goes_together(entries: tuple[Entry, ...]) -> None:
    assert settled(*entries).warnings == ()


def test_private_addresses_of_a_weaker_layer_do_not_count_without_the_full_network() -> None:
    entries = (network(FILE, "full"), said(FILE, "allow_private", "true"))
    assert settled(*entries).warnings == ()
    [warning] = settled(network(FLAG, "none"), *entries).warnings
    assert warning.startswith("allow_private (/home/u/config:allow_private) does not count")


NARROWED = [
    # (the user's, the repository's word, what comes of it, allowed)
    ((), "none", "none", ()),
    ((), "allowlist", "api", ()),
    ((), "full", "api", ()),
    ((network(FILE, "full"),), "api", "api", ()),
    ((network(FILE, "full"),), "none", "none", ()),
    ((network(FILE, "full"),), "allowlist", "api", ()),
    ((network(ENV, "full"), allow(FILE)), "allowlist", "api", ()),
    ((network(FILE, "none"),), "api", "none", ()),
    ((allow(FILE),), "api", "api", ()),
    ((allow(FILE),), "none", "none", ()),
    ((allow(FILE),), "allowlist", "allowlist", ("user-file.org",)),
    ((allow(ENV),), "api", "api", ()),
    # a flag stands, and what was said for all sessions is narrowed beside it
    ((network(FLAG, "full"),), "none", "full", ()),
    ((allow(FLAG),), "none", "allowlist", ("flag.org",)),
    ((allow(FLAG), allow(FILE)), "api", "allowlist", ("flag.org",)),
    ((allow(FLAG), network(FILE, "allowlist"), allow(FILE)), "none", "allowlist", ("flag.org",)),
    ((allow(FLAG), allow(FILE)), "allowlist", "allowlist", ("flag.org", "user-file.org")),
    ((network(FLAG, "none"),), "api", "none", ()),
]


@pytest.mark.parametrize(("entries", "word", "kind", "allowed"), NARROWED)
def test_what_a_repository_says(
    entries: tuple[Entry, ...], word: str, kind: str, allowed: tuple[str, ...]
) -> None:
    before, after = settled(*entries), settled(*entries, network(PROJECT, word))
    assert (policy(after).kind.value, tuple(hosts(after))) == (kind, allowed)
    if policy(after) != policy(before):
        assert "/repo/.clsecure/config:network" in " ".join((*after.notes, *after.warnings))


@pytest.mark.parametrize(
    ("entries", "word", "mode"),
    [
        ((), "container", "container"),
        ((), "user", None),
        ((said(FILE, "mode", "user"),), "namespace", "namespace"),
        ((said(ENV, "mode", "user"),), "namespace", "namespace"),
        ((said(FILE, "mode", "container"),), "namespace", "container"),
        ((said(FLAG, "mode", "user"),), "container", "user"),
        ((said(FLAG, "mode", "user"),), "auto", "user"),
        ((said(FILE, "mode", "container"),), "auto", "container"),
        ((), "auto", None),
    ],
)
def test_the_stricter_mode_counts_unless_a_flag_says_otherwise(
    entries: tuple[Entry, ...], word: str, mode: str | None
) -> None:
    result = settled(*entries, said(PROJECT, "mode", word))
    assert result.values.get("mode") == mode
    assert bool(result.notes) == (mode != (entries[0].text if entries else None) or word == "container")


_HOSTS = st.sampled_from(["a.org", "*.a.org", "b.a.org", "a.org:80", "localhost:4873", "10.0.0.5"])
_lists = st.lists(_HOSTS, min_size=1, max_size=3).map(",".join)
_LAYERS, _KINDS = st.sampled_from([FLAG, ENV, FILE]), st.sampled_from([kind.value for kind in NetworkPolicy])
_of_user = st.lists(
    st.one_of(
        st.builds(network, _LAYERS, _KINDS),
        st.builds(allow, _LAYERS, _lists),
        st.builds(deny, _LAYERS, _lists),
    ),
    max_size=6,
    unique_by=lambda entry: (entry.key, entry.source.layer),
)  # fmt: skip
_of_project = st.lists(
    st.one_of(
        st.builds(network, st.just(PROJECT), _KINDS),
        st.builds(deny, st.just(PROJECT), _lists),
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda entry: entry.key,
)
_TARGETS = [(host, port) for host in ("a.org", "b.a.org", "localhost", "host.clsecure.internal", "10.0.0.5")
            for port in (443, 80, 4873)]  # fmt: skip
_WIDTH = list(NetworkPolicy)


@given(own=_of_user, project=_of_project)
def test_a_repository_never_widens(own: list[Entry], project: list[Entry]) -> None:
    try:
        before = policy(settled(*own))
    except UsageError:
        with pytest.raises(UsageError):  # nor does it mend what the user has to
            settled(*own, *[entry for entry in project if entry.key == "deny_domains"])
        return
    try:
        after = policy(settled(*own, *project))
    except UsageError:
        return  # narrowest of all
    assert _WIDTH.index(after.kind) <= _WIDTH.index(before.kind)
    assert set(after.allow) <= set(before.allow)
    assert set(after.deny) >= set(before.deny)
    if before.kind is not NetworkPolicy.FULL:
        for target in _TARGETS:
            now, then = decide(after, *target), decide(before, *target)
            if now.allowed:
                assert then.allowed
                # An exact rule may have gone, and a wildcard speaks in its place: it opens less.
                assert now.rule is not None
                assert then.rule is not None
                assert then.rule.may_be_private or not now.rule.may_be_private


@given(own=_of_user, more=_lists)
def test_allowing_by_a_flag_shuts_nothing_that_was_allowed_by_name(own: list[Entry], more: str) -> None:
    own = [entry for entry in own if entry.source.layer is not FLAG or entry.key == "deny_domains"]
    try:
        before = policy(settled(*own))
        after = policy(settled(*own, allow(FLAG, more)))
    except UsageError:
        return
    for target in _TARGETS:
        assert decide(after, *target).allowed or not decide(before, *target).allowed


def test_the_kinds_are_ordered_from_the_narrowest() -> None:
    assert [kind.value for kind in NetworkPolicy] == ["none", "api", "allowlist", "full"]
