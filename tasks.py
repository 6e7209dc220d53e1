"""Thin tasks around the project's tools: ``./dev invoke --list``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from invoke import Context, Exit, task

ROOT = Path(__file__).resolve().parent
PYTHON = f"{sys.executable} -P -m"


@task
def lint(c: Context) -> None:
    """Check the style, the format and the direction of imports."""
    with c.cd(ROOT):
        c.run(f"{PYTHON} ruff check .")
        c.run(f"{PYTHON} ruff format --check .")
        c.run(f"{Path(sys.executable).with_name('lint-imports')} --no-cache")


@task
def typecheck(c: Context) -> None:
    """Check the types."""
    with c.cd(ROOT):
        c.run(f"{PYTHON} mypy")


@task(name="format")
def format_(c: Context) -> None:
    """Format everything."""
    with c.cd(ROOT):
        c.run(f"{PYTHON} ruff format .")
        c.run(f"{PYTHON} ruff check --fix .")


@task(help={"args": "arguments for pytest"})
def test(c: Context, args: str = "") -> None:
    """Run the tests that need no root; ./dev test runs them all."""
    with c.cd(ROOT):
        c.run(f"{PYTHON} pytest -m 'not root' -n auto {args}", pty=sys.stdout.isatty())


@task(help={"args": "arguments for the benchmark"})
def bench(c: Context, args: str = "") -> None:
    """Measure the phases of a session against the floors of this machine."""
    with c.cd(ROOT):
        c.run(f"{PYTHON} benchmarks {args}", pty=sys.stdout.isatty())


@task
def shell(c: Context) -> None:
    """Make the shells' completions and the manual page from the parser."""
    with c.cd(ROOT):
        c.run(f"{PYTHON} pip install --quiet --target build/manual argparse-manpage==4.8")
        c.run(f"{PYTHON} clsecure.cli.generate", env={"PYTHONPATH": f"{ROOT / 'build/manual'}"})


@task
def lock(c: Context) -> None:
    """Write both lock files anew: the newest versions that pyproject.toml allows, with their hashes."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin") or shutil.which(
        "uv"
    )
    if uv is None:
        raise Exit("uv is not installed: pip install uv", code=125)
    compiled = (
        f"{uv} pip compile pyproject.toml --upgrade --universal --generate-hashes --python-version 3.11 "
        "--no-header --no-annotate --quiet"
    )
    with c.cd(ROOT):
        c.run(f"{compiled} --output-file requirements.lock")
        c.run(f"{compiled} --group dev --output-file requirements-dev.lock")


@task
def schema(c: Context) -> None:  # noqa: ARG001  # invoke hands it in
    """Write docs/config.schema.json, the schema of config.toml, anew."""
    import json

    from clsecure.settings.schema import document

    text = json.dumps(document(), indent=2) + "\n"
    (ROOT / "docs" / "config.schema.json").write_text(text)
