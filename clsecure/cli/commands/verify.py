"""``clsecure verify``: run the checks of the isolation, of a mode or of a session, without an agent."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from clsecure.cli import render
from clsecure.cli.box import wanted_box
from clsecure.cli.options import Invocation, VerifyOptions
from clsecure.errors import EXIT_VERIFICATION, UsageError
from clsecure.installation import require_installation
from clsecure.model import CheckStatus, Phase
from clsecure.privileged.client import HelperConnection
from clsecure.settings.values.output import OutputFormat
from clsecure.terminal import escape

if TYPE_CHECKING:
    from clsecure.model import CheckResult, Verification
    from clsecure.session.ui import Ui

_MARKS: Mapping[CheckStatus | None, str] = {
    CheckStatus.PASS: "ok",
    CheckStatus.FAIL: "FAILED",
    CheckStatus.SKIP: "skipped",
    None: "",
}


def execute(invocation: Invocation, ui: Ui) -> int:
    """Run them and tell. Exit status 0 when none failed, 123 when one did."""
    options = invocation.options
    assert isinstance(options, VerifyOptions)  # noqa: S101  # the dispatcher's word
    if options.list_checks:
        _list(as_json=invocation.output is OutputFormat.JSON)
        return 0
    with ExitStack() as stack:
        # First: nobody waits for checks whose results then go nowhere.
        junit = None if options.junit is None else stack.enter_context(_written(Path(options.junit)))
        what, found = _of_session(invocation, ui) if options.session else _of_mode(invocation, ui)
        if junit is not None:
            _write_junit(junit, what, found)
    if invocation.output is OutputFormat.JSON:
        render.write_json(document(what, found))
    else:
        _show(what, found, verbose=invocation.verbose)
    return EXIT_VERIFICATION if found.failed else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What was looked at."""

    mode: str
    network: str
    session_id: str | None = None

    def __str__(self) -> str:
        """In a few words."""
        whose = f"session {self.session_id}, " if self.session_id else ""
        return f"{whose}mode {self.mode}, network {self.network}"


def _of_mode(invocation: Invocation, ui: Ui) -> tuple[Subject, Verification]:
    from clsecure.session.store import state_directory
    from clsecure.session.verification import Place, verify_mode

    installation = require_installation()
    connection = HelperConnection(installation.helper)
    try:
        wanted = wanted_box(invocation, ui)
        state = state_directory()
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ui.phase("running the checks"):
            place = Place(home=Path.home(), state=state, environ=os.environ)
            found = verify_mode(wanted, connection, installation=installation, place=place)
    finally:
        connection.close()
    return Subject(mode=wanted.mode, network=wanted.network), found


def _of_session(invocation: Invocation, ui: Ui) -> tuple[Subject, Verification]:
    from clsecure.cli.commands.diff import project_here
    from clsecure.cli.recording import record_later_checks
    from clsecure.session.kept import kept_session
    from clsecure.session.store import Store

    assert isinstance(invocation.options, VerifyOptions)  # noqa: S101  # the dispatcher's word
    name, installation, project = invocation.options.session, require_installation(), project_here()
    assert name is not None  # noqa: S101  # the caller's word
    with kept_session(name, ui=ui, store=Store(), installation=installation, project=project) as kept:
        record = kept.record
        for line in record.failed_checks:
            ui.warn(f"failed already: {line}")
        what = Subject(mode=record.mode, network=record.network, session_id=record.session_id)
        looked, found = kept.looked_again()
        if looked.record != record:
            record_later_checks(looked, None if record.verified else found, invocation.layers, ui)
        return what, found


def document(what: Subject, found: Verification) -> dict[str, object]:
    """Return what ``--output json`` prints (docs/verify.schema.json)."""
    return {
        "mode": what.mode,
        "network": what.network,
        "session_id": what.session_id,
        "status": "failed" if found.failed else "passed",
        "checks": found.checks,
    }


def _written(path: Path) -> BinaryIO:
    try:
        return path.open("wb")
    except OSError as error:
        raise UsageError(f"{path} can't be written", details=error.strerror) from error


def _write_junit(file: BinaryIO, what: Subject, found: Verification) -> None:
    from clsecure.verify.junit import document as junit

    file.write(junit(found, name=str(what)))


def _show(what: Subject, found: Verification, *, verbose: bool) -> None:
    """Print a row for each check; what was observed of those that don't hold, or of all."""
    from clsecure.verify.table import ALL_CHECKS

    properties = {check.check_id: check.property for check in ALL_CHECKS}
    by_id: dict[str, list[CheckResult]] = {}
    for check in found.checks:
        by_id.setdefault(check.check_id, []).append(check)
    rows = [
        (
            name,
            results[0].vantage.value,
            *(_MARKS[_of_phase(results, phase)] for phase in Phase),
            properties.get(name, "a check of your own"),
        )
        for name, results in by_id.items()
    ]
    render.write_table(("CHECK", "SEEN FROM", "START", "RUNNING", "END", "PROPERTY"), rows)
    for check in found.checks:
        if verbose or check.status is not CheckStatus.PASS:
            render.write("\n".join(["", *_evidence(check), ""]))
    counted = Counter(check.status.value for check in found.checks)
    render.write(
        f"\n{escape(str(what))}: {counted['pass']} hold, {counted['fail']} failed, "
        f"{counted['skip']} skipped\n"
    )


def _of_phase(results: list[CheckResult], phase: Phase) -> CheckStatus | None:
    return next((each.status for each in results if each.phase is phase), None)


def _evidence(check: CheckResult) -> Iterator[str]:
    yield f"{escape(check.check_id)} {_MARKS[check.status]} ({check.phase})"
    yield f"  expected  {escape(' '.join(check.expected.split()))}"
    yield f"  observed  {escape(' '.join(check.observed.split()))}"


def _list(*, as_json: bool) -> None:
    from clsecure.verify.table import ALL_CHECKS

    if as_json:
        render.write_json(
            {
                "checks": [
                    {
                        "check_id": check.check_id,
                        "property": check.property,
                        "modes": sorted(check.modes),
                        "vantage": check.vantage,
                        "area": check.area,
                        "threats": check.threats,
                        "residuals": check.residuals,
                    }
                    for check in ALL_CHECKS
                ]
            }
        )
        return
    render.write_table(
        ("CHECK", "SEEN FROM", "MODES", "THREATS", "PROPERTY"),
        [
            (c.check_id, c.vantage, ", ".join(sorted(c.modes)), " ".join(c.threats), c.property)
            for c in ALL_CHECKS
        ],
    )
