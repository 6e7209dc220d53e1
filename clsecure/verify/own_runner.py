"""Runs the user's own checks with pytest, connected to the probe of a sandbox. A program of its own.

``python3 -I -B -m clsecure.verify.own_runner ORDERS REPLIES``: two descriptors of a probe. Standard input is
one JSON object, ``files`` and ``session``; standard output gets a JSON object a line, one for each test, and
``{"end": true}``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from clsecure.verify.probe import Probe
from clsecure.verify.testinfra_backend import host_over

_FIRST = 1_000_000
"""Number of the first order: the session has given others before."""
_SHOWN = 500
_OPTIONS = (
    # Nothing that lies about here or above the files configures anything.
    *("-c", "/dev/null", "--rootdir", "/", "--noconftest", "--import-mode", "importlib"),
    # A broken file is a failure of its own; the others are still run.
    *("--continue-on-collection-errors", "-p", "no:cacheprovider", "-q"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a test learns of the session, by the fixture ``session``.

    :param mode: user, namespace or container.
    :param network: none, api, allowlist or full.
    :param name: of the session.
    :param account: who the agent is.
    :param home: where it lives.
    """

    mode: str
    network: str
    name: str
    account: str
    home: str


class Fixtures:
    """The plugin: what tests ask for, and what became of them."""

    def __init__(self, probe: Probe, session: Session, tell: Callable[[dict[str, object]], None]) -> None:
        self._probe = probe
        self._session = session
        self._tell = tell
        self._last: dict[str, tuple[str, str]] = {}

    @pytest.fixture(scope="session")
    def host(self) -> Host:
        """Testinfra's host: the inside of the sandbox."""
        return host_over(self._probe)

    @pytest.fixture(scope="session", name="session")
    def facts(self) -> Session:
        """What the session is."""
        return self._session

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Tell of a file that can't be read."""
        if report.failed:
            self._tell({"file": _file(report.nodeid), "outcome": "failed", "said": _words(report, last=True)})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tell how a test ended: as badly as the worst of its setup, itself and its teardown."""
        outcome, said = self._last.get(report.nodeid, ("passed", ""))
        if outcome == "passed" and report.outcome != "passed":
            outcome, said = report.outcome, _words(report)
        self._last[report.nodeid] = (outcome, said)
        if report.when == "teardown":
            name = _cut(report.nodeid.partition("::")[2])
            self._tell({"file": _file(report.nodeid), "test": name, "outcome": outcome, "said": said})


def _file(nodeid: str) -> str:
    return Path(nodeid.partition("::")[0]).name


def _words(report: pytest.CollectReport | pytest.TestReport, *, last: bool = False) -> str:
    """Return what went wrong: an assertion's first words, the reason of a skip, the end of anything else."""
    found = report.longrepr
    if isinstance(found, tuple):
        return _cut(str(found[2]))
    crash = getattr(found, "reprcrash", None)
    return _cut(str(crash.message)) if crash is not None and not last else _cut(str(found)[-_SHOWN:])


def _cut(text: str) -> str:
    """Cut what would make a line that nobody reads to its end."""
    text = text[:_SHOWN]
    while len(json.dumps(text)) > 2 * _SHOWN:
        text = text[: len(text) // 2]
    return text


def main() -> None:
    """Run them all."""
    orders, replies = map(int, sys.argv[1:3])
    given: dict[str, Any] = json.load(sys.stdin)
    results = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)

    def tell(result: dict[str, object]) -> None:
        os.write(results, json.dumps(result).encode() + b"\n")

    fixtures = Fixtures(Probe(orders, replies, first=_FIRST), Session(**given["session"]), tell)
    pytest.main([*_OPTIONS, *given["files"]], plugins=[fixtures])
    tell({"end": True})


if __name__ == "__main__":
    main()
