"""What a tunnel does with its buffers, where the transports are the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from clsecure.egress.tunnel import Buffers, Expected, Tunnel, TunnelLimits

LIMITS = TunnelLimits(hello=60.0, idle=60.0)


class Keeping(asyncio.Transport):
    """Keeps what it can't send as it is, without a copy, as newer Pythons do."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.BufferedProtocol | None = None
        self.pending: list[bytes | memoryview] = []
        self.sent = b""
        self.stuck = False
        self.reading = True

    def receive(self, data: bytes) -> None:
        assert self.reading
        buffer = self.protocol.get_buffer(-1)
        buffer[: len(data)] = data
        self.protocol.buffer_updated(len(data))

    def unstick(self) -> None:
        self.stuck = False
        self.sent += b"".join(bytes(piece) for piece in self.pending)
        self.pending = []
        self.protocol.resume_writing()

    def write(self, data: bytes | memoryview) -> None:
        if self.stuck:
            self.pending.append(data)
            self.protocol.pause_writing()
        else:
            self.sent += bytes(data)

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.pending))

    def set_write_buffer_limits(self, high=None, low=None) -> None:
        assert (high, low) == (0, 0)

    def set_protocol(self, protocol) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def abort(self) -> None:
        pass


def with_tunnels(count: int, play: Callable[[list[tuple[Keeping, Keeping]]], None]) -> None:
    """Play with the two ends of tunnels that share their buffers."""

    async def run() -> None:
        buffers, ends, tasks = Buffers(), [], []
        for _ in range(count):
            client, upstream = Keeping(), Keeping()
            tunnel = Tunnel(
                client,
                upstream,
                expected=Expected(host="ok.example", port=22),
                limits=LIMITS,
                buffers=buffers,
                outgoing=lambda _: None,
                incoming=lambda _: None,
            )
            nothing = (b"", False)
            tasks.append(asyncio.create_task(tunnel.run(from_client=nothing, from_upstream=nothing)))
            ends.append((client, upstream))
        await asyncio.sleep(0)
        try:
            play(ends)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


def test_what_waits_to_be_sent_is_not_overwritten_by_another_tunnel():
    def play(ends: list[tuple[Keeping, Keeping]]) -> None:
        (client, stuck), (other_client, other) = ends
        for each in (client, other_client):
            each.receive(b"SSH-2.0-client\r\n")
        stuck.stuck = True
        client.receive(b"mine")
        assert not client.reading
        for _ in range(3):
            other_client.receive(b"YOURS")
        stuck.unstick()
        assert client.reading
        client.receive(b" too")
        assert stuck.sent == b"SSH-2.0-client\r\nmine too"
        assert other.sent == b"SSH-2.0-client\r\nYOURSYOURSYOURS"

    with_tunnels(2, play)


def test_a_side_that_takes_nothing_stops_only_the_side_that_speaks_to_it():
    def play(ends: list[tuple[Keeping, Keeping]]) -> None:
        client, upstream = ends[0]
        client.receive(b"SSH-2.0-client\r\n")
        upstream.stuck = True
        client.receive(b"x")
        assert not client.reading
        upstream.receive(b"the other way")
        assert client.sent == b"the other way"
        # What is ended is not read from again.
        client.protocol.eof_received()
        upstream.unstick()
        assert not client.reading
        assert upstream.sent == b"SSH-2.0-client\r\nx"

    with_tunnels(1, play)
