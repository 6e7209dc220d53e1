"""Signing a record and keeping it: our own key, the user's SSH key, the git note."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsecure import logs
from clsecure.audit import files
from clsecure.chain import ChainReport, verify
from clsecure.errors import ClsecureError, StateError
from clsecure.model import ImportResult
from clsecure.session import recorded
from clsecure.session.recorded import Json
from clsecure.session.result import RecordResult
from clsecure.session.store import SessionDirectory

if TYPE_CHECKING:
    from clsecure.audit.envelope import Sealed

log = logs.get("record")

_MOST = 4 << 20
"""Bytes of a predicate; its envelope takes a third more, and what reads it stops at 16 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    """How records are made, as the user decided.

    :param state: the state directory.
    :param ssh_key: the user's key that signs as well.
    :param notes: an import leaves a git note.
    :param environ: the user's environment, for the way to their SSH agent.
    """

    state: Path
    ssh_key: Path | None = None
    notes: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)


def keep(
    said: dict[str, Any],
    subject: list[Any],
    place: SessionDirectory,
    options: RecordOptions,
    warn: Callable[[str], None],
) -> RecordResult:
    """Sign a predicate with what it is about, and write it.

    :raises ClsecureError: it can't be signed by our own key, or not be written.
    """
    from clsecure.audit import envelope
    from clsecure.audit.keys import KeyPair
    from clsecure.audit.records import Records

    said["event_log"] = _event_log(place, warn)
    _fit(said)
    signer = KeyPair(options.state).signer()
    said["ssh_key"] = None if options.ssh_key is None else _ssh_key(options.ssh_key, warn)
    sealed = envelope.seal(envelope.statement(subject, said), signer)
    if options.ssh_key is not None and said["ssh_key"] and not _sign_by_ssh(sealed, options, warn):
        said["ssh_key"] = None
        sealed = envelope.seal(envelope.statement(subject, said), signer)
    path = Records(options.state).write(str(said["session"]["id"]), sealed)
    data = envelope.to_bytes(sealed.envelope)
    made = RecordResult(path=str(path), sha256=hashlib.sha256(data).hexdigest(), keyids=sealed.keyids)
    log.info("record_written", path=made.path, sha256=made.sha256)
    place.run_file.unlink(missing_ok=True)
    return made


def _fit(said: dict[str, Any]) -> None:
    """Cut long lists until a record can be read again: names in them are the agent's, of any length."""
    units = said.get("work", {}).get("units", []) if isinstance(said.get("work"), dict) else []
    lists = [(said, "findings"), (said, "warnings"), (said, "timeline")]
    lists += [(said["work"], "refused")] if units else []
    lists += [(unit, key) for unit in units for key in ("files", "commits", "other_refs")]
    while len(json.dumps(said)) > _MOST:
        # The longest first, by half.
        holder, key = max(lists, key=lambda place: len(json.dumps(place[0].get(place[1]))))
        found = holder.get(key)
        if not isinstance(found, list) or not found:
            return
        holder[key] = found[: len(found) // 2]
        said["cut"] = True


def leave_note(
    git_dir: Path,
    imported: ImportResult,
    made: RecordResult,
    options: RecordOptions,
    warn: Callable[[str], None],
) -> None:
    """Name the record in a git note on what was imported, where the user wants that."""
    if not options.notes:
        return
    from clsecure.importer.notes import write_note

    text = f"clsecure-session: {Path(made.path).stem}\nclsecure-record: sha256:{made.sha256}\n"
    try:
        write_note(git_dir, imported.tip, text.encode("ascii"))
    except (ClsecureError, OSError) as error:
        words = error.brief if isinstance(error, ClsecureError) else str(error)
        warn(f"the import has no git note: {words}")


def _ssh_key(file: Path, warn: Callable[[str], None]) -> str | None:
    """Return which key of the user's signs as well: the record says it, so that none can take that off."""
    from clsecure.audit import ssh

    try:
        return ssh.key_of(file)
    except ClsecureError as error:
        warn(f"your SSH key did not sign the record: {error.brief} ({file})")
        return None


def _sign_by_ssh(sealed: Sealed, options: RecordOptions, warn: Callable[[str], None]) -> bool:
    """Have the user's key sign as well; without it the record still has the signature of our own."""
    from clsecure.audit import envelope, ssh

    assert options.ssh_key is not None  # noqa: S101  # the caller's word
    try:
        keyid, signature = ssh.sign(sealed.envelope.pae(), options.ssh_key, options.environ)
    except ClsecureError as error:
        warn(f"your SSH key did not sign the record: {error.brief} ({options.ssh_key})")
        return False
    envelope.add_signature(sealed, keyid, signature)
    return True


def _event_log(place: SessionDirectory, warn: Callable[[str], None]) -> Json:
    report = look_at_events(place.events)
    if report is None:
        warn("the log of events is gone: the record can't bind it")
        return {"lines": 0, "sha256": None, "broken": None, "torn": []}
    if report.broken is not None:
        warn(f"the log of events was changed: line {report.broken}: {report.why}")
    return {
        "lines": report.head.lines,
        "sha256": report.head.sha256,
        "broken": report.broken,
        "torn": list(report.torn[: recorded.MAX_ITEMS]),
    }


def look_at_events(path: Path) -> ChainReport | None:
    """Look through a session's log of events; None when it is not there."""
    try:
        file = files.open_regular(path)
    except (FileNotFoundError, StateError):
        return None
    with file:
        return verify(file)


def load_signing() -> None:
    """Import what takes long, while there is something to wait for."""
    import sqlite3  # noqa: F401

    import securesystemslib.dsse  # noqa: F401

    import clsecure.audit.keys
    import clsecure.audit.records  # noqa: F401
