"""The key that records are signed with: made at first use, in the user's state directory.

It says that this account made the record, no more: whoever is the user, or root, can sign as well.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from clsecure.audit import files
from clsecure.errors import StateError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from securesystemslib.signer import CryptoSigner, SSlibKey

_MOST = 64 << 10


class KeyPair:
    """Where the key lies.

    :param state: the state directory.
    """

    def __init__(self, state: Path) -> None:
        self.private = state / "keys" / "record.key"
        self.public = state / "keys" / "record.pub"

    def signer(self) -> CryptoSigner:
        """Return what signs; the key is made where there is none.

        :raises StateError: it can't be made, others can read it, or it is no such key.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from securesystemslib.signer import CryptoSigner

        files.make_directory(self.private.parent)
        try:
            data = self._read_private()
        except FileNotFoundError:
            made = CryptoSigner.generate_ed25519().private_bytes
            files.write(self.private, made, replace=False)  # of two first sessions one wins
            data = self._read_private()
        try:
            private = load_pem_private_key(data, password=None)
        except ValueError as error:
            raise self._unusable() from error
        if not isinstance(private, Ed25519PrivateKey):
            raise self._unusable()
        key = _key(private.public_key())
        if not self.public.exists():
            files.write(self.public, public_pem(private.public_key()))
        return CryptoSigner(private, key)

    def key(self) -> SSlibKey:
        """Return the public key.

        :raises StateError: nothing was ever signed here, or the file holds no such key.
        """
        try:
            return read_key(files.read(self.public, most=_MOST), str(self.public))
        except FileNotFoundError as error:
            raise StateError(
                f"there is no {self.public}",
                resolution="Name the key that signed the record with --key FILE",
            ) from error

    def _read_private(self) -> bytes:
        data = files.read(self.private, most=_MOST)
        if self.private.lstat().st_mode & 0o077:
            raise StateError(
                f"others can read {self.private}",
                details="It signs your sessions' records.",
                resolution=f"chmod 600 {self.private}; or remove it, and the next session makes a new one",
            )
        return data

    def _unusable(self) -> StateError:
        return StateError(
            f"{self.private} holds no ed25519 key",
            resolution="Put it back, or remove it: the next session makes a new one",
        )


def read_key(data: bytes, where: str) -> SSlibKey:
    """Return the public key of a PEM file.

    :raises UsageError: it holds none, or another kind.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{where} holds no public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{where} holds a key, but none of ed25519")
    return _key(key)


def public_pem(key: Ed25519PublicKey) -> bytes:
    """Return a public key as other tools read it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _key(public: Ed25519PublicKey) -> SSlibKey:
    """Name a key by the sha256 of its DER form: ``openssl pkey -pubin -outform DER | sha256sum``."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from securesystemslib.signer import SSlibKey

    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return SSlibKey.from_crypto(public, keyid=hashlib.sha256(der).hexdigest())
