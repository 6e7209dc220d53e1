"""A verification as JUnit XML, for what shows results of tests in CI. Only written here, never read."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from clsecure.model import CheckResult, CheckStatus, Verification
from clsecure.terminal import escape

_LONGEST = 4000


def document(verification: Verification, *, name: str) -> bytes:
    """Return the document: one suite, one case for each check each time it looked.

    :param name: of the suite: what was verified.
    """
    checks = verification.checks
    skipped = sum(check.status is CheckStatus.SKIP for check in checks)
    counts = {"tests": str(len(checks)), "failures": str(len(verification.failed)), "errors": "0",
              "skipped": str(skipped)}  # fmt: skip
    top = ET.Element("testsuites", {"name": "clsecure", **counts})
    suite = ET.SubElement(top, "testsuite", {"name": _text(name), **counts})
    for check in checks:
        _case(suite, check)
    ET.indent(top)
    written: bytes = ET.tostring(top, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _case(suite: ET.Element, check: CheckResult) -> None:
    words = f"expected {_text(check.expected)}; observed {_text(check.observed)}"
    classname = f"clsecure.{check.phase}.{check.vantage}"
    case = ET.SubElement(suite, "testcase", {"classname": classname, "name": _text(check.check_id)})
    match check.status:
        case CheckStatus.PASS:
            ET.SubElement(case, "system-out").text = words
        case CheckStatus.FAIL:
            ET.SubElement(case, "failure", {"message": _text(check.observed)}).text = words
        case CheckStatus.SKIP:
            ET.SubElement(case, "skipped", {"message": _text(check.observed)}).text = words


def _text(text: str) -> str:
    """Escape what XML has no way to say, and what would show itself otherwise than it is."""
    return escape(text)[:_LONGEST]
