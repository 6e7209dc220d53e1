"""``clsecure network learn [SESSION]``: what was denied, as a list to review. Nothing is written anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clsecure.cli import render
from clsecure.egress.journal import Journal, denials
from clsecure.session.learn import Learned, learn, toml_lines
from clsecure.session.store import SessionDirectory, SessionRecord
from clsecure.session.words import number
from clsecure.terminal import escape

if TYPE_CHECKING:
    from clsecure.session.ui import Ui


def execute(place: SessionDirectory, record: SessionRecord, ui: Ui, *, as_json: bool) -> int:
    """Print the list of the last run."""
    with Journal(place.egress_log) as journal:
        refused = denials(journal.requests())
    learned = learn(refused)
    if as_json:
        render.write_json(document(record, learned))
        return 0
    if not learned:
        ui.note(f"nothing was denied to {place.path.name} because nothing allows it")
        return 0
    if any(each.allow for each in learned):
        render.write("".join(f"{line}\n" for line in toml_lines(learned)))
        ui.note("look at each of them before it goes into your config.toml; nothing was written")
    for each in learned:
        if each.allow is None:
            times = number(each.requests, "request")
            ui.warn(f"no host name, left out: {escape(each.host)}:{each.port} ({times})")
    return 0


def document(record: SessionRecord, learned: tuple[Learned, ...]) -> dict[str, object]:
    """Return the list as one document (``docs/network-learn.schema.json``)."""
    return {
        "session_id": record.session_id,
        "allow": [
            {"pattern": each.allow, "host": each.host, "port": each.port, "requests": each.requests}
            for each in learned
            if each.allow is not None
        ],
        "left_out": [
            {"host": escape(each.host), "port": each.port, "requests": each.requests}
            for each in learned
            if each.allow is None
        ],
    }
