"""What went through a gateway, added up; also from the log of one that died before it could say so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsecure.egress.wire import MAX_HOSTS, EgressTotals, HostTotals

MAX_HOST = 253
_MAX_WARNINGS = 20
_MAX_WARNING = 300
_MAX_COUNT = 1 << 62
_MAX_LINE = 64 << 10
_MAX_LOG = 256 << 20


@dataclass(slots=True, kw_only=True)
class _Counts:
    requests: int = 0
    denied: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def add(self, *, denied: bool, bytes_in: int, bytes_out: int) -> None:
        self.requests += 1
        self.denied += denied
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out


class Tally:
    """Adds up requests in bounded memory, however many targets an agent thinks of."""

    def __init__(self) -> None:
        self._all = _Counts()
        self._tokens: int | None = None
        self._hosts: dict[tuple[str, int], _Counts] = {}
        self._warnings: list[str] = []

    def add(
        self,
        host: str,
        port: int,
        *,
        denied: bool,
        bytes_in: int = 0,
        bytes_out: int = 0,
        tokens: int | None = None,
    ) -> None:
        """Count one request.

        :param host: what a request named; ``-`` where it named nothing.
        """
        self._all.add(denied=denied, bytes_in=bytes_in, bytes_out=bytes_out)
        if tokens is not None:
            self._tokens = (self._tokens or 0) + tokens
        counts = None if host == "-" else self._counts_of((printable(host), port), denied=denied)
        if counts is not None:
            counts.add(denied=denied, bytes_in=bytes_in, bytes_out=bytes_out)

    def warn(self, text: str) -> None:
        """Keep a sentence for the user."""
        if len(self._warnings) < _MAX_WARNINGS:
            self._warnings.append(printable(text, most=_MAX_WARNING))

    def totals(self, *, complete: bool = True) -> EgressTotals:
        """Return the sums."""
        hosts = [
            HostTotals(
                host=host,
                port=port,
                requests=counts.requests,
                denied=counts.denied,
                bytes_in=counts.bytes_in,
                bytes_out=counts.bytes_out,
            )
            for (host, port), counts in self._hosts.items()
        ]
        return EgressTotals(
            requests=self._all.requests,
            denied=self._all.denied,
            bytes_in=self._all.bytes_in,
            bytes_out=self._all.bytes_out,
            tokens=self._tokens,
            hosts=tuple(sorted(hosts, key=lambda each: -each.requests)),
            warnings=tuple(self._warnings),
            complete=complete,
        )

    def _counts_of(self, target: tuple[str, int], *, denied: bool) -> _Counts | None:
        known = self._hosts.get(target)
        if known is None and (len(self._hosts) < MAX_HOSTS or self._make_room(denied=denied)):
            known = self._hosts[target] = _Counts()
        return known

    def _make_room(self, *, denied: bool) -> bool:
        """Let go of a target that only was denied: invented names must not hide where something went."""
        if denied:
            return False
        for target, counts in self._hosts.items():
            if counts.denied == counts.requests:
                del self._hosts[target]
                return True
        return False


def printable(text: str, *, most: int = MAX_HOST) -> str:
    """Return printable ASCII of bounded length: whatever else is in a text becomes an escape, once."""
    text = text[:most]
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        each if each.isascii() and each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )[:most]


def totals_of_log(path: Path, *, start: int = 0) -> EgressTotals:
    """Return what a log says that went through, as far as it says so.

    :param start: size of the log when the gateway that wrote it began.
    """
    tally, tunnels = Tally(), dict[int, Mapping[str, Any]]()
    try:
        for line in _lines(path, start):
            _count(line, tally, tunnels)
    except OSError:
        # A log that can't be read says nothing; the totals say that they are not complete.
        pass
    for line in tunnels.values():
        # Its end was never written: it was there, and how much went through it is not known.
        tally.add(_text(line, "host"), _number(line, "port"), denied=False)
    return tally.totals(complete=False)


def _lines(path: Path, start: int) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as file:
        file.seek(start)
        while file.tell() - start < _MAX_LOG and (raw := file.readline(_MAX_LINE)):
            try:
                line = json.loads(raw)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict):
                yield line


def _count(line: Mapping[str, Any], tally: Tally, tunnels: dict[int, Mapping[str, Any]]) -> None:
    match line.get("event"):
        case "opened":
            tunnels[_number(line, "tunnel")] = line
        case "request":
            tunnels.pop(_number(line, "tunnel"), None)
            tally.add(
                _text(line, "host"),
                _number(line, "port"),
                denied=line.get("decision") == "deny",
                bytes_in=_number(line, "bytes_in"),
                bytes_out=_number(line, "bytes_out"),
                tokens=None if line.get("tokens") is None else _number(line, "tokens"),
            )
        case "budget":
            tally.warn(_text(line, "text"))
        case _:
            pass


def _number(line: Mapping[str, Any], name: str) -> int:
    value = line.get(name)
    return value if isinstance(value, int) and 0 <= value < _MAX_COUNT else 0


def _text(line: Mapping[str, Any], name: str) -> str:
    value = line.get(name)
    return value if isinstance(value, str) else "-"
