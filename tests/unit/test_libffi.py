"""Newer libffi keeps a file of its own open: it is no descriptor that came with a sandbox."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.person import CHECKOUT

_PROGRAM = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("piece", sys.argv[1])
piece = importlib.util.module_from_spec(spec)
spec.loader.exec_module(piece)
library, other = (os.open(path, os.O_RDONLY) for path in sys.argv[2:])
"""


def run(piece, rest, *files):
    path = CHECKOUT / "clsecure/privileged" / piece
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", _PROGRAM + rest, path, *files],
        check=True, capture_output=True, text=True, timeout=30,
    ).stdout.split("\n")  # fmt: skip


@pytest.fixture
def files(tmp_path):
    paths = tmp_path / "libffi.so.8.5.0", tmp_path / "another"
    for path in paths:
        path.touch()
    return paths


_LEFT = """
piece.close_libffi()
for name in os.listdir("/proc/self/fd"):
    if os.path.exists(f"/proc/self/fd/{name}"):
        print(os.readlink(f"/proc/self/fd/{name}"))
"""


def test_the_launcher_closes_it_and_nothing_else(files):
    left = run("launcher.py", _LEFT, *files)
    assert str(files[0]) not in left
    assert str(files[1]) in left


def test_the_probe_does_not_take_it_for_an_inherited_one(files):
    found = run(
        "inside.py", "print(*(each.split(' -> ')[1] for each in piece.inherited()), sep='\\n')", *files
    )
    assert str(files[0]) not in found
    assert str(files[1]) in found
