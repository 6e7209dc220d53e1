"""The records of this user: one file per session that ran, kept when the session is long gone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clsecure.audit import files
from clsecure.audit.envelope import MAX_SIZE, Sealed, from_bytes, to_bytes
from clsecure.audit.index import Entry, Index
from clsecure.errors import ClsecureError, SessionNotFoundError, VerificationError

_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{12}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class Records:
    """All records below a state directory."""

    def __init__(self, state: Path) -> None:
        self.directory = state / "records"
        self._index = Index(self.directory / "index.sqlite")

    def path(self, session_id: str) -> Path:
        """Return where the record of a session lies, whether or not it is there.

        :raises SessionNotFoundError: that is no id of a session.
        """
        if not is_id(session_id):
            raise SessionNotFoundError(f"{session_id[:100]!r} is no id of a session")
        return self.directory / f"{session_id}.json"

    def write(self, session_id: str, sealed: Sealed) -> Path:
        """Keep a record, in the place of an earlier one of the same session, and make it findable.

        :raises StateError: it can't be written.
        """
        path = self.path(session_id)
        files.make_directory(self.directory)
        files.write(path, to_bytes(sealed.envelope))
        self._index.put(entry_of(session_id, sealed))
        return path

    def read(self, session_id: str) -> Sealed:
        """Return a record; its signatures are not checked yet.

        :raises SessionNotFoundError: there is none.
        :raises VerificationError: the file holds none.
        """
        path = self.path(session_id)
        try:
            sealed = from_bytes(files.read(path, most=MAX_SIZE))
        except FileNotFoundError as error:
            raise SessionNotFoundError(
                f"there is no record of session {session_id}",
                details="A session that never came to its agent leaves none.",
            ) from error
        if sealed.predicate.get("session", {}).get("id") != session_id:
            raise VerificationError(f"the record in {path} is that of another session")
        return sealed

    def ids(self) -> tuple[str, ...]:
        """Return the sessions that there are records of, oldest first."""
        with suppress(FileNotFoundError, NotADirectoryError):
            names = sorted(entry.name.removesuffix(".json") for entry in os.scandir(self.directory))
            return tuple(name for name in names if is_id(name))
        return ()

    def of_commit(self, commit: str) -> str:
        """Return the newest session whose record names a commit.

        The index only points: what it points to must say so itself. Where it does not, or knows nothing, the
        index is made anew from the records.

        :param commit: the full id.
        :raises SessionNotFoundError: no record names it.
        """
        for session_id in self._index.of_commit(commit):
            with suppress(ClsecureError):
                if commit in commits_of(self.read(session_id)):
                    return session_id
        for entry in self._made_anew():
            if commit in entry.commits:
                return entry.session_id
        raise SessionNotFoundError(
            f"no record names the commit {commit}",
            details="It was not imported by clsecure for this user, or its record is gone.",
        )

    def of_name(self, name: str) -> str:
        """Return the newest session that was called so: by id, place, project's name or session's name.

        :raises SessionNotFoundError: there is no record of one.
        """
        if is_id(name) and self.path(name).exists():
            return name
        found = self._index.of_name(name) or tuple(
            entry.session_id for entry in self._made_anew() if name in entry.names
        )
        if not found:
            raise SessionNotFoundError(
                f"there is no record of a session {name!r}",
                resolution=f"The records are in {self.directory}; sessions: clsecure list",
            )
        return found[0]

    def _made_anew(self) -> list[Entry]:
        """Make the index anew; return all of it, newest first: it may be that there can't be one."""
        entries = sorted(self._entries(), key=lambda entry: entry.session_id, reverse=True)
        self._index.rebuild(entries)
        return entries

    def _entries(self) -> Iterator[Entry]:
        for session_id in self.ids():
            # One that is damaged keeps nobody from finding the others; verifying it says what is wrong.
            with suppress(ClsecureError, AttributeError, KeyError, TypeError):
                yield entry_of(session_id, self.read(session_id))


def is_id(text: str) -> bool:
    """Tell whether a word has the form of a session's id."""
    return _ID.fullmatch(text) is not None


def entry_of(session_id: str, sealed: Sealed) -> Entry:
    """Return what the index keeps of a record."""
    session = sealed.predicate["session"]
    return Entry(
        session_id=session_id,
        names=(str(session["place"]), str(session["name"]), Path(str(session["project"])).name),
        commits=tuple(commits_of(sealed)),
    )


def commits_of(sealed: Sealed) -> frozenset[str]:
    """Return the commits that a record is about: the tips, and those of the range that it lists."""
    return frozenset(
        commit
        for unit in _mappings(sealed.statement["subject"])
        for commit in (
            _mapping(unit.get("digest")).get("gitCommit"),
            *_list(_mapping(unit.get("annotations")).get("commits")),
        )
        if isinstance(commit, str) and _COMMIT.fullmatch(commit)
    )


def _mappings(value: object) -> Iterable[Mapping[str, Any]]:
    return [item for item in _list(value) if isinstance(item, dict)]


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
