"""What a session says of its checks besides how they stood."""

from __future__ import annotations

import pytest

from clsecure.model import CheckResult, CheckStatus, Phase, Vantage, Verification
from clsecure.session.checks import not_checked


def result(check_id: str, status: CheckStatus, phase: Phase, vantage: Vantage = Vantage.HOST) -> CheckResult:
    return CheckResult(
        check_id=check_id, status=status, vantage=vantage, phase=phase, expected="none", observed="too much"
    )


SKIPPED = result("files-outside", CheckStatus.SKIP, Phase.END)


def test_what_the_host_could_not_look_at_after_the_end_is_said() -> None:
    passed = result("special-files", CheckStatus.PASS, Phase.END)
    assert not_checked(Verification(checks=(passed, SKIPPED))) == (
        "not checked after the end: files-outside (too much)",
    )


@pytest.mark.parametrize(
    "checks",
    [
        (result("files-outside", CheckStatus.FAIL, Phase.END),),
        (result("files-outside", CheckStatus.SKIP, Phase.END, Vantage.INSIDE),),
        # The start has said so.
        (result("files-outside", CheckStatus.SKIP, Phase.START), SKIPPED),
        (result("files-outside", CheckStatus.SKIP, Phase.RUNNING),),
    ],
)
def test_what_is_said_elsewhere_or_shows_nothing_anyway_is_not(checks: tuple[CheckResult, ...]) -> None:
    assert not_checked(Verification(checks=checks)) == ()
