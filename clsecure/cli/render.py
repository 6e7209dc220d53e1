"""Results and errors: as text for people, or as the one JSON document on standard output.

A command writes at most one document and raises nothing after it; ``main`` writes the one of an error.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum
from pathlib import PurePath

from clsecure.cli.screen import Screen, Style, is_terminal, wants_colour
from clsecure.errors import ClsecureError
from clsecure.session.words import human_size
from clsecure.settings.values.services import Secret
from clsecure.terminal import escape

_MAX_DETAIL_LINES = 200


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """One line of ``clsecure list``, and one object of its JSON (``docs/list.schema.json``).

    :param session_id: what ``import``, ``diff`` and ``cleanup`` take.
    :param status: running, kept, …
    :param size: bytes; None when unknown.
    :param age_s: seconds since it was begun.
    :param unimported: work waits that is in no branch; None when unknown.
    """

    session_id: str
    project: str
    session: str
    mode: str
    status: str
    worker_user: str
    size: int | None
    age_s: float
    unimported: bool | None


def plain(value: object) -> object:
    """Return a value as JSON knows it: dataclasses as objects, enums as their values, durations as seconds.

    A trailing underscore of a field is dropped (``import_``); what is no Unicode is shown escaped.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Secret):  # before dataclasses: it is one, and nothing shows its fields
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name.removesuffix("_"): plain(item) for name, item in fields.items()}
    if isinstance(value, Mapping):
        return {_text(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes | PurePath):
        return _text(os.fsdecode(value))
    return _text(str(value))


def write_json(document: object) -> None:
    """Write the one document, indented, in ASCII: nothing in it can command a terminal."""
    import json

    write(json.dumps(plain(document), indent=2) + "\n")


def write(text: str) -> None:
    """Write a result to standard output; hostile parts have been escaped by whoever put them in."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_diff(data: bytes) -> None:
    """Write a diff to standard output: escaped on a terminal, byte for byte into a file or pipe."""
    if is_terminal(1):
        write(escape(data, keep_newlines=True))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def write_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to standard output. Cells are escaped, and text only: no markup, no emoji."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # As wide as it is: a pipe gets whole cells, a terminal folds them itself.
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        table.add_column(Text(column), no_wrap=True, overflow="ignore")
    for row in rows:
        table.add_row(*(Text(escape(cell)) for cell in row))
    console = Console(
        file=sys.stdout,
        markup=False,
        emoji=False,
        highlight=False,
        no_color=True,
        force_terminal=wants_colour(1, os.environ),
        width=10_000,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(table, crop=False)
    write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def write_sessions(rows: Sequence[SessionRow], *, json: bool) -> None:
    """Write what ``clsecure list`` shows: nothing for people when there is nothing."""
    if json:
        write_json({"sessions": rows})
        return
    if not rows:
        return
    columns = (
        "SESSION ID",
        "PROJECT",
        "SESSION",
        "MODE",
        "STATUS",
        "SIZE",
        "AGE",
        "UNIMPORTED WORK",
        "WORKER",
    )
    write_table(
        columns,
        [
            (
                row.session_id,
                row.project,
                row.session,
                row.mode,
                row.status,
                "?" if row.size is None else human_size(row.size),
                human_age(row.age_s),
                {True: "yes", False: "no", None: "?"}[row.unimported],
                row.worker_user,
            )
            for row in rows
        ],
    )


def human_age(seconds: float) -> str:
    """Return a time span for people, in its largest unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def error_document(error: ClsecureError) -> dict[str, object]:
    """Return the document of an error (``docs/error.schema.json``)."""
    return {
        "error": {
            "brief": error.brief,
            "details": error.details,
            "resolution": error.resolution,
            "exit_code": error.exit_code,
        }
    }


def show_error(error: ClsecureError, screen: Screen) -> None:
    """Say what happened, why, and what to do."""
    screen.line(error.brief, Style.RED, label="clsecure: ")
    lines = (error.details or "").rstrip("\n").split("\n") if error.details else []
    for line in lines[:_MAX_DETAIL_LINES]:
        screen.line(f"  │ {line}")
    if len(lines) > _MAX_DETAIL_LINES:
        screen.line(f"  │ … {len(lines) - _MAX_DETAIL_LINES} more lines")
    for number, line in enumerate((error.resolution or "").strip().split("\n") if error.resolution else []):
        screen.line(f"  {'→' if number == 0 else ' '} {line}")


def _text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
