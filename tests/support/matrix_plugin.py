"""A plugin of pytest: what a run of the tests says of the isolation, into ``build/`` (:mod:`.matrix`).

Marks are put on the tests where they run; with xdist all reports come to the one process that writes.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.support.matrix import MODES, Broken, Looked, Results, Tried, rendered, threats_of
from tests.support.person import CHECKOUT, SYSTEM_PATH

NAME = "isolation-matrix"
_KEY = "isolation"
_COLLECTOR = "isolation-matrix-collector"
_NUMBER = re.compile(r"\d+(\.\d+)+\S*(?<![,;])")
_PLAIN = ("conmon", "crun", "firejail", "git", "pasta", "podman", "runsc", "slirp4netns", "sudo")
_PROGRAMS = {name: name for name in _PLAIN} | {
    "aardvark-dns": "/usr/lib/podman/aardvark-dns",
    "docker": "dockerd",
    "netavark": "/usr/lib/podman/netavark",
    "nftables": "nft",
}
_ITS_OWN = {"contained", "podman_image", "docker_host", "worker_image"}
"""Fixtures of tests that are of container mode only."""


def pytest_configure(config: pytest.Config) -> None:
    """Begin to collect, in the process that hears of all tests."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Collector(), _COLLECTOR)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have each test's report say which threats it is about, and in which mode.

    First, before some are left out: those are named as well.
    """
    known = {}
    for item in items:
        if found := threats_of(item.name):
            about = {"threats": list(found), "mode": _mode(item)}
            item.user_properties.append((_KEY, about))
            known[_plain(item.nodeid)] = about
    if hasattr(config, "workerinput"):
        config.workeroutput[_KEY] = known
    else:
        config.pluginmanager.get_plugin(_COLLECTOR).known |= known


def _mode(item: pytest.Item) -> str | None:
    if group := item.get_closest_marker("xdist_group"):
        name = str(group.args[0]).removeprefix("hostile-")
        if name in MODES:
            return name
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if parameters.get("mode") in MODES:
        return str(parameters["mode"])
    return "container" if _ITS_OWN & set(getattr(item, "fixturenames", ())) else None


class _Collector:
    """Takes in reports, and writes what they come to at the end."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self.tried: dict[str, Tried] = {}
        self.looked: list[Looked] = []
        self.broken: list[Broken] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == _KEY:
                self._take_in(report, value)
            elif name == "checks" and report.when == "call":
                # Said by the control of a mode: nobody broke anything.
                self.looked += [Looked(**each) for each in value]
            elif name == "sabotage" and report.when == "call" and not report.skipped:
                self.broken.append(Broken(**value, noticed=report.passed))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:  # xdist has no types
        self.known |= getattr(node, "workeroutput", {}).get(_KEY, {})

    def _take_in(self, report: pytest.TestReport, value: dict[str, Any]) -> None:
        test = _plain(report.nodeid)
        known = self.tried.get(test)
        if known is not None and (known.outcome == "failed" or report.passed):
            return
        why = _reason(report) if report.skipped else ""
        self.tried[test] = _tried(test, value, report.outcome, why)

    def pytest_sessionfinish(self) -> None:
        place = os.environ.get("CLSECURE_TEST_MATRIX")
        if place and (self.looked or any(test.mode for test in self.tried.values())):
            left_out = {
                test: _tried(test, about, "skipped", "left out of this run")
                for test, about in self.known.items()
            }
            results = Results(
                versions=versions(),
                tried=tuple((left_out | self.tried).values()),
                looked=tuple(self.looked),
                broken=tuple(self.broken),
            )
            write(results, Path(place))


def _plain(test: str) -> str:
    """Return a test's id without the group that xdist adds."""
    name, mark, group = test.rpartition("@")
    return name if mark and not set("]/:") & set(group) else test


def _tried(test: str, about: dict[str, Any], outcome: str, why: str) -> Tried:
    return Tried(test=test, threats=tuple(about["threats"]), mode=about["mode"], outcome=outcome, why=why)


def _reason(report: pytest.TestReport) -> str:
    words = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
    return words.removeprefix("Skipped: ")


def write(results: Results, place: Path) -> None:
    """Write the results and the document into a directory, as files of who owns the directory above."""
    from clsecure.verify.table import ALL_CHECKS

    place.mkdir(parents=True, exist_ok=True)
    owner = place.parent.stat()
    model = (CHECKOUT / "docs" / "threat-model.md").read_text()
    texts = {
        "json": json.dumps(results.document(), indent=1, sort_keys=True) + "\n",
        "md": rendered(results, model=model, checks=ALL_CHECKS),
    }
    for suffix, text in texts.items():
        path = place / f"{NAME}.{suffix}"
        path.unlink(missing_ok=True)
        path.write_text(text)
        os.chown(path, owner.st_uid, owner.st_gid)


def versions() -> dict[str, str]:
    """Return what takes part in the isolation on this machine, each with its version."""
    from clsecure import __version__

    found = {
        "clsecure": __version__,
        "distribution": platform.freedesktop_os_release().get("PRETTY_NAME", "?"),
        "kernel": f"{platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "testinfra": metadata.version("pytest-testinfra"),
    }
    agent = os.environ.get("CLSECURE_TEST_CLAUDE")
    for name, program in {**_PROGRAMS, **({"claude": agent} if agent else {})}.items():
        if path := shutil.which(program, path=SYSTEM_PATH):
            done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
            # The first line: the licence's number comes after it.
            number = _NUMBER.search(done.stdout.partition("\n")[0])
            found[name] = number[0] if number else "?"
    return found
