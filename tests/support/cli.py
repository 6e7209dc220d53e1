"""Runs the checkout's command line as a plain process, with an environment of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
START = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from clsecure.__main__ import main; sys.exit(main())"


def plain_user() -> dict[str, object]:
    """Arguments for subprocess: who runs it. Root becomes nobody; anybody else stays who they are."""
    if os.geteuid() != 0:
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


def give_away(*paths: Path) -> None:
    """Hand files to the one that :func:`plain_user` names."""
    for path in paths:
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def run_cli(
    *args: str,
    env: Mapping[str, str] | None = None,
    as_root: bool = False,
    isolated: bool = True,
    cwd: Path | str = "/",
    **kwargs: object,
) -> subprocess.CompletedProcess[bytes]:
    """Run ``clsecure ARGS`` and return what it did."""
    argv = [
        sys.executable,
        *(["-I"] if isolated else []),
        "-X",
        "pycache_prefix=/nonexistent",
        "-c",
        START,
        *args,
    ]
    environ = {"HOME": "/nonexistent", "PATH": "/usr/bin:/bin", **(env or {})}
    options: dict[str, object] = {"capture_output": True, "timeout": 60, "stdin": subprocess.DEVNULL}
    options |= {} if as_root else plain_user()
    options |= kwargs
    if "stdout" in kwargs or "stderr" in kwargs:
        del options["capture_output"]
    return subprocess.run(argv, env=environ, cwd=cwd, **options)  # type: ignore[call-overload,no-any-return]
