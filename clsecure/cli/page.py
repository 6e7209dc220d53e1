"""The report as one page for a browser: no script, nothing fetched, all of it escaped.

Escaped three times: by :func:`clsecure.terminal.escape` when the record was made and again in the report, by
Jinja2 on the way into the page; and were all of them broken, the page's own policy lets no script run.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path

from clsecure import __version__
from clsecure.audit import files
from clsecure.cli.report_rows import Report
from clsecure.errors import StateError, UsageError
from clsecure.terminal import escape

GENERATOR = "clsecure report"
_HEAD = 4096


def page(report: Report, *, record: Path, sha256: str) -> str:
    """Return the page.

    :param sha256: of the record's file.
    """
    import jinja2

    place = resources.files("clsecure").joinpath("cli", "templates")
    # Without a character that HTML escapes: it goes through the same door as everything else.
    style = place.joinpath("report.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(place.joinpath("report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        record=escape(str(record)),
        sha256=sha256,
        style=style,
        policy=policy(style),
        generator=f"{GENERATOR} {__version__}",
    )


def policy(style: str) -> str:
    """Return the policy that the page puts over itself: its own style, by its hash, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def write(path: Path, text: str) -> None:
    """Write the page, for the user alone. An earlier report is replaced, anything else left alone.

    :raises UsageError: something else is there.
    :raises StateError: it can't be written.
    """
    if path.is_symlink() or path.exists():
        try:
            head = files.read(path, most=64 << 20)[:_HEAD]
        except (StateError, FileNotFoundError):
            head = b""
        if f'content="{GENERATOR} '.encode() not in head:
            raise UsageError(
                f"{path} is there already, and is no report of clsecure's", resolution="Name another file"
            )
    files.write(path, text.encode("utf-8", "backslashreplace"))
