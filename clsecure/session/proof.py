"""Does a record hold: its signature, what it says of the repository, the log of events that it binds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsecure.audit import envelope, files, ssh
from clsecure.audit.keys import KeyPair, read_key
from clsecure.audit.records import Records, commits_of
from clsecure.chain import Head, verify
from clsecure.errors import ClsecureError, StateError, ToolError, UsageError, VerificationError
from clsecure.git import Git

if TYPE_CHECKING:
    from clsecure.audit.envelope import Sealed

_MOST_KEY = 64 << 10


class Standing(StrEnum):
    """How one thing stands. What is absent is no failure, and is said."""

    HOLDS = "holds"
    BROKEN = "broken"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """One thing that was looked at.

    :param what: ``form``, ``signature``, ``ssh_signature``, ``commit``, ``repository`` or ``event_log``.
    :param words: what was seen; may hold hostile text, escaped when printed.
    """

    what: str
    standing: Standing
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All that was looked at of one record."""

    session_id: str
    path: Path
    proofs: tuple[Proof, ...]

    @property
    def holds(self) -> bool:
        """Nothing is broken."""
        return all(proof.standing is not Standing.BROKEN for proof in self.proofs)


def examine(
    records: Records,
    session_id: str,
    *,
    state: Path,
    key: Path | None = None,
    project: Path | None = None,
    commit: str | None = None,
) -> Verdict:
    """Look at everything that a record of this user can be held against.

    :param key: a public key, in PEM or of SSH; None for the one that clsecure made here.
    :param project: the work tree that it must be about; None for the one that it names.
    :param commit: full id of a commit that it must name.
    :raises SessionNotFoundError: there is no such record.
    :raises UsageError: the key is none.
    """
    path = records.path(session_id)
    try:
        sealed = records.read(session_id)
    except (VerificationError, StateError) as error:
        broken = Proof(what="form", standing=Standing.BROKEN, words=_said(error))
        return Verdict(session_id=session_id, path=path, proofs=(broken,))
    proofs = [Proof(what="form", standing=Standing.HOLDS, words="spelled as it was written")]
    proofs += signatures(sealed, state, key)
    # What is not signed is not looked into any further: it could name any file and repository.
    if all(proof.standing is Standing.HOLDS for proof in proofs):
        try:
            proofs += _commits(sealed, project, commit)
            proofs.append(_event_log(sealed, state))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            words = f"it lacks what a record has ({error!r})"
            proofs.append(Proof(what="form", standing=Standing.BROKEN, words=words))
    return Verdict(session_id=session_id, path=path, proofs=tuple(proofs))


def signatures(sealed: Sealed, state: Path, key: Path | None = None) -> tuple[Proof, ...]:
    """Look at who signed a record.

    :param key: as of :func:`examine`.
    :raises UsageError: the key is none.
    """
    return tuple(_signatures(sealed, state, key))


def _signatures(sealed: Sealed, state: Path, key: Path | None) -> Iterator[Proof]:
    given = None if key is None else _read(key)
    others = [keyid for keyid in sealed.keyids if keyid.startswith("SHA256:")]
    named = sealed.predicate.get("ssh_key")
    by_ssh = given is not None and ssh.is_public_key(given)
    if not by_ssh:
        yield _judged("signature", lambda: _own(sealed, state, key, given))
    if not others and (by_ssh or named is not None):
        missing = "no signature by SSH" if named is None else f"lost its signature by the SSH key {named}"
        yield Proof(what="ssh_signature", standing=Standing.BROKEN, words=f"the record has {missing}")
    for keyid in others:
        yield _judged("ssh_signature", partial(_by_ssh, sealed, keyid, given if by_ssh else None))
    if len(sealed.keyids) > len(others) + 1 or others not in ([], [named]):
        yield Proof(what="signature", standing=Standing.BROKEN, words="somebody else's signature was added")


def _own(sealed: Sealed, state: Path, file: Path | None, given: bytes | None) -> str:
    key = KeyPair(state).key() if given is None else read_key(given, str(file))
    envelope.verify(sealed, key)
    return f"by {'the key that you gave' if given else 'the key of this account'}, {key.keyid}"


def _by_ssh(sealed: Sealed, keyid: str, public_key: bytes | None) -> str:
    data, signature = sealed.envelope.pae(), envelope.signature_of(sealed, keyid)
    found = (
        ssh.fingerprint(data, signature) if public_key is None else ssh.verify(data, signature, public_key)
    )
    if found != keyid:
        raise VerificationError(f"it was made by {found}, not by {keyid}")
    return f"by the SSH key {keyid}{'' if public_key else ' (whose that is, --key FILE tells)'}"


def _commits(sealed: Sealed, project: Path | None, commit: str | None) -> Iterator[Proof]:
    if commit is not None:
        named = commit in commits_of(sealed)
        yield Proof(
            what="commit",
            standing=Standing.HOLDS if named else Standing.BROKEN,
            words=f"the record {'names' if named else 'does not name'} {commit}",
        )
    top = project or Path(str(sealed.predicate["session"]["project"]))
    for unit in sealed.statement["subject"]:
        if "gitCommit" not in unit["digest"]:
            yield Proof(what="repository", standing=Standing.ABSENT, words="nothing was imported")
            continue
        place = top / str(unit["annotations"]["path"])
        yield _judged("repository", partial(_in, place, unit["digest"]))


def _in(place: Path, digest: Mapping[str, Any]) -> str:
    """Check that the repository of a work tree has a commit and its recorded tree."""
    from clsecure.workspace.repository import discover

    found_there = discover(place)
    if not place.samefile(found_there.top):  # a submodule that has no files here: this is the one around it
        raise VerificationError(f"{place} is no repository of its own")
    git = Git(git_dir=found_there.git_dir, user_config=True)
    commit, tree = str(digest["gitCommit"]), str(digest["gitTree"])
    found = git.run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    if found.returncode != 0:
        raise VerificationError(f"the commit {commit} is not in {place}")
    actual = git.text("rev-parse", "--verify", f"{commit}^{{tree}}")
    if actual != tree:
        raise VerificationError(f"the tree of {commit} is {actual}, not {tree}")
    return f"{commit} is there, with the recorded tree"


def _event_log(sealed: Sealed, state: Path) -> Proof:
    log = sealed.predicate["event_log"]
    place = Path(str(sealed.predicate["session"]["place"])).name
    path = state / "sessions" / place / "events.jsonl"
    if log["broken"] is not None:
        words = f"when the record was made, line {log['broken']} did not hold already"
        return Proof(what="event_log", standing=Standing.BROKEN, words=words)
    try:
        file = files.open_regular(path)
    except FileNotFoundError:
        words = "gone with the session; the record has the hash of it"
        return Proof(what="event_log", standing=Standing.ABSENT, words=words)
    except StateError as error:
        return Proof(what="event_log", standing=Standing.BROKEN, words=_said(error))
    with file:
        report = verify(file, known=Head(lines=log["lines"], sha256=log["sha256"]))
    if report.broken is not None:
        words = f"line {report.broken} of {path}: {report.why}"
        return Proof(what="event_log", standing=Standing.BROKEN, words=words)
    torn = f"; torn when written: line {', '.join(map(str, report.torn))}" if report.torn else ""
    return Proof(what="event_log", standing=Standing.HOLDS, words=f"{log['lines']} lines, one chain{torn}")


def _judged(what: str, look: Callable[[], str]) -> Proof:
    try:
        return Proof(what=what, standing=Standing.HOLDS, words=look())
    except UsageError:
        raise
    except ToolError as error:
        return Proof(what=what, standing=Standing.BROKEN, words=f"can't be checked: {_said(error)}")
    except ClsecureError as error:
        return Proof(what=what, standing=Standing.BROKEN, words=_said(error))


def _said(error: ClsecureError) -> str:
    return f"{error.brief}{f' ({error.details})' if error.details else ''}"


def _read(key: Path) -> bytes:
    try:
        with key.open("rb") as file:
            return file.read(_MOST_KEY)
    except OSError as error:
        raise UsageError(f"{key} can't be read", details=error.strerror) from error
