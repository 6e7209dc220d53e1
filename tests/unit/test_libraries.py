"""Libraries that are imported in the background are whole for who needs them."""

from __future__ import annotations

import subprocess
import sys

from tests.support.cli import ROOT

PROGRAM = """
import sys
from clsecure import libraries
for name in ("podman", "docker", "no_such_library_of_ours"):
    libraries.begin(name)
libraries.ready()
assert sys.modules["podman"].PodmanClient and sys.modules["docker"].DockerClient
assert sys.modules["requests"].exceptions.RequestException
libraries.ready()
"""


def test_what_was_begun_is_whole_and_what_is_not_there_fails_nothing() -> None:
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stderr) == (0, "")
