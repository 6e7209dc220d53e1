"""The benchmark runs and says what it is meant to say; how long anything takes is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import cases, containers, network
from tests.support.person import CHECKOUT

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("setup")]


def test_the_benchmark_measures_every_case(tmp_path):
    result = tmp_path / "result.json"
    argv = [sys.executable, "-P", "-m", "benchmarks", "--runs=1", "--files=50", f"--json={result}"]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    document = json.loads(result.read_text())
    measured = {each["name"]: each for each in document["results"]}
    sessions = [cases.existing(mode, end) for mode in cases.MODES for end in ("keep", "import")]
    sessions += [name(mode) for mode in cases.MODES for name in (cases.new, cases.many)]
    boxed = [containers.session(engine, end) for engine in containers.FLOORS for end in ("keep", "import")]
    beside = [*containers.FLOORS.values(), containers.OWN_ENGINE, containers.WITHOUT]
    floors = [cases.PYTHON, cases.SUDO, cases.FIREJAIL, cases.CLONE_SMALL, cases.CLONE]
    direct = [*network.QUICK, *network.BULK]
    through = [name + network.THROUGH for name in direct]
    assert sorted(measured) == sorted([*floors, *cases.QUICK, *sessions, *boxed, *beside, *direct, *through])
    assert all(each["median_s"] > 0 for each in measured.values())
    assert all(measured[name]["phases_s"]["clone_in"] > 0 for name in (*sessions, *boxed))
    assert all(name in done.stdout for name in measured)
    assert all(measured[name]["gbit_s"] > 0 for name in through if name.startswith(network.BULK))
    of_the_gateway = len(network.FIRSTS) + 1 + len(network.TUNNELS)
    of_sessions = 4 * len(cases.MODES) + len(containers.FLOORS)
    of_the_checks = 2 * 2  # before and after the agent, in seconds and to firejail
    assert len(document["goals"]) == len(cases.QUICK) + of_sessions + of_the_gateway + of_the_checks
