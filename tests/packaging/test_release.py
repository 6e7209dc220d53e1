"""``invoke release --dry-run``: all that is published, built twice, checked and signed."""

from __future__ import annotations

import filecmp
import hashlib
import os
import subprocess

import pytest

from builder.release import SUMS, make_release
from clsecure import __version__
from tests.support.packages import QUICK

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("packages")]


def test_a_release_is_built_twice_checked_and_signed(debs, rpms, package_place):
    """From another directory than the other tests' packages, by somebody whose files are nobody else's."""
    output = package_place / "release"
    said = []
    umask = os.umask(0o077)
    try:
        make_release(None, output, dry_run=True, say=said.append, levels=(QUICK, QUICK))
    finally:
        os.umask(umask)
    assert said.count("built twice, byte for byte the same") == 3
    assert "lintian and rpmlint" in said
    packages, repository = output / "packages", output / "repository"
    wheel = f"clsecure-{__version__}-py3-none-any.whl"
    for built in (debs.built, rpms.built):
        assert filecmp.cmp(built, packages / built.name, shallow=False)
    sums = dict(reversed(line.split("  ")) for line in (packages / SUMS).read_text().splitlines())
    assert sums == {
        name: hashlib.sha256((packages / name).read_bytes()).hexdigest()
        for name in (debs.built.name, rpms.built.name, wheel)
    }
    keyring = repository / "clsecure-archive-keyring.gpg"
    index = repository / "rpm/repodata/repomd.xml"
    signed = [
        (packages / f"{SUMS}.asc", packages / SUMS),
        (repository / "deb/dists/stable/InRelease",),
        (f"{index}.asc", index),
    ]
    for files in signed:
        subprocess.run(["gpgv", "--keyring", keyring, *files], check=True, timeout=60)
