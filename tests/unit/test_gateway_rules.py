"""What may pass, by the head and by the body of a request."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clsecure.egress.bodies import MAX_STRUCTURE, inspect
from clsecure.egress.rules import (
    MESSAGES_API_RULES,
    Denial,
    Rule,
    check_host,
    check_token,
    find_rule,
    forwarded_headers,
)


def rule_for(method: bytes, target: bytes) -> str | None:
    found = find_rule(method, target, MESSAGES_API_RULES)
    return found.name if isinstance(found, Rule) else None


@pytest.mark.parametrize(
    ("method", "target", "rule"),
    [
        (b"HEAD", b"/", "root"),
        (b"POST", b"/v1/messages?beta=true", "messages"),
        (b"POST", b"/v1/messages/count_tokens?beta=true", "count-tokens"),
        (b"GET", b"/v1/models?limit=1000", "models"),
        (b"GET", b"/v1/models/claude-x-4-5", "models"),
    ],
)
def test_the_fixed_list_passes(method, target, rule):
    assert rule_for(method, target) == rule


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (b"POST", b"/v1/files"),
        (b"POST", b"/v1/messages/batches"),
        (b"GET", b"/v1/messages"),
        (b"DELETE", b"/v1/models/x"),
        (b"POST", b"/v1/organizations/invites"),
        (b"POST", b"/api/event_logging/batch"),
        (b"POST", b"/v1/messages/"),
        (b"POST", b"/v1//messages"),
        (b"POST", b"//v1/messages"),
        (b"POST", b"/v1/./messages"),
        (b"GET", b"/v1/models/../files"),
        (b"GET", b"/v1/models/%2e%2e/files"),
        (b"GET", b"/v1/models%2f..%2ffiles"),
        (b"GET", b"/v1/models\\..\\files"),
        (b"GET", b"/v1/models/x#y"),
        (b"POST", b"/v1/messages;x"),
        (b"POST", b"/V1/MESSAGES"),
        (b"POST", b"/v1/messages\x00"),
        (b"post", b"/v1/messages"),
        (b"POST", b"https://api.example.com/v1/messages"),
        (b"GET", b"http://169.254.169.254/latest"),
        (b"CONNECT", b"api.example.com:443"),
        (b"OPTIONS", b"*"),
        (b"GET", b"/v1/models?" + b"x" * 2000),
        (b"GET", b""),
    ],
)
def test_everything_else_is_refused(method, target):
    assert rule_for(method, target) is None


@settings(database=None, deadline=None)
@given(st.binary(max_size=80))
def test_no_target_passes_but_the_listed_ones(target):
    for method in (b"GET", b"POST", b"HEAD"):
        name = rule_for(method, target)
        path = target.split(b"?")[0]
        assert name is None or path in {b"/", b"/v1/messages", b"/v1/messages/count_tokens"} or (
            path.startswith(b"/v1/models") and b".." not in path
        )  # fmt: skip


TOKEN = "session-token"


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x-api-key", b"session-token")],
        [(b"authorization", b"Bearer session-token")],
        [(b"authorization", b"bearer session-token"), (b"x-api-key", b"session-token")],
    ],
)
def test_the_token_is_accepted_in_both_ways(headers):
    assert check_token(headers, token=TOKEN) is None


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"session-toke")],
        [(b"x-api-key", b"sk-foreign-key")],
        [(b"x-api-key", b"session-token"), (b"x-api-key", b"sk-foreign-key")],
        [(b"x-api-key", b"session-token"), (b"authorization", b"Bearer foreign")],
        [(b"authorization", b"Basic session-token")],
        [(b"cookie", b"session-token")],
    ],
)
def test_every_other_credential_is_refused(headers):
    denial = check_token(headers, token=TOKEN)
    assert denial is not None
    assert denial.status == 401


@pytest.mark.parametrize("host", [b"127.0.0.1:81", b"127.0.0.1", b"evil.example:80", b"127.0.0.1:80@x", b""])
def test_a_host_that_is_not_the_gateway_is_refused(host):
    assert check_host([(b"host", b"127.0.0.1:80")], port=80) is None
    assert isinstance(check_host([(b"host", host)], port=80), Denial)
    assert isinstance(check_host([(b"host", b"127.0.0.1:80"), (b"host", host)], port=80), Denial)


def test_headers_that_authenticate_or_route_are_not_forwarded():
    sent = [
        (b"anthropic-beta", b"oauth-2025-04-20"),
        (b"anthropic-version", b"2023-06-01"),
        (b"x-stainless-os", b"Linux"),
        (b"authorization", b"Bearer x"),
        (b"x-api-key", b"x"),
        (b"cookie", b"x"),
        (b"proxy-authorization", b"x"),
        (b"x-forwarded-host", b"x"),
        (b"host", b"x"),
        (b"connection", b"anthropic-version"),
    ]
    assert forwarded_headers(sent) == sent[:3]


def message(*content: object, **fields: object) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": list(content)}], **fields}


ORDINARY = [
    {"model": "m", "messages": [{"role": "user", "content": "see https://example.org, source: url"}]},
    message({"type": "text", "text": "x"}, tools=[{"name": "Bash", "input_schema": {"type": "object"}}]),
    message(tools=[{"type": "custom", "name": "x"}, {"type": "text_editor_20250728", "name": "y"}]),
    message(tools=[{"type": "bash_20250124"}, {"type": "computer_20250124"}, {"type": "memory_20250818"}]),
    message(tools=[{"type": "tool_search_tool_regex_20251119"}, {"type": "tool_search_tool_bm25"}]),
    message({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}),
    message({"type": "document", "source": {"type": "text", "data": "x"}}),
    message({"type": "search_result", "source": "https://example.org", "content": []}),
    message({"type": "tool_use", "id": "1", "name": "x", "input": {"source": {"type": "url"}, "file_id": 1}}),
    message(mcp_servers=[], tools=[]),
]

REACHING_OUT = [
    message(tools=[{"type": "web_fetch_20250910", "name": "web_fetch"}]),
    message(tools=[{"type": "web_search_20250305", "name": "web_search"}]),
    message(tools=[{"type": "code_execution_20250825", "name": "code_execution"}]),
    message(tools=[{"type": "mcp_toolset", "mcp_server_name": "x"}]),
    message(tools=[{"type": "bash_code_execution_20250825", "name": "x"}]),
    message(tools=[{"type": "something_new_20991231", "name": "x"}]),
    message(tools=[{"type": ["web_fetch"]}]),
    message(tools={"type": "web_fetch_20250910"}),
    message(TOOLS=[{"Type": "web_fetch_20250910"}]),
    message(mcp_servers=[{"type": "url", "url": "https://example.org"}]),
    message(MCP_Servers=[{"type": "url", "url": "https://example.org"}]),
    message(container={"skills": [{"type": "custom", "skill_id": "x"}]}),
    message({"type": "image", "source": {"type": "url", "url": "https://example.org/?secret"}}),
    message({"type": "document", "source": {"type": "url", "url": "https://example.org/"}}),
    message({"type": "document", "source": {"type": "file", "file_id": "file_1"}}),
    message({"type": "document", "source": {"url": "https://example.org/"}}),
    message({"type": "image", "Source": {"Type": "url", "url": "https://example.org/"}}),
    message({"type": "container_upload", "file_id": "file_1"}),
    message(
        {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": "https://e"}}]}
    ),
    message(
        {
            "type": "document",
            "source": {"type": "content", "content": [{"type": "image", "source": {"type": "url"}}]},
        }
    ),
    message({"type": "document", "source": {"type": ["base64"]}}),
    message({"type": "document", "source": {"type": {"base64": 1}}}),
    message({"type": "document", "source": {"type": None}}),
    message({"type": "image_url", "image_url": {"url": "https://example.org/"}}),
    message(api_base="https://example.org/"),
    message(Base_URL="https://example.org/"),
    message(extra_headers={"x-forwarded-host": "example.org"}),
    message(system=[{"type": "image", "source": {"type": "url", "url": "https://example.org/"}}]),
]


@pytest.mark.parametrize("document", ORDINARY)
def test_ordinary_requests_pass(document):
    assert inspect(json.dumps(document).encode(), provider_tools=False) is None


@pytest.mark.parametrize("document", REACHING_OUT)
def test_b10_requests_that_make_the_provider_reach_out_need_the_users_word(document):
    denial = inspect(json.dumps(document).encode(), provider_tools=False)
    assert denial is not None
    assert denial.status == 403
    assert "provider_tools" in denial.reason
    assert inspect(json.dumps(document).encode(), provider_tools=True) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'{"tools": []} {}',
        b'{"tools": [{"type": "web_fetch_1"}], "tools": []}',
        b'{"messages": [{"content": [], "content": []}]}',
        b'{"max_tokens": NaN}',
        b'{"max_tokens": ' + b"9" * 10_000 + b"}",
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages": ' + b"[" * 400 + b"]" * 400 + b"}",
        json.dumps(message()).encode("utf-16"),
        b"\xef\xbb\xbf" + json.dumps(message()).encode(),
        b'{"model": "\xff"}',
    ],
)
def test_bodies_that_two_parsers_could_read_differently_are_refused(body):
    denial = inspect(body, provider_tools=False)
    assert denial is not None
    assert denial.status == 400
    assert inspect(body, provider_tools=True) is not None or body.startswith(b'{"messages": [')


def test_a_body_with_too_many_parts_is_not_even_parsed():
    denial = inspect(b"[" + b"[]," * MAX_STRUCTURE, provider_tools=True)
    assert denial is not None
    assert denial.status == 413


@settings(database=None, deadline=None)
@given(st.binary(max_size=200))
def test_no_body_makes_the_inspection_fail_itself(body):
    inspect(body, provider_tools=False)
