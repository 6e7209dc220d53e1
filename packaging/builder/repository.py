"""Repositories as files, for any static host: one for apt, one for dnf, signed with a given key."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from builder.project import Architecture, Say, run
from builder.tree import compress
from clsecure.errors import StateError, UsageError

SUITE = "stable"
KEYRING = "clsecure-archive-keyring"
_UNUSABLE = {"e": "expired", "r": "revoked", "i": "invalid", "d": "disabled"}
_POOL = Path("pool/main/c/clsecure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A key in a keyring that nobody else uses and that is gone afterwards."""

    home: Path
    fingerprint: str

    def sign(self, source: Path, target: Path, *how: str) -> None:
        """Sign a file; ``how`` says which kind of signature."""
        target.unlink(missing_ok=True)
        self._gpg("--local-user", self.fingerprint, "--output", str(target), *how, str(source))

    def export(self, target: Path) -> None:
        """Write the public key, once for apt's ``Signed-By`` and once as text."""
        for suffix, how in ((".gpg", ()), (".asc", ("--armor",))):
            place = target.with_suffix(suffix)
            place.unlink(missing_ok=True)
            self._gpg("--output", str(place), *how, "--export", self.fingerprint)

    def _gpg(self, *arguments: str) -> bytes:
        return run("gpg", "--batch", "--no-tty", "--homedir", str(self.home), *arguments)


@contextlib.contextmanager
def signer(key: Path) -> Iterator[Signer]:
    """Yield the one secret key in a file.

    :raises UsageError: the file holds none, or several, or one that is expired or revoked.
    :raises ToolError: gpg refused; a key with a passphrase can't be used.
    """
    # A short path: gpg's agent listens on a socket in there.
    home = Path(tempfile.mkdtemp(prefix="clsecure-gpg-", dir="/tmp"))  # made by mkdtemp, 0700
    try:
        run("gpg", "--batch", "--no-tty", "--homedir", str(home), "--import", str(key))
        listed = run("gpg", "--homedir", str(home), "--with-colons", "--list-secret-keys").decode()
        lines = [line.split(":") for line in listed.splitlines()]
        # The fingerprint comes right after its key; those of subkeys are not asked for.
        keys = [lines[at + 1][9] for at, line in enumerate(lines) if line[0] == "sec"]
        if len(keys) != 1:
            raise UsageError(f"{key} holds {len(keys)} secret keys; one is needed")
        if (validity := next(line[1] for line in lines if line[0] == "sec")) in _UNUSABLE:
            raise UsageError(
                f"the key {keys[0]} in {key} is {_UNUSABLE[validity]}",
                resolution="Renew an expired one in its own keyring: gpg --quick-set-expire FINGERPRINT 2y; "
                "then export it again, and publish its public part anew.",
            )
        yield Signer(home=home, fingerprint=keys[0])
    finally:
        run("gpgconf", "--homedir", str(home), "--kill", "all")
        shutil.rmtree(home, ignore_errors=True)


def new_key(file: Path) -> Path:
    """Make a key that nobody trusts, for tests and dry runs, and write its secret part to a file."""
    home = Path(tempfile.mkdtemp(prefix="clsecure-gpg-", dir="/tmp"))
    gpg = ("gpg", "--batch", "--no-tty", "--homedir", str(home))
    owner = "A test of clsecure <nobody@packages.invalid>"
    try:
        run(*gpg, "--passphrase", "", "--quick-generate-key", owner, "ed25519", "sign", "never")
        file.touch(mode=0o600)
        file.write_bytes(run(*gpg, "--export-secret-keys"))
    finally:
        run("gpgconf", "--homedir", str(home), "--kill", "all")
        shutil.rmtree(home, ignore_errors=True)
    return file


def build_repository(
    packages: Sequence[Path], key: Path, output: Path, *, epoch: int, say: Say = lambda _: None
) -> None:
    """Write repositories of packages; all but the signatures is the same for the same packages and time.

    :param packages: ``.deb`` and ``.rpm`` files.
    :param epoch: the time that the repositories say they are of.
    """
    debs = sorted(path for path in packages if path.suffix == ".deb")
    rpms = sorted(path for path in packages if path.suffix == ".rpm")
    if not packages:
        raise StateError("there are no packages", resolution="Build them first: invoke build-packages")
    output.mkdir(parents=True, exist_ok=True)
    with signer(key) as signing:
        signing.export(output / KEYRING)
        if debs:
            say(f"an apt repository of {len(debs)} packages")
            _apt(debs, output / "deb", signing, epoch)
        if rpms:
            say(f"a dnf repository of {len(rpms)} packages")
            _dnf(rpms, output / "rpm", signing, epoch)


def _apt(debs: Sequence[Path], place: Path, signing: Signer, epoch: int) -> None:
    shutil.rmtree(place, ignore_errors=True)
    (place / _POOL).mkdir(parents=True)
    for deb in debs:
        shutil.copyfile(deb, place / _POOL / deb.name)
    indexes = place / "dists" / SUITE
    architectures = [each.debian for each in Architecture]
    for name in architectures:
        binary = indexes / "main" / f"binary-{name}"
        binary.mkdir(parents=True)
        listed = run("apt-ftparchive", f"--arch={name}", "packages", "pool", cwd=place)
        (binary / "Packages").write_bytes(listed)
        compress(listed, binary / "Packages.gz")
    when = format_datetime(datetime.fromtimestamp(epoch, UTC)).replace("+0000", "UTC")
    fields = {
        "Origin": "clsecure", "Label": "clsecure", "Suite": SUITE, "Codename": SUITE, "Date": when,
        "Architectures": " ".join(architectures), "Components": "main",
        "Description": "Packages of clsecure",
    }  # fmt: skip
    options = [f"--option=APT::FTPArchive::Release::{name}={value}" for name, value in fields.items()]
    options.append("--option=APT::FTPArchive::DoByHash=true")
    (indexes / "Release").write_bytes(run("apt-ftparchive", *options, "release", str(indexes)))
    signing.sign(indexes / "Release", indexes / "InRelease", "--clearsign")
    signing.sign(indexes / "Release", indexes / "Release.gpg", "--armor", "--detach-sign")
    _same_time(place, epoch)


def _dnf(rpms: Sequence[Path], place: Path, signing: Signer, epoch: int) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for rpm in rpms:
        shutil.copyfile(rpm, place / rpm.name)
        names = {"_gpg_name": signing.fingerprint, "_gpg_path": str(signing.home), "__gpg": "/usr/bin/gpg"}
        defined = [word for name, value in names.items() for word in ("--define", f"{name} {value}")]
        run("rpmsign", *defined, "--addsign", str(place / rpm.name))
    _same_time(place, epoch)
    times = (f"--revision={epoch}", "--set-timestamp-to-revision")
    run("createrepo_c", "--quiet", "--no-database", *times, str(place))
    index = place / "repodata" / "repomd.xml"
    signing.sign(index, index.with_name("repomd.xml.asc"), "--armor", "--detach-sign")
    _same_time(place, epoch)


def _same_time(place: Path, epoch: int) -> None:
    for path in sorted(place.rglob("*")):
        os.utime(path, (epoch, epoch))
