"""What packages are made of, as far as that needs no root and no network."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from invoke import Context, Exit

import tasks
from builder import documents, release, wheels
from builder.project import PACKAGING, PYTHONS, Architecture, Release
from builder.repository import build_repository, new_key, signer
from clsecure import installation
from clsecure.errors import StateError, UsageError
from clsecure.settings.model import load
from clsecure.settings.sources import gather
from tests.support.person import CHECKOUT

_RELEASE = Release(version="9.9.9", epoch=1_700_000_000, architecture=Architecture.X86_64)
_LOCK = """\
old==1.0 ; python_version < '3.12' \\
    --hash=sha256:aa
windows==1.0 ; sys_platform == 'win32' \\
    --hash=sha256:bb
arm==1.0 ; platform_machine == 'aarch64' \\
    --hash=sha256:cc
plain==2.0 \\
    --hash=sha256:dd \\
    --hash=sha256:ee
"""


@pytest.mark.parametrize(
    ("python", "architecture", "names"),
    [
        ("3.11", Architecture.X86_64, ["old", "plain"]),
        ("3.12", Architecture.X86_64, ["plain"]),
        ("3.14", Architecture.AARCH64, ["arm", "plain"]),
    ],
)
def test_the_lock_is_read_for_the_python_and_machine_of_the_package(tmp_path, python, architecture, names):
    """Not for those of the one that builds, as pip would."""
    lock = tmp_path / "lock"
    lock.write_text(_LOCK)
    found = wheels.locked_for(python, architecture, lock)
    assert [each.name for each in found] == names
    assert found[-1].text == "plain==2.0 --hash=sha256:dd --hash=sha256:ee"


def test_the_real_lock_has_hashes_for_all_of_it():
    for python in PYTHONS:
        for each in wheels.locked_for(python, Architecture.X86_64):
            assert re.fullmatch(r"\S+==\S+( --hash=sha256:[0-9a-f]{64})+", " ".join(each.text.split())), each


def test_the_changelog_is_as_debian_wants_it():
    lines = documents.debian_changelog(_RELEASE).splitlines()
    assert lines[0] == "clsecure (9.9.9) stable; urgency=medium"
    assert lines[-1] == f" -- {documents.MAINTAINER}  Tue, 14 Nov 2023 22:13:20 +0000"
    assert all(line == "" or line.startswith(("  * ", "    ")) for line in lines[1:-1])
    assert max(len(line) for line in lines[:-1]) <= 80
    assert "`" not in "".join(lines)


def test_the_example_configuration_is_valid_as_it_is_and_with_all_that_it_shows(tmp_path):
    text = (PACKAGING / "common/config.toml").read_text()
    head, shown = text.split("\n\n", 1)
    assert all(line.startswith("#") for line in head.splitlines())
    shown = shown.partition("# Only in")[0]
    whole = re.sub(r"^# (?=\[|\w+ = )", "", shown, flags=re.MULTILINE)
    for content in (text, whole):
        file = tmp_path / ".config/clsecure/config.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        load(gather(flags={}, environ={"HOME": str(tmp_path)}))
    assert "on_finish" in whole


def test_a_checkout_that_is_no_release_says_all_that_it_lacks(monkeypatch, tmp_path):
    monkeypatch.setattr(release, "git", lambda *argv: " M x" if argv[0] == "status" else "v1.0.0")
    lacks = release.what_is_missing(_RELEASE)
    assert len(lacks) == 3
    monkeypatch.setattr(release, "this_release", lambda: _RELEASE)
    with pytest.raises(StateError, match="no release") as caught:
        release.make_release(tmp_path / "key", tmp_path / "out", dry_run=False, say=lambda _: None)
    assert caught.value.details == "\n".join(lacks)
    assert not (tmp_path / "out").exists()
    with pytest.raises(Exit, match="--key is needed"):
        tasks.release(Context(), output=str(tmp_path / "out"))


def test_a_release_overwrites_nothing(tmp_path):
    (tmp_path / "there").touch()
    with pytest.raises(StateError, match="not empty"):
        release.make_release(None, tmp_path, dry_run=True, say=lambda _: None)


@pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is not installed")
def test_a_keyring_of_several_keys_signs_nothing(tmp_path):
    both = tmp_path / "both"
    both.write_bytes(b"".join(new_key(tmp_path / name).read_bytes() for name in ("one", "two")))
    with pytest.raises(UsageError, match="holds 2 secret keys"), signer(both):
        pass


@pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is not installed")
def test_an_expired_key_is_refused_before_anything_is_deleted(tmp_path):
    home = Path(tempfile.mkdtemp(prefix="clsecure-gpg-", dir="/tmp"))
    gpg = ["gpg", "--batch", "--no-tty", "--homedir", home]
    then = ["--faked-system-time", "20240101T000000!", "--passphrase", ""]
    owner = "x <x@packages.invalid>"
    try:
        made = [*gpg, *then, "--quick-generate-key", owner, "ed25519", "sign", "1y"]
        subprocess.run(made, check=True, timeout=60)
        exported = [*gpg, "--export-secret-keys"]
        secret = subprocess.run(exported, check=True, timeout=60, capture_output=True)
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True, timeout=60)
        shutil.rmtree(home)
    (tmp_path / "key").write_bytes(secret.stdout)
    published = tmp_path / "repository/deb/published"
    published.parent.mkdir(parents=True)
    published.touch()
    (tmp_path / "x.deb").touch()
    with pytest.raises(UsageError, match="is expired") as caught:
        build_repository([tmp_path / "x.deb"], tmp_path / "key", tmp_path / "repository", epoch=1)
    assert "--quick-set-expire" in str(caught.value.resolution)
    assert published.exists()


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg is not installed")
@pytest.mark.parametrize("early", ["1.0rc1", "1.0a2", "1.0b1", "1.0.dev3"])
def test_what_comes_before_a_release_is_older_than_it(early):
    version = dataclasses.replace(_RELEASE, version=early).package_version
    subprocess.run(["dpkg", "--compare-versions", version, "lt", "1.0"], check=True, timeout=30)
    subprocess.run(["dpkg", "--compare-versions", version, "gt", "0.9"], check=True, timeout=30)
    assert dataclasses.replace(_RELEASE, version="1.0.post1").package_version == "1.0.post1"


def test_a_packaged_clsecure_says_what_helps_it(monkeypatch):
    assert installation.how_to_allow("alice") == "clsecure setup"
    place = installation.PACKAGE_DIRECTORY / "python/clsecure"
    monkeypatch.setattr(installation, "source_directory", lambda: place)
    assert installation.how_to_install() == "install the package clsecure again"
    assert installation.how_to_allow("a b").startswith("sudo usermod --append --groups clsecure 'a b'")


_SCRIPTS = ("common/configure", "common/deconfigure", "deb/postinst", "deb/prerm", "deb/postrm")


@pytest.mark.parametrize("name", _SCRIPTS)
def test_maintainer_scripts_are_posix(name):
    subprocess.run(["/bin/sh", "-n", CHECKOUT / "packaging" / name], check=True, timeout=30)


def test_the_spec_has_a_place_for_everything_and_leaves_nothing_open():
    spec = (PACKAGING / "rpm/clsecure.spec").read_text()
    assert _RELEASE.next_python == "3.15"
    for script in ("%pre", "%posttrans", "%preun", "%transfiletriggerin"):
        assert re.search(rf"^{script}\b", spec, re.MULTILINE), script
