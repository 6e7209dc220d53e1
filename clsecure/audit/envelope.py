"""A record on its way: an in-toto Statement in a DSSE envelope, in exactly one spelling.

The file is what :func:`seal` writes and nothing else: sorted keys, no blanks, ASCII, standard base64. So a
changed byte that JSON or base64 would overlook is refused, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clsecure.errors import VerificationError

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import Key, Signature, Signer

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://clsecure.invalid/session-record/v1"
"""A name, not a place: nothing is there to fetch, and ``.invalid`` (RFC 2606) can never be somebody's."""

MAX_SIZE = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A record as it lies on the disk, its spelling checked, its signatures not yet."""

    statement: Mapping[str, Any]
    envelope: Envelope

    @property
    def predicate(self) -> Mapping[str, Any]:
        """What the record says."""
        found: Mapping[str, Any] = self.statement["predicate"]
        return found

    @property
    def keyids(self) -> tuple[str, ...]:
        """Who claims to have signed it."""
        return tuple(self.envelope.signatures)


def statement(subject: Sequence[Mapping[str, Any]], predicate: Mapping[str, Any]) -> dict[str, Any]:
    """Return an in-toto Statement of ours."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": list(subject),
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }


def seal(said: Mapping[str, Any], signer: Signer) -> Sealed:
    """Return a statement in an envelope, signed; others may sign it besides."""
    from securesystemslib.dsse import Envelope

    payload = _canonical(said)
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return Sealed(statement=json.loads(payload), envelope=envelope)


def add_signature(sealed: Sealed, keyid: str, signature: bytes) -> None:
    """Put somebody else's signature, of ``envelope.pae()``, beside ours."""
    from securesystemslib.signer import Signature

    sealed.envelope.signatures[keyid] = Signature(keyid, signature.hex())


def to_bytes(envelope: Envelope) -> bytes:
    """Return the one spelling of an envelope."""
    return _canonical(envelope.to_dict()) + b"\n"


def from_bytes(data: bytes) -> Sealed:
    """Read an envelope.

    :raises VerificationError: it is none of ours, or not spelled as :func:`to_bytes` spells it.
    """
    from securesystemslib.dsse import Envelope

    try:
        envelope = Envelope.from_dict(json.loads(data))
        if to_bytes(envelope) != data:
            raise ValueError("its bytes are not those that were written")
        if envelope.payload_type != PAYLOAD_TYPE:
            raise ValueError("it holds something else")
        said = json.loads(envelope.payload)
        if (said["_type"], said["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError("it holds a statement of another kind")
        if not isinstance(said["predicate"], dict) or not isinstance(said["subject"], list):
            raise TypeError("its statement has another form")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise VerificationError("that is no record of clsecure", details=str(error)) from error
    return Sealed(statement=said, envelope=envelope)


def verify(sealed: Sealed, key: Key) -> None:
    """Check the signature that a key made.

    :raises VerificationError: the key did not sign it, or it was changed since.
    """
    from securesystemslib.exceptions import Error

    if key.keyid not in sealed.keyids:
        raise VerificationError(
            "the record is signed by another key",
            details=f"by {', '.join(sealed.keyids) or 'none'}; looked for {key.keyid}",
            resolution="Name the public key that it was signed with: --key FILE",
        )
    try:
        sealed.envelope.verify([key], 1)
    except (Error, ValueError) as error:
        raise VerificationError("the signature of the record does not hold: it was changed") from error


def signature_of(sealed: Sealed, keyid: str) -> bytes:
    """Return one signature as it was made.

    :raises KeyError: there is none.
    """
    found: Signature = sealed.envelope.signatures[keyid]
    return bytes.fromhex(found.signature)


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")
