"""From a commit, or a session's name, to the session: a table that can always be made anew from the records.

It decides nothing: whoever finds a record by it checks that the record says the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from clsecure import logs
from clsecure.audit import files
from clsecure.errors import StateError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

log = logs.get("audit")

_Value = TypeVar("_Value")
_PATIENCE_S = 5.0
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS names
        (name TEXT, session_id TEXT, PRIMARY KEY (name, session_id)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS commits
        (id TEXT, session_id TEXT, PRIMARY KEY (id, session_id)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the index keeps of one record.

    :param names: what people may call the session by.
    :param commits: full ids.
    """

    session_id: str
    names: tuple[str, ...]
    commits: tuple[str, ...]


class Index:
    """The table, made where it is missing. None of its failures is anybody's: it is made anew instead."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def put(self, entry: Entry) -> None:
        """Add a record; where that fails, a later look finds it missing and makes all anew."""

        def insert(table: sqlite3.Connection) -> None:
            _insert(table, [entry])

        self._attempt(insert, None)

    def of_commit(self, commit: str) -> tuple[str, ...]:
        """Return the sessions that may have brought a commit, newest first."""
        return self._sessions("SELECT session_id FROM commits WHERE id = ? ORDER BY session_id DESC", commit)

    def of_name(self, name: str) -> tuple[str, ...]:
        """Return the sessions that were called so, newest first."""
        return self._sessions("SELECT session_id FROM names WHERE name = ? ORDER BY session_id DESC", name)

    def rebuild(self, entries: Iterable[Entry]) -> None:
        """Make the table anew."""

        def fill(table: sqlite3.Connection) -> None:
            table.execute("DELETE FROM names")
            table.execute("DELETE FROM commits")
            _insert(table, entries)

        self._attempt(fill, None)

    def _sessions(self, query: str, word: str) -> tuple[str, ...]:
        def ask(table: sqlite3.Connection) -> tuple[str, ...]:
            return tuple(str(row[0]) for row in table.execute(query, (word,)))

        return self._attempt(ask, ())

    def _attempt(self, work: Callable[[sqlite3.Connection], _Value], otherwise: _Value) -> _Value:
        """Work on the table; one that is damaged is thrown away first, once."""
        import sqlite3

        for last in (False, True):
            try:
                with self._open() as table:
                    return work(table)
            except (sqlite3.Error, OSError, StateError) as error:
                log.warning("index_failed", error=str(error))
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_BUSY)
                if last or code == sqlite3.SQLITE_BUSY:
                    break
                for suffix in ("", "-journal"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        return otherwise

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        import sqlite3

        if not self._path.parent.is_dir():
            raise FileNotFoundError(self._path)
        # It exists before sqlite opens it: private, and no link.
        files.touch(self._path)
        table = sqlite3.connect(self._path, timeout=_PATIENCE_S)
        try:
            with table:
                table.executescript(_SCHEMA)
                yield table
        finally:
            table.close()


def _insert(table: sqlite3.Connection, entries: Iterable[Entry]) -> None:
    for entry in entries:
        table.executemany(
            "INSERT OR IGNORE INTO names VALUES (?, ?)", [(name, entry.session_id) for name in entry.names]
        )
        table.executemany(
            "INSERT OR IGNORE INTO commits VALUES (?, ?)",
            [(commit, entry.session_id) for commit in entry.commits],
        )
