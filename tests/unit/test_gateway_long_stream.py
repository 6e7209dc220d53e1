"""A reply of ten minutes, simulated fast: as many events as such a one has, in pieces of every size.

Nothing in the gateway may bound a reply as a whole (its limits are for the time between two pieces), hold a
piece back until there is more, or lose, repeat or reorder a byte.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import h11

from clsecure.egress.wire import Limits
from tests.support.gateways import TIMEOUT, running_gateway

EVENTS = 30_000
"""50 in a second, for ten minutes."""
LIMIT = 2.0
"""Seconds between two pieces, and of everything else that the gateway takes time for."""
PAUSES, PAUSE = 8, 0.6
"""Together more than twice as long as the gateway would wait for anything, each well below it."""
ACKNOWLEDGED = 400
LARGE = (4095, 4096, 4097, 65_535, 65_537, 150_000)
INPUT, OUTPUT = 12_345, 30_000


def events() -> Iterator[bytes]:
    """Return the events of one reply, the only pings of which are where the API has them: now and then."""
    usage = {"input_tokens": INPUT, "output_tokens": 1}
    yield event("message_start", message={"id": "msg_1", "role": "assistant", "content": [], "usage": usage})
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for number in range(EVENTS):
        # Sizes from one letter to some lines, with what JSON and UTF-8 make longer.
        words = f'{number} \u00e9\u20ac"\\\n' * (number % 7 + 1) + "x" * (number * 31 % 97)
        yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": words})
        if number % 750 == 0:
            yield event("ping")
    yield event("content_block_stop", index=0)
    yield event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": OUTPUT})
    yield event("message_stop")


def event(kind: str, **fields: object) -> bytes:
    document = json.dumps({"type": kind, **fields}, ensure_ascii=kind == "ping")
    return f"event: {kind}\ndata: {document}\n\n".encode()


def pieces(whole: bytes) -> Iterator[bytes]:
    """Cut a reply into pieces from one byte to more than any buffer on the way, without regard to events."""
    sizes = random.Random(10)  # the same in every run
    at = 0
    while at < len(whole):
        # Mostly what a provider writes at once: less than an event, one, or a few.
        size = sizes.choice((1, 2, 3, 7, 60, 150, 400, 900, 1448) if sizes.random() < 0.99 else LARGE)
        yield whole[at : at + size]
        at += size


class Progress:
    """What the reader has, for the provider to wait for: a way between them beside the gateway."""

    def __init__(self) -> None:
        self.received = 0
        self._changed = threading.Condition()

    def got(self, count: int) -> None:
        with self._changed:
            self.received += count
            self._changed.notify_all()

    def wait_for(self, count: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.received >= count, TIMEOUT)


class ScriptedProvider:
    """Sends a reply in pieces. Before some it waits until the reader has all that was sent before."""

    def __init__(self, cut: list[bytes], progress: Progress) -> None:
        self._cut, self._progress = cut, progress
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.acknowledged = 0
        self.held_back: int | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._thread.join(TIMEOUT)
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, suppress(ConnectionError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65536)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            self._send(connection)

    def _send(self, connection: socket.socket) -> None:
        stops = max(1, len(self._cut) // ACKNOWLEDGED)
        pauses = {len(self._cut) * number // PAUSES for number in range(PAUSES)}
        sent = 0
        for number, piece in enumerate(self._cut):
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            sent += len(piece)
            # A piece that could be the beginning of the key waits for the next one, and nothing else does.
            if number % stops == 0 and not piece.endswith((b"s", b"sk", b"sk-")):
                if not self._progress.wait_for(sent):
                    self.held_back = sent - self._progress.received
                    return
                self.acknowledged += 1
            if number in pauses:
                time.sleep(PAUSE)  # not a wait for anything: the provider thinks
        connection.sendall(b"0\r\n\r\n")


def test_a_reply_of_ten_minutes_arrives_whole_and_at_once(tmp_path):
    whole = b"".join(events())
    cut = list(pieces(whole))
    progress = Progress()
    provider = ScriptedProvider(cut, progress)
    limits = Limits(header_time=LIMIT, body_time=LIMIT, idle_time=LIMIT, reply_time=LIMIT, connect_time=LIMIT)
    received, began = hashlib.sha256(), time.monotonic()
    with running_gateway(f"http://127.0.0.1:{provider.port}", tmp_path, limits=limits) as gateway:
        with gateway.connect() as client:
            client.sendall(gateway.post({"model": "m", "max_tokens": 1, "stream": True, "messages": []}))
            for data in reply(client):
                received.update(data)
                progress.got(len(data))
        took = time.monotonic() - began
        provider.close()
        totals = gateway.gateway.close()
    assert provider.held_back is None
    assert progress.received == len(whole)
    assert received.digest() == hashlib.sha256(whole).digest()
    assert provider.acknowledged > ACKNOWLEDGED / 2
    assert took > 2 * LIMIT
    assert totals.bytes_in == len(whole)
    assert totals.tokens == INPUT + OUTPUT
    assert totals.complete


def reply(client: socket.socket) -> Iterator[bytes]:
    """Return the pieces of a reply's body as they arrive, and come to its end only where it has one."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    http.send(h11.EndOfMessage())
    for turn in itertools.count():
        while (step := http.next_event()) is not h11.NEED_DATA:
            if isinstance(step, h11.EndOfMessage):
                return
            if isinstance(step, h11.Data):
                yield bytes(step.data)
        # Awkward to the gateway, too: now little is taken, now much.
        http.receive_data(client.recv((1, 100, 4096, 65536)[turn % 4]))
