"""The host's own listeners: the probe is heard by its word, at every address, and nobody else is."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clsecure.verify import ears
from clsecure.verify.ears import ABSTRACT, LOOPBACK, MOST_ADDRESSES, NAMED, Ears, listening, own_addresses
from tests.support.person import CHECKOUT

FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6, "unix": socket.AF_UNIX}
PROGRAM = CHECKOUT / "clsecure" / "privileged" / "inside.py"


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Ears]:
    with listening(tmp_path) as found:
        yield found


def streams(out: Ears) -> list[str]:
    return list(out.places(socket.SOCK_STREAM))


def come(out: Ears, label: str) -> socket.socket:
    """Return somebody who has come to a listener, of either kind."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        if (place := out.places(kind).get(label)) is not None:
            caller = socket.socket(FAMILIES[place[0]], kind)
            caller.connect(place[1])
            return caller
    raise AssertionError(label)


def test_who_says_the_word_is_heard_at_every_listener_and_once(out: Ears) -> None:
    labels = {*streams(out), *out.places(socket.SOCK_DGRAM)}
    assert {LOOPBACK[0], f"{LOOPBACK[0]} by UDP", ABSTRACT, NAMED, *out.addresses} <= labels
    assert out.heard() == frozenset()
    for label in labels:
        with come(out, label) as caller:
            caller.sendall(out.word.encode())
        assert out.heard([label]) == {label}
        assert out.heard() == frozenset()


@pytest.mark.parametrize("says", [b"", b"x", b"GET / HTTP/1.0\r\n\r\n", b"x" * 4096])
def test_whoever_looks_for_open_ports_is_not_heard(out: Ears, says: bytes) -> None:
    for label in (*streams(out), *out.places(socket.SOCK_DGRAM)):
        with come(out, label) as caller:
            caller.send(says)
    assert out.heard() == frozenset()
    for said in (out.word[:-1], out.word[1:]):
        with come(out, LOOPBACK[0]) as caller, come(out, f"{LOOPBACK[0]} by UDP") as other:
            caller.sendall(said.encode())
            other.send(said.encode())
        assert out.heard() == frozenset()


def test_among_many_that_say_nothing_the_one_with_the_word_is_heard_and_none_is_waited_for_long(
    out: Ears,
) -> None:
    with contextlib.ExitStack() as stack:
        for label in streams(out):
            for _ in range(8):
                stack.enter_context(come(out, label))
        stack.enter_context(come(out, NAMED)).sendall(out.word.encode())
        begun = time.monotonic()
        assert out.heard() == {NAMED}
        assert time.monotonic() - begun < 20 * ears._GRACE


def test_those_that_say_nothing_for_long_give_way(out: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ears, "_CALLERS", 3)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(come(out, LOOPBACK[0])) for _ in range(8)]
        stack.enter_context(come(out, LOOPBACK[0])).sendall(out.word.encode())
        assert out.heard([LOOPBACK[0]]) == {LOOPBACK[0]}
        silent[0].settimeout(60)
        assert silent[0].recv(1) == b""


def test_a_word_that_comes_in_pieces_or_later_is_waited_for(
    out: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What connects a sandbox to this machine passes on what is said, by and by."""
    monkeypatch.setattr(ears, "_GRACE", 60.0)
    label = f"{LOOPBACK[0]} by UDP"
    with come(out, LOOPBACK[0]) as caller, come(out, label) as other:
        caller.sendall(out.word[:5].encode())

        def later() -> None:
            caller.sendall(out.word[5:].encode())
            other.send(out.word.encode())

        thread = threading.Timer(0.05, later)
        thread.start()
        assert out.heard([LOOPBACK[0], label]) == {LOOPBACK[0], label}
        thread.join()


def test_every_address_of_the_machines_has_its_listeners_but_loopback_and_links(out: Ears) -> None:
    found = own_addresses()
    assert len(found) == len(set(found)) <= MOST_ADDRESSES
    assert not any(each.startswith(("127.", "fe80:", "::1")) for each in found)
    # Some are there for a moment only; whatever can be bound has both.
    by_tcp = {label for label in out.addresses if not label.endswith(" by UDP")}
    assert {label.removesuffix(" by UDP") for label in out.addresses} == by_tcp


def test_addresses_and_ranges_of_a_machine_are_found_in_the_kernels_tables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = ["127.0.0.0/8", "::1/128", "198.51.100.7/32", "203.0.113.0/24", "2001:db8::7/128", "fe80::1/128",
            "ff00::/8", "nonsense", *(f"10.0.0.{n}/32" for n in range(60))]  # fmt: skip
    monkeypatch.setattr("clsecure.privileged.root.network.host_addresses", lambda: told)
    monkeypatch.setattr(
        ears, "_speaks_from", lambda family, _: "10.0.0.39" if family == socket.AF_INET else None
    )
    found = own_addresses()
    assert found[0] == "10.0.0.39"
    assert found[1:4] == ("198.51.100.7", "203.0.113.1", "2001:db8::7")
    assert len(found) == MOST_ADDRESSES


def test_a_port_scan_in_the_very_moment_is_no_false_alarm(tmp_path: Path) -> None:
    """The real probe and somebody else come to the same listeners; only one of them is it."""
    from clsecure.session.probing import control
    from clsecure.verify.bait import put_out

    with put_out(tmp_path, tmp_path) as bait, contextlib.ExitStack() as stack:
        for label in streams(bait.ears):
            stack.enter_context(come(bait.ears, label))
        outside = control(PROGRAM, bait)
        heard = outside.heard
        assert any("words" in each for each in outside.report.descriptors), "it is given one more"
        assert {LOOPBACK[0], NAMED, ABSTRACT, f"{LOOPBACK[0]} by UDP"} <= heard
        for label in streams(bait.ears):
            stack.enter_context(come(bait.ears, label))
        assert bait.ears.heard() == frozenset()
