"""What the checks of a session found, phase by phase."""

from __future__ import annotations

from collections.abc import Iterable

from clsecure.model import CheckResult, CheckStatus, Phase, Vantage, Verification
from clsecure.session.store import SessionRecord
from clsecure.verify.checks import described


class Checks:
    """What the checks of one session found, so far."""

    def __init__(self) -> None:
        self._found: dict[tuple[Phase, str], CheckResult] = {}

    def add(self, results: Iterable[CheckResult]) -> None:
        """Take results in. Of a check that looks again and again a failure stays, else its first word."""
        for result in results:
            key = result.phase, result.check_id
            if key not in self._found or result.status is CheckStatus.FAIL:
                self._found[key] = result

    @property
    def verification(self) -> Verification:
        """How it stands."""
        return Verification(checks=tuple(self._found.values()))


def all_failed(record: SessionRecord, verification: Verification) -> tuple[str, ...]:
    """Return what failed in earlier runs and in this one, a line each."""
    return tuple(dict.fromkeys((*record.failed_checks, *described(verification.failed))))


def not_checked(verification: Verification) -> tuple[str, ...]:
    """Return what the host could not look at after the end, a line each: it fails nothing, and is not silent.

    What this machine lacks was said at the start.
    """
    skipped = [
        result
        for result in verification.checks
        if result.status is CheckStatus.SKIP and result.vantage is Vantage.HOST
    ]
    known = {result.check_id for result in skipped if result.phase is Phase.START}
    return tuple(
        f"not checked after the end: {result.check_id} ({result.observed})"
        for result in skipped
        if result.phase is Phase.END and result.check_id not in known
    )
