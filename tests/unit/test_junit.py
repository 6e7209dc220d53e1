"""JUnit XML: what CI reads of it, also where hostile text was observed."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from clsecure.model import CheckResult, CheckStatus, Phase, Vantage, Verification
from clsecure.verify.junit import document


def result(check_id: str, status: CheckStatus, observed: str = "as planned") -> CheckResult:
    return CheckResult(check_id=check_id, status=status, vantage=Vantage.INSIDE, phase=Phase.END,
                       expected="as planned", observed=observed)  # fmt: skip


def test_every_check_is_a_case_with_its_outcome() -> None:
    checks = (
        result("mounts", CheckStatus.PASS),
        result("devices", CheckStatus.FAIL, "sda"),
        result("ipv6", CheckStatus.SKIP, "could not be tried"),
    )
    top = ET.fromstring(document(Verification(checks=checks), name="mode user"))
    suite = top.find("testsuite")
    assert suite is not None
    for counted in (top, suite):
        assert [counted.get(key) for key in ("tests", "failures", "skipped", "errors")] == [
            "3",
            "1",
            "1",
            "0",
        ]
    cases = {case.get("name"): case for case in suite}
    assert {case.get("classname") for case in cases.values()} == {"clsecure.end.inside"}
    failure, skip = cases["devices"].find("failure"), cases["ipv6"].find("skipped")
    assert failure is not None
    assert failure.get("message") == "sda"
    assert failure.text == "expected as planned; observed sda"
    assert skip is not None
    assert skip.get("message") == "could not be tried"
    assert [child.tag for child in cases["mounts"]] == ["system-out"]


def test_hostile_text_is_escaped_and_no_element() -> None:
    hostile = "\x00\x1b[2J\x85\u202e\udc80\ufffe]]><failure/>&\"'\n" + "x" * 9000
    check = result(f"own:a.py::{hostile}", CheckStatus.FAIL, hostile)
    data = document(Verification(checks=(check,)), name=hostile)
    top = ET.fromstring(data)
    assert [each.tag for each in top.iter()] == ["testsuites", "testsuite", "testcase", "failure"]
    failure = top.find("testsuite/testcase/failure")
    assert failure is not None
    assert failure.get("message", "").startswith("\\x00\\x1b[2J\\x85\\u202e\\x80\\ufffe]]><failure/>&\"'\\n")
    assert len(failure.get("message", "")) == 4000
    assert not [byte for byte in data if byte < 32 and byte != 10]


def test_nothing_to_tell_is_a_document_too() -> None:
    assert ET.fromstring(document(Verification(), name="x")).get("tests") == "0"
