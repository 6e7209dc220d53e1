"""The user's own SSH key signs a record as well, where they asked for it, by ``ssh-keygen -Y``."""

from __future__ import annotations

import base64
import binascii
import re
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

from clsecure import process
from clsecure.errors import ToolError, VerificationError
from clsecure.process import Command, CommandResult

NAMESPACE = "clsecure-record"
"""No signature for another purpose (git, files) passes for one of a record, and the other way round."""

_SECONDS = 60.0
_BEGIN, _END = b"-----BEGIN SSH SIGNATURE-----\n", b"-----END SSH SIGNATURE-----\n"
_COLUMNS = 70
_FINGERPRINT = re.compile(r"\d+ (SHA256:[A-Za-z0-9+/]{43}) ")
_GOOD = re.compile(r"signature (?:for clsecure )?with \S+ key (SHA256:[A-Za-z0-9+/]{43})")


def key_of(file: Path) -> str:
    """Return the fingerprint of the key that is going to sign.

    :raises ToolError: there is no such key.
    """
    argv = ("ssh-keygen", "-l", "-E", "sha256", "-f", str(file))
    done = process.run(Command(argv=argv, timeout=_SECONDS)).check()
    found = _FINGERPRINT.match(done.stdout.decode("utf-8", "replace"))
    if found is None:
        raise ToolError(f"{file} holds no SSH key", details=done.stdout.decode("utf-8", "replace").strip())
    return found[1]


def sign(data: bytes, key: Path, environ: Mapping[str, str]) -> tuple[str, bytes]:
    """Sign with a key of the user's; return its fingerprint and the signature in its one spelling.

    :param key: the private key, or the public one of a key that the agent or a token holds.
    :param environ: the user's environment; only the way to the agent is taken from it.
    :raises ToolError: there is no such key, or it can't be used without a question.
    """
    env = {
        "PATH": process.SYSTEM_PATH,
        "LC_ALL": "C.UTF-8",
        # Nobody is asked for a passphrase at the end of a session that ran unattended.
        "SSH_ASKPASS": "/bin/false",
        "SSH_ASKPASS_REQUIRE": "force",
        **({"SSH_AUTH_SOCK": environ["SSH_AUTH_SOCK"]} if environ.get("SSH_AUTH_SOCK") else {}),
    }
    argv = ("ssh-keygen", "-Y", "sign", "-q", "-n", NAMESPACE, "-f", str(key))
    done = process.run(Command(argv=argv, env=env, input=data, timeout=_SECONDS)).check()
    signature = _armoured(_blob(done.stdout))
    return fingerprint(data, signature), signature


def fingerprint(data: bytes, signature: bytes) -> str:
    """Return which key made a signature, by the key that the signature itself holds.

    :raises VerificationError: it is no signature of this data.
    """
    return _good(_keygen(data, signature, "check-novalidate"))


def verify(data: bytes, signature: bytes, public_key: bytes) -> str:
    """Check that one very key made a signature; return its fingerprint.

    :param public_key: a line as ``ssh-keygen`` writes it into ``.pub``.
    :raises VerificationError: it did not.
    """
    with tempfile.TemporaryDirectory(prefix="clsecure-") as place:
        allowed = Path(place) / "allowed"
        allowed.write_bytes(b'clsecure namespaces="%s" %s\n' % (NAMESPACE.encode(), public_key.strip()))
        return _good(_keygen(data, signature, "verify", "-I", "clsecure", "-f", str(allowed)))


def is_public_key(data: bytes) -> bool:
    """Tell whether a file is one SSH public key."""
    return re.match(rb"(?:ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+(?: [^\n]*)?\n?\Z", data) is not None


def _keygen(data: bytes, signature: bytes, *what: str) -> CommandResult:
    # What ssh-keygen reads over (other line breaks, what follows, a reserved field) would be a change unseen.
    if _armoured(_blob(signature)) != signature:
        raise VerificationError("the SSH signature of the record is not spelled as it was made")
    # By name, not by descriptor: ssh-keygen reads the signature from a file alone.
    with tempfile.TemporaryDirectory(prefix="clsecure-") as place:
        file = Path(place) / "signature"
        file.write_bytes(signature)
        argv = ("ssh-keygen", "-Y", what[0], "-n", NAMESPACE, *what[1:], "-s", str(file))
        return process.run(Command(argv=argv, input=data, timeout=_SECONDS))


def _good(done: CommandResult) -> str:
    found = _GOOD.search(done.stdout.decode("utf-8", "replace"))
    if done.returncode != 0 or found is None:
        words = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        raise VerificationError("the SSH signature of the record does not hold", details=words)
    return found[1]


def _armoured(blob: bytes) -> bytes:
    text = base64.b64encode(blob)
    lines = [text[at : at + _COLUMNS] + b"\n" for at in range(0, len(text), _COLUMNS)]
    return b"".join([_BEGIN, *lines, _END])


def _blob(signature: bytes) -> bytes:
    """Return what a signature is in binary (PROTOCOL.sshsig), without what nothing signs.

    :raises VerificationError: it is none.
    """
    try:
        blob = base64.b64decode(signature.removeprefix(_BEGIN).partition(b"-----")[0])
        # Behind the magic and the version: key, namespace, a field that is reserved, hash, signature.
        fields, at = [], 10
        while at < len(blob):
            (length,) = struct.unpack_from(">I", blob, at)
            fields.append(blob[at + 4 : at + 4 + length])
            at += 4 + length
        key, namespace, _, hashed, made = fields
    except (binascii.Error, struct.error, ValueError) as error:
        raise VerificationError("the SSH signature of the record is none") from error
    whole = (key, namespace, b"", hashed, made)
    return blob[:10] + b"".join(struct.pack(">I", len(each)) + each for each in whole)
