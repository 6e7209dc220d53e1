"""Which host a TLS client means, by its first bytes; OpenSSL says what is right."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clsecure.egress.hello import MAX_SIZE, Hello, HelloError, HelloReader, check_hello
from tests.support.tls import UNHEARD, client_hello, understood

REAL = client_hello("ok.example.com")


def read(data: bytes) -> Hello | None:
    return HelloReader().feed(data)


def vector(data: bytes, *, size: int = 2) -> bytes:
    return len(data).to_bytes(size, "big") + data


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">H", kind) + vector(data)


def sni(*names: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(b"".join(bytes((kind,)) + vector(name) for name in names)))


def message(extensions: bytes, *, version: int = 0x0303) -> bytes:
    suites = vector(bytes.fromhex("130113021303c02bc02fcca9cca8c02cc030"))
    # Without groups and signatures OpenSSL gives up before it looks at the name.
    usual = extension(10, vector(b"\0\x1d\0\x17")) + extension(13, vector(bytes.fromhex("040308040401")))
    body = struct.pack(">H", version) + bytes(32) + vector(b"", size=1) + suites + b"\1\0"
    return b"\1" + vector(body + vector(usual + extensions), size=3)


def records(handshake: bytes, *, piece: int = 1 << 14) -> bytes:
    pieces = [handshake[at : at + piece] for at in range(0, len(handshake), piece)]
    return b"".join(b"\x16\3\1" + vector(each) for each in pieces)


def refusal(data: bytes, host: str = "ok.example.com") -> str | None:
    """Return why a client that says this is refused; it must say it whole."""
    try:
        hello = read(data)
        assert hello is not None
        check_hello(hello, host)
    except HelloError as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    "name", ["ok.example.com", "xn--bcher-kva.example", "a" * 60 + ".example", "localhost"]
)
@pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1")])
def test_the_name_that_openssl_sends_is_read(name, alpn):
    hello = client_hello(name, alpn=alpn)
    assert read(hello) == Hello(server_name=name.encode(), encrypted=False)
    assert understood(hello) == name.encode()
    assert refusal(hello, name) is None


def test_a_client_that_names_nothing_may_only_mean_an_address():
    hello = client_hello(None)
    assert read(hello) == Hello(server_name=None, encrypted=False)
    assert refusal(hello, "192.0.2.1") is None
    assert refusal(hello, "2001:db8::1") is None
    assert "no host" in (refusal(hello) or "")
    # An address in the place of a name is nothing that TLS knows.
    assert refusal(REAL, "192.0.2.1") is not None


@pytest.mark.parametrize(
    "name",
    [
        b"evil.example.com", b"OK.example.com", b"ok.example.com.", b"ok.example.com\0.evil", b"example.com",
        b"a.ok.example.com", b"ok.example.com:443", b" ok.example.com", b"\xff\xfe", b"*.example.com",
    ],
)  # fmt: skip
def test_b9_another_name_than_the_one_asked_for_is_refused(name):
    assert refusal(records(message(sni(b"ok.example.com")))) is None
    assert "another host" in (refusal(records(message(sni(name)))) or "")


@pytest.mark.parametrize("kind", [0xFE0D, 0xFE0A, 0xFFCE])
def test_b9_an_encrypted_hello_is_refused_also_beside_the_right_name(kind):
    assert "ECH" in (refusal(records(message(sni(b"ok.example.com") + extension(kind, b"\0" * 8)))) or "")


@pytest.mark.parametrize(
    "extensions",
    [
        sni(b"ok.example.com") + sni(b"evil.example.com"),
        sni(b"ok.example.com") + sni(b"ok.example.com"),
        sni(b"ok.example.com", b"evil.example.com"),
        sni(b"ok.example.com", kind=1),
        sni(b""),
        sni(),
        extension(0, b""),
        extension(0, vector(b"\0" + vector(b"ok.example.com")) + b"more"),
        extension(0, vector(b"\0" + vector(b"ok.example.com") + b"\0")),
        extension(0, b"\0\x40\0" + vector(b"ok.example.com")),
        sni(b"ok.example.com") + extension(5, b"") + extension(5, b""),
        sni(b"ok.example.com") + b"\0",
        sni(b"ok.example.com") + b"\0\5\0\xff",
    ],
)
def test_b9_names_that_could_be_read_differently_are_refused(extensions):
    assert refusal(records(message(extensions))) is not None


def test_a_hello_in_many_records_and_pieces_is_read():
    whole = message(sni(b"ok.example.com"))
    for piece in (1, 5, 50):
        in_records = records(whole, piece=piece)
        assert refusal(in_records) is None
        reader = HelloReader()
        for at in range(len(in_records) - 1):
            assert reader.feed(in_records[at : at + 1]) is None
        assert reader.feed(in_records[-1:]) == Hello(server_name=b"ok.example.com", encrypted=False)


def test_what_follows_a_hello_in_further_records_is_not_its_business():
    assert refusal(REAL + b"\x14\3\3\0\1\1" + b"\x17\3\3\0\5early") is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-x\r\n",
        b"\x80\x2e\1\0\2\0\x15\0\0\0\x10",  # an SSL 2 hello
        b"\x15\3\1\0\2\1\0",
        b"\x16\2\1\0\1\1",
        b"\x16\3\1\0\0",
        b"\x16\3\1\x40\1" + bytes(0x4001),
        b"\x16\3\1\0\4\2\0\0\0",
        b"\x16\3\1\0\4\1\1\0\0",
        records(message(b"") + b"\1"),
        records(message(b"", version=0x0304)),
        records(message(b"", version=0x0200)),
        REAL[:200] + b"\x17\3\3\0\5early",
    ],
    ids=lambda data: data[:8].hex(),
)
def test_what_is_no_proper_hello_is_refused(data):
    with pytest.raises(HelloError):
        assert read(data + bytes(MAX_SIZE)) is None


def test_b12_a_hello_without_an_end_is_cut():
    reader = HelloReader()
    fed = 0
    try:
        while fed < 2 * MAX_SIZE:
            assert reader.feed(b"\x16\3\1\0\1" + (b"\1\0\x3f\xff"[fed // 6 : fed // 6 + 1] or b"x")) is None
            fed += 6
    except HelloError:
        pass
    assert fed <= MAX_SIZE


def changed(data: st.DataObject) -> bytes:
    """Return a real hello after some changes of single bytes, lengths and pieces."""
    whole = bytearray(data.draw(st.sampled_from([REAL, records(message(sni(b"ok.example.com")))])))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, max(0, len(whole) - 1)))
        match data.draw(st.integers(0, 3)):
            case 0:
                whole[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case 1:
                del whole[at : at + data.draw(st.integers(1, 20))]
            case 2:
                whole[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case _:
                whole[at:at] = whole[at : at + data.draw(st.integers(1, 40))]
    return bytes(whole)


@settings(max_examples=1500, deadline=None)
@given(st.data())
def test_b9_whatever_is_let_through_means_the_same_to_openssl(data):
    hello = changed(data)
    try:
        found = read(hello)
    except HelloError:
        return
    # Another name than ASCII is never the one asked for, and Python's callback is not called for it.
    if found is not None and (found.server_name is None or found.server_name.isascii()):
        assert understood(hello) in {found.server_name, UNHEARD}


NAMES = st.lists(st.sampled_from([b"ok.example.com", b"evil.example.com", b"", b"a\0b"]), max_size=2)
KINDS = st.sampled_from([0, 5, 16, 21, 23, 35, 43, 0xFE0D, 0x0A0A])
EXTENSIONS = st.lists(
    st.one_of(
        st.builds(lambda names, kind: sni(*names, kind=kind), NAMES, st.integers(0, 1)),
        st.builds(extension, KINDS, st.binary(max_size=30)),
        st.binary(max_size=6),
    ),
    max_size=4,
)


@settings(max_examples=1500, deadline=None)
@given(EXTENSIONS)
@example([sni(b"ok.example.com"), sni(b"evil.example.com")])
def test_b9_whatever_extensions_are_let_through_name_the_same_host_to_openssl(extensions):
    hello = records(message(b"".join(extensions)))
    try:
        found = read(hello)
    except HelloError:
        return
    assert found is not None
    assert understood(hello) in {found.server_name, UNHEARD}


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.binary(max_size=2000), max_size=12))
def test_whatever_comes_is_answered_or_refused(pieces):
    reader = HelloReader()
    try:
        for piece in pieces:
            if reader.feed(piece) is not None:
                return
    except HelloError:
        pass


def test_the_oracle_reads_hellos_made_here():
    assert understood(records(message(sni(b"ok.example.com")))) == b"ok.example.com"
    assert understood(records(message(b""))) is None
    assert understood(b"nothing") == UNHEARD
