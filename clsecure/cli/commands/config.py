"""``clsecure config``: every setting, what counts of it here, and where that was said."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from clsecure.cli import render
from clsecure.cli.options import Invocation
from clsecure.errors import RepositoryError
from clsecure.settings import report
from clsecure.settings.layers import settle
from clsecure.settings.project import with_project
from clsecure.settings.values.output import OutputFormat
from clsecure.workspace.repository import discover

if TYPE_CHECKING:
    from clsecure.session.ui import Ui

_DURATIONS = frozenset({"time_limit", "notify_after"})


def execute(invocation: Invocation, ui: Ui) -> int:
    """Print the table; nothing is asked, and nothing but the settings is read."""
    project = _repository(ui)
    layers = invocation.layers if project is None else with_project(invocation.layers, project)
    settled = settle(layers)
    from clsecure.settings.model import Settings

    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    found = report.rows(settled, defaults)
    ceilings = [(entry.key, entry.text, str(entry.source)) for entry in layers.ceilings]
    if invocation.output is OutputFormat.JSON:
        for warning in settled.warnings:
            ui.warn(warning)
        settings = {row.key: _object(row) for row in found}
        bounds = [dict(zip(("key", "value", "where"), each, strict=True)) for each in ceilings]
        render.write_json(
            {
                "project": project,
                "settings": settings,
                "ceilings": bounds,
                "warnings": settled.warnings,
                "notes": settled.notes,
            }
        )
        return 0
    for warning in settled.warnings:
        ui.warn(warning)
    for note in settled.notes:
        ui.note(note)
    render.write_table(
        ("SETTING", "VALUE", "FROM"),
        [line for row in found for line in _lines(row)],
    )
    if ceilings:
        render.write("\n")
        render.write_table(("THIS MACHINE ALLOWS AT MOST", "", "FROM"), ceilings)
    return 0


def _object(row: report.Row) -> dict[str, object]:
    return {"value": row.value, "layer": row.layer, "where": row.where, "overruled": row.overruled}


def _lines(row: report.Row) -> list[tuple[str, str, str]]:
    lines = [(row.key, _text(row.key, row.value), row.where or row.layer)]
    lines += [("", f"not {_text(row.key, each.value)}: {each.why}", each.where) for each in row.overruled]
    return lines


def _text(key: str, value: object) -> str:
    if key in _DURATIONS and isinstance(value, int):
        return str(timedelta(seconds=value))
    return report.text(value)


def _repository(ui: Ui) -> Path | None:
    try:
        return discover(Path.cwd()).top
    except RepositoryError as error:
        ui.note(f"without the settings of a repository: {error.brief}")
        return None
