"""Where the API is and which credential opens it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from clsecure.egress.provider import (
    Credential,
    CredentialKind,
    find_credential,
    find_provider,
    normalise_base_url,
)
from clsecure.errors import EgressError


def subscription(home: Path, *, expires_in: float = 3600, token: object = "oat-CANARY") -> Path:
    file = home / ".claude" / ".credentials.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    document = {"claudeAiOauth": {"accessToken": token, "expiresAt": int((time.time() + expires_in) * 1000)}}
    file.write_text(json.dumps(document))
    return file


@pytest.mark.parametrize(
    ("variable", "kind"),
    [
        ("ANTHROPIC_API_KEY", CredentialKind.API_KEY),
        ("ANTHROPIC_AUTH_TOKEN", CredentialKind.BEARER),
        ("CLAUDE_CODE_OAUTH_TOKEN", CredentialKind.BEARER),
    ],
)
def test_each_variable_gives_its_own_kind(variable, kind, tmp_path):
    found = find_credential({variable: "secret"}, tmp_path)
    assert found is not None
    assert (found.kind, found.current(), found.variable) == (kind, "secret", variable)


def test_a_key_wins_over_a_token_and_both_over_the_file(tmp_path):
    subscription(tmp_path)
    both = {"ANTHROPIC_API_KEY": "key", "CLAUDE_CODE_OAUTH_TOKEN": "token"}
    assert find_credential(both, tmp_path).current() == "key"
    assert find_credential({"CLAUDE_CODE_OAUTH_TOKEN": "token"}, tmp_path).current() == "token"


def test_empty_variables_and_no_file_give_nothing(tmp_path):
    assert find_credential({"ANTHROPIC_API_KEY": " "}, tmp_path) is None


def test_the_subscription_is_read_anew_at_each_use(tmp_path):
    file = subscription(tmp_path)
    found = find_credential({}, tmp_path)
    assert found.kind is CredentialKind.BEARER
    assert found.variable == "CLAUDE_CODE_OAUTH_TOKEN"
    assert found.value == ""
    assert found.current() == "oat-CANARY"
    subscription(tmp_path, token="oat-renewed")
    assert found.current() == "oat-renewed"
    file.unlink()
    with pytest.raises(EgressError):
        found.current()


def test_another_configuration_directory_is_honoured(tmp_path):
    subscription(tmp_path)
    (tmp_path / ".claude").rename(tmp_path / "elsewhere")
    found = find_credential({"CLAUDE_CONFIG_DIR": str(tmp_path / "elsewhere")}, tmp_path)
    assert found is not None


def test_an_expired_subscription_names_the_way_out(tmp_path):
    subscription(tmp_path, expires_in=-1)
    with pytest.raises(EgressError) as caught:
        find_credential({}, tmp_path)
    assert "claude setup-token" in caught.value.resolution


@pytest.mark.parametrize("content", ["", "[]", "{", '{"claudeAiOauth": "CANARY"}', "[" * 100_000])
def test_a_malformed_file_is_an_error_that_quotes_nothing(content, tmp_path):
    subscription(tmp_path).write_text(content)
    with pytest.raises(EgressError) as caught:
        find_credential({}, tmp_path)
    assert "CANARY" not in f"{caught.value} {caught.value.details}"


def test_a_fifo_in_the_place_of_the_file_does_not_hang(tmp_path):
    file = subscription(tmp_path)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(EgressError):
        find_credential({}, tmp_path)


def test_a_directory_in_the_place_of_the_file_is_an_error(tmp_path):
    (tmp_path / ".claude/.credentials.json").mkdir(parents=True)
    with pytest.raises(EgressError, match="not in a regular file"):
        find_credential({}, tmp_path)


def test_a_value_that_could_end_a_header_is_refused_without_showing_it(tmp_path):
    with pytest.raises(EgressError) as caught:
        find_credential({"ANTHROPIC_API_KEY": "CANARY\r\nx: y"}, tmp_path)
    assert "CANARY" not in str(caught.value)


def test_a_credential_never_shows_itself():
    assert "CANARY" not in repr(Credential(kind=CredentialKind.API_KEY, value="CANARY"))


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://API.example.com/", "https://api.example.com"),
        ("https://api.example.com:443/coding/", "https://api.example.com/coding"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080/a", "http://[::1]:8080/a"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
    ],
)
def test_base_urls_are_normalised(url, normal):
    assert normalise_base_url(url) == normal


@pytest.mark.parametrize(
    "url",
    [
        "ftp://api.example.com",
        "api.example.com",
        "https://",
        "https://user:CANARY@api.example.com",
        "https://api.example.com/?x=1",
        "https://api.example.com/#x",
        "https://api.example.com/../x",
        "https://api.example.com/%2e",
        "https://api.example.com:99999",
        "https://api.exa\0mple.com",
        "https://api.example.com.",
        "http://1.1.1.1",
    ],
)
def test_base_urls_that_are_not_plain_are_refused(url):
    with pytest.raises(EgressError) as caught:
        normalise_base_url(url)
    assert "CANARY" not in f"{caught.value} {caught.value.details}"


def test_only_what_the_user_names_counts_as_named():
    assert not find_provider({}).user_named
    assert find_provider({"ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}).user_named
    provider = find_provider({"ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}, base_url="https://a.example/b")
    assert (provider.host, provider.port, provider.prefix) == ("a.example", 443, "/b")
