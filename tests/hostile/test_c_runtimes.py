"""C7: what starts containers here has known holes, and doctor says so."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.person import clsecure_command

pytestmark = pytest.mark.root


def test_c7_a_runtime_with_known_holes_is_told_by_doctor(tmp_path: Path) -> None:
    """In mounts of its own crun is one of an old version, and no package says that it mended it."""
    crun = Path("/usr/bin/crun")
    if not crun.exists():
        pytest.skip("crun is not installed: apt-get install crun")
    old = tmp_path / "crun"
    old.write_text("#!/bin/sh\necho 'crun version 1.19.1'\n")
    old.chmod(0o755)
    empty = tmp_path / "empty"
    empty.mkdir()
    tmp_path.chmod(0o755)
    script = (
        'mount --bind "$1" /usr/bin/crun || exit 9; '
        'test ! -d /usr/share/doc/crun || mount --bind "$2" /usr/share/doc/crun; shift 2; exec "$@"'
    )
    doctor = [*clsecure_command(), "doctor", "--output", "json"]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", old, empty, *doctor],
        capture_output=True,
        timeout=120,
    )
    told = {probe["name"]: probe for probe in json.loads(done.stdout)["probes"]}
    assert told["crun"]["status"] == "warning", done.stderr
    for cve in ("CVE-2025-24965", "CVE-2026-30892", "CVE-2026-47766"):
        assert cve in told["crun"]["observed"]
    assert "CVE-2022-27650" not in told["crun"]["observed"]
