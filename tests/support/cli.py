"""Runs the checkout's command line as a plain process, with an environment of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


@contextmanager
def home_and_repository() -> Iterator[Path]:
    """Make a directory with ``home`` and ``repo``, a repository of one commit, that the plain user owns."""
    with tempfile.TemporaryDirectory(prefix="clsecure-cli-") as name:
        place = Path(name)
        (place / "home/.config/clsecure").mkdir(parents=True)
        (place / "repo/.clsecure").mkdir(parents=True)
        give_away(place, *place.rglob("*"))
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(place / "repo")]
        for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
            argv, env = [*git, *words], {"HOME": "/nonexistent", "PATH": "/usr/bin:/bin"}
            subprocess.run(argv, check=True, env=env, **plain_user())  # type: ignore[call-overload]
        yield place


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
        # Nothing is left in the checkout; what lies there already is not compiled once more.
        "-B",
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
