"""Thin tasks around the project's tools: ``./dev invoke --list``."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from invoke import Context, Exit, task

if TYPE_CHECKING:
    from clsecure.images.fetch import Sources

ROOT = Path(__file__).resolve().parent
PYTHON = f"{sys.executable} -P -m"
sys.path.insert(0, str(ROOT / "packaging"))  # what builds the packages: the module builder


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


@task(iterable=["image"], help={"image": "one of them; all without it", "data": "where the recipes are"})
def lock_images(c: Context, image: list[str], data: str = "") -> None:  # noqa: ARG001
    """Lock images anew: the newest packages that the mirror has, and the images that come of them."""
    from clsecure.images.fetch import cache_directory
    from clsecure.images.recipe import DATA, image_names, load_recipe
    from clsecure.images.reference import machine_architecture
    from clsecure.images.resolve import lock_image

    place = Path(data).resolve() if data else DATA
    for name in image or image_names(place):
        lock, built = lock_image(
            load_recipe(name, place),
            machine_architecture(),
            sources=_sources(cache_directory(os.environ)),
            target=ROOT / "build" / "images" / f"{name}.tar",
            progress=_say,
            data=place,
        )
        _say(f"{name}: {built.outcome.image}, {len(lock.inputs.packages)} packages")


@task(
    iterable=["image"],
    help={"image": "one of them; all without it", "twice": "build each a second time, and compare"},
)
def build_images(c: Context, image: list[str], twice: bool = False) -> None:  # noqa: ARG001, FBT001, FBT002
    """Build images from their locks into build/images; another image than the locked one is an error."""
    import filecmp
    import tempfile

    from clsecure.images.build import build
    from clsecure.images.fetch import cache_directory
    from clsecure.images.lock import read_lock
    from clsecure.images.recipe import image_names, load_recipe
    from clsecure.images.reference import machine_architecture

    sources = _sources(cache_directory(os.environ))
    place = ROOT / "build" / "images"
    for name in image or image_names():
        recipe, lock = load_recipe(name), read_lock(name, machine_architecture())
        built = build(recipe, lock, sources=sources, target=place / f"{name}.tar", progress=_say)
        _say(f"{name}: {built.outcome.image} in {built.archive}")
        if twice:
            with tempfile.TemporaryDirectory(dir=place) as other:
                again = build(
                    recipe, lock, sources=sources, target=Path(other) / f"{name}.tar", progress=_say
                )
                if not filecmp.cmp(built.archive, again.archive, shallow=False):
                    raise Exit(f"{name}: two builds, two archives", code=125)
            _say(f"{name}: built twice, byte for byte the same")


@task(help={"twice": "build it a second time, and compare", "output": "where it goes"})
def build_deb(c: Context, twice: bool = False, output: str = "") -> None:  # noqa: ARG001, FBT001, FBT002
    """Build the Debian package into build/packages."""
    from builder.making import make_deb

    make_deb(_place(output), twice=twice, say=_say)


@task(help={"twice": "build it a second time, and compare", "output": "where it goes"})
def build_rpm(c: Context, twice: bool = False, output: str = "") -> None:  # noqa: ARG001, FBT001, FBT002
    """Build the RPM package into build/packages."""
    from builder.making import make_rpm

    make_rpm(_place(output), twice=twice, say=_say)


@task(help={"twice": "build each a second time, and compare", "output": "where they go"})
def build_packages(c: Context, twice: bool = False, output: str = "") -> None:  # noqa: ARG001, FBT001, FBT002
    """Build both packages into build/packages."""
    from builder.making import make_deb, make_rpm

    make_deb(_place(output), twice=twice, say=_say)
    make_rpm(_place(output), twice=twice, say=_say)


@task(help={"key": "a file with the secret key that signs", "output": "a directory for any static host"})
def build_repo(c: Context, key: str, output: str) -> None:  # noqa: ARG001
    """Write signed repositories for apt and dnf of what is in build/packages."""
    from builder.making import make_repository

    make_repository(Path(key).resolve(), Path(output).resolve(), say=_say)


@task(
    help={
        "key": "a file with the secret key that signs",
        "output": "an empty directory",
        "dry_run": "with a key of its own, and also where this checkout is no release yet",
    }
)
def release(c: Context, output: str, key: str = "", dry_run: bool = False) -> None:  # noqa: ARG001, FBT001, FBT002
    """Build, check and sign everything that is published; docs/release.md says how a release is made."""
    from builder.release import make_release

    if not key and not dry_run:
        raise Exit("--key is needed, or --dry-run", code=125)
    make_release(Path(key).resolve() if key else None, Path(output).resolve(), dry_run=dry_run, say=_say)


def _place(output: str) -> Path:
    return Path(output).resolve() if output else ROOT / "build" / "packages"


def _sources(cache: Path) -> Sources:
    from clsecure.images.fetch import Sources

    return Sources(cache=cache, mirror=os.environ.get("CLSECURE_IMAGE_MIRROR"))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@task
def schema(c: Context) -> None:  # noqa: ARG001  # invoke hands it in
    """Write docs/config.schema.json, the schema of config.toml, anew."""
    import json

    from clsecure.settings.schema import document

    text = json.dumps(document(), indent=2) + "\n"
    (ROOT / "docs" / "config.schema.json").write_text(text)


@task(iterable=["results"], help={"results": "of which runs; build/isolation-matrix.json without it"})
def matrix(c: Context, results: list[str]) -> None:  # noqa: ARG001  # invoke hands it in
    """Write docs/isolation-matrix.md from the results of runs of the tests, put together."""
    import json

    from clsecure.verify.table import ALL_CHECKS
    from tests.support.matrix import Results, merged, rendered

    files = [Path(name) for name in results] or [ROOT / "build" / "isolation-matrix.json"]
    if missing := [str(file) for file in files if not file.exists()]:
        raise Exit(f"there is no {', '.join(missing)}: ./dev test makes it", code=125)
    found = merged(Results.parse(json.loads(file.read_text())) for file in files)
    model = (ROOT / "docs" / "threat-model.md").read_text()
    (ROOT / "docs" / "isolation-matrix.md").write_text(rendered(found, model=model, checks=ALL_CHECKS))
