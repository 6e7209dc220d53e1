"""Tokens are read from replies as they go by, however they are cut and whatever else is in them."""

from __future__ import annotations

import json
import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clsecure.egress.usage import UsageReader

STREAM, DOCUMENT = b"text/event-stream; charset=utf-8", b"application/json"
USAGE = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 200,
    "cache_read_input_tokens": 3000,
    "output_tokens": 1,
    "service_tier": "standard",
    "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 0},
}


def event(name: str, **fields: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


def delta(text: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


START = event("message_start", message={"id": "m", "content": [], "usage": USAGE})
END = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 500})
LIES = 'data: {"type": "message_delta", "usage": {"output_tokens": 99999}}\n\n"usage": {"input_tokens": 9}'


def read(content_type: bytes, pieces: list[bytes]) -> UsageReader:
    reader = UsageReader(content_type)
    told = sum(reader.feed(piece) for piece in pieces) + reader.end()
    assert told == (reader.tokens or 0)
    return reader


def cut(data: bytes, seed: int) -> list[bytes]:
    at = sorted(random.Random(seed).randrange(len(data)) for _ in range(20))
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_a_stream_counts_input_cache_and_output_wherever_it_is_cut(seed):
    stream = START + event("ping") + delta("Hello") + delta(LIES) + END + event("message_stop")
    assert read(STREAM, cut(stream, seed)).tokens == 3210 + 500
    assert read(STREAM, cut(stream.replace(b"\n", b"\r\n"), seed)).tokens == 3210 + 500


def test_later_counts_of_a_stream_include_the_earlier_ones():
    more = event("message_delta", usage={**USAGE, "output_tokens": 700})
    assert read(STREAM, [START + END + more]).tokens == 3210 + 700


def test_what_is_known_is_told_before_the_stream_is_over():
    reader = UsageReader(STREAM)
    assert reader.feed(START) == 3211
    assert reader.feed(delta("Hello")) == 0
    assert reader.feed(END) == 499
    assert reader.end() == 0


def test_hanging_up_before_the_last_count_is_not_free():
    assert read(STREAM, [START, *[delta("word ")] * 40]).tokens == 3210 + 40


def test_a_document_that_breaks_off_before_its_usage_is_not_free():
    document = json.dumps({"content": [{"type": "text", "text": "word " * 8000}], "usage": USAGE}).encode()
    at = document.index(b'"usage"')
    for length in (at, at + 10, at + 30):
        assert read(DOCUMENT, cut(document[:length], 1)).tokens == length // 4
    assert read(DOCUMENT, cut(document, 1)).tokens == 3211


@pytest.mark.parametrize("seed", range(20))
def test_a_document_counts_its_own_usage_only(seed):
    document = {
        "usage_of_old": {"input_tokens": 1},
        "content": [
            {"type": "text", "text": f'\\ \\" {LIES} \u20ac'},
            {"type": "tool_use", "input": {"usage": {"input_tokens": 7, "x": [{}]}, "s": "usage"}},
        ],
        "stop_reason": "usage",
        "usage": USAGE,
        "after": {"usage": {"input_tokens": 5}},
    }
    for text in (json.dumps(document), json.dumps(document, indent=2, ensure_ascii=False)):
        assert read(DOCUMENT, cut(text.encode(), seed)).tokens == 3211


@pytest.mark.parametrize(
    "reply",
    [
        b"", b"{}", b"}}}}", b'{"usage": 3}', b'{"a": {"usage": 3}}', b"[1]",
        b'{"usage": [1]}', b'{"usage": "x"}', b'"usage": {"input_tokens": 3}',
        b'{"usage": {"input_tokens": 1,,}}',
    ],
    ids=range(10),
)  # fmt: skip
def test_replies_without_usage_tell_nothing(reply):
    assert read(DOCUMENT, [reply]).tokens is None
    assert read(STREAM, [b"data: " + reply + b"\n\n"]).tokens is None
    assert read(b"text/plain", [START]).tokens is None


@pytest.mark.parametrize("value", [-1, True, "9", 1.5, None, [], 1 << 70])
def test_a_count_that_is_none_counts_nothing(value):
    assert read(DOCUMENT, [json.dumps({"usage": {**USAGE, "output_tokens": value}}).encode()]).tokens == 3210


@given(st.lists(st.binary(max_size=40)), st.sampled_from([STREAM, DOCUMENT]))
def test_no_bytes_break_a_reader(pieces, content_type):
    read(content_type, pieces)


@pytest.mark.parametrize(
    ("content_type", "piece"),
    [
        (STREAM, b"x" * 4096),
        (STREAM, b"data: " + b"x" * 4096 + b"\n"),
        (STREAM, b"\\\"" * 2048),
        (DOCUMENT, b'{"usage": {"a": "' + b"x" * 4096),
        (DOCUMENT, b'"' + b"\\n" * 2048),
        (DOCUMENT, b"{" * 64 + b" " * 4032),
    ],
    ids=range(6),
)  # fmt: skip
def test_memory_stays_small_however_long_a_reply_is(content_type, piece):
    reader = UsageReader(content_type)
    tracemalloc.start()
    try:
        for _ in range(200):
            reader.feed(piece)
        assert tracemalloc.get_traced_memory()[1] < len(piece) * 100
    finally:
        tracemalloc.stop()


def test_an_event_that_is_too_long_hides_no_later_one():
    assert read(STREAM, [START, b"data: " + b"x" * 200_000, b"\n\n", END]).tokens == 3210 + 500
