"""Totals by host: bounded, told in one message, and found again in the log of a gateway that died."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from clsecure import process
from clsecure.egress import wire
from clsecure.egress.client import Gateway
from clsecure.egress.events import EventLog, Exchange
from clsecure.egress.tally import Tally, totals_of_log
from clsecure.egress.wire import MAX_HOSTS, MAX_MESSAGE, EgressTotals, GatewayConfig, HostTotals
from clsecure.errors import EgressError
from clsecure.process import Command


def host(totals, name: str) -> HostTotals:
    (found,) = [each for each in totals.hosts if each.host == name]
    return found


def test_requests_are_counted_by_host_and_port_most_first():
    tally = Tally()
    tally.add("a.example", 443, denied=True)
    for _ in range(2):
        tally.add("b.example", 443, denied=False, bytes_in=5, bytes_out=7, tokens=3)
    tally.add("b.example", 80, denied=True)
    tally.add("-", 0, denied=True)
    totals = tally.totals()
    assert (totals.requests, totals.denied, totals.bytes_in, totals.bytes_out, totals.tokens) == (
        5,
        3,
        10,
        14,
        6,
    )
    assert totals.hosts == (
        HostTotals(host="b.example", port=443, requests=2, bytes_in=10, bytes_out=14),
        HostTotals(host="a.example", port=443, requests=1, denied=1),
        HostTotals(host="b.example", port=80, requests=1, denied=1),
    )


def test_invented_names_are_bounded_and_hide_nothing_that_was_reached():
    tally = Tally()
    for number in range(5000):
        tally.add(f"n{number}.example", 443, denied=True)
    tally.add("reached.example", 443, denied=False, bytes_out=9)
    totals = tally.totals()
    assert len(totals.hosts) == MAX_HOSTS
    assert host(totals, "reached.example").bytes_out == 9
    assert (totals.requests, totals.denied) == (5001, 5000)


@pytest.mark.parametrize("character", ["x", "\\", '"', "\x1b", "\u202e", "\U0001f600"])
def test_the_totals_of_the_worst_names_fit_one_message(character):
    tally = Tally()
    for number in range(MAX_HOSTS + 50):
        tally.add(f"{number}" + character * 10_000, 65535, denied=True, bytes_in=1 << 60, bytes_out=1 << 60)
    for _ in range(100):
        tally.warn(character * 10_000)
    message = wire.encode_totals(tally.totals())
    assert len(message) < MAX_MESSAGE
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.send(message)
        totals = wire.decode_totals(wire.decode(theirs.recv(MAX_MESSAGE)))
    assert totals == tally.totals()
    assert all(each.host.isascii() and each.host.isprintable() for each in totals.hosts)


def log_of(tmp_path, *, max_size: int = 1 << 20) -> EventLog:
    return EventLog(tmp_path / "log", max_size=max_size, secrets=("SECRET",))


def lines_of(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]


def test_a_full_disk_takes_the_lines_and_not_the_totals_and_the_user_hears_of_it():
    log = EventLog(Path("/dev/full"), max_size=1 << 20, secrets=())
    for _ in range(3):
        log.record(Exchange(host="a.example", port=443, decision="allow", bytes_out=4))
    log.note("budget", what="bytes")
    log.close()
    assert (log.totals.requests, log.totals.bytes_out) == (3, 12)
    (warning,) = log.totals.warnings
    assert warning.startswith("the network log can't be written (No space left on device)")


def test_a_log_tells_the_same_totals_as_its_gateway(tmp_path):
    log = log_of(tmp_path)
    log.record(Exchange(host="a.example", port=443, decision="allow", bytes_in=3, bytes_out=4, tokens=5))
    log.record(Exchange(host="b\x1b\u202eSECRET", port=443))
    tunnel = Exchange(method="CONNECT", host="c.example", port=443, decision="allow")
    log.opened(tunnel)
    tunnel.bytes_in = 100
    log.record(tunnel)
    log.note("budget", what="bytes", text="nearly")
    log.warn("nearly")
    log.close()
    told, found = log.totals, totals_of_log(tmp_path / "log")
    assert told.complete
    assert not found.complete
    assert wire.encode_totals(found).replace(b"false", b"true") == wire.encode_totals(told)
    assert "SECRET" not in (tmp_path / "log").read_text()


def test_a_tunnel_is_seen_when_it_opens_and_counted_once(tmp_path):
    log = log_of(tmp_path)
    tunnel = Exchange(method="CONNECT", host="c.example", port=8443, decision="allow", rule="c.example:8443")
    log.opened(tunnel)
    (opened,) = lines_of(tmp_path)
    assert (opened["event"], opened["host"], opened["port"]) == ("opened", "c.example", 8443)
    assert log.totals.requests == 0
    assert totals_of_log(tmp_path / "log").hosts == (HostTotals(host="c.example", port=8443, requests=1),)
    log.record(tunnel)
    assert log.totals.requests == totals_of_log(tmp_path / "log").requests == 1
    closed = lines_of(tmp_path)[1]
    assert (closed["event"], closed["tunnel"]) == ("request", opened["tunnel"])


def test_only_the_lines_of_this_gateway_are_counted(tmp_path):
    earlier = log_of(tmp_path)
    earlier.record(Exchange(host="old.example", port=443))
    earlier.close()
    start = (tmp_path / "log").stat().st_size
    log_of(tmp_path).record(Exchange(host="new.example", port=443))
    assert [each.host for each in totals_of_log(tmp_path / "log", start=start).hosts] == ["new.example"]


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"\n\n", b"\xff\xfe", b"[1]\n", b'{"event": "request"}\n',
        b'{"event": "opened", "tunnel": []}\n',
        b'{"event": "request", "bytes_in": -5, "host": 7, "port": "x", "tokens": "y"}\n', b"[" * 100_000,
        b'{"event": "budget", "text": ["x"]}\n', b'{"event": "request", "host": "cut of',
    ],
    ids=range(10),
)  # fmt: skip
def test_a_damaged_log_tells_what_it_can(tmp_path, damage):
    log = log_of(tmp_path)
    log.record(Exchange(host="a.example", port=443, bytes_out=3))
    log.close()
    with (tmp_path / "log").open("ab") as file:
        file.write(damage)
    totals = totals_of_log(tmp_path / "log")
    assert host(totals, "a.example").bytes_out == 3
    assert not totals.complete


def test_a_log_that_is_not_there_tells_nothing(tmp_path):
    assert totals_of_log(tmp_path / "none") == wire.EgressTotals(complete=False)


def test_what_the_user_did_is_written_into_a_full_log_too(tmp_path):
    log = log_of(tmp_path, max_size=500)
    for _ in range(20):
        log.record(Exchange(host="a.example", port=443))
    log.note("allowed", host="b.example")
    assert [line["event"] for line in lines_of(tmp_path)][-2:] == ["log_full", "allowed"]
    for _ in range(10_000):
        log.note("allowed", host="b" * 200)
    assert (tmp_path / "log").stat().st_size < 300_000


def test_the_last_words_of_a_gateway_that_ended_with_orders_unread_are_heard():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = process.spawn(Command(argv=("/bin/true",), cwd=Path("/")))
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    class Late(socket.socket):
        def recv(self, size: int, flags: int = 0) -> bytes:
            assert ended.wait(20)
            return super().recv(size, flags)

    def fail() -> None:
        with theirs:
            theirs.recv(1, socket.MSG_PEEK)
            theirs.send(wire.encode_error(EgressError("why")))
        ended.set()

    threading.Thread(target=fail).start()
    ours = Late(fileno=ours.detach())
    with (
        Gateway(child, ours, token="t", config=GatewayConfig(provider=None, credential=None)) as gateway,
        pytest.raises(EgressError, match="why"),
    ):
        gateway.serve(listener)


NOTHING = {"requests": 0, "denied": 0, "bytes_in": 0, "bytes_out": 0, "tokens": None, "complete": True}


@pytest.mark.parametrize(
    "told",
    [
        {"type": "totals"},
        {"type": "totals", **NOTHING, "hosts": [{"host": 5}], "warnings": []},
        {"type": "totals", **NOTHING, "hosts": [], "warnings": [["a"]]},
        {"type": "totals", **NOTHING, "hosts": 7, "warnings": []},
        {"type": "totals", **NOTHING, "hosts": [], "warnings": [], "requests": "\x1b[31m"},
        {"type": "error"},
        {"type": "error", "brief": ["a"], "details": 1},
        [[]],
    ],
)
def test_a_gateway_that_talks_nonsense_at_the_end_is_one_that_died(told):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = process.spawn(Command(argv=("/bin/cat",), cwd=Path("/")), stdin=theirs.fileno())
    config = GatewayConfig(provider=None, credential=None)
    with theirs, Gateway(child, ours, token="t", config=config) as gateway:
        theirs.send(json.dumps(told).encode())
        assert gateway.close() == EgressTotals(complete=False)
    assert child.poll() is not None
